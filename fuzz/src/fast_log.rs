//! Fast commits of a journal, made from operations: records without regard to what they mean.
//!
//! An operation is a byte, whose bits 2 to 4 say what it is, and six more; bit 6: with something wrong; bit 7: in the next block.

use lcow_ext4::format::Checksum;

use crate::Rng;
use crate::bytes::{le16, le32, part, put};
use crate::fast_model::{ADD_RANGE, CREAT, DEL_RANGE, HEAD, INODE, LINK, PAD, TAIL, UNLINK};
use crate::image::Geometry;
use crate::replay::Log;

/// Bytes of an operation, but for its first.
pub(crate) const RECORD: usize = 6;
const WRONG: u8 = 0x40;
const NEXT_BLOCK: u8 = 0x80;

/// Kinds of operations.
const KINDS: [u16; 8] = [HEAD, ADD_RANGE, DEL_RANGE, CREAT, LINK, UNLINK, INODE, TAIL];
/// Names that the images have or don't have.
const NAMES: [&str; 7] = ["small", "big", "dir", "new", "holes", "soft", "other"];

/// The blocks of fast commits, one behind the other.
struct Area {
    bytes: Vec<u8>,
    block: usize,
    sum: Checksum,
}

impl Area {
    /// Bytes left in the block.
    fn rest(&self) -> usize {
        self.block - self.bytes.len() % self.block
    }

    fn pad(&mut self) {
        let rest = self.rest();
        if rest == self.block {
            return;
        }
        if rest > 4 {
            self.plain(PAD, &vec![0; rest - 4]);
        } else {
            self.bytes.resize(self.bytes.len() + rest, 0);
        }
    }

    fn plain(&mut self, tag: u16, value: &[u8]) {
        let start = self.bytes.len();
        let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&tag.to_le_bytes());
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(value);
        self.sum = self.sum.bytes(&self.bytes[start..]);
    }

    fn push(&mut self, tag: u16, value: &[u8]) {
        if value.len() + 8 > self.rest() {
            self.pad();
        }
        self.plain(tag, value);
    }

    /// A tail, which takes the rest of its block, as the kernel's do.
    fn tail(&mut self, sequence: u32, wrong: bool) {
        if self.rest() < 12 {
            self.pad();
        }
        let mut value = vec![0; self.rest() - 4];
        put(&mut value, 0, &sequence.to_le_bytes());
        let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
        let head = [TAIL.to_le_bytes(), len.to_le_bytes()].concat();
        let sum = self.sum.bytes(&head).bytes(&value[..4]).value();
        put(&mut value, 4, &(sum ^ u32::from(wrong)).to_le_bytes());
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(&value);
        self.sum = Checksum::from_seed(0);
    }
}

/// The value of a record.
fn value(image: &[u8], tag: u16, op: &[u8], sequence: u32) -> Vec<u8> {
    let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|i| op[i]);
    let number = |byte: u8| u32::from(byte).to_le_bytes();
    match tag {
        HEAD => {
            let sequence = sequence.wrapping_add(u32::from(a == 1));
            [number(u8::from(b == 1)), sequence.to_le_bytes()].concat()
        }
        ADD_RANGE => {
            let len = u16::from(c) | u16::from(d & 1) << 15;
            let physical = u32::from(le16(op, 5));
            let mut value = [number(a), number(b)].concat();
            value.extend_from_slice(&len.to_le_bytes());
            value.extend_from_slice(&[0, 0]);
            value.extend_from_slice(&physical.to_le_bytes());
            value
        }
        DEL_RANGE => [number(a), number(b), number(c)].concat(),
        INODE => {
            let geometry = Geometry::of(image);
            let raw = geometry.and_then(|geometry| {
                let at = geometry.inode_at(image, b.into())?;
                Some(part(image, at, geometry.inode_size).to_vec())
            });
            let mut raw = raw.unwrap_or_default();
            if c & 4 != 0 {
                put(&mut raw, 0x1a, &[c & 3, 0]);
            }
            if c & 8 != 0 {
                put(&mut raw, 4, &[d, e, 0, 0]);
            }
            if c & 16 != 0 {
                put(&mut raw, 2, &[op[6]]);
            }
            if c & 32 != 0 {
                raw.truncate(160);
            }
            [number(a).to_vec(), raw].concat()
        }
        _ => {
            let name = match NAMES.get(usize::from(c) % 8) {
                Some(name) => name.as_bytes().to_vec(),
                None => vec![b'x'; c.into()],
            };
            [number(a).to_vec(), number(b).to_vec(), name].concat()
        }
    }
}

/// Where the blocks of fast commits lie.
fn places(log: &Log) -> impl Iterator<Item = usize> {
    let places = log.places.get(log.end + 1..log.max);
    places.unwrap_or_default().iter().copied()
}

/// Writes the fast commits of some operations for the transaction `sequence`.
pub(crate) fn write(image: &mut [u8], log: &Log, sequence: u32, ops: &[&[u8]]) {
    let mut area = Area {
        bytes: Vec::new(),
        block: log.block,
        sum: Checksum::from_seed(0),
    };
    for op in ops {
        if op[0] & NEXT_BLOCK != 0 {
            area.pad();
        }
        let wrong = op[0] & WRONG != 0;
        let tag = KINDS[usize::from(op[0] >> 2 & 7)];
        if tag == TAIL {
            area.tail(sequence, wrong);
            continue;
        }
        let mut value = value(image, tag, op, sequence);
        if wrong {
            value.truncate(value.len() * usize::from(op[6] % 16) / 16);
        }
        area.push(tag, &value);
    }
    for (place, block) in places(log).zip(area.bytes.chunks(log.block)) {
        put(image, place, &vec![0; log.block]);
        put(image, place, block);
    }
}

/// Writes over some bytes of the fast commits.
pub(crate) fn patch(image: &mut [u8], log: &Log, at: usize, bytes: &[u8]) {
    let place = places(log).nth(at / log.block);
    if let Some(place) = place {
        put(image, place + at % log.block, bytes);
    }
}

/// Puts the right sums into all tails.
pub(crate) fn seal(image: &mut [u8], log: &Log) {
    let mut sum = Checksum::from_seed(0);
    for place in places(log) {
        let mut at = 0;
        while at + 4 < log.block {
            let record = place + at;
            let tag = le16(image, record);
            let len = 4 + usize::from(le16(image, record + 2));
            if at + len > log.block || tag == 0 {
                return;
            }
            if tag == TAIL {
                let whole = sum.bytes(part(image, record, 8)).value();
                if len >= 12 {
                    put(image, record + 8, &whole.to_le_bytes());
                }
                sum = Checksum::from_seed(0);
            } else {
                sum = sum.bytes(part(image, record, len));
            }
            at += len;
        }
        if le32(image, place) == 0 {
            return;
        }
    }
}

/// A random operation: a record of a kind, or a patch.
pub(crate) fn operation(rng: &mut Rng, record: u8, patch: u8) -> Vec<u8> {
    let byte = |rng: &mut Rng, end: usize| u8::try_from(rng.below(end)).unwrap_or(0);
    if rng.one_in(8) {
        let count = rng.below(4);
        let mut op = vec![patch | u8::try_from(count << 2).unwrap_or(0)];
        let most = *rng.pick(&[64, 256]);
        op.extend_from_slice(&[byte(rng, most), 0, byte(rng, 8), 0]);
        (0..=count).for_each(|_| op.push(byte(rng, 256)));
        return op;
    }
    let kind = *rng.pick(&[0, 1, 1, 2, 3, 4, 5, 6, 6, 6, 7, 7]);
    let mut first = record | kind << 2;
    if rng.one_in(20) {
        first |= WRONG;
    }
    if rng.one_in(20) {
        first |= NEXT_BLOCK;
    }
    let inode = |rng: &mut Rng| match rng.below(16) {
        0 => byte(rng, 256),
        1 => byte(rng, 12),
        _ => *rng.pick(&[2, 12, 13, 15, 19, 22, 23, 23, 24, 65, 66, 67, 68, 69]),
    };
    let mut op = vec![first, inode(rng), inode(rng)];
    match kind {
        0 => op[1..].copy_from_slice(&[byte(rng, 40), byte(rng, 40)]),
        1 | 2 => {
            op[2] = byte(rng, 44);
        }
        _ => {}
    }
    let most = *rng.pick(&[12, 44, 256]);
    op.extend_from_slice(&[byte(rng, most), byte(rng, 256), byte(rng, 256)]);
    // Of a range, the upper half of where it lies: mostly where nothing is.
    let high = if rng.one_in(8) { 0..13 } else { 6..11 };
    op.push(byte(rng, high.len()) + high.start);
    op
}
