//! Header blocks as differences from earlier ones.

use std::ops::Range;

use crate::tar::BLOCK;
use crate::tar::field::{self, Block};

/// The fields in the order of their bits in the two masks. The type byte comes first and apart.
const FIELDS: [Range<usize>; 14] = [
    field::NAME,
    field::MODE,
    field::UID,
    field::GID,
    field::SIZE,
    field::MTIME,
    field::CHECKSUM,
    field::LINK,
    field::MAGIC,
    field::UNAME,
    field::GNAME,
    field::MAJOR,
    field::MINOR,
    field::TAIL,
];
const CHECKSUM_FIELD: usize = 6;

/// The numbers' fields: written as differences where they follow the template of the field before.
const NUMBERS: u64 = 0b1_1000_0011_1110;

/// What went before: the last header of each type, and the last names.
///
/// Files, directories and links have much in common with the last of their own type; the name continues the last one of any.
#[derive(Debug)]
pub(super) struct History {
    by_type: Vec<(u8, Box<Block>)>,
    /// The last names: of entries, and of extended headers.
    names: [[u8; 100]; 2],
}

impl Default for History {
    fn default() -> Self {
        Self {
            by_type: Vec::new(),
            names: [[0; 100]; 2],
        }
    }
}

fn is_extended(flag: u8) -> bool {
    matches!(flag, b'x' | b'g' | b'X' | b'L' | b'K')
}

impl History {
    /// What a header of this type is likely to look like.
    fn guess(&self, flag: u8) -> Block {
        let mut guess = self
            .by_type
            .iter()
            .find(|(known, _)| *known == flag)
            .map_or([0; BLOCK], |(_, block)| **block);
        guess[field::NAME].copy_from_slice(&self.names[usize::from(is_extended(flag))]);
        guess
    }

    fn remember(&mut self, block: &Block) {
        let flag = block[field::TYPE];
        self.names[usize::from(is_extended(flag))].copy_from_slice(&block[field::NAME]);
        match self.by_type.iter_mut().find(|(known, _)| *known == flag) {
            Some((_, known)) => **known = *block,
            // 256 types at most.
            None => self.by_type.push((flag, Box::new(*block))),
        }
    }
}

/// How a numeric field is written: this many octal digits with zeros in front, then these bytes.
struct Template<'a> {
    digits: usize,
    end: &'a [u8],
}

impl<'a> Template<'a> {
    fn of(field: &'a [u8]) -> Self {
        let digits = field
            .iter()
            .take_while(|b| (b'0'..=b'7').contains(b))
            .count();
        if digits == 0 {
            let digits = field.len().saturating_sub(1);
            return Self { digits, end: &[0] };
        }
        Self {
            digits,
            end: field.get(digits..).unwrap_or_default(),
        }
    }

    fn value(&self, field: &[u8]) -> Option<u64> {
        let (digits, end) = field.split_at_checked(self.digits)?;
        if end != self.end || digits.is_empty() {
            return None;
        }
        let mut value = 0_u64;
        for digit in digits {
            if !(b'0'..=b'7').contains(digit) {
                return None;
            }
            // 12 digits at most.
            value = (value << 3) | u64::from(digit & 7);
        }
        Some(value)
    }

    /// Writes a value; false if it has too many digits.
    fn write(&self, mut value: u64, field: &mut [u8]) -> bool {
        let Some((digits, end)) = field.split_at_mut_checked(self.digits) else {
            return false;
        };
        for digit in digits.iter_mut().rev() {
            *digit = b'0' | u8::try_from(value & 7).unwrap_or(0);
            value >>= 3;
        }
        if value != 0 || end.len() != self.end.len() {
            return false;
        }
        end.copy_from_slice(self.end);
        true
    }
}

/// The checksum field that a header has if it is right and written like the one before; the usual form if there is none.
fn expected_checksum(guess: &Block, block: &Block) -> [u8; 8] {
    let mut template = Template::of(&guess[field::CHECKSUM]);
    if guess[field::CHECKSUM] == [0; 8] {
        template = Template {
            digits: 6,
            end: b"\0 ",
        };
    }
    let mut expected = [0; 8];
    let (sum, _) = field::sums(block);
    if !template.write(u64::try_from(sum).unwrap_or(0), &mut expected) {
        return [0; 8];
    }
    expected
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

pub(super) fn zigzag(value: i64) -> u64 {
    (value << 1).cast_unsigned() ^ (value >> 63).cast_unsigned()
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ (value & 1).cast_signed().wrapping_neg()
}

/// Appends a header: its type, the mask of fields that are not as guessed, the mask of those given as numbers, the fields.
pub(super) fn encode(history: &mut History, block: &Block, out: &mut Vec<u8>) {
    let flag = block[field::TYPE];
    let guess = history.guess(flag);
    let checksum = expected_checksum(&guess, block);
    let mut changed = 0_u64;
    let mut numbers = 0_u64;
    let mut body = Vec::new();
    for (i, range) in FIELDS.iter().cloned().enumerate() {
        let new = &block[range.clone()];
        let old = if i == CHECKSUM_FIELD {
            &checksum[..]
        } else {
            &guess[range]
        };
        if new == old {
            continue;
        }
        changed |= 1 << i;
        if NUMBERS & (1 << i) != 0 {
            let template = Template::of(old);
            if let Some(value) = template.value(new) {
                numbers |= 1 << i;
                let before = template.value(old).unwrap_or(0);
                put_varint(
                    &mut body,
                    zigzag(value.cast_signed().wrapping_sub(before.cast_signed())),
                );
                continue;
            }
        }
        let shared = new.iter().zip(old).take_while(|(a, b)| a == b).count();
        let rest = new.get(shared..).unwrap_or_default();
        let len = rest
            .iter()
            .rposition(|&b| b != 0)
            .map_or(0, |last| last.saturating_add(1));
        put_varint(&mut body, u64::try_from(shared).unwrap_or(0));
        put_varint(&mut body, u64::try_from(len).unwrap_or(0));
        body.extend_from_slice(rest.get(..len).unwrap_or_default());
    }
    out.push(flag);
    put_varint(out, changed);
    put_varint(out, numbers);
    out.extend_from_slice(&body);
    history.remember(block);
}

/// Where encoded bytes come from.
pub(super) trait Source {
    type Error;
    fn byte(&mut self) -> Result<u8, Self::Error>;
    fn damaged(&self, detail: &'static str) -> Self::Error;

    fn varint(&mut self) -> Result<u64, Self::Error> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.damaged("a number is longer than 64 bits"))
    }

    fn length(&mut self) -> Result<usize, Self::Error> {
        let value = self.varint()?;
        usize::try_from(value).map_err(|_| self.damaged("a length is too large"))
    }
}

/// Reads what [`encode`] wrote.
pub(super) fn decode<S: Source>(history: &mut History, source: &mut S) -> Result<Block, S::Error> {
    let flag = source.byte()?;
    let guess = history.guess(flag);
    let mut block = guess;
    block[field::TYPE] = flag;
    let changed = source.varint()?;
    let numbers = source.varint()?;
    if changed >> FIELDS.len() != 0 || numbers & !(changed & NUMBERS) != 0 {
        return Err(source.damaged("a header's mask has unknown bits"));
    }
    let mut checksum: Option<(usize, Vec<u8>)> = None;
    for (i, range) in FIELDS.iter().cloned().enumerate() {
        if changed & (1 << i) == 0 {
            continue;
        }
        let width = range.len();
        if numbers & (1 << i) != 0 {
            let delta = unzigzag(source.varint()?);
            let old = &guess[range.clone()];
            let template = Template::of(old);
            let before = template.value(old).unwrap_or(0).cast_signed();
            let value = before.wrapping_add(delta).cast_unsigned();
            if !template.write(value, &mut block[range]) {
                return Err(source.damaged("a header's number does not fit its field"));
            }
            continue;
        }
        let shared = source.length()?;
        let len = source.length()?;
        if shared.checked_add(len).is_none_or(|end| end > width) {
            return Err(source.damaged("a header's field is too long"));
        }
        let mut rest = Vec::with_capacity(len);
        for _ in 0..len {
            rest.push(source.byte()?);
        }
        if i == CHECKSUM_FIELD {
            checksum = Some((shared, rest));
            continue;
        }
        for (at, to) in block[range].iter_mut().skip(shared).enumerate() {
            *to = rest.get(at).copied().unwrap_or(0);
        }
    }
    // The checksum is over all the others, so it comes last, though its bytes do not.
    let mut expected = expected_checksum(&guess, &block);
    if let Some((shared, rest)) = checksum {
        for (at, to) in expected.iter_mut().skip(shared).enumerate() {
            *to = rest.get(at).copied().unwrap_or(0);
        }
    }
    block[field::CHECKSUM].copy_from_slice(&expected);
    history.remember(&block);
    Ok(block)
}

/// The size field of a header whose data could follow.
pub(super) fn size(block: &Block) -> u64 {
    field::number(&block[field::SIZE])
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Bytes<'a>(&'a [u8]);

    impl Source for Bytes<'_> {
        type Error = &'static str;
        fn byte(&mut self) -> Result<u8, &'static str> {
            let (&first, rest) = self.0.split_first().ok_or("end")?;
            self.0 = rest;
            Ok(first)
        }
        fn damaged(&self, detail: &'static str) -> &'static str {
            detail
        }
    }

    fn round_trip(blocks: &[Block]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut history = History::default();
        for block in blocks {
            encode(&mut history, block, &mut out);
        }
        let mut history = History::default();
        let mut source = Bytes(&out);
        for block in blocks {
            assert!(decode(&mut history, &mut source).unwrap() == *block);
        }
        assert!(source.0.is_empty());
        out
    }

    #[test]
    fn a_header_like_the_last_takes_a_few_bytes() {
        let header = |name: &str, size: u64| {
            let mut block = [0; BLOCK];
            block[..name.len()].copy_from_slice(name.as_bytes());
            block[field::MODE].copy_from_slice(b"0000644\0");
            block[field::UID].copy_from_slice(b"0000000\0");
            block[field::GID].copy_from_slice(b"0000000\0");
            block[field::SIZE].copy_from_slice(format!("{size:011o}\0").as_bytes());
            block[field::MTIME].copy_from_slice(b"14706713234\0");
            block[field::TYPE] = b'0';
            block[field::MAGIC].copy_from_slice(b"ustar\x0000");
            let (sum, _) = field::sums(&block);
            block[field::CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            block
        };
        let one = round_trip(&[header("usr/bin/one", 5000)]);
        let two = round_trip(&[header("usr/bin/one", 5000), header("usr/bin/two", 4999)]);
        // Type, two masks, (shared, length, "two"), size.
        assert_eq!(two.len() - one.len(), 1 + 2 + 5 + 1);
    }

    proptest! {
        #[test]
        fn any_blocks_come_back(
            blocks in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), BLOCK), any::<bool>(), prop::sample::select(b"0x5\0".to_vec())),
                1..6,
            )
        ) {
            let blocks: Vec<Block> = blocks
                .into_iter()
                .map(|(bytes, numeric, flag)| {
                    let mut block: Block = bytes.try_into().unwrap();
                    block[field::TYPE] = flag;
                    if numeric {
                        for byte in &mut block[100..156] {
                            *byte = b'0' | (*byte & 7);
                        }
                    }
                    block
                })
                .collect();
            round_trip(&blocks);
        }

        #[test]
        fn any_bytes_are_a_header_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(&mut History::default(), &mut Bytes(&bytes));
        }

        #[test]
        fn numbers_come_back(value in any::<i64>()) {
            prop_assert_eq!(unzigzag(zigzag(value)), value);
            let mut out = Vec::new();
            put_varint(&mut out, zigzag(value));
            prop_assert_eq!(Bytes(&out).varint().unwrap(), zigzag(value));
        }
    }
}
