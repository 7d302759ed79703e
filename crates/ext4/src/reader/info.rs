//! What is known about a whole filesystem.

use super::superblock::Superblock;

/// What the superblock says, after the journal was replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The filesystem's UUID.
    pub uuid: [u8; 16],
    /// The label; usually text, at most 16 bytes.
    pub label: Vec<u8>,
    /// Where it was last mounted, at most 64 bytes.
    pub last_mounted: Vec<u8>,
    /// Bytes.
    pub block_size: u64,
    /// Bytes; more than a block with `bigalloc`.
    pub cluster_size: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Inodes in all, reserved ones included.
    pub inodes: u32,
    /// Free inodes.
    pub free_inodes: u32,
    /// Bytes.
    pub inode_size: u64,
    /// The first inode that is not reserved.
    pub first_inode: u32,
    /// Block groups.
    pub groups: u32,
    /// Blocks of a group.
    pub blocks_per_group: u64,
    /// Inodes of a group.
    pub inodes_per_group: u32,
    /// The names of all features, as `dumpe2fs` spells and orders them.
    pub features: Vec<String>,
    /// Whether metadata carries CRC-32C checksums (all of which are verified).
    pub checksums: bool,
    /// Whether it was unmounted cleanly, or never mounted.
    pub clean: bool,
    /// The journal, and what opening did with it.
    pub journal: Journal,
}

/// The journal of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Journal {
    /// There is none.
    None,
    /// It is on another device, and had nothing to replay.
    External,
    /// It had nothing to replay.
    Clean,
    /// It was replayed in memory.
    Replayed {
        /// Transactions found whole.
        transactions: u32,
        /// Blocks that the journal has newer than the disk.
        blocks: u64,
        /// Fast commits found whole behind the last transaction.
        fast_commits: u32,
    },
}

impl Info {
    pub(crate) fn new(superblock: &Superblock) -> Self {
        Self {
            uuid: superblock.uuid,
            label: superblock.label.clone(),
            last_mounted: superblock.last_mounted.clone(),
            block_size: superblock.block_size,
            cluster_size: superblock.cluster_size,
            blocks: superblock.blocks,
            free_blocks: superblock.free_blocks,
            inodes: superblock.inodes,
            free_inodes: superblock.free_inodes,
            inode_size: superblock.inode_size,
            first_inode: superblock.first_inode,
            groups: superblock.groups,
            blocks_per_group: superblock.blocks_per_group,
            inodes_per_group: superblock.inodes_per_group,
            features: superblock.features.clone(),
            checksums: superblock.checksums(),
            clean: superblock.clean,
            journal: Journal::None,
        }
    }
}
