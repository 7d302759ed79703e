//! Reading dynamic VHDs: those whose blocks take space when they are first written.
//!
//! A copy of the footer at the beginning, a header, a table with a sector number for each block, and blocks, each behind a
//! bitmap of its sectors; the footer at the end. Blocks that the table has no place for are zeros. The bitmaps say which
//! sectors were ever written; sectors that were not are zeros in the block too, so that, like QEMU's `vpc` driver, this reader
//! goes by the table alone.

use std::io;
use std::ops::Range;

use lcow_blockio::ReadAt;
use zerocopy::{FromZeros, IntoBytes};

use super::format::{DYNAMIC_COOKIE, DYNAMIC_VERSION, RawDynamicHeader, SECTOR, UNUSED_BLOCK};
use super::{FOOTER_LEN, VhdError};

/// The smallest block that is taken, in bytes: one whose bitmap has a whole byte.
const MIN_BLOCK_SIZE: u32 = 4096;
/// Entries of the table that are read at once when looking for data.
const CHUNK: u64 = 16 << 10;

/// The disk in a dynamic VHD, for reading.
#[derive(Debug)]
pub struct Dynamic<R> {
    disk: R,
    /// Where the file ends, or its footer begins.
    end: u64,
    size: u64,
    block_size: u32,
    table_offset: u64,
    /// Where the header begins; blocks lie behind it.
    header_offset: u64,
}

impl<R: ReadAt> Dynamic<R> {
    /// Reads the header at `header_offset`, and checks that the table it speaks of is in the first `end` bytes of the file and has
    /// an entry for each block of a disk of `size` bytes.
    pub(super) fn open(disk: R, header_offset: u64, size: u64, end: u64) -> Result<Self, VhdError> {
        let corrupt = |detail: String| VhdError::Corrupt {
            offset: header_offset,
            detail: format!("dynamic header: {detail}"),
        };
        let header_end = header_offset.saturating_add(size_of::<RawDynamicHeader>() as u64);
        if header_offset < FOOTER_LEN || !header_offset.is_multiple_of(SECTOR) || header_end > end {
            return Err(corrupt(format!("at byte {header_offset} of {end}")));
        }
        let mut raw = RawDynamicHeader::new_zeroed();
        disk.read_exact_at(header_offset, raw.as_mut_bytes())
            .map_err(VhdError::reading(header_offset))?;
        if raw.cookie != DYNAMIC_COOKIE {
            return Err(corrupt("the cookie is not \"cxsparse\"".into()));
        }
        if raw.checksum.get() != raw.sum() {
            let (found, right) = (raw.checksum.get(), raw.sum());
            return Err(corrupt(format!(
                "checksum {found:#010x} instead of {right:#010x}"
            )));
        }
        if raw.header_version.get() != DYNAMIC_VERSION {
            let kind = format!("dynamic header version {:#010x}", raw.header_version.get());
            return Err(VhdError::Unsupported { kind });
        }
        let block_size = raw.block_size.get();
        if !block_size.is_power_of_two() || block_size < MIN_BLOCK_SIZE {
            return Err(corrupt(format!("blocks of {block_size} bytes")));
        }
        let table_offset = raw.table_offset.get();
        let entries = u64::from(raw.max_table_entries.get());
        let need = size.div_ceil(u64::from(block_size));
        if entries < need {
            return Err(corrupt(format!(
                "a table of {entries} entries, and the disk needs {need}"
            )));
        }
        let table_end = table_offset.saturating_add(need.saturating_mul(4));
        if table_offset < FOOTER_LEN || table_end > end {
            return Err(corrupt(format!(
                "a table from byte {table_offset} to {table_end}, and the file has {end} before its footer"
            )));
        }
        Ok(Self {
            disk,
            end,
            size,
            block_size,
            table_offset,
            header_offset,
        })
    }

    /// Size of a block, in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    fn blocks(&self) -> u64 {
        self.size.div_ceil(u64::from(self.block_size))
    }

    /// Length of the bitmap before each block, in bytes: a bit for each sector, in whole sectors.
    fn bitmap_len(&self) -> u64 {
        (u64::from(self.block_size) / SECTOR / 8).next_multiple_of(SECTOR)
    }

    /// Entries of the table.
    fn table(&self, first: u64, count: u64) -> Result<Vec<u32>, VhdError> {
        let at = self.table_offset.saturating_add(first.saturating_mul(4));
        let mut bytes = vec![0; usize::try_from(count.saturating_mul(4)).unwrap_or(usize::MAX)];
        self.disk
            .read_exact_at(at, &mut bytes)
            .map_err(VhdError::reading(at))?;
        let entries = bytes.as_chunks::<4>().0;
        Ok(entries.iter().map(|b| u32::from_be_bytes(*b)).collect())
    }

    /// Where a block's data is in the file, by its entry.
    fn place(&self, block: u64, entry: u32) -> Result<Option<u64>, VhdError> {
        if entry == UNUSED_BLOCK {
            return Ok(None);
        }
        let start = u64::from(entry).saturating_mul(SECTOR);
        let data = start.saturating_add(self.bitmap_len());
        let block_size = u64::from(self.block_size);
        let used = block_size.min(self.size.saturating_sub(block.saturating_mul(block_size)));
        let end = data.saturating_add(used);
        let table_end = self
            .table_offset
            .saturating_add(self.blocks().saturating_mul(4));
        let header_end = self
            .header_offset
            .saturating_add(size_of::<RawDynamicHeader>() as u64);
        let detail = if end > self.end {
            "behind the end of the file, or in its footer"
        } else if start < FOOTER_LEN
            || (start < table_end && self.table_offset < end)
            || (start < header_end && self.header_offset < end)
        {
            "in a header or in the table"
        } else {
            return Ok(Some(data));
        };
        Err(VhdError::Corrupt {
            offset: self.table_offset.saturating_add(block.saturating_mul(4)),
            detail: format!("block {block} is at byte {start}, {detail}"),
        })
    }

    /// Checks every entry of the table: blocks must lie in the file and share no byte. Gives the number of blocks that have a
    /// place.
    ///
    /// # Errors
    /// [`VhdError::Corrupt`] for the first block that is in a wrong place; [`VhdError::Io`] if the file can't be read.
    pub fn check(&self) -> Result<u64, VhdError> {
        let mut places = Vec::new();
        let mut first = 0;
        while first < self.blocks() {
            let count = self.blocks().saturating_sub(first).min(CHUNK);
            for (block, entry) in (first..).zip(self.table(first, count)?) {
                places.extend(self.place(block, entry)?.map(|data| (data, block)));
            }
            first = first.saturating_add(count);
        }
        places.sort_unstable();
        let step = self.bitmap_len().saturating_add(u64::from(self.block_size));
        for pair in places.windows(2) {
            let [(one, _), (two, block)] = pair else {
                continue;
            };
            if two.saturating_sub(*one) < step {
                return Err(VhdError::Corrupt {
                    offset: self.table_offset.saturating_add(block.saturating_mul(4)),
                    detail: format!("block {block} shares its place with another"),
                });
            }
        }
        Ok(places.len() as u64)
    }
}

impl<R: ReadAt> ReadAt for Dynamic<R> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let total = left.min(buf.len());
        let block_size = u64::from(self.block_size);
        let mut rest = buf.get_mut(..total).unwrap_or_default();
        let mut at = offset;
        while !rest.is_empty() {
            let (block, within) = (
                at.checked_div(block_size).unwrap_or(0),
                at.checked_rem(block_size).unwrap_or(0),
            );
            let n = usize::try_from(block_size.saturating_sub(within)).unwrap_or(usize::MAX);
            let (here, later) = rest.split_at_mut(n.min(rest.len()));
            let entry = self
                .table(block, 1)?
                .first()
                .copied()
                .unwrap_or(UNUSED_BLOCK);
            match self.place(block, entry)? {
                Some(data) => self.disk.read_exact_at(data.saturating_add(within), here)?,
                None => here.fill(0),
            }
            at = at.saturating_add(here.len() as u64);
            rest = later;
        }
        Ok(total)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let block_size = u64::from(self.block_size);
        let mut first = offset.checked_div(block_size).unwrap_or(0);
        while first < self.blocks() {
            let count = self.blocks().saturating_sub(first).min(CHUNK);
            for (block, entry) in (first..).zip(self.table(first, count)?) {
                let Some(data) = self.place(block, entry)? else {
                    continue;
                };
                let begin = block.saturating_mul(block_size);
                let end = begin.saturating_add(block_size).min(self.size);
                let start = begin.max(offset);
                let from = data.saturating_add(start.saturating_sub(begin));
                let to = data.saturating_add(end.saturating_sub(begin));
                if let Some(found) = self.disk.next_data(from)?
                    && found.start < to
                {
                    let on_disk = |at: u64| begin.saturating_add(at.saturating_sub(data));
                    return Ok(Some(on_disk(found.start)..on_disk(found.end.min(to))));
                }
            }
            first = first.saturating_add(count);
        }
        Ok(None)
    }
}
