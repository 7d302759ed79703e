//! Extent trees (kernel: `fs/ext4/ext4_extents.h`).

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `eh_magic`.
pub const MAGIC: u16 = 0xf30a;
/// Entries of the root in an inode's `i_block`.
pub const ROOT_CAPACITY: usize = 4;
/// The deepest tree there is: enough for 2³² blocks however broken up.
pub const MAX_DEPTH: u16 = 5;
/// The longest extent that holds data, in blocks. `ee_len` above it means `ee_len` − 32,768 unwritten blocks.
pub const MAX_LEN: u16 = 32_768;

/// The start of every node, 12 bytes; its entries (12 bytes each) follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtentHeader {
    /// [`MAGIC`].
    pub eh_magic: U16,
    /// Entries in use.
    pub eh_entries: U16,
    /// Entries there is room for.
    pub eh_max: U16,
    /// 0: entries are [`Extent`]s; otherwise [`ExtentIndex`] of nodes one level lower.
    pub eh_depth: U16,
    /// Generation; unused.
    pub eh_generation: U32,
}

/// A run of blocks, 12 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Extent {
    /// First block within the file.
    pub ee_block: U32,
    /// Blocks; more than [`MAX_LEN`] marks them unwritten.
    pub ee_len: U16,
    /// First block on the disk, upper 16 bits.
    pub ee_start_hi: U16,
    /// First block on the disk, lower word.
    pub ee_start_lo: U32,
}

/// A child of an index node, 12 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtentIndex {
    /// First block within the file that the child covers.
    pub ei_block: U32,
    /// Block of the child, lower word.
    pub ei_leaf_lo: U32,
    /// Block of the child, upper 16 bits.
    pub ei_leaf_hi: U16,
    /// Padding.
    pub ei_unused: U16,
}

/// Bytes of a header, and of an entry of either kind.
pub const ENTRY_SIZE: usize = 12;
const _: () = assert!(size_of::<ExtentHeader>() == ENTRY_SIZE);
const _: () = assert!(size_of::<Extent>() == ENTRY_SIZE);
const _: () = assert!(size_of::<ExtentIndex>() == ENTRY_SIZE);

/// Entries of a node that fills a block of `block_size` bytes. Under `metadata_csum` its checksum (crc32c of the inode's seed
/// and the block up to it) lies right behind them.
#[must_use]
#[allow(clippy::cast_possible_truncation)] // block sizes end at 64 KiB
pub const fn node_capacity(block_size: usize) -> u16 {
    (block_size.saturating_sub(ENTRY_SIZE) / ENTRY_SIZE) as u16
}

/// Where the checksum of a node lies whose header says `eh_max`, in bytes.
#[must_use]
pub const fn checksum_offset(eh_max: u16) -> usize {
    (eh_max as usize)
        .saturating_mul(ENTRY_SIZE)
        .saturating_add(ENTRY_SIZE)
}
