use std::fmt;

use crate::reader::{ReadError, Structure};

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Problem {
    /// The structure breaks the format's rules, or its checksum does not match.
    Malformed,
    /// Something is used that the superblock does not announce.
    Feature,
    /// Blocks have more than one owner.
    Shared,
    /// A number on the disk is not what counting gives.
    Count,
    /// A bitmap is not what is in use.
    Bitmap,
    /// A name leads to nothing, or something in use has no name, or one too many.
    Reference,
    /// The kernel has noted errors in the filesystem.
    Noted,
    /// The check ended early: there was too much to look at.
    Unfinished,
}

/// Something wrong with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is damaged; it names the inode or group.
    pub structure: Structure,
    /// Where it lies in the image, in bytes; 0 where there is no place to name.
    pub offset: u64,
    /// What kind of damage it is.
    pub problem: Problem,
    /// What exactly is wrong.
    pub detail: String,
}

impl Finding {
    /// A finding of what a reader takes for corrupt; other errors are given back.
    pub(super) fn from_error(error: ReadError) -> Result<Self, ReadError> {
        match error {
            ReadError::Corrupt {
                structure,
                offset,
                detail,
            } => Ok(Self {
                structure,
                offset,
                problem: Problem::Malformed,
                detail,
            }),
            other => Err(other),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.structure)?;
        if self.offset != 0 {
            write!(f, " at byte {}", self.offset)?;
        }
        write!(f, ": {}", self.detail)
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// What is wrong, in the order in which it was found. Empty: nothing is.
    pub findings: Vec<Finding>,
    /// Whether everything was looked at. If not, `findings` says why.
    pub complete: bool,
    /// Inodes in use, reserved ones included.
    pub inodes: u64,
    /// Directories.
    pub directories: u64,
    /// Clusters in use (blocks without `bigalloc`).
    pub clusters: u64,
    /// Whether a journal was replayed, in memory, before anything was looked at.
    pub replayed: bool,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}
