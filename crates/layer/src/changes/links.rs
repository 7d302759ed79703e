//! Files with several names.
//!
//! Comparing two trees name by name can't see links: whether two names that each look the same still are one file. So the names
//! of files with several are remembered, and once all are known, those that look the same are made changes where the files behind them are
//! not the same groups of names.

use std::collections::{HashMap, HashSet};

use super::compare::{Items, Key, State};

/// A name of a file that has several, in either union.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) item: usize,
    pub(super) after: Key,
    /// The file that the name stood for before, if it stood for any.
    pub(super) before: Option<Key>,
    /// How many names both files have, seen or not.
    pub(super) links: (u32, u32),
    /// Whether each file lies on a disk that both unions have. Only such a file can have names that were not looked at.
    pub(super) shared: (bool, bool),
}

#[derive(Debug, Default)]
pub(super) struct Names(Vec<Name>);

impl Names {
    pub(super) fn add(&mut self, name: Name) {
        self.0.push(name);
    }

    /// Whether names that were not looked at, being the same in both unions, matter: of a file that took the place of another but keeps
    /// its other names, or of one that another, alike file took a name of.
    pub(super) fn are_incomplete(&self, items: &Items) -> bool {
        let mut seen: HashMap<Key, u32> = HashMap::new();
        let mut kept: HashMap<Key, u32> = HashMap::new();
        for name in &self.0 {
            let count = seen.entry(name.after).or_default();
            *count = count.saturating_add(1);
            if let Some(before) = name.before
                && items.state(name.item) == State::Same
            {
                let count = kept.entry(before).or_default();
                *count = count.saturating_add(1);
            }
        }
        self.0
            .iter()
            .filter(|name| name.before != Some(name.after))
            .any(|name| {
                let kept = name.before.and_then(|before| kept.get(&before));
                name.shared.0 && seen[&name.after] < name.links.0
                    || name.shared.1 && kept.is_some_and(|count| *count < name.links.1)
            })
    }

    /// Makes changes of the names that look the same but whose files don't.
    pub(super) fn resolve(&self, items: &mut Items) {
        // A file is changed if any name of it is, or if not all of its names came from one and the same file that gave names to no other.
        // What still is that very file stays, though others took names of it.
        let mut changed: HashSet<Key> = HashSet::new();
        let mut came_from: HashMap<Key, Key> = HashMap::new();
        let mut became: HashMap<Key, Key> = HashMap::new();
        for name in &self.0 {
            let Some(before) = name
                .before
                .filter(|_| items.state(name.item) == State::Same)
            else {
                changed.insert(name.after);
                continue;
            };
            if *came_from.entry(name.after).or_insert(before) != before {
                changed.insert(name.after);
            }
            let other = *became.entry(before).or_insert(name.after);
            if other != name.after {
                changed.extend([name.after, other].into_iter().filter(|key| *key != before));
            }
        }
        for name in &self.0 {
            if changed.contains(&name.after) {
                items.modify(name.item);
            }
        }
    }
}
