//! Images as text against golden files: whoever changes a byte of the layout sees here what that changes.
//! `LCOW_BLESS=1` writes the files anew.

use lcow_blockio::{MemDisk, ReadAt};
use lcow_ext4::dump::dump;
use lcow_ext4::mkfs::{FormatOptions, format};
use lcow_ext4::reader::Filesystem;
use lcow_ext4::writer::{Content, Writer, WriterOptions};
use lcow_ext4::{Device, Xattr};

use crate::support::{IDENTITY, ROOT, meta, noise};

fn golden(name: &str, disk: impl ReadAt) {
    let mut text = Vec::new();
    dump(&Filesystem::open(disk).unwrap(), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let path = lcow_testkit::workspace_root().join(format!("crates/ext4/tests/golden/{name}.txt"));
    if std::env::var_os("LCOW_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    let difference = text.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(
        text == expected,
        "{name}: first difference (is, should be): {difference:?}"
    );
}

fn written(inline: bool) -> MemDisk {
    let disk = MemDisk::new();
    let mut options = WriterOptions::default();
    options.inline_data = inline;
    let mut w = Writer::new(&disk, &options).unwrap();
    let dir = w
        .create(ROOT, b"dir", Content::Directory, &meta(0o750))
        .unwrap();
    for (name, len) in [
        (&b"empty"[..], 0),
        (b"small", 100),
        (b"block", 4096),
        (b"more", 10_000),
    ] {
        let f = w.create(dir, name, Content::Regular, &meta(0o644)).unwrap();
        w.begin_data(f).unwrap();
        w.write_data(&noise(len, 1)).unwrap();
        w.end_data().unwrap();
    }
    let holes = w
        .create(dir, b"holes", Content::Regular, &meta(0o644))
        .unwrap();
    w.begin_data(holes).unwrap();
    for n in 0..6 {
        w.write_data(&noise(4096, n)).unwrap();
        w.skip_data(8192).unwrap();
    }
    w.end_data().unwrap();
    w.link(ROOT, b"hard", holes).unwrap();
    w.create(ROOT, b"link", Content::Symlink(b"dir/small"), &meta(0o777))
        .unwrap();
    w.create(ROOT, b"slow", Content::Symlink(&[b'x'; 70]), &meta(0o777))
        .unwrap();
    w.create(ROOT, b"caf\xe9", Content::Fifo, &meta(0o600))
        .unwrap();
    let device = Device {
        major: 259,
        minor: 70_000,
    };
    w.create(ROOT, b"disk", Content::BlockDevice(device), &meta(0o660))
        .unwrap();
    let xattr = |name: &str, len: usize| Xattr {
        name: name.as_bytes().to_vec(),
        value: vec![b'v'; len],
    };
    w.set_xattrs(dir, &[xattr("user.small", 8)]).unwrap();
    w.set_xattrs(holes, &[xattr("user.b", 200), xattr("trusted.a", 9)])
        .unwrap();
    let value = w
        .create(ROOT, b"value", Content::Regular, &meta(0o600))
        .unwrap();
    w.set_xattrs(value, &[xattr("user.large", 5000)]).unwrap();
    let many = w
        .create(ROOT, b"many", Content::Directory, &meta(0o755))
        .unwrap();
    for n in 0..40 {
        let name = format!("{n:0>120}");
        w.create(many, name.as_bytes(), Content::Socket, &meta(0o600))
            .unwrap();
    }
    w.finish(&IDENTITY).unwrap();
    disk
}

#[test]
fn a_written_image() {
    golden("written", written(false));
}

#[test]
fn a_written_image_with_inline_data() {
    golden("inline", written(true));
}

#[test]
fn a_blank_image() {
    let disk = MemDisk::new();
    let options = FormatOptions {
        size: 300 << 20,
        journal: true,
        uuid: [0x11; 16],
        hash_seed: [0x22; 16],
        label: "golden",
        root_dirs: &[("upper", meta(0o755)), ("work", meta(0o700))],
    };
    format(&disk, &options).unwrap();
    golden("blank", disk);
}
