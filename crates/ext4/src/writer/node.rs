//! What is kept of an inode until it is written.

use super::options::Metadata;
use super::store::{ArenaRef, Segmented};
use crate::format::inode::{I_BLOCK_SIZE, decode_time, encode_time};
use crate::{FileType, Timestamp};

/// An inode, 56 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    /// Size in bytes; of a directory once it is built.
    pub(super) size: u64,
    mtime: DiskTime,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Blocks of data and of the extent tree.
    pub(super) blocks: u32,
    pub(super) links: u32,
    /// Index + 1 into [`Times`]; 0: all times are `mtime`.
    times: u32,
    /// Number + 1 of its attribute set; 0: none.
    pub(super) xattrs: u32,
    pub(super) data: Data,
    /// Type and permissions; 0: the inode is gone.
    pub(super) mode: u16,
    pub(super) kind: Kind,
}

const _: () = assert!(size_of::<Node>() <= 56);

/// What `i_flags` must say beyond what the type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// A directory with an htree.
    Indexed,
    /// The value of an attribute.
    Value,
}

/// Where an inode's content is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Data {
    None,
    /// One run of blocks from the file's start.
    Run {
        block: u32,
        len: u16,
    },
    /// The root of an extent tree, by index.
    Tree(u32),
    /// A directory that is not built yet: its newest entry and its parent.
    Directory {
        newest: u32,
        parent: u32,
    },
    /// The target of a short symlink.
    Target(ArenaRef),
    /// All of it in the inode.
    Inline(ArenaRef),
    /// The first two words of `i_block`.
    Device([u32; 2]),
    /// The crc32c of an attribute's value, and its first block; `size` tells how many follow.
    Value {
        checksum: u32,
        block: u32,
    },
}

/// Roots of extent trees that one run can't stand for.
pub(super) type Trees = Segmented<[u8; I_BLOCK_SIZE]>;

/// Seconds and `*_extra`, as on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskTime {
    pub(crate) seconds: u32,
    pub(crate) extra: u32,
}

impl From<Timestamp> for DiskTime {
    fn from(time: Timestamp) -> Self {
        let (seconds, extra) = encode_time(time);
        Self { seconds, extra }
    }
}

impl From<DiskTime> for Timestamp {
    fn from(time: DiskTime) -> Self {
        decode_time(time.seconds, Some(time.extra))
    }
}

/// Access and change times of the inodes where they differ from the modification time.
pub(super) type Times = Segmented<[DiskTime; 2]>;

impl Node {
    pub(super) fn new(
        file_type: FileType,
        data: Data,
        metadata: &Metadata,
        times: &mut Times,
    ) -> Self {
        let mut node = Self {
            size: 0,
            mtime: metadata.mtime.into(),
            uid: 0,
            gid: 0,
            blocks: 0,
            links: 0,
            times: 0,
            xattrs: 0,
            data,
            mode: file_type.mode_bits(),
            kind: Kind::Plain,
        };
        node.set_metadata(metadata, times);
        node
    }

    pub(super) fn set_metadata(&mut self, metadata: &Metadata, times: &mut Times) {
        self.mode = self.mode & 0xf000 | metadata.permissions & 0o7777;
        self.uid = metadata.uid;
        self.gid = metadata.gid;
        self.mtime = metadata.mtime.into();
        let others = [metadata.atime.into(), metadata.ctime.into()];
        if others == [self.mtime; 2] {
            self.times = 0;
        } else if self.times == 0 {
            self.times = times.push(others) + 1;
        } else {
            times[self.times - 1] = others;
        }
    }

    pub(super) fn metadata(&self, times: &Times) -> Metadata {
        let [atime, mtime, ctime] = self.times(times);
        Metadata {
            permissions: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            atime: atime.into(),
            mtime: mtime.into(),
            ctime: ctime.into(),
        }
    }

    /// Access, modification and change time.
    pub(super) fn times(&self, times: &Times) -> [DiskTime; 3] {
        let [atime, ctime] = match self.times.checked_sub(1) {
            Some(index) => times[index],
            None => [self.mtime; 2],
        };
        [atime, self.mtime, ctime]
    }

    pub(super) fn file_type(&self) -> Option<FileType> {
        FileType::from_mode(self.mode)
    }
}
