//! Directory blocks, linear and indexed (kernel: `struct ext4_dir_entry_2`, `fs/ext4/namei.c`).
//!
//! ```text
//! leaf block                          htree root (block 0)                 htree node
//! ┌ entry ─ entry ─ … ─ last ┐ tail   ┌ "." ─ ".." ─ DxRootInfo ─ entries   ┌ empty entry ─ entries
//! ```
//! In an htree the first [`DxEntry`] has no hash: [`DxCountLimit`] takes its place, and its block covers the lowest hashes.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The start of an entry, 8 bytes; the name follows, then padding to a multiple of 4.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DirEntryHeader {
    /// The inode; 0: the entry is unused space.
    pub inode: U32,
    /// Bytes to the next entry. In blocks of 64 KiB 65,535 and 0 stand for 65,536.
    pub rec_len: U16,
    /// Length of the name in bytes.
    pub name_len: u8,
    /// `EXT4_FT_*` under `filetype`; else the upper half of the name's length, always 0.
    pub file_type: u8,
}

/// Bytes of [`DirEntryHeader`].
pub const HEADER_SIZE: usize = 8;
const _: () = assert!(size_of::<DirEntryHeader>() == HEADER_SIZE);

/// The last 12 bytes of a leaf under `metadata_csum`, dressed as an unused entry.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DirTail {
    /// 0.
    pub det_reserved_zero1: U32,
    /// 12.
    pub det_rec_len: U16,
    /// 0.
    pub det_reserved_zero2: u8,
    /// [`TAIL_FILE_TYPE`].
    pub det_reserved_ft: u8,
    /// crc32c of the inode's seed and the block up to this tail.
    pub det_checksum: U32,
}

/// Bytes of [`DirTail`].
pub const TAIL_SIZE: usize = 12;
/// The file type that marks a tail (`EXT4_FT_DIR_CSUM`).
pub const TAIL_FILE_TYPE: u8 = 0xde;
const _: () = assert!(size_of::<DirTail>() == TAIL_SIZE);

/// Behind `.` and `..` (12 bytes each) in an htree's root block, 8 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DxRootInfo {
    /// 0.
    pub reserved_zero: U32,
    /// The hash: `s_def_hash_version`'s values.
    pub hash_version: u8,
    /// 8: bytes of this structure.
    pub info_length: u8,
    /// Levels of nodes between this root and the leaves; up to 1, or 2 under `large_dir`.
    pub indirect_levels: u8,
    /// 0.
    pub unused_flags: u8,
}

/// Where [`DxRootInfo`] lies in the root block.
pub const DX_ROOT_INFO_OFFSET: usize = 24;
/// Where the root's entries begin.
pub const DX_ROOT_ENTRIES_OFFSET: usize = 32;
/// Where a node's entries begin, behind an unused entry that spans the block.
pub const DX_NODE_ENTRIES_OFFSET: usize = 8;
const _: () = assert!(size_of::<DxRootInfo>() == 8);

/// An htree entry: names from `hash` on are found in (or below) `block`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DxEntry {
    /// The lowest hash, bit 0 clear; bit 0 set: names of that same hash are in the block before as well.
    pub hash: U32,
    /// Block within the directory.
    pub block: U32,
}

/// What stands in the first entry's hash.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DxCountLimit {
    /// Entries there is room for, this one included.
    pub limit: U16,
    /// Entries in use, this one included.
    pub count: U16,
}

/// Bytes of [`DxEntry`].
pub const DX_ENTRY_SIZE: usize = 8;
const _: () = assert!(size_of::<DxEntry>() == DX_ENTRY_SIZE);
const _: () = assert!(size_of::<DxCountLimit>() == 4);

/// Under `metadata_csum`, behind the room for `limit` entries: crc32c of the inode's seed, the block up to the end of the
/// entries *in use*, `dt_reserved`, and four zeros for the checksum.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DxTail {
    /// 0.
    pub dt_reserved: U32,
    /// The checksum.
    pub dt_checksum: U32,
}

/// Bytes of [`DxTail`].
pub const DX_TAIL_SIZE: usize = 8;
const _: () = assert!(size_of::<DxTail>() == DX_TAIL_SIZE);

/// The smallest `rec_len` for a name of `name_len` bytes.
#[must_use]
pub const fn entry_size(name_len: usize) -> usize {
    HEADER_SIZE.saturating_add(name_len).saturating_add(3) & !3
}
