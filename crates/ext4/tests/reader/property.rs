//! Damage of every kind: whatever is done to an image, the reader ends with a tree or a typed error, soon and in bounds.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use lcow_blockio::MemDisk;
use lcow_ext4::reader::{Filesystem, ReadErrorKind};
use lcow_testkit::run;
use proptest::prelude::*;

use crate::export::{read_all, scratch};
use crate::memory;

/// Small images of different forms, as mke2fs makes them.
pub(crate) fn images() -> &'static [(&'static str, Vec<u8>)] {
    static IMAGES: OnceLock<Vec<(&str, Vec<u8>)>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let dir = scratch();
        let source = dir.path().join("source");
        fill(&source);
        [
            (
                "no checksums",
                "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg,^resize_inode,^has_journal",
            ),
            ("block maps", "-t ext2 -b 1024 -O ^resize_inode,dir_index"),
            (
                "inline data",
                "-t ext4 -b 1024 -O inline_data,^metadata_csum,^resize_inode,^has_journal -I 256",
            ),
            (
                "bigalloc",
                "-t ext4 -b 1024 -O bigalloc,^metadata_csum,^resize_inode,^has_journal -C 4096",
            ),
            (
                "journal",
                "-t ext4 -b 1024 -O ^metadata_csum,^resize_inode -J size=1",
            ),
            ("checksums", "-t ext4 -b 4096 -O ^resize_inode,^has_journal"),
        ]
        .into_iter()
        .map(|(name, options)| {
            let image = dir.path().join("image");
            let _ = std::fs::remove_file(&image);
            let mut args: Vec<&str> = vec!["-q", "-F", "-N", "256", "-d", source.to_str().unwrap()];
            args.extend(options.split(' '));
            args.extend([image.to_str().unwrap(), "3M"]);
            run("mke2fs", args);
            (name, std::fs::read(&image).unwrap())
        })
        .collect()
    })
}

fn fill(source: &Path) {
    std::fs::create_dir_all(source.join("dir/below")).unwrap();
    std::fs::create_dir(source.join("many")).unwrap();
    for n in 0..100 {
        std::fs::write(source.join("many").join(format!("{n:0>50}")), b"").unwrap();
    }
    std::fs::write(source.join("small"), b"small").unwrap();
    std::fs::write(source.join("large"), vec![b'l'; 300_000]).unwrap();
    let file = std::fs::File::create(source.join("sparse")).unwrap();
    for n in 0..20_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", n * 9000).unwrap();
    }
    symlink("small", source.join("link")).unwrap();
    symlink("l".repeat(100), source.join("long-link")).unwrap();
    std::fs::hard_link(source.join("small"), source.join("dir/hard")).unwrap();
    for n in 0..6 {
        let value = vec![b'v'; 20 + n * 40];
        let name = format!("user.attribute-{n}");
        rustix::fs::lsetxattr(
            source.join("small"),
            &*name,
            &value,
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    }
}

/// Reads all there is. Any tree and any typed error will do, but not an I/O error: that would be a read past the disk's end,
/// which checks must prevent.
fn survive(name: &str, bytes: Vec<u8>) {
    let len = bytes.len() as u64;
    let disk = MemDisk::from(bytes);
    let started = Instant::now();
    let (result, peak) = memory::peak(|| {
        let fs = Filesystem::open(&disk)?;
        for path in ["small", "many/0", "dir/below", "nothing", "link"] {
            let _ = fs.resolve(path.as_bytes());
        }
        read_all(&fs, false)
    });
    if let Err(error) = result {
        let kind = error.kind();
        assert!(
            matches!(kind, ReadErrorKind::Corrupt | ReadErrorKind::Unsupported),
            "{name}: {error}"
        );
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "{name}: {took:?}");
    assert!(peak < (64 << 20) + 4 * len, "{name}: {peak} bytes");
}

/// Where metadata is dense, and damage does the most.
fn place(len: usize) -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => 1024..2048_usize,
        3 => 2048..8192_usize,
        6 => 8192..100_000_usize,
        1 => 0..len,
    ]
}

#[test]
fn undamaged_they_read_whole() {
    for (name, bytes) in images() {
        let fs = Filesystem::open(MemDisk::from(bytes.clone())).unwrap();
        let tree = read_all(&fs, true).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(tree.len() >= 110, "{name}: {} entries", tree.len());
        let small = &tree[&b"small"[..]];
        assert_eq!((small.links, small.xattrs.len()), (2, 6), "{name}");
        for path in tree.keys() {
            fs.resolve(path).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_do_no_harm(
        which in 0..6_usize,
        changes in prop::collection::vec((place(3 << 20), any::<u8>()), 1..12),
    ) {
        let (name, bytes) = &images()[which];
        let mut bytes = bytes.clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        survive(name, bytes);
    }

    #[test]
    fn changed_words_do_no_harm(
        which in 0..5_usize,
        changes in prop::collection::vec(
            (place(3 << 20), prop_oneof![0..4096_u32, any::<u32>(), Just(u32::MAX), Just(0x8000_0000)]),
            1..6,
        ),
    ) {
        let (name, bytes) = &images()[which];
        let mut bytes = bytes.clone();
        for (at, value) in changes {
            let at = (at & !3).min(bytes.len() - 4);
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        survive(name, bytes);
    }

    #[test]
    fn moved_blocks_do_no_harm(
        which in 0..6_usize,
        moves in prop::collection::vec((0..100_usize, 0..100_usize), 1..4),
    ) {
        let (name, bytes) = &images()[which];
        let mut bytes = bytes.clone();
        for (from, to) in moves {
            bytes.copy_within(from * 1024..(from + 1) * 1024, to * 1024);
        }
        survive(name, bytes);
    }

    #[test]
    fn cut_images_do_no_harm(which in 0..6_usize, len in 0..(3_usize << 20)) {
        let (name, bytes) = &images()[which];
        survive(name, bytes[..len].to_vec());
    }
}
