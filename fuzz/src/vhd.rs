//! VHDs. Input: a byte whose lowest bit says of which kind.
//!
//! Fixed: the number of bytes before the footer (16 bits, little-endian), then the footer's 512 bytes, of which fewer may be there.
//! Dynamic: the number of a disk, flags, and patches to it ([`vhd_dynamic`](crate::vhd_dynamic)).
//!
//! A typed error; or the disk of which a [second reading](crate::vhd_model) of the specification says the same: it is taken only if that
//! takes it, and has the same size and bytes, and the same blocks are found to be misplaced.

use std::ops::Range;

use lcow_blockio::{MemDisk, ReadAt};
use lcow_disk::vhd::{self, Dynamic, VhdError};

use crate::bytes::{Bytes, le16, part, put};
use crate::limits::bounded;
use crate::vhd_dynamic;
use crate::vhd_model::{self as model, Disk};
use crate::{Mutate, Rng};

const MEMORY: usize = 1 << 20;
/// Where an input of a fixed disk has the footer.
const FOOTER: usize = 3;

pub(crate) fn run(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else {
        return;
    };
    let file = if mode & 1 != 0 {
        vhd_dynamic::make(rest)
    } else {
        let len = usize::from(le16(rest, 0));
        let mut file: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        file.extend_from_slice(rest.get(2..).unwrap_or_default());
        file
    };
    let expected = model::read(&file);
    let size = match expected {
        Some(Disk::Fixed(size)) => Some(size),
        _ => None,
    };
    check_fixed(&file, size);
    let opened = bounded("opening", MEMORY, || vhd::open_any(Bytes(&file)));
    let disk = match (opened, &expected) {
        (Ok(disk), Some(_)) => disk,
        (Err(error), None) => {
            assert!(!matches!(error, VhdError::Io { .. }), "{error:?}");
            return;
        }
        (Ok(disk), None) => panic!("a bad disk was taken: {:?}", disk.footer()),
        (Err(error), Some(_)) => panic!("a good disk: {error:?}"),
    };
    match (disk.dynamic(), expected) {
        (None, Some(Disk::Fixed(size))) => {
            assert_eq!(disk.size().expect("a disk in memory"), size);
            let contents = read(&disk, 0..size).expect("a disk in memory");
            assert!(contents == file[..contents.len()], "other bytes");
        }
        (Some(dynamic), Some(Disk::Dynamic(expected))) => {
            check_dynamic(&file, dynamic, &expected);
        }
        _ => panic!("of another kind"),
    }
}

/// Opens a file as a fixed disk, which it is if it has a size.
fn check_fixed(file: &[u8], expected: Option<u64>) {
    let opened = bounded("opening", MEMORY, || vhd::open(Bytes(file)));
    let (footer, disk) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            assert!(expected.is_none(), "a good footer: {error:?}");
            assert!(!matches!(error, VhdError::Io { .. }), "{error:?}");
            return;
        }
    };
    let found = Some(footer.current_size);
    assert_eq!(found, expected, "a bad footer was taken");
    assert_eq!(disk.size().expect("a disk in memory"), footer.current_size);
    let contents = read(&disk, 0..footer.current_size).expect("a disk in memory");
    assert!(contents == file[..contents.len()], "other bytes");
    let end = disk.read_at(footer.current_size, &mut [0; 512]);
    assert_eq!(end.expect("a disk in memory"), 0, "the footer is seen");

    let again = MemDisk::new();
    vhd::write_footer(&again, footer.current_size, footer.unique_id).expect("a size it had");
    let (written, _) = vhd::open(&again).expect("a footer of ours");
    assert_eq!(
        (written.current_size, written.unique_id),
        (footer.current_size, footer.unique_id)
    );
}

/// What a disk holds, read in one piece; `None`: that failed, for a reason found in the disk.
fn read<R: ReadAt>(disk: &R, range: Range<u64>) -> Option<Vec<u8>> {
    let len = usize::try_from(range.end - range.start).expect("little");
    let mut contents = vec![1; len];
    let done = bounded("reading", MEMORY, || {
        disk.read_exact_at(range.start, &mut contents)
    });
    match done {
        Ok(()) => Some(contents),
        Err(error) => {
            let source = error.get_ref().and_then(|e| e.downcast_ref::<VhdError>());
            assert!(
                matches!(source, Some(VhdError::Corrupt { .. })),
                "{error:?}"
            );
            None
        }
    }
}

/// The most that is read in one piece.
const MOST: u64 = 8 << 20;

fn check_dynamic(file: &[u8], disk: &Dynamic<Bytes<'_>>, expected: &model::Dynamic) {
    assert_eq!(disk.size().expect("a disk in memory"), expected.size);
    assert_eq!(u64::from(disk.block_size()), expected.block);
    let end = disk.read_at(expected.size, &mut [0; 512]);
    assert_eq!(end.expect("a disk in memory"), 0, "more than the disk");

    let checked = bounded("checking", MEMORY + 8 * file.len(), || disk.check());
    let right = expected.check(file);
    match (&checked, &right) {
        (Ok(found), Ok(blocks)) => assert_eq!(found, blocks, "blocks with a place"),
        (Err(VhdError::Corrupt { .. }), Err(_)) => {}
        _ => panic!("checked: {checked:?}, and it should be {right:?}"),
    }

    // Each block from its first to its last sector, or those two; of very many the first and the last.
    let blocks = expected.blocks();
    let mut whole = (expected.size <= MOST).then(Vec::new);
    for block in (0..blocks.min(300)).chain(blocks.max(316) - 16..blocks) {
        let start = block * expected.block;
        let used = expected.used(block);
        let place = expected.place(file, block);
        let parts = if used <= MOST {
            [0..used, 0..0]
        } else {
            [0..model::SECTOR, used - model::SECTOR..used]
        };
        for range in parts.into_iter().filter(|part| !part.is_empty()) {
            let found = read(disk, start + range.start..start + range.end);
            let len = usize::try_from(range.end - range.start).expect("little");
            let right = match &place {
                Ok(None) => Some(vec![0; len]),
                Ok(Some(data)) => {
                    let at = usize::try_from(data + range.start).expect("in memory");
                    Some(part(file, at, len).to_vec())
                }
                Err(_) => None,
            };
            assert!(found == right, "block {block} has other bytes");
            whole = whole
                .zip(right)
                .map(|(whole, right)| [whole, right].concat());
        }
    }
    if blocks <= 300
        && let Some(whole) = whole
    {
        assert!(read(disk, 0..expected.size) == Some(whole), "read at once");
    }
    check_data(file, disk, expected);
}

/// What may hold data is what has a place.
fn check_data(file: &[u8], disk: &Dynamic<Bytes<'_>>, expected: &model::Dynamic) {
    let mut at = 0;
    let mut block = 0;
    for _ in 0..64 {
        let right = loop {
            if block >= expected.blocks() {
                break Ok(None);
            }
            let start = block * expected.block;
            let end = start + expected.used(block);
            match expected.place(file, block) {
                Ok(Some(_)) => break Ok(Some(start.max(at)..end)),
                Ok(None) => block += 1,
                Err(misplaced) => break Err(misplaced),
            }
        };
        let found = bounded("looking for data", MEMORY, || disk.next_data(at));
        match (found, right) {
            (Ok(None), Ok(None)) | (Err(_), Err(_)) => return,
            (Ok(Some(found)), Ok(Some(right))) => {
                assert_eq!(found, right, "data");
                at = found.end;
                block += 1;
            }
            (found, right) => panic!("data at {at}: {found:?}, and it should be {right:?}"),
        }
    }
}

pub(crate) fn mutate(input: &mut Vec<u8>, max: usize, rng: &mut Rng, plain: &mut Mutate<'_>) {
    if input.is_empty() || rng.one_in(200) {
        *input = vec![1, 0, vhd_dynamic::SEAL | vhd_dynamic::COPY];
    }
    if input[0] & 1 != 0 {
        vhd_dynamic::mutate(input, max, rng, plain);
    } else {
        mutate_fixed(input, max, rng, plain);
    }
}

fn mutate_fixed(input: &mut Vec<u8>, max: usize, rng: &mut Rng, plain: &mut Mutate<'_>) {
    let whole = FOOTER + 512;
    if input.len() < whole || rng.one_in(6) {
        plain(input, max.min(600));
    } else {
        // A field, and what it could hold.
        let &(at, len) = rng.pick(vhd_dynamic::FOOTER_FIELDS);
        let before = u64::from(le16(input, 1));
        let value = match rng.below(8) {
            0 => rng.number(),
            1 => before,
            2 => before + 512,
            3 => before & !511,
            4 => u64::MAX,
            5 => 0,
            _ => rng.number() % 8,
        };
        let field = &mut input[FOOTER + at..][..len];
        for (byte, new) in field.iter_mut().rev().zip(value.to_le_bytes()) {
            *byte = new;
        }
    }
    if input.len() == whole && !rng.one_in(6) {
        let sum = model::sum(&input[FOOTER..], 64);
        put(input, FOOTER + 64, &sum.to_be_bytes());
    }
}
