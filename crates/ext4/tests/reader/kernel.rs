//! Filesystems that mke2fs makes and the kernel fills, read by us and by the kernel.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use lcow_blockio::FileDisk;
use lcow_ext4::check::{CheckOptions, check};
use lcow_ext4::reader::Filesystem;
use lcow_testkit::{LoopMount, differences, is_root, kernel_tree, run, skip};
use rustix::fs::{FallocateFlags, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::export::{read_all, scratch};

/// A filesystem that mke2fs can make and every kernel mounts.
struct Form {
    name: &'static str,
    mke2fs: &'static [&'static str],
    size: &'static str,
}

const FORMS: &[Form] = &[
    Form {
        name: "ext4-1k",
        mke2fs: &["-t", "ext4", "-b", "1024"],
        size: "24M",
    },
    Form {
        name: "ext4-2k",
        mke2fs: &["-t", "ext4", "-b", "2048"],
        size: "24M",
    },
    Form {
        name: "ext4-4k",
        mke2fs: &["-t", "ext4", "-b", "4096"],
        size: "32M",
    },
    Form {
        name: "ext2",
        mke2fs: &["-t", "ext2", "-b", "1024"],
        size: "24M",
    },
    Form {
        name: "ext3",
        mke2fs: &["-t", "ext3", "-b", "4096"],
        size: "32M",
    },
    Form {
        name: "small-inodes",
        mke2fs: &["-t", "ext4", "-I", "128"],
        size: "24M",
    },
    Form {
        name: "large-inodes",
        mke2fs: &["-t", "ext4", "-I", "1024"],
        size: "24M",
    },
    Form {
        name: "no-extents",
        mke2fs: &["-t", "ext4", "-O", "^extent,^64bit", "-b", "1024"],
        size: "24M",
    },
    Form {
        name: "no-64bit",
        mke2fs: &["-t", "ext4", "-O", "^64bit"],
        size: "24M",
    },
    Form {
        name: "uninit_bg",
        mke2fs: &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"],
        size: "24M",
    },
    Form {
        name: "no-checksums",
        mke2fs: &["-t", "ext4", "-O", "^metadata_csum,^uninit_bg"],
        size: "24M",
    },
    Form {
        name: "csum_seed",
        mke2fs: &["-t", "ext4", "-O", "metadata_csum_seed"],
        size: "24M",
    },
    Form {
        name: "inline_data",
        mke2fs: &["-t", "ext4", "-O", "inline_data", "-I", "512"],
        size: "24M",
    },
    Form {
        name: "bigalloc",
        mke2fs: &["-t", "ext4", "-O", "bigalloc", "-C", "16384"],
        size: "48M",
    },
    Form {
        name: "bigalloc-1k",
        mke2fs: &["-t", "ext4", "-O", "bigalloc", "-b", "1024", "-C", "8192"],
        size: "48M",
    },
    Form {
        name: "meta_bg",
        mke2fs: &["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"],
        size: "64M",
    },
    Form {
        name: "no-flex_bg",
        mke2fs: &["-t", "ext4", "-O", "^flex_bg", "-b", "1024"],
        size: "32M",
    },
    Form {
        name: "ea_inode",
        mke2fs: &["-t", "ext4", "-O", "ea_inode", "-b", "1024"],
        size: "32M",
    },
    Form {
        name: "no-filetype",
        mke2fs: &["-t", "ext4", "-O", "^filetype"],
        size: "24M",
    },
    Form {
        name: "no-dir_index",
        mke2fs: &["-t", "ext4", "-O", "^dir_index"],
        size: "24M",
    },
    Form {
        name: "large_dir",
        mke2fs: &["-t", "ext4", "-O", "large_dir", "-b", "1024"],
        size: "32M",
    },
    Form {
        name: "sparse_super2",
        mke2fs: &["-t", "ext4", "-O", "sparse_super2,^resize_inode"],
        size: "24M",
    },
    Form {
        name: "orphan_file",
        mke2fs: &["-t", "ext4", "-O", "orphan_file"],
        size: "24M",
    },
];

fn make(dir: &Path, form: &Form) -> std::path::PathBuf {
    let image = dir.join(format!("{}.img", form.name));
    let mut args = vec!["-q", "-F", "-E", "lazy_itable_init=1,nodiscard"];
    args.extend(form.mke2fs);
    args.push(image.to_str().unwrap());
    args.push(form.size);
    run("mke2fs", args);
    image
}

/// Puts a bit of everything into a mounted filesystem.
pub(crate) fn populate(root: &Path, many: usize) {
    let at = |name: &str| root.join(name);
    std::fs::write(at("empty"), b"").unwrap();
    std::fs::write(at("tiny"), b"tiny").unwrap();
    std::fs::write(at("inline-sized"), [b'i'; 130]).unwrap();
    std::fs::write(at("block"), vec![7; 4096]).unwrap();
    let noise: Vec<u8> = (0..1_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    std::fs::write(at("big"), &noise).unwrap();

    // Holes, many extents, and blocks far out; then unwritten blocks, some of them written to.
    let file = File::create(at("sparse")).unwrap();
    for n in 0..200_u64 {
        file.write_all_at(format!("block {n}").as_bytes(), n * 3 * 4096)
            .unwrap();
    }
    file.write_all_at(b"far", 7_000_000).unwrap();
    file.set_len(8_000_001).unwrap();
    let mut file = File::create(at("unwritten")).unwrap();
    if rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 18).is_ok() {
        file.seek(SeekFrom::Start(100_000)).unwrap();
        file.write_all(b"written among unwritten").unwrap();
    }
    let past = File::create(at("past-the-end")).unwrap();
    past.write_all_at(b"short", 0).unwrap();
    let _ = rustix::fs::fallocate(&past, FallocateFlags::KEEP_SIZE, 0, 1 << 16);

    symlink("tiny", at("fast-link")).unwrap();
    symlink("x".repeat(59), at("link-59")).unwrap();
    symlink("y".repeat(60), at("link-60")).unwrap();
    symlink("z/".repeat(400), at("slow-link")).unwrap();
    std::fs::hard_link(at("tiny"), at("hard-link")).unwrap();
    for (name, kind, major, minor) in [
        ("null", FileType::CharacterDevice, 1, 3),
        ("wide", FileType::BlockDevice, 259, 1_000_000),
        ("whiteout", FileType::CharacterDevice, 0, 0),
        ("pipe", FileType::Fifo, 0, 0),
        ("socket", FileType::Socket, 0, 0),
    ] {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(rustix::fs::CWD, at(name), kind, Mode::from(0o640), device).unwrap();
    }
    rustix::fs::chown(
        at("null"),
        Some(rustix::fs::Uid::from_raw(70_000)),
        Some(rustix::fs::Gid::from_raw(4_000_000_000)),
    )
    .unwrap();
    std::fs::set_permissions(
        at("tiny"),
        std::os::unix::fs::PermissionsExt::from_mode(0o6755),
    )
    .unwrap();

    for (name, secs) in [
        ("time-1901", -0x8000_0000),
        ("time-2100", 4_102_444_800),
        ("time-2400", 13_569_465_600),
    ] {
        std::fs::write(at(name), name).unwrap();
        let time = Timespec {
            tv_sec: secs,
            tv_nsec: 123_456_789,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(
            rustix::fs::CWD,
            at(name),
            &times,
            rustix::fs::AtFlags::empty(),
        )
        .unwrap();
    }

    std::fs::create_dir(at("attributes")).unwrap();
    let acl = [
        2_u8, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255,
        255, 255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];
    let values: &[(&str, &str, Vec<u8>)] = &[
        ("small", "user.small", b"value".to_vec()),
        ("small", "user.empty", Vec::new()),
        ("small", "trusted.overlay.opaque", b"y".to_vec()),
        (
            "small",
            "user.n\u{f6}n-ascii",
            b"high bytes in the name".to_vec(),
        ),
        ("block", "user.block", vec![b'b'; 700]),
        ("block", "security.other", b"s".to_vec()),
        ("acl", "system.posix_acl_access", acl.to_vec()),
        (
            "capability",
            "security.capability",
            vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        ("inode", "user.large", vec![b'l'; 9000]),
        ("inode", "user.n\u{f6}-large", vec![b'm'; 20_000]),
    ];
    for (file, name, value) in values {
        let path = at("attributes").join(file);
        if !path.exists() {
            std::fs::write(&path, file).unwrap();
        }
        // Large values need `ea_inode`, and not every form has it.
        let _ = rustix::fs::lsetxattr(&path, *name, value, XattrFlags::empty());
    }
    let _ = rustix::fs::lsetxattr(
        at("attributes"),
        "system.posix_acl_default",
        &acl,
        XattrFlags::empty(),
    );

    let many_dir = at("many");
    std::fs::create_dir(&many_dir).unwrap();
    for n in 0..many {
        let name = format!("a rather long name to fill blocks {n:06} \u{e9}{}", n % 7);
        File::create(many_dir.join(name)).unwrap();
    }
    for n in (0..many).step_by(3) {
        let name = format!("a rather long name to fill blocks {n:06} \u{e9}{}", n % 7);
        std::fs::remove_file(many_dir.join(name)).unwrap();
    }
    std::fs::create_dir_all(at("deep/a/b/c/d/e")).unwrap();
    std::fs::write(at("deep/a/b/c/d/e/file"), b"deep").unwrap();
    std::fs::create_dir(at("n\u{e9}")).unwrap();
    std::fs::write(at("n\u{e9}").join("x".repeat(255)), b"long name").unwrap();
}

fn compare(image: &Path, name: &str) -> Vec<String> {
    let mounted = LoopMount::new(image, "ro");
    let theirs = kernel_tree(&mounted.path());
    drop(mounted);
    let fs =
        Filesystem::open(FileDisk::open(image).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let ours = match read_all(&fs, true) {
        Ok(tree) => tree,
        Err(e) => return vec![format!("{name}: {e}")],
    };
    for path in ours.keys() {
        fs.resolve(path).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    for missing in ["many/no such name", "many/a rather long name", "deep/a/x"] {
        assert!(fs.resolve(missing.as_bytes()).is_err(), "{name}: {missing}");
    }
    assert!(theirs.len() > 100, "{name}: {} entries", theirs.len());
    differences(&ours, &theirs)
        .into_iter()
        .map(|line| format!("{name}: {line}"))
        .collect()
}

/// What the verifier finds.
pub(crate) fn findings(image: &Path, name: &str) -> Vec<String> {
    let report = check(FileDisk::open(image).unwrap(), &CheckOptions::default()).unwrap();
    let found = report.findings.iter();
    found.map(|finding| format!("{name}: {finding}")).collect()
}

#[test]
fn what_the_kernel_wrote_reads_as_the_kernel_reads_it() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let dir = scratch();
    let mut wrong = Vec::new();
    for form in FORMS {
        let image = make(dir.path(), form);
        let mounted = LoopMount::new(&image, "rw");
        populate(&mounted.path(), 1500);
        drop(mounted);
        wrong.extend(compare(&image, form.name));
        wrong.extend(findings(&image, form.name));
        std::fs::remove_file(&image).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Forms that not every kernel mounts (blocks larger than a page, quotas, case folding): mke2fs itself puts the files in.
#[test]
fn what_mke2fs_wrote_reads_as_what_went_in() {
    let dir = scratch();
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("sub")).unwrap();
    let noise: Vec<u8> = (0..900_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    std::fs::write(source.join("noise"), &noise).unwrap();
    symlink("q".repeat(200), source.join("link")).unwrap();
    for n in 0..400 {
        let name = format!("{n:0>200}");
        std::fs::write(source.join("sub").join(name), format!("{n}")).unwrap();
    }
    let mut theirs = kernel_tree(&source);
    for entry in theirs.values_mut() {
        // `mke2fs -d` keeps whole seconds only.
        entry.mtime.1 = 0;
    }
    for options in [
        "-t ext2 -b 8192",
        "-t ext4 -b 8192",
        "-t ext4 -b 16384 -O ^extent,^64bit",
        "-t ext4 -b 32768",
        "-t ext3 -b 65536",
        "-t ext4 -b 65536",
        "-t ext4 -b 65536 -O bigalloc -C 131072",
        "-t ext4 -O quota,project",
        "-t ext4 -O casefold",
        "-t ext4 -O verity,stable_inodes",
        "-t ext4 -r 0 -O none -I 128",
        "-t ext2 -o hurd",
        "-t ext4 -O mmp",
        "-t ext4 -b 1024 -G 4 -g 1024",
        "-t ext4 -b 1024 -O meta_bg,^resize_inode,^64bit -g 512",
        "-t ext4 -O sparse_super2,^resize_inode -E num_backup_sb=1",
        "-t ext4 -O ^sparse_super,^resize_inode -b 1024",
        "-t ext4 -O fast_commit",
        "-t ext4 -O encrypt,ea_inode,large_dir",
        "-t ext4 -O inline_data -I 1024",
        "-t ext4 -O bigalloc,^metadata_csum,uninit_bg -C 65536 -N 1000",
        "-t ext4 -b 4096 -N 600 -I 4096",
    ] {
        let image = dir.path().join("image");
        let _ = std::fs::remove_file(&image);
        let mut args: Vec<&str> = vec!["-q", "-F"];
        args.extend(options.split(' '));
        args.extend([
            "-d",
            source.to_str().unwrap(),
            image.to_str().unwrap(),
            "96M",
        ]);
        run("mke2fs", args);
        let fs = Filesystem::open(FileDisk::open(&image).unwrap()).unwrap();
        let mut ours = read_all(&fs, true).unwrap_or_else(|e| panic!("{options}: {e}"));
        ours.remove(&b"lost+found"[..]).unwrap();
        for entry in ours.values_mut() {
            entry.mtime.1 = 0;
        }
        assert_eq!(
            differences(&ours, &theirs),
            Vec::<String>::new(),
            "{options}"
        );
        for path in ours.keys() {
            fs.resolve(path).unwrap();
        }
        // `mke2fs -d` leaves quotas as they were before, for one.
        let found = findings(&image, options);
        let (clean, text) = crate::mutation::e2fsck(&image);
        assert_eq!(found.is_empty(), clean, "{options}: {found:?} {text}");
    }
}

/// `mke2fs -d` makes such a file of one that is all a hole. `e2fsck` has nothing to say, and the kernel reads it.
#[test]
fn an_inline_file_may_be_longer_than_what_its_inode_has() {
    if !lcow_testkit::have("mke2fs") {
        skip!("no mke2fs");
    }
    let dir = scratch();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    std::fs::create_dir(&tree).unwrap();
    let hole = File::create(tree.join("hole")).unwrap();
    hole.set_len(1 << 20).unwrap();
    let (tree, text) = (tree.to_str().unwrap(), image.to_str().unwrap());
    let format = [
        "-q",
        "-t",
        "ext4",
        "-O",
        "inline_data",
        "-d",
        tree,
        text,
        "16M",
    ];
    run("mke2fs", format);
    lcow_testkit::e2fsck(&image);
    let fs = Filesystem::open(FileDisk::open(&image).unwrap()).unwrap();
    let inode = fs.resolve(b"hole").unwrap();
    let file = fs.open_file(&inode).unwrap();
    let mut content = vec![1; (1 << 20) + 1];
    assert_eq!(file.read_at(0, &mut content).unwrap(), 1 << 20);
    assert!(content[..1 << 20].iter().all(|&b| b == 0));
    assert!(file.next_data(0).is_none_or(|data| data.end <= 4096));
    assert_eq!(file.next_data(4096), None);
    assert_eq!(file.read_at(1 << 20, &mut content).unwrap(), 0);
}
