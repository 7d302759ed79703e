//! The image's bytes as the journal leaves them, and a small cache of its metadata.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use lcow_blockio::ReadAt;

use super::ReadError;
use super::num::{div, index, len64, rem};
use crate::format::journal::JOURNAL_MAGIC;

/// Metadata is read in pieces of this many bytes (or one block, if that is more): an inode table piece holds 64 inodes.
const PIECE: u64 = 16 << 10;
/// Pieces kept. With [`PIECE`] bytes each this is the cache's size: 4 MiB, 16 MiB for 64 KiB blocks.
const SLOTS: usize = 256;

/// Where the journal keeps the newest version of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogBlock {
    /// Byte offset of the copy on the disk.
    pub(crate) offset: u64,
    /// Whether the copy's first four bytes stand for the journal's magic number.
    pub(crate) escaped: bool,
}

/// A piece kept, and its number.
type Slot = Option<(u64, Arc<[u8]>)>;

/// A disk, with blocks of the journal laid over it.
pub(crate) struct Source<R> {
    disk: R,
    size: u64,
    block_size: u64,
    overlay: BTreeMap<u64, LogBlock>,
    piece: u64,
    cache: Mutex<Vec<Slot>>,
}

/// Some bytes of a cached piece.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    piece: Arc<[u8]>,
    range: Range<usize>,
}

impl std::ops::Deref for Meta {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.piece.get(self.range.clone()).unwrap_or_default()
    }
}

impl<R: ReadAt> Source<R> {
    pub(crate) fn new(disk: R) -> Result<Self, ReadError> {
        let size = disk.size().map_err(|source| ReadError::Io {
            operation: "ask the disk's size",
            offset: 0,
            source,
        })?;
        Ok(Self {
            disk,
            size,
            block_size: 1024,
            overlay: BTreeMap::new(),
            piece: PIECE,
            cache: Mutex::new(Vec::new()),
        })
    }

    /// Sets the block size in bytes, a power of two.
    pub(crate) fn configure(&mut self, block_size: u64) {
        self.block_size = block_size.max(1);
        self.piece = PIECE.max(block_size);
        self.cache = Mutex::new(Vec::new());
    }

    /// Lays replayed blocks over the disk.
    pub(crate) fn overlay(&mut self, blocks: BTreeMap<u64, LogBlock>) {
        self.overlay = blocks;
        self.cache = Mutex::new(Vec::new());
    }

    /// The disk's size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn disk(&self) -> &R {
        &self.disk
    }

    /// Fills `buf` from `offset` of the image.
    pub(crate) fn read(
        &self,
        operation: &'static str,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        self.read_disk(operation, offset, buf)?;
        if self.overlay.is_empty() || buf.is_empty() {
            return Ok(());
        }
        let end = offset.saturating_add(len64(buf.len()));
        let first = div(offset, self.block_size);
        let last = div(end.saturating_sub(1), self.block_size);
        for (&block, log) in self.overlay.range(first..=last) {
            let start = block.saturating_mul(self.block_size);
            // The part of this block that the caller wants, in bytes of the image.
            let from = start.max(offset);
            let to = start.saturating_add(self.block_size).min(end);
            let (Some(skip), Some(at)) = (from.checked_sub(start), from.checked_sub(offset)) else {
                continue;
            };
            let wanted = index(at)..index(to.saturating_sub(offset));
            let Some(part) = buf.get_mut(wanted) else {
                continue;
            };
            self.read_disk(operation, log.offset.saturating_add(skip), part)?;
            if log.escaped {
                let magic = JOURNAL_MAGIC.to_be_bytes();
                for (byte, true_byte) in part.iter_mut().zip(magic.iter().skip(index(skip))) {
                    *byte = *true_byte;
                }
            }
        }
        Ok(())
    }

    fn read_disk(
        &self,
        operation: &'static str,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        self.disk
            .read_exact_at(offset, buf)
            .map_err(|source| ReadError::Io {
                operation,
                offset,
                source,
            })
    }

    /// `len` bytes of metadata at `offset`, through the cache. They must not cross a block's end; `len` ≤ the block size.
    pub(crate) fn meta(
        &self,
        operation: &'static str,
        offset: u64,
        len: u64,
    ) -> Result<Meta, ReadError> {
        let number = div(offset, self.piece);
        let start = number.saturating_mul(self.piece);
        let from = index(offset.saturating_sub(start));
        let range = from..from.saturating_add(index(len));
        let slot = index(rem(number, len64(SLOTS)));
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(Some((key, piece))) = cache.get(slot)
                && *key == number
                && range.end <= piece.len()
            {
                return Ok(Meta {
                    piece: Arc::clone(piece),
                    range,
                });
            }
        }
        let present = self.size.saturating_sub(start).min(self.piece);
        let mut bytes = vec![0; index(present)];
        if range.end > bytes.len() {
            // Let the disk say what it makes of a read past its end.
            bytes.resize(range.end, 0);
        }
        self.read(operation, start, &mut bytes)?;
        let piece: Arc<[u8]> = bytes.into();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.is_empty() {
            cache.resize(SLOTS, None);
        }
        if let Some(entry) = cache.get_mut(slot) {
            *entry = Some((number, Arc::clone(&piece)));
        }
        Ok(Meta { piece, range })
    }
}
