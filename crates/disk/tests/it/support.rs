//! What the tests of this crate share.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lcow_blockio::testing::Dice;
use lcow_blockio::{FileDisk, MemDisk, ReadAt, WriteAt};
use lcow_disk::vhdx::{self, CreateOptions, Guid, SessionGuids};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const ID: Guid = Guid(*b"0123456789abcdef");

/// New GUIDs, by a number.
pub(crate) fn session(n: u8) -> SessionGuids {
    SessionGuids::from([[n, 1], [n, 2], [n, 3]].map(|[n, kind]| {
        let mut guid = [n; 16];
        guid[0] = kind;
        guid
    }))
}

pub(crate) fn blank(size: u64, block_size: u32) -> MemDisk {
    let file = MemDisk::new();
    let options = CreateOptions {
        block_size,
        ..CreateOptions::new(size, ID)
    };
    vhdx::create(&file, &options).unwrap();
    file
}

pub(crate) fn new_file(path: &Path) -> FileDisk {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false);
    file.open(path).unwrap().into()
}

/// Writes a disk in memory to a file, holes as holes.
pub(crate) fn save(disk: &MemDisk, path: &Path) {
    let file = new_file(path);
    file.set_len(0).unwrap();
    file.set_len(disk.size().unwrap()).unwrap();
    copy(disk, &file);
}

pub(crate) fn copy(from: &dyn ReadAt, to: &dyn WriteAt) {
    let mut at = 0;
    while let Some(data) = from.next_data(at).unwrap() {
        let n = (data.end - data.start).min(MIB);
        let mut bytes = vec![0; n as usize];
        from.read_exact_at(data.start, &mut bytes).unwrap();
        to.write_all_at(data.start, &bytes).unwrap();
        at = data.start + n;
    }
}

/// Two disks hold the same bytes. Only what one of them has data at is read.
pub(crate) fn same(a: &dyn ReadAt, b: &dyn ReadAt) {
    assert_eq!(a.size().unwrap(), b.size().unwrap());
    for (one, other) in [(a, b), (b, a)] {
        let mut at = 0;
        while let Some(data) = one.next_data(at).unwrap() {
            let n = (data.end - data.start).min(MIB) as usize;
            let (mut x, mut y) = (vec![1; n], vec![2; n]);
            one.read_exact_at(data.start, &mut x).unwrap();
            other.read_exact_at(data.start, &mut y).unwrap();
            if let Some(n) = x.iter().zip(&y).position(|(x, y)| x != y) {
                panic!("byte {} differs", data.start + n as u64);
            }
            at = data.start + n as u64;
        }
    }
}

/// Random writes, zeroes and discards, also done to the model.
pub(crate) fn scribble(
    disk: &vhdx::Disk<impl WriteAt>,
    model: &MemDisk,
    dice: &mut Dice,
    steps: usize,
) {
    let size = disk.size().unwrap();
    for _ in 0..steps {
        // Near to one another, now and then far off.
        let far = if dice.roll(4) == 0 {
            size
        } else {
            size.min(24 * MIB)
        };
        let at = dice.roll(far);
        let len = (1 + dice.roll(300_000)).min(size - at);
        match dice.roll(8) {
            0 => {
                let len = (len * 10).min(size - at);
                disk.zero_range(at, len).unwrap();
                model.zero_range(at, len).unwrap();
            }
            1 => {
                let len = (len * 10).min(size - at);
                disk.trim(at, len).unwrap();
                model.zero_range(at, len).unwrap();
            }
            2 => disk.sync().unwrap(),
            _ => {
                let bytes: Vec<u8> = (0..len).map(|n| (n as u8) ^ (dice.0 as u8)).collect();
                disk.write_all_at(at, &bytes).unwrap();
                model.write_all_at(at, &bytes).unwrap();
            }
        }
    }
}

pub(crate) fn have_qemu() -> bool {
    lcow_testkit::have("qemu-img")
}

pub(crate) fn qemu_img<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = lcow_testkit::run("qemu-img", args);
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn try_qemu_img(args: &[&str]) -> Output {
    Command::new("qemu-img").args(args).output().unwrap()
}

/// A folder for files that programs look at.
pub(crate) struct Lab(tempfile::TempDir);

impl Lab {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// What qemu-img reads from a disk.
    pub(crate) fn as_qemu_reads(&self, name: &str, format: &str) -> FileDisk {
        let raw = self.name("as-qemu-reads.raw");
        let _ = std::fs::remove_file(&raw);
        qemu_img(["convert", "-f", format, "-O", "raw", &self.name(name), &raw]);
        FileDisk::open(Path::new(&raw)).unwrap()
    }
}
