//! The footer as it lies on disk. All numbers are big-endian (VHD "Overview").

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Footer, VhdError};

/// The footer's length in bytes.
pub const FOOTER_LEN: u64 = 512;
/// The unit of disk sizes, in bytes.
pub(super) const SECTOR: u64 = 512;

pub(super) const COOKIE: [u8; 8] = *b"conectix";
/// "Features": bit 1 is reserved and always set.
pub(super) const FEATURES_RESERVED: u32 = 2;
/// "File Format Version": major 1, minor 0.
pub(super) const VERSION: u32 = 0x0001_0000;
/// "Data Offset" of a fixed disk, which has no dynamic header.
pub(super) const NO_DYNAMIC_HEADER: u64 = u64::MAX;
/// "Creator Host OS": Windows.
pub(super) const HOST_WINDOWS: u32 = 0x5769_326b;
/// "Creator Version" 10.0, as Hyper-V writes.
pub(super) const CREATOR_VERSION: u32 = 0x000a_0000;

/// "Cookie" of the dynamic header.
pub(super) const DYNAMIC_COOKIE: [u8; 8] = *b"cxsparse";
/// "Header Version": major 1, minor 0.
pub(super) const DYNAMIC_VERSION: u32 = 0x0001_0000;
/// An entry of a dynamic disk's table without a block.
pub(super) const UNUSED_BLOCK: u32 = u32::MAX;

pub(super) const TYPE_FIXED: u32 = 2;
pub(super) const TYPE_DYNAMIC: u32 = 3;
pub(super) const TYPE_DIFFERENCING: u32 = 4;

/// "Creator Application".
///
/// Readers differ in where they take a disk's size from: QEMU's `vpc` driver uses the footer's size only for creators it
/// knows, and the geometry, which can't express most sizes, for all others (`block/vpc.c`, `vpc_open`). So disks are
/// written under the creator code whose rules they follow, Hyper-V's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Creator(pub [u8; 4]);

impl Creator {
    /// Hyper-V: the size is the footer's "Current Size".
    pub const HYPER_V: Self = Self(*b"win ");
    /// Virtual PC: a guest sees a disk of as many bytes as the geometry says.
    pub const VIRTUAL_PC: Self = Self(*b"vpc ");
}

/// "Disk Type", as far as it is read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The disk's bytes, one after another.
    Fixed,
    /// Blocks that take space when they are first written.
    Dynamic {
        /// Where the dynamic header is, in bytes ("Data Offset").
        header_offset: u64,
    },
}

/// "Disk Geometry".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Geometry {
    /// 0 to 65535.
    pub cylinders: u16,
    /// At most 16.
    pub heads: u8,
    /// Sectors of 512 bytes in a track, at most 255.
    pub sectors: u8,
}

impl Geometry {
    /// The geometry for a disk of `bytes`, by the algorithm of VHD, appendix "CHS Calculation".
    #[must_use]
    pub fn for_size(bytes: u64) -> Self {
        const LIMIT: u64 = 65535 * 16 * 255;
        let total = (bytes / SECTOR).min(LIMIT);
        let tracks = total / 17;
        let few_heads = tracks.div_ceil(1024).max(4);
        let (sectors, heads) = if total >= 65535 * 16 * 63 {
            (255, 16)
        } else if few_heads <= 16 && tracks < few_heads.saturating_mul(1024) {
            (17, few_heads)
        } else if total / 31 < 16 * 1024 {
            (31, 16)
        } else {
            (63, 16)
        };
        let cylinder = heads.saturating_mul(sectors);
        let narrow = |n: u64| u8::try_from(n).unwrap_or(u8::MAX);
        Self {
            cylinders: u16::try_from(total.checked_div(cylinder).unwrap_or(0)).unwrap_or(u16::MAX),
            heads: narrow(heads),
            sectors: narrow(sectors),
        }
    }
}

/// The 512 bytes at the end of a VHD (VHD "Hard Disk Footer Format").
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawFooter {
    /// `conectix`.
    pub cookie: [u8; 8],
    /// Bit 0: temporary disk; bit 1: reserved, set.
    pub features: U32,
    /// Format version: 0x00010000.
    pub file_format_version: U32,
    /// Byte offset of the dynamic header; all ones for a fixed disk.
    pub data_offset: U64,
    /// Seconds since 2000-01-01T00:00:00Z.
    pub time_stamp: U32,
    /// Who wrote the disk.
    pub creator_application: [u8; 4],
    /// That program's version.
    pub creator_version: U32,
    /// The operating system it ran on.
    pub creator_host_os: U32,
    /// Size in bytes when the disk was made.
    pub original_size: U64,
    /// Size in bytes now.
    pub current_size: U64,
    /// Cylinders.
    pub cylinders: U16,
    /// Heads.
    pub heads: u8,
    /// Sectors in a track.
    pub sectors: u8,
    /// 2 fixed, 3 dynamic, 4 differencing.
    pub disk_type: U32,
    /// One's complement of the sum of all other bytes.
    pub checksum: U32,
    /// UUID.
    pub unique_id: [u8; 16],
    /// 1 if the disk belongs to a saved machine.
    pub saved_state: u8,
    /// Zeros.
    pub reserved: [u8; 427],
}

const _: () = assert!(size_of::<RawFooter>() == 512);

/// Why a footer was not taken; the caller knows where it lay.
pub(super) enum Fault {
    Corrupt(String),
    Other(VhdError),
}

impl Fault {
    pub(super) fn at(self, offset: u64) -> VhdError {
        match self {
            Self::Corrupt(detail) => VhdError::Corrupt { offset, detail },
            Self::Other(error) => error,
        }
    }
}

impl RawFooter {
    pub(super) fn fixed(size: u64, unique_id: [u8; 16]) -> Self {
        let geometry = Geometry::for_size(size);
        let mut footer = Self {
            cookie: COOKIE,
            features: FEATURES_RESERVED.into(),
            file_format_version: VERSION.into(),
            data_offset: NO_DYNAMIC_HEADER.into(),
            time_stamp: 0.into(),
            creator_application: Creator::HYPER_V.0,
            creator_version: CREATOR_VERSION.into(),
            creator_host_os: HOST_WINDOWS.into(),
            original_size: size.into(),
            current_size: size.into(),
            cylinders: geometry.cylinders.into(),
            heads: geometry.heads,
            sectors: geometry.sectors,
            disk_type: TYPE_FIXED.into(),
            checksum: 0.into(),
            unique_id,
            saved_state: 0,
            reserved: [0; 427],
        };
        footer.checksum = footer.sum().into();
        footer
    }

    /// The checksum that the other bytes call for.
    pub(super) fn sum(&self) -> u32 {
        checksum(self.as_bytes(), self.checksum)
    }

    pub(super) fn validate(&self) -> Result<Footer, Fault> {
        if self.cookie != COOKIE {
            return Err(Fault::Corrupt("the cookie is not \"conectix\"".into()));
        }
        if self.checksum.get() != self.sum() {
            let (found, right) = (self.checksum.get(), self.sum());
            return Err(Fault::Corrupt(format!(
                "checksum {found:#010x} instead of {right:#010x}"
            )));
        }
        if self.file_format_version.get() != VERSION {
            let kind = format!("version {:#010x}", self.file_format_version.get());
            return Err(Fault::Other(VhdError::Unsupported { kind }));
        }
        let kind = match self.disk_type.get() {
            TYPE_FIXED => Kind::Fixed,
            TYPE_DIFFERENCING => return Err(Fault::Other(VhdError::Differencing)),
            TYPE_DYNAMIC => Kind::Dynamic {
                header_offset: self.data_offset.get(),
            },
            other => {
                return Err(Fault::Other(VhdError::Unsupported {
                    kind: format!("type {other}"),
                }));
            }
        };
        let current_size = self.current_size.get();
        if !current_size.is_multiple_of(SECTOR) {
            return Err(Fault::Corrupt(format!(
                "a size of {current_size} bytes is no multiple of 512"
            )));
        }
        Ok(Footer {
            kind,
            current_size,
            unique_id: self.unique_id,
            creator: Creator(self.creator_application),
            geometry: Geometry {
                cylinders: self.cylinders.get(),
                heads: self.heads,
                sectors: self.sectors,
            },
        })
    }
}

/// The header of a dynamic disk (VHD "Dynamic Disk Header Format").
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDynamicHeader {
    /// `cxsparse`.
    pub cookie: [u8; 8],
    /// All ones.
    pub data_offset: U64,
    /// Where the block allocation table is, in bytes.
    pub table_offset: U64,
    /// Version of the header: 0x00010000.
    pub header_version: U32,
    /// Entries of the table.
    pub max_table_entries: U32,
    /// Size of a block, in bytes, without its bitmap.
    pub block_size: U32,
    /// One's complement of the sum of all other bytes.
    pub checksum: U32,
    /// Differencing disks only.
    pub parent_unique_id: [u8; 16],
    /// Differencing disks only.
    pub parent_time_stamp: U32,
    /// Zero.
    pub reserved: U32,
    /// Differencing disks only.
    pub parent_unicode_name: [u8; 512],
    /// Differencing disks only.
    pub parent_locator_entries: [u8; 192],
    /// Zeros.
    pub reserved2: [u8; 256],
}

const _: () = assert!(size_of::<RawDynamicHeader>() == 1024);

impl RawDynamicHeader {
    /// The checksum that the other bytes call for.
    pub(super) fn sum(&self) -> u32 {
        checksum(self.as_bytes(), self.checksum)
    }
}

/// One's complement of the sum of all bytes but those of the checksum.
fn checksum(all: &[u8], own: U32) -> u32 {
    let all: u32 = all.iter().map(|&b| u32::from(b)).sum();
    let own: u32 = own.as_bytes().iter().map(|&b| u32::from(b)).sum();
    !all.wrapping_sub(own)
}
