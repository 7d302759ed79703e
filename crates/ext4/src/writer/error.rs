use std::io;

use crate::InodeNumber;

/// What a [`WriteError`] is, for those who must decide rather than report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteErrorKind {
    /// The filesystem cannot hold what was asked of it. The writer is as it was before the call and can go on, except after
    /// [`WriteError::TooLarge`].
    Refused,
    /// The disk failed. What it holds is of no use.
    Io,
    /// The calls do not fit together (data without `begin_data`, a number that no inode has): a bug of the caller.
    Misuse,
}

/// Why the writer could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The filesystem would be larger than [`WriterOptions::max_size`](super::WriterOptions::max_size).
    #[error("the filesystem would be larger than {max_size} bytes")]
    TooLarge {
        /// The limit in bytes.
        max_size: u64,
    },
    /// [`WriterOptions::max_size`](super::WriterOptions::max_size) is out of its range.
    #[error("a maximum size of {max_size} bytes is not between 1 MiB and 16 TiB")]
    MaxSize {
        /// The size asked for, in bytes.
        max_size: u64,
    },
    /// A file larger than the 2³² − 1 blocks that an extent tree can address.
    #[error("inode {inode}: a file of {size} bytes is larger than ext4 can hold")]
    FileTooLarge {
        /// The file.
        inode: InodeNumber,
        /// Its size in bytes so far.
        size: u64,
    },
    /// More inodes than the maximum size has room for.
    #[error("more inodes than the filesystem can hold")]
    TooManyInodes,
    /// The name is in use.
    #[error("{:?} exists in directory {dir}", String::from_utf8_lossy(name))]
    Exists {
        /// The directory.
        dir: InodeNumber,
        /// The name.
        name: Vec<u8>,
    },
    /// There is no such name.
    #[error("there is no {:?} in directory {dir}", String::from_utf8_lossy(name))]
    NotFound {
        /// The directory.
        dir: InodeNumber,
        /// The name.
        name: Vec<u8>,
    },
    /// The name is empty, `.`, `..`, or holds a slash or a zero byte.
    #[error("{:?} can't be the name of a file", String::from_utf8_lossy(name))]
    InvalidName {
        /// The name.
        name: Vec<u8>,
    },
    /// The name is longer than 255 bytes.
    #[error("a name of {len} bytes is longer than the 255 that ext4 takes")]
    NameTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// More than 65,000 links.
    #[error("inode {inode} would have more than 65000 links")]
    TooManyLinks {
        /// The file.
        inode: InodeNumber,
    },
    /// A hard link to a directory.
    #[error("inode {inode} is a directory, which can't have a second name")]
    LinkToDirectory {
        /// The directory.
        inode: InodeNumber,
    },
    /// A symlink's target is empty, longer than 4,095 bytes, or holds a zero byte.
    #[error("a symlink's target of {len} bytes is empty, longer than 4095, or holds a zero byte")]
    InvalidTarget {
        /// Its length in bytes.
        len: usize,
    },
    /// A device number beyond 12 bits of major and 20 bits of minor.
    #[error("device {major}:{minor} is beyond the 4095:1048575 that Linux takes")]
    DeviceOutOfRange {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// ext4 has no place for this attribute's namespace, or its name is empty or too long.
    #[error(
        "ext4 can't hold an attribute named {:?}",
        String::from_utf8_lossy(name)
    )]
    XattrName {
        /// The attribute.
        name: Vec<u8>,
    },
    /// The attribute comes twice.
    #[error("attribute {:?} is given twice", String::from_utf8_lossy(name))]
    XattrTwice {
        /// The attribute.
        name: Vec<u8>,
    },
    /// The value is no POSIX ACL.
    #[error("the value of {:?} is not a POSIX ACL", String::from_utf8_lossy(name))]
    InvalidAcl {
        /// The attribute.
        name: Vec<u8>,
    },
    /// The value is larger than the 64 KiB that Linux takes.
    #[error(
        "the value of attribute {:?}, {len} bytes, is too large",
        String::from_utf8_lossy(name)
    )]
    XattrTooLarge {
        /// The attribute.
        name: Vec<u8>,
        /// The value's length in bytes.
        len: usize,
    },
    /// The attributes do not fit into a block together.
    #[error("{len} bytes of attributes on inode {inode} are more than ext4 can hold")]
    TooManyXattrs {
        /// The file.
        inode: InodeNumber,
        /// The space they would take, in bytes.
        len: usize,
    },
    /// No inode has this number, or it is gone.
    #[error("there is no inode {inode}")]
    NoSuchInode {
        /// The number.
        inode: InodeNumber,
    },
    /// The inode is not a directory.
    #[error("inode {inode} is not a directory")]
    NotADirectory {
        /// The inode.
        inode: InodeNumber,
    },
    /// The inode is not a regular file.
    #[error("inode {inode} is not a regular file")]
    NotARegularFile {
        /// The inode.
        inode: InodeNumber,
    },
    /// The file already has data.
    #[error("inode {inode} already has its data")]
    HasData {
        /// The file.
        inode: InodeNumber,
    },
    /// A file's data was begun and not ended.
    #[error("inode {inode}'s data has not been ended")]
    DataOpen {
        /// The file.
        inode: InodeNumber,
    },
    /// No file's data was begun.
    #[error("no file's data has been begun")]
    NoDataOpen,
    /// The disk failed.
    #[error("can't {operation} at byte {offset} of the disk")]
    Io {
        /// What was being done: "write", "read back", "zero", "set the length".
        operation: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// The error.
        source: io::Error,
    },
}

impl WriteError {
    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> WriteErrorKind {
        match self {
            Self::Io { .. } => WriteErrorKind::Io,
            Self::NoSuchInode { .. }
            | Self::NotADirectory { .. }
            | Self::NotARegularFile { .. }
            | Self::HasData { .. }
            | Self::DataOpen { .. }
            | Self::NoDataOpen
            | Self::MaxSize { .. } => WriteErrorKind::Misuse,
            _ => WriteErrorKind::Refused,
        }
    }

    pub(crate) fn io(operation: &'static str, offset: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            operation,
            offset,
            source,
        }
    }
}
