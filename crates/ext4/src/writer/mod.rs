//! The streaming writer: a whole filesystem in one pass.
//!
//! # Life
//! ```text
//! Writer::new ─► create / link / unlink / set_metadata / set_xattrs ─► finish
//!                  └─► begin_data ─► (write_data | skip_data)* ─► end_data ─┘
//! ```
//! Inodes come into being by [`create`](Writer::create) and have their final number from then on, ascending from 11. The data
//! of one regular file at a time is appended to the disk. [`finish`](Writer::finish) adds everything else; a writer dropped
//! before it leaves a disk of no use.
//!
//! # Layout
//! ```text
//! superblock │ group descriptors │ data, extent nodes, attribute blocks, in the order of the calls │
//!   directories by inode │ block bitmaps │ inode bitmaps │ inode table
//! ```
//! The descriptors' room is reserved by [`WriterOptions::max_size`] and is a hole where it isn't needed. `flex_bg` lets all
//! bitmaps and tables lie together at the end, so that files are contiguous and the number and size of groups is only
//! chosen when the number of inodes is known: many inodes get many small groups rather than a huge disk. Checksums start from a
//! constant (`metadata_csum_seed`), since the UUID is only known at the end. No journal, no backups of the superblock, no
//! `lost+found`: the filesystem is to be read.
//!
//! # Cost
//! One write of each block of data, from the caller's buffer if that is large, with blocks of zeros left out. In memory:
//! about 100 bytes a file besides its name, and nothing that grows with the data.
//!
//! # Determinism
//! The same calls give the same bytes. Blocks of data that is deleted become holes and are not used again.

// Sizes and counts here are the writer's own, bounded by the maximum size (below 2³² blocks) and by memory, not read from a disk;
// what callers give (lengths, `skip_data`) is checked where it comes in.
#![allow(clippy::arithmetic_side_effects)]

mod data;
mod directory;
mod encode;
mod error;
mod extents;
mod finish;
mod inline;
mod names;
mod node;
mod options;
mod sink;
mod store;
mod xattrs;

use lcow_blockio::WriteAt;

/// What `mkfs` builds from too.
pub(crate) mod internal {
    pub(crate) use super::directory::{empty_block, linear_block};
    pub(crate) use super::encode::{
        GROUP_MAX, Geometry, Group, INODES_PER_BLOCK, InodeFields, LOG_GROUPS_PER_FLEX,
        bitmap_checksum, halves, seed, set_bits, superblock,
    };
    pub(crate) use super::extents::{Run, leaf_node, root_of_leaf, root_of_runs};
    pub(crate) use super::node::DiskTime;
}

pub use error::{WriteError, WriteErrorKind};
pub use options::{Content, Identity, Metadata, Summary, WriterOptions};

use crate::format::inode::encode_device;
use crate::format::{BLOCK_SIZE, Checksum, LINK_MAX, NAME_MAX, SYMLINK_MAX};
use crate::{FileType, InodeNumber, Xattr};
use data::Open;
use names::{NONE, NameHash, Names};
use node::{Data, Kind, Node, Times, Trees};
use sink::Sink;
use store::{Arena, Segmented};
use xattrs::Pool;

/// `s_checksum_seed`: the start of all checksums. Any constant does.
const CHECKSUM_SEED: u32 = 0x6c63_6f77;
/// Most blocks there can be: block numbers in extents of this writer have 32 bits.
const BLOCKS_MAX: u64 = (1 << 32) - 1;
/// Longest target that lies in the inode.
const FAST_SYMLINK_MAX: usize = 59;

/// Builds a filesystem; see the [module](self).
#[derive(Debug)]
pub struct Writer<D: WriteAt> {
    sink: Sink<D>,
    names: Names,
    /// The root, then inodes 11, 12, …
    nodes: Segmented<Node>,
    times: Times,
    trees: Trees,
    targets: Arena,
    pool: Pool,
    /// Blocks that were used and are not any more: first and length, in no order.
    freed: Vec<(u32, u32)>,
    open: Option<Open>,
    /// Data of files and directories that lie in their inodes.
    inline: Arena,
    inline_data: bool,
    read_only: bool,
    max_size: u64,
    max_inodes: u32,
}

impl<D: WriteAt> Writer<D> {
    /// Begins a filesystem on an empty disk. It has an empty root directory, 0755 root, of 1970.
    pub fn new(disk: D, options: &WriterOptions) -> Result<Self, WriteError> {
        let max_size = options.max_size;
        if !(1 << 20..=1 << 44).contains(&max_size) {
            return Err(WriteError::MaxSize { max_size });
        }
        let max_blocks = (max_size / BLOCK_SIZE as u64).min(BLOCKS_MAX);
        let geometry = finish::Limits::new(max_blocks);
        let max_size = max_blocks * BLOCK_SIZE as u64;
        let mut times = Times::default();
        let mut nodes = Segmented::default();
        let metadata = Metadata {
            permissions: 0o755,
            ..Metadata::default()
        };
        let data = Data::Directory {
            newest: NONE,
            parent: InodeNumber::ROOT.0,
        };
        let mut root = Node::new(FileType::Directory, data, &metadata, &mut times);
        root.links = 2;
        nodes.push(root);
        Ok(Self {
            sink: Sink::new(disk, geometry.data_start, max_size),
            names: Names::new(),
            nodes,
            times,
            trees: Trees::default(),
            targets: Arena::default(),
            pool: Pool::default(),
            freed: Vec::new(),
            open: None,
            inline: Arena::default(),
            inline_data: options.inline_data,
            read_only: options.read_only,
            max_size,
            max_inodes: geometry.max_inodes,
        })
    }

    /// The inode a directory has under a name. `None` too if there is no such directory.
    #[must_use]
    pub fn lookup(&self, dir: InodeNumber, name: &[u8]) -> Option<InodeNumber> {
        let index = self.names.find(dir.0, name, self.names.hash(dir.0, name))?;
        Some(InodeNumber(self.names.entry(index).inode))
    }

    /// What an inode is.
    #[must_use]
    pub fn file_type(&self, inode: InodeNumber) -> Option<FileType> {
        self.node(inode).ok()?.file_type()
    }

    /// An inode's metadata, times as ext4 can hold them.
    #[must_use]
    pub fn metadata(&self, inode: InodeNumber) -> Option<Metadata> {
        Some(self.node(inode).ok()?.metadata(&self.times))
    }

    /// How many links an inode has; a directory 2 and one for each subdirectory.
    #[must_use]
    pub fn links(&self, inode: InodeNumber) -> Option<u32> {
        Some(self.node(inode).ok()?.links)
    }

    /// The size in bytes of a regular file whose data was ended, or of a symlink's target; 0 for others.
    #[must_use]
    pub fn size(&self, inode: InodeNumber) -> Option<u64> {
        Some(self.node(inode).ok()?.size)
    }

    /// The directory a directory lies in; the root's is itself. `None`: not a directory.
    #[must_use]
    pub fn parent(&self, dir: InodeNumber) -> Option<InodeNumber> {
        match self.node(dir).ok()?.data {
            Data::Directory { parent, .. } => Some(InodeNumber(parent)),
            _ => None,
        }
    }

    /// The names in a directory, the newest first. Nothing for what is not a directory.
    pub fn children(&self, dir: InodeNumber) -> impl Iterator<Item = (&[u8], InodeNumber)> {
        let newest = match self.node(dir).map(|node| node.data) {
            Ok(Data::Directory { newest, .. }) => newest,
            _ => NONE,
        };
        self.names
            .newest_first(newest)
            .map(|(_, entry)| (self.names.name(entry), InodeNumber(entry.inode)))
    }

    /// An inode's extended attributes, in the order ext4 keeps them.
    pub fn xattrs(&self, inode: InodeNumber) -> Result<Vec<Xattr>, WriteError> {
        match self.node(inode)?.xattrs.checked_sub(1) {
            None => Ok(Vec::new()),
            Some(set) => self.read_set(set),
        }
    }

    /// Makes a file of any type under a name that is not in use.
    pub fn create(
        &mut self,
        dir: InodeNumber,
        name: &[u8],
        content: Content<'_>,
        metadata: &Metadata,
    ) -> Result<InodeNumber, WriteError> {
        self.refuse_open()?;
        let hash = self.check_new_name(dir, name)?;
        let mut size = 0;
        let mut blocks = 0;
        let mut links = 1;
        let device = |device: crate::Device| {
            let words = encode_device(device).ok_or(WriteError::DeviceOutOfRange {
                major: device.major,
                minor: device.minor,
            })?;
            Ok::<_, WriteError>(Data::Device(words))
        };
        let (file_type, data) = match content {
            Content::Regular => (FileType::Regular, Data::None),
            Content::Directory => {
                links = 2;
                let (newest, parent) = (NONE, dir.0);
                (FileType::Directory, Data::Directory { newest, parent })
            }
            Content::Symlink(target) => {
                let len = target.len();
                if len == 0 || len > SYMLINK_MAX || target.contains(&0) {
                    return Err(WriteError::InvalidTarget { len });
                }
                size = len as u64;
                let data = if len <= FAST_SYMLINK_MAX {
                    Data::Target(self.targets.push(target))
                } else {
                    blocks = 1;
                    let block = self.sink.block();
                    self.sink.append(target)?;
                    self.sink.pad()?;
                    Data::Run { block, len: 1 }
                };
                (FileType::Symlink, data)
            }
            Content::CharDevice(number) => (FileType::CharDevice, device(number)?),
            Content::BlockDevice(number) => (FileType::BlockDevice, device(number)?),
            Content::Fifo => (FileType::Fifo, Data::None),
            Content::Socket => (FileType::Socket, Data::None),
        };
        let mut node = Node::new(file_type, data, metadata, &mut self.times);
        (node.size, node.blocks, node.links) = (size, blocks, links);
        let inode = self.add_node(node)?;
        self.add_name(dir, name, hash, inode);
        if file_type == FileType::Directory {
            self.node_mut(dir)?.links += 1;
        }
        Ok(inode)
    }

    /// Gives a file that is not a directory one more name.
    pub fn link(
        &mut self,
        dir: InodeNumber,
        name: &[u8],
        target: InodeNumber,
    ) -> Result<(), WriteError> {
        let node = self.node(target)?;
        if node.file_type() == Some(FileType::Directory) {
            return Err(WriteError::LinkToDirectory { inode: target });
        }
        if node.links >= LINK_MAX {
            return Err(WriteError::TooManyLinks { inode: target });
        }
        let hash = self.check_new_name(dir, name)?;
        self.node_mut(target)?.links += 1;
        self.add_name(dir, name, hash, target);
        Ok(())
    }

    /// Removes a name, and the file with its last name; a directory goes with everything below it. Returns the inodes that are
    /// no more, in ascending order.
    pub fn unlink(
        &mut self,
        dir: InodeNumber,
        name: &[u8],
    ) -> Result<Vec<InodeNumber>, WriteError> {
        self.refuse_open()?;
        let index = self
            .names
            .find(dir.0, name, self.names.hash(dir.0, name))
            .ok_or_else(|| WriteError::NotFound {
                dir,
                name: name.to_vec(),
            })?;
        let mut gone = Vec::new();
        let mut freed = Vec::new();
        let mut doomed = vec![index];
        while let Some(index) = doomed.pop() {
            let inode = InodeNumber(self.names.entry(index).inode);
            self.names.remove(index);
            let node = self.node_mut(inode)?;
            if let Data::Directory { newest, parent } = node.data {
                node.links = 0;
                doomed.extend(self.names.newest_first(newest).map(|(index, _)| index));
                // A parent that went before has no links left to count.
                if let Ok(parent) = self.node_mut(InodeNumber(parent)) {
                    parent.links -= 1;
                }
            } else {
                node.links -= 1;
            }
            if self.node(inode)?.links == 0 {
                self.drop_node(inode, &mut freed)?;
                gone.push(inode);
            }
        }
        self.free(freed)?;
        gone.sort_unstable();
        Ok(gone)
    }

    /// Replaces an inode's metadata.
    pub fn set_metadata(
        &mut self,
        inode: InodeNumber,
        metadata: &Metadata,
    ) -> Result<(), WriteError> {
        let slot = self.slot(inode)?;
        self.nodes[slot].set_metadata(metadata, &mut self.times);
        Ok(())
    }

    /// Replaces all of an inode's extended attributes, in any order.
    ///
    /// They are kept in the inode, or else in a block, which files with the same attributes share; values that fit neither get an
    /// inode of their own, so that the number of the next file is not the next number.
    pub fn set_xattrs(&mut self, inode: InodeNumber, xattrs: &[Xattr]) -> Result<(), WriteError> {
        self.refuse_open()?;
        let old = self.node(inode)?.xattrs;
        let new = self.intern(inode, xattrs)?;
        self.node_mut(inode)?.xattrs = new;
        if let Some(set) = old.checked_sub(1) {
            let mut freed = Vec::new();
            self.release_set(set, &mut freed)?;
            self.free(freed)?;
        }
        Ok(())
    }

    fn refuse_open(&self) -> Result<(), WriteError> {
        match &self.open {
            Some(open) => Err(WriteError::DataOpen { inode: open.inode }),
            None => Ok(()),
        }
    }

    /// Checks that `name` can be added to `dir`.
    fn check_new_name(&self, dir: InodeNumber, name: &[u8]) -> Result<NameHash, WriteError> {
        if !matches!(self.node(dir)?.data, Data::Directory { .. }) {
            return Err(WriteError::NotADirectory { inode: dir });
        }
        if name.len() > NAME_MAX {
            return Err(WriteError::NameTooLong { len: name.len() });
        }
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(WriteError::InvalidName {
                name: name.to_vec(),
            });
        }
        let hash = self.names.hash(dir.0, name);
        if self.names.find(dir.0, name, hash).is_some() {
            return Err(WriteError::Exists {
                dir,
                name: name.to_vec(),
            });
        }
        Ok(hash)
    }

    fn add_name(&mut self, dir: InodeNumber, name: &[u8], hash: NameHash, inode: InodeNumber) {
        let Some(slot) = slot_of(dir) else { return };
        if let Data::Directory { newest, .. } = &mut self.nodes[slot].data {
            *newest = self.names.insert(dir.0, name, hash, inode.0, *newest);
        }
    }

    fn add_node(&mut self, node: Node) -> Result<InodeNumber, WriteError> {
        let inode = InodeNumber(self.next_inode());
        if inode.0 > self.max_inodes {
            return Err(WriteError::TooManyInodes);
        }
        self.nodes.push(node);
        Ok(inode)
    }

    /// The number of the next inode.
    fn next_inode(&self) -> u32 {
        self.nodes.len() + (crate::format::superblock::FIRST_INODE - 1)
    }

    /// Where a live inode is kept.
    fn slot(&self, inode: InodeNumber) -> Result<u32, WriteError> {
        slot_of(inode)
            .filter(|slot| {
                self.nodes
                    .get(*slot)
                    .is_some_and(|node| node.mode != 0 && node.kind != Kind::Value)
            })
            .ok_or(WriteError::NoSuchInode { inode })
    }

    fn node(&self, inode: InodeNumber) -> Result<&Node, WriteError> {
        Ok(&self.nodes[self.slot(inode)?])
    }

    fn node_mut(&mut self, inode: InodeNumber) -> Result<&mut Node, WriteError> {
        let slot = self.slot(inode)?;
        Ok(&mut self.nodes[slot])
    }

    /// Ends an inode's life and lists its blocks.
    fn drop_node(
        &mut self,
        inode: InodeNumber,
        freed: &mut Vec<(u32, u32)>,
    ) -> Result<(), WriteError> {
        let slot = self.slot(inode)?;
        let node = self.nodes[slot];
        self.each_run(node.data, &mut |run| freed.push((run.block, run.len)))?;
        if let Some(set) = node.xattrs.checked_sub(1) {
            self.release_set(set, freed)?;
        }
        let node = &mut self.nodes[slot];
        (node.mode, node.data) = (0, Data::None);
        Ok(())
    }

    /// Makes blocks holes, in as few pieces as they form.
    fn free(&mut self, mut freed: Vec<(u32, u32)>) -> Result<(), WriteError> {
        freed.sort_unstable();
        let mut pieces = Vec::<(u32, u32)>::new();
        for (first, len) in freed {
            match pieces.last_mut() {
                Some((start, so_far)) if *start + *so_far == first => *so_far += len,
                _ => pieces.push((first, len)),
            }
        }
        for (first, len) in pieces {
            self.sink.discard(first, len)?;
            self.freed.push((first, len));
        }
        Ok(())
    }
}

/// The place in the list of nodes of an inode that is not reserved.
fn slot_of(inode: InodeNumber) -> Option<u32> {
    match inode {
        InodeNumber::ROOT => Some(0),
        InodeNumber(number) => number.checked_sub(10).filter(|slot| *slot > 0),
    }
}

/// The inode at a place in the list of nodes.
fn inode_of(slot: u32) -> InodeNumber {
    InodeNumber(if slot == 0 { 2 } else { slot + 10 })
}

/// The start of the checksums of what belongs to an inode.
fn inode_seed(inode: InodeNumber) -> Checksum {
    Checksum::from_seed(CHECKSUM_SEED).inode(inode.0, 0)
}
