//! Small conversions for numbers that nobody vouches for: nothing here panics or wraps.

/// The little-endian 32-bit integer at `at`. Past the end it is 0: callers check lengths where that would matter.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    chunk(bytes, at).map_or(0, u32::from_le_bytes)
}

/// The little-endian 16-bit integer at `at`; 0 past the end.
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    chunk(bytes, at).map_or(0, u16::from_le_bytes)
}

/// The big-endian 32-bit integer at `at`; 0 past the end.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    chunk(bytes, at).map_or(0, u32::from_be_bytes)
}

/// The big-endian 64-bit integer at `at`; 0 past the end.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    chunk(bytes, at).map_or(0, u64::from_be_bytes)
}

fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// `high` and `low` halves of a 64-bit number.
pub(crate) fn join32(high: u32, low: u32) -> u64 {
    (u64::from(high) << 32) | u64::from(low)
}

/// `high` and `low` halves of a 32-bit number.
pub(crate) fn join16(high: u16, low: u16) -> u32 {
    (u32::from(high) << 16) | u32::from(low)
}

/// A 64-bit number as an index; one that no address space holds becomes the largest, which every bounds check refuses.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A length as a 64-bit number: no address space is larger.
pub(crate) fn len64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// `value / by`; 0 if `by` is 0, which validation rules out.
pub(crate) fn div(value: u64, by: u64) -> u64 {
    value.checked_div(by).unwrap_or(0)
}

/// `value % by`; 0 if `by` is 0, which validation rules out.
pub(crate) fn rem(value: u64, by: u64) -> u64 {
    value.checked_rem(by).unwrap_or(0)
}

/// `bytes[at .. at + len]`, or `None` past the end.
pub(crate) fn slice(bytes: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_past_the_end_are_zero() {
        assert_eq!(le32(&[1, 2, 3], 0), 0);
        assert_eq!(be32(&[0, 1, 2, 3, 4], 1), 0x0102_0304);
        assert_eq!(be64(&[], usize::MAX), 0);
        assert_eq!(slice(&[1, 2], 1, usize::MAX), None);
    }
}
