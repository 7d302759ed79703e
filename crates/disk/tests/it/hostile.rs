//! Any bytes as damage to a good VHDX: the body of a fuzz target, run here on random inputs.
//!
//! An input is a list of patches to a small disk whose log has an entry to replay. Checksums are mended unless a patch says
//! otherwise. What is promised: a typed error or a disk. A disk shows the same when its log is replayed in memory and on the
//! disk; one that `check` passes can be written, holds then what a model of it holds, and passes again.

use std::sync::OnceLock;

use lcow_blockio::testing::Dice;
use lcow_blockio::{MemDisk, ReadAt, WriteAt};
use lcow_disk::vhdx::{self, HEADER_OFFSETS, REGION_TABLE_OFFSETS, VhdxError};

use crate::support::{MIB, blank, session};

const LOG: u64 = MIB;
const METADATA: u64 = 2 * MIB;
const BAT: u64 = 3 * MIB;
/// Where patches go: the beginnings and lengths of what is looked at.
const PLACES: [(u64, u64); 9] = [
    (HEADER_OFFSETS[0], 96),
    (HEADER_OFFSETS[1], 96),
    (REGION_TABLE_OFFSETS[0], 128),
    (REGION_TABLE_OFFSETS[1], 128),
    (LOG, 200),
    (LOG + 4096, 4096),
    (METADATA, 256),
    (METADATA + 65536, 64),
    (BAT, 1024),
];
/// Bytes of a patch: place, where in it (2), how many bytes and flags, a value (8).
const PATCH: usize = 12;
/// A patch with this flag leaves checksums as they were.
const UNSEALED: u8 = 0x80;

/// A disk of 100 MiB with three blocks, of which the last is only in the log.
fn base() -> &'static MemDisk {
    static BASE: OnceLock<MemDisk> = OnceLock::new();
    BASE.get_or_init(|| {
        let file = blank(100 * MIB, 1 << 20);
        let disk = vhdx::open_writable(&file, session(1)).unwrap();
        disk.write_all_at(0, &[1; 5000]).unwrap();
        disk.write_all_at(50 * MIB, &[2; 5000]).unwrap();
        disk.close().unwrap();
        let disk = vhdx::open_writable(&file, session(3)).unwrap();
        disk.write_all_at(70 * MIB, &[3; 5000]).unwrap();
        disk.sync().unwrap();
        drop(disk);
        // As if nothing of the log were in place.
        file.write_all_at(BAT + 70 * 8, &[0; 8]).unwrap();
        assert!(vhdx::open(&file).unwrap().info().replayed > 0);
        file
    })
}

fn seal(file: &MemDisk, at: u64, len: usize) {
    let mut bytes = vec![0; len];
    file.read_exact_at(at, &mut bytes).unwrap();
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(&bytes);
    file.write_all_at(at + 4, &sum.to_le_bytes()).unwrap();
}

/// Applies the patches, and mends the checksums of what they touched.
fn patched(input: &[u8]) -> MemDisk {
    let file = base().snapshot();
    for patch in input.as_chunks::<PATCH>().0 {
        let [place, low, high, flags, value @ ..] = patch;
        let (start, len) = PLACES[usize::from(*place) % PLACES.len()];
        let at = start + u64::from(u16::from_le_bytes([*low, *high])) % len;
        let n = 1 + usize::from(flags & 7);
        file.write_all_at(at, &value[..n]).unwrap();
        if flags & UNSEALED != 0 {
            continue;
        }
        for header in HEADER_OFFSETS {
            if (header..header + 4096).contains(&at) {
                seal(&file, header, 4096);
            }
        }
        for table in REGION_TABLE_OFFSETS {
            if (table..table + 65536).contains(&at) {
                seal(&file, table, 65536);
            }
        }
        if (LOG..LOG + 8192).contains(&at) {
            seal(&file, LOG, 8192);
        }
    }
    file
}

/// What a disk holds here and there; an error by its kind.
fn sample(disk: &dyn ReadAt) -> Vec<Result<Vec<u8>, std::io::ErrorKind>> {
    let size = disk.size().unwrap();
    [0, 4990, 50 * MIB - 50, 70 * MIB, size.saturating_sub(60)]
        .into_iter()
        .map(|at| {
            let mut bytes = [0; 100];
            let n = disk.read_at(at, &mut bytes).map_err(|e| e.kind())?;
            Ok(bytes[..n].to_vec())
        })
        .collect()
}

/// Runs one input; says whether the disk could be opened.
fn run(input: &[u8]) -> bool {
    let file = patched(input);
    let image = match vhdx::open(&file) {
        Ok(image) => image,
        Err(error) => {
            assert!(!matches!(error, VhdxError::Io { .. }), "{error:?}");
            assert!(vhdx::check(&file).is_err(), "check sees it too: {error:?}");
            return false;
        }
    };
    let seen = sample(&image);
    let size = image.size().unwrap();
    let clean = vhdx::check(&file).unwrap().is_clean();
    drop(image);
    let disk = match vhdx::open_writable(&file, session(4)) {
        Ok(disk) => disk,
        // No log, or headers that can't be numbered on.
        Err(VhdxError::Refused { .. } | VhdxError::Unsupported { .. }) => return true,
        Err(error) => {
            assert!(!clean, "what check passes can be written: {error:?}");
            return true;
        }
    };
    assert_eq!(sample(&disk), seen, "replayed in memory and on the disk");
    if size < 100 {
        return true;
    }
    let marks = [(0, 10), (size / 2, 20), (size - 8, 30)];
    for (at, mark) in marks {
        match disk.write_all_at(at, &[mark; 8]) {
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => return true,
            result => result.unwrap(),
        }
    }
    if disk.info().logical_sector_size == 512 && size < 1 << 40 {
        disk.grow(size + MIB).unwrap();
    }
    disk.close().unwrap();
    let image = vhdx::open(&file).unwrap();
    for (at, mark) in marks {
        let mut bytes = [0; 8];
        image.read_exact_at(at, &mut bytes).unwrap();
        assert!(
            bytes == [mark; 8] || size < 200,
            "at {at}: {bytes:?}, not {mark}"
        );
    }
    if clean {
        let report = vhdx::check(&file).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
    true
}

#[test]
fn any_damage_ends_well() {
    assert!(run(&[]));
    let mut dice = Dice(123);
    let mut opened = 0;
    let rounds = 3000;
    for round in 0..rounds {
        let mut input = Vec::new();
        for _ in 0..=dice.roll(3) {
            let value = match dice.roll(6) {
                0 => 0,
                1 => u64::MAX,
                2 => 1 << dice.roll(64),
                3 => dice.roll(16) << 20 | dice.roll(8),
                _ => dice.roll(256),
            };
            let sealed = if dice.roll(8) == 0 { UNSEALED } else { 0 };
            let mut patch = vec![dice.roll(9) as u8, 0, 0, sealed | dice.roll(8) as u8];
            // Mostly where fields begin.
            let within = dice.roll(4096) as u16 & if dice.roll(3) == 0 { !0 } else { !3 };
            patch[1..3].copy_from_slice(&within.to_le_bytes());
            patch.extend(value.to_le_bytes());
            input.extend(patch);
        }
        let result = std::panic::catch_unwind(|| run(&input));
        opened += usize::from(result.unwrap_or_else(|_| panic!("round {round}: {input:?}")));
    }
    assert!(
        opened > rounds / 5 && opened < rounds,
        "{opened} of {rounds}"
    );
}
