//! Where the tree's blocks lie.

use super::{BLOCK, Block, VerityError};

/// Hashes in a hash block.
pub(super) const FAN_OUT: u64 = 128;
const _: () = assert!(FAN_OUT * 32 == BLOCK);

/// One level of the tree. Level 0 holds the hashes of the data blocks, each level above those of the blocks below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    /// Its first block, counted in blocks from the disk's start.
    pub(super) first: u64,
    /// Its length in blocks.
    pub(super) blocks: u64,
}

/// The places of data, superblock and levels on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) data_blocks: u64,
    /// From level 0 to the top, which has one block. None if there is one data block: its hash is the root.
    pub(super) levels: Vec<Level>,
    /// Where the tree ends, in blocks.
    pub(super) end: u64,
}

impl Layout {
    /// The layout behind `data_blocks` blocks of data: superblock, top level, …, level 0.
    pub(super) fn new(data_blocks: u64) -> Option<Self> {
        let mut counts = Vec::new();
        let mut below = data_blocks;
        while below > 1 {
            below = below.div_ceil(FAN_OUT);
            counts.push(below);
        }
        let mut end = data_blocks.checked_add(1)?;
        let mut levels = Vec::with_capacity(counts.len());
        for blocks in counts.into_iter().rev() {
            levels.push(Level { first: end, blocks });
            end = end.checked_add(blocks)?;
        }
        // Byte offsets must be numbers too.
        end.checked_mul(BLOCK)?;
        levels.reverse();
        (data_blocks > 0).then_some(Self {
            data_blocks,
            levels,
            end,
        })
    }

    pub(super) fn for_size(data_size: u64) -> Result<Self, VerityError> {
        data_size
            .is_multiple_of(BLOCK)
            .then(|| Self::new(data_size / BLOCK))
            .flatten()
            .ok_or(VerityError::Size { size: data_size })
    }

    /// Where the superblock lies, in bytes.
    pub(super) fn superblock(&self) -> u64 {
        bytes(self.data_blocks)
    }

    /// The level whose hashes are those of `level`'s blocks, or of the data's for `None`.
    pub(super) fn above(&self, level: Option<usize>) -> Option<(usize, Level)> {
        let above = level.map_or(0, |level| level.saturating_add(1));
        self.levels.get(above).map(|&found| (above, found))
    }

    /// The first block and the number of blocks of a level, or of the data for `None`.
    pub(super) fn blocks(&self, level: Option<usize>) -> Level {
        let data = Level {
            first: 0,
            blocks: self.data_blocks,
        };
        level
            .and_then(|level| self.levels.get(level).copied())
            .unwrap_or(data)
    }

    /// What block `index` of a level, or of the data for `None`, is called, and its byte offset.
    pub(super) fn block(&self, level: Option<usize>, index: u64) -> (Block, u64) {
        let block = match level {
            None => Block::Data { index },
            Some(level) => Block::Hash { level, index },
        };
        let place = self.blocks(level).first.saturating_add(index);
        (block, bytes(place))
    }

    /// The top: the block whose hash is the root.
    pub(super) fn top(&self) -> Option<usize> {
        self.levels.len().checked_sub(1)
    }
}

/// A number of blocks in bytes. Never saturates within a layout, whose end was checked.
pub(super) fn bytes(blocks: u64) -> u64 {
    blocks.saturating_mul(BLOCK)
}

/// Where the tree behind `data_size` bytes of data ends: how long the disk is with it, in bytes.
///
/// `None` if such data can't have a tree: the size is 0, no multiple of 4,096, or near 2⁶⁴.
#[must_use]
pub fn end(data_size: u64) -> Option<u64> {
    Some(bytes(Layout::for_size(data_size).ok()?.end))
}

/// The size of the data on a disk that is `total` bytes long with its tree, so that nothing on the disk has to be believed
/// to find the tree. The inverse of [`end`]; `None` if no data ends that way.
#[must_use]
pub fn data_size(total: u64) -> Option<u64> {
    let wanted = total.is_multiple_of(BLOCK).then_some(total / BLOCK)?;
    let end = |blocks| Layout::new(blocks).map_or(u64::MAX, |layout| layout.end);
    // A disk with more data ends later, so there is at most one answer, and halving finds it.
    let (mut low, mut high) = (1_u64, wanted);
    while low < high {
        let middle = low.midpoint(high);
        if end(middle) < wanted {
            low = middle.saturating_add(1);
        } else {
            high = middle;
        }
    }
    (end(low) == wanted).then(|| bytes(low))
}
