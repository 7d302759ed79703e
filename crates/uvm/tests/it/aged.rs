//! Disks that a guest's kernel wrote on for long: what is exported of them beside what a kernel shows, after a clean stop and
//! after none.

use crate::support::{config, disk, need_qemu, output, spec};
use lcow_blockio::FileDisk;
use lcow_ext4::mkfs::{FormatOptions, format};
use lcow_ext4::reader::{Filesystem, Journal};
use lcow_layer::export::{ExportOptions, canonical};
use lcow_layer::tree::Subtree;
use lcow_testkit::{
    Ager, LoopMount, Tree, differences, e2fsck_aged, is_root, kernel_tree, read_tar,
};
use lcow_uvm::{ExitStatus, Machine, ProcessSpec};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Set where this program is the one that runs in the machine: the seed, and how often to say that more was done.
const INSIDE: &str = "LCOW_TEST_AGE";
/// This module's test, as the program in the machine is asked for it.
const TEST: &str = "aged::what_a_guest_wrote_is_exported_as_a_kernel_shows_it";
/// Things done between two lines.
const STEPS: u32 = 40;

/// Lines of a whole run; `LCOW_AGE` makes it more.
fn rounds() -> u32 {
    let more = std::env::var("LCOW_AGE")
        .ok()
        .and_then(|n| n.parse::<u32>().ok());
    more.map_or(4, |n| n.saturating_mul(4))
}

fn inside(task: &str) {
    let (seed, rounds) = task.split_once(' ').unwrap();
    let root = Path::new("/aged");
    std::fs::create_dir_all(root).unwrap();
    let mut ager = Ager::new(root, seed.parse().unwrap());
    for round in 0..rounds.parse().unwrap() {
        ager.age(STEPS);
        eprintln!("round {round}");
    }
}

/// This program and the libraries that it names.
fn program(dir: &Path) {
    let own = std::env::current_exe().unwrap();
    let ldd = Command::new("ldd").arg(&own).output().unwrap();
    for library in String::from_utf8_lossy(&ldd.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let to = dir.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(library, to).unwrap();
    }
    let to = dir.join("ager");
    // Without what a debugger wants it is a tenth as large.
    let stripped = Command::new("strip").arg("-o").arg(&to).arg(&own).status();
    if !stripped.is_ok_and(|status| status.success()) {
        std::fs::copy(&own, &to).unwrap();
    }
}

/// Disks to age: one as the store makes sandboxes, the others as `mke2fs` can.
fn disks(dir: &Path) -> Vec<PathBuf> {
    let ours = dir.join("ours");
    let options = FormatOptions {
        size: 128 << 20,
        journal: true,
        uuid: [7; 16],
        hash_seed: [8; 16],
        label: "",
        root_dirs: &[],
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&ours);
    format(&FileDisk::from(file.unwrap()), &options).unwrap();
    let mut disks = vec![ours, disk(dir, "defaults", 128, None)];
    for (name, options) in [
        ("small-blocks", "-b 1024 -O ^metadata_csum,^64bit"),
        ("inline", "-O inline_data,ea_inode -I 512"),
    ] {
        let path = dir.join(name);
        let mut args = vec!["-q", "-F", "-t", "ext4"];
        args.extend(options.split(' '));
        args.extend([path.to_str().unwrap(), "128M"]);
        lcow_testkit::run("mke2fs", args);
        disks.push(path);
    }
    disks
}

/// Ages every disk in one machine. `kill`: in the middle of the last one's turn the machine dies.
fn age(dir: &Path, layer: &Path, disks: &[PathBuf], seed: u32, kill: bool) {
    let machine = Machine::start(&config(dir)).unwrap();
    let lowers = machine.attach(vec![spec(layer, true)]).unwrap();
    let uppers = machine
        .attach(disks.iter().map(|path| spec(path, false)).collect())
        .unwrap();
    for (n, upper) in (0..).zip(&uppers) {
        let root = machine.container_root(&lowers, Some(*upper)).unwrap();
        let last = kill && n + 1 == uppers.len();
        let mut what = ProcessSpec::new(Some(root), ["/ager", "--exact", TEST, "--nocapture"]);
        what.env = vec![format!("{INSIDE}={} {}", seed + n as u32, rounds()).into_bytes()];
        let mut process = machine.exec(&what).unwrap();
        if !last {
            let (text, status) = output(process);
            assert_eq!(status, ExitStatus::Code(0), "{text}");
            continue;
        }
        let lines = BufReader::new(process.take_stderr().unwrap()).lines();
        let middle = format!("round {}", rounds() / 2);
        let reached = lines.map_while(Result::ok).any(|line| line == middle);
        assert!(reached, "the middle was never reached");
        let pid = machine.process_id().unwrap().to_string();
        let killed = Command::new("kill").args(["-KILL", &pid]).status().unwrap();
        assert!(killed.success());
    }
    if kill {
        drop(machine);
    } else {
        machine.power_off().unwrap();
    }
}

/// What is exported of a disk, and what the journal had to do with it.
fn exported(path: &Path) -> (Tree, Journal) {
    let fs = Filesystem::open(FileDisk::open(path).unwrap()).unwrap();
    let journal = fs.info().journal;
    let tree = Subtree::open(Arc::new(fs), b"").unwrap();
    let mut tar = Vec::new();
    canonical(&tree, &ExportOptions::default(), &mut tar).unwrap();
    (read_tar(&tar[..], &|_| true).unwrap(), journal)
}

/// What the kernel shows of a disk once it has replayed the journal, as far as a tar can hold it.
fn shown(path: &Path) -> Tree {
    let mounted = LoopMount::new(path, "rw");
    let mut tree = kernel_tree(&mounted.path());
    drop(mounted);
    tree.remove(&b"lost+found"[..]);
    for entry in tree.values_mut() {
        if entry.mode & 0o170_000 == 0o040_000 {
            entry.links = 0;
        }
    }
    tree
}

#[test]
fn what_a_guest_wrote_is_exported_as_a_kernel_shows_it() {
    if let Ok(task) = std::env::var(INSIDE) {
        return inside(&task);
    }
    need_qemu!();
    if !is_root() {
        lcow_testkit::skip!("not root: can't mount");
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    program(&tree);
    let layer = disk(dir.path(), "layer", 256, Some(&tree));
    let disks = disks(dir.path());
    // A second turn goes on with what the first one left.
    for (seed, kill) in [(1, true), (11, false)] {
        age(dir.path(), &layer, &disks, seed, kill);
        let mut replayed = 0;
        for path in &disks {
            let name = path.file_name().unwrap().display();
            let (ours, journal) = exported(path);
            match journal {
                Journal::Replayed { blocks, .. } => replayed += blocks,
                journal => assert_eq!(journal, Journal::Clean, "{name}"),
            }
            let theirs = shown(path);
            assert!(ours.len() > 50, "{name}: {} files", ours.len());
            let differ = differences(&ours, &theirs);
            assert!(differ.is_empty(), "{name}, {kill}:\n{}", differ.join("\n"));
            e2fsck_aged(path);
        }
        assert_eq!(replayed > 0, kill, "blocks replayed: {replayed}");
    }
}
