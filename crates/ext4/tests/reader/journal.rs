//! Images copied while they were mounted, and so with a journal to replay: ours in memory, the kernel's on the disk.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use lcow_blockio::FileDisk;
use lcow_ext4::reader::{Filesystem, Journal};
use lcow_testkit::{LoopMount, is_root, run, skip};

use crate::export::{differences, kernel_tree, read_all, scratch};
use crate::kernel::populate;

/// Options of mke2fs and of the mount.
const FORMS: &[(&str, &[&str], &str)] = &[
    ("csum-v3", &["-t", "ext4", "-b", "4096"], "rw"),
    (
        "1k-no-checksums",
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"],
        "rw",
    ),
    ("ext3", &["-t", "ext3", "-b", "1024"], "rw"),
    (
        "data-journal",
        &["-t", "ext4", "-b", "1024"],
        "rw,data=journal",
    ),
    (
        "v1-checksum",
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"],
        "rw,journal_checksum",
    ),
    (
        "async-commit",
        &["-t", "ext4", "-O", "^metadata_csum"],
        "rw,data=writeback,journal_async_commit",
    ),
    (
        "fast-commit-off",
        &["-t", "ext4", "-O", "orphan_file"],
        "rw",
    ),
];

/// Makes work for the journal: files that come, go and come again as something else, so that blocks are revoked and used anew.
fn stir(root: &Path, round: u32) {
    let dir = root.join("stir");
    std::fs::create_dir_all(&dir).unwrap();
    for n in 0..60_u32 {
        let path = dir.join(format!("file-{n}"));
        match (n + round) % 4 {
            0 => drop(std::fs::remove_file(&path)),
            1 => std::fs::write(&path, vec![b'a'; (n * 97) as usize]).unwrap(),
            2 => {
                // A block that begins as the journal's own do must be escaped.
                let mut data = vec![0xC0, 0x3B, 0x39, 0x98];
                data.resize(5000, round as u8);
                std::fs::write(&path, data).unwrap();
            }
            _ => {
                let sub = dir.join(format!("dir-{n}"));
                if sub.exists() {
                    std::fs::remove_dir_all(&sub).unwrap();
                } else {
                    std::fs::create_dir(&sub).unwrap();
                    for m in 0..40 {
                        std::fs::write(sub.join(format!("{m:0>60}")), b"x").unwrap();
                    }
                }
            }
        }
    }
}

/// Commits what is pending, without writing it to its place as unmounting would.
fn commit(root: &Path) {
    let dir = File::open(root).unwrap();
    rustix::fs::syncfs(dir.as_fd()).unwrap();
}

#[test]
fn an_unclean_journal_reads_as_the_kernel_replays_it() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let dir = scratch();
    let mut wrong = Vec::new();
    for (name, mke2fs, options) in FORMS {
        let image = dir.path().join(format!("{name}.img"));
        let mut args = vec!["-q", "-F"];
        args.extend(*mke2fs);
        args.extend([image.to_str().unwrap(), "32M"]);
        run("mke2fs", args);
        let mounted = LoopMount::new(&image, options);
        populate(&mounted.path(), 120);
        commit(&mounted.path());
        let mut replays = 0;
        for round in 0..2 {
            stir(&mounted.path(), round);
            commit(&mounted.path());
            // Some more that is not committed, and must not show half done.
            std::fs::write(mounted.path().join("late"), [round as u8; 3000]).unwrap();
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
            let fs = Filesystem::open(FileDisk::open(&copy).unwrap()).unwrap();
            assert_eq!(fs.info().journal, Journal::Clean, "{name}");
            assert_eq!(
                differences(&read_all(&fs, true).unwrap(), &theirs),
                Vec::<String>::new()
            );
        }
        assert!(replays > 0, "{name}: no copy had anything to replay");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
