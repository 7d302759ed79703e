//! All that the reader says about an image, as a list that can be compared.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use lcow_blockio::ReadAt;
use lcow_ext4::FileType;
use lcow_ext4::reader::{Filesystem, ReadError};
use sha2::{Digest, Sha256};

/// A place for images that come and go: in memory where there is one, since mounts sync a lot.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// 0 for directories, whose size means nothing.
    pub(crate) size: u64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u64,
    /// Of regular files.
    pub(crate) sha256: Option<String>,
    pub(crate) xattrs: BTreeMap<String, String>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) device: Option<(u32, u32)>,
}

pub(crate) type Tree = BTreeMap<Vec<u8>, Entry>;

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads everything: every file's metadata, attributes and content. `hash`: contents are hashed, holes and all;
/// else only what the disk holds is read.
pub(crate) fn read_all<R: ReadAt>(fs: &Filesystem<R>, hash: bool) -> Result<Tree, ReadError> {
    let mut tree = Tree::new();
    let mut buf = vec![0; 1 << 18];
    let root = fs.root()?;
    fs.xattrs(&root)?;
    for walked in fs.walk(&root)? {
        let walked = walked?;
        let inode = &walked.inode;
        let mut entry = Entry {
            mode: u32::from(inode.mode()),
            uid: inode.uid,
            gid: inode.gid,
            size: if inode.is_dir() { 0 } else { inode.size },
            mtime: (inode.mtime.secs, inode.mtime.nanos),
            links: u64::from(inode.links),
            device: inode.device().map(|d| (d.major, d.minor)),
            ..Entry::default()
        };
        for xattr in fs.xattrs(inode)? {
            let name = String::from_utf8_lossy(&xattr.name).into_owned();
            entry.xattrs.insert(name, hex(&xattr.value));
        }
        match inode.file_type {
            FileType::Symlink => entry.link = Some(fs.read_link(inode)?),
            FileType::Regular => entry.sha256 = content(fs, inode, hash, &mut buf)?,
            _ => {}
        }
        tree.insert(walked.path, entry);
    }
    Ok(tree)
}

fn content<R: ReadAt>(
    fs: &Filesystem<R>,
    inode: &lcow_ext4::reader::Inode,
    hash: bool,
    buf: &mut [u8],
) -> Result<Option<String>, ReadError> {
    let file = fs.open_file(inode)?;
    let mut digest = Sha256::new();
    let mut at = 0;
    while at < file.size() {
        if !hash {
            match file.next_data(at) {
                Some(data) => at = data.start,
                None => break,
            }
        }
        let n = file.read_at(at, buf)?;
        assert!(n > 0, "a read inside the file gives bytes");
        if hash {
            digest.update(&buf[..n]);
        }
        at += n as u64;
    }
    Ok(hash.then(|| hex(&digest.finalize())))
}

/// The same of a tree that the kernel shows.
pub(crate) fn kernel_tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut stack = vec![root.to_owned()];
    while let Some(dir) = stack.pop() {
        for item in std::fs::read_dir(&dir).unwrap() {
            let path = item.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let mut entry = Entry {
                mode: meta.mode(),
                uid: meta.uid(),
                gid: meta.gid(),
                size: if kind.is_dir() { 0 } else { meta.size() },
                mtime: (meta.mtime(), meta.mtime_nsec() as u32),
                links: meta.nlink(),
                ..Entry::default()
            };
            if kind.is_char_device() || kind.is_block_device() {
                let device = meta.rdev();
                entry.device = Some((rustix::fs::major(device), rustix::fs::minor(device)));
            }
            if kind.is_symlink() {
                let target = std::fs::read_link(&path).unwrap();
                entry.link = Some(target.into_os_string().into_encoded_bytes());
            }
            if kind.is_file() {
                let mut file = std::fs::File::open(&path).unwrap();
                entry.sha256 = Some(hash_file(&mut file));
            }
            entry.xattrs = kernel_xattrs(&path);
            if kind.is_dir() {
                stack.push(path.clone());
            }
            let below = path.strip_prefix(root).unwrap();
            tree.insert(below.as_os_str().as_encoded_bytes().to_vec(), entry);
        }
    }
    tree
}

fn hash_file(file: &mut std::fs::File) -> String {
    let mut digest = Sha256::new();
    let mut buf = vec![0; 1 << 18];
    loop {
        let n = file.read(&mut buf).unwrap();
        if n == 0 {
            return hex(&digest.finalize());
        }
        digest.update(&buf[..n]);
    }
}

fn kernel_xattrs(path: &Path) -> BTreeMap<String, String> {
    let mut names = vec![0; 1 << 16];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names[..n]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = std::str::from_utf8(name).unwrap();
            let mut value = vec![0; 1 << 16];
            let n = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_owned(), hex(&value[..n]))
        })
        .collect()
}

/// Every path on which the two differ.
pub(crate) fn differences(ours: &Tree, theirs: &Tree) -> Vec<String> {
    let mut list = Vec::new();
    for (path, entry) in ours {
        let name = String::from_utf8_lossy(path);
        match theirs.get(path) {
            None => list.push(format!("{name}: only we see it")),
            Some(other) if other != entry => {
                list.push(format!("{name}:\n  ours   {entry:?}\n  theirs {other:?}"));
            }
            Some(_) => {}
        }
    }
    for path in theirs.keys().filter(|path| !ours.contains_key(*path)) {
        list.push(format!("{}: we miss it", String::from_utf8_lossy(path)));
    }
    list
}
