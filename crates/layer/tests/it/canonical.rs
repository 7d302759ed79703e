//! Canonical tars: what they say, and that GNU tar and Python take them for what they are.

use std::fs;
use std::process::{Command, Stdio};

use lcow_blockio::MemDisk;
use lcow_ext4::{Device, Timestamp};
use lcow_layer::apply::{ApplyOptions, apply};
use lcow_layer::export::{ExportOptions, canonical};
use lcow_layer::tree::Tree;
use lcow_testkit::{is_root, run, skip};
use proptest::prelude::*;

use crate::forest::{File, Kind, Layer, OPAQUE, any_layer, dump, open, union, whole};

fn tar_of<T: Tree>(tree: &T, options: &ExportOptions) -> Vec<u8> {
    let mut tar = Vec::new();
    let summary = canonical(tree, options, &mut tar).unwrap();
    assert_eq!(summary.tar_size, tar.len() as u64);
    tar
}

fn raw<T: Tree>(tree: &T) -> Vec<u8> {
    tar_of(tree, &ExportOptions::default())
}

fn disk_of(tar: &[u8], overlay: bool) -> Vec<u8> {
    let disk = MemDisk::new();
    let options = ApplyOptions {
        overlay,
        ..ApplyOptions::default()
    };
    apply(tar, &disk, None, &options).unwrap();
    disk.into_bytes()
}

/// One of everything that a tar has a hard time with.
fn zoo() -> Layer {
    let mut layer = Layer::default();
    let mut add = |path: &str, file: File| assert!(layer.add(path.as_bytes(), file), "{path}");
    let deep = ["d".repeat(120), "e".repeat(120), "f".repeat(200)].join("/");
    add("plain", File::regular(b"text"));
    add("empty", File::regular(b""));
    add(&deep, File::regular(b"deep"));
    add(
        &format!("{}/{}", "p".repeat(150), "n".repeat(100)),
        File::regular(b"ustar"),
    );
    add("long-link", File::new(Kind::Symlink(vec![b'l'; 300])));
    add("link", File::new(Kind::Symlink(b"plain".to_vec())));
    add("fifo", File::new(Kind::Fifo));
    add(
        "null",
        File::new(Kind::Device(Device { major: 1, minor: 3 })),
    );
    add(
        "minor",
        File::new(Kind::Device(Device {
            major: 259,
            minor: 1_048_575,
        })),
    );
    add("z-hard", File::new(Kind::Link(deep.clone().into_bytes())));
    add("a-dir/in", File::regular(b"1"));
    add("a-dir-", File::regular(b"2"));
    add("a-dir.d", File::directory());
    let big = File {
        owner: 3_000_000_000,
        mode: 0o6755,
        mtime: Timestamp {
            secs: 1_700_000_000,
            nanos: 123_456_789,
        },
        ..File::regular(b"big")
    };
    add("big-ids", big);
    for (name, secs, nanos) in [("before", -1, 500_000_000), ("after", 0x2_0000_0000, 0)] {
        let mtime = Timestamp { secs, nanos };
        add(
            name,
            File {
                mtime,
                ..File::regular(b"")
            },
        );
    }
    add(
        "xattrs",
        File::regular(b"x")
            .with(b"user.a=b%25", b"1\n=2")
            .with(b"user.empty", b""),
    );
    let mut holes = vec![0; 3 << 20];
    holes[1 << 20] = 1;
    add("sparse", File::regular(&holes));
    holes[0] = 1;
    holes[(3 << 20) - 1] = 1;
    add("sparse-ends", File::regular(&holes));
    add("all-hole", File::regular(&vec![0; 1 << 20]));
    add("short-zeros", File::regular(&vec![0; 20 << 10]));
    layer
}

#[test]
fn the_zoo_survives_and_its_bytes_are_stable() {
    let zoo = zoo();
    let first = raw(&whole(&zoo.open()));
    let again = disk_of(&first, false);
    assert_eq!(
        dump(&whole(&open(again.clone()))),
        dump(&whole(&zoo.open()))
    );
    assert!(
        first == raw(&whole(&open(again))),
        "another disk of the same content, other bytes"
    );
    assert!(
        first == raw(&union(&[zoo])),
        "a union of one layer, other bytes"
    );
    assert!(
        first.len() < 1 << 20,
        "{} bytes: holes were written",
        first.len()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// A layer's disk gives a layer's tar, and that the same disk's content again.
    #[test]
    fn layers_go_round(layer in any_layer(false)) {
        let options = ExportOptions { overlay_whiteouts: true, ..ExportOptions::default() };
        let before = whole(&layer.open());
        let tar = tar_of(&before, &options);
        let after = whole(&open(disk_of(&tar, true)));
        let plain = |tree: &lcow_layer::tree::Subtree<_>| {
            let mut dump = dump(tree);
            for record in dump.values_mut().filter(|r| r.mode & 0xf000 == 0x2000 && r.device == (0, 0)) {
                // A whiteout is nothing but that: the tar keeps no metadata of it.
                (record.mode, record.uid, record.gid, record.mtime) = (0, 0, 0, (0, 0));
                record.xattrs.clear();
            }
            dump
        };
        prop_assert_eq!(plain(&after), plain(&before));
        prop_assert!(tar == tar_of(&after, &options));
    }

    /// Many layers as one.
    #[test]
    fn unions_are_flattened(layers in prop::collection::vec(any_layer(false), 1..5)) {
        let tree = union(&layers);
        let flat = whole(&open(disk_of(&raw(&tree), false)));
        prop_assert_eq!(dump(&flat), dump(&tree));
        prop_assert!(raw(&flat) == raw(&tree));
    }
}

#[test]
fn whiteouts_go_back_to_what_images_have() {
    let mut layer = Layer::default();
    layer.add(b"d", File::directory().with(OPAQUE, b"y"));
    layer.add(b"d/f", File::regular(b""));
    layer.add(b"gone", File::whiteout());
    layer.add(b"x", File::directory().with(OPAQUE, b"x"));
    layer.add(
        b"x/w",
        File::regular(b"").with(crate::forest::XWHITEOUT, b""),
    );
    let options = ExportOptions {
        overlay_whiteouts: true,
        source_date_epoch: Some(500),
    };
    let tar = tar_of(&whole(&layer.open()), &options);
    let mut archive = tar::Archive::new(&tar[..]);
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        assert!(entry.header().mtime().unwrap() <= 500);
        assert!(entry.pax_extensions().unwrap().is_none());
        names.push(entry.path().unwrap().to_str().unwrap().to_owned());
    }
    assert_eq!(
        names,
        [
            "./",
            "d/",
            "d/.wh..wh..opq",
            "d/f",
            ".wh.gone",
            "x/",
            "x/.wh.w"
        ]
    );
}

#[test]
fn gnu_tar_unpacks_and_compares_it() {
    if !is_root() {
        skip!("not root: can't make devices and owners");
    }
    let mut zoo = zoo();
    // The filesystem that it unpacks on may not reach that far.
    zoo.0.remove(&b"after"[..]);
    let tree = whole(&zoo.open());
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.tar");
    fs::write(&archive, raw(&tree)).unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let archive = archive.to_str().unwrap();
    let to = out.to_str().unwrap();
    run(
        "tar",
        [
            "-xpSf",
            archive,
            "-C",
            to,
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
        ],
    );
    let compared = run(
        "tar",
        ["--compare", "-f", archive, "-C", to, "--numeric-owner"],
    );
    assert!(
        compared.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&compared.stdout)
    );
    assert_eq!(crate::kernel::dump(&out), dump(&tree));
}

#[test]
fn python_reads_it_in_order() {
    if !lcow_testkit::have("python3") {
        skip!("no python3");
    }
    let tree = whole(&zoo().open());
    let program = "
import sys, tarfile, hashlib
t = tarfile.open(fileobj=sys.stdin.buffer, mode='r|')
names = []
for m in t:
    names.append(m.name + '/' * m.isdir())
    if m.name == 'sparse':
        assert m.sparse and m.size == 3 << 20, m.size
        data = t.extractfile(m).read()
        assert data == bytes(1 << 20) + b'\\1' + bytes((2 << 20) - 1), len(data)
    if m.name == 'short-zeros':
        assert not m.sparse
    if m.name == 'big-ids':
        assert (m.uid, m.gid) == (3000000000, 1500000000), (m.uid, m.gid)
        assert m.mode == 0o6755
    if m.name == 'before':
        assert m.mtime == -0.5, m.mtime
    if m.name == 'minor':
        assert (m.devmajor, m.devminor) == (259, 1048575)
assert names[0] == './' and names[1:] == sorted(names[1:], key=lambda n: n.encode()), names
print(len(names))
";
    let mut python = Command::new("python3")
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let tar = raw(&tree);
    std::io::Write::write_all(&mut python.stdin.take().unwrap(), &tar).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let count: usize = String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(count, dump(&tree).len() + 1);
}
