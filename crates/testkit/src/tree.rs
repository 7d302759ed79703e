use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};

/// All that can be said of one file, in a form that can be compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; 0 for directories, whose size means nothing.
    pub size: u64,
    /// Last change of the content: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Names of the file.
    pub links: u64,
    /// Of regular files, in hexadecimal digits.
    pub sha256: Option<String>,
    /// Values in hexadecimal digits, by name.
    pub xattrs: BTreeMap<String, String>,
    /// Of symbolic links: the target.
    pub link: Option<Vec<u8>>,
    /// Of device files: major and minor number.
    pub device: Option<(u32, u32)>,
}

/// Files by their path from the root, which itself is not among them.
pub type Tree = BTreeMap<Vec<u8>, Entry>;

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What the kernel shows below a directory.
///
/// # Panics
/// If anything can't be read.
#[must_use]
pub fn kernel_tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut stack = vec![root.to_owned()];
    while let Some(dir) = stack.pop() {
        let list = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        for item in list {
            let path = item.expect("a name").path();
            let meta = std::fs::symlink_metadata(&path)
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let kind = meta.file_type();
            let mut entry = Entry {
                mode: meta.mode(),
                uid: meta.uid(),
                gid: meta.gid(),
                size: if kind.is_dir() { 0 } else { meta.size() },
                mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0)),
                links: meta.nlink(),
                ..Entry::default()
            };
            if kind.is_char_device() || kind.is_block_device() {
                let device = meta.rdev();
                entry.device = Some((rustix::fs::major(device), rustix::fs::minor(device)));
            }
            if kind.is_symlink() {
                let target = std::fs::read_link(&path).expect("a link's target");
                entry.link = Some(target.into_os_string().into_encoded_bytes());
            }
            if kind.is_file() {
                entry.sha256 = Some(hash_file(&path));
            }
            entry.xattrs = kernel_xattrs(&path);
            if kind.is_dir() {
                stack.push(path.clone());
            }
            let below = path.strip_prefix(root).expect("a path below the root");
            tree.insert(below.as_os_str().as_encoded_bytes().to_vec(), entry);
        }
    }
    tree
}

fn hash_file(path: &Path) -> String {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut digest = Sha256::new();
    let mut buf = vec![0; 1 << 18];
    loop {
        let n = file
            .read(&mut buf)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if n == 0 {
            return hex(&digest.finalize());
        }
        digest.update(&buf[..n]);
    }
}

fn kernel_xattrs(path: &Path) -> BTreeMap<String, String> {
    let mut names = vec![0; 1 << 16];
    let n = rustix::fs::llistxattr(path, &mut names[..]).expect("the attributes' names");
    names[..n]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = std::str::from_utf8(name).expect("an attribute's name is text");
            let mut value = vec![0; 1 << 16];
            let n = rustix::fs::lgetxattr(path, name, &mut value[..])
                .unwrap_or_else(|e| panic!("{}: {name}: {e}", path.display()));
            (name.to_owned(), hex(&value[..n]))
        })
        .collect()
}

/// Every path on which the two differ.
#[must_use]
pub fn differences(ours: &Tree, theirs: &Tree) -> Vec<String> {
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
