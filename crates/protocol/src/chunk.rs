//! Bulk bytes on a stream of their own: standard input and output, and later archives.
//!
//! A chunk is a little-endian `u32` length and that many bytes; a chunk of length zero is the end. A stream that ends without
//! it was cut: its peer died, or gave up. Without the mark, yamux would make the two look the same.

/// Bytes of a chunk's header.
pub const CHUNK_HEADER: usize = 4;
/// Most bytes in a chunk.
pub const MAX_CHUNK: usize = 64 * 1024;
/// The end of the bytes.
pub const END: [u8; CHUNK_HEADER] = [0; CHUNK_HEADER];

/// A length over [`MAX_CHUNK`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a chunk of {len} bytes is over the limit of {MAX_CHUNK}")]
pub struct ChunkTooLong {
    /// The length announced or asked for, in bytes.
    pub len: u64,
}

/// The header of a chunk of `len` bytes.
///
/// # Errors
/// If `len` is over [`MAX_CHUNK`].
pub fn header(len: usize) -> Result<[u8; CHUNK_HEADER], ChunkTooLong> {
    match u32::try_from(len) {
        Ok(short) if len <= MAX_CHUNK => Ok(short.to_le_bytes()),
        _ => Err(ChunkTooLong {
            len: u64::try_from(len).unwrap_or(u64::MAX),
        }),
    }
}

/// The length that `header` announces; zero is the end.
///
/// # Errors
/// If it is over [`MAX_CHUNK`].
pub fn len(header: [u8; CHUNK_HEADER]) -> Result<usize, ChunkTooLong> {
    let len = u32::from_le_bytes(header);
    match usize::try_from(len) {
        Ok(short) if short <= MAX_CHUNK => Ok(short),
        _ => Err(ChunkTooLong {
            len: u64::from(len),
        }),
    }
}
