//! Where the blocks of a file lie: extent trees and block maps.

use std::collections::HashSet;
use std::ops::Range;

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::error::{ReadError, Structure};
use super::num::{index, join32, le32, len64, slice};
use super::{Filesystem, Inode};
use crate::FileType;
use crate::format::extent::{self, ENTRY_SIZE, MAGIC, MAX_DEPTH, MAX_LEN};
use crate::format::inode::{I_BLOCK_SIZE, flags};
use crate::format::{Extent as RawExtent, ExtentHeader, ExtentIndex};

/// A run of a file's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First block within the file.
    pub logical: u64,
    /// First block on the disk.
    pub physical: u64,
    /// Blocks.
    pub len: u64,
    /// Whether the blocks hold data. Unwritten ones (`fallocate`) read as zeros, whatever the disk has there.
    pub written: bool,
}

impl Extent {
    pub(crate) fn end(&self) -> u64 {
        self.logical.saturating_add(self.len)
    }
}

/// Pointers in an inode: 12 blocks, then one block each of one, two and three levels of pointers.
const DIRECT: u64 = 12;

/// Whose blocks are being mapped, which decides what they may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    File,
    /// The journal may (and must) lie in blocks that no file may own; it is mapped before those are known. So may the
    /// reserved inodes of growing and of bad blocks.
    Own,
}

impl<R: ReadAt> Filesystem<R> {
    /// The blocks of a file's first `limit` blocks, in order; runs that lie side by side are joined.
    pub(crate) fn extents_until(
        &self,
        inode: &Inode,
        limit: u64,
        owner: Owner,
    ) -> Result<Vec<Extent>, ReadError> {
        if inode.has(flags::INLINE_DATA) {
            return Ok(Vec::new());
        }
        let mut builder = Builder::new(self, inode, owner);
        builder.limit = limit;
        if let Some(map) = self.changed.map(inode.number) {
            for extent in map.range(..limit).map(|(_, extent)| *extent) {
                builder.push(extent, inode.offset)?;
            }
        } else {
            builder.build()?;
        }
        Ok(builder.finish()?.extents)
    }

    /// All that a file's map on the disk holds, past the file's end too.
    pub(crate) fn mapping(&self, inode: &Inode, owner: Owner) -> Result<Mapping, ReadError> {
        let mut builder = Builder::new(self, inode, owner);
        builder.past_end = true;
        builder.build()?;
        builder.finish()
    }
}

/// A file's blocks.
#[derive(Debug, Default)]
pub(crate) struct Mapping {
    pub(crate) extents: Vec<Extent>,
    /// Blocks of the map itself.
    pub(crate) nodes: Vec<u64>,
}

struct Builder<'a, R> {
    fs: &'a Filesystem<R>,
    inode: &'a Inode,
    owner: Owner,
    extents: Vec<Extent>,
    /// Blocks of the map itself.
    nodes: Vec<u64>,
    /// Blocks mapped so far.
    mapped: u64,
    /// Blocks from here on are of no interest.
    limit: u64,
    /// Whether what a block map has past the file's end counts.
    past_end: bool,
}

impl<'a, R: ReadAt> Builder<'a, R> {
    fn new(fs: &'a Filesystem<R>, inode: &'a Inode, owner: Owner) -> Self {
        Self {
            fs,
            inode,
            owner,
            extents: Vec::new(),
            nodes: Vec::new(),
            mapped: 0,
            limit: u64::MAX,
            past_end: false,
        }
    }

    fn build(&mut self) -> Result<(), ReadError> {
        if self.inode.has(flags::EXTENTS) {
            self.extent_root()
        } else {
            self.block_map()
        }
    }

    fn structure(&self) -> Structure {
        if self.inode.has(flags::EXTENTS) {
            Structure::ExtentTree(self.inode.number)
        } else {
            Structure::BlockMap(self.inode.number)
        }
    }

    fn corrupt(&self, offset: u64, detail: impl Into<String>) -> ReadError {
        ReadError::corrupt(self.structure(), offset, detail)
    }

    /// Whether a file may own these blocks.
    fn check_place(&self, start: u64, len: u64, at: u64) -> Result<(), ReadError> {
        let sb = &self.fs.superblock;
        let inside = start > 0
            && start >= sb.first_data_block
            && start.checked_add(len).is_some_and(|end| end <= sb.blocks);
        if !inside {
            return Err(self.corrupt(
                at,
                format!(
                    "blocks {start}+{len} are not in a filesystem of {} blocks",
                    sb.blocks
                ),
            ));
        }
        if self.owner == Owner::File && self.fs.system_zone().overlaps(start, len) {
            return Err(self.corrupt(
                at,
                format!("blocks {start}+{len} belong to the filesystem itself"),
            ));
        }
        Ok(())
    }

    fn push(&mut self, extent: Extent, at: u64) -> Result<(), ReadError> {
        self.check_place(extent.physical, extent.len, at)?;
        self.mapped = self.mapped.saturating_add(extent.len);
        let sb = &self.fs.superblock;
        // Without shared blocks a file can't own more than there are: this also bounds the map's memory.
        let most = if sb.shares_blocks() {
            sb.blocks.saturating_mul(4)
        } else {
            sb.blocks
        };
        if self.mapped > most {
            return Err(self.corrupt(
                at,
                format!("{} blocks of a filesystem of {}", self.mapped, sb.blocks),
            ));
        }
        if let Some(last) = self.extents.last_mut()
            && last.end() == extent.logical
            && last.physical.saturating_add(last.len) == extent.physical
            && last.written == extent.written
        {
            last.len = last.len.saturating_add(extent.len);
        } else {
            self.extents.push(extent);
        }
        Ok(())
    }

    /// No block may be used twice by one file, be it for data or for the map itself.
    fn finish(self) -> Result<Mapping, ReadError> {
        let single = self.extents.len() <= 1 && self.nodes.is_empty();
        if !single && !self.fs.superblock.shares_blocks() {
            let mut places: Vec<(u64, u64)> = self
                .extents
                .iter()
                .map(|e| (e.physical, e.len))
                .chain(self.nodes.iter().map(|&node| (node, 1)))
                .collect();
            places.sort_unstable();
            let clash = places
                .iter()
                .zip(places.iter().skip(1))
                .find(|((start, len), (next, _))| start.saturating_add(*len) > *next);
            if let Some((_, (block, _))) = clash {
                return Err(self.corrupt(self.inode.offset, format!("block {block} is used twice")));
            }
        }
        Ok(Mapping {
            extents: self.extents,
            nodes: self.nodes,
        })
    }

    fn extent_root(&mut self) -> Result<(), ReadError> {
        let inode = self.inode;
        let at = inode.offset.saturating_add(0x28);
        let header = self.header(&inode.block, at, None)?;
        let all = 0..u64::from(u32::MAX).saturating_add(1);
        self.extent_node(&inode.block, at, header, all)
    }

    /// Entries and depth of a node.
    fn header(&self, node: &[u8], at: u64, depth: Option<u16>) -> Result<(u16, u16), ReadError> {
        let Ok((header, _)) = ExtentHeader::ref_from_prefix(node) else {
            return Err(self.corrupt(at, "the node is not whole"));
        };
        let (entries, max) = (header.eh_entries.get(), header.eh_max.get());
        let capacity = if depth.is_none() {
            extent::node_capacity(I_BLOCK_SIZE)
        } else {
            extent::node_capacity(node.len())
        };
        let found = header.eh_depth.get();
        if header.eh_magic.get() != MAGIC {
            Err(self.corrupt(at, "the node has no magic number"))
        } else if found > MAX_DEPTH || depth.is_some_and(|depth| depth != found) {
            Err(self.corrupt(at, format!("a node of depth {found}")))
        } else if max == 0 || max > capacity || entries > max {
            Err(self.corrupt(
                at,
                format!("{entries} entries of {max}, room for {capacity}"),
            ))
        } else if entries == 0 && found > 0 {
            Err(self.corrupt(at, "an index node without entries"))
        } else {
            Ok((entries, found))
        }
    }

    /// Reads a node, whose header says how many entries and how deep, and whose blocks must lie in a range of the file. Recursion ends: each level's depth is one less.
    fn extent_node(
        &mut self,
        node: &[u8],
        at: u64,
        (entries, depth): (u16, u16),
        Range {
            start: from,
            end: to,
        }: Range<u64>,
    ) -> Result<(), ReadError> {
        let body = slice(
            node,
            ENTRY_SIZE,
            usize::from(entries).saturating_mul(ENTRY_SIZE),
        )
        .ok_or_else(|| self.corrupt(at, "the node is not whole"))?;
        let mut free = from;
        let mut entries = body
            .chunks_exact(ENTRY_SIZE)
            .zip((1_u64..).map(|n| at.saturating_add(n.saturating_mul(len64(ENTRY_SIZE)))))
            .peekable();
        while let Some((raw, at)) = entries.next() {
            if depth == 0 {
                let Ok(raw) = RawExtent::ref_from_bytes(raw) else {
                    continue;
                };
                let len = raw.ee_len.get();
                let (len, written) = match len.checked_sub(MAX_LEN) {
                    None | Some(0) => (len, true),
                    Some(unwritten) => (unwritten, false),
                };
                let logical = u64::from(raw.ee_block.get());
                let extent = Extent {
                    logical,
                    physical: join32(u32::from(raw.ee_start_hi.get()), raw.ee_start_lo.get()),
                    len: u64::from(len),
                    written,
                };
                if len == 0 || logical < free || extent.end() > to {
                    return Err(self.corrupt(
                        at,
                        format!("an extent of blocks {logical}+{len} where {free}..{to} are due"),
                    ));
                }
                free = extent.end();
                if extent.logical < self.limit {
                    self.push(extent, at)?;
                }
                continue;
            }
            let Ok(raw) = ExtentIndex::ref_from_bytes(raw) else {
                continue;
            };
            let logical = u64::from(raw.ei_block.get());
            let end = entries
                .peek()
                .map_or(to, |(next, _)| u64::from(le32(next, 0)));
            if logical < free || end <= logical || end > to {
                return Err(self.corrupt(
                    at,
                    format!("an index of blocks {logical}..{end} where {free}..{to} are due"),
                ));
            }
            free = end;
            if logical >= self.limit {
                continue;
            }
            let child = join32(u32::from(raw.ei_leaf_hi.get()), raw.ei_leaf_lo.get());
            self.child(child, at, depth.saturating_sub(1), logical..end)?;
        }
        Ok(())
    }

    fn child(
        &mut self,
        block: u64,
        at: u64,
        depth: u16,
        range: Range<u64>,
    ) -> Result<(), ReadError> {
        self.node_place(block, at)?;
        let place = block.saturating_mul(self.fs.superblock.block_size);
        let node = self.fs.block("read an extent tree node", block)?;
        let header = self.header(&node, place, Some(depth))?;
        if self.fs.superblock.checksums() {
            let max = ExtentHeader::ref_from_prefix(&node).map_or(0, |(h, _)| h.eh_max.get());
            let tail = extent::checksum_offset(max);
            let sum = self
                .fs
                .inode_seed(self.inode)
                .bytes(node.get(..tail).unwrap_or_default());
            if sum.value() != le32(&node, tail) {
                return Err(self.corrupt(place, "the checksum does not match"));
            }
        }
        // As the kernel has it: a node starts where its index says.
        let first = le32(&node, ENTRY_SIZE);
        if header.0 > 0 && u64::from(first) != range.start {
            return Err(self.corrupt(
                place,
                format!(
                    "the node starts at block {first}, its index says {}",
                    range.start
                ),
            ));
        }
        self.extent_node(&node, place, header, range)
    }

    /// Takes note of a block of the map itself.
    fn node_place(&mut self, block: u64, at: u64) -> Result<(), ReadError> {
        self.check_place(block, 1, at)?;
        self.nodes.push(block);
        Ok(())
    }

    fn block_map(&mut self) -> Result<(), ReadError> {
        let inode = self.inode;
        let size = self.fs.superblock.block_size;
        let per_block = size >> 2;
        // Blocks past the end are not read; a block map can't reach over 2³² blocks.
        let end = if self.past_end {
            u64::MAX
        } else {
            inode.size.div_ceil(size)
        };
        let blocks = end.min(u64::from(u32::MAX)).min(self.limit);
        let at = inode.offset.saturating_add(0x28);
        let mut seen = HashSet::new();
        for (number, place) in (0..DIRECT).zip((0..).step_by(4)) {
            let block = le32(&inode.block, place);
            if block != 0 && number < blocks {
                self.one(number, block, at)?;
            }
        }
        let mut first = DIRECT;
        let mut span = 1_u64;
        for (level, place) in (1_u8..=3).zip((48..).step_by(4)) {
            span = span.saturating_mul(per_block);
            let block = le32(&inode.block, place);
            if block != 0 && first < blocks {
                self.indirect(block, at, level, first, blocks, &mut seen)?;
            }
            first = first.saturating_add(span);
        }
        Ok(())
    }

    fn one(&mut self, number: u64, block: u32, at: u64) -> Result<(), ReadError> {
        let extent = Extent {
            logical: number,
            physical: u64::from(block),
            len: 1,
            written: true,
        };
        self.push(extent, at)
    }

    /// Reads a block of pointers that map the file from block `first` on. Recursion ends: each level is one less.
    fn indirect(
        &mut self,
        block: u32,
        at: u64,
        level: u8,
        first: u64,
        blocks: u64,
        seen: &mut HashSet<u32>,
    ) -> Result<(), ReadError> {
        if !seen.insert(block) {
            return Err(self.corrupt(at, format!("pointer block {block} is used twice")));
        }
        self.node_place(u64::from(block), at)?;
        let place = u64::from(block).saturating_mul(self.fs.superblock.block_size);
        let pointers = self
            .fs
            .block("read a block of pointers", u64::from(block))?;
        let per_block = self.fs.superblock.block_size >> 2;
        let mut span = 1_u64;
        for _ in 1..level {
            span = span.saturating_mul(per_block);
        }
        let mut number = first;
        for place_in in (0..pointers.len()).step_by(4) {
            if number >= blocks {
                break;
            }
            let pointer = le32(&pointers, place_in);
            if pointer != 0 {
                if level == 1 {
                    self.one(number, pointer, place)?;
                } else {
                    self.indirect(
                        pointer,
                        place,
                        level.saturating_sub(1),
                        number,
                        blocks,
                        seen,
                    )?;
                }
            }
            number = number.saturating_add(span);
        }
        Ok(())
    }
}

/// Where the content of one file lies; made once, then read from any number of threads.
#[derive(Debug, Clone)]
pub struct FileMap {
    pub(crate) size: u64,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// What the inode has; zeros follow up to the file's size.
    Inline(Vec<u8>),
    Extents(Vec<Extent>),
}

impl FileMap {
    /// The file's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The runs of blocks, in order. Empty for a file whose data lies in its inode.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        match &self.content {
            Content::Inline(_) => &[],
            Content::Extents(extents) => extents,
        }
    }
}

impl<R: ReadAt> Filesystem<R> {
    /// The runs of blocks of a file, directory or symbolic link, in order. Nothing for what has no blocks.
    ///
    /// # Errors
    /// *corrupt* if the map is damaged, leads out of the filesystem or into its own metadata, or uses a block twice.
    pub fn extents(&self, inode: &Inode) -> Result<Vec<Extent>, ReadError> {
        match inode.file_type {
            FileType::Regular | FileType::Directory => {
                self.extents_until(inode, u64::MAX, Owner::File)
            }
            FileType::Symlink if inode.blocks_512 > 0 && inode.size >= len64(I_BLOCK_SIZE) => {
                self.extents_until(inode, u64::MAX, Owner::File)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Maps the first `limit` blocks of whatever has blocks.
    pub(crate) fn map_blocks(&self, inode: &Inode, limit: u64) -> Result<FileMap, ReadError> {
        Ok(FileMap {
            size: inode.size,
            content: Content::Extents(self.extents_until(inode, limit, Owner::File)?),
        })
    }

    /// Maps the content of a regular file.
    ///
    /// # Errors
    /// As [`Filesystem::extents`]; *unsupported* if the content is encrypted; [`ReadError::NotAFile`].
    pub fn map_file(&self, inode: &Inode) -> Result<FileMap, ReadError> {
        if inode.file_type != FileType::Regular {
            return Err(ReadError::NotAFile {
                inode: inode.number,
            });
        }
        if inode.is_encrypted() {
            return Err(ReadError::unsupported(format!(
                "encrypt (inode {})",
                inode.number
            )));
        }
        if !inode.has(flags::INLINE_DATA) {
            return self.map_blocks(inode, u64::MAX);
        }
        // What the inode has no bytes for reads as zeros, however much that is: mke2fs makes such files of holes, the kernel
        // reads them and e2fsck has nothing to say.
        let (head, rest) = self.inline_data(inode)?;
        let mut data = [head, rest].concat();
        data.truncate(index(inode.size));
        Ok(FileMap {
            size: inode.size,
            content: Content::Inline(data),
        })
    }
}
