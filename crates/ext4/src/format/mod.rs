//! The on-disk structures of ext2, ext3 and ext4, as the kernel's `fs/ext4/ext4.h` and `Documentation/filesystems/ext4`
//! define them.
//!
//! Structures are plain bytes with explicit little-endian fields, named as the kernel names them; they can be read
//! from and written to a disk as they are. Nothing here is validated: that is for who reads.

pub mod acl;
pub mod checksum;
pub mod dir;
pub mod extent;
pub mod group;
pub mod hash;
pub mod inode;
pub mod journal;
pub mod superblock;
pub mod xattr;

pub use checksum::Checksum;
pub use dir::{DirEntryHeader, DirTail, DxEntry, DxRootInfo};
pub use extent::{Extent, ExtentHeader, ExtentIndex};
pub use group::GroupDescriptor;
pub use inode::Inode;
pub use superblock::Superblock;

/// The block size of every filesystem this crate makes, in bytes.
pub const BLOCK_SIZE: usize = 4096;

/// An inode's links beyond which ext4 takes no more (`EXT4_LINK_MAX`). Directories may have more subdirectories under
/// `dir_nlink`, and then show one link.
pub const LINK_MAX: u32 = 65_000;

/// The longest name of a directory entry, in bytes (`EXT4_NAME_LEN`).
pub const NAME_MAX: usize = 255;

/// The longest symlink target, in bytes: one block less its terminating zero.
pub const SYMLINK_MAX: usize = BLOCK_SIZE - 1;
