//! The verifier beside e2fsck: on images of other makers, of the kernel's, and on images damaged a little at a time.

use std::path::{Path, PathBuf};
use std::process::Command;

use lcow_blockio::{FileDisk, MemDisk, WriteAt};
use lcow_ext4::check::{CheckOptions, Report, check};
use lcow_ext4::format::{Checksum, GroupDescriptor, Inode, Superblock};
use lcow_ext4::mkfs::{FormatOptions, format};
use lcow_ext4::reader::ReadError;
use lcow_ext4::writer::{Content, Identity, Metadata, Writer, WriterOptions};
use lcow_ext4::{InodeNumber, Xattr};
use lcow_testkit::{Corpora, skip};
use zerocopy::{FromBytes, IntoBytes};

use crate::export::scratch;
use crate::property;

fn look(path: &Path) -> Result<Report, ReadError> {
    check(FileDisk::open(path).unwrap(), &CheckOptions::default())
}

/// The first things found, for messages.
fn show(report: &Result<Report, ReadError>) -> String {
    match report {
        Ok(report) => report
            .findings
            .iter()
            .take(3)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; "),
        Err(error) => error.to_string(),
    }
}

/// Whether `e2fsck -fn` has no complaint, and the first of what it prints. On some damage it goes on and on.
pub(crate) fn e2fsck(path: &Path) -> (bool, String) {
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c"])
        .arg("timeout -s KILL 10 e2fsck -f -n \"$0\" 2>&1 | head -c 20000")
        .arg(path)
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code() == Some(0), text)
}

/// Images that e2fsck lets pass, and why the verifier does not.
const STRICTER: &[(&str, &str)] = &[
    (
        "f_ea_inode_no_feature.img",
        "e2fsck from 1.47.1 on finds it too",
    ),
    (
        "f_ea_inode_spurious_flag_dir.img",
        "e2fsck from 1.47.1 on finds it too; the kernel does not mount it",
    ),
    (
        "f_first_meta_bg_too_big.img",
        "e2fsck says so, and then that all is well; the kernel does not mount it",
    ),
    ("f_extra_journal.img", "e2fsck asks what to do about it"),
    (
        "f_zero_inode_size.img",
        "e2fsck says that the superblock is corrupt, and takes a copy of it",
    ),
    (
        "f_readonly_fsck.img",
        "the superblock's count of free blocks, which e2fsck puts right without a word",
    ),
    (
        "f_hurd.img",
        "its names have no types, which e2fsck forgives the Hurd",
    ),
];

/// Images that e2fsck complains about, and why the verifier does not.
const MILDER: &[(&str, &str)] = &[
    (
        "f_orphquot.img",
        "all that is wrong is an inode on the orphan list, which the next mount deletes",
    ),
    (
        "f_clear_orphan_file.img",
        "its orphans are in order; e2fsck clears them while it replays the journal, and stumbles",
    ),
];

#[test]
fn the_verifier_agrees_with_e2fsck_on_all_corpora() {
    let Some(corpora) = Corpora::find() else {
        skip!("no corpora");
    };
    let index = std::fs::read_to_string(corpora.index.join("INDEX.ext4.tsv")).unwrap();
    let dir = scratch();
    let mut wrong = Vec::new();
    let mut agreed = [0, 0];
    for line in index.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let (folder, file, verdict, class) = (fields[0], fields[1], fields[7], fields[9]);
        let path = corpora.files.join(folder).join(file);
        let report = look(&path);
        let clean = report.as_ref().is_ok_and(Report::is_clean);
        let theirs = if report.as_ref().is_ok_and(|r| r.replayed) {
            // What e2fsck says without replaying the journal is not the question.
            let copy = dir.path().join("copy");
            std::fs::copy(&path, &copy).unwrap();
            let replayed = Command::new("e2fsck")
                .args(["-y", "-E", "journal_only"])
                .arg(&copy)
                .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
                .output()
                .unwrap();
            replayed.status.success() && e2fsck(&copy).0
        } else {
            verdict == "0"
        };
        // A journal that can't be replayed is no journal to e2fsck, and corrupt to us.
        let journal = class.ends_with("+needs-replay");
        let excused = |list: &[(&str, &str)]| list.iter().any(|(name, _)| *name == file);
        let right = clean == theirs
            || (theirs && (excused(STRICTER) || journal))
            || (!theirs && excused(MILDER));
        println!(
            "{} {}: {}",
            if clean { "  " } else { "x " },
            file,
            show(&report)
        );
        if right {
            agreed[usize::from(clean)] += 1;
        } else {
            wrong.push(format!("{file}: {}", show(&report)));
        }
    }
    println!("{} clean, {} with findings", agreed[1], agreed[0]);
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// A small random number generator: the same damage each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 8) as usize % n.max(1)
    }
}

/// An image, and where its metadata lies.
struct Patient {
    name: String,
    bytes: Vec<u8>,
    /// Blocks of metadata: number and what they are.
    places: Vec<(usize, Place)>,
    block_size: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Superblock,
    Descriptors,
    BlockBitmap,
    InodeBitmap,
    Inodes,
    /// Directories, extent nodes, attributes, pointers: whatever is in use and not plain data.
    Other,
}

impl Patient {
    fn new(name: &str, bytes: Vec<u8>) -> Self {
        let mut patient = Self {
            name: name.to_owned(),
            block_size: 1024 << superblock(&bytes).s_log_block_size.get(),
            bytes,
            places: Vec::new(),
        };
        patient
            .places
            .push((1024 / patient.block_size, Place::Superblock));
        let sb = superblock(&patient.bytes);
        let first = 1024 / patient.block_size + 1;
        patient.places.push((first, Place::Descriptors));
        for number in 0..groups(&patient.bytes) {
            let d = descriptor(&patient.bytes, number).1;
            patient
                .places
                .push((d.bg_block_bitmap_lo.get() as usize, Place::BlockBitmap));
            patient
                .places
                .push((d.bg_inode_bitmap_lo.get() as usize, Place::InodeBitmap));
            let table = d.bg_inode_table_lo.get() as usize;
            let size = usize::from(sb.s_inode_size.get());
            for block in 0..sb.s_inodes_per_group.get() as usize * size / patient.block_size {
                let at = (table + block) * patient.block_size;
                if patient.bytes[at..at + patient.block_size]
                    .iter()
                    .any(|b| *b != 0)
                {
                    patient.places.push((table + block, Place::Inodes));
                }
            }
        }
        // What begins like a directory, an extent node, a hash tree or an attribute block.
        for (number, block) in patient.bytes.chunks_exact(patient.block_size).enumerate() {
            let known = patient.places.iter().any(|(n, _)| *n == number);
            let extents = block[..2] == [0x0a, 0xf3];
            let attributes = block[..4] == [0, 0, 2, 0xea];
            let dots = block[8] == b'.' && block[6] == 1;
            let names = block[6] > 0
                && block[9] != 0
                && block[4..6] != [0, 0]
                && block[7] < 8
                && block[3] == 0
                && block[0] != 0;
            if !known && (extents || attributes || dots || names) {
                patient.places.push((number, Place::Other));
            }
        }
        patient
    }

    /// Damages one place; says what was done.
    fn damaged(&self, random: &mut Random) -> (Vec<u8>, String) {
        let mut bytes = self.bytes.clone();
        // Each kind of place as often as the others.
        let kinds = [
            Place::Superblock,
            Place::Descriptors,
            Place::BlockBitmap,
            Place::InodeBitmap,
            Place::Inodes,
            Place::Inodes,
            Place::Other,
            Place::Other,
        ];
        let (block, place) = loop {
            let kind = kinds[random.below(kinds.len())];
            let all: Vec<_> = self.places.iter().filter(|(_, p)| *p == kind).collect();
            if !all.is_empty() {
                break *all[random.below(all.len())];
            }
        };
        let start = block * self.block_size;
        let at = loop {
            let at = match place {
                Place::Superblock => 1024 + random.below(0x280),
                Place::Descriptors => {
                    start + random.below(groups(&bytes) as usize * descriptor_size(&bytes))
                }
                _ => start + random.below(self.block_size),
            };
            let near = &bytes[at & !15..(at & !15) + 16];
            // Nothing follows from what lies in empty space, most of the time.
            let dull = near.iter().all(|b| *b == 0) && random.below(8) != 0;
            if !dull && !self.spared(place, at) {
                break at;
            }
        };
        let old = bytes[at];
        bytes[at] = match random.below(6) {
            0 => 0,
            1 => 0xff,
            2 => old.wrapping_add(1),
            3 => old.wrapping_sub(1),
            4 => random.next() as u8,
            _ => old ^ 1 << random.below(8),
        };
        let what = format!(
            "{}: {place:?} block {block} byte {}: {old:#x} to {:#x}",
            self.name,
            at - start,
            bytes[at]
        );
        mend(&mut bytes, place, at);
        (bytes, what)
    }

    /// What only e2fsck minds: clocks, counters of mounts, and times beyond 2310.
    fn spared(&self, place: Place, at: usize) -> bool {
        match place {
            Place::Superblock => {
                let field = at - 1024;
                matches!(field, 0x2c..0x38 | 0x3c | 0x40..0x48 | 0x108..0x10c | 0x10c..0x150 | 0x174..0x178 | 0x194..0x240 | 0x274..0x27c)
            }
            Place::Inodes => {
                let size = usize::from(superblock(&self.bytes).s_inode_size.get());
                let field = at % size;
                matches!(field, 8..0x14 | 0x84..0x98)
            }
            _ => false,
        }
    }
}

fn superblock(bytes: &[u8]) -> Superblock {
    Superblock::read_from_bytes(&bytes[1024..2048]).unwrap()
}

fn groups(bytes: &[u8]) -> u32 {
    let sb = superblock(bytes);
    (sb.s_blocks_count_lo.get() - sb.s_first_data_block.get()).div_ceil(sb.s_blocks_per_group.get())
}

fn descriptor_size(bytes: &[u8]) -> usize {
    let sb = superblock(bytes);
    if sb.s_feature_incompat.get() & 0x80 != 0 {
        usize::from(sb.s_desc_size.get())
    } else {
        32
    }
}

/// Where a descriptor lies, and what it says.
fn descriptor(bytes: &[u8], group: u32) -> (usize, GroupDescriptor) {
    let sb = superblock(bytes);
    let size = descriptor_size(bytes);
    let block = 1024usize << sb.s_log_block_size.get();
    let at = (1024 / block + 1) * block + group as usize * size;
    let mut raw = GroupDescriptor::zeroed();
    raw.as_mut_bytes()[..size].copy_from_slice(&bytes[at..at + size]);
    (at, raw)
}

/// Makes the checksums around a damaged place right again, so that more than they notices.
fn mend(bytes: &mut [u8], place: Place, at: usize) {
    let sb = superblock(bytes);
    if sb.s_feature_ro_compat.get() & 0x400 == 0 {
        return;
    }
    let seed = if sb.s_feature_incompat.get() & 0x2000 != 0 {
        Checksum::from_seed(sb.s_checksum_seed.get())
    } else {
        Checksum::from_uuid(&sb.s_uuid)
    };
    if place == Place::Superblock {
        let sum = sb.checksum();
        bytes[2044..2048].copy_from_slice(&sum.to_le_bytes());
        return;
    }
    let block_size = 1024usize << sb.s_log_block_size.get();
    match place {
        Place::Inodes => {
            let size = usize::from(sb.s_inode_size.get());
            for group in 0..groups(bytes) {
                let d = descriptor(bytes, group).1;
                let table = d.bg_inode_table_lo.get() as usize * block_size;
                let Some(within) = at.checked_sub(table) else {
                    continue;
                };
                let number = within / size;
                if number >= sb.s_inodes_per_group.get() as usize {
                    continue;
                }
                let start = table + number * size;
                let raw = &mut bytes[start..start + size];
                if raw.iter().all(|b| *b == 0) {
                    return;
                }
                let inode = group * sb.s_inodes_per_group.get() + number as u32 + 1;
                let generation = u32::from_le_bytes(raw[0x64..0x68].try_into().unwrap());
                let sum = Inode::checksum(seed, inode, generation, raw);
                raw[0x7c..0x7e].copy_from_slice(&sum.low().to_le_bytes());
                if Inode::has_checksum_hi(raw) {
                    raw[0x82..0x84].copy_from_slice(&sum.high().to_le_bytes());
                }
            }
        }
        Place::BlockBitmap | Place::InodeBitmap | Place::Descriptors => {
            for group in 0..groups(bytes) {
                let (start, mut d) = descriptor(bytes, group);
                let sum = |block: u32, bits: u32| {
                    let start = block as usize * block_size;
                    bytes
                        .get(start..start + bits as usize / 8)
                        .map(|b| seed.bytes(b))
                };
                if place == Place::BlockBitmap
                    && let Some(sum) =
                        sum(d.bg_block_bitmap_lo.get(), sb.s_clusters_per_group.get())
                {
                    d.bg_block_bitmap_csum_lo = sum.low().into();
                    d.bg_block_bitmap_csum_hi = sum.high().into();
                }
                if place == Place::InodeBitmap
                    && let Some(sum) = sum(d.bg_inode_bitmap_lo.get(), sb.s_inodes_per_group.get())
                {
                    d.bg_inode_bitmap_csum_lo = sum.low().into();
                    d.bg_inode_bitmap_csum_hi = sum.high().into();
                }
                let size = descriptor_size(bytes);
                d.bg_checksum =
                    GroupDescriptor::checksum_crc32c(seed, group, &d.as_bytes()[..size]).into();
                bytes[start..start + size].copy_from_slice(&d.as_bytes()[..size]);
            }
        }
        Place::Superblock | Place::Other => {}
    }
}

/// An image of the writer's with something of everything.
fn written(inline: bool) -> Vec<u8> {
    let disk = MemDisk::new();
    let mut options = WriterOptions::default();
    options.max_size = 64 << 20;
    options.read_only = false;
    options.inline_data = inline;
    let mut w = Writer::new(&disk, &options).unwrap();
    let meta = Metadata {
        permissions: 0o755,
        ..Metadata::default()
    };
    let root = InodeNumber::ROOT;
    let dir = w.create(root, b"dir", Content::Directory, &meta).unwrap();
    let many = w.create(root, b"many", Content::Directory, &meta).unwrap();
    for n in 0..150 {
        let name = format!("{n:0>90}");
        w.create(many, name.as_bytes(), Content::Regular, &meta)
            .unwrap();
    }
    let file = w.create(dir, b"file", Content::Regular, &meta).unwrap();
    w.begin_data(file).unwrap();
    for _ in 0..20 {
        w.write_data(&[b'd'; 4096]).unwrap();
        w.skip_data(4096).unwrap();
    }
    w.end_data().unwrap();
    w.link(root, b"hard", file).unwrap();
    w.create(dir, b"fast", Content::Symlink(b"target"), &meta)
        .unwrap();
    w.create(dir, b"slow", Content::Symlink(&[b's'; 200]), &meta)
        .unwrap();
    w.create(dir, b"fifo", Content::Fifo, &meta).unwrap();
    let xattr = |name: &str, len: usize| Xattr {
        name: name.as_bytes().to_vec(),
        value: vec![b'v'; len],
    };
    w.set_xattrs(file, &[xattr("user.small", 10)]).unwrap();
    w.set_xattrs(dir, &[xattr("user.block", 300), xattr("trusted.more", 20)])
        .unwrap();
    let value = w.create(dir, b"value", Content::Regular, &meta).unwrap();
    w.set_xattrs(value, &[xattr("user.large", 9000)]).unwrap();
    w.finish(&Identity {
        uuid: [3; 16],
        hash_seed: [4; 16],
    })
    .unwrap();
    disk.into_bytes()
}

fn patients() -> Vec<Patient> {
    let mut list: Vec<Patient> = property::images()
        .iter()
        .map(|(name, bytes)| Patient::new(name, bytes.clone()))
        .collect();
    list.push(Patient::new("the writer's", written(false)));
    list.push(Patient::new("the writer's, inline", written(true)));
    let disk = MemDisk::new();
    let options = FormatOptions {
        size: 16 << 20,
        journal: true,
        uuid: [5; 16],
        hash_seed: [6; 16],
        label: "blank",
        root_dirs: &[(
            "upper",
            Metadata {
                permissions: 0o755,
                uid: 0,
                gid: 0,
                atime: lcow_ext4::Timestamp::from_secs(0),
                mtime: lcow_ext4::Timestamp::from_secs(0),
                ctime: lcow_ext4::Timestamp::from_secs(0),
            },
        )],
    };
    format(&disk, &options).unwrap();
    disk.sync().unwrap();
    list.push(Patient::new("mkfs's", disk.into_bytes()));
    list
}

/// What e2fsck says to small damage of one kind each, the verifier says too. `LCOW_MUTATIONS` is how many to try.
#[test]
fn what_e2fsck_finds_in_damaged_images_the_verifier_finds() {
    let count: usize = std::env::var("LCOW_MUTATIONS").map_or(250, |n| n.parse().unwrap());
    let mut random =
        Random(std::env::var("LCOW_SEED").map_or(0x1234_5678_9abc_def1, |n| n.parse().unwrap()));
    let dir = scratch();
    let path: PathBuf = dir.path().join("image");
    let patients = patients();
    for patient in &patients {
        std::fs::write(&path, &patient.bytes).unwrap();
        let (clean, text) = e2fsck(&path);
        assert!(clean, "{}: {text}", patient.name);
        let report = check(
            MemDisk::from(patient.bytes.clone()),
            &CheckOptions::default(),
        );
        assert!(
            report.as_ref().is_ok_and(Report::is_clean),
            "{}: {}",
            patient.name,
            show(&report)
        );
    }
    let mut missed = Vec::new();
    let mut tally = [[0_usize; 2]; 2];
    for number in 0..count {
        let patient = &patients[number % patients.len()];
        let (bytes, what) = patient.damaged(&mut random);
        std::fs::write(&path, &bytes).unwrap();
        let (theirs, text) = e2fsck(&path);
        let report = check(MemDisk::from(bytes), &CheckOptions::default());
        let ours = report.as_ref().is_ok_and(Report::is_clean);
        tally[usize::from(ours)][usize::from(theirs)] += 1;
        if std::env::var_os("LCOW_MUTATIONS").is_some() && number % 100 == 0 {
            println!("{number}");
        }
        if ours && !theirs {
            println!("missed: {what}\n{text}");
            missed.push(format!("{what}\n{text}"));
        } else if theirs && !ours {
            println!("only we: {what}: {}", show(&report));
        }
    }
    println!(
        "found by both {}, by us alone {}, by neither {}, missed {}",
        tally[0][0], tally[0][1], tally[1][1], tally[1][0]
    );
    assert!(
        missed.is_empty(),
        "{} missed:\n{}",
        missed.len(),
        missed.join("\n")
    );
    assert!(tally[0][0] > count / 10, "damage that does no harm");
}

/// The damaged image that the verifier must see as damaged even though all checksums are right again.
#[test]
fn mended_checksums_hide_nothing() {
    let patient = Patient::new("the writer's", written(false));
    let (block, _) = patient
        .places
        .iter()
        .find(|(_, p)| *p == Place::Inodes)
        .unwrap();
    // The root's links.
    let at = block * patient.block_size + 256 + 0x1a;
    let mut bytes = patient.bytes.clone();
    bytes[at] += 1;
    let damaged = check(MemDisk::from(bytes.clone()), &CheckOptions::default()).unwrap();
    assert!(
        damaged.findings[0].detail.contains("checksum"),
        "{damaged:?}"
    );
    mend(&mut bytes, Place::Inodes, at);
    let mended = check(MemDisk::from(bytes), &CheckOptions::default()).unwrap();
    assert_eq!(mended.findings.len(), 1, "{mended:?}");
    assert!(mended.findings[0].detail.contains("links"), "{mended:?}");
}

/// Fields of the superblock that e2fsck minds, and chance seldom hits.
#[test]
fn fields_of_the_superblock_that_e2fsck_minds() {
    let dir = scratch();
    let path = dir.path().join("image");
    let mut patients = patients();
    std::fs::write(&path, vec![0; 4 << 20]).unwrap();
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-b", "1024", "-O", "meta_bg,^resize_inode"])
        .arg(&path)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .status();
    assert!(made.unwrap().success());
    patients.push(Patient::new("meta_bg", std::fs::read(&path).unwrap()));
    let damages: [(&str, usize, &[u8], &str); 6] = [
        ("mkfs's", 0xd3, &[0xff], "two journals"),
        ("journal", 0x64, &[0x6f], "FEATURE_R2"),
        ("the writer's", 0x65, &[0x0c], "replica"),
        ("block maps", 0xfe, &[0xff], "descriptors of 255"),
        ("bigalloc", 0x26c, &[0x80], "files of quotas"),
        ("meta_bg", 0x104, &[9, 9, 9, 9], "first group of groups"),
    ];
    for (name, field, value, word) in damages {
        let patient = patients.iter().find(|patient| patient.name == name);
        let mut bytes = patient.unwrap().bytes.clone();
        bytes[1024 + field..][..value.len()].copy_from_slice(value);
        mend(&mut bytes, Place::Superblock, 1024 + field);
        std::fs::write(&path, &bytes).unwrap();
        assert!(!e2fsck(&path).0, "{name}: {word}");
        let report = check(MemDisk::from(bytes), &CheckOptions::default());
        assert!(show(&report).contains(word), "{name}: {}", show(&report));
    }
}
