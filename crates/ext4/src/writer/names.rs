//! The names of all directories, in one hash table by (directory, name).

use std::hash::{BuildHasher, Hasher, RandomState};

use super::store::{Arena, ArenaRef, Segmented};

/// No entry; ends a list.
pub(super) const NONE: u32 = u32::MAX;

/// A name: 28 bytes besides the name's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    name: ArenaRef2,
    /// The directory's inode.
    parent: u32,
    /// The inode it names; 0: the name is gone.
    pub(super) inode: u32,
    hash: u32,
    /// The next entry of the same bucket.
    chain: u32,
    /// The entry made before this one in the same directory.
    pub(super) sibling: u32,
}

/// An [`ArenaRef`] and a length in 8 bytes.
#[derive(Debug, Clone, Copy)]
struct ArenaRef2 {
    at: ArenaRef,
    len: u8,
}

const _: () = assert!(size_of::<Entry>() <= 32);

/// A name's hash, kept between a look-up and what follows from it.
#[derive(Debug, Clone, Copy)]
pub(super) struct NameHash(u32);

#[derive(Debug)]
pub(super) struct Names {
    entries: Segmented<Entry>,
    arena: Arena,
    buckets: Vec<u32>,
    live: usize,
    /// Randomly keyed against names made to collide. What is written does not depend on it.
    hasher: RandomState,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            entries: Segmented::default(),
            arena: Arena::default(),
            buckets: vec![NONE; 1024],
            live: 0,
            hasher: RandomState::new(),
        }
    }

    pub(super) fn hash(&self, parent: u32, name: &[u8]) -> NameHash {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u32(parent);
        hasher.write(name);
        let [b0, b1, b2, b3, ..] = hasher.finish().to_le_bytes();
        NameHash(u32::from_le_bytes([b0, b1, b2, b3]))
    }

    /// The entry of a name.
    pub(super) fn find(&self, parent: u32, name: &[u8], hash: NameHash) -> Option<u32> {
        let mut index = self.buckets[self.bucket(hash.0)];
        while index != NONE {
            let entry = &self.entries[index];
            if entry.hash == hash.0 && entry.parent == parent && self.name(entry) == name {
                return Some(index);
            }
            index = entry.chain;
        }
        None
    }

    /// Adds a name (1 … 255 bytes) that is not there yet.
    pub(super) fn insert(
        &mut self,
        parent: u32,
        name: &[u8],
        hash: NameHash,
        inode: u32,
        sibling: u32,
    ) -> u32 {
        if self.live * 2 >= self.buckets.len() {
            self.grow();
        }
        let bucket = self.bucket(hash.0);
        let entry = Entry {
            name: ArenaRef2 {
                at: self.arena.push(name),
                len: u8::try_from(name.len()).expect("names were checked to be 255 bytes or less"),
            },
            parent,
            inode,
            hash: hash.0,
            chain: self.buckets[bucket],
            sibling,
        };
        let index = self.entries.push(entry);
        self.buckets[bucket] = index;
        self.live += 1;
        index
    }

    /// Forgets a name. Its entry stays in the list of its directory, naming inode 0.
    pub(super) fn remove(&mut self, index: u32) {
        let Entry { hash, chain, .. } = self.entries[index];
        let bucket = self.bucket(hash);
        if self.buckets[bucket] == index {
            self.buckets[bucket] = chain;
        } else {
            let mut before = self.buckets[bucket];
            while self.entries[before].chain != index {
                before = self.entries[before].chain;
            }
            self.entries[before].chain = chain;
        }
        self.entries[index].inode = 0;
        self.live -= 1;
    }

    pub(super) fn entry(&self, index: u32) -> &Entry {
        &self.entries[index]
    }

    pub(super) fn name(&self, entry: &Entry) -> &[u8] {
        self.arena.get(entry.name.at, entry.name.len.into())
    }

    /// The live entries of a directory from its newest on back.
    pub(super) fn newest_first(&self, newest: u32) -> impl Iterator<Item = (u32, &Entry)> {
        let mut index = newest;
        std::iter::from_fn(move || {
            (index != NONE).then(|| {
                let entry = &self.entries[index];
                (std::mem::replace(&mut index, entry.sibling), entry)
            })
        })
        .filter(|(_, entry)| entry.inode != 0)
    }

    fn bucket(&self, hash: u32) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    fn grow(&mut self) {
        let size = self.buckets.len() * 2;
        self.buckets = Vec::new();
        self.buckets.resize(size, NONE);
        let mut index = 0;
        while let Some(entry) = self.entries.get_mut(index) {
            if entry.inode != 0 {
                let bucket = entry.hash as usize & (size - 1);
                entry.chain = std::mem::replace(&mut self.buckets[bucket], index);
            }
            index += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_until_removed() {
        let mut names = Names::new();
        let name = |i: u32| format!("name-{i}").into_bytes();
        let mut newest = NONE;
        for i in 0..5000 {
            let hash = names.hash(7, &name(i));
            assert_eq!(names.find(7, &name(i), hash), None);
            newest = names.insert(7, &name(i), hash, i + 100, newest);
        }
        for i in (0..5000).step_by(3) {
            let index = names.find(7, &name(i), names.hash(7, &name(i))).unwrap();
            names.remove(index);
        }
        for i in 0..5000 {
            let found = names.find(7, &name(i), names.hash(7, &name(i)));
            let inode = found.map(|index| names.entry(index).inode);
            assert_eq!(inode, (i % 3 != 0).then_some(i + 100));
            assert_eq!(names.find(8, &name(i), names.hash(8, &name(i))), None);
        }
        let left = names.newest_first(newest).map(|(_, e)| e.inode);
        assert!(left.eq((0..5000).rev().filter(|i| i % 3 != 0).map(|i| i + 100)));
    }
}
