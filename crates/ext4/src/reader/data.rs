//! The content of files.

use std::fmt;
use std::ops::Range;

use lcow_blockio::ReadAt;

use super::map::{Content, Extent, FileMap};
use super::num::{index, len64};
use super::{Filesystem, Inode, ReadError};

impl<R: ReadAt> Filesystem<R> {
    /// Reads up to `buf.len()` bytes at `offset` of a regular file; fewer only at its end. Holes and unwritten blocks are zeros.
    ///
    /// This maps the file anew each time: for more than one read use [`Filesystem::open_file`].
    ///
    /// # Errors
    /// As [`Filesystem::map_file`], and what the disk says.
    pub fn read_at(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        let map = self.map_file(inode)?;
        self.read_mapped(&map, offset, buf)
    }

    /// Opens a regular file for reading: its map is read (and checked) once.
    ///
    /// # Errors
    /// As [`Filesystem::map_file`].
    pub fn open_file(&self, inode: &Inode) -> Result<FileData<'_, R>, ReadError> {
        Ok(FileData {
            fs: self,
            map: self.map_file(inode)?,
        })
    }

    /// Reads of a mapped file as [`Filesystem::read_at`] does.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read_mapped(
        &self,
        map: &FileMap,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize, ReadError> {
        let left = index(map.size.saturating_sub(offset));
        let len = left.min(buf.len());
        let Some(mut rest) = buf.get_mut(..len) else {
            return Ok(0);
        };
        let extents = match &map.content {
            Content::Inline(data) => {
                let data = data.get(index(offset)..).unwrap_or_default();
                for (at, to) in rest.iter_mut().enumerate() {
                    *to = data.get(at).copied().unwrap_or(0);
                }
                return Ok(len);
            }
            Content::Extents(extents) => extents,
        };
        let block_size = self.superblock.block_size;
        let mut at = offset;
        let mut number = extents.partition_point(|e| self.byte_range(e).end <= offset);
        while !rest.is_empty() {
            let wanted = len64(rest.len());
            let next = extents.get(number);
            let (zeros, data) = match next {
                None => (wanted, 0),
                Some(extent) => {
                    let range = self.byte_range(extent);
                    let zeros = range.start.saturating_sub(at).min(wanted);
                    let start = range.start.max(at);
                    let data = range
                        .end
                        .saturating_sub(start)
                        .min(wanted.saturating_sub(zeros));
                    (zeros, data)
                }
            };
            let (gap, after) = rest.split_at_mut(index(zeros).min(rest.len()));
            gap.fill(0);
            at = at.saturating_add(zeros);
            let (part, after) = after.split_at_mut(index(data).min(after.len()));
            if let Some(extent) = next
                && !part.is_empty()
            {
                if extent.written {
                    let inside = at.saturating_sub(extent.logical.saturating_mul(block_size));
                    let place = extent
                        .physical
                        .saturating_mul(block_size)
                        .saturating_add(inside);
                    self.source.read("read file data", place, part)?;
                } else {
                    part.fill(0);
                }
            }
            at = at.saturating_add(data);
            rest = after;
            number = number.saturating_add(1);
        }
        Ok(len)
    }

    /// The bytes of a file that an extent covers.
    fn byte_range(&self, extent: &Extent) -> Range<u64> {
        let block_size = self.superblock.block_size;
        extent.logical.saturating_mul(block_size)..extent.end().saturating_mul(block_size)
    }

    /// The first range of data at or after `offset` of a mapped file, as `SEEK_DATA` and `SEEK_HOLE` would find it: everything
    /// outside such ranges reads as zeros. `None`: no data comes any more.
    #[must_use]
    pub fn next_data(&self, map: &FileMap, offset: u64) -> Option<Range<u64>> {
        if offset >= map.size {
            return None;
        }
        let extents = match &map.content {
            Content::Inline(data) => {
                let end = map.size.min(len64(data.len()));
                return (offset < end).then_some(offset..end);
            }
            Content::Extents(extents) => extents,
        };
        let from = extents.partition_point(|e| self.byte_range(e).end <= offset);
        let mut range: Option<Range<u64>> = None;
        for extent in extents.iter().skip(from).filter(|e| e.written) {
            let next = self.byte_range(extent);
            match &mut range {
                None => range = Some(next.start.max(offset)..next.end),
                Some(range) if range.end == next.start => range.end = next.end,
                Some(_) => break,
            }
        }
        range
            .map(|r| r.start..r.end.min(map.size))
            .filter(|r| !r.is_empty())
    }
}

/// An open regular file.
pub struct FileData<'a, R> {
    fs: &'a Filesystem<R>,
    map: FileMap,
}

impl<R: ReadAt> FileData<'_, R> {
    /// The file's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.map.size
    }

    /// Where its blocks lie.
    #[must_use]
    pub fn map(&self) -> &FileMap {
        &self.map
    }

    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end. Holes and unwritten blocks are zeros.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        self.fs.read_mapped(&self.map, offset, buf)
    }

    /// The first range of data at or after `offset`; see [`Filesystem::next_data`].
    #[must_use]
    pub fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        self.fs.next_data(&self.map, offset)
    }

    /// How many of the file's blocks hold data.
    #[must_use]
    pub fn data_blocks(&self) -> u64 {
        let blocks = self.map.size.div_ceil(self.fs.superblock.block_size);
        self.map
            .extents()
            .iter()
            .filter(|e| e.written)
            .map(|e| e.end().min(blocks).saturating_sub(e.logical))
            .sum()
    }
}

impl<R> fmt::Debug for FileData<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileData")
            .field("map", &self.map)
            .finish_non_exhaustive()
    }
}
