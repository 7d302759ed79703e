//! tar → ext4. Input: a byte of flags, and the tar, plain or compressed.
//!
//! Refused, with a typed error that is not an I/O error. Or accepted: the digest is that of the tar, the tar comes back exactly, the disk
//! reads back whole and checks clean, it is the tree that [`tar_model`](crate::tar_model) makes of the tar, it is the same disk when made again, and
//! `e2fsck` finds nothing in a sample of them.

use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};

use lcow_blockio::{MemDisk, ReadAt, SubRange};
use lcow_ext4::check::{CheckOptions, check};
use lcow_ext4::reader::Filesystem;
use lcow_layer::ErrorKind;
use lcow_layer::apply::{ApplyOptions, apply};
use lcow_layer::compress::Compression;
use lcow_layer::digest::Digest;
use lcow_layer::export::{Expected, Exported, exact};

use crate::limits::{Capped, bounded};
use crate::tar_model::{self, Verdict};
use crate::tree;

/// Flag: whiteouts become overlayfs's.
pub(crate) const OVERLAY: u8 = 1;
/// Flag: a VHD footer is written.
pub(crate) const VHD: u8 = 2;

/// Memory that making a disk may take, in bytes: pipelines and codecs have fixed buffers.
const MEMORY: usize = 160 << 20;
/// Data that is looked at, in bytes; compressed inputs can have more.
const DATA: usize = 16 << 20;
/// One accepted input in this many is shown to `e2fsck`, and made twice.
const SAMPLE: u32 = 64;

pub(crate) fn options(flags: u8) -> ApplyOptions {
    ApplyOptions {
        overlay: flags & OVERLAY != 0,
        vhd: flags & VHD != 0,
        ratio_floor: 8 << 20,
        ..ApplyOptions::default()
    }
}

pub(crate) fn run(input: &[u8]) {
    let Some((&flags, tar)) = input.split_first() else {
        return;
    };
    let options = options(flags);
    let disk = MemDisk::new();
    let mut split = Vec::new();
    let applied = bounded("applying", MEMORY, || {
        apply(tar, &disk, Some(&mut split), &options)
    });
    let start = tar.get(..Compression::DETECT_LEN).unwrap_or(tar);
    let compression = Compression::detect(start);
    let mut plain = Vec::new();
    if compression == Compression::None {
        plain.extend_from_slice(tar);
    }
    let model = || match compression {
        Compression::None => tar_model::model(tar, options.overlay),
        _ => Verdict::Unknown,
    };
    let applied = match applied {
        Ok(applied) => applied,
        Err(error) => {
            assert!(
                error.kind() != ErrorKind::Io,
                "an I/O error without I/O: {error:?}"
            );
            if let Verdict::Tree(tree) = model() {
                assert!(is_limit(&error), "refused: {error:?}\n{tree:?}");
            }
            return;
        }
    };
    if compression != Compression::None {
        if applied.tar_size > DATA as u64 {
            return;
        }
        let mut decoder = compression.decoder(tar).expect("it was decoded once");
        decoder
            .read_to_end(&mut plain)
            .expect("it was decoded once");
    }
    assert_eq!(applied.tar_size, plain.len() as u64, "the tar's size");
    assert_eq!(applied.diff_id, Digest::of(&plain), "the tar's digest");

    let mut again = Capped::new(plain.len() + 1);
    let expected = Exported {
        diff_id: applied.diff_id,
        size: applied.tar_size,
    };
    bounded("re-emitting", MEMORY, || {
        exact(&disk, &split[..], Expected::This(expected), &mut again)
    })
    .expect("the tar must come back");
    assert!(again.bytes == plain, "the tar that comes back differs");

    let fs = Filesystem::open(SubRange::new(&disk, 0, applied.disk_size)).expect("a disk of ours");
    let tree = bounded("reading all", MEMORY, || tree::read(&fs, DATA))
        .expect("a disk of ours reads back");
    if let Some(tree) = tree {
        match model() {
            Verdict::Tree(expected) => {
                if let Some(difference) = tar_model::difference(&expected, &tree) {
                    panic!("not what the tar means: {difference}");
                }
            }
            Verdict::Refuse(why) => panic!("accepted, though {why}"),
            Verdict::Unknown => {}
        }
    }
    let report = bounded("checking", MEMORY, || {
        check(fs.disk(), &CheckOptions::default())
    });
    let report = report.expect("a disk of ours can be checked");
    assert!(
        report.is_clean() && report.complete,
        "a disk of ours: {:?}",
        report.findings
    );
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if COUNT.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE)
        && applied.disk_size <= DATA as u64
    {
        is_the_same_again(tar, &options, &disk);
        e2fsck(&disk, applied.disk_size);
    }
}

/// Limits of the file system that the model does not know.
fn is_limit(error: &lcow_layer::apply::ApplyError) -> bool {
    use lcow_layer::apply::{ApplyError, Refusal};
    matches!(
        error,
        ApplyError::Refused {
            reason: Refusal::Disk(_) | Refusal::TooManyLinks | Refusal::TooLarge(_),
            ..
        }
    )
}

fn contents(disk: &MemDisk) -> Vec<u8> {
    let size = disk.size().expect("a disk in memory has a size");
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    disk.read_exact_at(0, &mut bytes)
        .expect("a disk in memory can be read");
    bytes
}

fn is_the_same_again(tar: &[u8], options: &ApplyOptions, first: &MemDisk) {
    let second = MemDisk::new();
    apply(tar, &second, None, options).expect("it was accepted once");
    assert!(
        contents(first) == contents(&second),
        "the same tar made another disk"
    );
}

/// Shows a disk to `e2fsck`, where the machine has it.
fn e2fsck(disk: &MemDisk, size: u64) {
    let mut bytes = contents(disk);
    bytes.truncate(usize::try_from(size).unwrap_or(0));
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), &bytes).expect("a temporary file");
    let output = std::process::Command::new("e2fsck")
        .arg("-fn")
        .arg(file.path())
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output();
    if let Ok(output) = output {
        let said = String::from_utf8_lossy(&output.stdout);
        // Times from 2310 on, which the kernel reads as they are, e2fsck takes for an old kernel's way of writing those before 1970.
        if said.contains(" beyond 2310-04-04 are likely pre-1970.") {
            return;
        }
        // Five passes, a summary, and nothing between.
        let complaint = said.lines().find(|line| {
            !(line.is_empty() || line.starts_with("Pass ") || line.ends_with(" blocks"))
        });
        assert!(output.status.success() && complaint.is_none(), "{said}");
    }
}
