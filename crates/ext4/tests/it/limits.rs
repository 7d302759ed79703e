//! The limits of ext4 and of the writer, determinism, and what deleting leaves.

use std::path::Path;

use lcow_blockio::{MemDisk, ReadAt};
use lcow_ext4::writer::{Content, WriteError, WriteErrorKind, Writer, WriterOptions};
use lcow_ext4::{Device, FileType, InodeNumber};

use crate::support::{IDENTITY, ROOT, dir, file, image, meta, noise};

fn debugfs(image: &Path, request: &str) -> String {
    let output = lcow_testkit::run(
        "debugfs",
        ["-R".as_ref(), request.as_ref(), image.as_os_str()],
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn seventy_thousand_subdirectories_show_one_link() {
    let (image, _) = image(|w| {
        let parent = dir(w, ROOT, "parent");
        for i in 0..70_000 {
            dir(w, parent, &format!("d{i}"));
        }
        assert_eq!(w.links(parent), Some(70_002));
    });
    assert!(debugfs(image.path(), "stat /parent").contains("Links: 1 "));
}

#[test]
fn sixty_five_thousand_links_and_no_more() {
    let (image, _) = image(|w| {
        let f = file(w, ROOT, "f", b"x");
        for i in 1..65_000 {
            w.link(ROOT, format!("l{i}").as_bytes(), f).unwrap();
        }
        let error = w.link(ROOT, b"one too many", f).unwrap_err();
        assert!(matches!(error, WriteError::TooManyLinks { inode } if inode == f));
        assert_eq!(error.kind(), WriteErrorKind::Refused);
    });
    assert!(debugfs(image.path(), "stat /f").contains("Links: 65000 "));
}

#[test]
fn what_ext4_cannot_hold_is_refused_and_nothing_changes() {
    image(|w| {
        let f = file(w, ROOT, "f", b"x");
        let mut refused = |name: &[u8], content: Content<'_>| {
            let error = w.create(ROOT, name, content, &meta(0o644)).unwrap_err();
            assert_eq!(error.kind(), WriteErrorKind::Refused, "{error}");
            error
        };
        let long = [b'n'; 256];
        assert!(matches!(
            refused(&long, Content::Fifo),
            WriteError::NameTooLong { len: 256 }
        ));
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert!(matches!(
                refused(name, Content::Fifo),
                WriteError::InvalidName { .. }
            ));
        }
        assert!(matches!(
            refused(b"f", Content::Directory),
            WriteError::Exists { .. }
        ));
        let target = [b't'; 4096];
        for target in [&target[..], b"", b"a\0"] {
            let error = refused(b"l", Content::Symlink(target));
            assert!(matches!(error, WriteError::InvalidTarget { .. }));
        }
        for (major, minor) in [(4096, 0), (0, 1 << 20)] {
            let error = refused(b"d", Content::CharDevice(Device { major, minor }));
            assert!(matches!(error, WriteError::DeviceOutOfRange { .. }));
        }
        let d = dir(w, ROOT, "d");
        assert!(matches!(
            w.link(ROOT, b"e", d),
            Err(WriteError::LinkToDirectory { .. })
        ));
        assert!(matches!(
            w.unlink(ROOT, b"e"),
            Err(WriteError::NotFound { .. })
        ));
        assert!(matches!(
            w.create(f, b"x", Content::Fifo, &meta(0)),
            Err(WriteError::NotADirectory { .. })
        ));
        assert_eq!(w.children(ROOT).count(), 2);
    });
}

#[test]
fn calls_out_of_order_are_told_apart() {
    let mut w = Writer::new(MemDisk::new(), &WriterOptions::default()).unwrap();
    assert!(matches!(w.write_data(b"x"), Err(WriteError::NoDataOpen)));
    assert!(matches!(
        w.begin_data(ROOT),
        Err(WriteError::NotARegularFile { .. })
    ));
    let f = w
        .create(ROOT, b"f", Content::Regular, &meta(0o600))
        .unwrap();
    w.begin_data(f).unwrap();
    w.write_data(b"x").unwrap();
    assert!(matches!(w.begin_data(f), Err(WriteError::DataOpen { .. })));
    assert!(matches!(
        w.unlink(ROOT, b"f"),
        Err(WriteError::DataOpen { .. })
    ));
    w.end_data().unwrap();
    assert!(matches!(w.begin_data(f), Err(WriteError::HasData { .. })));
    for number in [0, 1, 3, 10, 12, u32::MAX] {
        let inode = InodeNumber(number);
        assert_eq!(w.file_type(inode), None);
        assert!(matches!(
            w.begin_data(inode),
            Err(WriteError::NoSuchInode { .. })
        ));
    }
}

#[test]
fn a_filesystem_that_grows_too_large_is_refused() {
    let mut options = WriterOptions::default();
    options.max_size = 1 << 20;
    let mut w = Writer::new(MemDisk::new(), &options).unwrap();
    let f = w
        .create(ROOT, b"f", Content::Regular, &meta(0o600))
        .unwrap();
    w.begin_data(f).unwrap();
    let error = w.write_data(&noise(1 << 20, 1)).unwrap_err();
    assert!(matches!(error, WriteError::TooLarge { max_size } if max_size == 1 << 20));
    for max_size in [0, 1 << 10, 1 << 45] {
        options.max_size = max_size;
        let error = Writer::new(MemDisk::new(), &options).unwrap_err();
        assert!(matches!(error, WriteError::MaxSize { .. }));
    }
}

#[test]
fn the_largest_maximum_works() {
    let image = crate::support::Image::new();
    let mut options = WriterOptions::default();
    options.max_size = 16 << 40;
    let mut w = Writer::new(image.disk(), &options).unwrap();
    file(&mut w, ROOT, "f", &noise(100_000, 1));
    w.finish(&IDENTITY).unwrap();
    crate::support::clean(image.path());
    assert!(image.allocated() < 1 << 20);
}

#[test]
fn files_are_as_large_as_ext4_takes_and_no_larger() {
    image(|w| {
        let f = w
            .create(ROOT, b"f", Content::Regular, &meta(0o600))
            .unwrap();
        w.begin_data(f).unwrap();
        let max = ((1u64 << 32) - 1) * 4096;
        w.skip_data(max - 1).unwrap();
        w.write_data(b"x").unwrap();
        assert!(matches!(
            w.write_data(b"x"),
            Err(WriteError::FileTooLarge { .. })
        ));
        assert!(matches!(
            w.skip_data(u64::MAX),
            Err(WriteError::FileTooLarge { .. })
        ));
        w.end_data().unwrap();
        assert_eq!(w.size(f), Some(max));
    });
}

#[test]
fn many_inodes_get_small_groups() {
    let (_, summary) = image(|w| {
        for i in 0..40_000 {
            w.create(
                ROOT,
                format!("f{i}").as_bytes(),
                Content::Regular,
                &meta(0o600),
            )
            .unwrap();
        }
    });
    // 40,000 inodes are 10 MB and need two groups; two whole ones would be 256 MiB.
    assert!(summary.size_bytes < 13 << 20, "{summary:?}");
    assert!(
        summary.inodes >= 40_011 && summary.inodes < 40_100,
        "{summary:?}"
    );
}

#[test]
fn the_same_calls_give_the_same_bytes() {
    let make = || {
        let (image, _) = image(|w| {
            let d = dir(w, ROOT, "d");
            for i in 0..2000 {
                let f = file(w, d, &format!("file-{i}"), &noise(i, i as u64));
                if i % 7 == 0 {
                    w.link(ROOT, format!("link-{i}").as_bytes(), f).unwrap();
                }
            }
            for i in (0..2000).step_by(3) {
                w.unlink(d, format!("file-{i}").as_bytes()).unwrap();
            }
        });
        image.bytes()
    };
    assert!(make() == make());
}

#[test]
fn deleted_data_leaves_holes() {
    let disk = MemDisk::new();
    let mut w = Writer::new(&disk, &WriterOptions::default()).unwrap();
    let d = w
        .create(ROOT, b"d", Content::Directory, &meta(0o755))
        .unwrap();
    let sub = w
        .create(d, b"sub", Content::Directory, &meta(0o755))
        .unwrap();
    let secret = [b's'; 10_000];
    let mut doomed = vec![d, sub];
    for i in 0..100 {
        let name = format!("f{i}");
        let f = w
            .create(sub, name.as_bytes(), Content::Regular, &meta(0o644))
            .unwrap();
        w.begin_data(f).unwrap();
        w.write_data(&secret).unwrap();
        w.end_data().unwrap();
        doomed.push(f);
    }
    // One of them lives on under another name.
    let kept = doomed.pop().unwrap();
    w.link(ROOT, b"kept", kept).unwrap();
    assert_eq!(w.unlink(ROOT, b"d").unwrap(), doomed);
    assert_eq!(w.file_type(d), None);
    assert_eq!(w.lookup(sub, b"f1"), None);
    assert_eq!(w.links(ROOT), Some(2));
    assert_eq!(w.links(kept), Some(1));
    let mut read = vec![0; 20_000];
    assert_eq!(w.read_back(kept, 100, &mut read).unwrap(), 9900);
    assert!(read[..9900] == secret[100..]);
    // The name is free again.
    let again = w.create(ROOT, b"d", Content::Fifo, &meta(0o644)).unwrap();
    assert_eq!(w.file_type(again), Some(FileType::Fifo));
    let summary = w.finish(&IDENTITY).unwrap();
    assert_eq!(disk.size().unwrap(), summary.size_bytes);
    let image = crate::support::Image::new();
    let bytes = disk.into_bytes();
    std::fs::write(image.path(), &bytes).unwrap();
    crate::support::clean(image.path());
    let left = bytes.windows(8).filter(|w| *w == b"ssssssss").count();
    assert_eq!(left, 10_000 - 7);
}

#[test]
fn a_file_that_crosses_groups_reads_back() {
    // Groups have 32,768 blocks here: the one run of blocks goes through the start of the second and the third.
    let disk = MemDisk::new();
    let mut w = Writer::new(&disk, &WriterOptions::default()).unwrap();
    let f = w
        .create(ROOT, b"large", Content::Regular, &meta(0o644))
        .unwrap();
    w.begin_data(f).unwrap();
    let mebibyte = noise(1 << 20, 7);
    for _ in 0..300 {
        w.write_data(&mebibyte).unwrap();
    }
    w.end_data().unwrap();
    w.finish(&IDENTITY).unwrap();
    let filesystem = lcow_ext4::reader::Filesystem::open(&disk).unwrap();
    let inode = filesystem.resolve(b"large").unwrap();
    let mut read = vec![0; 1 << 20];
    for i in 0..300 {
        let n = filesystem.read_at(&inode, i << 20, &mut read).unwrap();
        assert!(n == read.len() && read == mebibyte, "mebibyte {i}");
    }
}

#[test]
fn the_page_lists_the_features() {
    let disk = MemDisk::new();
    let w = Writer::new(&disk, &WriterOptions::default()).unwrap();
    w.finish(&IDENTITY).unwrap();
    let filesystem = lcow_ext4::reader::Filesystem::open(&disk).unwrap();
    let page: Vec<_> = lcow_testkit::page_table("format/layer.md")
        .into_iter()
        .map(|row| row[0].clone())
        .collect();
    assert_eq!(page, filesystem.info().features);
}
