//! The union and the changes against the kernel's own overlay: real mounts, as root.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lcow_blockio::FileDisk;
use lcow_ext4::reader::Filesystem;
use lcow_layer::changes::{Change, ChangeKind, changes};
use lcow_layer::tree::Subtree;
use lcow_layer::union::Union;
use lcow_testkit::{LoopMount, is_root, run, skip};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, llistxattr, lsetxattr, mknodat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::forest::{self, Disk, Dump, File, Layer, Record, any_layer, image, open};

/// A mounted overlay, until dropped.
pub(crate) struct Overlay(PathBuf);

impl Overlay {
    pub(crate) fn new(at: &Path, lowers: &[PathBuf], sandbox: Option<&Path>) -> Self {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        for lower in lowers {
            fsconfig_set_string(&fs, "lowerdir+", lower.as_os_str()).unwrap();
        }
        match sandbox {
            Some(sandbox) => {
                fsconfig_set_string(&fs, "upperdir", sandbox.join("upper").as_os_str()).unwrap();
                fsconfig_set_string(&fs, "workdir", sandbox.join("work").as_os_str()).unwrap();
            }
            None => fsconfig_set_flag(&fs, "ro").unwrap(),
        }
        for (option, value) in [
            ("redirect_dir", "off"),
            ("metacopy", "off"),
            ("index", "off"),
        ] {
            fsconfig_set_string(&fs, option, value).unwrap();
        }
        fsconfig_create(&fs).unwrap();
        let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        move_mount(&mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
        Self(at.to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let mut done = unmount(&self.0, UnmountFlags::empty());
        // A program that another test starts has our open files until it is executed.
        for _ in 0..100 {
            if done != Err(rustix::io::Errno::BUSY) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            done = unmount(&self.0, UnmountFlags::empty());
        }
        if !std::thread::panicking() {
            done.unwrap();
        }
    }
}

pub(crate) fn xattrs_of(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 64 << 10];
    let len = llistxattr(path, &mut names[..]).unwrap();
    names.truncate(len);
    let mut xattrs = Vec::new();
    for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let c_name = CString::new(name).unwrap();
        let len = lgetxattr(path, &c_name, &mut value[..]).unwrap();
        value.truncate(len);
        xattrs.push((name.to_vec(), value));
    }
    xattrs.sort();
    xattrs
}

/// What the kernel shows below a directory.
pub(crate) fn dump(root: &Path) -> Dump {
    let mut dump = Dump::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            // A whiteout in a directory of one layer only is listed, but not there.
            let Ok(meta) = fs::symlink_metadata(&path) else {
                continue;
            };
            let kind = meta.file_type();
            let content = if kind.is_file() {
                fs::read(&path).unwrap()
            } else if kind.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_vec()
            } else {
                Vec::new()
            };
            let is_device = kind.is_char_device() || kind.is_block_device();
            let device = if is_device { meta.rdev() } else { 0 };
            let relative = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
            let identity = if kind.is_dir() {
                format!("{}", path.display())
            } else {
                format!("{}:{}", meta.dev(), meta.ino())
            };
            dump.insert(
                relative.to_vec(),
                Record {
                    mode: meta.mode(),
                    uid: meta.uid(),
                    gid: meta.gid(),
                    mtime: (meta.mtime(), meta.mtime_nsec() as u32),
                    device: (rustix::fs::major(device), rustix::fs::minor(device)),
                    content,
                    xattrs: xattrs_of(&path),
                    first_name: identity.into_bytes(),
                },
            );
            if kind.is_dir() {
                todo.push(path);
            }
        }
    }
    let mut first = HashMap::new();
    for (path, record) in &mut dump {
        let identity = std::mem::take(&mut record.first_name);
        record.first_name = first
            .entry(identity)
            .or_insert_with(|| path.clone())
            .clone();
    }
    dump
}

/// Random numbers that are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        let mut path = root.to_owned();
        for _ in 0..=self.roll(3) {
            path.push(["a", "b", "a-", "a.b", "\u{e4}"][self.roll(5) as usize]);
        }
        path
    }
}

/// Does something to a random file. Much of it fails, as it does in life.
fn act(dice: &mut Dice, root: &Path) -> Option<()> {
    let path = dice.path(root);
    let other = dice.path(root);
    let small = dice.roll(1000);
    let remove = |path: &Path| {
        let meta = fs::symlink_metadata(path).ok()?;
        if meta.is_dir() {
            fs::remove_dir_all(path).ok()
        } else {
            fs::remove_file(path).ok()
        }
    };
    // Opening a FIFO would wait for its other end.
    let regular = || {
        fs::symlink_metadata(&path)
            .ok()
            .filter(fs::Metadata::is_file)
    };
    match dice.roll(15) {
        0 => {
            let there = fs::symlink_metadata(&path).is_ok();
            if there && regular().is_none() {
                return None;
            }
            fs::write(&path, small.to_string()).ok()
        }
        1 => {
            use std::io::Write;
            regular()?;
            let mut file = fs::File::options().append(true).open(&path).ok()?;
            file.write_all(b"more").ok()
        }
        2 => {
            regular()?;
            let file = fs::File::options().write(true).open(&path).ok()?;
            file.set_len(small * 100).ok()
        }
        3 => remove(&path),
        4 => fs::create_dir(&path).ok(),
        5 => {
            // Made anew: opaque.
            fs::symlink_metadata(&path)
                .ok()
                .filter(fs::Metadata::is_dir)?;
            remove(&path)?;
            fs::create_dir(&path).ok()?;
            fs::write(path.join("a"), b"").ok()
        }
        6 | 7 => fs::rename(&path, &other).ok(),
        8 => fs::hard_link(&path, &other).ok(),
        9 => {
            let mode = 0o600 + small as u32 % 0o100;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).ok()
        }
        10 => std::os::unix::fs::lchown(&path, Some(small as u32), Some(7)).ok(),
        11 => {
            let (kind, device) = match small % 3 {
                0 => (FileType::Fifo, 0),
                1 => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
                _ => (FileType::BlockDevice, rustix::fs::makedev(7, small as u32)),
            };
            mknodat(CWD, &path, kind, Mode::from_raw_mode(0o640), device).ok()
        }
        12 => symlink(&other, &path).ok(),
        13 => {
            let name = ["user.t", "trusted.t", "security.t"][small as usize % 3];
            lsetxattr(&path, name, &small.to_le_bytes(), XattrFlags::empty()).ok()
        }
        _ => {
            // Copied up, nothing changed.
            regular()?;
            fs::File::options().write(true).open(&path).ok().map(drop)
        }
    }
}

/// Random layers, the same for the same seed.
pub(crate) fn random_layers(seed: u8, count: usize) -> Vec<Layer> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = proptest::collection::vec(any_layer(true), count..=count);
    strategy.new_tree(&mut runner).unwrap().current()
}

/// Layers on one disk, each in its own directory, nearest first.
pub(crate) fn lowers(fs: &Arc<forest::Fs>, count: usize) -> Vec<Subtree<Disk>> {
    (0..count)
        .map(|i| Subtree::open(Arc::clone(fs), i.to_string().as_bytes()).unwrap())
        .collect()
}

#[test]
fn random_work_on_random_layers_looks_the_same() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let mut worked = 0;
    for seed in 1..=12_u8 {
        let count = 1 + usize::from(seed) % 4;
        let layers = random_layers(seed, count);
        let dir = tempfile::tempdir().unwrap();
        let lower_image = dir.path().join("lower.img");
        fs::write(&lower_image, image(&layers, true)).unwrap();
        let sandbox_image = dir.path().join("sandbox.img");
        fs::File::create(&sandbox_image)
            .unwrap()
            .set_len(32 << 20)
            .unwrap();
        run(
            "mke2fs",
            ["-q", "-t", "ext4", sandbox_image.to_str().unwrap()],
        );

        let (before, after, acl_ok);
        {
            let lower = LoopMount::new(&lower_image, "ro,noload");
            let sandbox = LoopMount::new(&sandbox_image, "rw");
            for name in ["upper", "work"] {
                fs::create_dir(sandbox.path().join(name)).unwrap();
            }
            let merged = dir.path().join("merged");
            fs::create_dir(&merged).unwrap();
            let paths: Vec<_> = (0..count)
                .map(|i| lower.path().join(i.to_string()))
                .collect();
            let overlay = Overlay::new(&merged, &paths, Some(&sandbox.path()));
            before = dump(&overlay.0);
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ u64::from(seed) << 32);
            for _ in 0..400 {
                worked += usize::from(act(&mut dice, &overlay.0).is_some());
            }
            fs::write(merged.join("acl"), b"").unwrap();
            acl_ok = lsetxattr(
                merged.join("acl"),
                "system.posix_acl_access",
                &ACL,
                XattrFlags::empty(),
            );
            after = dump(&overlay.0);
        }
        acl_ok.unwrap();

        let base = Union::new(lowers(&open(fs::read(&lower_image).unwrap()), count)).unwrap();
        assert_eq!(forest::dump(&base), before, "seed {seed}: the layers alone");
        let sandbox = FileDisk::open(&sandbox_image).unwrap();
        let sandbox = Arc::new(Filesystem::open(Box::new(sandbox) as Disk).unwrap());
        let upper = Subtree::open(sandbox, b"upper").unwrap();
        let container = base.with_upper(upper);
        let ours = forest::dump(&container);
        for (path, record) in &after {
            assert_eq!(
                ours.get(path),
                Some(record),
                "seed {seed}: {}",
                path.escape_ascii()
            );
        }
        assert_eq!(ours.len(), after.len(), "seed {seed}");
        told_as_the_kernel_shows(&container, &base, &after, &before);
    }
    assert!(worked > 400, "only {worked} actions did anything");
}

/// `user::rw-,user:1000:r--,group::r--,mask::r--,other::---`, as `setxattr` takes it.
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255,
    255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

fn told_as_the_kernel_shows(
    container: &Union<Disk>,
    base: &Union<Disk>,
    after: &Dump,
    before: &Dump,
) {
    let told: Vec<Change> = changes(container, Some(base)).unwrap().iter().collect();
    for change in &told {
        let (new, old) = (after.get(&change.path), before.get(&change.path));
        match change.kind {
            ChangeKind::Added => assert!(new.is_some() && old.is_none(), "{change:?}"),
            ChangeKind::Deleted => assert!(new.is_none() && old.is_some(), "{change:?}"),
            ChangeKind::Modified => assert!(new.is_some() && old.is_some(), "{change:?}"),
        }
    }
    for (path, record) in after {
        let same = before.get(path).is_some_and(|old| {
            Record {
                first_name: record.first_name.clone(),
                ..old.clone()
            } == *record
        });
        let told = told.iter().any(|change| change.path == *path);
        assert!(
            same || told,
            "{} changed and was not told",
            path.escape_ascii()
        );
    }
}

#[test]
fn three_hundred_layers_look_the_same() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let count = 300;
    let layers: Vec<Layer> = (0..count)
        .map(|i| {
            let mut layer = Layer::default();
            layer.add(b"same", File::regular(i.to_string().as_bytes()));
            layer.add(format!("dir/own-{i}").as_bytes(), File::regular(b""));
            layer.add(
                format!("dir/{}/f-{i}", i % 7).as_bytes(),
                File::regular(b""),
            );
            if i % 5 == 0 {
                layer.add(format!("dir/own-{}", i + 1).as_bytes(), File::whiteout());
            }
            if i == 250 {
                let opaque = File::directory().with(forest::OPAQUE, b"y");
                layer
                    .0
                    .insert(format!("dir/{}", i % 7).into_bytes(), opaque);
            }
            layer
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lower.img");
    fs::write(&path, image(&layers, true)).unwrap();
    let shown = {
        let lower = LoopMount::new(&path, "ro,noload");
        let merged = dir.path().join("merged");
        fs::create_dir(&merged).unwrap();
        let paths: Vec<_> = (0..count)
            .map(|i| lower.path().join(i.to_string()))
            .collect();
        let overlay = Overlay::new(&merged, &paths, None);
        dump(&overlay.0)
    };
    let fs = open(fs::read(&path).unwrap());
    let ours = forest::dump(&Union::new(lowers(&fs, count)).unwrap());
    assert_eq!(ours, shown);
    assert!(shown.len() > 500);
}
