//! Archives that GNU tar wrote, in every format it has, and random trees.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use lcow_blockio::FileDisk;
use lcow_ext4::reader::Filesystem;
use lcow_layer::apply::{ApplyOptions, apply};
use lcow_layer::digest::Digest;
use lcow_testkit::{e2fsck, have, skip};
use proptest::prelude::*;

use crate::apply::assert_exact;
use crate::support::{make, tree};
use crate::tars::{Hand, tar};

/// A directory with what tar formats treat differently.
fn fill(dir: &Path) {
    std::fs::create_dir_all(dir.join("sub/deeper")).unwrap();
    std::fs::write(dir.join("sub/small"), b"hello").unwrap();
    std::fs::write(dir.join("sub/block"), [1; 512]).unwrap();
    std::fs::write(dir.join("large"), vec![7; 300_000]).unwrap();
    std::fs::write(dir.join("empty"), b"").unwrap();
    std::fs::hard_link(dir.join("large"), dir.join("sub/hard")).unwrap();
    std::os::unix::fs::symlink("../large", dir.join("sub/soft")).unwrap();
    let sparse = std::fs::File::create(dir.join("sparse")).unwrap();
    for i in 0..40_u64 {
        sparse.write_all_at(&[9; 4096], i * 65536 + 8192).unwrap();
    }
    sparse.set_len(4 << 20).unwrap();
}

#[test]
fn every_format_of_gnu_tar_comes_back_exactly() {
    if !have("tar") {
        skip!("no GNU tar");
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fill(&source);
    let long = source
        .join("long")
        .join("n".repeat(120))
        .join("m".repeat(120));
    for options in [
        &["--format=v7"][..],
        &["--format=oldgnu", "-S"],
        &["--format=gnu", "-S"],
        &["--format=gnu", "-b", "1"],
        &["--format=ustar", "-b", "64"],
        &["--format=posix"],
        &["--format=posix", "-S", "--sparse-version=0.0"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=1.0"],
    ] {
        let long_names = !options[0].contains("v7") && !options[0].contains("ustar");
        if long_names {
            std::fs::create_dir_all(&long).unwrap();
        } else {
            let _ = std::fs::remove_dir_all(source.join("long"));
        }
        let output = Command::new("tar")
            .args(options)
            .args(["-c", "-C"])
            .arg(&source)
            .arg(".")
            .output()
            .unwrap();
        assert!(output.status.success(), "{options:?}: {output:?}");
        let made = make(&output.stdout).unwrap();
        assert_exact(&made, &output.stdout);
        let tree = tree(&made.disk);
        for (path, node) in &tree {
            let path = source.join(std::str::from_utf8(path).unwrap());
            let meta = std::fs::symlink_metadata(&path).unwrap();
            assert_eq!(u32::from(node.mode), meta.mode(), "{options:?} {path:?}");
            assert_eq!(
                (node.uid, node.gid),
                (meta.uid(), meta.gid()),
                "{options:?} {path:?}"
            );
            assert_eq!(node.mtime.secs, meta.mtime(), "{options:?} {path:?}");
            if options[0] == "--format=posix" {
                assert_eq!(i64::from(node.mtime.nanos), meta.mtime_nsec(), "{path:?}");
            }
            if meta.is_file() {
                let content = Digest::of(&std::fs::read(&path).unwrap());
                assert_eq!(node.content, Some(content), "{options:?} {path:?}");
                assert_eq!(node.links, meta.nlink(), "{options:?} {path:?}");
            }
        }
        assert_eq!(tree.keys().any(|k| k.starts_with(b"long/")), long_names);
        let fs = Filesystem::open(&made.disk).unwrap();
        let sparse = fs.resolve(b"/sparse").unwrap();
        let blocks: u64 = fs.extents(&sparse).unwrap().iter().map(|e| e.len).sum();
        assert_eq!(blocks, 40, "{options:?}: holes are kept");
    }
}

/// A random archive: names from a small pool, so that they meet.
fn entries() -> impl Strategy<Value = Vec<Hand>> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        "a/c",
        "a/d",
        "b/c",
        "a/c/e",
        ".wh.a",
        "a/.wh.c",
        "a/.wh..wh..opq",
    ]);
    let entry =
        (name, 0..5_u8, 0..9000_usize, any::<u8>()).prop_map(
            |(name, kind, len, byte)| match kind {
                0 => Hand::dir(name),
                1 => Hand::symlink(name, "b"),
                2 => Hand::link(name, "b"),
                _ => Hand::file(name, &vec![byte; len]),
            },
        );
    prop::collection::vec(entry, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_accepted_comes_back_and_checks_clean(entries in entries(), odd in 0..3000_usize) {
        let mut bytes = tar(&entries);
        bytes.resize(bytes.len() + odd, 0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = std::fs::File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        if let Ok(made) = make(&bytes) {
            assert_exact(&made, &bytes);
            tree(&made.disk);
            apply(&bytes[..], FileDisk::from(file), None, &ApplyOptions::default()).unwrap();
            if have("e2fsck") {
                e2fsck(&path);
            }
        }
    }
}
