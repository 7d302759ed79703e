use lcow_ext4::Timestamp;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file: types `0`, NUL, `7` (contiguous) and GNU's `S` (sparse). The only kind that has data.
    Regular,
    /// Another name of an earlier entry (`1`).
    HardLink,
    /// A symbolic link (`2`).
    Symlink,
    /// A character device (`3`).
    CharDevice,
    /// A block device (`4`).
    BlockDevice,
    /// A directory (`5`; also NUL with a slash at the name's end, as before POSIX).
    Directory,
    /// A FIFO (`6`).
    Fifo,
    /// Any other type byte.
    Other(u8),
}

/// A piece of a sparse file that is stored; what lies between pieces reads as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// An entry with all extended headers applied. Names and numbers are as written: what to make of them is the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where the entry's own header starts in the tar, in bytes.
    pub offset: u64,
    /// The name.
    pub path: Vec<u8>,
    /// The target of a link, hard or symbolic.
    pub link: Vec<u8>,
    /// The type.
    pub kind: Kind,
    /// The mode; its meaning ends at 0o7777.
    pub mode: i64,
    /// The owner.
    pub uid: i64,
    /// The group.
    pub gid: i64,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last access, where the archive says it.
    pub atime: Option<Timestamp>,
    /// Last change of the inode, where the archive says it.
    pub ctime: Option<Timestamp>,
    /// A device's major number.
    pub major: i64,
    /// A device's minor number.
    pub minor: i64,
    /// A regular file's size in bytes, holes included.
    pub size: u64,
    /// The data stored, in bytes.
    pub stored: u64,
    /// The pieces stored, in order, if the file is sparse.
    pub sparse: Option<Vec<Segment>>,
    /// Extended attributes: full name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            offset: 0,
            path: Vec::new(),
            link: Vec::new(),
            kind: Kind::Regular,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            atime: None,
            ctime: None,
            major: 0,
            minor: 0,
            size: 0,
            stored: 0,
            sparse: None,
            xattrs: Vec::new(),
        }
    }
}
