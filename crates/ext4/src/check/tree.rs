//! The tree as a whole: every directory reached, every name counted.

use lcow_blockio::ReadAt;

use super::{Checker, Kind, Problem, Step};
use crate::format::LINK_MAX;
use crate::format::superblock::ro_compat;
use crate::reader::Structure;
use crate::reader::internal::num::index;
use crate::{FileType, InodeNumber};

impl<R: ReadAt> Checker<'_, R> {
    pub(super) fn check_tree(&mut self) -> Step {
        let root = InodeNumber::ROOT.0;
        match self.directory_mut(root) {
            Some(dir) => dir.parent = root,
            None => {
                let structure = Structure::Inode(InodeNumber::ROOT);
                return self.found(
                    structure,
                    0,
                    Problem::Malformed,
                    "the root is not a directory",
                );
            }
        }
        // Without all names nothing can be said of those who have none.
        if !self.names_known {
            return Ok(());
        }
        self.check_parents()?;
        self.check_links()
    }

    /// Every directory has a name, its `..` leads back, and its way up ends at the root.
    fn check_parents(&mut self) -> Step {
        let structure = |number: u32| Structure::Directory(InodeNumber(number));
        for at in 0..self.directories.len() {
            let Some(dir) = self.directories.get(at).copied() else {
                break;
            };
            if dir.parent == 0 {
                let detail = "no directory has a name for it";
                self.found(structure(dir.number), 0, Problem::Reference, detail)?;
            } else if dir.above != dir.parent {
                let detail = format!("its `..` is {}, and {} has its name", dir.above, dir.parent);
                self.found(structure(dir.number), 0, Problem::Reference, detail)?;
            }
        }
        // 0: not looked at, 1: on the way, 2: leads somewhere that was reported or to the root.
        let mut marks = vec![0_u8; self.directories.len()];
        for start in 0..self.directories.len() {
            let mut way = Vec::new();
            let mut at = start;
            let mut circle = None;
            while let Some(mark) = marks.get_mut(at) {
                match *mark {
                    0 => *mark = 1,
                    1 => {
                        circle = Some(at);
                        break;
                    }
                    _ => break,
                }
                way.push(at);
                let Some(dir) = self.directories.get(at) else {
                    break;
                };
                if dir.number == InodeNumber::ROOT.0 || dir.parent == 0 {
                    break;
                }
                let parent = dir.parent;
                match self.directories.binary_search_by_key(&parent, |d| d.number) {
                    Ok(next) => at = next,
                    Err(_) => break,
                }
            }
            for at in way {
                if let Some(mark) = marks.get_mut(at) {
                    *mark = 2;
                }
            }
            if let Some(dir) = circle.and_then(|at| self.directories.get(at)) {
                let number = dir.number;
                let detail = "it lies within itself, not in the root";
                self.found(structure(number), 0, Problem::Reference, detail)?;
            }
        }
        Ok(())
    }

    /// What is in use has as many names as links.
    fn check_links(&mut self) -> Step {
        let many = self.sb().has_ro_compat(ro_compat::DIR_NLINK);
        let per_group = self.sb().inodes_per_group;
        let mut first = 1_u32;
        for group in 0..self.states.len() {
            let len = self.states.get(group).map_or(0, Vec::len);
            for (number, place) in (first..).zip(0..len) {
                let state = self
                    .states
                    .get(group)
                    .and_then(|states| states.get(place))
                    .copied()
                    .unwrap_or_default();
                let detail = match state.kind {
                    Kind::Unused | Kind::Broken | Kind::Hidden | Kind::Orphan => continue,
                    Kind::Value if self.values.contains_key(&number) => continue,
                    Kind::Value => "no attribute has it for a value".to_owned(),
                    Kind::File(file_type) => {
                        let dir = file_type == FileType::Directory;
                        let counted = if dir && many && state.names > LINK_MAX {
                            1
                        } else {
                            state.names
                        };
                        // A directory that once had more than can be counted keeps its single link.
                        let once_more = dir && state.indexed && state.links == 1 && counted > 1;
                        if counted == u32::from(state.links) || once_more {
                            continue;
                        }
                        if counted == 0 {
                            "it is in use, but no directory has a name for it".to_owned()
                        } else {
                            format!("it says {} links, and has {counted}", state.links)
                        }
                    }
                };
                let offset = self.fs.inode_offset(InodeNumber(number)).unwrap_or(0);
                let structure = Self::inode_structure(number);
                self.found(structure, offset, Problem::Reference, detail)?;
            }
            first = first.saturating_add(per_group);
        }
        Ok(())
    }

    /// How many inodes of a group are in use, how many are directories, and their bitmap. `None`: none is in use.
    pub(super) fn used_inodes(&self, group: usize, first: u32) -> Option<(u32, u32, Vec<u8>)> {
        let sb = self.sb();
        let states = self.states.get(group)?;
        let reserved = sb.first_inode.saturating_sub(first);
        if states.is_empty() && reserved == 0 {
            return None;
        }
        let mut bitmap = vec![0; index(u64::from(sb.inodes_per_group).div_ceil(8))];
        let (mut used, mut directories) = (0_u32, 0_u32);
        for (place, number) in (0..sb.inodes_per_group).zip(first..) {
            let state = states
                .get(index(u64::from(place)))
                .copied()
                .unwrap_or_default();
            if place >= reserved && index(u64::from(place)) >= states.len() {
                break;
            }
            if number >= sb.first_inode && state.kind == Kind::Unused {
                continue;
            }
            used = used.saturating_add(1);
            if let Kind::File(FileType::Directory) = state.kind {
                directories = directories.saturating_add(1);
            }
            if let Some(byte) = bitmap.get_mut(index(u64::from(place / 8))) {
                *byte |= 1 << (place % 8);
            }
        }
        (used > 0).then_some((used, directories, bitmap))
    }
}
