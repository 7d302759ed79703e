//! Block group descriptors (kernel: `struct ext4_group_desc`).

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Checksum;
use super::checksum::crc16;

/// `bg_flags`: no inode of the group is in use; its inode bitmap is not on disk.
pub const INODE_UNINIT: u16 = 1;
/// `bg_flags`: only the group's own metadata is in use; its block bitmap is not on disk.
pub const BLOCK_UNINIT: u16 = 2;
/// `bg_flags`: the unused part of the inode table is zeros, so the kernel need not write them.
pub const INODE_ZEROED: u16 = 4;
/// Size of a descriptor without `64bit`, in bytes: the part up to `bg_checksum`.
pub const SMALL_SIZE: usize = 32;

/// A descriptor as `64bit` has it, 64 bytes; without that feature only the first 32 are on disk.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupDescriptor {
    /// Block of the block bitmap.
    pub bg_block_bitmap_lo: U32,
    /// Block of the inode bitmap.
    pub bg_inode_bitmap_lo: U32,
    /// First block of the inode table.
    pub bg_inode_table_lo: U32,
    /// Free blocks (clusters under `bigalloc`).
    pub bg_free_blocks_count_lo: U16,
    /// Free inodes.
    pub bg_free_inodes_count_lo: U16,
    /// Directories.
    pub bg_used_dirs_count_lo: U16,
    /// `INODE_UNINIT`, `BLOCK_UNINIT`, `INODE_ZEROED`.
    pub bg_flags: U16,
    /// Block of the snapshot exclusion bitmap; unused.
    pub bg_exclude_bitmap_lo: U32,
    /// crc32c of the block bitmap, lower half.
    pub bg_block_bitmap_csum_lo: U16,
    /// crc32c of the inode bitmap, lower half.
    pub bg_inode_bitmap_csum_lo: U16,
    /// Inodes at the end of the table never used.
    pub bg_itable_unused_lo: U16,
    /// Checksum of the group's number and this descriptor.
    pub bg_checksum: U16,
    /// Upper halves of the fields above.
    pub bg_block_bitmap_hi: U32,
    /// Upper half.
    pub bg_inode_bitmap_hi: U32,
    /// Upper half.
    pub bg_inode_table_hi: U32,
    /// Upper half.
    pub bg_free_blocks_count_hi: U16,
    /// Upper half.
    pub bg_free_inodes_count_hi: U16,
    /// Upper half.
    pub bg_used_dirs_count_hi: U16,
    /// Upper half.
    pub bg_itable_unused_hi: U16,
    /// Unused.
    pub bg_exclude_bitmap_hi: U32,
    /// Upper half.
    pub bg_block_bitmap_csum_hi: U16,
    /// Upper half.
    pub bg_inode_bitmap_csum_hi: U16,
    /// Padding.
    pub bg_reserved: U32,
}

const _: () = assert!(size_of::<GroupDescriptor>() == 64);
const _: () = assert!(std::mem::offset_of!(GroupDescriptor, bg_checksum) == 0x1e);

impl GroupDescriptor {
    /// A descriptor of zeros.
    #[must_use]
    pub fn zeroed() -> Self {
        Self::read_from_bytes(&[0; 64]).unwrap_or_else(|_| unreachable!("sizes agree"))
    }

    /// The checksum under `metadata_csum` of descriptor `group`, whose bytes on disk (32, 64 or more) are `raw`.
    #[must_use]
    pub fn checksum_crc32c(seed: Checksum, group: u32, raw: &[u8]) -> u16 {
        const FIELD: usize = std::mem::offset_of!(GroupDescriptor, bg_checksum);
        let (before, rest) = raw.split_at(FIELD.min(raw.len()));
        let after = rest.get(2..).unwrap_or_default();
        seed.u32(group)
            .bytes(before)
            .bytes(&[0; 2])
            .bytes(after)
            .low()
    }

    /// The checksum under `uninit_bg` without `metadata_csum`.
    #[must_use]
    pub fn checksum_crc16(uuid: &[u8; 16], group: u32, raw: &[u8]) -> u16 {
        const FIELD: usize = std::mem::offset_of!(GroupDescriptor, bg_checksum);
        let (before, rest) = raw.split_at(FIELD.min(raw.len()));
        let after = rest.get(2..).unwrap_or_default();
        let start = crc16(crc16(!0, uuid), &group.to_le_bytes());
        crc16(crc16(start, before), after)
    }
}
