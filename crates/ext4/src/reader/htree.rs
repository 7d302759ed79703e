//! Finding a name through a directory's hash tree (Linux `fs/ext4/namei.c`).

use std::ops::Range;

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::dir::{Dots, dir_corrupt};
use super::error::{ReadError, Structure};
use super::map::Extent;
use super::num::{le32, len64, slice};
use super::source::Meta;
use super::{Filesystem, Inode};
use crate::InodeNumber;
use crate::format::dir::{
    DX_ENTRY_SIZE, DX_NODE_ENTRIES_OFFSET, DX_ROOT_ENTRIES_OFFSET, DX_ROOT_INFO_OFFSET,
    DX_TAIL_SIZE, DxCountLimit, DxRootInfo, DxTail,
};
use crate::format::hash::{HashVersion, hash};
use crate::format::superblock::incompat;

/// A node on the way down.
pub(crate) struct Node {
    bytes: Meta,
    /// Where its entries begin.
    base: usize,
    pub(crate) count: usize,
    /// The entry taken.
    at: usize,
    /// The hashes that the node above has for this one, both ends included.
    range: Range<u32>,
}

impl Node {
    /// The hash from which on names are under entry `number`; the first entry has none and covers all below the second.
    fn hash(&self, number: usize) -> u32 {
        if number == 0 {
            0
        } else {
            le32(&self.bytes, self.entry(number))
        }
    }

    /// The hashes of what is under entry `number`, both ends included: names of one hash may lie on both sides of a border.
    pub(crate) fn range(&self, number: usize) -> Range<u32> {
        let start = self.hash(number).max(self.range.start);
        let next = number.saturating_add(1);
        let end = if next < self.count {
            self.hash(next)
        } else {
            self.range.end
        };
        start..end
    }

    pub(crate) fn block(&self, number: usize) -> u64 {
        // The upper four bits are reserved (Linux `dx_get_block`).
        u64::from(le32(&self.bytes, self.entry(number).saturating_add(4)) & 0x0FFF_FFFF)
    }

    fn entry(&self, number: usize) -> usize {
        self.base
            .saturating_add(number.saturating_mul(DX_ENTRY_SIZE))
    }

    /// Takes the last entry whose names may have this hash.
    fn descend(&mut self, hash: u32) {
        let (mut low, mut high) = (1, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.hash(middle) > hash {
                high = middle;
            } else {
                low = middle.saturating_add(1);
            }
        }
        self.at = low.saturating_sub(1);
    }
}

fn tree_corrupt(dir: &Inode, at: u64, detail: impl Into<String>) -> ReadError {
    ReadError::corrupt(Structure::HashTree(dir.number), at, detail)
}

impl<R: ReadAt> Filesystem<R> {
    pub(crate) fn lookup_hashed(
        &self,
        dir: &Inode,
        name: &[u8],
    ) -> Result<Option<InodeNumber>, ReadError> {
        let extents = self.dir_extents(dir)?;
        let (root, at) = self.dir_block(dir, &extents, 0)?;
        let Some(Ok((info, _))) = root
            .get(DX_ROOT_INFO_OFFSET..)
            .map(DxRootInfo::ref_from_prefix)
        else {
            return Err(tree_corrupt(dir, at, "the root is not whole"));
        };
        let deepest = if self.superblock.has_incompat(incompat::LARGEDIR) {
            2
        } else {
            1
        };
        if info.reserved_zero.get() != 0
            || info.info_length != 8
            || info.unused_flags & 1 != 0
            || info.indirect_levels > deepest
        {
            return Err(tree_corrupt(
                dir,
                at,
                format!(
                    "a root of {} bytes over {} levels",
                    info.info_length, info.indirect_levels
                ),
            ));
        }
        let levels = info.indirect_levels;
        let version = info.hash_version;
        let Some(version) = HashVersion::from_disk(version, self.superblock.hash_unsigned) else {
            return Err(ReadError::unsupported(format!(
                "directory hash version {version} (inode {})",
                dir.number
            )));
        };
        let (wanted, _) = hash(version, &self.superblock.hash_seed, name);

        let all = 0..u32::MAX;
        let root = self.node(dir, root, at, DX_ROOT_ENTRIES_OFFSET, all)?;
        let mut path = vec![root];
        // No leaf is needed twice: more visits than blocks mean that the tree is not one.
        let mut left = dir.size.div_ceil(self.superblock.block_size);
        let mut new_hash = true;
        loop {
            loop {
                let depth = path.len();
                let Some(last) = path.last_mut() else {
                    return Ok(None);
                };
                if new_hash {
                    last.descend(wanted);
                }
                let block = last.block(last.at);
                if depth > usize::from(levels) {
                    break;
                }
                let range = last.range(last.at);
                let (bytes, at) = self.dir_block(dir, &extents, block)?;
                path.push(self.node(dir, bytes, at, DX_NODE_ENTRIES_OFFSET, range)?);
            }
            let Some(last) = path.last() else {
                return Ok(None);
            };
            let (leaf, range) = (last.block(last.at), last.range(last.at));
            left = left
                .checked_sub(1)
                .ok_or_else(|| tree_corrupt(dir, at, "blocks are in the tree more than once"))?;
            let leaf = (leaf, range, version);
            if let Some(found) = self.search_leaf(dir, &extents, leaf, name)? {
                return Ok(Some(found));
            }
            // Names of one hash may go on in the next leaf: then its lowest hash is that one, with bit 0 set.
            loop {
                let Some(last) = path.last_mut() else {
                    return Ok(None);
                };
                last.at = last.at.saturating_add(1);
                if last.at < last.count {
                    if last.hash(last.at) & !1 != wanted {
                        return Ok(None);
                    }
                    break;
                }
                path.pop();
            }
            new_hash = false;
        }
    }

    fn search_leaf(
        &self,
        dir: &Inode,
        extents: &[Extent],
        (block, range, version): (u64, Range<u32>, HashVersion),
        name: &[u8],
    ) -> Result<Option<InodeNumber>, ReadError> {
        let (bytes, at) = self.dir_block(dir, extents, block)?;
        if block == 0 {
            return Err(tree_corrupt(dir, at, "the root is its own leaf"));
        }
        let mut found = None;
        self.parse(dir, &bytes, at, Dots::None, &mut |entry| {
            if entry.name == name {
                self.check_entry(dir, entry)?;
                found = Some(entry.inode);
            }
            Ok(found.is_none())
        })?;
        if found.is_none() {
            // "No such name" is only as good as the tree: the names that are here must belong here.
            let seed = &self.superblock.hash_seed;
            self.parse(dir, &bytes, at, Dots::None, &mut |entry| {
                let (hash, _) = hash(version, seed, entry.name);
                if hash < range.start & !1 || hash > range.end {
                    return Err(tree_corrupt(dir, at, "a name is in the wrong leaf"));
                }
                Ok(true)
            })?;
        }
        Ok(found)
    }

    /// A block of a directory, its checksum checked, and where it lies in bytes.
    pub(crate) fn dir_block(
        &self,
        dir: &Inode,
        extents: &[Extent],
        logical: u64,
    ) -> Result<(Meta, u64), ReadError> {
        let number = extents.partition_point(|e| e.end() <= logical);
        let physical = extents
            .get(number)
            .and_then(|e| Some(e.physical.saturating_add(logical.checked_sub(e.logical)?)));
        let Some(physical) = physical else {
            return Err(tree_corrupt(
                dir,
                dir.offset,
                format!("the tree leads to block {logical}, past the directory's end"),
            ));
        };
        let at = physical.saturating_mul(self.superblock.block_size);
        let bytes = self.block("read a directory", physical)?;
        self.check_block(dir, &bytes, at, logical)?;
        Ok((bytes, at))
    }

    /// Makes a node of a block, whose hashes must ascend within the range that the node above has for it.
    pub(crate) fn node(
        &self,
        dir: &Inode,
        bytes: Meta,
        at: u64,
        base: usize,
        range: Range<u32>,
    ) -> Result<Node, ReadError> {
        let (count, _) = self.dx_counts(dir, &bytes, at, base)?;
        let node = Node {
            bytes,
            base,
            count,
            at: 0,
            range,
        };
        let mut last = node.range.start;
        for number in 1..count {
            let hash = node.hash(number);
            if hash < last || hash > node.range.end {
                return Err(tree_corrupt(
                    dir,
                    at,
                    "the hashes of a node are out of order",
                ));
            }
            last = hash;
        }
        Ok(node)
    }

    /// Entries in use and room for entries of a node whose entries begin at `base`.
    fn dx_counts(
        &self,
        dir: &Inode,
        block: &[u8],
        at: u64,
        base: usize,
    ) -> Result<(usize, usize), ReadError> {
        let Some(Ok((counts, _))) = block.get(base..).map(DxCountLimit::ref_from_prefix) else {
            return Err(tree_corrupt(dir, at, "a node is not whole"));
        };
        let (count, limit) = (
            usize::from(counts.count.get()),
            usize::from(counts.limit.get()),
        );
        let tail = if self.superblock.checksums() {
            DX_TAIL_SIZE
        } else {
            0
        };
        let room = block.len().saturating_sub(base).saturating_sub(tail) / DX_ENTRY_SIZE;
        if limit != room || count == 0 || count > limit {
            return Err(tree_corrupt(
                dir,
                at,
                format!("{count} of {limit} entries in a node with room for {room}"),
            ));
        }
        Ok((count, limit))
    }

    /// Checks the checksum of a root or node of a hash tree.
    pub(crate) fn check_dx_block(
        &self,
        dir: &Inode,
        block: &[u8],
        at: u64,
        root: bool,
    ) -> Result<(), ReadError> {
        let base = if root {
            DX_ROOT_ENTRIES_OFFSET
        } else {
            DX_NODE_ENTRIES_OFFSET
        };
        let (count, limit) = self.dx_counts(dir, block, at, base)?;
        let used = base.saturating_add(count.saturating_mul(DX_ENTRY_SIZE));
        let tail_at = base.saturating_add(limit.saturating_mul(DX_ENTRY_SIZE));
        let (Some(used), Some(tail)) = (
            block.get(..used),
            slice(block, tail_at, DX_TAIL_SIZE).and_then(|tail| DxTail::ref_from_bytes(tail).ok()),
        ) else {
            return Err(dir_corrupt(
                dir,
                at.saturating_add(len64(tail_at)),
                "a node has no checksum",
            ));
        };
        let sum = self
            .inode_seed(dir)
            .bytes(used)
            .u32(tail.dt_reserved.get())
            .u32(0);
        if sum.value() != tail.dt_checksum.get() {
            return Err(tree_corrupt(dir, at, "the checksum does not match"));
        }
        Ok(())
    }
}
