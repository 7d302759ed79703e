//! Files that are damaged, strange or hostile.

use lcow_blockio::{MemDisk, ReadAt, WriteAt};
use lcow_disk::vhdx::{
    self, BAT_REGION, Guid, HEADER_OFFSETS, LOG_SECTOR, REGION_TABLE_OFFSETS, Structure, VhdxError,
};

use crate::support::{MIB, blank, session};

/// Where things are in a file that is made here.
const LOG: u64 = MIB;
const METADATA: u64 = 2 * MIB;
const BAT: u64 = 3 * MIB;

/// Writes bytes, and sets the checksums of headers and region tables right.
fn put(file: &MemDisk, at: u64, bytes: &[u8]) {
    file.write_all_at(at, bytes).unwrap();
    for (start, len) in HEADER_OFFSETS
        .map(|at| (at, 4096))
        .into_iter()
        .chain(REGION_TABLE_OFFSETS.map(|at| (at, 65536)))
    {
        if (start..start + len).contains(&at) {
            seal(file, start, len);
        }
    }
}

fn seal(file: &MemDisk, at: u64, len: u64) {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(at, &mut bytes).unwrap();
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(&bytes);
    file.write_all_at(at + 4, &sum.to_le_bytes()).unwrap();
}

fn both(file: &MemDisk, places: [u64; 2], within: u64, bytes: &[u8]) {
    for place in places {
        put(file, place + within, bytes);
    }
}

/// A small disk with two blocks.
fn good() -> MemDisk {
    let file = blank(100 * MIB, 1 << 20);
    let disk = vhdx::open_writable(&file, session(1)).unwrap();
    disk.write_all_at(0, &[1; 5000]).unwrap();
    disk.write_all_at(50 * MIB, &[2; 5000]).unwrap();
    disk.close().unwrap();
    assert!(vhdx::check(&file).unwrap().is_clean());
    file
}

/// A way to damage a file.
type Damage = fn(&MemDisk);

#[test]
fn damage_is_named() {
    use Structure::{Bat, File, Header, Log, Metadata, RegionTable};
    let cases: &[(&str, Structure, Damage)] = &[
        ("no signature", File, |f| put(f, 0, b"x")),
        ("cut short", File, |f| f.set_len(MIB - 1).unwrap()),
        ("too long", File, |f| f.set_len(1 << 60).unwrap()),
        ("both headers", Header, |f| {
            HEADER_OFFSETS
                .iter()
                .for_each(|at| f.write_all_at(at + 9, b"?").unwrap());
        }),
        ("two headers of one number", Header, |f| {
            both(f, HEADER_OFFSETS, 8, &[9; 8]);
            put(f, HEADER_OFFSETS[1] + 16, b"x");
        }),
        ("a log in the headers", Header, |f| {
            both(f, HEADER_OFFSETS, 72, &0_u64.to_le_bytes());
        }),
        ("a log between MiB", Header, |f| {
            both(f, HEADER_OFFSETS, 72, &5000_u64.to_le_bytes());
        }),
        ("a log behind everything", Header, |f| {
            both(f, HEADER_OFFSETS, 72, &(1_u64 << 60).to_le_bytes());
        }),
        ("a log in the metadata", RegionTable, |f| {
            both(f, HEADER_OFFSETS, 72, &(2 * MIB).to_le_bytes());
        }),
        ("a log that ends behind the file", Log, |f| {
            both(f, HEADER_OFFSETS, 72, &(500 * MIB).to_le_bytes());
            both(f, HEADER_OFFSETS, 48, &[1; 16]);
        }),
        ("both region tables", RegionTable, |f| {
            REGION_TABLE_OFFSETS
                .iter()
                .for_each(|at| f.write_all_at(at + 9, b"?").unwrap());
        }),
        ("too many regions", RegionTable, |f| {
            both(f, REGION_TABLE_OFFSETS, 8, &2048_u32.to_le_bytes());
        }),
        ("no table", RegionTable, |f| {
            both(f, REGION_TABLE_OFFSETS, 8, &1_u32.to_le_bytes());
        }),
        ("a region twice", RegionTable, |f| {
            both(f, REGION_TABLE_OFFSETS, 16, &BAT_REGION.0);
        }),
        ("regions that overlap", RegionTable, |f| {
            both(f, REGION_TABLE_OFFSETS, 32, &BAT.to_le_bytes());
        }),
        ("a region behind the end", RegionTable, |f| {
            both(f, REGION_TABLE_OFFSETS, 32, &(1_u64 << 40).to_le_bytes());
        }),
        ("a region of odd length", RegionTable, |f| {
            both(f, REGION_TABLE_OFFSETS, 40, &4096_u32.to_le_bytes());
        }),
        ("an empty region", Metadata, |f| {
            both(f, REGION_TABLE_OFFSETS, 40, &0_u32.to_le_bytes());
        }),
        ("no metadata", Metadata, |f| put(f, METADATA, b"x")),
        ("too many items", Metadata, |f| {
            put(f, METADATA + 10, &2048_u16.to_le_bytes());
        }),
        ("an item less", Metadata, |f| {
            put(f, METADATA + 10, &4_u16.to_le_bytes());
        }),
        ("an item twice", Metadata, |f| {
            put(f, METADATA + 32, &vhdx::VIRTUAL_DISK_SIZE.0);
        }),
        ("an item in the table", Metadata, |f| {
            put(f, METADATA + 48, &32_u32.to_le_bytes());
        }),
        ("two items in one place", Metadata, |f| {
            put(f, METADATA + 32 + 32 + 16, &65537_u32.to_le_bytes());
        }),
        ("an item behind the region", Metadata, |f| {
            put(f, METADATA + 48, &(MIB as u32 - 4).to_le_bytes());
        }),
        ("an item of another length", Metadata, |f| {
            put(f, METADATA + 52, &9_u32.to_le_bytes());
        }),
        ("blocks of 3 MiB", Metadata, |f| {
            put(f, METADATA + 65536, &(3_u32 << 20).to_le_bytes());
        }),
        ("blocks of 512 MiB", Metadata, |f| {
            put(f, METADATA + 65536, &(1_u32 << 29).to_le_bytes());
        }),
        ("blocks of 512 KiB", Metadata, |f| {
            put(f, METADATA + 65536, &(1_u32 << 19).to_le_bytes());
        }),
        ("a disk of 65 TiB", Metadata, |f| {
            put(f, METADATA + 65544, &(65_u64 << 40).to_le_bytes());
        }),
        ("half a sector", Metadata, |f| {
            put(f, METADATA + 65544, &256_u64.to_le_bytes());
        }),
        ("sectors of 1 KiB", Metadata, |f| {
            put(f, METADATA + 65568, &1024_u32.to_le_bytes());
        }),
        ("a table that is too small", Bat, |f| {
            put(f, METADATA + 65544, &(64_u64 << 40).to_le_bytes());
        }),
        ("a block that is partially there", Bat, |f| {
            put(f, BAT, &7_u64.to_le_bytes());
        }),
        ("a block in a reserved state", Bat, |f| {
            put(f, BAT, &5_u64.to_le_bytes());
        }),
        ("a block behind the end", Bat, |f| {
            put(f, BAT, &(6 | (6_u64 << 20)).to_le_bytes());
        }),
        ("a block far behind the end", Bat, |f| {
            put(f, BAT, &u64::MAX.wrapping_sub(1).to_le_bytes());
        }),
        ("a block in the table", Bat, |f| {
            put(f, BAT, &(6 | (3_u64 << 20)).to_le_bytes());
        }),
        ("a block in the headers", Bat, |f| {
            put(f, BAT, &6_u64.to_le_bytes());
        }),
    ];
    for (name, structure, damage) in cases {
        let file = good();
        damage(&file);
        let error = match vhdx::open(&file) {
            Err(error) => error,
            Ok(image) => {
                let error = image.read_at(0, &mut [0; 10]).expect_err(name);
                error.downcast::<VhdxError>().unwrap()
            }
        };
        match &error {
            VhdxError::Corrupt {
                structure: found, ..
            } if found == structure => {}
            other => panic!("{name}: {other:?}"),
        }
        let written = vhdx::open_writable(&file, session(2)).map(drop);
        assert!(
            matches!(
                written,
                Err(VhdxError::Corrupt { .. } | VhdxError::Refused { .. })
            ),
            "{name}: {written:?}"
        );
        assert!(
            !vhdx::check(&file).is_ok_and(|report| report.is_clean()),
            "{name}"
        );
    }
}

#[test]
fn two_blocks_in_one_place_are_found() {
    let file = good();
    let mut first = [0; 8];
    file.read_exact_at(BAT, &mut first).unwrap();
    put(&file, BAT + 8 * 10, &first);
    let report = vhdx::check(&file).unwrap();
    let [problem] = report.problems.as_slice() else {
        panic!("{report:?}")
    };
    assert_eq!(problem.structure, Structure::Bat);
    let written = vhdx::open_writable(&file, session(2)).map(drop);
    assert!(matches!(
        written,
        Err(VhdxError::Corrupt {
            structure: Structure::Bat,
            ..
        })
    ));
}

#[test]
fn what_is_not_known_is_refused_only_if_it_is_required() {
    let stranger = Guid([7; 16]);
    // Header of the third entry of the region table: a MiB at the end of the file.
    let region = |required: u32| {
        let file = good();
        let at = file.size().unwrap();
        file.set_len(at + MIB).unwrap();
        let mut entry = stranger.0.to_vec();
        entry.extend(at.to_le_bytes());
        entry.extend((MIB as u32).to_le_bytes());
        entry.extend(required.to_le_bytes());
        both(&file, REGION_TABLE_OFFSETS, 16 + 64, &entry);
        both(&file, REGION_TABLE_OFFSETS, 8, &3_u32.to_le_bytes());
        (file, at)
    };
    assert!(matches!(
        vhdx::open(region(1).0),
        Err(VhdxError::Unsupported { .. })
    ));
    let (file, at) = region(0);
    put(&file, at, b"keep this");
    let disk = vhdx::open_writable(&file, session(2)).unwrap();
    for block in 0..20 {
        disk.write_all_at(block * MIB, &vec![3; MIB as usize])
            .unwrap();
    }
    disk.grow(300 << 30).unwrap();
    disk.close().unwrap();
    assert!(vhdx::check(&file).unwrap().is_clean());
    let mut kept = [0; 9];
    file.read_exact_at(at, &mut kept).unwrap();
    assert_eq!(&kept, b"keep this");

    let item = |flags: u32| {
        let file = good();
        let mut entry = stranger.0.to_vec();
        entry.extend(
            [66000_u32, 10, flags, 0]
                .iter()
                .flat_map(|n| n.to_le_bytes()),
        );
        put(&file, METADATA + 32 + 5 * 32, &entry);
        put(&file, METADATA + 10, &6_u16.to_le_bytes());
        vhdx::open(file)
    };
    assert!(item(0).is_ok());
    assert!(item(1).is_ok(), "a user's");
    for required in [4, 5, 6] {
        assert!(
            matches!(item(required), Err(VhdxError::Unsupported { .. })),
            "{required}"
        );
    }

    let file = good();
    both(&file, HEADER_OFFSETS, 66, &2_u16.to_le_bytes());
    assert!(
        matches!(vhdx::open(file), Err(VhdxError::Unsupported { .. })),
        "version 2"
    );
}

#[test]
fn a_disk_with_a_parent_is_refused() {
    let file = good();
    put(&file, METADATA + 65540, &2_u32.to_le_bytes());
    for result in [
        vhdx::open(&file).map(drop),
        vhdx::check(&file).map(drop),
        vhdx::open_writable(&file, session(2)).map(drop),
    ] {
        assert!(matches!(result, Err(VhdxError::Differencing)), "{result:?}");
    }
}

#[test]
fn one_good_copy_is_enough() {
    for at in HEADER_OFFSETS {
        let file = good();
        file.write_all_at(at + 100, b"torn").unwrap();
        let report = vhdx::check(&file).unwrap();
        assert!(report.is_clean() && report.notes.len() == 1, "{report:?}");
        let disk = vhdx::open_writable(&file, session(2)).unwrap();
        disk.write_all_at(0, b"x").unwrap();
        disk.close().unwrap();
        assert!(vhdx::check(&file).unwrap().notes.is_empty());
    }
    for at in REGION_TABLE_OFFSETS {
        let file = good();
        file.write_all_at(at + 100, b"torn").unwrap();
        vhdx::open(&file).unwrap();
        let report = vhdx::check(&file).unwrap();
        assert_eq!(report.problem_count, 1, "{report:?}");
    }
    // Disk2vhd's files have the same header twice.
    let file = good();
    let mut header = vec![0; 4096];
    file.read_exact_at(HEADER_OFFSETS[0], &mut header).unwrap();
    file.write_all_at(HEADER_OFFSETS[1], &header).unwrap();
    vhdx::open(&file).unwrap();
}

/// A log as another program may write it.
struct LogWriter<'a> {
    file: &'a MemDisk,
    at: u64,
    tail: u64,
    sequence: u64,
}

impl<'a> LogWriter<'a> {
    const GUID: [u8; 16] = [0xab; 16];

    /// At a place in the log.
    fn new(file: &'a MemDisk, at: u64) -> Self {
        both(file, HEADER_OFFSETS, 48, &Self::GUID);
        Self {
            file,
            at,
            tail: at,
            sequence: 0x1_2345_6789,
        }
    }

    /// Adds an entry: sectors of one byte each, and ranges of zeros.
    fn entry(&mut self, data: &[(u64, u8)], zeros: &[(u64, u64)], flushed: u64, last: u64) -> u64 {
        let descriptors = (64 + 32 * (data.len() + zeros.len())).next_multiple_of(4096);
        let len = descriptors + 4096 * data.len();
        let mut entry = Vec::new();
        entry.extend(b"loge\0\0\0\0");
        entry.extend((len as u32).to_le_bytes());
        entry.extend((self.tail as u32).to_le_bytes());
        entry.extend(self.sequence.to_le_bytes());
        entry.extend(((data.len() + zeros.len()) as u32).to_le_bytes());
        entry.extend([0; 4]);
        entry.extend(Self::GUID);
        entry.extend(flushed.to_le_bytes());
        entry.extend(last.to_le_bytes());
        for (target, len) in zeros {
            entry.extend(b"zero\0\0\0\0");
            for number in [*len, *target, self.sequence] {
                entry.extend(number.to_le_bytes());
            }
        }
        for (target, byte) in data {
            entry.extend(b"desc");
            entry.extend([*byte; 12]);
            for number in [*target, self.sequence] {
                entry.extend(number.to_le_bytes());
            }
        }
        entry.resize(descriptors, 0);
        for (_, byte) in data {
            entry.extend(b"data");
            entry.extend(((self.sequence >> 32) as u32).to_le_bytes());
            entry.extend([*byte; 4084]);
            entry.extend((self.sequence as u32).to_le_bytes());
        }
        let sum = crc32c::crc32c(&entry);
        entry[4..8].copy_from_slice(&sum.to_le_bytes());
        let began = self.at;
        for sector in entry.chunks(4096) {
            self.file.write_all_at(LOG + self.at, sector).unwrap();
            self.at = (self.at + LOG_SECTOR) % MIB;
        }
        self.sequence += 1;
        began
    }
}

/// A byte of the disk, by the file's log.
fn byte(file: &MemDisk, at: u64) -> Result<u8, VhdxError> {
    let image = vhdx::open(file)?;
    let mut byte = [0];
    image.read_exact_at(at, &mut byte).unwrap();
    Ok(byte[0])
}

#[test]
fn a_foreign_log_is_replayed() {
    let file = good();
    let end = file.size().unwrap();
    // The first blocks lie behind the table; entries go around the ring's end, and a later one wins.
    let block = 4 * MIB;
    let mut log = LogWriter::new(&file, MIB - 3 * LOG_SECTOR);
    log.entry(
        &[(block, 7), (block + 4096, 8), (block + 8192, 9)],
        &[],
        end,
        end,
    );
    log.entry(&[], &[(block + 4096, 8192)], end, end + MIB);
    let last = log.entry(&[(block + 8192, 10)], &[], end, end + 2 * MIB);
    let expected = [7, 0, 10];
    for (n, expected) in (0..).zip(expected) {
        for within in [0, 7, 8, 4091, 4092, 4095] {
            assert_eq!(
                byte(&file, n * 4096 + within).unwrap(),
                expected,
                "sector {n}, byte {within}"
            );
        }
    }
    assert_eq!(vhdx::open(&file).unwrap().info().replayed, 3);
    let on_disk = file.snapshot();
    drop(vhdx::open_writable(&on_disk, session(2)).unwrap());
    for (n, expected) in (0..).zip(expected) {
        assert_eq!(byte(&on_disk, n * 4096 + 5).unwrap(), expected);
    }
    assert_eq!(on_disk.size().unwrap(), end + 2 * MIB);
    assert_eq!(vhdx::open(&on_disk).unwrap().info().replayed, 0);

    // The last entry was being written: what came before it counts.
    file.write_all_at(LOG + last + 100, b"torn").unwrap();
    assert_eq!(byte(&file, 8192).unwrap(), 0);
    assert_eq!(vhdx::open(&file).unwrap().info().replayed, 2);
}

#[test]
fn what_a_log_may_not_say() {
    for (name, data, zeros, flushed) in [
        ("headers", vec![(65536, 1)], vec![], 0),
        ("the log", vec![(LOG + 4096, 1)], vec![], 0),
        ("between sectors", vec![(BAT + 100, 1)], vec![], 0),
        ("far away", vec![(1 << 62, 1)], vec![], 0),
        ("zeros over the headers", vec![], vec![(0, 4096)], 0),
        ("zeros over the log", vec![], vec![(196608, 2 * MIB)], 0),
        ("zeros without end", vec![], vec![(BAT, !4095)], 0),
        ("zeros of odd length", vec![], vec![(BAT, 100)], 0),
        ("a longer file", vec![], vec![], 1 << 40),
    ] {
        let file = good();
        LogWriter::new(&file, 0).entry(&data, &zeros, flushed, 0);
        let error = vhdx::open(&file).expect_err(name);
        assert!(
            matches!(error, VhdxError::Corrupt { .. }),
            "{name}: {error}"
        );
        let before = file.snapshot().into_bytes();
        assert!(vhdx::open_writable(&file, session(2)).is_err(), "{name}");
        assert!(file.into_bytes() == before, "{name}: nothing is changed");
    }
    // Entries of another GUID, or none that is whole: nothing to replay.
    let file = good();
    LogWriter::new(&file, 0).entry(&[(4 * MIB, 9)], &[], 0, 0);
    both(&file, HEADER_OFFSETS, 48, &[1; 16]);
    assert_eq!(byte(&file, 0).unwrap(), 1);
    assert_eq!(vhdx::check(&file).unwrap().notes.len(), 1);
}

/// A log that is nothing but beginnings of entries, each of which claims all of it: looking through it must stay cheap.
#[test]
fn a_log_of_beginnings_is_seen_through() {
    let file = blank(100 * MIB, 1 << 20);
    let end = file.size().unwrap();
    let len = 64 * MIB;
    both(&file, HEADER_OFFSETS, 48, &LogWriter::GUID);
    both(&file, HEADER_OFFSETS, 68, &(len as u32).to_le_bytes());
    both(&file, HEADER_OFFSETS, 72, &end.to_le_bytes());
    file.set_len(end + len).unwrap();
    let mut entry = [0; 4096];
    entry[..4].copy_from_slice(b"loge");
    entry[8..12].copy_from_slice(&(len as u32).to_le_bytes());
    entry[16] = 1;
    entry[32..48].copy_from_slice(&LogWriter::GUID);
    for sector in 0..len / 4096 {
        file.write_all_at(end + sector * 4096, &entry).unwrap();
    }
    let begun = std::time::Instant::now();
    assert_eq!(vhdx::open(&file).unwrap().info().replayed, 0);
    // 16,384 sectors; their square would take minutes.
    assert!(begun.elapsed().as_secs() < 20);
}
