//! Directory blocks: one linear block for few names, an htree for more.

use lcow_blockio::WriteAt;
use zerocopy::IntoBytes;

use super::extents::{ExtentBuilder, Root, Run};
use super::node::{Data, Kind};
use super::{WriteError, Writer, inode_of, inode_seed};
use crate::FileType;
use crate::format::dir::{
    DX_ENTRY_SIZE, DX_NODE_ENTRIES_OFFSET, DX_ROOT_ENTRIES_OFFSET, DX_ROOT_INFO_OFFSET,
    DX_TAIL_SIZE, DirEntryHeader, DirTail, DxCountLimit, DxEntry, DxRootInfo, DxTail, HEADER_SIZE,
    TAIL_FILE_TYPE, TAIL_SIZE, entry_size,
};
use crate::format::hash::{Algorithm, HashVersion, hash};
use crate::format::superblock::HASH_HALF_MD4;
use crate::format::{BLOCK_SIZE, Checksum};

/// Bytes for entries in a block.
const LEAF_SPACE: usize = BLOCK_SIZE - TAIL_SIZE;
/// Entries of an htree's root and of its nodes.
const ROOT_LIMIT: usize = (BLOCK_SIZE - DX_ROOT_ENTRIES_OFFSET - DX_TAIL_SIZE) / DX_ENTRY_SIZE;
const NODE_LIMIT: usize = (BLOCK_SIZE - DX_NODE_ENTRIES_OFFSET - DX_TAIL_SIZE) / DX_ENTRY_SIZE;
/// Bytes of `.` or `..`.
const DOT_SIZE: usize = 12;
/// From this size on a directory needs `large_dir`.
const LARGE_SIZE: u64 = 1 << 31;

/// A block of entries being filled.
struct Leaf {
    bytes: [u8; BLOCK_SIZE],
    used: usize,
    last: usize,
}

impl Leaf {
    fn new() -> Self {
        Self {
            bytes: [0; BLOCK_SIZE],
            used: 0,
            last: 0,
        }
    }

    fn push(&mut self, inode: u32, name: &[u8], file_type: u8) {
        let size = entry_size(name.len());
        let at = self.used;
        put_entry(&mut self.bytes[at..at + size], inode, name, file_type, size);
        (self.last, self.used) = (at, at + size);
    }

    /// Stretches the last entry to the tail and adds the checksum.
    fn seal(mut self, seed: Checksum) -> [u8; BLOCK_SIZE] {
        let stretched = u16::try_from(LEAF_SPACE - self.last).unwrap_or(u16::MAX);
        self.bytes[self.last + 4..self.last + 6].copy_from_slice(&stretched.to_le_bytes());
        let (covered, tail) = self.bytes.split_at_mut(LEAF_SPACE);
        let sealed = DirTail {
            det_reserved_zero1: 0.into(),
            det_rec_len: 12.into(),
            det_reserved_zero2: 0,
            det_reserved_ft: TAIL_FILE_TYPE,
            det_checksum: seed.bytes(covered).value().into(),
        };
        tail.copy_from_slice(sealed.as_bytes());
        self.bytes
    }
}

pub(super) fn put_entry(place: &mut [u8], inode: u32, name: &[u8], file_type: u8, rec_len: usize) {
    let header = DirEntryHeader {
        inode: inode.into(),
        rec_len: u16::try_from(rec_len).unwrap_or(u16::MAX).into(),
        name_len: u8::try_from(name.len()).unwrap_or(u8::MAX),
        file_type,
    };
    let (head, rest) = place.split_at_mut(HEADER_SIZE);
    head.copy_from_slice(header.as_bytes());
    rest[..name.len()].copy_from_slice(name);
}

/// A single block with `.`, `..` and nothing or few names; also the blocks of `lost+found`.
pub(crate) fn linear_block<'a>(
    inode: u32,
    parent: u32,
    names: impl Iterator<Item = (u32, &'a [u8], u8)>,
    seed: Checksum,
) -> [u8; BLOCK_SIZE] {
    let mut leaf = Leaf::new();
    let directory = FileType::Directory.dirent_code();
    leaf.push(inode, b".", directory);
    leaf.push(parent, b"..", directory);
    for (inode, name, file_type) in names {
        leaf.push(inode, name, file_type);
    }
    leaf.seal(seed)
}

/// A directory block that holds no entry.
pub(crate) fn empty_block(seed: Checksum) -> [u8; BLOCK_SIZE] {
    Leaf::new().seal(seed)
}

/// Writes an index block's entries, from `at` on, and its checksum.
fn seal_index(
    bytes: &mut [u8; BLOCK_SIZE],
    at: usize,
    limit: usize,
    children: &[(u32, u32)],
    seed: Checksum,
) {
    let slots = bytes[at..].chunks_exact_mut(DX_ENTRY_SIZE);
    for (slot, (hash, block)) in slots.zip(children) {
        let entry = DxEntry {
            hash: (*hash).into(),
            block: (*block).into(),
        };
        slot.copy_from_slice(entry.as_bytes());
    }
    let count = DxCountLimit {
        limit: u16::try_from(limit).unwrap_or(u16::MAX).into(),
        count: u16::try_from(children.len()).unwrap_or(u16::MAX).into(),
    };
    bytes[at..at + 4].copy_from_slice(count.as_bytes());
    let covered = at + children.len() * DX_ENTRY_SIZE;
    let sum = seed.bytes(&bytes[..covered]).bytes(&[0; DX_TAIL_SIZE]);
    let tail = DxTail {
        dt_reserved: 0.into(),
        dt_checksum: sum.value().into(),
    };
    let end = at + limit * DX_ENTRY_SIZE;
    bytes[end..end + DX_TAIL_SIZE].copy_from_slice(tail.as_bytes());
}

/// A name on its way into an htree: hashes, and its entry.
type Key = (u32, u32, u32);

impl<D: WriteAt> Writer<D> {
    /// Writes the blocks of the directory at `slot`. Returns whether it needs `large_dir`.
    pub(super) fn build_directory(
        &mut self,
        slot: u32,
        hash_seed: &[u8; 16],
    ) -> Result<bool, WriteError> {
        let Data::Directory { newest, parent } = self.nodes[slot].data else {
            return Ok(false);
        };
        let inode = inode_of(slot).0;
        let seed = inode_seed(inode_of(slot));
        let mut entries: Vec<u32> = self.names.newest_first(newest).map(|(i, _)| i).collect();
        entries.reverse();
        if self.inline_data && self.build_inline_directory(slot, parent, &entries) {
            return Ok(false);
        }
        let name_of = |index: u32| self.names.name(self.names.entry(index));
        let space: usize = entries.iter().map(|i| entry_size(name_of(*i).len())).sum();
        if 2 * DOT_SIZE + space <= LEAF_SPACE {
            let names = entries.iter().map(|i| self.dirent(*i));
            let block = linear_block(inode, parent, names, seed);
            let block = self.sink.append_block(&block)?;
            let node = &mut self.nodes[slot];
            (node.size, node.blocks) = (BLOCK_SIZE as u64, 1);
            node.data = Data::Run { block, len: 1 };
            return Ok(false);
        }
        let version = HashVersion {
            algorithm: Algorithm::HalfMd4,
            signed: true,
        };
        let mut keys: Vec<Key> = entries
            .into_iter()
            .map(|index| {
                let (major, minor) = hash(version, hash_seed, name_of(index));
                (major, minor, index)
            })
            .collect();
        keys.sort_unstable();
        self.build_htree(slot, parent, &keys)
    }

    pub(super) fn dirent(&self, index: u32) -> (u32, &[u8], u8) {
        let entry = self.names.entry(index);
        let inode = crate::InodeNumber(entry.inode);
        let code = self.file_type(inode).map_or(0, FileType::dirent_code);
        (entry.inode, self.names.name(entry), code)
    }

    /// Writes root, nodes and leaves of a directory whose names are given in the order of their hashes.
    fn build_htree(&mut self, slot: u32, parent: u32, keys: &[Key]) -> Result<bool, WriteError> {
        let inode = inode_of(slot).0;
        let seed = inode_seed(inode_of(slot));
        // Where each leaf begins among the keys.
        let mut starts = Vec::new();
        let mut used = LEAF_SPACE;
        for (i, (_, _, index)) in keys.iter().enumerate() {
            let size = entry_size(self.names.name(self.names.entry(*index)).len());
            if used + size > LEAF_SPACE {
                starts.push(i);
                used = 0;
            }
            used += size;
        }
        let hashes = starts.iter().map(|start| {
            let hash = keys[*start].0;
            let before = start.checked_sub(1).map(|i| keys[i].0);
            // Bit 0: the names of this hash begin in the leaf before.
            hash | u32::from(before == Some(hash))
        });
        // The tree's levels from the leaves up; each child as its lowest hash and its block once that is known.
        let mut levels = vec![hashes.map(|hash| (hash, 0)).collect::<Vec<(u32, u32)>>()];
        while levels[levels.len() - 1].len() > ROOT_LIMIT {
            let below = &levels[levels.len() - 1];
            let above = below.chunks(NODE_LIMIT).map(|node| (node[0].0, 0));
            levels.push(above.collect());
        }
        // The root is block 0; the levels follow from the top down.
        let mut next = 1u32;
        for level in levels.iter_mut().rev() {
            for child in level {
                child.1 = next;
                next += 1;
            }
        }
        let first_block = self.sink.block();
        let top = levels.len() - 1;
        let root = root_block(inode, parent, top, &levels[top], seed);
        self.sink.append_block(&root)?;
        for level in levels.iter().rev().skip(1) {
            for children in level.chunks(NODE_LIMIT) {
                self.sink.append_block(&node_block(children, seed))?;
            }
        }
        for (i, start) in starts.iter().enumerate() {
            let end = starts.get(i + 1).copied().unwrap_or(keys.len());
            let mut leaf = Leaf::new();
            for (_, _, index) in &keys[*start..end] {
                let (inode, name, code) = self.dirent(*index);
                leaf.push(inode, name, code);
            }
            self.sink.append_block(&leaf.seal(seed))?;
        }
        let mut extents = ExtentBuilder::default();
        let run = Run {
            logical: 0,
            block: first_block,
            len: next,
        };
        extents.push(run, seed, &mut self.sink)?;
        let (root, blocks) = extents.finish(seed, &mut self.sink)?;
        let data = match root {
            Root::Empty => Data::None,
            Root::Single { block, len } => Data::Run { block, len },
            Root::Tree(root) => Data::Tree(self.trees.push(root)),
        };
        let node = &mut self.nodes[slot];
        node.size = u64::from(next) * BLOCK_SIZE as u64;
        (node.blocks, node.data, node.kind) = (blocks, data, Kind::Indexed);
        Ok(top > 1 || node.size >= LARGE_SIZE)
    }
}

fn root_block(
    inode: u32,
    parent: u32,
    indirect_levels: usize,
    children: &[(u32, u32)],
    seed: Checksum,
) -> [u8; BLOCK_SIZE] {
    let mut bytes = [0; BLOCK_SIZE];
    let directory = FileType::Directory.dirent_code();
    let (dot, dots) = bytes.split_at_mut(DOT_SIZE);
    put_entry(dot, inode, b".", directory, DOT_SIZE);
    put_entry(dots, parent, b"..", directory, BLOCK_SIZE - DOT_SIZE);
    let info = DxRootInfo {
        reserved_zero: 0.into(),
        hash_version: HASH_HALF_MD4,
        info_length: 8,
        indirect_levels: u8::try_from(indirect_levels).unwrap_or(u8::MAX),
        unused_flags: 0,
    };
    bytes[DX_ROOT_INFO_OFFSET..DX_ROOT_ENTRIES_OFFSET].copy_from_slice(info.as_bytes());
    seal_index(
        &mut bytes,
        DX_ROOT_ENTRIES_OFFSET,
        ROOT_LIMIT,
        children,
        seed,
    );
    bytes
}

fn node_block(children: &[(u32, u32)], seed: Checksum) -> [u8; BLOCK_SIZE] {
    let mut bytes = [0; BLOCK_SIZE];
    put_entry(&mut bytes, 0, b"", 0, BLOCK_SIZE);
    seal_index(
        &mut bytes,
        DX_NODE_ENTRIES_OFFSET,
        NODE_LIMIT,
        children,
        seed,
    );
    bytes
}
