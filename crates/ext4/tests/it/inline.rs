//! Inline data: what lies in inodes is what the kernel finds there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use lcow_ext4::reader::Filesystem;
use lcow_ext4::writer::{Content, Summary, Writer, WriterOptions};
use lcow_ext4::{InodeNumber, Xattr};
use lcow_testkit::{LoopMount, is_root, skip};

use crate::support::{IDENTITY, Image, ROOT, clean, dir, file, meta, noise};

fn inline(fill: impl FnOnce(&mut Writer<lcow_blockio::FileDisk>)) -> (Image, Summary) {
    let image = Image::new();
    let mut options = WriterOptions::default();
    options.inline_data = true;
    let mut writer = Writer::new(image.disk(), &options).unwrap();
    fill(&mut writer);
    let summary = writer.finish(&IDENTITY).unwrap();
    clean(image.path());
    (image, summary)
}

/// Files of every size around the limits, with attributes that leave less and less room.
fn fill(w: &mut Writer<lcow_blockio::FileDisk>) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for attribute in [0, 1, 4, 20, 40, 60, 200] {
        let parent = dir(w, ROOT, &format!("attribute-{attribute}"));
        for len in (0..140).chain([4095, 4096, 4097, 9000]) {
            let data = noise(len, (attribute * 1000 + len) as u64);
            let f = file(w, parent, &format!("{len}"), &data);
            if attribute > 0 {
                let value = vec![b'v'; attribute];
                let name = b"user.a".to_vec();
                w.set_xattrs(f, &[Xattr { name, value }]).unwrap();
            }
            let mut read = vec![0; len + 1];
            assert_eq!(w.read_back(f, 0, &mut read).unwrap(), len);
            assert!(read[..len] == data);
            files.insert(format!("attribute-{attribute}/{len}"), data);
        }
    }
    // Directories of every size around the limits.
    let parent = dir(w, ROOT, "directories");
    for count in 0..12 {
        let d = dir(w, parent, &format!("{count}"));
        for n in 0..count {
            w.create(
                d,
                format!("name-{n}").as_bytes(),
                Content::Fifo,
                &meta(0o600),
            )
            .unwrap();
        }
    }
    let long = dir(w, parent, "long");
    w.create(long, &[b'n'; 200], Content::Fifo, &meta(0o600))
        .unwrap();
    let sub = dir(w, parent, "nested");
    dir(w, sub, "below");
    files
}

#[test]
fn files_and_directories_in_inodes_are_what_the_kernel_shows() {
    let mut files = BTreeMap::new();
    let (image, summary) = inline(|w| files = fill(w));
    let disk = image.disk();
    let fs = Filesystem::open(&disk).unwrap();
    assert!(fs.info().features.contains(&"inline_data".to_owned()));
    for (path, data) in &files {
        let inode = fs.resolve(path.as_bytes()).unwrap();
        let mut read = vec![0; data.len() + 1];
        assert_eq!(
            fs.read_at(&inode, 0, &mut read).unwrap(),
            data.len(),
            "{path}"
        );
        assert!(read[..data.len()] == *data, "{path}");
    }
    let blocks = |path: &str| fs.resolve(path.as_bytes()).unwrap().blocks_512;
    assert_eq!(
        blocks("attribute-0/128"),
        0,
        "60 bytes in the block map, 68 behind the fields"
    );
    assert_eq!(blocks("attribute-0/129"), 8);
    assert_eq!(blocks("directories/3"), 0);
    assert_eq!(blocks("directories/11"), 8);
    // Without it every one of these would take a block.
    assert!(summary.size_bytes < 4 << 20, "{summary:?}");
    if !is_root() {
        skip!("not root: can't mount");
    }
    let mount = LoopMount::new(image.path(), "ro");
    for (path, data) in &files {
        let path = mount.path().join(path);
        assert!(fs::read(&path).unwrap() == *data, "{}", path.display());
        assert_eq!(fs::metadata(&path).unwrap().len(), data.len() as u64);
    }
    for count in 0..12 {
        let d = mount.path().join(format!("directories/{count}"));
        let mut names: Vec<_> = fs::read_dir(&d)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut expected: Vec<_> = (0..count).map(|n| format!("name-{n}")).collect();
        expected.sort();
        assert_eq!(names, expected);
        for name in &names {
            assert!(fs::symlink_metadata(d.join(name)).is_ok(), "{name}");
        }
        assert_eq!(fs::metadata(&d).unwrap().nlink(), 2);
    }
    let below = fs::metadata(mount.path().join("directories/nested/below/..")).unwrap();
    assert_eq!(
        below.ino(),
        fs::metadata(mount.path().join("directories/nested"))
            .unwrap()
            .ino()
    );
}

#[test]
fn replaced_and_deleted_inline_files_leave_nothing() {
    let (image, _) = inline(|w| {
        let doomed = dir(w, ROOT, "doomed");
        file(w, doomed, "secret", b"secret secret");
        let kept = file(w, ROOT, "kept", b"kept");
        w.link(doomed, b"also", kept).unwrap();
        w.unlink(ROOT, b"doomed").unwrap();
        assert_eq!(w.links(kept), Some(1));
        assert_eq!(w.size(kept), Some(4));
        let error = w.begin_data(kept).unwrap_err();
        assert!(
            error.to_string().contains("already has its data"),
            "{error}"
        );
    });
    let bytes = image.bytes();
    assert!(!bytes.windows(6).any(|w| w == b"secret"));
    assert_eq!(InodeNumber::ROOT, ROOT);
}

#[test]
fn the_option_alone_changes_nothing() {
    let make = |inline_data| {
        let image = Image::new();
        let mut options = WriterOptions::default();
        options.inline_data = inline_data;
        let mut w = Writer::new(image.disk(), &options).unwrap();
        for n in 0..200 {
            file(
                &mut w,
                ROOT,
                &format!("a rather long name, number {n}"),
                &noise(5000, n),
            );
        }
        w.finish(&IDENTITY).unwrap();
        image.bytes()
    };
    assert!(make(true) == make(false));
}
