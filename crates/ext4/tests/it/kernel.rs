//! What the kernel sees of what the writer wrote. Needs root.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use lcow_blockio::FileDisk;
use lcow_ext4::writer::{Content, Metadata, Writer, WriterOptions};
use lcow_ext4::{Device, Timestamp};
use lcow_testkit::{LoopMount, is_root, skip};

use crate::support::{IDENTITY, Image, ROOT, dir, file, image, meta, noise};

#[test]
fn every_type_and_field() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let long_target = [b'x'; 4095];
    let metadata = Metadata {
        permissions: 0o7751,
        uid: 70_000,
        gid: 4_000_000_000,
        atime: Timestamp { secs: 5, nanos: 1 },
        mtime: Timestamp {
            secs: 6,
            nanos: 999_999_999,
        },
        ctime: Timestamp { secs: 7, nanos: 3 },
    };
    let (image, _) = image(|w| {
        w.set_metadata(ROOT, &meta(0o711)).unwrap();
        let d = w.create(ROOT, b"d", Content::Directory, &metadata).unwrap();
        file(w, d, "small", b"hello");
        w.create(d, b"empty", Content::Regular, &metadata).unwrap();
        for (name, target) in [
            (&b"short"[..], &b"small"[..]),
            (b"t59", &long_target[..59]),
            (b"t60", &long_target[..60]),
            (b"t4095", &long_target),
        ] {
            w.create(d, name, Content::Symlink(target), &meta(0o777))
                .unwrap();
        }
        for (name, major, minor) in [
            (&b"null"[..], 1, 3),
            (b"whiteout", 0, 0),
            (b"wide", 259, 70_000),
            (b"widest", 4095, 0xf_ffff),
        ] {
            let device = Device { major, minor };
            w.create(d, name, Content::CharDevice(device), &meta(0o600))
                .unwrap();
            let name = [name, b"-block"].concat();
            w.create(d, &name, Content::BlockDevice(device), &meta(0o600))
                .unwrap();
        }
        w.create(d, b"fifo", Content::Fifo, &meta(0o600)).unwrap();
        w.create(d, b"socket", Content::Socket, &meta(0o600))
            .unwrap();
        w.create(
            d,
            b"\xff\xfe not utf-8 \x01",
            Content::Regular,
            &meta(0o600),
        )
        .unwrap();
        w.create(d, &[b'n'; 255], Content::Regular, &meta(0o600))
            .unwrap();
    });
    let mount = LoopMount::new(image.path(), "ro");
    let at = |name: &str| mount.path().join("d").join(name);
    assert_eq!(fs::metadata(mount.path()).unwrap().mode() & 0o7777, 0o711);
    for name in ["", "empty"] {
        let m = fs::metadata(at(name)).unwrap();
        assert_eq!(m.mode() & 0o7777, 0o7751);
        assert_eq!((m.uid(), m.gid()), (70_000, 4_000_000_000));
        assert_eq!((m.atime(), m.atime_nsec()), (5, 1));
        assert_eq!((m.mtime(), m.mtime_nsec()), (6, 999_999_999));
        assert_eq!((m.ctime(), m.ctime_nsec()), (7, 3));
    }
    assert_eq!(fs::read(at("small")).unwrap(), b"hello");
    assert_eq!(fs::read(at("empty")).unwrap(), b"");
    assert_eq!(fs::read_link(at("short")).unwrap().as_os_str(), "small");
    for len in [59, 60, 4095] {
        let target = fs::read_link(at(&format!("t{len}"))).unwrap();
        assert_eq!(target.as_os_str().as_bytes(), &long_target[..len]);
    }
    for (name, major, minor) in [
        ("null", 1, 3),
        ("whiteout", 0, 0),
        ("wide", 259, 70_000),
        ("widest", 4095, 0xf_ffff),
    ] {
        let m = fs::symlink_metadata(at(name)).unwrap();
        assert!(m.file_type().is_char_device());
        assert_eq!(m.rdev(), rustix::fs::makedev(major, minor), "{name}");
        let m = fs::symlink_metadata(at(&format!("{name}-block"))).unwrap();
        assert!(m.file_type().is_block_device());
        assert_eq!(m.rdev(), rustix::fs::makedev(major, minor), "{name}");
    }
    assert!(fs::metadata(at("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::metadata(at("socket")).unwrap().file_type().is_socket());
    for name in [&b"\xff\xfe not utf-8 \x01"[..], &[b'n'; 255]] {
        assert!(
            mount
                .path()
                .join("d")
                .join(OsStr::from_bytes(name))
                .is_file()
        );
    }
}

#[test]
fn times_before_1970_and_after_2038() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let times = [
        -0x8000_0000,
        -1_000_000_000,
        -1,
        0,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_8000_0000,
        0x2_8000_0000,
        0x3_7fff_ffff,
    ];
    let fill = |w: &mut Writer<FileDisk>, times: &[i64]| {
        for secs in times {
            let time = Timestamp {
                secs: *secs,
                nanos: 7,
            };
            let metadata = Metadata {
                mtime: time,
                ctime: time,
                ..meta(0o600)
            };
            w.create(
                ROOT,
                secs.to_string().as_bytes(),
                Content::Regular,
                &metadata,
            )
            .unwrap();
        }
    };
    // e2fsck takes times from 2310 to 2378 for earlier ones that old kernels wrote wrongly, and says so: these go without it.
    let beyond_e2fsck = 0x2_8000_0000..0x3_0000_0000;
    let checked = times.into_iter().filter(|t| !beyond_e2fsck.contains(t));
    image(|w| fill(w, &checked.collect::<Vec<_>>()));
    let image = Image::new();
    let mut w = Writer::new(image.disk(), &WriterOptions::default()).unwrap();
    fill(&mut w, &times);
    w.finish(&IDENTITY).unwrap();
    let mount = LoopMount::new(image.path(), "ro");
    for secs in times {
        let m = fs::metadata(mount.path().join(secs.to_string())).unwrap();
        assert_eq!((m.mtime(), m.mtime_nsec(), m.ctime()), (secs, 7, secs));
    }
}

#[test]
fn contents_holes_and_links() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let sizes = [
        1,
        4095,
        4096,
        4097,
        65_535,
        65_536,
        70_000,
        1 << 20,
        (5 << 20) + 123,
    ];
    let mut sparse = vec![0; 3_000_000];
    sparse[1_000_000..1_000_100].fill(b'x');
    sparse[2_999_999] = b'y';
    let (image, _) = image(|w| {
        for size in sizes {
            file(w, ROOT, &format!("whole-{size}"), &noise(size, 1));
            // The same in odd pieces.
            let name = format!("pieces-{size}");
            let inode = w
                .create(ROOT, name.as_bytes(), Content::Regular, &meta(0o644))
                .unwrap();
            w.begin_data(inode).unwrap();
            let data = noise(size, 1);
            let (first, rest) = data.split_at(size.min(513));
            w.write_data(first).unwrap();
            rest.chunks(99_999)
                .for_each(|piece| w.write_data(piece).unwrap());
            w.end_data().unwrap();
        }
        let inode = file(w, ROOT, "sparse", &sparse);
        w.link(ROOT, b"linked", inode).unwrap();
        let inode = w
            .create(ROOT, b"skipped", Content::Regular, &meta(0o644))
            .unwrap();
        w.begin_data(inode).unwrap();
        w.write_data(b"head").unwrap();
        w.skip_data(10 << 30).unwrap();
        w.write_data(b"tail").unwrap();
        w.skip_data(5000).unwrap();
        w.end_data().unwrap();
    });
    let mount = LoopMount::new(image.path(), "ro");
    let at = |name: &str| mount.path().join(name);
    for size in sizes {
        for name in ["whole", "pieces"] {
            let read = fs::read(at(&format!("{name}-{size}"))).unwrap();
            assert!(read == noise(size, 1), "{name}-{size}");
        }
    }
    assert!(fs::read(at("sparse")).unwrap() == sparse);
    let m = fs::metadata(at("linked")).unwrap();
    assert_eq!(m.nlink(), 2);
    assert_eq!(m.ino(), fs::metadata(at("sparse")).unwrap().ino());
    // Two blocks of data, the rest holes.
    assert_eq!(m.blocks(), 16);
    let skipped = fs::File::open(at("skipped")).unwrap();
    let m = skipped.metadata().unwrap();
    assert_eq!((m.len(), m.blocks()), (8 + (10 << 30) + 5000, 16));
    let mut bytes = [1; 12];
    skipped.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"head\0\0\0\0\0\0\0\0");
    skipped.read_exact_at(&mut bytes, 10 << 30).unwrap();
    assert_eq!(&bytes, b"\0\0\0\0tail\0\0\0\0");
}

#[test]
fn a_broken_up_file_gets_a_deep_extent_tree() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    // Every other block a hole: 3,000 extents in 9 leaves, and an index block above them.
    let blocks = 6000usize;
    let content = |i: usize| -> Vec<u8> { noise(4096, i as u64) };
    let (image, _) = image(|w| {
        let inode = w
            .create(ROOT, b"broken", Content::Regular, &meta(0o644))
            .unwrap();
        w.begin_data(inode).unwrap();
        for i in (0..blocks).step_by(2) {
            w.write_data(&content(i)).unwrap();
            w.skip_data(4096).unwrap();
        }
        w.end_data().unwrap();
        let mut read = vec![0; 8192];
        assert_eq!(w.read_back(inode, 4096 * 5000, &mut read).unwrap(), 8192);
        assert!(read[..4096] == content(5000) && read[4096..].iter().all(|b| *b == 0));
    });
    let mount = LoopMount::new(image.path(), "ro");
    let read = fs::read(mount.path().join("broken")).unwrap();
    assert_eq!(read.len(), blocks * 4096);
    for (i, block) in read.chunks(4096).enumerate() {
        if i % 2 == 0 {
            assert!(block == content(i), "block {i}");
        } else {
            assert!(block.iter().all(|b| *b == 0), "block {i}");
        }
    }
    // Data, 9 leaves, 1 index block.
    let m = fs::metadata(mount.path().join("broken")).unwrap();
    assert_eq!(m.blocks(), (3000 + 9 + 1) * 8);
}

#[test]
fn a_file_of_fifty_gibibytes_ends_right() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    // A byte every 64 KiB would be slow; blocks at the ends of each extent that a whole file would have, and beyond the 42.5 GiB
    // that one index block can take, are what matters.
    let size = 50u64 << 30;
    let mark = 100u64 << 20;
    let (image, _) = image(|w| {
        let inode = w
            .create(ROOT, b"big", Content::Regular, &meta(0o644))
            .unwrap();
        w.begin_data(inode).unwrap();
        for i in 0..size / mark {
            w.write_data(&noise(4096, i)).unwrap();
            w.skip_data(mark - 8192).unwrap();
            w.write_data(&noise(4096, i + 1_000_000)).unwrap();
        }
        w.end_data().unwrap();
    });
    let mount = LoopMount::new(image.path(), "ro");
    let file = fs::File::open(mount.path().join("big")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let mut block = [0; 4096];
    for i in 0..size / mark {
        file.read_exact_at(&mut block, i * mark).unwrap();
        assert!(block[..] == noise(4096, i), "{i}");
        file.read_exact_at(&mut block, (i + 1) * mark - 4096)
            .unwrap();
        assert!(block[..] == noise(4096, i + 1_000_000), "{i}");
    }
}

#[test]
fn the_kernel_finds_every_name_of_a_large_directory() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let count = 30_000u32;
    let (image, _) = image(|w| {
        let large = dir(w, ROOT, "large");
        for i in 0..count {
            let name = format!("a rather long name to have many blocks {i:06}");
            w.create(large, name.as_bytes(), Content::Regular, &meta(0o600))
                .unwrap();
        }
        // Two blocks' worth, with bytes above 127, whose hash depends on their sign.
        let signed = dir(w, ROOT, "signed");
        for i in 0..300 {
            let name = format!("ÿþ-é-{i}");
            w.create(signed, name.as_bytes(), Content::Fifo, &meta(0o600))
                .unwrap();
        }
    });
    let mount = LoopMount::new(image.path(), "ro");
    let large = mount.path().join("large");
    for i in 0..count {
        let name = format!("a rather long name to have many blocks {i:06}");
        assert!(fs::symlink_metadata(large.join(&name)).is_ok(), "{name}");
    }
    assert_eq!(fs::read_dir(&large).unwrap().count(), count as usize);
    for i in 0..300 {
        let name = format!("ÿþ-é-{i}");
        assert!(
            fs::symlink_metadata(mount.path().join("signed").join(&name)).is_ok(),
            "{name}"
        );
    }
    assert!(fs::symlink_metadata(large.join("not there")).is_err());
}

#[test]
fn the_read_only_feature_holds() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let (image, _) = image(|w| {
        file(w, ROOT, "f", b"data");
    });
    let mount = LoopMount::new(image.path(), "rw");
    let error = fs::write(mount.path().join("g"), b"").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}
