//! A disk shows under the kernel's mount what GNU tar, as root, extracts from the same tar.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use lcow_blockio::{FileDisk, WriteAt};
use lcow_layer::apply::{ApplyOptions, apply};
use lcow_testkit::{LoopMount, e2fsck, is_root, run, skip};
use rustix::fs::{lgetxattr, llistxattr};

/// One of everything that the kernel, tar and ext4 know.
const SOURCE: &str = r#"
set -e
umask 022
echo plain > plain; : > empty; head -c 3000000 /dev/urandom > large
mkdir -m 2775 setgid; mkdir -m 1777 sticky; mkdir -m 700 private; echo x > private/file
cp plain setuid; chmod 6755 setuid; cp plain none; chmod 000 none
chown 12345:54321 plain; chown 70000:3000000000 large; chown -h 5:6 private
ln plain private/link-1; ln plain sticky/link-2
ln -s plain fast; ln -s "$(printf 'a%.0s' $(seq 59))" fast-59; ln -s "$(printf 'b%.0s' $(seq 60))" slow-60
ln -s "/$(printf 'c%.0s' $(seq 2000))" slow; ln -s dangling/../nowhere dangling; chown -h 7:8 fast
mkfifo fifo; mknod char c 5 1; mknod block b 259 70000; mknod null c 1 3; chmod 666 null
truncate -s 5M sparse; printf end >> sparse; printf mid | dd of=sparse bs=1 seek=2000000 conv=notrunc status=none
truncate -s 100M hole; dd if=/dev/zero of=zeros bs=64k count=4 status=none
touch "name with spaces" "$(printf 'line\nbreak')" "$(printf 'latin-\351')" '"quoted" $(name) *?' ./-dash
mkdir -p "$(printf 'd%.0s' $(seq 200))/$(printf 'e%.0s' $(seq 255))"; echo deep > "$(printf 'd%.0s' $(seq 200))/$(printf 'e%.0s' $(seq 255))/deep"
mkdir many; (cd many; seq -f 'file-with-a-name-%05g' 3000 | xargs touch)
setfattr -n user.note -v hello plain; setfattr -n user.note -v dir private; setfattr -n trusted.key -v secret large
setfattr -n user.big -v "$(head -c 1500 /dev/zero | tr '\0' z)" empty
setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 setuid
setfacl -m u:1234:rw-,g:4321:r-x,m::rwx large; setfacl -d -m u:99:rwx sticky; setfacl -m u:99:--x sticky
touch -d '1969-07-20 20:17:40.123456789 UTC' private/file; touch -d '2100-01-01 00:00:00.999999999 UTC' many
touch -h -d '2001-02-03 04:05:06.7 UTC' dangling; touch -d @0 empty; touch -d '2038-01-19 03:14:08 UTC' sparse
"#;

/// A file as `lstat` and the xattr calls show it. A directory's size and a file's block count are the filesystem's matter.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    size: u64,
    mtime: (i64, i64),
    device: u64,
    links: u64,
    /// The first path, in order, of the same inode.
    first_name: PathBuf,
    target: Option<PathBuf>,
    content: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let n = llistxattr(path, names.as_mut_slice()).unwrap();
    let names = names[..n]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let n = lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice()).unwrap();
            (name.to_vec(), value[..n].to_vec())
        })
        .collect()
}

fn see(root: &Path) -> BTreeMap<PathBuf, (Seen, u64)> {
    let mut paths = vec![PathBuf::new()];
    let mut at = 0;
    while at < paths.len() {
        let path = root.join(&paths[at]);
        if path.symlink_metadata().unwrap().is_dir() {
            for entry in path.read_dir().unwrap() {
                let name = entry.unwrap().file_name();
                paths.push(paths[at].join(name));
            }
        }
        at += 1;
    }
    paths.sort();
    let mut inodes = BTreeMap::new();
    paths
        .into_iter()
        .map(|path| {
            let full = root.join(&path);
            let m = full.symlink_metadata().unwrap();
            let kind = m.file_type();
            let seen = Seen {
                mode: m.mode(),
                owner: (m.uid(), m.gid()),
                size: if kind.is_dir() { 0 } else { m.size() },
                mtime: (m.mtime(), m.mtime_nsec()),
                device: if kind.is_char_device() || kind.is_block_device() {
                    m.rdev()
                } else {
                    0
                },
                links: m.nlink(),
                first_name: inodes
                    .entry(m.ino())
                    .or_insert_with(|| path.clone())
                    .clone(),
                target: kind.is_symlink().then(|| full.read_link().unwrap()),
                content: (kind.is_file() && m.size() < 64 << 20)
                    .then(|| std::fs::read(&full).unwrap()),
                xattrs: xattrs(&full),
            };
            (path, (seen, m.blocks()))
        })
        .collect()
}

/// Applies a tar to a file and mounts it; the disk passes e2fsck first.
fn mounted(tar: &Path, disk: &Path) -> LoopMount {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(disk)
        .unwrap();
    let file = FileDisk::from(file);
    apply(
        File::open(tar).unwrap(),
        &file,
        None,
        &ApplyOptions::default(),
    )
    .unwrap();
    file.sync().unwrap();
    e2fsck(disk);
    LoopMount::new(disk, "ro,noload")
}

fn compare(tar: &Path, flags: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let extracted = dir.path().join("extracted");
    std::fs::create_dir(&extracted).unwrap();
    let (tar_name, to) = (tar.to_str().unwrap(), extracted.to_str().unwrap());
    run(
        "tar",
        [
            &[
                "-xpf",
                tar_name,
                "-C",
                to,
                "--numeric-owner",
                "--same-owner",
            ],
            flags,
        ]
        .concat(),
    );
    let mount = mounted(tar, &dir.path().join("disk"));
    let (expected, found) = (see(&extracted), see(&mount.path()));
    assert_eq!(
        expected.keys().collect::<Vec<_>>(),
        found.keys().collect::<Vec<_>>()
    );
    for (path, (expected, blocks)) in &expected {
        let (found, own_blocks) = &found[path];
        assert!(
            expected == found,
            "{}\ntar {:?}\nour {:?}",
            path.display(),
            brief(expected),
            brief(found)
        );
        if expected.content.is_some() || expected.size > 0 {
            // Small attributes may lie in the inode in one filesystem and in a block in the other.
            assert!(
                *own_blocks <= blocks + 8,
                "{}: {own_blocks} sectors, tar's has {blocks}",
                path.display()
            );
        }
    }
}

fn brief(seen: &Seen) -> String {
    let Seen {
        mode,
        owner,
        size,
        mtime,
        device,
        links,
        first_name,
        target,
        xattrs,
        ..
    } = seen;
    format!(
        "{mode:o} {owner:?} {size} {mtime:?} {device} {links} {first_name:?} {target:?} {xattrs:?}"
    )
}

#[test]
fn the_kernel_shows_what_gnu_tar_extracts() {
    if !is_root() {
        skip!("not root: can't make devices or mount");
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    run(
        "bash",
        ["-c", &format!("cd '{}' && {SOURCE}", source.display())],
    );
    let all = ["--xattrs", "--xattrs-include=*", "--acls"];
    for (format, flags) in [("posix", &all[..]), ("gnu", &[])] {
        let tar = dir.path().join(format);
        let make = [
            "--format",
            format,
            "--sparse",
            "--numeric-owner",
            "-cf",
            tar.to_str().unwrap(),
            "-C",
        ];
        run(
            "tar",
            [&make[..], &[source.to_str().unwrap(), "."], flags].concat(),
        );
        compare(&tar, flags);
    }
}
