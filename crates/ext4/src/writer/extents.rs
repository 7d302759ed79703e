//! Building extent trees while the data streams by, in bounded memory, and walking them again.

use lcow_blockio::WriteAt;
use zerocopy::{FromBytes, IntoBytes};

use super::error::WriteError;
use super::sink::Sink;
use crate::format::extent::{
    ENTRY_SIZE, Extent, ExtentHeader, ExtentIndex, MAGIC, MAX_LEN, ROOT_CAPACITY, checksum_offset,
    node_capacity,
};
use crate::format::inode::I_BLOCK_SIZE;
use crate::format::{BLOCK_SIZE, Checksum};

/// Entries of a node outside the inode.
const CAPACITY: u16 = node_capacity(BLOCK_SIZE);

/// A run of a file's blocks on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) logical: u32,
    pub(crate) block: u32,
    pub(crate) len: u32,
}

/// The extents of the file that is being written. A node is written when the next entry doesn't fit, so at most one per
/// level is in memory: the leaf, and what it hangs from.
#[derive(Debug, Default)]
pub(super) struct ExtentBuilder {
    leaf: Vec<Run>,
    /// First logical block and place of the children of each index level, from the leaves' parents up.
    levels: Vec<Vec<(u32, u32)>>,
    /// Blocks of data and of nodes so far.
    blocks: u32,
}

/// A finished tree.
#[derive(Debug)]
pub(super) enum Root {
    Empty,
    /// One run from the file's first block.
    Single {
        block: u32,
        len: u16,
    },
    Tree([u8; I_BLOCK_SIZE]),
}

impl ExtentBuilder {
    /// Adds blocks that follow all those before in the file. `seed` is the inode's.
    pub(super) fn push<D: WriteAt>(
        &mut self,
        run: Run,
        seed: Checksum,
        sink: &mut Sink<D>,
    ) -> Result<(), WriteError> {
        let mut run = run;
        self.blocks += run.len;
        if let Some(last) = self.leaf.last_mut()
            && last.logical + last.len == run.logical
            && last.block + last.len == run.block
        {
            let more = run.len.min(u32::from(MAX_LEN) - last.len);
            last.len += more;
            run = run.after(more);
        }
        while run.len > 0 {
            if self.leaf.len() == usize::from(CAPACITY) {
                self.write_leaf(seed, sink)?;
            }
            let now = run.len.min(u32::from(MAX_LEN));
            self.leaf.push(Run { len: now, ..run });
            run = run.after(now);
        }
        Ok(())
    }

    /// Writes what is left and gives the root, and the blocks of data and tree.
    pub(super) fn finish<D: WriteAt>(
        mut self,
        seed: Checksum,
        sink: &mut Sink<D>,
    ) -> Result<(Root, u32), WriteError> {
        if self.levels.is_empty() && self.leaf.len() <= ROOT_CAPACITY {
            let root = match *self.leaf {
                [] => Root::Empty,
                [
                    Run {
                        logical: 0,
                        block,
                        len,
                    },
                ] => Root::Single {
                    block,
                    len: u16::try_from(len).unwrap_or(MAX_LEN),
                },
                _ => Root::Tree(root(0, self.leaf.iter().map(extent_bytes))),
            };
            return Ok((root, self.blocks));
        }
        self.write_leaf(seed, sink)?;
        let mut level = 0;
        while level + 1 < self.levels.len() || self.levels[level].len() > ROOT_CAPACITY {
            self.write_index(level, seed, sink)?;
            level += 1;
        }
        let depth = u16::try_from(level + 1).unwrap_or(u16::MAX);
        let root = root(depth, self.levels[level].iter().map(index_bytes));
        Ok((Root::Tree(root), self.blocks))
    }

    fn write_leaf<D: WriteAt>(
        &mut self,
        seed: Checksum,
        sink: &mut Sink<D>,
    ) -> Result<(), WriteError> {
        let first = self.leaf.first().map_or(0, |run| run.logical);
        let node = node(0, self.leaf.iter().map(extent_bytes), seed);
        self.leaf.clear();
        self.write_node(0, first, &node, seed, sink)
    }

    fn write_index<D: WriteAt>(
        &mut self,
        level: usize,
        seed: Checksum,
        sink: &mut Sink<D>,
    ) -> Result<(), WriteError> {
        let children = std::mem::take(&mut self.levels[level]);
        let first = children.first().map_or(0, |child| child.0);
        let depth = u16::try_from(level + 1).unwrap_or(u16::MAX);
        let node = node(depth, children.iter().map(index_bytes), seed);
        self.write_node(level + 1, first, &node, seed, sink)
    }

    /// Appends a node and hangs it into index level `level`.
    fn write_node<D: WriteAt>(
        &mut self,
        level: usize,
        first: u32,
        node: &[u8; BLOCK_SIZE],
        seed: Checksum,
        sink: &mut Sink<D>,
    ) -> Result<(), WriteError> {
        let block = sink.append_block(node)?;
        self.blocks += 1;
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        if self.levels[level].len() == usize::from(CAPACITY) {
            self.write_index(level, seed, sink)?;
        }
        self.levels[level].push((first, block));
        Ok(())
    }
}

impl Run {
    fn after(self, blocks: u32) -> Self {
        Self {
            logical: self.logical + blocks,
            block: self.block + blocks,
            len: self.len - blocks,
        }
    }
}

type EntryBytes = [u8; ENTRY_SIZE];

fn extent_bytes(run: &Run) -> EntryBytes {
    zerocopy::transmute!(Extent {
        ee_block: run.logical.into(),
        ee_len: u16::try_from(run.len).unwrap_or(MAX_LEN).into(),
        ee_start_hi: 0.into(),
        ee_start_lo: run.block.into(),
    })
}

fn index_bytes((logical, block): &(u32, u32)) -> EntryBytes {
    zerocopy::transmute!(ExtentIndex {
        ei_block: (*logical).into(),
        ei_leaf_lo: (*block).into(),
        ei_leaf_hi: 0.into(),
        ei_unused: 0.into(),
    })
}

fn fill(
    bytes: &mut [u8],
    max: u16,
    depth: u16,
    entries: impl ExactSizeIterator<Item = EntryBytes>,
) {
    let header = ExtentHeader {
        eh_magic: MAGIC.into(),
        eh_entries: u16::try_from(entries.len()).unwrap_or(max).into(),
        eh_max: max.into(),
        eh_depth: depth.into(),
        eh_generation: 0.into(),
    };
    let (first, rest) = bytes.split_at_mut(ENTRY_SIZE);
    first.copy_from_slice(header.as_bytes());
    for (place, entry) in rest.chunks_exact_mut(ENTRY_SIZE).zip(entries) {
        place.copy_from_slice(&entry);
    }
}

fn root(depth: u16, entries: impl ExactSizeIterator<Item = EntryBytes>) -> [u8; I_BLOCK_SIZE] {
    let mut bytes = [0; I_BLOCK_SIZE];
    fill(&mut bytes, 4, depth, entries);
    bytes
}

fn node(
    depth: u16,
    entries: impl ExactSizeIterator<Item = EntryBytes>,
    seed: Checksum,
) -> [u8; BLOCK_SIZE] {
    let mut bytes = [0; BLOCK_SIZE];
    fill(&mut bytes, CAPACITY, depth, entries);
    let (covered, tail) = bytes.split_at_mut(checksum_offset(CAPACITY));
    tail.copy_from_slice(&seed.bytes(covered).value().to_le_bytes());
    bytes
}

/// The root of up to four runs.
pub(crate) fn root_of_runs(runs: &[Run]) -> [u8; I_BLOCK_SIZE] {
    root(0, runs.iter().map(extent_bytes))
}

/// The root above a single leaf, of a file that starts with its first block.
pub(crate) fn root_of_leaf(leaf: u32) -> [u8; I_BLOCK_SIZE] {
    root(1, [(0, leaf)].iter().map(index_bytes))
}

/// A leaf of up to 340 runs.
pub(crate) fn leaf_node(runs: &[Run], seed: Checksum) -> [u8; BLOCK_SIZE] {
    node(0, runs.iter().map(extent_bytes), seed)
}

/// Gives each run of a tree that this module wrote, in order, and then each block of its nodes, as runs of one at logical
/// block `u32::MAX`.
pub(super) fn walk<D: WriteAt>(
    root: &[u8],
    sink: &Sink<D>,
    each: &mut dyn FnMut(Run),
) -> Result<(), WriteError> {
    let Ok((header, entries)) = ExtentHeader::read_from_prefix(root) else {
        return Ok(());
    };
    let used = entries
        .chunks_exact(ENTRY_SIZE)
        .take(header.eh_entries.get().into());
    for entry in used {
        if header.eh_depth.get() == 0 {
            if let Ok(extent) = Extent::ref_from_bytes(entry) {
                each(Run {
                    logical: extent.ee_block.get(),
                    block: extent.ee_start_lo.get(),
                    len: extent.ee_len.get().into(),
                });
            }
        } else if let Ok(index) = ExtentIndex::ref_from_bytes(entry) {
            let block = index.ei_leaf_lo.get();
            walk(&sink.read_block(block)?, sink, each)?;
            each(Run {
                logical: u32::MAX,
                block,
                len: 1,
            });
        }
    }
    Ok(())
}
