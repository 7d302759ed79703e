//! Dynamic VHDs: the disks that inputs patch, and how an input is made into another.
//!
//! An input, behind its first byte: the number of a disk, a byte of flags, and patches: an offset (24 bits, little-endian; the highest bit:
//! from the end), the length less one, and as many bytes. What is cut short at the end does not count.

use std::sync::OnceLock;

use crate::bytes::{part, put};
use crate::vhd_model::{number, sum};
use crate::{Mutate, Rng};

/// Flag: the checksums of footers and header are mended after the patches.
pub(crate) const SEAL: u8 = 1;
/// Flag: the footer at the end is copied to the beginning, patched as it is.
pub(crate) const COPY: u8 = 2;
/// Flag: the footer at the end is left out.
const CUT: u8 = 4;

const FROM_END: usize = 1 << 23;

/// Fields of a footer: where they are, and their length.
pub(crate) const FOOTER_FIELDS: &[(usize, usize)] = &[
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
];
/// The same of a header that counts.
const HEADER_FIELDS: &[(usize, usize)] = &[
    (0, 8),
    (8, 8),
    (16, 8),
    (24, 4),
    (28, 4),
    (32, 4),
    (36, 4),
    (40, 16),
];

/// Where a disk's parts lie.
struct Shape {
    size: u64,
    block: usize,
    header: usize,
    table: usize,
    /// Sector of each block, all ones for none.
    entries: &'static [u32],
    len: usize,
}

/// Blocks out of order, a hole, and half a block at the end.
const SMALL: Shape = Shape {
    size: 6 * 4096 + 2048,
    block: 4096,
    header: 512,
    table: 1536,
    entries: &[22, 4, u32::MAX, 13, u32::MAX, 31, 40],
    len: 49 * 512,
};
/// Header and table behind the blocks.
const BEHIND: Shape = Shape {
    size: 3 * 8192,
    block: 8192,
    header: 40 * 512,
    table: 42 * 512,
    entries: &[20, 1, u32::MAX],
    len: 43 * 512,
};

/// What qemu-img made: blocks of 2 MiB, of which one has a place.
const QEMU: &[u8] = include_bytes!("../bases/dynamic-vhd.zst");

impl Shape {
    fn build(&self) -> Vec<u8> {
        let mut file: Vec<u8> = (0..self.len).map(|i| (i % 251) as u8).collect();
        let mut header = vec![0; 1024];
        put(&mut header, 0, b"cxsparse\xff\xff\xff\xff\xff\xff\xff\xff");
        put(&mut header, 16, &(self.table as u64).to_be_bytes());
        put(&mut header, 24, &0x0001_0000_u32.to_be_bytes());
        let entries = u32::try_from(self.entries.len()).unwrap_or(0);
        put(&mut header, 28, &entries.to_be_bytes());
        let block = u32::try_from(self.block).unwrap_or(0);
        put(&mut header, 32, &block.to_be_bytes());
        put(&mut file, self.header, &header);
        for (i, entry) in self.entries.iter().enumerate() {
            put(&mut file, self.table + i * 4, &entry.to_be_bytes());
        }
        let mut footer = vec![0; 512];
        put(&mut footer, 0, b"conectix\0\0\0\x02\0\x01\0\0");
        put(&mut footer, 16, &(self.header as u64).to_be_bytes());
        put(&mut footer, 28, b"win ");
        put(&mut footer, 40, &self.size.to_be_bytes());
        put(&mut footer, 48, &self.size.to_be_bytes());
        // 2 cylinders of 2 tracks of 4 sectors, fewer than there are.
        put(&mut footer, 56, &[0, 2, 2, 4, 0, 0, 0, 3]);
        file.extend_from_slice(&footer);
        put(&mut file, 0, &footer);
        seal(&mut file);
        file
    }
}

fn bases() -> &'static [Vec<u8>; 3] {
    static BASES: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    BASES.get_or_init(|| {
        let qemu = zstd::decode_all(QEMU).expect("the disk is whole");
        [SMALL.build(), BEHIND.build(), qemu]
    })
}

/// Where the header is, by the footer that is at a place.
fn header_of(file: &[u8], footer: usize) -> usize {
    usize::try_from(number::<8>(file, footer + 16)).unwrap_or(usize::MAX)
}

/// Mends the checksums of the footers, and of the headers that they speak of.
fn seal(file: &mut [u8]) {
    let last = file.len().saturating_sub(512);
    for (at, len, field) in [
        (0, 512, 64),
        (last, 512, 64),
        (header_of(file, 0), 1024, 36),
        (header_of(file, last), 1024, 36),
    ] {
        let bytes = part(file, at, len);
        if bytes.len() == len && (bytes.starts_with(b"conectix") || bytes.starts_with(b"cxsparse"))
        {
            let sum = sum(bytes, field);
            put(file, at + field, &sum.to_be_bytes());
        }
    }
}

struct Input {
    base: u8,
    flags: u8,
    patches: Vec<(usize, Vec<u8>)>,
}

impl Input {
    fn read(input: &[u8]) -> Self {
        let mut patches = Vec::new();
        let mut rest = input.get(2..).unwrap_or_default();
        while let [a, b, c, len, behind @ ..] = rest {
            let Some((bytes, behind)) = behind.split_at_checked(usize::from(*len) + 1) else {
                break;
            };
            let at = usize::from(*a) | usize::from(*b) << 8 | usize::from(*c) << 16;
            patches.push((at, bytes.to_vec()));
            rest = behind;
        }
        Self {
            base: input.first().copied().unwrap_or(0),
            flags: input.get(1).copied().unwrap_or(0),
            patches,
        }
    }

    fn write(&self) -> Vec<u8> {
        let mut out = vec![1, self.base, self.flags];
        for (at, bytes) in &self.patches {
            if let Ok(len) = u8::try_from(bytes.len().wrapping_sub(1)) {
                out.extend_from_slice(&at.to_le_bytes()[..3]);
                out.push(len);
                out.extend_from_slice(bytes);
            }
        }
        out
    }

    fn base(&self) -> &'static [u8] {
        let bases = bases();
        &bases[usize::from(self.base) % bases.len()]
    }
}

/// The file of an input.
pub(crate) fn make(input: &[u8]) -> Vec<u8> {
    let input = Input::read(input);
    let mut file = input.base().to_vec();
    for (at, bytes) in &input.patches {
        let at = if at & FROM_END == 0 {
            *at
        } else {
            file.len().saturating_sub(at & !FROM_END)
        };
        put(&mut file, at, bytes);
    }
    let last = file.len() - 512;
    if input.flags & COPY != 0 {
        file.copy_within(last.., 0);
    }
    if input.flags & SEAL != 0 {
        seal(&mut file);
    }
    if input.flags & CUT != 0 {
        file.truncate(last);
    }
    file
}

/// What a field could hold.
fn value(now: u64, len: u64, rng: &mut Rng) -> u64 {
    match rng.below(14) {
        0 => 0,
        1 => u64::MAX,
        2 => now.wrapping_add(1),
        3 => now.wrapping_sub(1),
        4 => 1 << rng.below(64),
        5 => 1 << (9 + rng.below(24)),
        6 => rng.number() % 8,
        7 => now.wrapping_add(512),
        8 => now.wrapping_sub(512),
        9 => rng.number() % 64 * 512,
        10 => rng.number() % (len / 512 + 2),
        11 => rng.number() % (len + 2),
        12 => now << 1,
        _ => rng.number(),
    }
}

fn patch(input: &Input, rng: &mut Rng) -> (usize, Vec<u8>) {
    let file = input.base();
    let header = header_of(file, 0);
    let table = usize::try_from(number::<8>(file, header + 16)).unwrap_or(0);
    let entries = usize::try_from(number::<4>(file, header + 28)).unwrap_or(0);
    let last = file.len() - 512;
    let (at, from, width) = match rng.below(8) {
        0..=2 => {
            let &(at, len) = rng.pick(FOOTER_FIELDS);
            (FROM_END | (512 - at), last + at, len)
        }
        3..=4 => {
            let &(at, len) = rng.pick(HEADER_FIELDS);
            (header + at, header + at, len)
        }
        5..=6 => {
            let at = table + rng.below(entries) * 4;
            (at, at, 4)
        }
        _ => {
            // Another place for what is looked for by a number.
            let at = rng.below(file.len() / 512) * 512;
            let len = *rng.pick(&[4, 8, 64, 256]);
            let from = *rng.pick(&[0, header, table, last]);
            return (at, part(file, from, len).to_vec());
        }
    };
    if width > 8 {
        return (
            at,
            vec![u8::try_from(rng.below(256)).unwrap_or(0); width.min(256)],
        );
    }
    let now = part(file, from, width)
        .iter()
        .fold(0, |n, &b| n << 8 | u64::from(b));
    let new = if width == 4 && rng.one_in(8) {
        // The creator, or another's entry.
        let other = part(file, table + rng.below(entries) * 4, 4);
        return (at, rng.pick(&[b"vpc ".as_slice(), other]).to_vec());
    } else {
        value(now, file.len() as u64, rng)
    };
    (at, new.to_be_bytes()[8 - width..].to_vec())
}

pub(crate) fn mutate(input: &mut Vec<u8>, max: usize, rng: &mut Rng, plain: &mut Mutate<'_>) {
    let mut read = Input::read(&input[1..]);
    for _ in 0..=rng.below(3) {
        let count = read.patches.len();
        match rng.below(16) {
            0 => read.flags ^= 1 << rng.below(3),
            1 if count < 3 => read.base = u8::try_from(rng.below(bases().len())).unwrap_or(0),
            2..=3 if count > 0 => {
                read.patches.remove(rng.below(count));
            }
            4 if count > 0 => {
                let (at, _) = &mut read.patches[rng.below(count)];
                *at ^= 1 << rng.below(16);
            }
            5 if count > 0 => {
                let (_, bytes) = &mut read.patches[rng.below(count)];
                let len = bytes.len();
                plain(bytes, len);
            }
            6 => {
                let mut bytes = read.write();
                let most = bytes.len() + 16;
                plain(&mut bytes, most);
                read = Input::read(bytes.get(1..).unwrap_or_default());
            }
            _ if count < 40 => {
                let patch = patch(&read, rng);
                read.patches.push(patch);
            }
            _ => {}
        }
    }
    if rng.one_in(4) {
        read.flags |= SEAL | COPY;
    }
    *input = read.write();
    input.truncate(max);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhd_model::{Disk, read};

    #[test]
    fn the_disks_are_good_and_read() {
        for (base, size, blocks) in [(0, 26_624, 5), (1, 24_576, 2), (2, 3_168_256, 1)] {
            let file = make(&[base, 0]);
            let Some(Disk::Dynamic(disk)) = read(&file) else {
                panic!("disk {base} is not taken");
            };
            assert_eq!((disk.size, disk.check(&file).unwrap()), (size, blocks));
        }
    }
}
