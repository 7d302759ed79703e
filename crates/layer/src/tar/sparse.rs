//! The maps of sparse files: old GNU (in the header and blocks behind it) and PAX 0.0, 0.1 and 1.0
//! (GNU tar manual, "Storing Sparse Files").

use super::field::{self, BLOCK, Block};
use super::{MAX_SPECIAL, Malformed, Segment, pax};

/// What a sparse file's PAX records say.
#[derive(Debug, Default)]
pub(crate) struct PaxSparse {
    pub(crate) major: Option<Vec<u8>>,
    pub(crate) minor: Option<Vec<u8>>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) size: Option<i64>,
    pub(crate) real_size: Option<i64>,
    pub(crate) blocks: Option<i64>,
    pub(crate) map: Option<Vec<u8>>,
    /// Version 0.0's records, alternately an offset and a length.
    pub(crate) pairs: Vec<i64>,
}

/// Which version the records are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// The map is in the records.
    InHeader,
    /// The map stands before the data.
    InData,
}

impl PaxSparse {
    /// The version, or none: not a sparse file. A version that nobody knows is taken as a plain file, as Go and GNU tar do.
    pub(crate) fn version(&self) -> Option<Version> {
        match (self.major.as_deref(), self.minor.as_deref()) {
            (Some(b"0"), Some(b"0" | b"1")) => Some(Version::InHeader),
            (Some(b"1"), Some(b"0")) => Some(Version::InData),
            (None, None) if self.map.is_some() || !self.pairs.is_empty() => Some(Version::InHeader),
            _ => None,
        }
    }

    /// The map of versions 0.0 and 0.1.
    pub(crate) fn map(&self) -> Result<Vec<Segment>, Malformed> {
        let numbers = match &self.map {
            _ if !self.pairs.is_empty() => self.pairs.clone(),
            Some(map) => map
                .split(|&b| b == b',')
                .map(|n| pax::decimal(n).ok_or(Malformed::Sparse("the map holds no numbers")))
                .collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let (pairs, rest) = numbers.as_chunks::<2>();
        let count = i64::try_from(pairs.len()).unwrap_or(i64::MAX);
        if !rest.is_empty() || self.blocks != Some(count) {
            return Err(Malformed::Sparse(
                "the map has not as many pairs as it should",
            ));
        }
        pairs
            .iter()
            .map(|&[offset, len]| segment(offset, len))
            .collect()
    }
}

fn segment(offset: i64, len: i64) -> Result<Segment, Malformed> {
    match (u64::try_from(offset), u64::try_from(len)) {
        (Ok(offset), Ok(len)) => Ok(Segment { offset, len }),
        _ => Err(Malformed::Sparse("a negative number in the map")),
    }
}

/// Takes the map of version 1.0 from the blocks before the data: decimal numbers, each ended by a newline, the count of pairs first.
#[derive(Debug, Default)]
pub(crate) struct MapInData {
    number: Option<i64>,
    count: Option<i64>,
    offset: Option<i64>,
    pub(crate) segments: Vec<Segment>,
    read: usize,
}

impl MapInData {
    /// Takes a block; true when the map is complete.
    pub(crate) fn take(&mut self, block: &Block) -> Result<bool, Malformed> {
        self.read = self.read.saturating_add(BLOCK);
        if self.read > MAX_SPECIAL {
            return Err(Malformed::TooLong("the sparse map"));
        }
        for &byte in block {
            match byte {
                b'0'..=b'9' => {
                    self.number = Some(
                        self.number
                            .unwrap_or(0)
                            .checked_mul(10)
                            .and_then(|n| n.checked_add(i64::from(byte.wrapping_sub(b'0'))))
                            .ok_or(Malformed::Sparse("a number in the map is too large"))?,
                    );
                }
                b'\n' => {
                    let number = self
                        .number
                        .take()
                        .ok_or(Malformed::Sparse("the map holds no numbers"))?;
                    match (self.count, self.offset.take()) {
                        (None, _) => self.count = Some(number),
                        (_, None) => self.offset = Some(number),
                        (_, Some(offset)) => self.segments.push(segment(offset, number)?),
                    }
                    let have = i64::try_from(self.segments.len()).unwrap_or(i64::MAX);
                    if self.count == Some(have) {
                        return Ok(true);
                    }
                }
                _ => return Err(Malformed::Sparse("the map holds no numbers")),
            }
        }
        Ok(false)
    }
}

/// Adds the pairs of a GNU header (or of a block that continues one).
pub(crate) fn old_gnu(pairs: &[u8], segments: &mut Vec<Segment>) -> Result<(), Malformed> {
    for pair in pairs.chunks_exact(24) {
        let (offset, len) = pair.split_at(12);
        // An empty field ends the list; GNU and BSD tar look at its first byte alone.
        if offset.first() == Some(&0) {
            break;
        }
        match (field::number(offset), field::number(len)) {
            (Some(offset), Some(len)) => segments.push(segment(offset, len)?),
            _ => return Err(Malformed::Sparse("the map holds no numbers")),
        }
    }
    Ok(())
}

/// Holds a map against the file's size and the data stored: in order, inside the file, and neither more nor less than the data.
pub(crate) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), Malformed> {
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for segment in segments {
        if segment.offset < end {
            return Err(Malformed::Sparse("the pieces overlap or are out of order"));
        }
        end = segment
            .offset
            .checked_add(segment.len)
            .filter(|&end| end <= size)
            .ok_or(Malformed::Sparse("a piece lies past the end of the file"))?;
        // No more than `size` in total, since the pieces do not overlap.
        sum = sum.saturating_add(segment.len);
    }
    if sum != stored {
        return Err(Malformed::Sparse("the pieces are not as long as the data"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(offset: u64, len: u64) -> Segment {
        Segment { offset, len }
    }

    #[test]
    fn maps_are_held_against_size_and_data() {
        assert_eq!(check(&[], 10, 0), Ok(()));
        assert_eq!(check(&[s(0, 5), s(5, 5), s(10, 0)], 10, 10), Ok(()));
        for (segments, size, stored) in [
            (&[s(0, 5), s(4, 1)][..], 10, 6),
            (&[s(5, 1), s(0, 1)], 10, 2),
            (&[s(0, 11)], 10, 11),
            (&[s(u64::MAX, 2)], u64::MAX, 2),
            (&[s(0, 5)], 10, 4),
            (&[s(0, 5)], 10, 6),
            (&[], 10, 1),
        ] {
            assert!(check(segments, size, stored).is_err(), "{segments:?}");
        }
    }

    #[test]
    fn map_before_the_data_spans_blocks() {
        let mut text = b"100\n".to_vec();
        for i in 0..100 {
            text.extend_from_slice(format!("{}\n1\n", i * 2).as_bytes());
        }
        let blocks = text.len().div_ceil(BLOCK);
        text.resize(blocks * BLOCK, 0);
        let mut map = MapInData::default();
        let (full, _) = text.as_chunks::<BLOCK>();
        for (i, block) in full.iter().enumerate() {
            assert_eq!(map.take(block), Ok(i + 1 == blocks));
        }
        assert_eq!(map.segments.len(), 100);
        assert_eq!(map.segments[99], s(198, 1));

        let mut block = [b'1'; BLOCK];
        assert!(MapInData::default().take(&block).is_err());
        block[..4].copy_from_slice(b"2\n-1");
        assert!(MapInData::default().take(&block).is_err());
    }
}
