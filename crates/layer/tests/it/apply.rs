//! What entries come to: order, repetition, whiteouts, refusals.

use lcow_blockio::{FileDisk, MemDisk, ReadAt};
use lcow_ext4::FileType;
use lcow_ext4::check::{CheckOptions, check};
use lcow_layer::ErrorKind;
use lcow_layer::apply::{ApplyError, ApplyOptions, Refusal, Salt, apply, convert};
use lcow_layer::compress::Compression;
use lcow_layer::export::{ExactError, Expected, Exported, exact, unverified};
use lcow_layer::tar::Malformed;

use crate::support::{Made, Tree, make, make_with, tree};
use crate::tars::{Hand, tar};

/// A short text of a tree: `path:type[=content length][>link][!opaque]`, sorted.
fn shape(tree: &Tree) -> String {
    let mut out = Vec::new();
    for (path, node) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        let mut text = String::from_utf8_lossy(path).into_owned();
        match FileType::from_mode(node.mode) {
            Some(FileType::Directory) => text.push('/'),
            Some(FileType::Symlink) => {
                text = format!(
                    "{text}>{}",
                    String::from_utf8_lossy(node.link.as_ref().unwrap())
                );
            }
            Some(FileType::CharDevice) => text = format!("{text}={:?}", node.device.unwrap()),
            _ => text = format!("{text}={}", node.size),
        }
        if node.links > 1 && !text.ends_with('/') {
            text = format!("{text}x{}", node.links);
        }
        if node
            .xattrs
            .iter()
            .any(|(name, _)| name == b"trusted.overlay.opaque")
        {
            text.push('!');
        }
        out.push(text);
    }
    out.join(" ")
}

/// Applies, re-emits exactly, and gives the tree.
fn applied(tar: &[u8], options: &ApplyOptions) -> Tree {
    let made = make_with(tar, options).unwrap();
    assert_exact(&made, tar);
    let plain = tree(&made.disk);
    // The same with small files and directories in their inodes.
    let options = ApplyOptions {
        inline: true,
        ..options.clone()
    };
    let made = make_with(tar, &options).unwrap();
    assert_exact(&made, tar);
    let report = check(&made.disk, &CheckOptions::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(shape(&tree(&made.disk)), shape(&plain));
    plain
}

pub(crate) fn assert_exact(made: &Made, tar: &[u8]) {
    let mut out = Vec::new();
    let expected = Exported {
        diff_id: made.applied.diff_id,
        size: tar.len() as u64,
    };
    let report = exact(
        &made.disk,
        &made.split[..],
        Expected::This(expected),
        &mut out,
    )
    .unwrap();
    assert_eq!(report.size, tar.len() as u64);
    assert!(out == tar, "the tar came out different");
    let mut unhashed = Vec::new();
    let told = unverified(&made.disk, &made.split[..], u64::MAX, &mut unhashed).unwrap();
    assert_eq!(told, report);
    assert!(unhashed == tar, "the tar came out different, unverified");
}

#[test]
fn order_and_repetition() {
    let f = Hand::file;
    let (d, l, s) = (Hand::dir, Hand::link, Hand::symlink);
    for (entries, expected) in [
        (vec![f("a/b/c", b"12")], "a/ a/b/ a/b/c=2"),
        (vec![f("a", b"1"), f("a", b"22")], "a=2"),
        (vec![f("a/b", b"1"), d("a/")], "a/ a/b=1"),
        (vec![d("a"), f("a", b"1")], "a=1"),
        (vec![f("a", b"1"), d("a"), f("a/b", b"")], "a/ a/b=0"),
        (
            vec![f("a/b/c", b"1"), f("a", b"22"), d("a"), f("a/b", b"333")],
            "a/ a/b=3",
        ),
        (vec![f("a", b"1"), l("b", "a"), f("a", b"22")], "a=2 b=1"),
        (vec![f("a", b"1"), l("b", "a")], "a=1x2 b=1x2"),
        (vec![f("a", b"1"), l("a", "a")], "a=1"),
        (
            vec![f("a", b"1"), l("b", "./x/../a"), l("c", "/b")],
            "a=1x3 b=1x3 c=1x3",
        ),
        (vec![s("a", "b"), l("c", "a")], "a>bx2 c>bx2"),
        (vec![s("a", "b"), f("a", b"1")], "a=1"),
        (vec![f("a", b"1"), s("a", "/etc/passwd")], "a>/etc/passwd"),
        (vec![s("a", "b"), d("a"), f("a/x", b"")], "a/ a/x=0"),
        (
            vec![f("/abs/./x//y", b"1"), f("abs/z/../w", b"1")],
            "abs/ abs/w=1 abs/x/ abs/x/y=1",
        ),
        (vec![d("./"), f("./a", b"")], "a=0"),
        (
            vec![Hand::new(0, "old/"), Hand::new(0, "old/f")],
            "old/ old/f=0",
        ),
        (vec![d("d").octal_at(124, 11, 5000), f("f", b"1")], "d/ f=1"),
        (
            vec![
                f("f", b"1"),
                l("l", "f").octal_at(124, 11, 5000),
                s("s", "f").octal_at(124, 11, 9),
            ],
            "f=1x2 l=1x2 s>f",
        ),
        (vec![Hand::new(b'7', "c").data(b"123")], "c=3"),
        (
            vec![f(".wh.a", b""), f("b/.wh..wh..opq", b"")],
            ".wh.a=0 b/ b/.wh..wh..opq=0",
        ),
    ] {
        let plain = ApplyOptions {
            overlay: false,
            ..ApplyOptions::default()
        };
        let bytes = tar(&entries);
        assert_eq!(shape(&applied(&bytes, &plain)), expected, "{entries:?}");
    }
}

#[test]
fn whiteouts() {
    let f = Hand::file;
    let d = Hand::dir;
    for (entries, expected) in [
        (vec![f(".wh.a", b"")], "a=(0, 0)"),
        (vec![f("d/.wh.a", b"with content")], "d/ d/a=(0, 0)"),
        (vec![f("d/.wh..wh..opq", b""), d("d")], "d/!"),
        (
            vec![d("d"), f("d/x", b""), f("d/.wh..wh..opq", b"")],
            "d/! d/x=0",
        ),
        (
            vec![
                f("d/.wh..wh..opq", b""),
                Hand::pax(&[("SCHILY.xattr.user.x", b"y")]),
                d("d"),
            ],
            "d/!",
        ),
        (vec![f(".wh.a", b""), f("a", b"1")], "a=1"),
        (vec![f("a", b"1"), f(".wh.a", b"")], "a=1"),
        (vec![f(".wh.a", b""), d("a")], "a/!"),
        (vec![d("a"), f(".wh.a", b"")], "a/!"),
        (vec![f(".wh.a", b""), f("a/b", b"")], "a/! a/b=0"),
        (vec![f(".wh.a", b""), f(".wh.a", b"")], "a=(0, 0)"),
        (
            vec![f(".wh..wh.plnk", b"data"), f(".wh..wh.aufs/x", b"more")],
            "",
        ),
        (vec![Hand::link(".wh.a", ".wh..wh.aufs")], "a=(0, 0)"),
    ] {
        let bytes = tar(&entries);
        assert_eq!(
            shape(&applied(&bytes, &ApplyOptions::default())),
            expected,
            "{entries:?}"
        );
    }
    let root = tar(&[f(".wh..wh..opq", b"")]);
    let root = applied(&root, &ApplyOptions::default());
    assert_eq!(
        root[&b""[..]].xattrs,
        [(b"trusted.overlay.opaque".to_vec(), b"y".to_vec())]
    );
}

#[test]
fn metadata_is_kept() {
    let bytes = tar(&[
        Hand::pax(&[
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.k", b"a\0b"),
            ("LIBARCHIVE.xattr.user.l", b"YWJj"),
            ("SCHILY.xattr.com.apple.x", b"dropped"),
            ("uid", b"4000000000"),
        ]),
        Hand::file("f", b"").octal_at(100, 7, 0o6755),
        Hand::file("plain", b""),
        Hand::new(b'4', "b")
            .octal_at(329, 7, 259)
            .octal_at(337, 7, 70000),
        Hand::new(b'6', "p").octal_at(100, 7, 0o1600),
    ]);
    let tree = applied(&bytes, &ApplyOptions::default());
    let f = &tree[&b"f"[..]];
    assert_eq!(
        (f.mode, f.uid, f.mtime.secs, f.mtime.nanos),
        (0o106_755, 4_000_000_000, -2, 750_000_000)
    );
    assert_eq!(
        f.xattrs,
        [
            (b"user.k".to_vec(), b"a\0b".to_vec()),
            (b"user.l".to_vec(), b"abc".to_vec())
        ]
    );
    assert_eq!(
        (tree[&b"plain"[..]].uid, tree[&b"plain"[..]].xattrs.len()),
        (0, 0)
    );
    assert_eq!(tree[&b"b"[..]].device, Some((259, 70000)));
    assert_eq!(tree[&b"p"[..]].mode, 0o011_600);
}

#[test]
fn hostile_entries_are_refused() {
    let f = Hand::file;
    let (d, l, s) = (Hand::dir, Hand::link, Hand::symlink);
    let long = "x".repeat(256);
    let pax = |key: &str, value: &[u8]| Hand::pax(&[(key, value)]);
    type Check = fn(&Refusal) -> bool;
    let cases: Vec<(Vec<Hand>, Check)> = vec![
        (vec![f("../a", b"")], |r| matches!(r, Refusal::LeavesRoot)),
        (vec![f("a/../../b", b"")], |r| {
            matches!(r, Refusal::LeavesRoot)
        }),
        (vec![d("..")], |r| matches!(r, Refusal::LeavesRoot)),
        (vec![f(".", b"")], |r| matches!(r, Refusal::NoName)),
        (vec![f("", b"")], |r| matches!(r, Refusal::NoName)),
        (vec![s("a/..", "x")], |r| matches!(r, Refusal::NoName)),
        (vec![s("a", "/etc"), f("a/passwd", b"")], |r| {
            matches!(r, Refusal::SymlinkInPath(_))
        }),
        (vec![s("a", "."), d("a/b/c")], |r| {
            matches!(r, Refusal::SymlinkInPath(_))
        }),
        (vec![f("a", b""), f("a/b", b"")], |r| {
            matches!(r, Refusal::NotADirectory(_))
        }),
        (vec![l("a", "nothing")], |r| {
            matches!(r, Refusal::MissingTarget(_))
        }),
        (vec![l("a", "../x")], |r| {
            matches!(r, Refusal::TargetLeavesRoot(_))
        }),
        (vec![f(".wh.x", b""), l("a", "x")], |r| {
            matches!(r, Refusal::MissingTarget(_))
        }),
        (vec![d("d"), l("a", "d")], |r| {
            matches!(r, Refusal::LinkToDirectory(_))
        }),
        (vec![l("a", "/")], |r| {
            matches!(r, Refusal::LinkToDirectory(_))
        }),
        (vec![f("d/x", b""), l("d", "d/x")], |r| {
            matches!(r, Refusal::MissingTarget(_))
        }),
        (vec![s("a", "/etc"), l("b", "a/passwd")], |r| {
            matches!(r, Refusal::SymlinkInTarget(_))
        }),
        (vec![s("a", "")], |r| matches!(r, Refusal::SymlinkTarget(0))),
        (vec![pax("linkpath", &[b'x'; 4096]), s("a", "")], |r| {
            matches!(r, Refusal::SymlinkTarget(4096))
        }),
        (vec![pax("path", long.as_bytes()), f("a", b"")], |r| {
            matches!(r, Refusal::NameTooLong(256))
        }),
        (
            vec![pax("path", format!("{long}/b").as_bytes()), f("a", b"")],
            |r| matches!(r, Refusal::NameTooLong(256)),
        ),
        (vec![pax("uid", b"-1"), f("a", b"")], |r| {
            matches!(r, Refusal::OutOfRange { .. })
        }),
        (vec![pax("gid", b"4294967296"), f("a", b"")], |r| {
            matches!(r, Refusal::OutOfRange { .. })
        }),
        (vec![Hand::new(b'3', "n").octal_at(329, 7, 4096)], |r| {
            matches!(r, Refusal::OutOfRange { .. })
        }),
        (vec![Hand::new(b'V', "label")], |r| {
            matches!(r, Refusal::Type('V'))
        }),
        (vec![f(".wh.", b"")], |r| {
            matches!(r, Refusal::EmptyWhiteout)
        }),
        (vec![f(".wh...", b"")], |r| {
            matches!(r, Refusal::EmptyWhiteout)
        }),
        (vec![d(".wh.a")], |r| matches!(r, Refusal::WhiteoutType)),
        (vec![f(".wh.a/b", b"")], |r| {
            matches!(r, Refusal::BelowWhiteout(_))
        }),
    ];
    for (entries, check) in cases {
        let last = entries.last().unwrap().finish().len();
        let bytes = tar(&entries);
        match make(&bytes) {
            Err(ApplyError::Refused { offset, reason, .. }) => {
                assert!(check(&reason), "{entries:?}: {reason:?}");
                assert_eq!(offset, (bytes.len() - 1024 - last) as u64, "{entries:?}");
            }
            other => panic!("{entries:?}: {other:?}"),
        }
    }
}

#[test]
fn damaged_archives_are_told_apart() {
    let f = || Hand::file("f", &[7; 700]);
    let whole = tar(&[f()]);
    let mut flipped = tar(&[f(), f()]);
    flipped[1536 + 5] ^= 1;
    let mut lone = f().finish();
    lone.extend_from_slice(&[0; 512]);
    lone.extend_from_slice(&f().finish());
    let mut garbage = whole.clone();
    garbage.resize(5000, 0);
    garbage.push(1);
    let large = Hand::new(b'x', "p").octal_at(124, 11, (1 << 20) + 1);
    let long_name = Hand::new(b'L', "p").octal_at(124, 11, (1 << 20) + 1);
    let bad = |reason: Malformed, at: u64| move |e: &ApplyError| matches!(e, ApplyError::BadArchive { reason: r, offset, .. } if *r == reason && *offset == at);
    type Check = Box<dyn Fn(&ApplyError) -> bool>;
    let cut = |at: u64| -> Check {
        Box::new(move |e| matches!(e, ApplyError::Truncated { offset, .. } if *offset == at))
    };
    let cases: Vec<(&str, Vec<u8>, Check)> = vec![
        ("inside data", whole[..900].to_vec(), cut(900)),
        (
            "inside a header",
            [&whole[..1536], &f().finish()[..100]].concat(),
            cut(1636),
        ),
        (
            "after a PAX header",
            Hand::pax(&[("path", b"x")]).finish(),
            cut(1024),
        ),
        ("flipped", flipped, Box::new(bad(Malformed::Checksum, 1536))),
        (
            "lone zero block",
            lone,
            Box::new(bad(Malformed::LoneZeroBlock, 1536)),
        ),
        (
            "garbage",
            garbage,
            Box::new(bad(Malformed::TrailingGarbage, 5000)),
        ),
        (
            "large PAX",
            tar(&[large, f()]),
            Box::new(bad(Malformed::TooLong("a PAX header"), 0)),
        ),
        (
            "long name",
            tar(&[long_name, f()]),
            Box::new(bad(Malformed::TooLong("a GNU long name"), 0)),
        ),
        (
            "empty",
            Vec::new(),
            Box::new(|e| matches!(e, ApplyError::NotATar { .. })),
        ),
        (
            "text",
            vec![b'x'; 2000],
            Box::new(|e| matches!(e, ApplyError::NotATar { .. })),
        ),
        (
            "short",
            vec![b'x'; 20],
            Box::new(|e| matches!(e, ApplyError::NotATar { .. })),
        ),
        (
            "negative size",
            tar(&[Hand::new(b'0', "f").bytes(124, &[0xff; 12])]),
            Box::new(bad(Malformed::NegativeSize, 0)),
        ),
        (
            "not a number",
            tar(&[Hand::new(b'0', "f").bytes(108, b"zz")]),
            Box::new(bad(Malformed::Number("uid"), 0)),
        ),
    ];
    for (name, bytes, check) in cases {
        let error = make(&bytes).unwrap_err();
        assert!(check(&error), "{name}: {error:?}");
    }
    // Not errors: no end at all, half of the padding, a great deal of padding.
    for good in [
        &whole[..1536],
        &whole[..1300],
        &[&whole[..], &[0; 20_001]].concat(),
    ] {
        let made = make(good).unwrap();
        assert_exact(&made, good);
    }
}

#[test]
fn input_errors_come_through_with_their_place() {
    struct Failing(usize);
    impl std::io::Read for Failing {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let n = out.len().min(self.0);
            if n == 0 {
                return Err(std::io::Error::other("cable pulled"));
            }
            out[..n].copy_from_slice(&Hand::file("f", &[1; 5000]).finish()[..n]);
            self.0 = 0;
            Ok(n)
        }
    }
    let disk = MemDisk::new();
    let error = apply(Failing(400), &disk, None, &ApplyOptions::default());
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(
        matches!(error, ApplyError::Io { ref source, .. } if source.to_string() == "cable pulled")
    );
}

#[test]
fn a_bomb_is_stopped() {
    let bytes = zstd::encode_all(&vec![0; 8 << 20][..], 3).unwrap();
    let options = ApplyOptions {
        ratio_floor: 1 << 20,
        ..ApplyOptions::default()
    };
    assert!(matches!(
        make_with(&bytes, &options),
        Err(ApplyError::Ratio { .. })
    ));
    make(&bytes).unwrap();
}

#[test]
fn the_same_tar_gives_the_same_bytes() {
    let bytes = tar(&[
        Hand::dir("d"),
        Hand::file("d/f", &[3; 10_000]),
        Hand::link("l", "d/f"),
    ]);
    let options = ApplyOptions {
        vhd: true,
        ..ApplyOptions::default()
    };
    let all = |made: &Made| {
        let mut disk = vec![0; made.disk.size().unwrap() as usize];
        made.disk.read_exact_at(0, &mut disk).unwrap();
        (disk, made.split.clone())
    };
    let one = make_with(&bytes, &options).unwrap();
    let two = make_with(&zstd::encode_all(&bytes[..], 3).unwrap(), &options).unwrap();
    assert!(all(&one) == all(&two));
    assert_eq!(one.disk.size().unwrap(), one.applied.disk_size + 512);
    assert_eq!(one.applied.diff_id, two.applied.diff_id);
    assert_exact(&one, &bytes);
    let other = make_with(&tar(&[Hand::dir("e")]), &options).unwrap();
    assert!(all(&one).0[..2048] != all(&other).0[..2048]);
}

#[test]
fn without_a_digest_the_headers_make_the_identity() {
    let hands = |mode: u64, content: u8| {
        let file = Hand::file("d/f", &[content; 10_000]);
        tar(&[Hand::dir("d"), file.octal_at(100, 7, mode)])
    };
    let options = ApplyOptions::default();
    let made = |bytes: &[u8]| {
        let disk = MemDisk::new();
        let converted = convert(bytes, &disk, &options).unwrap();
        (disk.into_bytes(), converted)
    };
    let (disk, converted) = made(&hands(0o644, 3));
    assert_eq!(converted.compression, Compression::None);
    let zipped = zstd::encode_all(&hands(0o644, 3)[..], 3).unwrap();
    let (again, from_zipped) = made(&zipped);
    assert!(disk == again);
    assert_eq!(from_zipped.compression, Compression::Zstd);
    assert_eq!(from_zipped.tar_size, converted.tar_size);
    // The UUID is bytes 104 to 120 of the superblock.
    let uuid = |disk: &[u8]| disk[1024 + 104..1024 + 120].to_vec();
    assert_ne!(uuid(&disk), uuid(&made(&hands(0o600, 3)).0));
    // Only headers count, and hashing gives another identity.
    assert_eq!(uuid(&disk), uuid(&made(&hands(0o644, 4)).0));
    let applied = make(&hands(0o644, 3)).unwrap();
    assert_eq!(tree(MemDisk::from(disk.clone())), tree(&applied.disk));
    assert_ne!(uuid(&disk), uuid(&applied.disk.into_bytes()));
}

#[test]
fn a_file_takes_no_more_space_than_was_written() {
    use std::os::unix::fs::MetadataExt as _;
    let file = tempfile::tempfile().unwrap();
    let bytes = tar(&[Hand::file("f", &vec![7; 3 << 20])]);
    let disk = FileDisk::from(file.try_clone().unwrap());
    let applied = apply(&bytes[..], disk, None, &ApplyOptions::default()).unwrap();
    assert_eq!(file.metadata().unwrap().len(), applied.disk_size);
    let taken = file.metadata().unwrap().blocks() * 512;
    assert!(
        (3 << 20..(3 << 20) + (256 << 10)).contains(&taken),
        "{taken}"
    );
}

#[test]
fn a_verity_tree_covers_the_file_system() {
    use lcow_disk::verity::{self, Tree};
    let bytes = tar(&[Hand::dir("d"), Hand::file("d/f", &[3; 10_000])]);
    let with = |salt: Option<Salt>| {
        let options = ApplyOptions {
            vhd: true,
            verity: salt,
            ..ApplyOptions::default()
        };
        make_with(&bytes, &options)
    };
    let all = |made: &Made| {
        let mut disk = vec![0; made.disk.size().unwrap() as usize];
        made.disk.read_exact_at(0, &mut disk).unwrap();
        disk
    };
    let (plain, one) = (with(None).unwrap(), with(Some(Salt::Derived)).unwrap());
    let size = one.applied.disk_size;
    assert_eq!(plain.applied.verity_root, None);
    assert_eq!(plain.applied.disk_size, size);
    // The file system is the same with and without; footer and tree are where they belong.
    assert!(all(&plain)[..size as usize] == all(&one)[..size as usize]);
    let (footer, range) = lcow_disk::vhd::open(&one.disk).unwrap();
    assert_eq!(Some(footer.current_size), verity::end(size));
    let root = one.applied.verity_root.unwrap();
    Tree::open(range, size).unwrap().verify(&root).unwrap();
    assert_exact(&one, &bytes);

    assert!(all(&one) == all(&with(Some(Salt::Derived)).unwrap()));
    let given = with(Some(Salt::Given(b"salt".to_vec()))).unwrap();
    assert_ne!(given.applied.verity_root, Some(root));
    let error = with(Some(Salt::Given(vec![0; 257]))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
}

#[test]
fn damaged_sidecars_are_errors() {
    let bytes = tar(&[
        Hand::file("f", &[3; 10_000]),
        Hand::file("f", b"1"),
        Hand::dir("d"),
    ]);
    let made = make(&bytes).unwrap();
    let plain = zstd::decode_all(&made.split[..]).unwrap();
    let run = |split: &[u8]| {
        let split = zstd::encode_all(split, 1).unwrap();
        exact(
            &made.disk,
            &split[..],
            Expected::AtMost(1 << 20),
            &mut std::io::sink(),
        )
    };
    run(&plain).unwrap();
    for at in 0..plain.len() {
        let mut damaged = plain.clone();
        damaged[at] ^= 0x41;
        assert!(run(&damaged).is_err(), "byte {at}");
        assert!(run(&plain[..at]).is_err(), "cut at {at}");
    }
    let mut newer = plain.clone();
    newer[8] = 2;
    assert!(matches!(
        run(&newer),
        Err(ExactError::SplitVersion { version: 2 })
    ));
    assert!(run(&[&plain[..], b"x"].concat()).is_err());
    assert!(
        exact(
            &made.disk,
            &b"junk"[..],
            Expected::AtMost(1 << 20),
            &mut std::io::sink()
        )
        .is_err()
    );
    // Of another size than is known: nothing is written.
    let expected = Exported {
        diff_id: made.applied.diff_id,
        size: bytes.len() as u64 + 512,
    };
    let mut out = Vec::new();
    let error = exact(
        &made.disk,
        &made.split[..],
        Expected::This(expected),
        &mut out,
    )
    .unwrap_err();
    assert!(matches!(error, ExactError::BadSplit { .. }), "{error}");
    assert!(out.is_empty());
    // Nor of a tar larger than may be, whatever the sidecar says of its size, and however much it would have to write.
    for (size, max) in [(bytes.len() as u64, 1024), (u64::MAX, u64::MAX - 1)] {
        let mut hostile = plain.clone();
        hostile[12..20].copy_from_slice(&size.to_le_bytes());
        let hostile = zstd::encode_all(&hostile[..], 1).unwrap();
        for error in [
            exact(&made.disk, &hostile[..], Expected::AtMost(max), &mut out).unwrap_err(),
            unverified(&made.disk, &hostile[..], max, &mut out).unwrap_err(),
        ] {
            assert!(
                matches!(error, ExactError::TooLarge { size: s, max: m } if (s, m) == (size, max)),
                "{error}"
            );
        }
        assert!(out.is_empty());
    }
    // Operations for more than the sidecar says that there is: they end where it does.
    let mut hostile = plain.clone();
    hostile[12..20].copy_from_slice(&1024_u64.to_le_bytes());
    let hostile = zstd::encode_all(&hostile[..], 1).unwrap();
    let error = unverified(&made.disk, &hostile[..], 1 << 20, &mut out).unwrap_err();
    assert!(matches!(error, ExactError::BadSplit { .. }), "{error}");
    assert!(out.len() <= 1024);
}

#[test]
fn the_split_page_says_what_the_code_does() {
    use lcow_layer::split::format as f;
    let page = std::fs::read_to_string(lcow_testkit::workspace_root().join("docs/format/split.md"))
        .unwrap();
    for (code, name) in [
        (f::OP_END, "END"),
        (f::OP_LITERAL, "LITERAL"),
        (f::OP_ZEROS, "ZEROS"),
        (f::OP_PAD, "PAD"),
        (f::OP_HEADER, "HEADER"),
        (f::OP_DATA, "DATA"),
        (f::OP_FILE, "FILE"),
    ] {
        assert!(page.contains(&format!("| {code} | `{name}` |")), "{name}");
    }
    let magic = String::from_utf8(f::MAGIC.to_vec()).unwrap();
    assert!(page.contains(&format!("| 0 | 8 | magic, `{magic}` |")));
    assert!(page.contains(&format!("little-endian: {}; a reader", f::VERSION)));
    assert!(page.contains(&format!("at most {} |", f::MAX_SAVED)));
    assert!(page.contains(&format!("from {} on", f::NO_INODE)));
    assert_eq!(f::PREAMBLE, 52 + 8);
}
