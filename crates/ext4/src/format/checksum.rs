//! `metadata_csum`: crc32c over every metadata structure (kernel: `ext4_chksum`).
//!
//! The kernel's `crc32c` neither inverts the start value nor the result, unlike the common definition of CRC-32C.

/// A running crc32c in the kernel's convention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum(u32);

impl Checksum {
    /// The start value for what is not tied to one filesystem: the superblock, and the seed itself.
    pub const START: Self = Self(!0);

    /// Goes on from a value kept on disk (`s_checksum_seed`).
    #[must_use]
    pub const fn from_seed(seed: u32) -> Self {
        Self(seed)
    }

    /// The seed of a filesystem without `metadata_csum_seed`: its UUID's checksum.
    #[must_use]
    pub fn from_uuid(uuid: &[u8; 16]) -> Self {
        Self::START.bytes(uuid)
    }

    /// Adds bytes.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        Self(!crc32c::crc32c_append(!self.0, bytes))
    }

    /// Adds a little-endian 32-bit number.
    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Adds a little-endian 64-bit number.
    #[must_use]
    pub fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// The start value of what belongs to one inode: the inode itself, its extent blocks and its directory blocks.
    #[must_use]
    pub fn inode(self, number: u32, generation: u32) -> Self {
        self.u32(number).u32(generation)
    }

    /// The checksum so far.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The lower half: all that 16-bit fields keep (group descriptors; inodes and bitmaps keep it apart from the upper half).
    #[must_use]
    #[allow(clippy::cast_possible_truncation)]
    pub const fn low(self) -> u16 {
        self.0 as u16
    }

    /// The upper half.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)]
    pub const fn high(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// CRC-16 (ANSI, reflected 0x8005) from a start value: the checksum of group descriptors under `uninit_bg` without
/// `metadata_csum` (kernel: `crc16`).
#[must_use]
pub fn crc16(start: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(start, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            if crc & 1 == 0 {
                crc >> 1
            } else {
                (crc >> 1) ^ 0xa001
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_the_kernels() {
        // The check value of CRC-32C is 0xE3069283 with both inversions.
        assert_eq!(Checksum::START.bytes(b"123456789").value(), !0xe306_9283);
        let whole = Checksum::START.bytes(b"123456789");
        assert_eq!(Checksum::START.bytes(b"1234").bytes(b"56789"), whole);
    }

    #[test]
    fn crc16_is_ansi() {
        // The check value of CRC-16/ARC.
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }
}
