use crate::{Device, Timestamp};

/// What a [`Writer`](super::Writer) should make.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WriterOptions {
    /// The largest filesystem to make, in bytes: 1 MiB … 16 TiB, 128 GiB by default. It decides how much room the group
    /// descriptors get in front of the data (a hole where it isn't needed), so it is part of what makes the bytes the same.
    pub max_size: u64,
    /// Sets the `read-only` feature, so that no kernel mounts it for writing. On by default.
    pub read_only: bool,
    /// Keeps files of up to 128 bytes and small directories in their inodes, where their attributes leave room. Off by default:
    /// the kernel reads it from 3.8 on, other readers often don't.
    pub inline_data: bool,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            max_size: 128 << 30,
            read_only: true,
            inline_data: false,
        }
    }
}

/// What every inode has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permissions with setuid, setgid and sticky: 0 … 0o7777. Higher bits are ignored.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the data. The creation time is set to it too: there is no clock here.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
}

/// What to create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// A regular file, empty until data is written.
    Regular,
    /// A directory.
    Directory,
    /// A symlink with its target: 1 … 4,095 bytes without a zero.
    Symlink(&'a [u8]),
    /// A character device; 0:0 is overlayfs's whiteout.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

/// What sets a filesystem apart from another with the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The filesystem's UUID.
    pub uuid: [u8; 16],
    /// The seed of directory hashes.
    pub hash_seed: [u8; 16],
}

/// What a finished filesystem is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Its size in bytes, and the disk's.
    pub size_bytes: u64,
    /// Its blocks of 4 KiB.
    pub blocks: u64,
    /// Blocks that hold nothing.
    pub free_blocks: u64,
    /// Inodes there is room for.
    pub inodes: u32,
    /// Inodes that hold nothing.
    pub free_inodes: u32,
}
