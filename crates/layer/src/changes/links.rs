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
}

#[derive(Debug, Default)]
pub(super) struct Names(Vec<Name>);

impl Names {
    pub(super) fn add(&mut self, name: Name) {
        self.0.push(name);
    }

    /// Makes changes of the names that look the same but whose files don't.
    pub(super) fn resolve(&self, items: &mut Items) {
        // A file is changed if any name of it is, or if not all of its names came from one and the same file that gave names to no other.
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
                changed.extend([name.after, other]);
            }
        }
        for name in &self.0 {
            if changed.contains(&name.after) {
                items.modify(name.item);
            }
        }
    }
}
