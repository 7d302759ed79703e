use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{ReadAt, WriteAt};

/// Bytes that come and go together.
const CHUNK: u64 = 1 << 16;

/// A disk in memory, for tests and for small images. Sparse: what was never written takes no memory, so a blank disk of
/// terabytes is fine.
#[derive(Debug, Default)]
pub struct MemDisk(RwLock<Contents>);

#[derive(Debug, Default)]
struct Contents {
    len: u64,
    /// By number; one that is not there reads as zeros.
    chunks: BTreeMap<u64, Box<[u8]>>,
}

impl MemDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk's bytes, all in one piece.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        let contents = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0; usize::try_from(contents.len).unwrap_or(usize::MAX)];
        contents.read(0, &mut bytes);
        bytes
    }

    /// Bytes of memory that the disk's contents take.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.contents().chunks.len() as u64 * CHUNK
    }

    /// A copy of the disk as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let contents = self.contents();
        Self(RwLock::new(Contents {
            len: contents.len,
            chunks: contents.chunks.clone(),
        }))
    }

    fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn contents_mut(&self) -> RwLockWriteGuard<'_, Contents> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Vec<u8>> for MemDisk {
    fn from(bytes: Vec<u8>) -> Self {
        let mut contents = Contents::default();
        contents.write(0, &bytes);
        contents.len = bytes.len() as u64;
        Self(RwLock::new(contents))
    }
}

/// The pieces of `offset .. offset + len` by chunk: its number, the range in it, and the range in the caller's buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        // Both fit: the first is below CHUNK, the second at most `len`.
        let start = (at % CHUNK) as usize;
        let n = (CHUNK as usize - start).min(len - done);
        let piece = (at / CHUNK, start..start + n, done..done + n);
        done += n;
        (n > 0).then_some(piece)
    })
}

impl Contents {
    /// Fills `buf`, which must lie before the end.
    fn read(&self, offset: u64, buf: &mut [u8]) {
        for (chunk, inside, place) in pieces(offset, buf.len()) {
            match self.chunks.get(&chunk) {
                Some(bytes) => buf[place].copy_from_slice(&bytes[inside]),
                None => buf[place].fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, buf: &[u8]) {
        for (chunk, inside, place) in pieces(offset, buf.len()) {
            let bytes = self
                .chunks
                .entry(chunk)
                .or_insert_with(|| vec![0; CHUNK as usize].into());
            bytes[inside].copy_from_slice(&buf[place]);
        }
    }

    fn zero(&mut self, start: u64, end: u64) {
        let touched: Vec<u64> = self
            .chunks
            .range(start / CHUNK..end.div_ceil(CHUNK))
            .map(|(&n, _)| n)
            .collect();
        for chunk in touched {
            let from = start.saturating_sub(chunk * CHUNK).min(CHUNK) as usize;
            let to = (end - chunk * CHUNK).min(CHUNK) as usize;
            if to - from == CHUNK as usize {
                self.chunks.remove(&chunk);
            } else if let Some(bytes) = self.chunks.get_mut(&chunk) {
                bytes[from..to].fill(0);
            }
        }
    }
}

impl ReadAt for MemDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.contents().len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let contents = self.contents();
        let left = usize::try_from(contents.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let n = left.min(buf.len());
        contents.read(offset, &mut buf[..n]);
        Ok(n)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let contents = self.contents();
        let mut found: Option<Range<u64>> = None;
        for &chunk in contents.chunks.range(offset / CHUNK..).map(|(n, _)| n) {
            let (start, end) = (chunk * CHUNK, (chunk + 1) * CHUNK);
            match &mut found {
                None => found = Some(start.max(offset)..end),
                Some(range) if range.end == start => range.end = end,
                Some(_) => break,
            }
        }
        Ok(found
            .map(|range| range.start..range.end.min(contents.len))
            .filter(|range| !range.is_empty()))
    }
}

impl WriteAt for MemDisk {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let end = offset
            .checked_add(buf.len() as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let mut contents = self.contents_mut();
        contents.write(offset, buf);
        contents.len = contents.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut contents = self.contents_mut();
        if len < contents.len {
            let old = contents.len;
            contents.zero(len, old);
        }
        contents.len = len;
        Ok(())
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut contents = self.contents_mut();
        let end = offset.saturating_add(len).min(contents.len);
        if offset < end {
            contents.zero(offset, end);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
