//! The superblock as it lies on disk. All numbers are little-endian (cryptsetup, `lib/verity/verity.c`, `struct verity_sb`).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BLOCK, MAX_SALT, VerityError};

pub(super) const SIGNATURE: [u8; 8] = *b"verity\0\0";
/// "version" of the superblock.
pub(super) const VERSION: u32 = 1;
/// "hash_type": 1 hashes salt, then block; 0 is Chrome OS's order.
pub(super) const HASH_TYPE: u32 = 1;
/// "algorithm", padded with zeros.
pub(super) const ALGORITHM: [u8; 32] =
    *b"sha256\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The 512 bytes at the start of the block behind the data.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawSuperblock {
    /// `verity` and two zero bytes.
    pub signature: [u8; 8],
    /// Version of the superblock: 1.
    pub version: U32,
    /// Order of salt and block in a hash: 1, salt first.
    pub hash_type: U32,
    /// UUID.
    pub uuid: [u8; 16],
    /// Name of the hash algorithm, padded with zeros.
    pub algorithm: [u8; 32],
    /// Bytes in a data block.
    pub data_block_size: U32,
    /// Bytes in a hash block.
    pub hash_block_size: U32,
    /// Number of data blocks.
    pub data_blocks: U64,
    /// Bytes of `salt` that count.
    pub salt_size: U16,
    /// Zeros.
    pub pad1: [u8; 6],
    /// The salt, padded with zeros.
    pub salt: [u8; 256],
    /// Zeros.
    pub pad2: [u8; 168],
}

const _: () = assert!(size_of::<RawSuperblock>() == 512);

/// A superblock that was found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The tree's own identity. No hash covers it.
    pub uuid: [u8; 16],
    /// How many blocks of 4 KiB are hashed.
    pub data_blocks: u64,
    /// What is hashed before each block: at most 256 bytes.
    pub salt: Vec<u8>,
}

impl RawSuperblock {
    /// `None`: the salt is too long.
    pub(super) fn new(superblock: &Superblock) -> Option<Self> {
        let block_size = u32::try_from(BLOCK).ok()?;
        let mut salt = [0; MAX_SALT];
        salt.get_mut(..superblock.salt.len())?
            .copy_from_slice(&superblock.salt);
        Some(Self {
            signature: SIGNATURE,
            version: VERSION.into(),
            hash_type: HASH_TYPE.into(),
            uuid: superblock.uuid,
            algorithm: ALGORITHM,
            data_block_size: block_size.into(),
            hash_block_size: block_size.into(),
            data_blocks: superblock.data_blocks.into(),
            salt_size: u16::try_from(superblock.salt.len()).ok()?.into(),
            pad1: [0; 6],
            salt,
            pad2: [0; 168],
        })
    }

    /// Checks a superblock that lay at byte `offset`.
    pub(super) fn validate(&self, offset: u64) -> Result<Superblock, VerityError> {
        let corrupt = |detail: String| VerityError::Corrupt { offset, detail };
        let unsupported = |what: String| VerityError::Unsupported { what };
        if self.signature != SIGNATURE {
            return Err(corrupt("the signature is not \"verity\"".into()));
        }
        if self.version.get() != VERSION {
            return Err(unsupported(format!(
                "superblock version {}",
                self.version.get()
            )));
        }
        if self.hash_type.get() != HASH_TYPE {
            return Err(unsupported(format!("hash type {}", self.hash_type.get())));
        }
        if self.algorithm != ALGORITHM {
            let name = self.algorithm.split(|&b| b == 0).next().unwrap_or_default();
            return Err(unsupported(format!(
                "algorithm \"{}\"",
                name.escape_ascii()
            )));
        }
        for (kind, size) in [
            ("data", self.data_block_size.get()),
            ("hash", self.hash_block_size.get()),
        ] {
            if u64::from(size) != BLOCK {
                return Err(unsupported(format!("{kind} blocks of {size} bytes")));
            }
        }
        let salt_size = usize::from(self.salt_size.get());
        let Some((salt, rest)) = self.salt.split_at_checked(salt_size) else {
            return Err(corrupt(format!(
                "a salt of {salt_size} bytes, more than 256"
            )));
        };
        if [rest, &self.pad1, &self.pad2]
            .iter()
            .any(|pad| pad.iter().any(|&b| b != 0))
        {
            return Err(corrupt("bytes that must be zero are not".into()));
        }
        Ok(Superblock {
            uuid: self.uuid,
            data_blocks: self.data_blocks.get(),
            salt: salt.to_vec(),
        })
    }
}
