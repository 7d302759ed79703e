//! Going through a whole tree.

use std::sync::Arc;

use lcow_blockio::ReadAt;

use super::error::ReadError;
use super::num::index;
use super::{Filesystem, Inode};
use crate::InodeNumber;
use crate::format::inode::flags;

/// A file met on the way through a tree.
#[derive(Debug, Clone)]
pub struct Walked {
    /// Its path from where the walk began, without a slash at either end.
    pub path: Vec<u8>,
    /// The file.
    pub inode: Inode,
}

/// Goes through all files below a directory: a directory before what is in it, the names of each sorted by their bytes.
///
/// Every directory is entered once: a second name for one, which could make the walk endless, is *corrupt*, and so is one
/// whose `..` does not lead back. A walk from the root ends with a look for inodes in use that have no name: such files
/// are lost, and a tree without them is *corrupt* too. After an error the walk is over.
pub struct Walk<'a, R> {
    fs: &'a Filesystem<R>,
    /// What is still to come, the next last.
    stack: Vec<Step>,
    seen: Census,
    /// Whether all that is in use must have been seen at the end.
    whole: bool,
}

/// Which of a filesystem's inodes a walk came by, one bit for each.
#[derive(Debug, Clone)]
pub struct Census(Vec<u64>);

impl Census {
    /// Notes an inode; whether it is new.
    pub fn see(&mut self, number: InodeNumber) -> bool {
        let bit = 1_u64 << (number.0 & 63);
        match self.0.get_mut(index(u64::from(number.0) >> 6)) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }

    fn has(&self, number: u32) -> bool {
        let word = self.0.get(index(u64::from(number) >> 6));
        word.is_some_and(|word| word & (1 << (number & 63)) != 0)
    }
}

struct Step {
    /// The path of the directory, shared by all that is in it: long paths must not cost memory for each name.
    dir: Arc<[u8]>,
    name: Vec<u8>,
    inode: InodeNumber,
    parent: InodeNumber,
}

impl<R: ReadAt> Filesystem<R> {
    /// Goes through all files below `root`.
    ///
    /// # Errors
    /// As [`Filesystem::read_dir`].
    pub fn walk(&self, root: &Inode) -> Result<Walk<'_, R>, ReadError> {
        let mut walk = Walk {
            fs: self,
            stack: Vec::new(),
            seen: self.census(),
            whole: root.number == InodeNumber::ROOT,
        };
        walk.enter(root, &[])?;
        Ok(walk)
    }

    /// A census that has seen nothing yet, for walks of one's own.
    #[must_use]
    pub fn census(&self) -> Census {
        let words = index(u64::from(self.superblock.inodes) >> 6).saturating_add(1);
        Census(vec![0; words])
    }

    /// Looks for an inode that is in use and has links, but that a walk through all of the filesystem did not come by.
    ///
    /// # Errors
    /// *corrupt*, naming the inode: the file is lost, and a tree without it is not the whole.
    pub fn look_for_lost(&self, seen: &Census) -> Result<(), ReadError> {
        let sb = &self.superblock;
        for (group, first) in self
            .groups
            .iter()
            .zip((1_u32..).step_by(index(u64::from(sb.inodes_per_group.max(1)))))
        {
            if group.used_inodes == 0 {
                continue;
            }
            let bitmap = self.block("read an inode bitmap", group.inode_bitmap)?;
            let used = bitmap
                .iter()
                .zip((first..).step_by(8))
                .filter(|b| *b.0 != 0);
            for (byte, number) in used {
                for bit in 0..8_u32 {
                    let number = number.saturating_add(bit);
                    let within = number.saturating_sub(first) < group.used_inodes;
                    if byte & (1 << bit) == 0 || !within || number < sb.first_inode {
                        continue;
                    }
                    if !seen.has(number) {
                        self.lost(InodeNumber(number))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn lost(&self, number: InodeNumber) -> Result<(), ReadError> {
        // What fast commits made or deleted is not in the bitmaps yet.
        if self.superblock.hidden_inodes.contains(&number.0) || self.changed.inode(number).is_some()
        {
            return Ok(());
        }
        // Without links: deleted while open. Attribute values are named by attributes.
        match self.inode_in_use(number)? {
            Some(inode) if !inode.has(flags::EA_INODE) => {
                Err(inode.corrupt("it is in use, but no directory has a name for it"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: ReadAt> Walk<'_, R> {
    fn enter(&mut self, dir: &Inode, path: &[u8]) -> Result<(), ReadError> {
        if !self.seen.see(dir.number) {
            return Err(dir.corrupt("a directory with two names"));
        }
        let mut entries = self.fs.read_dir(dir)?;
        entries.sort_unstable_by(|a, b| b.name.cmp(&a.name));
        let path: Arc<[u8]> = path.into();
        self.stack.extend(entries.into_iter().map(|entry| Step {
            dir: Arc::clone(&path),
            name: entry.name,
            inode: entry.inode,
            parent: dir.number,
        }));
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<Walked, ReadError> {
        let inode = self.fs.inode(step.inode)?;
        let path = if step.dir.is_empty() {
            step.name
        } else {
            [&step.dir, &b"/"[..], &step.name].concat()
        };
        if inode.is_dir() {
            if self.fs.parent(&inode)? != step.parent {
                return Err(inode.corrupt("its `..` is not the directory that holds it"));
            }
            self.enter(&inode, &path)?;
        } else {
            self.seen.see(inode.number);
        }
        Ok(Walked { path, inode })
    }
}

impl<R: ReadAt> Iterator for Walk<'_, R> {
    type Item = Result<Walked, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some(step) = self.stack.pop() else {
            if !std::mem::take(&mut self.whole) {
                return None;
            }
            return self.fs.look_for_lost(&self.seen).err().map(Err);
        };
        let result = self.step(step);
        if result.is_err() {
            self.stack.clear();
            self.whole = false;
        }
        Some(result)
    }
}

impl<R> std::fmt::Debug for Walk<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk")
            .field("ahead", &self.stack.len())
            .finish_non_exhaustive()
    }
}
