use std::io;

use crate::EntryName;

/// How a tar contradicts its own format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The header's checksum is not that of its bytes.
    #[error("the header's checksum is wrong")]
    Checksum,
    /// A numeric field holds something else, or a number that does not fit.
    #[error("the header's field {0} is not a number that fits")]
    Number(&'static str),
    /// A regular file of negative size.
    #[error("the size is negative")]
    NegativeSize,
    /// A PAX header's records do not follow their form.
    #[error("the PAX header is malformed: {0}")]
    Pax(&'static str),
    /// A PAX header, GNU long name or sparse map of more than 1 MiB.
    #[error("{0} is larger than 1 MiB")]
    TooLong(&'static str),
    /// A sparse map that is not in order, leaves the file, or does not match the data.
    #[error("the sparse map is wrong: {0}")]
    Sparse(&'static str),
    /// A block of zeros and then no second one.
    #[error("a single block of zeros, with more entries behind it")]
    LoneZeroBlock,
    /// Something other than padding behind the end.
    #[error("there is something other than padding after the end of the archive")]
    TrailingGarbage,
}

impl Malformed {
    /// Whether the input is past a limit rather than wrong.
    #[must_use]
    pub fn is_limit(self) -> bool {
        matches!(self, Self::TooLong(_))
    }
}

/// Why a tar could not be read on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The archive contradicts its own format.
    #[error("damaged at byte {offset}: {reason}")]
    Malformed {
        /// The entry's name, once known.
        entry: Option<EntryName>,
        /// Where its header starts, in bytes.
        offset: u64,
        /// What is wrong.
        reason: Malformed,
    },
    /// The archive ends inside an entry.
    #[error("cut short at byte {offset}")]
    Truncated {
        /// The entry's name, once known.
        entry: Option<EntryName>,
        /// The archive's length in bytes.
        offset: u64,
    },
    /// The input does not start as any tar does.
    #[error("not a tar: {reason}")]
    NotATar {
        /// What it is missing.
        reason: &'static str,
    },
    /// The input or the recorder failed.
    #[error("can't {operation} at byte {offset} of the tar")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// Where in the tar, in bytes.
        offset: u64,
        /// The error.
        source: io::Error,
    },
}
