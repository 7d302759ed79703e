//! A second reading of VHDs (*Virtual Hard Disk Image Format Specification*; `docs/format/vhd.md`), from a file that is in memory.

use crate::bytes::{get, part};

pub(crate) const SECTOR: u64 = 512;

/// A number of `N` bytes, the most significant first.
pub(crate) fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    get::<N>(bytes, at)
        .iter()
        .fold(0, |n, &b| n << 8 | u64::from(b))
}

/// The checksum of a footer (at byte 64) or of a dynamic header (at byte 36): its own four bytes don't count.
pub(crate) fn sum(bytes: &[u8], at: usize) -> u32 {
    let others = [&bytes[..at], &bytes[at + 4..]].concat();
    !others.iter().map(|&b| u32::from(b)).sum::<u32>()
}

fn file_len(file: &[u8]) -> u64 {
    file.len() as u64
}

fn bytes_at(file: &[u8], at: u64, len: usize) -> &[u8] {
    part(file, usize::try_from(at).unwrap_or(usize::MAX), len)
}

#[derive(PartialEq, Eq)]
enum Type {
    Fixed,
    Dynamic(u64),
}

struct Footer<'a> {
    kind: Type,
    size: u64,
    raw: &'a [u8],
}

enum NoFooter {
    /// There is none, or a damaged one.
    Bad,
    /// A good one of another kind of disk.
    Other,
}

fn footer(raw: &[u8]) -> Result<Footer<'_>, NoFooter> {
    if raw.len() != 512
        || !raw.starts_with(b"conectix")
        || number::<4>(raw, 64) != u64::from(sum(raw, 64))
    {
        return Err(NoFooter::Bad);
    }
    let kind = match number::<4>(raw, 60) {
        2 => Type::Fixed,
        3 => Type::Dynamic(number::<8>(raw, 16)),
        _ => return Err(NoFooter::Other),
    };
    if number::<4>(raw, 12) != 0x0001_0000 {
        return Err(NoFooter::Other);
    }
    let size = number::<8>(raw, 48);
    if !size.is_multiple_of(SECTOR) {
        return Err(NoFooter::Bad);
    }
    Ok(Footer { kind, size, raw })
}

/// A disk that is to be taken.
#[derive(Debug)]
pub(crate) enum Disk {
    Fixed(u64),
    Dynamic(Dynamic),
}

#[derive(Debug)]
pub(crate) struct Dynamic {
    pub(crate) size: u64,
    pub(crate) block: u64,
    /// Where the table begins and ends, as far as the disk needs it.
    table: (u64, u64),
    header: (u64, u64),
    /// Where the file ends, or its footer begins.
    end: u64,
}

/// The disk in a file, if it is to be taken.
pub(crate) fn read(file: &[u8]) -> Option<Disk> {
    let last = file_len(file).checked_sub(512)?;
    let first = footer(bytes_at(file, 0, 512));
    let (found, end) = match footer(bytes_at(file, last, 512)) {
        Ok(found) => match found.kind {
            Type::Fixed => return (found.size <= last).then_some(Disk::Fixed(found.size)),
            Type::Dynamic(_) => {
                let copy = first.ok()?;
                if copy.kind != found.kind || copy.size != found.size {
                    return None;
                }
                (found, last)
            }
        },
        Err(NoFooter::Bad) => (first.ok()?, last + 512),
        Err(NoFooter::Other) => return None,
    };
    let Type::Dynamic(place) = found.kind else {
        return None;
    };
    let mut size = found.size;
    if &found.raw[28..32] == b"vpc " {
        let geometry = [
            number::<2>(found.raw, 56),
            number::<1>(found.raw, 58),
            number::<1>(found.raw, 59),
        ];
        let shown = geometry.iter().product::<u64>() * SECTOR;
        if shown > 0 && geometry != [65535, 16, 255] {
            size = size.min(shown);
        }
    }
    let header = bytes_at(file, place, 1024);
    let within = |from: u64, len: u128| from >= 512 && u128::from(from) + len <= end.into();
    let block = number::<4>(header, 32);
    let good = within(place, 1024)
        && place.is_multiple_of(SECTOR)
        && header.starts_with(b"cxsparse")
        && number::<4>(header, 36) == u64::from(sum(header, 36))
        && number::<4>(header, 24) == 0x0001_0000
        && block >= 4096
        && block.is_power_of_two();
    if !good {
        return None;
    }
    let blocks = size.div_ceil(block);
    let table = number::<8>(header, 16);
    let good = blocks <= number::<4>(header, 28) && within(table, u128::from(blocks) * 4);
    good.then(|| {
        Disk::Dynamic(Dynamic {
            size,
            block,
            table: (table, table + blocks * 4),
            header: (place, place + 1024),
            end,
        })
    })
}

/// The block's entry says that it lies where it can't.
#[derive(Debug)]
pub(crate) struct Misplaced;

impl Dynamic {
    pub(crate) fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    /// A block's bytes, as far as the disk goes.
    pub(crate) fn used(&self, block: u64) -> u64 {
        self.block.min(self.size - block * self.block)
    }

    /// How much a block takes in the file, with its bitmap.
    pub(crate) fn step(&self) -> u64 {
        self.bitmap() + self.block
    }

    fn bitmap(&self) -> u64 {
        self.block.div_ceil(SECTOR * 8).next_multiple_of(SECTOR)
    }

    /// Where a block's data lies; nowhere if it is zeros.
    pub(crate) fn place(&self, file: &[u8], block: u64) -> Result<Option<u64>, Misplaced> {
        let entry = number::<4>(bytes_at(file, self.table.0 + block * 4, 4), 0);
        if entry == 0xffff_ffff {
            return Ok(None);
        }
        let start = entry * SECTOR;
        let data = start + self.bitmap();
        let end = data + self.used(block);
        let apart = |(from, to): (u64, u64)| end <= from || to <= start;
        let good = start >= 512 && end <= self.end && apart(self.table) && apart(self.header);
        if good { Ok(Some(data)) } else { Err(Misplaced) }
    }

    /// The number of blocks with a place, if all lie where they can and none shares bytes with another.
    pub(crate) fn check(&self, file: &[u8]) -> Result<u64, Misplaced> {
        let mut places = Vec::new();
        for block in 0..self.blocks() {
            places.extend(self.place(file, block)?);
        }
        places.sort_unstable();
        if places.windows(2).any(|two| two[1] - two[0] < self.step()) {
            return Err(Misplaced);
        }
        Ok(places.len() as u64)
    }
}
