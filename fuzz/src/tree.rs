//! All that a disk holds, as the reader reads it.

use std::collections::BTreeMap;

use lcow_blockio::ReadAt;
use lcow_ext4::reader::{FileData, Filesystem, ReadError};
use lcow_ext4::{FileType, Timestamp};

/// A file as a target compares it. Files with the same `identity` are one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) identity: usize,
    pub(crate) kind: Kind,
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    /// Size, and the pieces that are not zeros in whole steps of [`GRAIN`].
    File(u64, Pieces),
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Socket,
}

/// Pieces of a file: offset and bytes.
pub(crate) type Pieces = Vec<(u64, Vec<u8>)>;

/// Bytes of a file that are kept or left out together.
pub(crate) const GRAIN: usize = 512;

/// Path to file; the root's path is empty.
pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

/// What of a file is not zeros.
pub(crate) fn grains(offset: u64, bytes: &[u8], into: &mut Pieces) {
    for (grain, at) in bytes.chunks(GRAIN).zip((offset..).step_by(GRAIN)) {
        if grain.iter().any(|&b| b != 0) {
            into.push((at, grain.to_vec()));
        }
    }
}

/// Reads everything. `None`: it is more than `limit` bytes of data.
pub(crate) fn read<R: ReadAt>(fs: &Filesystem<R>, limit: usize) -> Result<Option<Tree>, ReadError> {
    let mut tree = Tree::new();
    let mut left = limit;
    let root = fs.root()?;
    let mut walk = fs.walk(&root)?;
    let mut next = Some((Vec::new(), root));
    while let Some((path, inode)) = next {
        let kind = match inode.file_type {
            FileType::Directory => Kind::Directory,
            FileType::Regular => {
                let file = fs.open_file(&inode)?;
                let Some(pieces) = pieces(&file, &mut left)? else {
                    return Ok(None);
                };
                Kind::File(inode.size, pieces)
            }
            FileType::Symlink => Kind::Symlink(fs.read_link(&inode)?),
            FileType::CharDevice | FileType::BlockDevice => {
                let device = inode.device().unwrap_or_default();
                if inode.file_type == FileType::CharDevice {
                    Kind::Char(device.major, device.minor)
                } else {
                    Kind::Block(device.major, device.minor)
                }
            }
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
        };
        let xattrs = fs.xattrs(&inode)?;
        let node = Node {
            identity: usize::try_from(inode.number.0).unwrap_or(0),
            kind,
            permissions: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: xattrs.into_iter().map(|x| (x.name, x.value)).collect(),
        };
        assert!(
            tree.insert(path, node).is_none(),
            "the reader gave one path twice"
        );
        next = match walk.next() {
            Some(walked) => {
                let walked = walked?;
                Some((walked.path, walked.inode))
            }
            None => None,
        };
    }
    Ok(Some(tree))
}

fn pieces<R: ReadAt>(
    file: &FileData<'_, R>,
    left: &mut usize,
) -> Result<Option<Pieces>, ReadError> {
    let mut pieces = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    while let Some(data) = file.next_data(at) {
        at = data.start - data.start % GRAIN as u64;
        while at < data.end {
            let n = file.read_at(at, &mut buffer)?;
            assert!(n > 0, "a file ends before its data");
            let Some(rest) = left.checked_sub(n) else {
                return Ok(None);
            };
            *left = rest;
            // What a read brought beyond this run is kept too: it comes again only if it is not past `at`.
            grains(at, &buffer[..n], &mut pieces);
            at += n as u64;
        }
    }
    Ok(Some(pieces))
}
