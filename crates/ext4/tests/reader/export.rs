//! All that the reader says about an image, as a list that can be compared.

use std::path::Path;

use lcow_blockio::ReadAt;
use lcow_ext4::FileType;
use lcow_ext4::reader::{Filesystem, ReadError};
use lcow_testkit::{Entry, Tree, hex};
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
