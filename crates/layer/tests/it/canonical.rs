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

/// The tar of a whole filesystem. No time in it is later than that of the tree's root: mke2fs gives the root directory the clock's.
fn tar_of_image(image: Vec<u8>) -> Vec<u8> {
    let options = ExportOptions {
        source_date_epoch: Some(1_234_567_890),
        ..ExportOptions::default()
    };
    tar_of(&whole(&open(image)), &options)
}

#[test]
fn the_same_files_on_any_disk_give_the_same_tar() {
    if !is_root() {
        skip!("not root: can't make devices, owners and mounts");
    }
    let mut zoo = zoo();
    // mke2fs copies whole seconds, and small inodes hold no others.
    for name in [&b"before"[..], b"after"] {
        zoo.0.remove(name);
    }
    for file in zoo.0.values_mut() {
        file.mtime.nanos = 0;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let (tree, zoo_tar, other) = (text("tree"), text("zoo.tar"), text("other.tar"));
    fs::create_dir(path("tree")).unwrap();
    fs::write(path("zoo.tar"), raw(&whole(&zoo.open()))).unwrap();
    let options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-S"];
    let unpack = [&["-xpf", &zoo_tar, "-C", &tree][..], &options[..]].concat();
    run("tar", unpack);
    run("touch", ["-d", "@1234567890", &tree]);

    // From another tar, in another order.
    let pack = [
        "-c",
        "-f",
        &other,
        "--format=posix",
        "--sort=inode",
        "-C",
        &tree,
        ".",
    ];
    run("tar", [&pack[..], &options[..]].concat());
    let other_order = fs::read(&other).unwrap();
    let ours = tar_of_image(disk_of(&other_order, false));

    // By mke2fs, with different formats.
    for (name, format) in [
        ("ext4", &["-t", "ext4"][..]),
        (
            "ext4-1k",
            &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"],
        ),
        ("ext2", &["-t", "ext2", "-I", "128", "-b", "2048"]),
    ] {
        let image = text(name);
        let args = ["-q", "-F", "-d", &tree, &image, "64M"];
        run("mke2fs", [format, &args[..]].concat());
        assert!(
            tar_of_image(fs::read(&image).unwrap()) == ours,
            "mke2fs -d, {name}"
        );
    }

    // By the kernel, on a filesystem that has been used.
    for features in ["has_journal", "inline_data"] {
        let image = text("kernel");
        let format = ["-q", "-F", "-t", "ext4", "-I", "512", "-O", features];
        run("mke2fs", [&format[..], &[&image, "64M"]].concat());
        let mount = lcow_testkit::LoopMount::new(&path("kernel"), "rw");
        let root = mount.path();
        for i in 0..300_u32 {
            fs::write(
                root.join(format!("junk{i}")),
                vec![i as u8; 3000 * (i as usize % 7)],
            )
            .unwrap();
        }
        let into = root.to_str().unwrap();
        run("cp", ["-a", "--sparse=never", &format!("{tree}/."), into]);
        for i in 0..300 {
            fs::remove_file(root.join(format!("junk{i}"))).unwrap();
        }
        run("touch", ["-d", "@1234567890", into]);
        drop(mount);
        let made = tar_of_image(fs::read(&image).unwrap());
        assert!(made == ours, "made by the kernel, {features}");
    }
}

/// An entry's header block, and the keys of its PAX records.
type Header = ([u8; 512], Vec<String>);

fn headers(tar: &[u8]) -> Vec<Header> {
    let mut headers = Vec::new();
    let mut records = Vec::new();
    let mut at = 0;
    loop {
        let block: [u8; 512] = tar[at..at + 512].try_into().unwrap();
        if block == [0; 512] {
            assert_eq!(tar.len(), at + 1024, "two blocks of zeros end it");
            return headers;
        }
        let size = std::str::from_utf8(&block[124..135]).unwrap();
        let size = usize::from_str_radix(size, 8).unwrap();
        at += 512;
        if block[156] == b'x' {
            let mut body = &tar[at..at + size];
            while let Some(space) = body.iter().position(|&b| b == b' ') {
                let len: usize = std::str::from_utf8(&body[..space])
                    .unwrap()
                    .parse()
                    .unwrap();
                let equals = body.iter().position(|&b| b == b'=').unwrap();
                records.push(String::from_utf8(body[space + 1..equals].to_vec()).unwrap());
                body = &body[len..];
            }
        } else {
            headers.push((block, std::mem::take(&mut records)));
        }
        at += size.next_multiple_of(512);
    }
}

#[test]
fn the_tar_page_says_what_is_written() {
    let page = lcow_testkit::workspace_root().join("docs/format/tar.md");
    let page = fs::read_to_string(page).unwrap();
    let rows: Vec<Vec<String>> = page
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|c| c.trim().to_owned())
                .collect()
        })
        .collect();

    // The header's fields lie side by side, and hold what the page says.
    let mut zoo = zoo();
    zoo.add(
        b"after-long",
        File {
            mtime: Timestamp::from_secs(0o777_7777_7777),
            ..File::regular(b"")
        },
    );
    zoo.add(
        b"owner",
        File {
            owner: 0o777_7777,
            ..File::regular(b"")
        },
    );
    zoo.add(
        b"owner-over",
        File {
            owner: 0o1000_0000,
            ..File::regular(b"")
        },
    );
    let entries = headers(&raw(&whole(&zoo.open())));
    let fields: Vec<_> = rows
        .iter()
        .filter(|row| row[0].parse::<usize>().is_ok())
        .collect();
    assert_eq!(fields.len(), 17);
    let mut end = 0;
    for row in fields {
        let (at, len): (usize, usize) = (row[0].parse().unwrap(), row[1].parse().unwrap());
        assert_eq!(at, end, "{row:?}");
        end = at + len;
        for (block, _) in &entries {
            let field = &block[at..end];
            let digits = |count: usize| {
                let (digits, rest) = field.split_at(count);
                digits.iter().all(|b| (b'0'..=b'7').contains(b)) && rest[0] == 0
            };
            let what = &*row[3];
            let fine = match () {
                () if what.starts_with("seven octal digits") => digits(7),
                () if what.starts_with("eleven octal digits") => digits(11),
                () if what.starts_with("six octal digits") => digits(6) && field[7] == b' ',
                () if what.starts_with("`ustar` and a zero byte") => field == b"ustar\0",
                () if what == "`00`" => field == b"00",
                () if what == "zeros" => field.iter().all(|&b| b == 0),
                () if row[2] == "typeflag" => what.contains(&format!("`{}`", char::from(field[0]))),
                () => ["name", "linkname", "prefix"].contains(&&*row[2]),
            };
            assert!(fine, "{row:?}: {}", field.escape_ascii());
        }
    }
    assert_eq!(end, 512);

    // The records are those of the table, and each was met.
    let table: Vec<String> = rows
        .iter()
        .filter(|row| row.len() == 2 && row[0].starts_with('`'))
        .flat_map(|row| {
            row[0]
                .replace("NAME", "")
                .split(", ")
                .map(|key| key.trim_matches('`').to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let mut met: Vec<&String> = Vec::new();
    for key in entries.iter().flat_map(|(_, records)| records) {
        let known = table
            .iter()
            .find(|known| *known == key || known.ends_with('.') && key.starts_with(*known));
        met.push(known.unwrap_or_else(|| panic!("{key} is not in the table")));
    }
    met.sort();
    met.dedup();
    // A file over 8 GiB is too large for a test; all else is in the zoo.
    let missing: Vec<_> = table.iter().filter(|key| !met.contains(key)).collect();
    assert_eq!(missing, ["size"]);
    for (_, records) in &entries {
        assert!(records.is_sorted(), "{records:?}");
    }
    let records_of = |name: &str| {
        let found = entries
            .iter()
            .find(|(block, _)| block.starts_with(format!("{name}\0").as_bytes()));
        found.unwrap().1.clone()
    };
    for (name, records, limit) in [
        ("owner", &[][..], "over 2097151"),
        ("owner-over", &["gid", "uid"][1..], "over 2097151"),
        ("after-long", &[], "past 8589934591"),
        ("after", &["mtime"], "past 8589934591"),
    ] {
        assert_eq!(records_of(name), records, "{name}");
        assert!(page.contains(limit));
    }

    // The bounds of sparse files.
    assert!(page.contains("at least 65536 bytes, counted in whole blocks of 4096 bytes"));
    for (zeros, sparse) in [(65536, true), (65536 - 4096, false)] {
        let mut content = vec![1; 4096];
        content.resize(4096 + zeros, 0);
        content.push(1);
        let mut layer = Layer::default();
        layer.add(b"f", File::regular(&content));
        let entries = headers(&raw(&whole(&layer.open())));
        assert_eq!(!entries[1].1.is_empty(), sparse, "{zeros}");
    }
}
