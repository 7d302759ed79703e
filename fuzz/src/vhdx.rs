//! A VHDX is opened, read, checked and written. Input: patches of 12 bytes to a small disk whose log has an entry to replay: which
//! structure, where in it (16 bits, little-endian), how many bytes less one (and bit 7: leave the checksums as they are), the bytes.
//!
//! A typed error, never an I/O error, which `check` finds too; or a disk that shows the same when its log is replayed in memory and
//! on the disk. One that `check` passes can be written and grown, holds what was written, and passes again.

use std::sync::OnceLock;

use lcow_blockio::{MemDisk, ReadAt, WriteAt};
use lcow_disk::vhdx::{
    self, CreateOptions, Guid, HEADER_OFFSETS, REGION_TABLE_OFFSETS, SessionGuids, VhdxError,
};

use crate::limits::bounded;
use crate::{Mutate, Rng};

/// What is written of the file of 7 MiB, pages of its table, and a bit for each MiB; in all of a run.
const MEMORY: usize = 64 << 20;
const MIB: u64 = 1 << 20;
const LOG: u64 = MIB;
const METADATA: u64 = 2 * MIB;
const BAT: u64 = 3 * MIB;

fn session(n: u8) -> SessionGuids {
    SessionGuids::from([[n; 16], [n; 16], [n; 16]])
}

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
        let file = MemDisk::new();
        vhdx::create(&file, &CreateOptions::new(100 * MIB, Guid([1; 16])))
            .expect("a disk in memory");
        let disk = vhdx::open_writable(&file, session(1)).expect("a disk in memory");
        disk.write_all_at(0, &[1; 5000]).expect("a disk in memory");
        disk.write_all_at(50 * MIB, &[2; 5000])
            .expect("a disk in memory");
        disk.close().expect("a disk in memory");
        let disk = vhdx::open_writable(&file, session(3)).expect("a disk in memory");
        disk.write_all_at(70 * MIB, &[3; 5000])
            .expect("a disk in memory");
        disk.sync().expect("a disk in memory");
        drop(disk);
        // As if nothing of the log were in place.
        file.write_all_at(BAT + 70 * 8, &[0; 8])
            .expect("a disk in memory");
        assert!(vhdx::open(&file).expect("a disk in memory").info().replayed > 0);
        file
    })
}

fn seal(file: &MemDisk, at: u64, len: usize) {
    let mut bytes = vec![0; len];
    file.read_exact_at(at, &mut bytes)
        .expect("a disk in memory");
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(&bytes);
    file.write_all_at(at + 4, &sum.to_le_bytes())
        .expect("a disk in memory");
}

/// Applies the patches, and mends the checksums of what they touched.
fn patched(input: &[u8]) -> MemDisk {
    let file = base().snapshot();
    for patch in input.as_chunks::<PATCH>().0 {
        let [place, low, high, flags, value @ ..] = patch;
        let (start, len) = PLACES[usize::from(*place) % PLACES.len()];
        let at = start + u64::from(u16::from_le_bytes([*low, *high])) % len;
        let n = 1 + usize::from(flags & 7);
        file.write_all_at(at, &value[..n])
            .expect("a disk in memory");
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
    let size = disk.size().expect("a disk in memory");
    [0, 4990, 50 * MIB - 50, 70 * MIB, size.saturating_sub(60)]
        .into_iter()
        .map(|at| {
            let mut bytes = [0; 100];
            let n = disk.read_at(at, &mut bytes).map_err(|e| e.kind())?;
            Ok(bytes[..n].to_vec())
        })
        .collect()
}

pub(crate) fn run(input: &[u8]) {
    bounded("a VHDX", MEMORY, || takes(input));
}

/// Runs one input; says whether the disk could be opened.
fn takes(input: &[u8]) -> bool {
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
    let size = image.size().expect("a disk in memory");
    let clean = vhdx::check(&file).expect("a disk in memory").is_clean();
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
            result => result.expect("a disk in memory"),
        }
    }
    if disk.info().logical_sector_size == 512 && size < 1 << 40 {
        disk.grow(size + MIB).expect("a disk in memory");
    }
    disk.close().expect("a disk in memory");
    let image = vhdx::open(&file).expect("a disk in memory");
    for (at, mark) in marks {
        let mut bytes = [0; 8];
        image
            .read_exact_at(at, &mut bytes)
            .expect("a disk in memory");
        assert!(
            bytes == [mark; 8] || size < 200,
            "at {at}: {bytes:?}, not {mark}"
        );
    }
    if clean {
        let report = vhdx::check(&file).expect("a disk in memory");
        assert!(report.is_clean(), "{report:?}");
    }
    true
}

pub(crate) fn mutate(input: &mut Vec<u8>, max: usize, rng: &mut Rng, plain: &mut Mutate<'_>) {
    if rng.one_in(8) {
        plain(input, max.min(64 * PATCH));
        return;
    }
    let place = rng.below(input.len() / PATCH) * PATCH;
    if !input.is_empty() && rng.one_in(3) {
        input.drain(place..(place + PATCH).min(input.len()));
        return;
    }
    let value = match rng.below(6) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << rng.below(64),
        // An entry of the table.
        3 => ((rng.number() % 16) << 20) | (rng.number() % 8),
        _ => rng.number() % 256,
    };
    let sealed = if rng.one_in(8) { UNSEALED } else { 0 };
    // Mostly where fields begin.
    let mask = if rng.one_in(3) { !0 } else { !3 };
    let within = u16::try_from(rng.below(4096)).unwrap_or(0) & mask;
    let [low, high] = within.to_le_bytes();
    let [which, bytes] = [PLACES.len(), 8].map(|n| u8::try_from(rng.below(n)).unwrap_or(0));
    let mut patch = vec![which, low, high, sealed | bytes];
    patch.extend(value.to_le_bytes());
    if input.len() + PATCH <= max.min(64 * PATCH) {
        input.splice(place..place, patch);
    } else {
        input.truncate(PATCH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_damage_ends_well() {
        let mut rng = Rng::new(7);
        let (mut input, mut opened) = (Vec::new(), 0);
        let rounds = 1500;
        for round in 0..rounds {
            if rng.one_in(3) {
                input.clear();
            }
            mutate(&mut input, 4 * PATCH, &mut rng, &mut |_, _| {});
            let result = std::panic::catch_unwind(|| takes(&input));
            opened += usize::from(result.unwrap_or_else(|_| panic!("round {round}: {input:?}")));
        }
        assert!(
            opened > rounds / 5 && opened < rounds,
            "{opened} of {rounds}"
        );
    }
}
