use std::fmt;
use std::io;

use crate::InodeNumber;

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The image contradicts the format or itself. Nothing is guessed or repaired.
    #[error("corrupt {structure} at byte {offset}: {detail}")]
    Corrupt {
        /// What is damaged.
        structure: Structure,
        /// Where it lies in the image, in bytes.
        offset: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// The image is (as far as seen) in order but uses something that this reader does not read.
    #[error("unsupported ext4 feature: {feature}")]
    Unsupported {
        /// The feature's name, as `dumpe2fs` spells it where it has a name there.
        feature: String,
    },
    /// The disk below failed.
    #[error("{operation} at byte {offset}: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// Where, in bytes from the image's start.
        offset: u64,
        /// The disk's error.
        #[source]
        source: io::Error,
    },
    /// No such path.
    #[error("{}: no such file or directory", String::from_utf8_lossy(path))]
    NotFound {
        /// The path up to and including the name that is missing.
        path: Vec<u8>,
    },
    /// Something other than a directory was used as one.
    #[error("inode {inode} is not a directory")]
    NotADirectory {
        /// The inode used.
        inode: InodeNumber,
    },
    /// Something other than a symbolic link was used as one.
    #[error("inode {inode} is not a symbolic link")]
    NotASymlink {
        /// The inode used.
        inode: InodeNumber,
    },
    /// The content of something other than a regular file was asked for.
    #[error("inode {inode} is not a regular file")]
    NotAFile {
        /// The inode used.
        inode: InodeNumber,
    },
}

/// The classes that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadErrorKind {
    /// The image is damaged.
    Corrupt,
    /// The image needs something that is not supported.
    Unsupported,
    /// The disk failed.
    Io,
    /// The question does not fit the file: no such path, not a directory, …
    Usage,
}

impl ReadError {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ReadErrorKind {
        match self {
            Self::Corrupt { .. } => ReadErrorKind::Corrupt,
            Self::Unsupported { .. } => ReadErrorKind::Unsupported,
            Self::Io { .. } => ReadErrorKind::Io,
            Self::NotFound { .. }
            | Self::NotADirectory { .. }
            | Self::NotASymlink { .. }
            | Self::NotAFile { .. } => ReadErrorKind::Usage,
        }
    }

    pub(crate) fn corrupt(structure: Structure, offset: u64, detail: impl Into<String>) -> Self {
        Self::Corrupt {
            structure,
            offset,
            detail: detail.into(),
        }
    }

    pub(crate) fn unsupported(feature: impl Into<String>) -> Self {
        Self::Unsupported {
            feature: feature.into(),
        }
    }
}

/// What becomes of corruption that leaves something to look at: reading ends there, verifying goes on.
#[derive(Debug)]
pub(crate) struct Objections(Option<Vec<ReadError>>);

impl Objections {
    /// More than these, and even the verifier has seen enough.
    const MOST: usize = 1000;

    pub(crate) fn fatal() -> Self {
        Self(None)
    }

    /// Whether the first of them ends the reading.
    pub(crate) fn are_fatal(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn gather() -> Self {
        Self(Some(Vec::new()))
    }

    /// Ends the reading, or keeps what is corrupt for later.
    pub(crate) fn object(&mut self, error: ReadError) -> Result<(), ReadError> {
        match &mut self.0 {
            Some(list) if error.kind() == ReadErrorKind::Corrupt && list.len() < Self::MOST => {
                list.push(error);
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Whether there is a list for what does not keep a reader from going on.
    pub(crate) fn note(&mut self, error: ReadError) {
        if let Some(list) = &mut self.0 {
            list.push(error);
        }
    }

    pub(crate) fn into_list(self) -> Vec<ReadError> {
        self.0.unwrap_or_default()
    }
}

/// The parts of an ext4 image that an error can point at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// The superblock.
    Superblock,
    /// The descriptor of a block group.
    GroupDescriptor(u32),
    /// An inode, its in-inode attributes included.
    Inode(InodeNumber),
    /// The extent tree of an inode.
    ExtentTree(InodeNumber),
    /// The (indirect) block map of an inode.
    BlockMap(InodeNumber),
    /// The entries of a directory.
    Directory(InodeNumber),
    /// The hash tree of a directory.
    HashTree(InodeNumber),
    /// The extended attributes of an inode.
    Xattrs(InodeNumber),
    /// The target of a symbolic link.
    Symlink(InodeNumber),
    /// The journal.
    Journal,
    /// The block bitmap of a group.
    BlockBitmap(u32),
    /// The inode bitmap of a group.
    InodeBitmap(u32),
    /// The list of inodes deleted or cut while open.
    Orphans,
    /// A quota file.
    Quota(InodeNumber),
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::GroupDescriptor(n) => write!(f, "group descriptor {n}"),
            Self::Inode(n) => write!(f, "inode {n}"),
            Self::ExtentTree(n) => write!(f, "extent tree of inode {n}"),
            Self::BlockMap(n) => write!(f, "block map of inode {n}"),
            Self::Directory(n) => write!(f, "directory of inode {n}"),
            Self::HashTree(n) => write!(f, "hash tree of directory inode {n}"),
            Self::Xattrs(n) => write!(f, "extended attributes of inode {n}"),
            Self::Symlink(n) => write!(f, "symbolic link of inode {n}"),
            Self::Journal => f.write_str("journal"),
            Self::BlockBitmap(n) => write!(f, "block bitmap of group {n}"),
            Self::InodeBitmap(n) => write!(f, "inode bitmap of group {n}"),
            Self::Orphans => f.write_str("orphan list"),
            Self::Quota(n) => write!(f, "quota file of inode {n}"),
        }
    }
}
