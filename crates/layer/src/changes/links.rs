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

    /// Whether a name that was not looked at, being the same in both unions, may be a name of a file that is not: this one took the place
    /// of another file but keeps its other names.
    pub(super) fn are_incomplete(&self) -> bool {
        let mut seen: HashMap<Key, u32> = HashMap::new();
        for name in &self.0 {
            let count = seen.entry(name.after).or_default();
            *count = count.saturating_add(1);
        }
        self.0.iter().any(|name| {
            name.shared.0 && name.before != Some(name.after) && seen[&name.after] < name.links.0
        })
    }

    /// Makes changes of the names that look the same but whose files don't. `partial`: not all names were looked at.
    pub(super) fn resolve(&self, items: &mut Items, partial: bool) {
        // A file is changed if any name of it is, or if not all of its names came from one and the same file that gave names to no other.
        let mut changed: HashSet<Key> = HashSet::new();
        let mut came_from: HashMap<Key, Key> = HashMap::new();
        let mut became: HashMap<Key, Key> = HashMap::new();
        let mut kept: HashMap<Key, u32> = HashMap::new();
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
            let count = kept.entry(before).or_default();
            *count = count.saturating_add(1);
            let other = *became.entry(before).or_insert(name.after);
            if other != name.after {
                changed.extend([name.after, other]);
            }
        }
        if partial {
            // The names of the old file that were not looked at still are its names, so the new file is another. (A name that a layer
            // between hides counts too, as in the inode; so more may be told than changed, never less.)
            let lost = self.0.iter().filter(|name| {
                let other = name.before.filter(|_| name.shared.1);
                let other = other.filter(|before| *before != name.after);
                other.is_some_and(|before| {
                    kept.get(&before).is_some_and(|count| *count < name.links.1)
                })
            });
            changed.extend(lost.map(|name| name.after));
        }
        for name in &self.0 {
            if changed.contains(&name.after) {
                items.modify(name.item);
            }
        }
    }
}
