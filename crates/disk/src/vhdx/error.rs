use std::fmt;
use std::io;

/// The parts of a file that can be damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// The file itself: its length, its type identifier.
    File,
    /// A header.
    Header,
    /// A region table.
    RegionTable,
    /// The log.
    Log,
    /// The metadata table or an item in it.
    Metadata,
    /// The block allocation table.
    Bat,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Header => "header",
            Self::RegionTable => "region table",
            Self::Log => "log",
            Self::Metadata => "metadata",
            Self::Bat => "block allocation table",
        })
    }
}

/// What is wrong with a VHDX, or with what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum VhdxError {
    /// Not a VHDX, or a damaged one.
    #[error("a damaged VHDX: {structure} at byte {offset}: {detail}")]
    Corrupt {
        /// What is damaged.
        structure: Structure,
        /// Where in the file, in bytes.
        offset: u64,
        /// What was found, and what should have been.
        detail: String,
    },
    /// A good VHDX that uses what is not known here.
    #[error("a VHDX with {what} is not supported")]
    Unsupported {
        /// What is not known.
        what: String,
    },
    /// A VHDX that names another file as its parent. Following it could open any file on the host, so none is.
    #[error(
        "a differencing VHDX is refused: its data is in a parent file, and parents are never followed"
    )]
    Differencing,
    /// What was asked for can't be.
    #[error("{what}")]
    Refused {
        /// Why not.
        what: String,
    },
    /// Reading or writing failed.
    #[error("{operation} the VHDX at byte {offset}")]
    Io {
        /// `reading`, `writing`, …
        operation: &'static str,
        /// Where in the file, in bytes.
        offset: u64,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

impl VhdxError {
    pub(super) fn corrupt(structure: Structure, offset: u64, detail: impl Into<String>) -> Self {
        Self::Corrupt {
            structure,
            offset,
            detail: detail.into(),
        }
    }

    pub(super) fn refused(what: impl Into<String>) -> Self {
        Self::Refused { what: what.into() }
    }

    /// For `map_err`: reading at `offset` failed. A read that ends early means that the file is cut short.
    pub(super) fn reading(structure: Structure, offset: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                Self::corrupt(structure, offset, "the file ends before it does")
            }
            _ => Self::Io {
                operation: "reading",
                offset,
                source,
            },
        }
    }

    pub(super) fn io(operation: &'static str, offset: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            operation,
            offset,
            source,
        }
    }
}

/// For the traits of `lcow_blockio`; the VHDX's error stays the source, and can be had by downcast.
impl From<VhdxError> for io::Error {
    fn from(error: VhdxError) -> Self {
        let kind = match &error {
            VhdxError::Corrupt { .. } => io::ErrorKind::InvalidData,
            VhdxError::Unsupported { .. } => io::ErrorKind::Unsupported,
            VhdxError::Differencing | VhdxError::Refused { .. } => io::ErrorKind::InvalidInput,
            VhdxError::Io { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}
