//! Going through a whole tree.

use std::sync::Arc;

use lcow_blockio::ReadAt;

use super::error::ReadError;
use super::num::index;
use super::{Filesystem, Inode};

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
/// whose `..` does not lead back. After an error the walk is over.
pub struct Walk<'a, R> {
    fs: &'a Filesystem<R>,
    /// What is still to come, the next last.
    stack: Vec<Step>,
    /// One bit for each inode: directories entered.
    entered: Vec<u64>,
}

struct Step {
    /// The path of the directory, shared by all that is in it: long paths must not cost memory for each name.
    dir: Arc<[u8]>,
    name: Vec<u8>,
    inode: crate::InodeNumber,
    parent: crate::InodeNumber,
}

impl<R: ReadAt> Filesystem<R> {
    /// Goes through all files below `root`.
    ///
    /// # Errors
    /// As [`Filesystem::read_dir`].
    pub fn walk(&self, root: &Inode) -> Result<Walk<'_, R>, ReadError> {
        let words = index(u64::from(self.superblock.inodes) >> 6).saturating_add(1);
        let mut walk = Walk {
            fs: self,
            stack: Vec::new(),
            entered: vec![0; words],
        };
        walk.enter(root, &[])?;
        Ok(walk)
    }
}

impl<R: ReadAt> Walk<'_, R> {
    fn enter(&mut self, dir: &Inode, path: &[u8]) -> Result<(), ReadError> {
        let bit = 1_u64 << (dir.number.0 & 63);
        let word = self.entered.get_mut(index(u64::from(dir.number.0) >> 6));
        match word {
            Some(word) if *word & bit == 0 => *word |= bit,
            _ => return Err(dir.corrupt("a directory with two names")),
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
        }
        Ok(Walked { path, inode })
    }
}

impl<R: ReadAt> Iterator for Walk<'_, R> {
    type Item = Result<Walked, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.stack.pop()?;
        let result = self.step(step);
        if result.is_err() {
            self.stack.clear();
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
