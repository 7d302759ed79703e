//! dm-verity trees against `veritysetup`, which builds and checks them without a device mapper.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use lcow_blockio::{FileDisk, MemDisk, ReadAt, WriteAt};
use lcow_disk::verity::{self, BLOCK, Block, BlockHash, RawSuperblock, Tree, VerityError};

const UUID: [u8; 16] = *b"0123456789abcdef";
const SALT: &[u8] = b"a salt of 17 byte";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Blocks that differ from each other, every third a hole.
fn fill(disk: &impl WriteAt, blocks: u64) {
    disk.set_len(blocks * BLOCK).unwrap();
    // All of a small disk; of a large one its ends.
    let ends = (0..blocks.min(1500)).chain(blocks.saturating_sub(300)..blocks);
    for index in ends.filter(|index| index % 3 != 1) {
        let mut block = [index as u8; BLOCK as usize];
        block[..8].copy_from_slice(&index.to_le_bytes());
        disk.write_all_at(index * BLOCK, &block).unwrap();
    }
}

fn built(blocks: u64) -> (MemDisk, BlockHash) {
    let disk = MemDisk::new();
    fill(&disk, blocks);
    let root = verity::build(&disk, blocks * BLOCK, SALT, UUID)
        .unwrap()
        .root;
    (disk, root)
}

/// Flips one bit.
fn flip(disk: &impl WriteAt, offset: u64) {
    let mut byte = [0];
    disk.read_exact_at(offset, &mut byte).unwrap();
    disk.write_all_at(offset, &[byte[0] ^ 0x10]).unwrap();
}

struct Lab {
    _dir: tempfile::TempDir,
    path: PathBuf,
    blocks: u64,
}

impl Lab {
    fn new(blocks: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::File::create_new(&path).unwrap();
        let lab = Self {
            _dir: dir,
            path,
            blocks,
        };
        fill(&lab.disk(), blocks);
        lab
    }

    fn disk(&self) -> FileDisk {
        let mut options = std::fs::File::options();
        let file = options.read(true).write(true).open(&self.path);
        file.unwrap().into()
    }

    fn build(&self, salt: &[u8]) -> BlockHash {
        let built = verity::build(&self.disk(), self.blocks * BLOCK, salt, UUID).unwrap();
        assert_eq!(Some(built.end), verity::end(self.blocks * BLOCK));
        built.root
    }

    fn ours(&self, root: &BlockHash) -> Result<(), VerityError> {
        Tree::open(self.disk(), self.blocks * BLOCK)?.verify(root)
    }

    /// What `veritysetup verify` says against it.
    fn theirs(&self, root: &BlockHash) -> Result<(), String> {
        let output = veritysetup(&self.path, self.blocks, "verify", &[])
            .arg(root.to_string())
            .output()
            .unwrap();
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn veritysetup(disk: &Path, blocks: u64, action: &str, options: &[String]) -> Command {
    let mut command = Command::new("/usr/sbin/veritysetup");
    command
        .env("LC_ALL", "C")
        .args([action, &format!("--hash-offset={}", blocks * BLOCK)])
        .arg(format!("--data-blocks={blocks}"))
        .args(options)
        .args([disk, disk]);
    command
}

#[test]
fn veritysetup_takes_ours_and_makes_the_same() {
    if !lcow_testkit::have("veritysetup") {
        lcow_testkit::skip!("no veritysetup");
    }
    // No level, one, two and three of them; full and barely begun.
    for (blocks, salt) in [
        (1, SALT),
        (2, b"".as_slice()),
        (128, SALT),
        (129, &[0xa5; 256]),
        (1000, SALT),
        (128 * 128, SALT),
        (128 * 128 + 1, SALT),
    ] {
        let lab = Lab::new(blocks);
        let copy = lab.path.with_extension("theirs");
        lcow_testkit::run(
            "cp",
            [
                "--sparse=always".as_ref(),
                lab.path.as_os_str(),
                copy.as_ref(),
            ],
        );
        let root = lab.build(salt);
        assert_eq!(lab.theirs(&root), Ok(()), "{blocks} blocks");
        lab.ours(&root).unwrap();

        let salt = if salt.is_empty() {
            "-".to_owned()
        } else {
            hex(salt)
        };
        let options = [
            format!("--salt={salt}"),
            "--uuid=30313233-3435-3637-3839-616263646566".to_owned(),
        ];
        let output = veritysetup(&copy, blocks, "format", &options)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains(&format!("Root hash:      \t{root}\n")),
            "{blocks} blocks: {root}\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // Their last block is there, and the zeros that fill the superblock's own.
        let (ours, theirs) = (
            std::fs::read(&lab.path).unwrap(),
            std::fs::read(&copy).unwrap(),
        );
        assert_eq!(Some(ours.len() as u64), verity::end(blocks * BLOCK));
        assert!(ours == theirs, "{blocks} blocks: the same bytes");
    }
}

#[test]
fn every_kind_of_flipped_bit_is_found_by_both() {
    if !lcow_testkit::have("veritysetup") {
        lcow_testkit::skip!("no veritysetup");
    }
    let blocks = 128 * 3 + 5;
    let (superblock, top, leaves) = (blocks * BLOCK, (blocks + 1) * BLOCK, (blocks + 2) * BLOCK);
    let data = |index| Some(Block::Data { index });
    let hash = |level, index| Some(Block::Hash { level, index });
    for (what, at, expected) in [
        ("the first byte", 0, data(0)),
        ("a hole", BLOCK + 77, data(1)),
        (
            "data under the second hash block",
            200 * BLOCK + 4095,
            data(200),
        ),
        ("the last byte of data", superblock - 1, data(blocks - 1)),
        ("a hash of data", leaves + BLOCK + 32, hash(0, 1)),
        (
            "the last hash of data",
            leaves + 3 * BLOCK + 4 * 32,
            hash(0, 3),
        ),
        ("spare bytes of level 0", leaves + 4 * BLOCK - 1, hash(0, 3)),
        ("a hash of hashes", top + 2 * 32, hash(1, 0)),
        ("spare bytes of the top", top + BLOCK - 1, hash(1, 0)),
        ("the salt", superblock + 88, hash(1, 0)),
        ("the signature", superblock, None),
        ("the number of data blocks", superblock + 72, None),
        ("the salt's length", superblock + 80, None),
        ("the algorithm", superblock + 32, None),
        ("the hash block size", superblock + 69, None),
    ] {
        let lab = Lab::new(blocks);
        let root = lab.build(SALT);
        flip(&lab.disk(), at);
        let error = lab.ours(&root).expect_err(what);
        match error {
            VerityError::Mismatch { block, offset, .. }
            | VerityError::Root { block, offset, .. } => {
                assert_eq!(Some(block), expected, "{what}: {error}");
                let place = match block {
                    Block::Data { index } => index * BLOCK,
                    Block::Hash { level: 1, .. } => top,
                    Block::Hash { index, .. } => leaves + index * BLOCK,
                };
                assert_eq!(offset, place, "{what}: {error}");
            }
            VerityError::Corrupt { offset, .. } => {
                assert_eq!((expected, offset), (None, superblock), "{what}: {error}");
            }
            VerityError::Unsupported { .. } => assert_eq!(expected, None, "{what}: {error}"),
            error => panic!("{what}: {error}"),
        }
        let theirs = lab.theirs(&root).expect_err(what);
        if let Some(Block::Data { index }) = expected {
            let position = format!("position {}.", index * BLOCK);
            assert!(theirs.contains(&position), "{what}: {theirs}");
        }
    }
    // What no hash covers: nobody finds it.
    let lab = Lab::new(blocks);
    let root = lab.build(SALT);
    flip(&lab.disk(), superblock + 16);
    lab.ours(&root).unwrap();
    assert_eq!(lab.theirs(&root), Ok(()));
}

#[test]
fn the_first_of_several_is_named() {
    let blocks = 128 * 40;
    let (disk, root) = built(blocks);
    let bad = |disk: &MemDisk| match Tree::open(disk, blocks * BLOCK).unwrap().verify(&root) {
        Err(VerityError::Mismatch { block, .. }) => block,
        other => panic!("{other:?}"),
    };
    // Many threads at it, from behind: always the lowest.
    for index in (7..blocks)
        .step_by(61)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
    {
        flip(&disk, index * BLOCK);
        if index % 7 == 0 {
            assert_eq!(bad(&disk), Block::Data { index });
        }
    }
    assert_eq!(bad(&disk), Block::Data { index: 7 });
    // A damaged hash says nothing about its data, so it comes first.
    flip(&disk, (blocks + 2 + 39) * BLOCK);
    assert_eq!(
        bad(&disk),
        Block::Hash {
            level: 0,
            index: 39
        }
    );
    // And another root is told apart from a damaged block.
    let other = BlockHash::from_bytes([9; 32]);
    let error = Tree::open(&disk, blocks * BLOCK).unwrap().verify(&other);
    assert!(
        matches!(error, Err(VerityError::Root { expected, found, .. })
        if expected == other && found == root)
    );
}

#[test]
fn the_same_disk_gives_the_same_bytes() {
    let (one, two) = (built(300), built(300));
    assert_eq!(one.1, two.1);
    assert!(one.0.into_bytes() == two.0.into_bytes());
}

#[test]
fn verified_reads_are_the_data_or_an_error() {
    // More hash blocks than are kept at a time.
    let blocks = 128 * 300 + 9;
    let (disk, root) = built(blocks);
    let plain = |offset: u64, len: usize| {
        let mut bytes = vec![0; len];
        let left = (blocks * BLOCK).saturating_sub(offset);
        let n = len.min(usize::try_from(left).unwrap());
        disk.read_exact_at(offset, &mut bytes[..n]).unwrap();
        bytes.truncate(n);
        bytes
    };
    let reader = || {
        Tree::open(&disk, blocks * BLOCK)
            .unwrap()
            .into_verified(root)
    };
    let whole = reader();
    assert_eq!(whole.size().unwrap(), blocks * BLOCK);
    let read = |offset: u64, len: usize| {
        let mut bytes = vec![0xee; len];
        let n = whole.read_at(offset, &mut bytes).unwrap();
        bytes.truncate(n);
        bytes
    };
    for (offset, len) in [
        (0, 1),
        (4095, 2),
        (5, 3 * 4096),
        (4096, 4096),
        (8192 + 17, 100_000),
        (blocks * BLOCK - 5, 100),
        (blocks * BLOCK, 10),
        (u64::MAX, 10),
        (127 * BLOCK, 300 * 4096),
    ] {
        assert_eq!(
            read(offset, len),
            plain(offset, len),
            "{len} bytes at {offset}"
        );
    }
    // One block under each hash block, twice: those that were kept longest are gone by then.
    for _ in 0..2 {
        for index in (0..blocks).step_by(128) {
            assert_eq!(read(index * BLOCK, 16), plain(index * BLOCK, 16), "{index}");
        }
    }

    let level0 = blocks + 1 + 1 + 3;
    flip(&disk, 130 * BLOCK);
    flip(&disk, (level0 + 200) * BLOCK);
    let reader = reader();
    let outcome = |index: u64, len: usize| match reader.read_at(index * BLOCK, &mut vec![0; len]) {
        Ok(n) => Ok(n),
        Err(e) => {
            assert_eq!(e.kind(), io::ErrorKind::InvalidData);
            match e.get_ref().and_then(|e| e.downcast_ref()) {
                Some(VerityError::Mismatch { block, .. }) => Err(*block),
                other => panic!("{other:?}"),
            }
        }
    };
    let bad_data = Err(Block::Data { index: 130 });
    let bad_hash = Err(Block::Hash {
        level: 0,
        index: 200,
    });
    for (index, len, expected) in [
        (129, 4096, Ok(4096)),
        (130, 1, bad_data),
        (100, 4096 * 40, bad_data),
        (131, 4096, Ok(4096)),
        (200 * 128, 4096, bad_hash),
        (201 * 128 - 1, 4096, bad_hash),
        (201 * 128, 4096, Ok(4096)),
    ] {
        assert_eq!(
            outcome(index, len),
            expected,
            "{len} bytes of block {index}"
        );
    }
    let stranger = Tree::open(&disk, blocks * BLOCK).unwrap();
    let stranger = stranger.into_verified(BlockHash::from_bytes([1; 32]));
    let error = stranger.read_at(0, &mut [0]).unwrap_err();
    let error = error.get_ref().and_then(|e| e.downcast_ref());
    assert!(matches!(error, Some(VerityError::Root { .. })), "{error:?}");
    // A single block has no hash block: its own hash is the root.
    let (one, root) = built(1);
    let one = Tree::open(one, BLOCK).unwrap().into_verified(root);
    one.read_exact_at(4000, &mut [0; 96]).unwrap();
}

#[test]
fn the_tree_is_found_by_the_length_alone() {
    let mut last = 0;
    let sizes = (1..700).chain([
        16_383,
        16_384,
        16_385,
        2_097_152,
        2_097_153,
        1 << 32,
        1 << 45,
    ]);
    for blocks in sizes {
        let end = verity::end(blocks * BLOCK).unwrap();
        assert_eq!(verity::data_size(end), Some(blocks * BLOCK));
        if blocks < 700 {
            // Lengths between are no disk's.
            for total in (last + BLOCK..end).step_by(BLOCK as usize) {
                assert_eq!(verity::data_size(total), None, "{total}");
            }
            last = end;
        }
    }
    for total in [0, 1, BLOCK, 2 * BLOCK + 512, u64::MAX] {
        assert_eq!(verity::data_size(total), None, "{total}");
    }
    for size in [0, 100, BLOCK + 1, u64::MAX, !4095] {
        assert_eq!(verity::end(size), None, "{size}");
        let error = verity::build(&MemDisk::new(), size, b"", UUID);
        assert!(matches!(error, Err(VerityError::Size { size: s }) if s == size));
    }
    let error = verity::build(&MemDisk::new(), BLOCK, &[0; 257], UUID);
    assert!(matches!(error, Err(VerityError::Salt { len: 257 })));
}

#[test]
fn damaged_and_foreign_superblocks_are_told_apart() {
    let superblock = 5 * BLOCK;
    let open = |at: u64, bytes: &[u8]| {
        let (disk, _) = built(5);
        disk.write_all_at(superblock + at, bytes).unwrap();
        Tree::open(disk, superblock)
    };
    for (at, bytes, expected) in [
        (0, b"VERITY".as_slice(), None),
        (8, &[2], Some("superblock version 2")),
        (12, &[0], Some("hash type 0")),
        (32, b"sha512", Some("algorithm \"sha512\"")),
        (64, &[0, 2], Some("data blocks of 512 bytes")),
        (68, &[0, 4], Some("hash blocks of 1024 bytes")),
        (72, &[6], None),
        (80, &[1, 1], None),
        (82, &[1], None),
        (88 + 17, &[1], None),
        (511, &[1], None),
    ] {
        let error = open(at, bytes).unwrap_err();
        match (&error, expected) {
            (VerityError::Unsupported { what }, Some(expected)) => assert_eq!(what, expected),
            (VerityError::Corrupt { offset, .. }, None) => assert_eq!(*offset, superblock),
            _ => panic!("byte {at}: {error}"),
        }
    }
    let (disk, _) = built(5);
    disk.set_len(disk.size().unwrap() - 1).unwrap();
    assert!(matches!(
        Tree::open(disk, superblock),
        Err(VerityError::Corrupt { .. })
    ));
}

/// A disk whose second half can't be read.
struct Failing(MemDisk, u64);

impl ReadAt for Failing {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let touches = offset < self.1 && self.1 < offset + buf.len() as u64;
        if touches {
            return Err(io::Error::other("a bad sector"));
        }
        self.0.read_at(offset, buf)
    }
}

#[test]
fn a_failed_read_is_an_io_error() {
    let (disk, root) = built(128 * 5);
    let disk = Failing(disk, 300 * BLOCK + 7);
    let error = Tree::open(disk, 128 * 5 * BLOCK)
        .unwrap()
        .verify(&root)
        .unwrap_err();
    assert!(
        matches!(error, VerityError::Io { offset, .. } if offset == 256 * BLOCK),
        "{error}"
    );
}

#[test]
fn hashes_are_text() {
    let hash = BlockHash::from_bytes([0xab; 32]);
    assert_eq!(hash.to_string(), "ab".repeat(32));
    assert_eq!("aB".repeat(32).parse(), Ok(hash));
    for bad in [
        "",
        "ab",
        &"ab".repeat(33),
        &"ag".repeat(32),
        &"é".repeat(32),
    ] {
        assert!(bad.parse::<BlockHash>().is_err(), "{bad}");
    }
}

#[test]
fn the_page_tells_the_layout() {
    use std::mem::offset_of;
    macro_rules! fields {
        ($($field:ident),*) => { [$((offset_of!(RawSuperblock, $field), stringify!($field))),*] };
    }
    let fields = fields![
        signature,
        version,
        hash_type,
        uuid,
        algorithm,
        data_block_size,
        hash_block_size,
        data_blocks,
        salt_size,
        pad1,
        salt,
        pad2
    ];
    let ends = fields
        .iter()
        .skip(1)
        .map(|f| f.0)
        .chain([size_of::<RawSuperblock>()]);
    let code: Vec<_> = fields
        .iter()
        .zip(ends)
        .map(|(&(at, name), end)| [at.to_string(), (end - at).to_string(), name.to_owned()])
        .collect();
    let page: Vec<_> = lcow_testkit::page_table("format/verity.md")
        .into_iter()
        .map(|row| row[..3].to_vec())
        .collect();
    assert_eq!(page, code);
}
