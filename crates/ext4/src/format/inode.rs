//! Inodes (kernel: `struct ext4_inode`), their flags, times and device numbers.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Checksum;
use crate::{Device, Timestamp};

/// The part of an inode that every revision has, in bytes.
pub const OLD_SIZE: usize = 128;
/// Size of the inodes this crate makes, in bytes.
pub const INODE_SIZE: usize = 256;
/// `i_extra_isize` of the inodes this crate makes: all fields up to `i_projid`.
pub const EXTRA_ISIZE: u16 = 32;
/// Bytes of `i_block`: block pointers, an extent tree's root, a short symlink's target, or inline data.
pub const I_BLOCK_SIZE: usize = 60;

/// `i_flags`.
#[allow(missing_docs)]
pub mod flags {
    pub const SYNC: u32 = 0x8;
    pub const IMMUTABLE: u32 = 0x10;
    pub const APPEND: u32 = 0x20;
    pub const COMPR: u32 = 0x200;
    pub const ENCRYPT: u32 = 0x800;
    /// The directory has an htree.
    pub const INDEX: u32 = 0x1000;
    /// `i_blocks` counts filesystem blocks, not 512-byte units.
    pub const HUGE_FILE: u32 = 0x4_0000;
    /// `i_block` holds an extent tree.
    pub const EXTENTS: u32 = 0x8_0000;
    pub const VERITY: u32 = 0x10_0000;
    /// The inode holds the value of an extended attribute.
    pub const EA_INODE: u32 = 0x20_0000;
    pub const INLINE_DATA: u32 = 0x1000_0000;
    pub const CASEFOLD: u32 = 0x4000_0000;
}

/// An inode's fields, 160 bytes. Those from `i_extra_isize` on exist only in inodes larger than 128 bytes, and each only
/// if `i_extra_isize` reaches over it. In-inode attributes follow at 128 + `i_extra_isize`.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Inode {
    /// Type and permissions.
    pub i_mode: U16,
    /// Owner, lower half.
    pub i_uid: U16,
    /// Size in bytes, lower word.
    pub i_size_lo: U32,
    /// Access time, seconds.
    pub i_atime: U32,
    /// Inode change time, seconds.
    pub i_ctime: U32,
    /// Modification time, seconds.
    pub i_mtime: U32,
    /// Deletion time, seconds.
    pub i_dtime: U32,
    /// Group, lower half.
    pub i_gid: U16,
    /// Links; 1 for a directory with more than 65,000 under `dir_nlink`.
    pub i_links_count: U16,
    /// Space in use, lower word, in 512-byte units unless `HUGE_FILE` is set. Holes don't count, metadata does.
    pub i_blocks_lo: U32,
    /// [`flags`].
    pub i_flags: U32,
    /// Lower word of the inode's version; of the reference count in an `EA_INODE`.
    pub i_version_lo: U32,
    /// Block pointers, extent tree root, symlink target, device number or inline data.
    pub i_block: [u8; I_BLOCK_SIZE],
    /// Generation, for NFS and checksums.
    pub i_generation: U32,
    /// Block of extended attributes, lower word.
    pub i_file_acl_lo: U32,
    /// Size, upper word.
    pub i_size_high: U32,
    /// Unused.
    pub i_obso_faddr: U32,
    /// Space in use, upper 16 bits.
    pub i_blocks_high: U16,
    /// Block of extended attributes, upper 16 bits.
    pub i_file_acl_high: U16,
    /// Owner, upper half.
    pub i_uid_high: U16,
    /// Group, upper half.
    pub i_gid_high: U16,
    /// Checksum, lower half.
    pub i_checksum_lo: U16,
    /// Unused.
    pub i_reserved: U16,
    /// Bytes in use beyond the first 128, attributes not counted.
    pub i_extra_isize: U16,
    /// Checksum, upper half.
    pub i_checksum_hi: U16,
    /// Nanoseconds << 2 and two more bits of the seconds.
    pub i_ctime_extra: U32,
    /// As `i_ctime_extra`.
    pub i_mtime_extra: U32,
    /// As `i_ctime_extra`.
    pub i_atime_extra: U32,
    /// Creation time, seconds.
    pub i_crtime: U32,
    /// As `i_ctime_extra`.
    pub i_crtime_extra: U32,
    /// Upper word of the version.
    pub i_version_hi: U32,
    /// Project, for quotas.
    pub i_projid: U32,
}

/// Bytes of [`Inode`].
pub const FIELDS_SIZE: usize = 160;
const _: () = assert!(size_of::<Inode>() == FIELDS_SIZE);
const _: () = assert!(std::mem::offset_of!(Inode, i_block) == 0x28);
const _: () = assert!(std::mem::offset_of!(Inode, i_checksum_lo) == 0x7c);
const _: () = assert!(std::mem::offset_of!(Inode, i_checksum_hi) == 0x82);

impl Inode {
    /// An inode of zeros.
    #[must_use]
    pub fn zeroed() -> Self {
        Self::read_from_bytes(&[0; FIELDS_SIZE]).unwrap_or_else(|_| unreachable!("sizes agree"))
    }

    /// The checksum of inode `number` with generation `generation`, whose bytes on disk are `raw` (128 or more).
    /// Where there is no room for the upper half only the lower is kept.
    #[must_use]
    pub fn checksum(seed: Checksum, number: u32, generation: u32, raw: &[u8]) -> Checksum {
        const LO: usize = std::mem::offset_of!(Inode, i_checksum_lo);
        const LO_END: usize = LO + 2;
        const HI: usize = std::mem::offset_of!(Inode, i_checksum_hi);
        const HI_END: usize = HI + 2;
        let sum = seed.inode(number, generation);
        let part = |from: usize, to: usize| raw.get(from..to.min(raw.len())).unwrap_or_default();
        let sum = sum.bytes(part(0, LO)).bytes(&[0; 2]);
        let sum = sum.bytes(part(LO_END, OLD_SIZE));
        if raw.len() <= OLD_SIZE {
            return sum;
        }
        if Self::has_checksum_hi(raw) {
            sum.bytes(part(OLD_SIZE, HI))
                .bytes(&[0; 2])
                .bytes(part(HI_END, raw.len()))
        } else {
            sum.bytes(part(OLD_SIZE, raw.len()))
        }
    }

    /// Whether the inode's bytes have room for the upper half of the checksum (`i_extra_isize` reaches over it).
    #[must_use]
    pub fn has_checksum_hi(raw: &[u8]) -> bool {
        match raw.get(OLD_SIZE..OLD_SIZE.saturating_add(2)) {
            Some(&[lo, hi]) => u16::from_le_bytes([lo, hi]) >= 4,
            _ => false,
        }
    }
}

/// Seconds and `*_extra` of a time on disk. Times ext4 can't hold become the nearest it can.
#[must_use]
pub fn encode_time(time: Timestamp) -> (u32, u32) {
    let time = time.clamp(Timestamp::MIN, Timestamp::MAX);
    let nanos = time.nanos.min(999_999_999);
    // The lower word is the seconds' two's complement; the epoch counts how often 2³² must be added to it, read as signed.
    let [b0, b1, b2, b3, ..] = time.secs.to_le_bytes();
    let low = u32::from_le_bytes([b0, b1, b2, b3]);
    let beyond = time.secs.saturating_sub(i64::from(low.cast_signed())) >> 32;
    let epoch = u32::try_from(beyond).unwrap_or(0) & 3;
    (low, nanos << 2 | epoch)
}

/// The time that seconds and `*_extra` mean; `extra` is `None` in inodes too small to have it.
#[must_use]
pub fn decode_time(seconds: u32, extra: Option<u32>) -> Timestamp {
    let extra = extra.unwrap_or(0);
    let secs = i64::from(seconds.cast_signed()).saturating_add(i64::from(extra & 3) << 32);
    Timestamp {
        secs,
        nanos: (extra >> 2).min(999_999_999),
    }
}

/// A device number as the first two words of `i_block`: the old 8+8 bit form in the first where it fits, else the new
/// 12+20 bit form in the second (kernel: `old_encode_dev`, `new_encode_dev`). `None` if it fits neither.
#[must_use]
pub fn encode_device(device: Device) -> Option<[u32; 2]> {
    let Device { major, minor } = device;
    if major < 256 && minor < 256 {
        Some([major << 8 | minor, 0])
    } else if major < 1 << 12 && minor < 1 << 20 {
        Some([0, (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)])
    } else {
        None
    }
}

/// The device number in the first two words of `i_block`.
#[must_use]
pub fn decode_device(words: [u32; 2]) -> Device {
    match words {
        [0, new] => Device {
            major: (new & 0xf_ff00) >> 8,
            minor: (new & 0xff) | ((new >> 12) & 0xf_ff00),
        },
        [old, _] => Device {
            major: (old >> 8) & 0xff,
            minor: old & 0xff,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_kernels_table() {
        // Documentation/filesystems/ext4/inodes.rst, "Inode Timestamps".
        for (secs, low, epoch) in [
            (-0x8000_0000, 0x8000_0000, 0),
            (-1, 0xffff_ffff, 0),
            (0, 0, 0),
            (0x7fff_ffff, 0x7fff_ffff, 0),
            (0x8000_0000, 0x8000_0000, 1),
            (0xffff_ffff, 0xffff_ffff, 1),
            (0x1_0000_0000, 0, 1),
            (0x1_7fff_ffff, 0x7fff_ffff, 1),
            (0x1_8000_0000, 0x8000_0000, 2),
            (0x2_7fff_ffff, 0x7fff_ffff, 2),
            (0x2_8000_0000, 0x8000_0000, 3),
            (0x3_7fff_ffff, 0x7fff_ffff, 3),
        ] {
            let time = Timestamp { secs, nanos: 5 };
            assert_eq!(encode_time(time), (low, 5 << 2 | epoch), "{secs}");
            assert_eq!(decode_time(low, Some(5 << 2 | epoch)), time);
        }
    }

    #[test]
    fn times_out_of_range_become_the_nearest() {
        let (low, extra) = encode_time(Timestamp::from_secs(i64::MIN));
        assert_eq!(decode_time(low, Some(extra)), Timestamp::MIN);
        let (low, extra) = encode_time(Timestamp::from_secs(i64::MAX));
        assert_eq!(decode_time(low, Some(extra)), Timestamp::MAX);
    }

    #[test]
    fn devices_round_trip_in_both_forms() {
        for (major, minor, words) in [
            (0, 0, [0, 0]),
            (1, 3, [0x103, 0]),
            (255, 255, [0xffff, 0]),
            (8, 256, [0, 0x0010_0800]),
            (256, 0, [0, 0x1_0000]),
            (4095, 0xf_ffff, [0, 0xffff_ffff]),
        ] {
            let device = Device { major, minor };
            assert_eq!(encode_device(device), Some(words));
            assert_eq!(decode_device(words), device);
        }
        assert_eq!(
            encode_device(Device {
                major: 4096,
                minor: 0
            }),
            None
        );
        assert_eq!(
            encode_device(Device {
                major: 0,
                minor: 1 << 20
            }),
            None
        );
    }
}
