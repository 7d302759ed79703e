use std::io;
use std::ops::Range;

use crate::{ReadAt, WriteAt};

/// `len` bytes of another disk, from `start` on: a partition, or the disk inside a VHD.
///
/// Reads and writes can't leave the range; the range itself can't be resized.
#[derive(Debug, Clone)]
pub struct SubRange<D> {
    inner: D,
    start: u64,
    len: u64,
}

impl<D> SubRange<D> {
    /// The range `start .. start + len` of `inner`, in bytes. A range past the inner disk's end reads short there.
    pub fn new(inner: D, start: u64, len: u64) -> Self {
        Self {
            inner,
            start,
            len: len.min(u64::MAX - start),
        }
    }

    /// The whole disk that this is a range of.
    pub fn into_inner(self) -> D {
        self.inner
    }
}

impl<D: ReadAt> ReadAt for SubRange<D> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.len.saturating_sub(offset);
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        if n == 0 {
            return Ok(0);
        }
        self.inner.read_at(self.start + offset, &mut buf[..n])
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        if offset >= self.len {
            return Ok(None);
        }
        let data = self.inner.next_data(self.start + offset)?;
        let end = self.start + self.len;
        Ok(data
            .filter(|data| data.start < end)
            .map(|data| data.start - self.start..data.end.min(end) - self.start))
    }
}

impl<D: WriteAt> WriteAt for SubRange<D> {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let fits = u64::try_from(buf.len())
            .ok()
            .and_then(|len| offset.checked_add(len))
            .is_some_and(|end| end <= self.len);
        if !fits {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "a write past the end of the range",
            ));
        }
        self.inner.write_all_at(self.start + offset, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len == self.len {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a range of a disk can't be resized",
            ))
        }
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let offset = offset.min(self.len);
        self.inner
            .zero_range(self.start + offset, len.min(self.len - offset))
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn expect(&self, offset: u64, len: u64) {
        let len = len.min(self.len.saturating_sub(offset));
        self.inner.expect(self.start.saturating_add(offset), len);
    }
}
