//! The footer of a fixed VHD. Input: the number of bytes before the footer (16 bits, little-endian), then the footer's 512 bytes,
//! of which fewer may be there.
//!
//! A typed error; or the disk that the footer describes, no larger than the file, with the file's bytes, and only if a second
//! reading of the specification takes the footer too.

use lcow_blockio::{MemDisk, ReadAt};
use lcow_disk::vhd::{self, VhdError};

use crate::bytes::{Bytes, get, le16, part};
use crate::limits::bounded;
use crate::{Mutate, Rng};

const MEMORY: usize = 1 << 20;

fn number<const N: usize>(footer: &[u8], at: usize) -> u64 {
    let bytes: [u8; N] = get(footer, at);
    bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b))
}

fn sum(footer: &[u8]) -> u64 {
    let sum: u32 = footer
        .iter()
        .enumerate()
        .filter(|(i, _)| !(64..68).contains(i))
        .map(|(_, &b)| u32::from(b))
        .sum();
    u64::from(!sum)
}

/// The size of the disk, if the last 512 bytes of `file` are a good footer of a fixed one
/// (*Virtual Hard Disk Image Format Specification*, "Hard Disk Footer Format").
fn fixed(file: &[u8]) -> Option<u64> {
    let data = file.len().checked_sub(512)?;
    let footer = part(file, data, 512);
    let size = number::<8>(footer, 48);
    let good = footer.starts_with(b"conectix")
        && number::<4>(footer, 12) == 0x0001_0000
        && number::<4>(footer, 60) == 2
        && number::<4>(footer, 64) == sum(footer)
        && size.is_multiple_of(512)
        && size <= data as u64;
    good.then_some(size)
}

pub(crate) fn run(input: &[u8]) {
    let len = usize::from(le16(input, 0));
    let mut file: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    file.extend_from_slice(input.get(2..).unwrap_or_default());
    let expected = fixed(&file);
    let opened = bounded("opening", MEMORY, || vhd::open(Bytes(&file)));
    let (footer, disk) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            assert!(expected.is_none(), "a good footer: {error:?}");
            assert!(!matches!(error, VhdError::Io { .. }), "{error:?}");
            return;
        }
    };
    assert_eq!(
        Some(footer.current_size),
        expected,
        "a bad footer was taken"
    );
    assert_eq!(disk.size().expect("a disk in memory"), footer.current_size);
    let mut contents = vec![1; usize::try_from(footer.current_size).unwrap_or(0)];
    disk.read_exact_at(0, &mut contents)
        .expect("a disk in memory");
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

pub(crate) fn mutate(input: &mut Vec<u8>, max: usize, rng: &mut Rng, plain: &mut Mutate<'_>) {
    if input.len() < 514 || rng.one_in(6) {
        plain(input, max.min(600));
    } else {
        // A field, and what it could hold.
        let &(at, len) = rng.pick(&[
            (0, 8),
            (8, 4),
            (12, 4),
            (16, 8),
            (24, 4),
            (28, 4),
            (40, 8),
            (48, 8),
            (56, 4),
            (60, 4),
            (64, 4),
            (84, 1),
            (85, 427),
        ]);
        let before = u64::from(le16(input, 0));
        let value = match rng.below(8) {
            0 => rng.number(),
            1 => before,
            2 => before + 512,
            3 => before & !511,
            4 => u64::MAX,
            5 => 0,
            _ => rng.number() % 8,
        };
        for (i, byte) in input[2 + at..][..len].iter_mut().rev().take(8).enumerate() {
            *byte = value.to_le_bytes()[i];
        }
    }
    if input.len() == 514 && !rng.one_in(6) {
        let sum = u32::try_from(sum(&input[2..])).unwrap_or(0);
        input[2 + 64..2 + 68].copy_from_slice(&sum.to_be_bytes());
    }
}
