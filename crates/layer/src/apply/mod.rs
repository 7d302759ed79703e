//! tar → disk, in one pass.

mod error;

use std::io::{Read, Write};

use lcow_blockio::WriteAt;

use crate::digest::Digest;

pub use error::{ApplyError, Refusal};

/// How a tar is to be applied.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// Turns OCI whiteouts into overlayfs's; off, `.wh.` names are names like any other. On by default.
    pub overlay: bool,
    /// The largest disk to make, in bytes: up to 16 TiB, 128 GiB by default. Part of what the disk's bytes follow from.
    pub max_size: u64,
    /// Puts a fixed VHD's footer behind the file system. Off by default.
    pub vhd: bool,
    /// How many times larger than the compressed input the tar may be, once it is over [`ratio_floor`](Self::ratio_floor).
    pub max_ratio: u32,
    /// Up to this many bytes of tar no ratio is too high; 1 GiB by default.
    pub ratio_floor: u64,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self {
            overlay: true,
            max_size: 128 << 30,
            vhd: false,
            // Deflate's own limit is 1,032.
            max_ratio: 1100,
            ratio_floor: 1 << 30,
        }
    }
}

/// A compressed input, as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressedInput {
    /// The compression.
    pub format: crate::compress::Compression,
    /// The digest of all compressed bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// What was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the plain tar, all of it.
    pub diff_id: Digest,
    /// The plain tar's size in bytes.
    pub tar_size: u64,
    /// Entries in the tar, extended headers not counted, whiteouts and later replaced ones included.
    pub entries: u64,
    /// The file system's size in bytes; a VHD footer comes on top.
    pub disk_size: u64,
    /// For a compressed input, what was read.
    pub compressed: Option<CompressedInput>,
}

/// Makes a disk of a layer's tar.
pub fn apply<D: WriteAt>(
    input: impl Read + Send,
    disk: D,
    split: Option<&mut dyn Write>,
    options: &ApplyOptions,
) -> Result<Applied, ApplyError> {
    let _ = (input, disk, split, options);
    Err(ApplyError::NotATar {
        reason: "it is empty",
    })
}
