//! Which clusters are in use: bits in chunks that exist only where one is set, so that an empty disk costs nothing. A chunk
//! is a list of runs as long as that is shorter than its bits: a claim costs what it takes to write down, however many bits
//! it sets.

// Places within words and chunks are below 64 and 2^15 by construction; what comes from a disk is only added, saturating.
#![allow(clippy::arithmetic_side_effects)]

use std::collections::HashMap;

use crate::reader::internal::num::{index, rem};

/// Bits of a chunk.
const BITS: u64 = 1 << 15;
const WORDS: usize = 512;
const _: () = assert!(WORDS as u64 * 64 == BITS);
/// As many runs take a quarter of the memory of the bits.
const MAX_RUNS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Usage {
    chunks: HashMap<u64, Chunk>,
}

#[derive(Debug)]
enum Chunk {
    /// First and last bits of runs, in order, with a gap between any two.
    Runs(Vec<(u16, u16)>),
    Bits(Box<[u64; WORDS]>),
}

/// The mask of the bits from `first` to `last` that are in the word `number`.
fn mask(number: usize, first: u16, last: u16) -> u64 {
    let base = number << 6;
    let low = usize::from(first).saturating_sub(base);
    let high = usize::from(last).saturating_sub(base).min(63);
    if low > 63 || usize::from(last) < base {
        return 0;
    }
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

fn set(words: &mut [u64; WORDS], first: u16, last: u16) -> Option<u16> {
    let mut clash = None;
    let range = usize::from(first >> 6)..=usize::from(last >> 6);
    for (number, word) in words
        .iter_mut()
        .enumerate()
        .take(range.end() + 1)
        .skip(*range.start())
    {
        let mask = mask(number, first, last);
        let before = *word & mask;
        if before != 0 && clash.is_none() {
            let bit = (number << 6) + before.trailing_zeros() as usize;
            clash = u16::try_from(bit).ok();
        }
        *word |= mask;
    }
    clash
}

impl Chunk {
    /// Sets the bits from `first` to `last`; gives the first of them that was set before.
    fn claim(&mut self, first: u16, last: u16) -> Option<u16> {
        let runs = match self {
            Self::Bits(words) => return set(words, first, last),
            Self::Runs(runs) => runs,
        };
        // The runs that the new one touches, at its ends too, become one with it.
        let from = runs.partition_point(|run| run.1 < first && first - run.1 > 1);
        let to = runs.partition_point(|run| run.0 <= last || run.0 - last == 1);
        let touched = runs.get(from..to).unwrap_or_default();
        let clash = touched
            .iter()
            .find(|run| run.1 >= first && run.0 <= last)
            .map(|run| run.0.max(first));
        let whole = touched.iter().fold((first, last), |all, run| {
            (all.0.min(run.0), all.1.max(run.1))
        });
        runs.splice(from..to, [whole]);
        if runs.len() > MAX_RUNS {
            let mut words = Box::new([0; WORDS]);
            for (first, last) in runs {
                set(&mut words, *first, *last);
            }
            *self = Self::Bits(words);
        }
        clash
    }

    fn word(&self, number: usize) -> u64 {
        match self {
            Self::Bits(words) => words.get(number).copied().unwrap_or(0),
            Self::Runs(runs) => {
                let base = number << 6;
                let from = runs.partition_point(|run| usize::from(run.1) < base);
                runs.iter()
                    .skip(from)
                    .take_while(|run| usize::from(run.0) < base + 64)
                    .fold(0, |word, run| word | mask(number, run.0, run.1))
            }
        }
    }
}

impl Usage {
    /// Sets bits; gives the first of them that was set before.
    pub(super) fn claim(&mut self, start: u64, len: u64) -> Option<u64> {
        let mut clash = None;
        let end = start.saturating_add(len);
        let mut at = start;
        while at < end {
            let number = at / BITS;
            let base = number * BITS;
            let last = end.min(base.saturating_add(BITS)) - 1;
            let chunk = self
                .chunks
                .entry(number)
                .or_insert_with(|| Chunk::Runs(Vec::new()));
            // Both are below 2^15.
            let place = |bit: u64| u16::try_from(bit - base).unwrap_or(u16::MAX);
            if let Some(bit) = chunk.claim(place(at), place(last)) {
                clash = clash.or(Some(base + u64::from(bit)));
            }
            at = last + 1;
        }
        clash
    }

    fn word(&self, number: u64) -> u64 {
        self.chunks
            .get(&(number / WORDS as u64))
            .map_or(0, |chunk| chunk.word(index(rem(number, WORDS as u64))))
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
    fn runs_and_bits_say_the_same() {
        let mut usage = Usage::default();
        let mut plain = vec![false; 70_000];
        let mut state = 1_u64;
        for round in 0..3_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let start = (state >> 33) % 69_000;
            // Long ones early, while chunks are runs; short ones until they are bits.
            let len = if round % 50 == 0 {
                900
            } else {
                1 + (state >> 20) % 3
            };
            let range = index(start)..index(start + len);
            let clash = range.clone().find(|bit| plain[*bit]);
            assert_eq!(
                usage.claim(start, len),
                clash.map(|bit| bit as u64),
                "{start}+{len}"
            );
            plain[range].fill(true);
        }
        let bits = |words: &[bool]| {
            words
                .chunks(8)
                .map(|bits| bits.iter().rev().fold(0, |b, bit| b << 1 | u8::from(*bit)))
                .collect::<Vec<_>>()
        };
        assert_eq!(usage.bytes(0, 70_000).unwrap(), bits(&plain));
        assert!(usage.chunks.values().any(|c| matches!(c, Chunk::Bits(_))));
    }

    #[test]
    fn a_long_claim_costs_little() {
        let mut usage = Usage::default();
        assert_eq!(usage.claim(5, 1 << 30), None);
        let runs = |chunk: &Chunk| matches!(chunk, Chunk::Runs(runs) if runs.len() == 1);
        assert!(usage.chunks.values().all(runs));
        assert_eq!(usage.claim(0, 6), Some(5));
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
