//! Storage that grows by pieces: no doubling, so no peak of one and a half times what is kept.

/// Records per piece.
const PIECE: usize = 4096;
/// Bytes per piece of an [`Arena`].
const ARENA_PIECE: usize = 1 << 18;

/// A list whose records never move.
#[derive(Debug)]
pub(super) struct Segmented<T> {
    pieces: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Segmented<T> {
    fn default() -> Self {
        Self {
            pieces: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Segmented<T> {
    /// Adds a record and returns its index.
    pub(super) fn push(&mut self, value: T) -> u32 {
        let index = self.len;
        if index.is_multiple_of(PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        if let Some(piece) = self.pieces.last_mut() {
            piece.push(value);
        }
        self.len += 1;
        u32::try_from(index).expect("records are bounded by inode numbers, which have 32 bits")
    }

    pub(super) fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        self.pieces.get(index / PIECE)?.get(index % PIECE)
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let index = index as usize;
        self.pieces.get_mut(index / PIECE)?.get_mut(index % PIECE)
    }

    /// How many records there are.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.len).expect("as in `push`")
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten()
    }
}

/// For indexes that come from the list itself.
impl<T> std::ops::Index<u32> for Segmented<T> {
    type Output = T;
    fn index(&self, index: u32) -> &T {
        let index = index as usize;
        &self.pieces[index / PIECE][index % PIECE]
    }
}

impl<T> std::ops::IndexMut<u32> for Segmented<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        let index = index as usize;
        &mut self.pieces[index / PIECE][index % PIECE]
    }
}

/// Where bytes lie in an [`Arena`]: 40 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArenaRef {
    low: u32,
    high: u8,
}

/// Bytes of many owners, kept until the end.
#[derive(Debug, Default)]
pub(super) struct Arena {
    pieces: Vec<Vec<u8>>,
}

impl Arena {
    /// Keeps up to [`ARENA_PIECE`] bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> ArenaRef {
        let fits = |piece: &&mut Vec<u8>| piece.capacity() - piece.len() >= bytes.len();
        if self.pieces.last_mut().as_ref().is_none_or(|p| !fits(p)) {
            self.pieces.push(Vec::with_capacity(ARENA_PIECE));
        }
        let number = self.pieces.len() - 1;
        let piece = &mut self.pieces[number];
        let at = number as u64 * ARENA_PIECE as u64 + piece.len() as u64;
        piece.extend_from_slice(bytes);
        let [b0, b1, b2, b3, high, ..] = at.to_le_bytes();
        ArenaRef {
            low: u32::from_le_bytes([b0, b1, b2, b3]),
            high,
        }
    }

    pub(super) fn get(&self, at: ArenaRef, len: usize) -> &[u8] {
        let piece =
            (at.low as usize) / ARENA_PIECE + (at.high as usize) * ((1 << 32) / ARENA_PIECE);
        let start = (at.low as usize) % ARENA_PIECE;
        &self.pieces[piece][start..start + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_in_comes_out() {
        let mut list = Segmented::default();
        let mut arena = Arena::default();
        let text = |i: u32| i.to_string().repeat(1 + i as usize % 80).into_bytes();
        let places: Vec<_> = (0..20_000)
            .map(|i| {
                assert_eq!(list.push(i), i);
                arena.push(&text(i))
            })
            .collect();
        for (i, place) in (0..).zip(places) {
            assert_eq!(list[i], i);
            assert_eq!(arena.get(place, text(i).len()), text(i));
        }
        assert_eq!(list.get(20_000), None);
        assert!(list.iter().copied().eq(0..20_000));
    }
}
