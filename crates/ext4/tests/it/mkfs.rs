//! Blank filesystems: sizes, what they take, what a kernel makes of them.

use std::fs;
use std::path::Path;
use std::time::Instant;

use lcow_blockio::{MemDisk, ReadAt, WriteAt};
use lcow_ext4::mkfs::{FormatError, FormatOptions, format, set_uuid};
use lcow_ext4::writer::{Metadata, Writer, WriterOptions};
use lcow_testkit::{LoopMount, is_root, run, skip};

use crate::support::{Image, clean, meta, noise, verified};

fn options(size: u64) -> FormatOptions<'static> {
    const DIRS: &[(&str, Metadata)] = &[
        (
            "upper",
            Metadata {
                permissions: 0o755,
                uid: 0,
                gid: 0,
                atime: ZERO,
                mtime: ZERO,
                ctime: ZERO,
            },
        ),
        (
            "work",
            Metadata {
                permissions: 0o700,
                uid: 5,
                gid: 6,
                atime: ZERO,
                mtime: ZERO,
                ctime: ZERO,
            },
        ),
    ];
    const ZERO: lcow_ext4::Timestamp = lcow_ext4::Timestamp::from_secs(0);
    FormatOptions {
        size,
        journal: true,
        uuid: [0x11; 16],
        hash_seed: [0x22; 16],
        label: "sandbox",
        root_dirs: DIRS,
    }
}

#[test]
fn blank_filesystems_of_all_sizes_are_clean() {
    let group = 128u64 << 20;
    for size in [
        16 << 20,
        (16 << 20) + 5000,
        100 << 20,
        group,
        group + 4096,
        // A last group with too little room, and with just enough.
        group + (2 << 20),
        10 * group + (4 << 20),
        1 << 30,
        17 << 30,
        20 << 30,
        40 << 30,
        300 << 30,
        1 << 40,
    ] {
        for journal in [true, false] {
            let image = Image::new();
            let options = FormatOptions {
                journal,
                ..options(size)
            };
            let made = format(&image.disk(), &options).unwrap();
            clean(image.path());
            assert_eq!(fs::metadata(image.path()).unwrap().len(), size);
            assert!(made.blocks * 4096 <= size && (made.blocks + 32_768) * 4096 > size);
            assert_eq!(made.journal_blocks > 0, journal);
            if is_root() {
                let mount = LoopMount::new(image.path(), "rw");
                fs::write(mount.path().join("upper/f"), noise(1 << 16, 1)).unwrap();
                drop(mount);
                verified(image.path());
            }
        }
    }
}

#[test]
fn sixteen_tebibytes() {
    // Where files may be so large: on tmpfs, not on ext4.
    let image = Image::within(Path::new("/dev/shm"));
    if let Err(e) = image.disk().set_len(16 << 40) {
        skip!("/dev/shm takes no file of 16 TiB: {e}");
    }
    for journal in [true, false] {
        image.disk().set_len(0).unwrap();
        let options = FormatOptions {
            journal,
            ..options(16 << 40)
        };
        let started = Instant::now();
        let made = format(&image.disk(), &options).unwrap();
        eprintln!(
            "16 TiB: {:?}, {} bytes",
            started.elapsed(),
            image.allocated()
        );
        assert_eq!(made.blocks, 1 << 32);
        // dumpe2fs reads and checks every descriptor; e2fsck would take gigabytes of memory for its bitmaps.
        let shown = run("dumpe2fs", ["-h".as_ref(), image.path().as_os_str()]);
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(
            shown.contains("Block count:              4294967296"),
            "{shown}"
        );
        // The verifier needs memory for what is in use alone.
        verified(image.path());
        if is_root() {
            let mount = LoopMount::new(image.path(), "rw");
            fs::write(mount.path().join("upper/f"), noise(1 << 20, 1)).unwrap();
            assert!(fs::read(mount.path().join("upper/f")).unwrap() == noise(1 << 20, 1));
            drop(mount);
            verified(image.path());
        }
    }
}

#[test]
fn twenty_gigabytes_take_less_than_a_mebibyte() {
    let image = Image::new();
    let started = Instant::now();
    format(&image.disk(), &options(20 << 30)).unwrap();
    eprintln!(
        "20 GiB: {:?}, {} bytes",
        started.elapsed(),
        image.allocated()
    );
    assert!(image.allocated() < 1 << 20, "{}", image.allocated());
}

#[test]
fn the_kernel_writes_on_it() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    for journal in [true, false] {
        let image = Image::new();
        let options = FormatOptions {
            journal,
            ..options(3 << 30)
        };
        format(&image.disk(), &options).unwrap();
        {
            let mount = LoopMount::new(image.path(), "rw");
            let names: Vec<_> = fs::read_dir(mount.path())
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            assert_eq!(names.len(), 3, "{names:?}");
            use std::os::unix::fs::MetadataExt;
            let work = fs::metadata(mount.path().join("work")).unwrap();
            assert_eq!(
                (work.mode() & 0o7777, work.uid(), work.gid()),
                (0o700, 5, 6)
            );
            let upper = mount.path().join("upper");
            for i in 0..500 {
                let dir = upper.join(format!("d{i}"));
                fs::create_dir(&dir).unwrap();
                for j in 0..20 {
                    fs::write(dir.join(format!("f{j}")), noise(j * 1000, 1)).unwrap();
                }
            }
            fs::write(upper.join("big"), noise(200 << 20, 3)).unwrap();
            for i in (0..500).step_by(2) {
                fs::remove_dir_all(upper.join(format!("d{i}"))).unwrap();
            }
        }
        clean(image.path());
        let mount = LoopMount::new(image.path(), "ro");
        assert!(fs::read(mount.path().join("upper/big")).unwrap() == noise(200 << 20, 3));
        assert_eq!(
            fs::read_dir(mount.path().join("upper")).unwrap().count(),
            251
        );
        assert!(fs::read(mount.path().join("upper/d1/f19")).unwrap() == noise(19_000, 1));
    }
}

#[test]
fn resize2fs_makes_it_larger_and_smaller() {
    let image = Image::new();
    format(&image.disk(), &options(1 << 30)).unwrap();
    for size in [3 << 30, 2 << 30] {
        if size > image.disk().size().unwrap() {
            image.disk().set_len(size).unwrap();
        }
        let blocks = (size / 4096).to_string();
        run(
            "resize2fs",
            ["-f".as_ref(), image.path().as_os_str(), blocks.as_ref()],
        );
        clean(image.path());
        if is_root() {
            let mount = LoopMount::new(image.path(), "rw");
            fs::write(mount.path().join("upper/f"), noise(50 << 20, 3)).unwrap();
            drop(mount);
            clean(image.path());
        }
    }
}

#[test]
fn a_clone_gets_its_own_uuid() {
    let image = Image::new();
    format(&image.disk(), &options(20 << 30)).unwrap();
    set_uuid(&image.disk(), [0x33; 16]).unwrap();
    clean(image.path());
    // Every copy of the superblock has it.
    for superblock in [0u64, 32_768, 98_304, 163_840] {
        let mut uuid = [0; 16];
        let start = if superblock == 0 {
            1024
        } else {
            superblock * 4096
        };
        image.disk().read_exact_at(start + 0x68, &mut uuid).unwrap();
        assert_eq!(uuid, [0x33; 16], "{superblock}");
    }
    if is_root() {
        let mount = LoopMount::new(image.path(), "rw");
        fs::write(mount.path().join("upper/f"), b"x").unwrap();
        drop(mount);
        clean(image.path());
    }
    // A writer's image can be renamed too, and nothing else.
    let disk = MemDisk::new();
    Writer::new(&disk, &WriterOptions::default())
        .unwrap()
        .finish(&crate::support::IDENTITY)
        .unwrap();
    set_uuid(&disk, [0x44; 16]).unwrap();
    assert!(matches!(
        set_uuid(&MemDisk::from(vec![0; 1 << 20]), [0; 16]),
        Err(FormatError::NotOurs { .. })
    ));
}

#[test]
fn the_same_options_give_the_same_bytes() {
    let make = || {
        let disk = MemDisk::new();
        format(&disk, &options(32 << 20)).unwrap();
        disk.into_bytes()
    };
    assert!(make() == make());
}

#[test]
fn what_cannot_be_is_refused() {
    let disk = MemDisk::new();
    for size in [0, (16 << 20) - 1, (16 << 40) + 1] {
        assert!(matches!(
            format(&disk, &options(size)),
            Err(FormatError::Size { .. })
        ));
    }
    let label = FormatOptions {
        label: "seventeen letters",
        ..options(16 << 20)
    };
    assert!(matches!(
        format(&disk, &label),
        Err(FormatError::Label { .. })
    ));
    let long = "n".repeat(256);
    for name in ["", ".", "..", "a/b", "lost+found", &long] {
        let dirs = [(name, meta(0o755))];
        let options = FormatOptions {
            root_dirs: &dirs,
            ..options(16 << 20)
        };
        assert!(
            matches!(format(&disk, &options), Err(FormatError::RootDir { .. })),
            "{name}"
        );
    }
    let twice = [("a", meta(0o755)), ("a", meta(0o755))];
    let options = FormatOptions {
        root_dirs: &twice,
        ..options(16 << 20)
    };
    assert!(matches!(
        format(&disk, &options),
        Err(FormatError::RootDir { .. })
    ));
    assert_eq!(disk.size().unwrap(), 0);
}
