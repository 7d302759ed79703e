use std::io;

use lcow_disk::verity::VerityError;
use lcow_disk::vhd::VhdError;
use lcow_ext4::writer::{WriteError, WriteErrorKind};

use crate::compress::Compression;
use crate::tar::{Malformed, TarError};
use crate::{EntryName, ErrorKind};

/// Why a well-formed entry is not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// `..` leads out of the root.
    #[error("the name leaves the root")]
    LeavesRoot,
    /// A hard link's target leads out of the root.
    #[error("the hard link's target {0} leaves the root")]
    TargetLeavesRoot(EntryName),
    /// A file's name is empty, or is the root's.
    #[error("the name is empty, or names the root, and this is not a directory")]
    NoName,
    /// A component of the path is longer than 255 bytes.
    #[error("a component of the path has {0} bytes, more than 255")]
    NameTooLong(usize),
    /// The name or the target holds a zero byte.
    #[error("the name or the link's target holds a zero byte")]
    ZeroByte,
    /// A component of the path is a symlink, which is never followed.
    #[error("{0} in the path is a symbolic link, and links are never followed")]
    SymlinkInPath(EntryName),
    /// A component of a hard link's target is a symlink.
    #[error("{0} in the hard link's target is a symbolic link, and links are never followed")]
    SymlinkInTarget(EntryName),
    /// A component of the path is a file.
    #[error("{0} in the path is not a directory")]
    NotADirectory(EntryName),
    /// A component of the path is a whiteout's name.
    #[error("{0} in the path is a whiteout, and nothing can lie below one")]
    BelowWhiteout(EntryName),
    /// The whiteout deletes nothing that could exist.
    #[error("the whiteout names nothing, or the directory itself")]
    EmptyWhiteout,
    /// The whiteout is not a regular file.
    #[error("a whiteout must be a regular file")]
    WhiteoutType,
    /// A hard link to something that the archive did not bring before.
    #[error("the hard link's target {0} does not exist")]
    MissingTarget(EntryName),
    /// A hard link to a directory.
    #[error("the hard link's target {0} is a directory")]
    LinkToDirectory(EntryName),
    /// More than 65,000 names of one file.
    #[error("the file would have more than 65000 links")]
    TooManyLinks,
    /// A symlink without a target, or one longer than 4,095 bytes.
    #[error("a symbolic link's target of {0} bytes is empty or longer than 4095")]
    SymlinkTarget(usize),
    /// A number is larger than the file system can hold.
    #[error("{field} {value} does not fit")]
    OutOfRange {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// The type is one that has no meaning in a layer.
    #[error("entries of type {0:?} are not supported")]
    Type(char),
    /// More data than the maximum disk size.
    #[error("the disk would be larger than {0} bytes")]
    TooLarge(u64),
    /// The disk's own limits, as the writer says them.
    #[error("{0}")]
    Disk(String),
}

/// Why a tar could not become a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// An entry is hostile, meaningless or past a limit.
    #[error("entry {entry} at byte {offset} of the tar is refused: {reason}")]
    Refused {
        /// The entry's name.
        entry: EntryName,
        /// Where its header starts in the plain tar, in bytes.
        offset: u64,
        /// Why.
        reason: Refusal,
    },
    /// The tar ends inside an entry, or before the entry that an extended header announces.
    #[error("the tar is cut short: it ends at byte {offset}{}", inside(.entry.as_ref()))]
    Truncated {
        /// The entry that it ends in, where its name is known.
        entry: Option<EntryName>,
        /// The plain tar's length in bytes.
        offset: u64,
    },
    /// The tar contradicts its own format.
    #[error("the tar is damaged at byte {offset}{}: {reason}", inside(.entry.as_ref()))]
    BadArchive {
        /// The entry, where its name is known.
        entry: Option<EntryName>,
        /// Where its header starts in the plain tar, in bytes.
        offset: u64,
        /// What is wrong.
        reason: Malformed,
    },
    /// The input does not start as any tar does.
    #[error("the input is not a tar: {reason}")]
    NotATar {
        /// What it is missing.
        reason: &'static str,
    },
    /// The compressed stream is damaged or cut short.
    #[error("the {format} stream is damaged (after {offset} bytes of the tar in it)")]
    Compression {
        /// The compression found.
        format: Compression,
        /// How much of the plain tar came out before, in bytes.
        offset: u64,
        /// What the decoder says.
        source: io::Error,
    },
    /// The input expands to more than the limit.
    #[error(
        "the {format} stream expands more than {max_ratio} times (to over {offset} bytes): a decompression bomb"
    )]
    Ratio {
        /// The compression found.
        format: Compression,
        /// How much of the plain tar came out, in bytes.
        offset: u64,
        /// The limit.
        max_ratio: u32,
    },
    /// Reading the input or writing the sidecar failed.
    #[error("can't {operation} (at byte {offset} of the tar)")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// Where in the plain tar, in bytes.
        offset: u64,
        /// The error.
        source: io::Error,
    },
    /// The disk could not be written.
    #[error("can't write the disk")]
    Disk(#[from] WriteError),
    /// The verity tree could not be built.
    #[error("can't build the verity tree")]
    Verity(#[from] VerityError),
    /// The VHD footer could not be written.
    #[error("can't write the VHD footer")]
    Vhd(#[from] VhdError),
}

fn inside(entry: Option<&EntryName>) -> String {
    entry.map_or_else(String::new, |name| format!(" in entry {name}"))
}

impl ApplyError {
    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused {
                reason: Refusal::Type(_),
                ..
            } => ErrorKind::Unsupported,
            Self::Refused { .. } | Self::Ratio { .. } | Self::Verity(VerityError::Salt { .. }) => {
                ErrorKind::Refused
            }
            Self::BadArchive { reason, .. } if reason.is_limit() => ErrorKind::Refused,
            Self::Truncated { .. }
            | Self::BadArchive { .. }
            | Self::NotATar { .. }
            | Self::Compression { .. } => ErrorKind::Corrupt,
            Self::Io { .. } | Self::Verity(_) | Self::Vhd(_) => ErrorKind::Io,
            Self::Disk(e) => match e.kind() {
                WriteErrorKind::Refused => ErrorKind::Refused,
                WriteErrorKind::Io | WriteErrorKind::Misuse => ErrorKind::Io,
            },
        }
    }
}

impl From<TarError> for ApplyError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Malformed {
                entry,
                offset,
                reason,
            } => Self::BadArchive {
                entry,
                offset,
                reason,
            },
            TarError::Truncated { entry, offset } => Self::Truncated { entry, offset },
            TarError::NotATar { reason } => Self::NotATar { reason },
            TarError::Io {
                operation,
                offset,
                source,
            } => match source.downcast::<Self>() {
                // The pipeline's own errors travel through the reader as they are.
                Ok(error) => error,
                Err(source) => Self::Io {
                    operation,
                    offset,
                    source,
                },
            },
        }
    }
}
