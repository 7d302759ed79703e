//! Images copied while they were mounted, and so with a journal to replay: ours in memory, the kernel's on the disk.

use std::fs::{File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use lcow_blockio::FileDisk;
use lcow_ext4::reader::{Filesystem, Journal};
use lcow_testkit::{Ager, LoopMount, Tree, differences, is_root, kernel_tree, run, skip};

use crate::export::{read_all, scratch};
use crate::kernel::populate;

/// Options of mke2fs and of the mount.
const FORMS: &[(&str, &str, &str)] = &[
    ("csum-v3", "-t ext4 -b 4096", "rw"),
    (
        "1k-no-checksums",
        "-t ext4 -b 1024 -O ^metadata_csum,^64bit",
        "rw",
    ),
    ("ext3", "-t ext3 -b 1024", "rw"),
    ("data-journal", "-t ext4 -b 1024", "rw,data=journal"),
    (
        "v1-checksum",
        "-t ext4 -b 1024 -O ^metadata_csum",
        "rw,journal_checksum",
    ),
    (
        "async-commit",
        "-t ext4 -O ^metadata_csum",
        "rw,data=writeback,journal_async_commit",
    ),
    ("orphan_file", "-t ext4 -O orphan_file", "rw"),
    ("no-extents", "-t ext4 -b 2048 -O ^extent,^64bit", "rw"),
    ("inline_data", "-t ext4 -O inline_data -I 512", "rw"),
    ("bigalloc", "-t ext4 -O bigalloc -C 16384", "rw"),
    ("ea_inode-1k", "-t ext4 -b 1024 -O ea_inode,large_dir", "rw"),
    ("meta_bg", "-t ext4 -b 1024 -O meta_bg,^resize_inode", "rw"),
];

/// Commits what is pending, without writing it to its place as unmounting would.
fn commit(root: &Path) {
    let dir = File::open(root).unwrap();
    rustix::fs::syncfs(dir.as_fd()).unwrap();
}

/// How often each form is aged further and copied; `LCOW_AGE` makes it more.
fn rounds() -> u64 {
    let more = std::env::var("LCOW_AGE").ok().and_then(|n| n.parse().ok());
    more.unwrap_or(2)
}

#[test]
fn an_unclean_journal_reads_as_the_kernel_replays_it() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let dir = scratch();
    let mut wrong = Vec::new();
    for (seed, (name, mke2fs, options)) in (1..).zip(FORMS) {
        let image = dir.path().join(format!("{name}.img"));
        let mut args = vec!["-q", "-F"];
        args.extend(mke2fs.split(' '));
        args.extend([image.to_str().unwrap(), "48M"]);
        run("mke2fs", args);
        let mounted = LoopMount::new(&image, options);
        let root = mounted.path();
        populate(&root, 120);
        commit(&root);
        std::fs::create_dir(root.join("aged")).unwrap();
        let mut ager = Ager::new(&root.join("aged"), seed);
        let mut replays = 0;
        for round in 0..rounds() {
            ager.age(200);
            commit(&root);
            // Some more that is not committed, or in the middle of it, and must not show half done.
            ager.age(60);
            let copy = dir.path().join("copy.img");
            run(
                "cp",
                [
                    "--sparse=always".as_ref(),
                    image.as_os_str(),
                    copy.as_os_str(),
                ],
            );

            let fs = Filesystem::open(FileDisk::open(&copy).unwrap())
                .unwrap_or_else(|e| panic!("{name} {round}: {e}"));
            if let Journal::Replayed { blocks, .. } = fs.info().journal {
                replays += usize::from(blocks > 0);
            }
            let ours = read_all(&fs, true).unwrap_or_else(|e| panic!("{name} {round}: {e}"));
            drop(fs);
            // The kernel replays onto the copy as it mounts it (not onto a device that is read-only).
            let after = LoopMount::new(&copy, "rw");
            let theirs = kernel_tree(&after.path());
            drop(after);
            assert!(theirs.len() > 100, "{name}: {} entries", theirs.len());
            wrong.extend(
                differences(&ours, &theirs)
                    .into_iter()
                    .map(|line| format!("{name} {round}: {line}")),
            );
            // And what it left is clean, with the same tree.
            lcow_testkit::e2fsck_aged(&copy);
            let fs = Filesystem::open(FileDisk::open(&copy).unwrap()).unwrap();
            assert_eq!(fs.info().journal, Journal::Clean, "{name}");
            assert_eq!(
                differences(&read_all(&fs, true).unwrap(), &theirs),
                Vec::<String>::new()
            );
        }
        assert!(replays > 0, "{name}: no copy had anything to replay");
        drop(ager);
        drop(mounted);
        std::fs::remove_file(&image).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What no record of a fast commit has: times and links of directories.
fn without_directories(mut tree: Tree) -> Tree {
    for entry in tree.values_mut() {
        if entry.mode & 0o170_000 == 0o040_000 {
            (entry.links, entry.mtime) = (0, (0, 0));
        }
    }
    tree
}

/// Things that a kernel commits fast, one after another.
fn work(root: &Path, n: u64) {
    let at = |name: &str| root.join(name);
    let file = |name: &str| {
        File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(at(name))
    };
    match n {
        0 => {
            std::fs::write(at("new"), vec![b'n'; 9000]).unwrap();
            std::fs::create_dir(at("dir")).unwrap();
        }
        1 => std::fs::hard_link(at("new"), at("dir/link")).unwrap(),
        2 => std::fs::rename(at("new"), at("renamed")).unwrap(),
        3 => file("old")
            .unwrap()
            .write_all_at(&[b'x'; 30_000], 50_000)
            .unwrap(),
        4 => file("old").unwrap().set_len(20_000).unwrap(),
        5 => std::fs::remove_file(at("renamed")).unwrap(),
        6 => {
            std::fs::write(at("dir/inside"), b"inside").unwrap();
            std::fs::set_permissions(at("dir/inside"), Permissions::from_mode(0o640)).unwrap();
        }
        7 => std::os::unix::fs::symlink("x".repeat(100), at("dir/slow")).unwrap(),
        8 => std::fs::rename(at("dir/inside"), at("old")).unwrap(),
        9 => {
            for n in 0..60 {
                std::fs::write(at(&format!("many-{n}")), format!("{n}")).unwrap();
            }
        }
        10 => {
            for n in (0..60).step_by(2) {
                std::fs::remove_file(at(&format!("many-{n}"))).unwrap();
            }
        }
        _ => {
            let file = file(&format!("many-{}", 2 * (n % 20) + 1)).unwrap();
            file.write_all_at(&n.to_le_bytes(), n * 7000).unwrap();
        }
    }
}

#[test]
fn fast_commits_are_replayed_as_by_the_kernel() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let dir = scratch();
    let mut wrong = Vec::new();
    let mut fast = 0;
    for (name, mke2fs) in [
        ("4k", "-b 4096"),
        ("1k", "-b 1024"),
        ("no-checksums", "-b 1024 -O ^metadata_csum"),
    ] {
        let image = dir.path().join("image");
        let path = image.to_str().unwrap();
        let mut args = vec!["-q", "-F", "-t", "ext4", "-O", "fast_commit"];
        args.extend(mke2fs.split(' '));
        args.extend([path, "48M"]);
        run("mke2fs", args);
        let mounted = LoopMount::new(&image, "rw");
        let root = mounted.path();
        std::fs::write(root.join("old"), vec![b'o'; 60_000]).unwrap();
        commit(&root);
        for n in 0..16 {
            work(&root, n);
            File::create(root.join("synced"))
                .unwrap()
                .sync_all()
                .unwrap();
            let copy = dir.path().join("copy");
            std::fs::copy(&image, &copy).unwrap();
            let fs = Filesystem::open(FileDisk::open(&copy).unwrap())
                .unwrap_or_else(|e| panic!("{name} {n}: {e}"));
            if let Journal::Replayed { fast_commits, .. } = fs.info().journal {
                fast += fast_commits;
            }
            let ours = read_all(&fs, true).unwrap_or_else(|e| panic!("{name} {n}: {e}"));
            drop(fs);
            let after = LoopMount::new(&copy, "rw");
            let theirs = kernel_tree(&after.path());
            let differ = differences(&without_directories(ours), &without_directories(theirs));
            wrong.extend(differ.into_iter().map(|line| format!("{name} {n}: {line}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(fast > 10, "the kernel made {fast} fast commits");
}

/// Journals as debugfs writes them: each kind of checksum and tag, with and without commit, and revocations.
#[test]
fn journals_that_debugfs_wrote_read_as_the_kernel_replays_them() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let dir = scratch();
    let image = dir.path().join("image");
    let path = image.to_str().unwrap();
    let data = dir.path().join("data");
    let mut content = vec![0xC0, 0x3B, 0x39, 0x98];
    content.resize(64 << 10, b'j');
    std::fs::write(&data, content).unwrap();
    let data = data.to_str().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("victim"), vec![b'o'; 40 << 10]).unwrap();
    let source = source.to_str().unwrap();
    for (mke2fs, open) in [
        ("-b 1024 -O ^metadata_csum,^64bit", "jo"),
        ("-b 1024 -O ^metadata_csum,64bit", "jo"),
        ("-b 1024 -O metadata_csum,^64bit", "jo -c -v 2"),
        ("-b 4096 -O metadata_csum,64bit", "jo -c -v 2"),
        ("-b 1024 -O metadata_csum,64bit", "jo -c -v 3"),
        ("-b 2048 -O metadata_csum,^64bit", "jo -c -v 3"),
    ] {
        let mut args = vec!["-q", "-F", "-t", "ext4", "-d", source];
        args.extend(mke2fs.split(' '));
        args.extend([path, "16M"]);
        run("mke2fs", args);
        let blocks = run("debugfs", ["-R", "blocks /victim", path]).stdout;
        let blocks = String::from_utf8(blocks).unwrap();
        let blocks: Vec<&str> = blocks.split_whitespace().collect();
        let [one, two, three, four] = [0, 1, 2, 3].map(|n| blocks[n]);
        // Two transactions, a revocation of a block of the first, and one that is not committed.
        let script = format!(
            "{open}\njw -b {one},{two},{three} {data}\njw -r {two}\njw -b {four} {data}\njw -b {three} -c {data}\njc\n"
        );
        let commands = dir.path().join("commands");
        std::fs::write(&commands, script).unwrap();
        run("debugfs", ["-w", "-f", commands.to_str().unwrap(), path]);
        let what = format!("{mke2fs}, {open}");
        let fs = Filesystem::open(FileDisk::open(&image).unwrap())
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let Journal::Replayed { transactions, .. } = fs.info().journal else {
            panic!("{what}: nothing to replay");
        };
        let ours = read_all(&fs, true).unwrap();
        drop(fs);
        let after = LoopMount::new(&image, "rw");
        let theirs = kernel_tree(&after.path());
        let text = std::fs::read(after.path().join("victim")).unwrap();
        drop(after);
        assert_eq!(differences(&ours, &theirs), Vec::<String>::new(), "{what}");
        assert!(transactions >= 3, "{what}: {transactions}");
        assert!(text.contains(&b'j') && text.contains(&b'o'), "{what}");
    }
}
