//! Journals to replay. Input: the number of an image, two bytes of flags, and operations that write a log into it: descriptors
//! with their blocks, revocations, commits, [fast commits](crate::fast_log); and patches, which may or may not be sealed with the rest.
//!
//! The reader and [`replay`](crate::replay) agree: both refuse, or both make the same image, byte for byte; replaying again changes nothing;
//! what is exported is what the replayed image with an empty journal exports. What fast commits change is what
//! [`fast_model`](crate::fast_model) says.

use std::ops::Range;
use std::sync::Arc;

use lcow_blockio::ReadAt;
use lcow_ext4::format::Checksum;
use lcow_ext4::reader::{Filesystem, Journal, ReadErrorKind};
use lcow_layer::export::{ExportOptions, canonical};
use lcow_layer::tree::Subtree;

use crate::bytes::{Bytes, get, le16, le32, part, put};
use crate::fast_log;
use crate::fast_model::{self, Outcome};
use crate::image::{Geometry, base};
use crate::limits::{Capped, bounded};
use crate::replay::{ASYNC, BIT64, FAST, Log, V1, V2, V3, be32, crc32_be, replay};
use crate::{Mutate, Rng};

/// Images with an empty journal, by their numbers in [`image`](crate::image).
const BASES: &[u8] = &[12, 13, 14, 18];

const MEMORY: usize = 80 << 20;
const MAGIC: u32 = 0xc03b_3998;
const RECOVER: u32 = 4;
/// Blocks that a log may have here.
const MOST: usize = 200;
/// Blocks for fast commits.
const FAST_BLOCKS: u32 = 40;

// Flags.
const KIND: u16 = 3;
const WIDE: u16 = 4;
const ASYNCHRONOUS: u16 = 8;
const AT_THE_END: u16 = 16;
const SEAL_LAST: u16 = 32;
const NO_RECOVER: u16 = 64;
const WRAPPING: u16 = 128;
/// The journal has room for fast commits; operations of [`FAST_RECORD`] are theirs.
const FAST_COMMITS: u16 = 256;
/// The sums of fast commits are mended after the patches.
const SEAL_FAST: u16 = 512;

// Operations, in the lowest two bits of their first byte; three more bits are a count less one.
const DESCRIPTOR: u8 = 0;
const REVOKE: u8 = 1;
const COMMIT: u8 = 2;
const PATCH: u8 = 3;
/// With [`FAST_COMMITS`]: a record of fast commits, or a patch to them.
const FAST_RECORD: u8 = COMMIT | NOT_LAST;
const FAST_PATCH: u8 = PATCH | NOT_LAST;
// A descriptor's further flags.
const NOT_LAST: u8 = 0x20;
const UUIDS: u8 = 0x40;
const OTHER_SEQUENCE: u8 = 0x80;

/// The operations of an input: what each takes.
fn operations(ops: &[u8], fast: bool) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(&first) = ops.get(at) {
        let count = usize::from(first >> 2 & 7) + 1;
        let len = 1 + match first & 3 {
            DESCRIPTOR => 5 * count,
            REVOKE => 2 * count,
            COMMIT if fast && first & NOT_LAST != 0 => fast_log::RECORD,
            COMMIT => 1,
            _ => 4 + count,
        };
        if at + len > ops.len() {
            break;
        }
        ranges.push(at..at + len);
        at += len;
    }
    ranges
}

/// Writes a log into an image.
struct Writer<'a> {
    image: &'a mut [u8],
    log: Log,
    block: usize,
    used: usize,
    sequence: u32,
    time: u64,
}

impl Writer<'_> {
    fn push(&mut self, bytes: &[u8]) {
        let place = self.log.places[self.block];
        put(self.image, place, bytes);
        self.block = self.log.next(self.block);
        self.used += 1;
    }

    fn header(&self, kind: u32, other: bool) -> Vec<u8> {
        let mut block = vec![0; self.log.block];
        let sequence = self.sequence.wrapping_add(u32::from(other));
        put(&mut block, 0, &MAGIC.to_be_bytes());
        put(&mut block, 4, &kind.to_be_bytes());
        put(&mut block, 8, &sequence.to_be_bytes());
        block
    }

    /// A block number of the input; a few are past the end.
    fn target(&self, raw: u16) -> u32 {
        let blocks = u32::try_from(self.log.blocks).unwrap_or(1);
        u32::from(raw) % (blocks + 2)
    }

    fn descriptor(&mut self, op: &[u8]) {
        let mut block = self.header(1, op[0] & OTHER_SEQUENCE != 0);
        let mut at = 12;
        let mut data = Vec::new();
        let tags = (op.len() - 1) / 5;
        for i in 0..tags {
            let raw = &op[1 + i * 5..];
            let target = self.target(le16(raw, 0));
            let (style, x) = (raw[2], usize::from(le16(raw, 3)));
            let place = usize::try_from(target).unwrap_or(0) * self.log.block;
            let mut content = vec![style; self.log.block];
            match style & 3 {
                // The block as it is, but for a byte.
                0 => {
                    put(&mut content, 0, part(self.image, place, self.log.block));
                    let at = x % self.log.block;
                    content[at] = content[at].wrapping_add(1 + (style >> 2));
                }
                1 => {}
                2 => put(&mut content, 0, &MAGIC.to_be_bytes()),
                // Another block.
                _ => {
                    let other = x % usize::try_from(self.log.blocks).unwrap_or(1);
                    let other = part(self.image, other * self.log.block, self.log.block).to_vec();
                    put(&mut content, 0, &other);
                }
            }
            let mut flags: u32 = 0;
            if be32(&content, 0) == MAGIC && style & 0x80 == 0 {
                flags |= 1;
                put(&mut content, 0, &[0; 4]);
            }
            if i > 0 && op[0] & UUIDS == 0 {
                flags |= 2;
            }
            if i + 1 == tags && op[0] & NOT_LAST == 0 {
                flags |= 8;
            }
            put(&mut block, at, &target.to_be_bytes());
            if self.log.has(V3) {
                put(&mut block, at + 4, &flags.to_be_bytes());
            } else {
                let [_, _, high, low] = flags.to_be_bytes();
                put(&mut block, at + 6, &[high, low]);
            }
            at += self.log.tag_size() + if flags & 2 == 0 { 16 } else { 0 };
            data.push(content);
        }
        self.push(&block);
        for content in data {
            self.push(&content);
        }
    }

    fn revoke(&mut self, op: &[u8]) {
        let mut block = self.header(5, op[0] & OTHER_SEQUENCE != 0);
        let width = if self.log.has(BIT64) { 8 } else { 4 };
        let mut at = 16;
        for raw in op[1..].chunks(2) {
            let target = self.target(le16(raw, 0));
            put(&mut block, at + width - 4, &target.to_be_bytes());
            at += width;
        }
        let used = u32::try_from(at).unwrap_or(0);
        put(&mut block, 12, &used.to_be_bytes());
        self.push(&block);
    }

    fn commit(&mut self, op: &[u8]) {
        let mut block = self.header(2, op[0] & OTHER_SEQUENCE != 0);
        self.time = self.time.wrapping_add_signed(op[1].cast_signed().into());
        put(&mut block, 0x30, &self.time.to_be_bytes());
        self.push(&block);
        self.sequence = self.sequence.wrapping_add(1);
    }
}

/// Puts the right checksums into the first `count` blocks of the log.
fn seal(image: &mut [u8], log: &Log, start: usize, count: usize) {
    let mut block = start;
    let mut left = count;
    let mut crc = !0;
    while left > 0 {
        left -= 1;
        let place = log.places[block];
        let bytes = log.read(image, block).to_vec();
        block = log.next(block);
        if be32(&bytes, 0) != MAGIC {
            continue;
        }
        let sequence = be32(&bytes, 8);
        match be32(&bytes, 4) {
            1 => {
                let tail = bytes.len() - 4;
                let mut datum = block;
                for tag in log.tags(&bytes) {
                    if log.sealed() {
                        let sum = log.tag_sum(sequence, log.read(image, datum));
                        if log.has(V3) {
                            put(image, place + tag.at + 12, &sum.to_be_bytes());
                        } else {
                            let [_, _, high, low] = sum.to_be_bytes();
                            put(image, place + tag.at + 4, &[high, low]);
                        }
                    }
                    datum = log.next(datum);
                }
                if log.sealed() {
                    let sum = log.sum(part(image, place, bytes.len()), tail);
                    put(image, place + tail, &sum.to_be_bytes());
                }
                if log.compat & V1 != 0 {
                    crc = crc32_be(crc, part(image, place, bytes.len()));
                }
                for _ in log.tags(&bytes) {
                    if log.compat & V1 != 0 {
                        crc = crc32_be(crc, log.read(image, block));
                    }
                    block = log.next(block);
                    left = left.saturating_sub(1);
                }
            }
            2 if log.compat & V1 != 0 => {
                put(image, place + 12, &[1, 4]);
                put(image, place + 16, &crc.to_be_bytes());
                crc = !0;
            }
            2 if log.sealed() => {
                let sum = log.sum(&bytes, 16);
                put(image, place + 16, &sum.to_be_bytes());
            }
            5 if log.sealed() => {
                let tail = bytes.len() - 4;
                let sum = log.sum(&bytes, tail);
                put(image, place + tail, &sum.to_be_bytes());
            }
            _ => {}
        }
    }
}

fn seal_superblocks(image: &mut [u8], journal: usize) {
    put(image, journal + 0xfc, &[0; 4]);
    let sum = Checksum::START.bytes(part(image, journal, 1024)).value();
    put(image, journal + 0xfc, &sum.to_be_bytes());
    seal_superblock(image);
}

fn seal_superblock(image: &mut [u8]) {
    if le32(image, 1024 + 0x64) & 0x400 != 0 {
        let sum = Checksum::START.bytes(part(image, 1024, 1020)).value();
        put(image, 2044, &sum.to_le_bytes());
    }
}

/// The image of an input.
fn make(input: &[u8]) -> Option<Vec<u8>> {
    let (&[number, a, b], ops) = input.split_first_chunk()?;
    let mut image = base(BASES[usize::from(number) % BASES.len()]).bytes.clone();
    let flags = u16::from_le_bytes([a, b]);
    let journal = Log::of(&image)?.places[0];
    let (compat, incompat) = match flags & KIND {
        0 => (0, 0),
        1 => (V1, 0),
        2 => (0, V2),
        _ => (0, V3),
    };
    let mut incompat = incompat | 1;
    if flags & WIDE != 0 {
        incompat |= BIT64;
    }
    if flags & ASYNCHRONOUS != 0 {
        incompat |= ASYNC;
    }
    let fast = flags & FAST_COMMITS != 0;
    if fast {
        incompat |= FAST;
        put(&mut image, journal + 0x54, &FAST_BLOCKS.to_be_bytes());
    }
    put(&mut image, journal + 0x24, &compat.to_be_bytes());
    put(&mut image, journal + 0x28, &incompat.to_be_bytes());
    image[journal + 0x50] = 4;
    let sequence: u32 = if flags & WRAPPING != 0 { u32::MAX } else { 7 };
    put(&mut image, journal + 0x18, &sequence.to_be_bytes());
    let log = Log::of(&image)?;
    let start = if flags & AT_THE_END != 0 {
        log.end - 6
    } else {
        log.first
    };
    let start_word = u32::try_from(start).ok()?;
    put(&mut image, journal + 0x1c, &start_word.to_be_bytes());
    if flags & NO_RECOVER == 0 {
        let features = le32(&image, 1024 + 0x60) | RECOVER;
        put(&mut image, 1024 + 0x60, &features.to_le_bytes());
    }
    let mut writer = Writer {
        image: &mut image,
        log,
        block: start,
        used: 0,
        sequence,
        time: 1_600_000_000,
    };
    let mut patches = Vec::new();
    let mut records = Vec::new();
    for range in operations(ops, fast) {
        let op = &ops[range];
        if writer.used > MOST {
            break;
        }
        match op[0] & 3 {
            DESCRIPTOR => writer.descriptor(op),
            REVOKE => writer.revoke(op),
            COMMIT if fast && op[0] & NOT_LAST != 0 => records.push(op),
            COMMIT => writer.commit(op),
            _ => patches.push(op),
        }
    }
    let (log, used, next) = (writer.log, writer.used, writer.sequence);
    if fast {
        fast_log::write(&mut image, &log, next, &records);
    }
    seal(&mut image, &log, start, used);
    seal_superblocks(&mut image, journal);
    for patch in patches {
        if fast && patch[0] & NOT_LAST != 0 {
            let at = le16(patch, 1).wrapping_add(le16(patch, 3) << 8);
            fast_log::patch(&mut image, &log, at.into(), &patch[5..]);
            continue;
        }
        let block = (0..usize::from(le16(patch, 1)) % (used + 2)).fold(start, |b, _| log.next(b));
        let at = log.places[block] + usize::from(le16(patch, 3)) % log.block;
        put(&mut image, at, &patch[5..]);
    }
    if flags & SEAL_LAST != 0 {
        seal(&mut image, &log, start, used);
    }
    if fast && flags & SEAL_FAST != 0 {
        fast_log::seal(&mut image, &log);
    }
    Some(image)
}

/// The image as `fs` sees it.
fn seen<R: ReadAt>(fs: &Filesystem<R>, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fs.read_image(0, &mut bytes)
        .expect("the image is that long");
    bytes
}

/// All that a file system holds as a tar. `None`: an error, or more than this target looks at.
fn export(image: &[u8]) -> Option<Vec<u8>> {
    let fs = Filesystem::open(Bytes(image)).ok()?;
    let mut out = Capped::new(8 << 20);
    let tree = Subtree::open(Arc::new(fs), b"").ok()?;
    canonical(&tree, &ExportOptions::default(), &mut out).ok()?;
    Some(out.bytes)
}

/// An image whose journal says that nothing is to be replayed.
fn emptied(image: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    let features = le32(&image, 1024 + 0x60) & !RECOVER;
    let right = {
        let mut copy = image[..4096].to_vec();
        seal_superblock(&mut copy);
        copy == image[..4096]
    };
    put(&mut image, 1024 + 0x60, &features.to_le_bytes());
    if let Some(log) = Log::of(&image) {
        put(&mut image, log.places[0] + 0x1c, &[0; 4]);
        put(&mut image, log.places[0] + 0xfc, &[0; 4]);
        let sum = Checksum::START.bytes(part(&image, log.places[0], 1024));
        put(&mut image, log.places[0] + 0xfc, &sum.value().to_be_bytes());
    }
    if right {
        seal_superblock(&mut image);
    }
    image
}

/// Whether the journal's inode and map are the same in both.
fn same_journal(image: &[u8], after: &[u8]) -> bool {
    let place = |image: &[u8]| {
        let geometry = Geometry::of(image)?;
        let number = usize::try_from(le32(image, 1024 + 0xe0)).ok()?;
        let at = geometry.inode_at(image, number)?;
        let inode = part(image, at, geometry.inode_size).to_vec();
        Some((inode, Log::of(image)?.places))
    };
    place(image).is_some_and(|before| place(after) == Some(before))
}

pub(crate) fn run(input: &[u8]) {
    let Some(image) = make(input) else {
        return;
    };
    let recovers = le32(&image, 1024 + 0x60) & RECOVER != 0;
    let expected = replay(&image);
    let opened = bounded("opening", MEMORY, || Filesystem::open(Bytes(&image)));
    let fs = match opened {
        Ok(fs) => fs,
        Err(error) => {
            let typed = matches!(
                error.kind(),
                ReadErrorKind::Corrupt | ReadErrorKind::Unsupported
            );
            assert!(typed, "opening: {error:?}");
            if let Ok(replayed) = expected
                && recovers
                && let Ok(plain) = Filesystem::open(Bytes(&emptied(&replayed.after)))
            {
                let outcome = fast_model::replay(&plain, &replayed);
                let bad = !matches!(outcome, Outcome::Files(_));
                assert!(bad, "a good journal: {error:?}");
            }
            return;
        }
    };
    assert!(recovers, "a log that nothing speaks of was passed over");
    let expected = expected.unwrap_or_else(|why| panic!("replayed, though {}", why.0));
    let Journal::Replayed {
        blocks,
        fast_commits,
        ..
    } = fs.info().journal
    else {
        panic!("not replayed: {:?}", fs.info().journal);
    };
    assert_eq!(fast_commits, expected.fast_commits, "fast commits");
    if !expected.records.is_empty()
        && let Ok(plain) = Filesystem::open(Bytes(&emptied(&expected.after)))
    {
        match fast_model::replay(&plain, &expected) {
            Outcome::Refused(why) => panic!("replayed, though {why}"),
            Outcome::Files(files) => files.check(&fs, &expected.after),
            Outcome::Unclear => {}
        }
    }
    let (after, records) = (expected.after, expected.records);
    let mut distinct = expected.written;
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(blocks, distinct.len() as u64, "blocks replayed");
    let found = seen(&fs, image.len());
    // Most are the same: looking for the first byte takes longer than all the rest.
    if found != after {
        let at = found.iter().zip(&after).position(|(a, b)| a != b);
        panic!("the replayed image is otherwise at byte {at:#x?}");
    }
    if !same_journal(&image, &after) {
        // It broke the way to itself. That is found when the image is opened the next time.
        return;
    }
    // Once more, over what the first replay left.
    if le32(&after, 1024 + 0x60) & RECOVER != 0 {
        match Filesystem::open(Bytes(&after)) {
            Ok(twice) => assert!(seen(&twice, image.len()) == after, "not the same twice"),
            Err(error) => panic!("replayed once, and then {error:?}"),
        }
    }
    assert!(
        !records.is_empty() || export(&image) == export(&emptied(&after)),
        "the export through the journal is not that of the replayed image"
    );
}

fn operation(rng: &mut Rng) -> Vec<u8> {
    let kind = *rng.pick(&[DESCRIPTOR, DESCRIPTOR, REVOKE, COMMIT, COMMIT, 3]);
    let count = if rng.one_in(2) { 0 } else { rng.below(8) };
    let mut first = kind | u8::try_from(count << 2).unwrap_or(0);
    if rng.one_in(10) {
        first |= 1 << (5 + rng.below(3));
    }
    let mut op = vec![first];
    // The first blocks are those with metadata.
    let block = |rng: &mut Rng| {
        let most = *rng.pick(&[8, 64, 64, 400, 65536]);
        u16::try_from(rng.below(most)).unwrap_or(0).to_le_bytes()
    };
    match kind {
        DESCRIPTOR => {
            for _ in 0..=count {
                op.extend_from_slice(&block(rng));
                op.extend_from_slice(&get::<3>(&rng.number().to_le_bytes(), 0));
            }
        }
        REVOKE => (0..=count).for_each(|_| op.extend_from_slice(&block(rng))),
        COMMIT => op.push(u8::try_from(rng.below(4)).unwrap_or(0)),
        PATCH | 4.. => {
            op.extend_from_slice(&block(rng)[..1]);
            op.push(0);
            let at = *rng.pick(&[0, 4, 8, 12, 16, 20, 24, 28, 48, 1020]);
            op.extend_from_slice(&u16::to_le_bytes(at));
            (0..=count).for_each(|_| op.push(u8::try_from(rng.below(256)).unwrap_or(0)));
        }
    }
    op
}

pub(crate) fn mutate(input: &mut Vec<u8>, max: usize, rng: &mut Rng, plain: &mut Mutate<'_>) {
    if input.len() < 3 {
        *input = vec![0, 3, 0];
    }
    let mut ops = input.split_off(3);
    if rng.one_in(8) {
        input[0] = u8::try_from(rng.below(BASES.len())).unwrap_or(0);
    }
    if rng.one_in(4) {
        input[1] ^= 1 << rng.below(8);
    }
    if rng.one_in(8) {
        input[2] ^= 1 << rng.below(2);
    }
    let fast = u16::from_le_bytes([0, input[2]]) & FAST_COMMITS != 0;
    for _ in 0..=rng.below(3) {
        let ranges = operations(&ops, fast);
        let at = |rng: &mut Rng| {
            let starts = ranges.iter().map(|r| r.start).chain([ops.len()]);
            let starts: Vec<usize> = starts.collect();
            *rng.pick(&starts)
        };
        match rng.below(8) {
            0..=2 => {
                let at = at(rng);
                let op = if fast && !rng.one_in(4) {
                    fast_log::operation(rng, FAST_RECORD, FAST_PATCH)
                } else {
                    operation(rng)
                };
                ops.splice(at..at, op);
            }
            3 if !ranges.is_empty() => {
                let range = rng.pick(&ranges).clone();
                ops.drain(range);
            }
            4 if !ranges.is_empty() => {
                let copy = ops[rng.pick(&ranges).clone()].to_vec();
                let at = at(rng);
                ops.splice(at..at, copy);
            }
            5 => ops.extend_from_slice(&[COMMIT, 1]),
            _ => {
                let most = (ops.len() + 16).min(2000);
                plain(&mut ops, most);
            }
        }
    }
    input.append(&mut ops);
    input.truncate(max.min(4000));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_every_kind_is_replayed() {
        for base in 0..BASES.len() {
            for flags in (0..8).chain([AT_THE_END | 7, WRAPPING | 3]) {
                let [low, high] = flags.to_le_bytes();
                let number = u8::try_from(base).unwrap();
                let mut input = vec![number, low, high];
                // Block 3000 becomes bytes of 5, block 3001 begins with the journal's magic number; then a commit.
                input.extend_from_slice(&[
                    DESCRIPTOR | 4,
                    184,
                    11,
                    5,
                    0,
                    0,
                    185,
                    11,
                    2,
                    0,
                    0,
                    COMMIT,
                    1,
                ]);
                let image = make(&input).unwrap();
                let fs = Filesystem::open(Bytes(&image)).unwrap();
                let replayed = Journal::Replayed {
                    transactions: 1,
                    blocks: 2,
                    fast_commits: 0,
                };
                assert_eq!(fs.info().journal, replayed, "{base} {flags}");
                let after = seen(&fs, image.len());
                assert_eq!(after[3000 << 10..3001 << 10], [5; 1024]);
                assert_eq!(be32(&after, 3001 << 10), MAGIC);
                run(&input);
            }
        }
    }

    #[test]
    fn there_is_an_opinion_on_fast_commits() {
        let seeds: [(&[u8], u32); 4] = [
            (include_bytes!("../seeds/journal/0-fast-create"), 1),
            (include_bytes!("../seeds/journal/0-fast-directory"), 1),
            (include_bytes!("../seeds/journal/0-fast-ranges"), 1),
            (include_bytes!("../seeds/journal/0-fast-two"), 2),
        ];
        for (number, (seed, commits)) in seeds.into_iter().enumerate() {
            let image = make(seed).unwrap();
            let replayed = replay(&image).unwrap_or_else(|why| panic!("{number}: {}", why.0));
            assert_eq!(replayed.fast_commits, commits, "{number}");
            let plain = emptied(&replayed.after);
            let plain = Filesystem::open(Bytes(&plain)).unwrap();
            let Outcome::Files(files) = fast_model::replay(&plain, &replayed) else {
                panic!("{number}: no opinion");
            };
            let fs = Filesystem::open(Bytes(&image)).unwrap();
            files.check(&fs, &replayed.after);
            // What is otherwise is seen.
            let before = std::panic::catch_unwind(|| files.check(&plain, &replayed.after));
            assert_eq!(before.is_err(), number != 3, "{number}");
        }
    }
}
