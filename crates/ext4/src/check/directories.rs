//! Directories: every block, every name.

use std::hash::{BuildHasher, RandomState};

use lcow_blockio::ReadAt;

use super::content::short;
use super::{Checker, Kind, Problem, Step};
use crate::format::dir::HEADER_SIZE;
use crate::format::inode::flags;
use crate::format::superblock::incompat;
use crate::reader::internal::num::{index, le32, len64, slice};
use crate::reader::internal::{Dots, Owner};
use crate::reader::{Inode, Structure};
use crate::{FileType, InodeNumber};

/// Bytes of the shortest encrypted name.
const CIPHER_BLOCK: usize = 16;

/// A name met.
struct Found {
    inode: u32,
    file_type: u8,
    name: Vec<u8>,
}

/// The names of a directory so far, to find those that come twice.
#[derive(Default)]
struct Names {
    hasher: RandomState,
    bytes: Vec<u8>,
    /// Hash, start and length of each.
    list: Vec<(u64, usize, usize)>,
}

impl Names {
    fn push(&mut self, name: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.list
            .push((self.hasher.hash_one(name), start, name.len()));
    }

    /// A name that comes more than once.
    fn twice(mut self) -> Option<Vec<u8>> {
        self.list.sort_unstable();
        let pairs = self.list.iter().zip(self.list.iter().skip(1));
        for ((hash, start, len), (other, at, size)) in pairs {
            let name = slice(&self.bytes, *start, *len);
            if hash == other && name == slice(&self.bytes, *at, *size) {
                return name.map(<[u8]>::to_vec);
            }
        }
        None
    }
}

impl<R: ReadAt> Checker<'_, R> {
    /// Reads all directories, counting the names of all inodes.
    pub(super) fn check_directories(&mut self) -> Step {
        self.report.directories = len64(self.directories.len());
        for at in 0..self.directories.len() {
            let Some(dir) = self.directories.get(at).copied() else {
                break;
            };
            let inode = self.fs.inode(InodeNumber(dir.number));
            if let Some(inode) = self.note(inode)? {
                self.check_directory(&inode)?;
            }
        }
        Ok(())
    }

    fn check_directory(&mut self, inode: &Inode) -> Step {
        let mut names = Names::default();
        if inode.has(flags::INLINE_DATA) {
            self.check_inline_directory(inode, &mut names)?;
        } else {
            self.check_blocks(inode, &mut names)?;
        }
        if let Some(name) = names.twice() {
            let detail = format!("{:?} comes twice", String::from_utf8_lossy(&name));
            self.found(
                Structure::Directory(inode.number),
                inode.offset,
                Problem::Malformed,
                detail,
            )?;
        }
        Ok(())
    }

    fn check_inline_directory(&mut self, dir: &Inode, names: &mut Names) -> Step {
        let data = self.fs.inline_data(dir);
        let Some((head, rest)) = self.note(data)? else {
            self.names_known = false;
            return Ok(());
        };
        self.set_above(dir, le32(head, 0));
        // `.` and `..` have no entries here, but count.
        self.count_name(dir.number.0);
        let head = head.get(4..).unwrap_or_default();
        let place = dir.offset.saturating_add(0x2C);
        for (part, at) in [(head, place), (rest, dir.body_offset)] {
            self.check_part(dir, part, at, Dots::None, names)?;
        }
        Ok(())
    }

    fn check_blocks(&mut self, dir: &Inode, names: &mut Names) -> Step {
        let block_size = self.sb().block_size;
        let mapping = self.fs.mapping(dir, Owner::File);
        let Some(mapping) = self.note(mapping)? else {
            self.names_known = false;
            return Ok(());
        };
        let blocks = crate::reader::internal::num::div(dir.size, block_size);
        let mut next = 0;
        let mut buf = vec![0; index(block_size)];
        for extent in &mapping.extents {
            if extent.logical > next || !extent.written {
                let detail = format!("its block {next} is a hole");
                self.found(
                    Structure::Directory(dir.number),
                    dir.offset,
                    Problem::Malformed,
                    detail,
                )?;
                self.names_known = false;
            }
            next = extent.end();
            for number in 0..extent.len {
                let logical = extent.logical.saturating_add(number);
                if !extent.written || logical >= blocks {
                    continue;
                }
                let at = extent
                    .physical
                    .saturating_add(number)
                    .saturating_mul(block_size);
                self.spend(block_size)?;
                self.fs.source.read("read a directory", at, &mut buf)?;
                let sum = self.fs.check_block(dir, &buf, at, logical);
                // What a damaged block says is not taken for names, but it can be looked at.
                if self.note(sum)?.is_none() {
                    self.names_known = false;
                }
                let dots = if logical == 0 {
                    self.check_dots(dir, &buf, at)?;
                    Dots::Expected
                } else {
                    Dots::None
                };
                self.check_part(dir, &buf, at, dots, names)?;
            }
        }
        if dir.has(flags::INDEX) {
            self.check_tree_of(dir, &mapping.extents)?;
        }
        Ok(())
    }

    /// The entries of `.` and `..`: their place, length and ends.
    fn check_dots(&mut self, dir: &Inode, block: &[u8], at: u64) -> Step {
        let dot_is_right = short(block, 4) == 12 && block.get(9) == Some(&0);
        let above_ends = block.get(22) == Some(&0);
        if !dot_is_right || !above_ends {
            let detail = "`.` or `..` has the wrong length, or no zero behind it";
            self.found(
                Structure::Directory(dir.number),
                at,
                Problem::Malformed,
                detail,
            )?;
        }
        Ok(())
    }

    /// One block, or one piece of inline data.
    fn check_part(
        &mut self,
        dir: &Inode,
        part: &[u8],
        at: u64,
        dots: Dots,
        names: &mut Names,
    ) -> Step {
        let mut list = Vec::new();
        let parsed = self.fs.parse(dir, part, at, dots, &mut |entry| {
            list.push(Found {
                inode: entry.inode.0,
                file_type: entry.file_type,
                name: entry.name.to_vec(),
            });
            Ok(true)
        });
        if self.note(parsed)?.is_none() {
            self.names_known = false;
        }
        for (number, found) in list.into_iter().enumerate() {
            if dots == Dots::Expected && number < 2 {
                self.check_type(dir, at, &found)?;
                self.count_name(found.inode);
                if number == 1 {
                    self.set_above(dir, found.inode);
                }
            } else {
                self.check_name(dir, at, &found)?;
                names.push(&found.name);
            }
        }
        Ok(())
    }

    fn set_above(&mut self, dir: &Inode, above: u32) {
        if dir.has(flags::INLINE_DATA) {
            self.count_name(above);
        }
        if let Some(dir) = self.directory_mut(dir.number.0) {
            dir.above = above;
        }
    }

    /// A name that is neither `.` nor `..`.
    fn check_name(&mut self, dir: &Inode, at: u64, found: &Found) -> Step {
        let structure = Structure::Directory(dir.number);
        let entry = crate::reader::internal::RawEntry {
            name: &found.name,
            inode: InodeNumber(found.inode),
            file_type: found.file_type,
        };
        if dir.is_encrypted() {
            // Any bytes make a name there, but no fewer than a block of the cipher.
            if found.name.len() < CIPHER_BLOCK {
                let detail = format!("an encrypted name of {} bytes", found.name.len());
                self.found(structure, at, Problem::Malformed, detail)?;
            }
        } else {
            let right = self.fs.check_entry(dir, &entry);
            if self.note(right)?.is_none() {
                return Ok(());
            }
        }
        let state = self.state(found.inode);
        let name = String::from_utf8_lossy(&found.name).into_owned();
        let detail = match state.kind {
            Kind::Unused | Kind::Orphan => format!("{name:?} is inode {}, not in use", found.inode),
            Kind::Value => format!("{name:?} is inode {}, an attribute's value", found.inode),
            Kind::Hidden => format!("{name:?} is reserved inode {}", found.inode),
            Kind::Broken => {
                self.count_name(found.inode);
                return Ok(());
            }
            Kind::File(_) => {
                self.count_name(found.inode);
                self.check_type(dir, at, found)?;
                let readable = matches!(
                    state.kind,
                    Kind::File(FileType::Regular | FileType::Directory | FileType::Symlink)
                );
                if dir.is_encrypted() && readable && !state.encrypted {
                    let detail = format!("{name:?} is not encrypted, but its directory is");
                    self.found(structure, at, Problem::Malformed, detail)?;
                }
                return self.check_parent(dir, at, found);
            }
        };
        self.found(structure, at, Problem::Reference, detail)
    }

    /// The type in an entry is that of the inode, where entries have types.
    fn check_type(&mut self, dir: &Inode, at: u64, found: &Found) -> Step {
        if !self.sb().has_incompat(incompat::FILETYPE) {
            return Ok(());
        }
        let code = found.file_type;
        if let Kind::File(file_type) = self.state(found.inode).kind
            && file_type.dirent_code() != code
        {
            let detail = format!(
                "{:?} has type {code}, and inode {} has {}",
                String::from_utf8_lossy(&found.name),
                found.inode,
                file_type.dirent_code()
            );
            self.found(
                Structure::Directory(dir.number),
                at,
                Problem::Malformed,
                detail,
            )?;
        }
        Ok(())
    }

    /// A directory has one name.
    fn check_parent(&mut self, dir: &Inode, at: u64, found: &Found) -> Step {
        let root = found.inode == InodeNumber::ROOT.0;
        let Some(child) = self.directory_mut(found.inode) else {
            return Ok(());
        };
        if child.parent == 0 && !root {
            child.parent = dir.number.0;
            return Ok(());
        }
        let detail = format!(
            "{:?} is a second name of directory {}",
            String::from_utf8_lossy(&found.name),
            found.inode
        );
        self.found(
            Structure::Directory(dir.number),
            at,
            Problem::Reference,
            detail,
        )
    }
}

const _: () = assert!(HEADER_SIZE == 8, "the offsets in `check_dots` count on it");
