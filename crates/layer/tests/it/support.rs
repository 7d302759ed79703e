//! Trees as tests compare them, and tars made by hand.

use std::collections::BTreeMap;

use lcow_blockio::{MemDisk, ReadAt};
use lcow_ext4::reader::{Filesystem, Inode};
use lcow_ext4::{FileType, InodeNumber, Timestamp};
use lcow_layer::apply::{Applied, ApplyError, ApplyOptions, apply};
use lcow_layer::digest::{Digest, Hasher};

/// A file as a test sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) links: u64,
    pub(crate) mtime: Timestamp,
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) content: Option<Digest>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) inode: InodeNumber,
}

/// Path (without a slash in front; the root is the empty one) to file.
pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

/// All that a disk holds.
pub(crate) fn tree<R: ReadAt>(disk: R) -> Tree {
    let fs = Filesystem::open(disk).unwrap();
    let mut tree = Tree::new();
    let mut pending = vec![(Vec::new(), fs.root().unwrap())];
    while let Some((path, inode)) = pending.pop() {
        if inode.file_type == FileType::Directory {
            for entry in fs.read_dir(&inode).unwrap() {
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(&entry.name);
                pending.push((below, fs.inode(entry.inode).unwrap()));
            }
        }
        let node = node(&fs, &inode);
        assert!(tree.insert(path, node).is_none());
    }
    tree
}

fn node<R: ReadAt>(fs: &Filesystem<R>, inode: &Inode) -> Node {
    let regular = inode.file_type == FileType::Regular;
    Node {
        mode: inode.mode(),
        uid: inode.uid,
        gid: inode.gid,
        size: inode.size,
        links: inode.links.into(),
        mtime: inode.mtime,
        device: inode.device().map(|d| (d.major, d.minor)),
        link: (inode.file_type == FileType::Symlink).then(|| fs.read_link(inode).unwrap()),
        content: (regular && inode.size <= 1 << 30).then(|| hash(fs, inode)),
        xattrs: fs
            .xattrs(inode)
            .unwrap()
            .into_iter()
            .map(|x| (x.name, x.value))
            .collect(),
        inode: inode.number,
    }
}

fn hash<R: ReadAt>(fs: &Filesystem<R>, inode: &Inode) -> Digest {
    let file = fs.open_file(inode).unwrap();
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let n = file.read_at(offset, &mut buffer).unwrap();
        if n == 0 {
            return hasher.finish();
        }
        hasher.update(&buffer[..n]);
        offset += n as u64;
    }
}

/// A tar applied in memory.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) disk: MemDisk,
    pub(crate) split: Vec<u8>,
    pub(crate) applied: Applied,
}

pub(crate) fn make_with(tar: &[u8], options: &ApplyOptions) -> Result<Made, ApplyError> {
    let disk = MemDisk::new();
    let mut split = Vec::new();
    let applied = apply(tar, &disk, Some(&mut split), options)?;
    Ok(Made {
        disk,
        split,
        applied,
    })
}

pub(crate) fn make(tar: &[u8]) -> Result<Made, ApplyError> {
    make_with(tar, &ApplyOptions::default())
}
