//! A second replay of a journal, as plain as the kernel's `fs/jbd2/recovery.c`: three passes, written into the image.

use std::collections::BTreeMap;

use lcow_ext4::format::Checksum;

use crate::bytes::{get, le32, part, put};
use crate::fast_model::{self, Record};
use crate::image::Geometry;
use crate::naive;

const MAGIC: u32 = 0xc03b_3998;
pub(crate) const V1: u32 = 1;
pub(crate) const BIT64: u32 = 2;
pub(crate) const ASYNC: u32 = 4;
pub(crate) const V2: u32 = 8;
pub(crate) const V3: u32 = 16;
pub(crate) const FAST: u32 = 32;

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(get(bytes, at))
}

/// The log of an image: where its blocks lie, and its superblock's words.
pub(crate) struct Log {
    /// Byte offset of each block of the journal.
    pub(crate) places: Vec<usize>,
    pub(crate) block: usize,
    /// The file system's blocks.
    pub(crate) blocks: u64,
    pub(crate) first: usize,
    /// The block behind the ring, and the one behind the journal: between them are fast commits.
    pub(crate) end: usize,
    pub(crate) max: usize,
    pub(crate) compat: u32,
    pub(crate) incompat: u32,
    pub(crate) seed: Checksum,
}

/// Why nothing is replayed.
pub(crate) struct Refused(pub(crate) &'static str);

/// A tag of a descriptor block: where it lies, the block it is for, whether its data is escaped, and its checksum.
pub(crate) struct Tag {
    pub(crate) at: usize,
    pub(crate) target: u64,
    pub(crate) escaped: bool,
    pub(crate) checksum: u32,
}

impl Log {
    pub(crate) fn of(image: &[u8]) -> Option<Self> {
        let geometry = Geometry::of(image)?;
        let inode = usize::try_from(le32(image, 1024 + 0xe0)).ok()?;
        let at = geometry.inode_at(image, inode)?;
        let mut blocks = naive::blocks(image, &geometry, at)?;
        blocks.sort_unstable();
        let places: Vec<usize> = blocks.iter().map(|b| b.1 * geometry.block).collect();
        let superblock = part(image, *places.first()?, 1024);
        let max = usize::try_from(be32(superblock, 0x10)).ok()?;
        let fast = match be32(superblock, 0x54) {
            _ if be32(superblock, 0x28) & FAST == 0 => 0,
            0 => 256,
            blocks => usize::try_from(blocks).ok()?,
        };
        Some(Self {
            block: geometry.block,
            blocks: le32(image, 1024 + 4).into(),
            first: usize::try_from(be32(superblock, 0x14)).ok()?,
            end: max.saturating_sub(fast),
            max,
            compat: be32(superblock, 0x24),
            incompat: be32(superblock, 0x28),
            seed: Checksum::from_uuid(&get(superblock, 0x30)),
            places,
        })
    }

    pub(crate) fn has(&self, bit: u32) -> bool {
        self.incompat & bit != 0
    }

    pub(crate) fn sealed(&self) -> bool {
        self.has(V2 | V3)
    }

    pub(crate) fn next(&self, block: usize) -> usize {
        if block + 1 >= self.end {
            self.first
        } else {
            block + 1
        }
    }

    pub(crate) fn read<'a>(&self, image: &'a [u8], block: usize) -> &'a [u8] {
        let place = self.places.get(block).copied().unwrap_or(usize::MAX);
        part(image, place, self.block)
    }

    pub(crate) fn tag_size(&self) -> usize {
        if self.has(V3) {
            return 16;
        }
        8 + if self.has(BIT64) { 4 } else { 0 } + if self.has(V2) { 2 } else { 0 }
    }

    pub(crate) fn tags(&self, block: &[u8]) -> Vec<Tag> {
        let end = block.len() - if self.sealed() { 4 } else { 0 };
        let size = self.tag_size();
        let mut tags = Vec::new();
        let mut at = 12;
        while at + size <= end {
            let word = be32(block, at + 4);
            let (flags, checksum, high) = if self.has(V3) {
                (word, be32(block, at + 12), be32(block, at + 8))
            } else {
                (word & 0xffff, word >> 16, be32(block, at + 8))
            };
            let high = if self.has(BIT64) { u64::from(high) } else { 0 };
            tags.push(Tag {
                at,
                target: high << 32 | u64::from(be32(block, at)),
                escaped: flags & 1 != 0,
                checksum,
            });
            at += size + if flags & 2 == 0 { 16 } else { 0 };
            if flags & 8 != 0 {
                break;
            }
        }
        tags
    }

    pub(crate) fn tag_sum(&self, sequence: u32, data: &[u8]) -> u32 {
        let sum = self.seed.bytes(&sequence.to_be_bytes()).bytes(data);
        if self.has(V3) {
            sum.value()
        } else {
            sum.low().into()
        }
    }

    /// A block's checksum, with its own field (at `field`) taken as zeros.
    pub(crate) fn sum(&self, block: &[u8], field: usize) -> u32 {
        let mut copy = block.to_vec();
        put(&mut copy, field, &[0; 4]);
        self.seed.bytes(&copy).value()
    }

    fn tail_is_right(&self, block: &[u8]) -> bool {
        let tail = block.len() - 4;
        !self.sealed() || self.sum(block, tail) == be32(block, tail)
    }
}

/// CRC-32 with the highest bit first, from a start value (kernel: `crc32_be`).
pub(crate) fn crc32_be(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |crc, &byte| {
        (0..8).fold(crc ^ (u32::from(byte) << 24), |crc, _| {
            crc << 1 ^ if crc >> 31 == 0 { 0 } else { 0x04c1_1db7 }
        })
    })
}

/// Where the log ends.
struct End {
    sequence: u32,
}

fn scan(image: &[u8], log: &Log, start: usize, first: u32) -> Result<End, Refused> {
    let mut block = start;
    let mut next = first;
    let mut doubtful = false;
    let mut last_time = 0;
    let mut crc = !0;
    let mut end: Option<u32> = None;
    // The kernel has no such bound: who goes around twice would go on for ever there, or find another sequence number.
    let mut budget = log.end - log.first;
    while budget > 0 {
        budget -= 1;
        let bytes = log.read(image, block);
        if be32(bytes, 0) != MAGIC || be32(bytes, 8) != next {
            break;
        }
        block = log.next(block);
        match be32(bytes, 4) {
            1 => {
                doubtful |= !log.tail_is_right(bytes);
                let tags = log.tags(bytes).len();
                let v1 = log.compat & V1 != 0 && !doubtful && end.is_none();
                if v1 {
                    crc = crc32_be(crc, bytes);
                }
                for _ in 0..tags {
                    if v1 {
                        crc = crc32_be(crc, log.read(image, block));
                    }
                    block = log.next(block);
                }
                let Some(left) = budget.checked_sub(tags) else {
                    return Err(Refused("a transaction longer than the log"));
                };
                budget = left;
            }
            2 => {
                let time = u64::from_be_bytes(get(bytes, 0x30));
                if doubtful {
                    if time >= last_time {
                        return Err(Refused("a block's checksum"));
                    }
                    break;
                }
                let right = if log.compat & V1 != 0 {
                    if end.is_some() {
                        return Err(Refused("a commit behind a broken one"));
                    }
                    let (kind, size, found) = (bytes[12], bytes[13], be32(bytes, 16));
                    let right = crc == found && kind == 1 && size == 4
                        || found == 0 && kind == 0 && size == 0;
                    if right {
                        crc = !0;
                    }
                    right
                } else {
                    !log.sealed() || log.sum(bytes, 16) == be32(bytes, 16)
                };
                if !right {
                    if time < last_time {
                        break;
                    }
                    if !log.has(ASYNC) || end.is_some() {
                        return Err(Refused("a commit's checksum"));
                    }
                    end = Some(next);
                }
                last_time = time;
                next = next.wrapping_add(1);
            }
            5 => doubtful |= !log.tail_is_right(bytes),
            _ => break,
        }
    }
    Ok(End {
        sequence: end.unwrap_or(next),
    })
}

/// Calls `each` with the blocks of whole transactions that are not data: type, sequence number, the block, its number.
fn pass(
    image: &[u8],
    log: &Log,
    (start, first): (usize, u32),
    end: &End,
    mut each: impl FnMut(u32, u32, &[u8], usize) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let mut block = start;
    let mut next = first;
    while next != end.sequence {
        let bytes = log.read(image, block);
        if be32(bytes, 0) != MAGIC || be32(bytes, 8) != next {
            break;
        }
        let kind = be32(bytes, 4);
        each(kind, next, bytes, block)?;
        block = log.next(block);
        match kind {
            1 => {
                for _ in log.tags(bytes) {
                    block = log.next(block);
                }
            }
            2 => next = next.wrapping_add(1),
            5 => {}
            _ => break,
        }
    }
    Ok(())
}

/// What a replay comes to.
pub(crate) struct Replayed {
    /// The image with its journal written back; the journal itself is left as it is.
    pub(crate) after: Vec<u8>,
    /// The blocks that were written.
    pub(crate) written: Vec<u64>,
    /// What fast commits say beyond that, and how many there are.
    pub(crate) records: Vec<Record>,
    pub(crate) fast_commits: u32,
}

/// Replays the journal of an image.
pub(crate) fn replay(image: &[u8]) -> Result<Replayed, Refused> {
    let Some(log) = Log::of(image) else {
        return Err(Refused("no journal"));
    };
    let superblock = log.read(image, 0);
    let start = usize::try_from(be32(superblock, 0x1c)).unwrap_or(0);
    let first = be32(superblock, 0x18);
    if be32(superblock, 0) != MAGIC
        || be32(superblock, 4) != 4
        || usize::try_from(be32(superblock, 12)).ok() != Some(log.block)
        || log.max > log.places.len()
        || log.first == 0
        || log.first >= log.end
        || !(log.first..log.end).contains(&start)
    {
        return Err(Refused("a journal whose superblock makes no sense"));
    }
    let kinds = [V2, V3].iter().filter(|&&bit| log.has(bit)).count();
    if kinds + usize::from(log.compat & V1 != 0) > 1 {
        return Err(Refused("checksums of two kinds"));
    }
    if kinds > 0 && {
        let mut copy = superblock[..1024].to_vec();
        put(&mut copy, 0xfc, &[0; 4]);
        Checksum::START.bytes(&copy).value() != be32(superblock, 0xfc)
    } {
        return Err(Refused("the checksum of the journal's superblock"));
    }
    if log.incompat & !0x3f != 0 || be32(superblock, 0x2c) != 0 {
        return Err(Refused("features that nobody knows"));
    }
    let end = scan(image, &log, start, first)?;

    let mut revoked: BTreeMap<u64, u32> = BTreeMap::new();
    pass(
        image,
        &log,
        (start, first),
        &end,
        |kind, sequence, bytes, _| {
            if kind == 5 {
                let used = usize::try_from(be32(bytes, 12)).unwrap_or(usize::MAX);
                if used > bytes.len() - if log.sealed() { 4 } else { 0 } {
                    return Err(Refused("a revocation longer than its block"));
                }
                let width = if log.has(BIT64) { 8 } else { 4 };
                let mut at = 16;
                while at + width <= used {
                    let number = if width == 8 {
                        u64::from_be_bytes(get(bytes, at))
                    } else {
                        be32(bytes, at).into()
                    };
                    revoked.insert(number, sequence);
                    at += width;
                }
            }
            Ok(())
        },
    )?;

    let mut after = image.to_vec();
    let mut written = Vec::new();
    pass(
        image,
        &log,
        (start, first),
        &end,
        |kind, sequence, bytes, block| {
            if kind != 1 {
                return Ok(());
            }
            let mut block = block;
            for tag in log.tags(bytes) {
                block = log.next(block);
                let is_before = |a: u32, b: u32| a.wrapping_sub(b).cast_signed() < 0;
                if revoked
                    .get(&tag.target)
                    .is_some_and(|&r| !is_before(r, sequence))
                {
                    continue;
                }
                if tag.target >= log.blocks {
                    return Err(Refused("a block that there is not"));
                }
                let mut data = log.read(image, block).to_vec();
                if log.sealed() && log.tag_sum(sequence, &data) != tag.checksum {
                    return Err(Refused("a data block's checksum"));
                }
                if tag.escaped {
                    put(&mut data, 0, &MAGIC.to_be_bytes());
                }
                let place = usize::try_from(tag.target).unwrap_or(0) * log.block;
                if log.places.contains(&place) {
                    return Err(Refused("it writes itself"));
                }
                put(&mut after, place, &data);
                written.push(tag.target);
            }
            Ok(())
        },
    )?;
    let (records, fast_commits) = if log.has(FAST) {
        fast_model::scan(image, &log, end.sequence)?
    } else {
        (Vec::new(), 0)
    };
    Ok(Replayed {
        after,
        written,
        records,
        fast_commits,
    })
}
