use std::io;
use std::sync::{PoisonError, RwLock};

use crate::{ReadAt, WriteAt};

/// A disk in memory, for tests and for small images.
#[derive(Debug, Default)]
pub struct MemDisk(RwLock<Vec<u8>>);

impl MemDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk's bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Vec<u8>> for MemDisk {
    fn from(bytes: Vec<u8>) -> Self {
        Self(RwLock::new(bytes))
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
}

fn end(offset: u64, len: usize) -> io::Result<(usize, usize)> {
    let start = position(offset)?;
    let end = start.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
    Ok((start, end))
}

impl ReadAt for MemDisk {
    fn size(&self) -> io::Result<u64> {
        let bytes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        u64::try_from(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge.into())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Ok(start) = usize::try_from(offset) else {
            return Ok(0);
        };
        let Some(rest) = bytes.get(start..) else {
            return Ok(0);
        };
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

impl WriteAt for MemDisk {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let (start, end) = end(offset, buf.len())?;
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(buf);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = position(len)?;
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .resize(len, 0);
        Ok(())
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let start = position(offset)?.min(bytes.len());
        let end = position(offset.saturating_add(len))?.min(bytes.len());
        bytes[start..end].fill(0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
