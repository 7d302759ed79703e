//! Which MiB of the file are taken.

use super::bat::Mib;
use super::format::MIB;
use super::header::Extent;

/// A bit for each MiB of the file; at most 16 MiB of memory, since files are at most 128 TiB long.
#[derive(Debug, Default)]
pub(super) struct Space {
    taken: Vec<u64>,
    /// The MiB from which on nothing is taken: the end of the file, or of the last block if that reaches further.
    end: u64,
    /// No run of free MiB long enough for a block begins before this one.
    search_from: u64,
}

fn mibs(place: Extent) -> std::ops::Range<u64> {
    place.start / MIB..place.end().div_ceil(MIB)
}

impl Space {
    /// A file of so many bytes with nothing in it.
    pub(super) fn new(file_len: u64) -> Self {
        let mut this = Self::default();
        this.extend(file_len.div_ceil(MIB));
        this
    }

    fn extend(&mut self, end: u64) {
        self.end = self.end.max(end);
        let words = usize::try_from(self.end.div_ceil(64)).unwrap_or(usize::MAX);
        if words > self.taken.len() {
            self.taken.resize(words, 0);
        }
    }

    fn word(&mut self, mib: u64) -> Option<(&mut u64, u64)> {
        let word = self.taken.get_mut(usize::try_from(mib / 64).ok()?)?;
        Some((word, 1 << (mib % 64)))
    }

    fn is_taken(&self, mib: u64) -> bool {
        usize::try_from(mib / 64)
            .ok()
            .and_then(|n| self.taken.get(n))
            .is_some_and(|word| word & (1 << (mib % 64)) != 0)
    }

    /// Takes a place. `false`: a part of it was taken already.
    pub(super) fn take(&mut self, place: Extent) -> bool {
        let mut fresh = true;
        self.extend(mibs(place).end);
        for mib in mibs(place) {
            if let Some((word, bit)) = self.word(mib) {
                fresh &= *word & bit == 0;
                *word |= bit;
            }
        }
        fresh
    }

    /// Gives a place back.
    pub(super) fn free(&mut self, place: Extent) {
        for mib in mibs(place) {
            if let Some((word, bit)) = self.word(mib) {
                *word &= !bit;
            }
        }
        self.search_from = self.search_from.min(mibs(place).start);
    }

    /// Takes a place of so many bytes that is free within the file, for a block.
    pub(super) fn reuse(&mut self, len: u64) -> Option<Mib> {
        let need = len.div_ceil(MIB);
        let mut run = 0;
        let mut mib = self.search_from;
        while mib < self.end {
            if mib.is_multiple_of(64)
                && usize::try_from(mib / 64).is_ok_and(|n| self.taken.get(n) == Some(&u64::MAX))
            {
                run = 0;
                mib = mib.saturating_add(64);
                continue;
            }
            mib = mib.saturating_add(1);
            run = match self.is_taken(mib.saturating_sub(1)) {
                true => 0,
                false => u64::saturating_add(run, 1),
            };
            if run == need {
                let start = mib.saturating_sub(need);
                self.take(Extent {
                    start: start.saturating_mul(MIB),
                    len,
                });
                self.search_from = mib;
                return Some(Mib(start));
            }
        }
        self.search_from = self.end.saturating_sub(run);
        None
    }

    /// Takes a place of so many bytes behind everything; the file must then be made longer.
    pub(super) fn append(&mut self, len: u64) -> Mib {
        let start = self.end;
        self.take(Extent {
            start: start.saturating_mul(MIB),
            len,
        });
        Mib(start)
    }

    /// MiB of the file that nothing uses.
    pub(super) fn unused(&self) -> u64 {
        let taken: u64 = self
            .taken
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum();
        self.end.saturating_sub(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_used_again() {
        let place = |start: u64, len: u64| Extent {
            start: start * MIB,
            len: len * MIB,
        };
        let mut space = Space::new(200 * MIB);
        assert!(space.take(place(0, 100)));
        assert!(!space.take(place(99, 2)));
        assert!(space.take(place(103, 97)));
        assert_eq!(space.unused(), 2);
        assert_eq!(space.reuse(3 * MIB), None);
        assert_eq!(space.append(3 * MIB), Mib(200));
        space.free(place(62, 4));
        assert_eq!(space.reuse(3 * MIB), Some(Mib(62)));
        assert_eq!(space.reuse(3 * MIB), None);
        space.free(place(200, 3));
        assert_eq!(space.reuse(3 * MIB), Some(Mib(200)));
    }
}
