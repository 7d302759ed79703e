//! The journal (kernel: `include/linux/jbd2.h`, `fs/jbd2/`, `Documentation/filesystems/ext4/journal.rst`).
//!
//! Big-endian, unlike the rest. A ring of blocks: the journal's superblock, then transactions, each of descriptor blocks
//! followed by the blocks they describe, revocation blocks, and a commit block at its end.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Checksum;

/// `h_magic`. Data blocks that happen to begin so are stored with their first four bytes 0 and [`TAG_ESCAPE`] set.
pub const JOURNAL_MAGIC: u32 = 0xc03b_3998;
/// `h_blocktype`: a list of the blocks that follow.
pub const BLOCK_DESCRIPTOR: u32 = 1;
/// `h_blocktype`: the end of a transaction.
pub const BLOCK_COMMIT: u32 = 2;
/// `h_blocktype`: the journal's superblock, without features.
pub const BLOCK_SUPERBLOCK_V1: u32 = 3;
/// `h_blocktype`: the journal's superblock.
pub const BLOCK_SUPERBLOCK_V2: u32 = 4;
/// `h_blocktype`: blocks that older transactions must not write.
pub const BLOCK_REVOKE: u32 = 5;

/// `s_feature_compat`: commit blocks hold a CRC-32 of the transaction.
pub const COMPAT_CHECKSUM: u32 = 1;
/// `s_feature_incompat`.
#[allow(missing_docs)]
pub mod incompat {
    pub const REVOKE: u32 = 0x1;
    pub const BIT64: u32 = 0x2;
    pub const ASYNC_COMMIT: u32 = 0x4;
    pub const CSUM_V2: u32 = 0x8;
    pub const CSUM_V3: u32 = 0x10;
    pub const FAST_COMMIT: u32 = 0x20;
}

/// A tag's flag: the block began with [`JOURNAL_MAGIC`].
pub const TAG_ESCAPE: u32 = 1;
/// A tag's flag: no UUID follows.
pub const TAG_SAME_UUID: u32 = 2;
/// A tag's flag: the last of its descriptor block.
pub const TAG_LAST: u32 = 8;

/// `h_chksum_type`: CRC-32, big-endian.
pub const CHECKSUM_CRC32: u8 = 1;
/// Blocks kept for fast commits where the journal's superblock does not say.
pub const DEFAULT_FAST_COMMIT_BLOCKS: u32 = 256;
/// Tag of a fast commit's first record (kernel: `EXT4_FC_TAG_HEAD`); the records are little-endian.
pub const FAST_COMMIT_HEAD: u16 = 9;

/// The start of every block of the journal that is not data, 12 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct JournalHeader {
    /// [`JOURNAL_MAGIC`].
    pub h_magic: U32,
    /// `BLOCK_*`.
    pub h_blocktype: U32,
    /// The transaction's number.
    pub h_sequence: U32,
}

/// The journal's superblock, 1,024 bytes.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct JournalSuperblock {
    /// `BLOCK_SUPERBLOCK_V1` or `_V2`.
    pub s_header: JournalHeader,
    /// Block size in bytes; that of the filesystem.
    pub s_blocksize: U32,
    /// Blocks of the journal, this one included.
    pub s_maxlen: U32,
    /// First block of the ring.
    pub s_first: U32,
    /// Number of the first transaction in the log.
    pub s_sequence: U32,
    /// Block where the log starts; 0: it is empty.
    pub s_start: U32,
    /// Error that stopped the journal.
    pub s_errno: U32,
    /// Compatible features (version 2 from here on).
    pub s_feature_compat: U32,
    /// [`incompat`].
    pub s_feature_incompat: U32,
    /// None exist.
    pub s_feature_ro_compat: U32,
    /// The journal's UUID.
    pub s_uuid: [u8; 16],
    /// Filesystems that use it.
    pub s_nr_users: U32,
    /// Block of a copy of the superblock; unused.
    pub s_dynsuper: U32,
    /// Unused.
    pub s_max_transaction: U32,
    /// Unused.
    pub s_max_trans_data: U32,
    /// Checksum of `CSUM_V2` and `CSUM_V3`: 4, crc32c.
    pub s_checksum_type: u8,
    /// Padding.
    pub s_padding2: [u8; 3],
    /// Blocks at the ring's end that are for fast commits.
    pub s_num_fc_blks: U32,
    /// Block where the log ends, in a clean journal.
    pub s_head: U32,
    /// Padding.
    pub s_padding: [U32; 40],
    /// crc32c of this structure with this field 0.
    pub s_checksum: U32,
    /// UUIDs of the users.
    pub s_users: [u8; 768],
}

const _: () = assert!(size_of::<JournalHeader>() == 12);
const _: () = assert!(size_of::<JournalSuperblock>() == 1024);
const _: () = assert!(std::mem::offset_of!(JournalSuperblock, s_uuid) == 0x30);
const _: () = assert!(std::mem::offset_of!(JournalSuperblock, s_checksum) == 0xfc);

/// `s_checksum_type` of `CSUM_V2` and `CSUM_V3`.
pub const CHECKSUM_CRC32C: u8 = 4;

impl JournalSuperblock {
    /// The checksum its bytes should carry.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        let mut copy = self.clone();
        copy.s_checksum.set(0);
        Checksum::START.bytes(copy.as_bytes()).value()
    }
}

/// The start of a commit block, 60 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CommitHeader {
    /// [`BLOCK_COMMIT`].
    pub h_header: JournalHeader,
    /// `CHECKSUM_CRC32`, or 0.
    pub h_chksum_type: u8,
    /// 4, or 0.
    pub h_chksum_size: u8,
    /// Padding.
    pub h_padding: [u8; 2],
    /// The first is the checksum.
    pub h_chksum: [U32; 8],
    /// When it was committed, seconds since 1970.
    pub h_commit_sec: U64,
    /// Nanoseconds of that.
    pub h_commit_nsec: U32,
}

const _: () = assert!(size_of::<CommitHeader>() == 60);

/// A tag of a descriptor block under `CSUM_V3`, 16 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlockTag3 {
    /// Block of the filesystem, lower word.
    pub t_blocknr: U32,
    /// `TAG_*`.
    pub t_flags: U32,
    /// Block of the filesystem, upper word.
    pub t_blocknr_high: U32,
    /// crc32c of the journal's seed, the transaction's number and the block.
    pub t_checksum: U32,
}

/// A tag without `CSUM_V3`: 8 bytes, 12 under `BIT64`; `CSUM_V2` adds two unused ones.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlockTag {
    /// Block of the filesystem, lower word.
    pub t_blocknr: U32,
    /// Under `CSUM_V2` the checksum's lower half.
    pub t_checksum: U16,
    /// `TAG_*`.
    pub t_flags: U16,
}

const _: () = assert!(size_of::<BlockTag3>() == 16);
const _: () = assert!(size_of::<BlockTag>() == 8);
