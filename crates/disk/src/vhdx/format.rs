//! The structures as they lie on disk. All numbers are little-endian (MS-VHDX 2).

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One KiB, in bytes.
pub(super) const KIB: u64 = 1 << 10;
/// One MiB: the unit in which regions, logs and blocks are placed (MS-VHDX 2.1).
pub(super) const MIB: u64 = 1 << 20;

/// The unit of the log, and the piece of a file that a log entry replaces, in bytes (MS-VHDX 2.3).
pub const LOG_SECTOR: u64 = 4 * KIB;
/// The largest virtual disk, in bytes: 64 TiB (MS-VHDX 2.6.2.2).
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;
/// The largest file that is taken, in bytes. 64 TiB of blocks, their table and a log of 4 GiB need less; a length or an offset
/// above this is damage, and what is counted per MiB of a file stays below 16 MiB of memory.
pub const MAX_FILE_SIZE: u64 = 128 << 40;
/// The smallest block, in bytes (MS-VHDX 2.6.2.1).
pub const MIN_BLOCK_SIZE: u32 = 1 << 20;
/// The largest block, in bytes (MS-VHDX 2.6.2.1).
pub const MAX_BLOCK_SIZE: u32 = 256 << 20;
/// Entries that a region table or a metadata table can have (MS-VHDX 2.2.3.1, 2.6.1.1).
pub const MAX_TABLE_ENTRIES: u32 = 2047;

/// Where the file type identifier is (MS-VHDX 2.2).
pub const FILE_TYPE_OFFSET: u64 = 0;
/// Where the two headers are, in bytes (MS-VHDX 2.2).
pub const HEADER_OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];
/// Where the two copies of the region table are, in bytes (MS-VHDX 2.2).
pub const REGION_TABLE_OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];
/// The length of a region table and of a metadata table, in bytes.
pub const TABLE_LEN: u64 = 64 * KIB;
/// What comes before the first region, in bytes (MS-VHDX 2.2).
pub const HEADER_SECTION_LEN: u64 = MIB;

/// The same, as lengths in memory.
pub(super) const TABLE_BYTES: usize = 64 << 10;
pub(super) const SECTOR_BYTES: usize = 4096;
const _: () = assert!(TABLE_BYTES as u64 == TABLE_LEN && SECTOR_BYTES as u64 == LOG_SECTOR);

pub(super) const FILE_TYPE_SIGNATURE: [u8; 8] = *b"vhdxfile";
pub(super) const HEADER_SIGNATURE: [u8; 4] = *b"head";
pub(super) const REGION_SIGNATURE: [u8; 4] = *b"regi";
pub(super) const METADATA_SIGNATURE: [u8; 8] = *b"metadata";
pub(super) const LOG_SIGNATURE: [u8; 4] = *b"loge";
pub(super) const ZERO_SIGNATURE: [u8; 4] = *b"zero";
pub(super) const DATA_DESCRIPTOR_SIGNATURE: [u8; 4] = *b"desc";
pub(super) const DATA_SIGNATURE: [u8; 4] = *b"data";

/// "Version" of the format (MS-VHDX 2.2.2).
pub(super) const VERSION: u16 = 1;
/// "LogVersion" (MS-VHDX 2.2.2).
pub(super) const LOG_VERSION: u16 = 0;

/// A GUID, as its 16 bytes lie on disk: three little-endian numbers and eight bytes.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// No GUID: that of a log with nothing in it.
    pub const ZERO: Self = Self([0; 16]);

    /// A GUID from the groups that it is written in: `a-b-c-d[..2]-d[2..]`.
    #[must_use]
    pub const fn new(a: u32, b: u16, c: u16, d: [u8; 8]) -> Self {
        let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) =
            (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        let [d0, d1, d2, d3, d4, d5, d6, d7] = d;
        Self([
            a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7,
        ])
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = self.0;
        let (a, b, c) = (
            u32::from_le_bytes([a0, a1, a2, a3]),
            u16::from_le_bytes([b0, b1]),
            u16::from_le_bytes([c0, c1]),
        );
        write!(f, "{a:08x}-{b:04x}-{c:04x}-")?;
        for (n, byte) in rest.iter().enumerate() {
            write!(f, "{}{byte:02x}", if n == 2 { "-" } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The region that holds the block allocation table (MS-VHDX 2.2.3.2).
pub const BAT_REGION: Guid = Guid::new(
    0x2dc2_7766,
    0xf623,
    0x4200,
    [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08],
);
/// The region that holds the metadata (MS-VHDX 2.2.3.2).
pub const METADATA_REGION: Guid = Guid::new(
    0x8b7c_a206,
    0x4790,
    0x4b9a,
    [0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e],
);
/// The metadata item "File Parameters" (MS-VHDX 2.6.2.1).
pub const FILE_PARAMETERS: Guid = Guid::new(
    0xcaa1_6737,
    0xfa36,
    0x4d43,
    [0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b],
);
/// The metadata item "Virtual Disk Size" (MS-VHDX 2.6.2.2).
pub const VIRTUAL_DISK_SIZE: Guid = Guid::new(
    0x2fa5_4224,
    0xcd1b,
    0x4876,
    [0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8],
);
/// The metadata item "Virtual Disk ID" (MS-VHDX 2.6.2.3).
pub const VIRTUAL_DISK_ID: Guid = Guid::new(
    0xbeca_12ab,
    0xb2e6,
    0x4523,
    [0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46],
);
/// The metadata item "Logical Sector Size" (MS-VHDX 2.6.2.4).
pub const LOGICAL_SECTOR_SIZE: Guid = Guid::new(
    0x8141_bf1d,
    0xa96f,
    0x4709,
    [0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f],
);
/// The metadata item "Physical Sector Size" (MS-VHDX 2.6.2.5).
pub const PHYSICAL_SECTOR_SIZE: Guid = Guid::new(
    0xcda3_48c7,
    0x445d,
    0x4471,
    [0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56],
);
/// The metadata item "Parent Locator", of differencing disks (MS-VHDX 2.6.2.6).
pub const PARENT_LOCATOR: Guid = Guid::new(
    0xa8d3_5f2d,
    0xb30b,
    0x454d,
    [0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c],
);

/// The file type identifier (MS-VHDX 2.2.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawFileType {
    /// `vhdxfile`.
    pub signature: [u8; 8],
    /// Who made the file, in UTF-16; for people only.
    pub creator: [U16; 256],
}

/// A header (MS-VHDX 2.2.2).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RawHeader {
    /// `head`.
    pub signature: [u8; 4],
    /// CRC-32C of the 4 KiB with this field zero.
    pub checksum: U32,
    /// The header with the greater one is current.
    pub sequence_number: U64,
    /// Changes before the file is first changed after an open.
    pub file_write_guid: Guid,
    /// Changes before the disk's contents are first changed after an open.
    pub data_write_guid: Guid,
    /// That of the log entries to replay; zero: none.
    pub log_guid: Guid,
    /// 0.
    pub log_version: U16,
    /// 1.
    pub version: U16,
    /// Length of the log, in bytes: a multiple of 1 MiB.
    pub log_length: U32,
    /// Where the log is, in bytes: a multiple of 1 MiB.
    pub log_offset: U64,
    /// Zeros.
    pub reserved: [u8; 4016],
}

/// The beginning of a region table (MS-VHDX 2.2.3.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawRegionTable {
    /// `regi`.
    pub signature: [u8; 4],
    /// CRC-32C of the 64 KiB with this field zero.
    pub checksum: U32,
    /// At most 2047.
    pub entry_count: U32,
    /// Zero.
    pub reserved: U32,
}

/// An entry of a region table (MS-VHDX 2.2.3.2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawRegionEntry {
    /// Which region.
    pub guid: Guid,
    /// Where it is, in bytes: a multiple of 1 MiB.
    pub file_offset: U64,
    /// Its length, in bytes: a multiple of 1 MiB.
    pub length: U32,
    /// Bit 0: a reader that doesn't know it must not open the file.
    pub required: U32,
}

/// The beginning of the metadata table (MS-VHDX 2.6.1.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawMetadataTable {
    /// `metadata`.
    pub signature: [u8; 8],
    /// Zero.
    pub reserved: U16,
    /// At most 2047.
    pub entry_count: U16,
    /// Zeros.
    pub reserved2: [u8; 20],
}

/// An entry of the metadata table (MS-VHDX 2.6.1.2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawMetadataEntry {
    /// Which item.
    pub item_id: Guid,
    /// Where it is in the metadata region, in bytes: at least 64 KiB.
    pub offset: U32,
    /// Its length, in bytes: at most 1 MiB.
    pub length: U32,
    /// Bit 0 user's, bit 1 of the virtual disk, bit 2 required.
    pub flags: U32,
    /// Zero.
    pub reserved: U32,
}

/// `flags` of a metadata entry: the item is a user's, with names of its own.
pub(super) const IS_USER: u32 = 1;
/// `flags`: the item is of the virtual disk, not of the file.
pub(super) const IS_VIRTUAL_DISK: u32 = 2;
/// `flags`: a reader that doesn't know the item must not open the file.
pub(super) const IS_REQUIRED: u32 = 4;
/// `required` of a region.
pub(super) const REGION_REQUIRED: u32 = 1;

/// The item "File Parameters" (MS-VHDX 2.6.2.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawFileParameters {
    /// In bytes: a power of two from 1 MiB to 256 MiB.
    pub block_size: U32,
    /// Bit 0 leave blocks allocated, bit 1 has a parent.
    pub flags: U32,
}

/// `flags` of the file parameters: blocks stay allocated (a fixed disk).
pub(super) const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
/// `flags` of the file parameters: a differencing disk.
pub(super) const HAS_PARENT: u32 = 2;

/// The header of a log entry (MS-VHDX 2.3.1.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawLogEntry {
    /// `loge`.
    pub signature: [u8; 4],
    /// CRC-32C of the whole entry with this field zero.
    pub checksum: U32,
    /// Length of the entry, in bytes: a multiple of 4 KiB.
    pub entry_length: U32,
    /// Where in the log the first entry is that must be replayed with this one, in bytes.
    pub tail: U32,
    /// One more than that of the entry before.
    pub sequence_number: U64,
    /// Descriptors that follow.
    pub descriptor_count: U32,
    /// Zero.
    pub reserved: U32,
    /// The header's.
    pub log_guid: Guid,
    /// The file was at least this long on stable storage when the entry was written, in bytes.
    pub flushed_file_offset: U64,
    /// All that the file holds lies below, in bytes.
    pub last_file_offset: U64,
}

/// A descriptor of a log entry: data or zeros (MS-VHDX 2.3.1.2, 2.3.1.3).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDescriptor {
    /// `desc` or `zero`.
    pub signature: [u8; 4],
    /// Data: the last 4 bytes of the sector. Zeros: reserved.
    pub trailing_bytes: [u8; 4],
    /// Data: the first 8 bytes of the sector. Zeros: the length, in bytes, a multiple of 4 KiB.
    pub leading_bytes: U64,
    /// Where in the file it goes, in bytes: a multiple of 4 KiB.
    pub file_offset: U64,
    /// The entry's.
    pub sequence_number: U64,
}

/// A data sector of a log entry (MS-VHDX 2.3.1.4).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDataSector {
    /// `data`.
    pub signature: [u8; 4],
    /// The upper half of the entry's sequence number.
    pub sequence_high: U32,
    /// The sector's bytes 8 to 4091.
    pub data: [u8; 4084],
    /// The lower half of the entry's sequence number.
    pub sequence_low: U32,
}

const _: () = assert!(
    size_of::<RawFileType>() == 520
        && size_of::<RawHeader>() == 4096
        && size_of::<RawRegionTable>() == 16
        && size_of::<RawRegionEntry>() == 32
        && size_of::<RawMetadataTable>() == 32
        && size_of::<RawMetadataEntry>() == 32
        && size_of::<RawFileParameters>() == 8
        && size_of::<RawLogEntry>() == 64
        && size_of::<RawDescriptor>() == 32
        && size_of::<RawDataSector>() == 4096
);

/// The CRC-32C of a structure whose checksum field lies at bytes 4 to 7, with that field zero.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let (head, rest) = bytes.split_at(bytes.len().min(8));
    let signature = head.get(..4).unwrap_or(head);
    let crc = crc32c::crc32c_append(crc32c::crc32c(signature), &[0; 4]);
    crc32c::crc32c_append(crc, rest)
}

/// Puts the checksum in its place.
pub(super) fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes);
    if let Some(field) = bytes.get_mut(4..8) {
        field.copy_from_slice(&sum.to_le_bytes());
    }
}

/// Whether the checksum is right.
pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.get(4..8) == Some(&checksum(bytes).to_le_bytes()[..])
}
