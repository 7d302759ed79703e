//! Which clusters are in use: bits in chunks that exist only where one is set, so that an empty disk costs nothing.

// Places within words and chunks are below 64 and 512 by construction; what comes from a disk is only added, saturating.
#![allow(clippy::arithmetic_side_effects)]

use std::collections::HashMap;

use crate::reader::internal::num::{index, rem};

/// Bits of a chunk.
const BITS: u64 = 1 << 15;
const WORDS: usize = 512;
const _: () = assert!(WORDS as u64 * 64 == BITS);

#[derive(Debug, Default)]
pub(super) struct Usage {
    chunks: HashMap<u64, Box<[u64; WORDS]>>,
}

/// The words that `len` bits from `start` touch: their number in all, and the mask of the bits in each.
fn words(start: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = start.saturating_add(len);
    let mut at = start;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let word = at >> 6;
        let low = at & 63;
        let next = word.saturating_add(1) << 6;
        let high = end.min(next).saturating_sub(word << 6);
        let upto = if high == 64 {
            u64::MAX
        } else {
            (1 << high) - 1
        };
        at = next;
        Some((word, upto & (u64::MAX << low)))
    })
}

impl Usage {
    /// Sets bits; gives the first of them that was set before.
    pub(super) fn claim(&mut self, start: u64, len: u64) -> Option<u64> {
        let mut clash = None;
        for (number, mask) in words(start, len) {
            let chunk = self
                .chunks
                .entry(number / WORDS as u64)
                .or_insert_with(|| Box::new([0; WORDS]));
            let Some(word) = chunk.get_mut(index(rem(number, WORDS as u64))) else {
                continue;
            };
            let before = *word & mask;
            if before != 0 && clash.is_none() {
                clash = Some((number << 6).saturating_add(u64::from(before.trailing_zeros())));
            }
            *word |= mask;
        }
        clash
    }

    fn word(&self, number: u64) -> u64 {
        self.chunks
            .get(&(number / WORDS as u64))
            .and_then(|chunk| chunk.get(index(rem(number, WORDS as u64))))
            .copied()
            .unwrap_or(0)
    }

    /// `len` bits from `start`, a multiple of 8, as they lie in a bitmap. `None`: none is set.
    pub(super) fn bytes(&self, start: u64, len: u64) -> Option<Vec<u8>> {
        let (first, last) = (start / BITS, start.saturating_add(len.max(1) - 1) / BITS);
        if !(first..=last).any(|chunk| self.chunks.contains_key(&chunk)) {
            return None;
        }
        let mut bytes = Vec::with_capacity(index(len.div_ceil(8)));
        let mut any = 0;
        let mut at = start;
        let end = start.saturating_add(len);
        while at < end {
            // Groups may start in the middle of a word.
            let shift = at & 63;
            let low = self.word(at >> 6) >> shift;
            let high = match shift {
                0 => 0,
                shift => self.word((at >> 6).saturating_add(1)) << (64 - shift),
            };
            let mut word = low | high;
            let left = end.saturating_sub(at);
            if left < 64 {
                word &= (1 << left) - 1;
            }
            any |= word;
            let take = index(left.min(64).div_ceil(8));
            bytes.extend(word.to_le_bytes().into_iter().take(take));
            at = at.saturating_add(64);
        }
        (any != 0).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_clash_where_they_overlap() {
        let mut usage = Usage::default();
        assert_eq!(usage.claim(10, 5), None);
        assert_eq!(usage.claim(100, 100_000), None);
        assert_eq!(usage.claim(0, 10), None);
        assert_eq!(usage.claim(15, 85), None);
        assert_eq!(usage.claim(12, 1), Some(12));
        assert_eq!(usage.claim(100_050, 100), Some(100_050));
        assert_eq!(usage.claim(100_150, 1), None);
    }

    #[test]
    fn bytes_are_the_bits_from_there_on() {
        let mut usage = Usage::default();
        for bit in [8, 9, 70, 135, 32_767, 32_768, 200_000] {
            assert_eq!(usage.claim(bit, 1), None);
        }
        for start in (0..40_000).step_by(8) {
            for len in [8, 100, 192] {
                let expected: Vec<u8> = (start..start + len)
                    .collect::<Vec<u64>>()
                    .chunks(8)
                    .map(|bits| {
                        bits.iter().enumerate().fold(0, |byte, (i, bit)| {
                            let set = [8, 9, 70, 135, 32_767, 32_768].contains(bit);
                            byte | (u8::from(set) << i)
                        })
                    })
                    .collect();
                match usage.bytes(start, len) {
                    Some(bytes) => assert_eq!(bytes, expected, "{start}+{len}"),
                    None => assert!(expected.iter().all(|b| *b == 0), "{start}+{len}"),
                }
            }
        }
    }
}
