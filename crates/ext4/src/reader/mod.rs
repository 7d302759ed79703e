//! Reading any ext2, ext3 or ext4 filesystem, be it this crate's own, a kernel's, or one made to do harm.
//!
//! ```text
//! open ─► superblock ─► journal (if it must be replayed: laid over the disk in memory) ─► superblock, descriptors
//! path ─► inode ─► read_dir / lookup ─► inode ─► xattrs, read_link, map_file ─► read
//! ```
//!
//! # Trust
//! Nothing on the disk is believed: every number is checked before use, checksums are verified where the filesystem has
//! them, and a structure that contradicts itself is [`ReadError::Corrupt`]. No input makes the reader panic, run
//! in circles, or take memory out of proportion: maps hold no block twice, so they and directories are bounded by the
//! disk's size. A file never yields bytes of the filesystem's own metadata, of its journal, or of unwritten blocks.
//! What is not understood is [`ReadError::Unsupported`] and names the feature; encrypted files are so one by one.
//!
//! A journal that was not played back is, in memory: the disk itself is never written. Inodes that were deleted while open
//! (orphans) have no names and are not seen.
//!
//! # I/O
//! Blocking and positioned, through `&self`: a [`Filesystem`] is shared by any number of threads. Opening reads the
//! superblock and the group descriptors. Metadata goes through a cache of a few MiB; file data is read straight into the
//! caller's buffer, one read for each run of blocks.
//!
//! # Example
//! ```
//! # use lcow_blockio::MemDisk;
//! # use lcow_ext4::writer::{Content, Identity, Metadata, Writer, WriterOptions};
//! # use lcow_ext4::InodeNumber;
//! # let disk = MemDisk::new();
//! # let mut writer = Writer::new(&disk, &WriterOptions::default())?;
//! # let file = writer.create(InodeNumber::ROOT, b"hello", Content::Regular, &Metadata::default())?;
//! # writer.begin_data(file)?;
//! # writer.write_data(b"hello, world\n")?;
//! # writer.end_data()?;
//! # writer.finish(&Identity { uuid: [1; 16], hash_seed: [2; 16] })?;
//! use lcow_ext4::reader::Filesystem;
//!
//! let fs = Filesystem::open(&disk)?;
//! let file = fs.resolve(b"/hello")?;
//! let mut text = vec![0; 13];
//! fs.read_at(&file, 0, &mut text)?;
//! assert_eq!(text, b"hello, world\n");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod data;
mod dir;
mod error;
mod fast_commit;
mod group;
mod htree;
mod info;
mod inode;
mod journal;
mod map;
pub(crate) mod num;
pub(crate) mod source;
mod superblock;
mod walk;
mod xattr;

use std::fmt;
use std::sync::OnceLock;

use lcow_blockio::ReadAt;

pub use data::FileData;
pub use dir::DirEntry;
pub use error::{ReadError, ReadErrorKind, Structure};
pub use info::{Info, Journal};
pub use inode::Inode;
pub use map::{Extent, FileMap};
pub use walk::{Census, Walk, Walked};

/// What the verifier builds from too.
pub(crate) mod internal {
    pub(crate) use super::dir::{Dots, RawEntry};
    pub(crate) use super::error::Objections;
    pub(crate) use super::group::{Group, locate, table_blocks};
    pub(crate) use super::map::{Mapping, Owner};
    pub(crate) use super::num;
    pub(crate) use super::superblock::Superblock;
    pub(crate) use super::xattr::{Entry, Value, entries, signed_entry_hash};
}

use crate::InodeNumber;
use crate::format::Checksum;
use error::Objections;
use group::{Group, SystemZone};
use source::{Meta, Source};
use superblock::Superblock;

/// An ext2, ext3 or ext4 filesystem, open for reading. See the [module's page](self).
pub struct Filesystem<R> {
    pub(crate) source: Source<R>,
    pub(crate) superblock: Superblock,
    pub(crate) groups: Vec<Group>,
    /// Blocks of the journal, as (first, length).
    pub(crate) journal: Vec<(u64, u64)>,
    system_zone: OnceLock<SystemZone>,
    /// What the journal holds to be replayed on top of its blocks, and then what came of it.
    fast_commits: Vec<fast_commit::Record>,
    changed: fast_commit::Changed,
    info: Info,
}

impl<R: ReadAt> Filesystem<R> {
    /// Opens the filesystem that a disk begins with.
    ///
    /// A journal left unclean is replayed in memory.
    ///
    /// # Errors
    /// *corrupt* (also if there is no ext filesystem, or the disk is too short for it), *unsupported* (naming the feature; among
    /// them a journal on another device that would have to be replayed), and what the disk says.
    pub fn open(disk: R) -> Result<Self, ReadError> {
        Self::open_with(disk, &mut Objections::fatal())
    }

    /// As [`Filesystem::open`], with what is corrupt but leaves something to look at handed to `objections`.
    pub(crate) fn open_with(disk: R, objections: &mut Objections) -> Result<Self, ReadError> {
        let mut source = Source::new(disk)?;
        let superblock = Superblock::read(&source, objections)?;
        source.configure(superblock.block_size);
        let mut fs = Self {
            source,
            info: Info::new(&superblock),
            superblock,
            groups: Vec::new(),
            journal: Vec::new(),
            system_zone: OnceLock::new(),
            fast_commits: Vec::new(),
            changed: fast_commit::Changed::default(),
        };
        match fs.replay_journal() {
            Ok(journal) => fs.info.journal = journal,
            Err(error) => objections.object(error)?,
        }
        if matches!(fs.info.journal, Journal::Replayed { .. }) {
            // The replayed blocks may hold a newer superblock.
            let superblock = Superblock::read(&fs.source, objections)?;
            if superblock.block_size != fs.superblock.block_size {
                return Err(ReadError::corrupt(
                    Structure::Journal,
                    crate::format::superblock::SUPERBLOCK_OFFSET,
                    "the journal changes the block size",
                ));
            }
            let journal = fs.info.journal;
            fs.info = Info::new(&superblock);
            fs.info.journal = journal;
            fs.superblock = superblock;
        }
        let groups = fs.superblock.groups;
        fs.groups = group::read_groups(&fs.source, &fs.superblock, groups, Some(objections))?;
        let records = std::mem::take(&mut fs.fast_commits);
        // They change files, not blocks: what can be verified is what the last whole transaction left.
        if objections.are_fatal() {
            fs.replay_fast_commits(&records)?;
        }
        Ok(fs)
    }

    /// What the superblock says about the whole filesystem.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &R {
        self.source.disk()
    }

    /// Reads bytes of the image as the journal leaves them: what would be on the disk after a replay.
    ///
    /// # Errors
    /// What the disk says; among that, that it ends before `offset + buf.len()`.
    pub fn read_image(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.source.read("read the image", offset, buf)
    }

    /// The root directory.
    ///
    /// # Errors
    /// *corrupt* if it is damaged or not a directory.
    pub fn root(&self) -> Result<Inode, ReadError> {
        let root = self.inode(InodeNumber::ROOT)?;
        if root.is_dir() {
            Ok(root)
        } else {
            Err(root.corrupt("the root is not a directory"))
        }
    }

    /// Finds the inode of a path, one name after the other from the root. Symbolic links are not followed: one in the middle is
    /// [`ReadError::NotADirectory`]. Empty names and `.` stand for nothing, `..` for the directory before, and in the root
    /// for the root.
    ///
    /// # Errors
    /// [`ReadError::NotFound`], and as [`Filesystem::lookup`].
    pub fn resolve(&self, path: &[u8]) -> Result<Inode, ReadError> {
        let mut above = Vec::new();
        let mut here = self.root()?;
        let mut end = 0_usize;
        for name in path.split(|&byte| byte == b'/') {
            // One more than the name for the slash before it, which the first name lacks.
            end = end.saturating_add(name.len()).saturating_add(1);
            match name {
                b"" | b"." => {}
                b".." => {
                    if !here.is_dir() {
                        return Err(ReadError::NotADirectory { inode: here.number });
                    }
                    if let Some(parent) = above.pop() {
                        here = parent;
                    }
                }
                name => {
                    let Some(number) = self.lookup(&here, name)? else {
                        let path = path.get(..end.saturating_sub(1)).unwrap_or(path);
                        return Err(ReadError::NotFound {
                            path: path.to_vec(),
                        });
                    };
                    let next = self.inode(number)?;
                    above.push(std::mem::replace(&mut here, next));
                }
            }
        }
        Ok(here)
    }

    /// A block of metadata. The number has been checked to be inside the filesystem.
    pub(crate) fn block(&self, operation: &'static str, number: u64) -> Result<Meta, ReadError> {
        let size = self.superblock.block_size;
        self.source
            .meta(operation, number.saturating_mul(size), size)
    }

    /// The start of all checksums of what belongs to an inode.
    pub(crate) fn inode_seed(&self, inode: &Inode) -> Checksum {
        self.superblock.seed.inode(inode.number.0, inode.generation)
    }

    pub(crate) fn system_zone(&self) -> &SystemZone {
        self.system_zone.get_or_init(|| {
            SystemZone::new(&self.superblock, &self.groups, self.journal.iter().copied())
        })
    }
}

impl<R> fmt::Debug for Filesystem<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filesystem")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}
