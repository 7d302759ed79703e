//! The log's changes: made in memory for reading, on the disk before writing.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use lcow_blockio::{ReadAt, WriteAt};

use super::error::{Structure, VhdxError};
use super::format::{Guid, LOG_SECTOR};
use super::header::Header;
use super::log::{Change, LoggedSector, Replay};

/// A file as it is once its log is replayed, without changing it.
///
/// Takes about 64 bytes of memory for each sector in the log; the sectors stay where they are.
#[derive(Debug)]
pub(super) struct Replayed<R> {
    inner: R,
    inner_len: u64,
    len: u64,
    /// By first byte: the end, and what is there.
    ranges: BTreeMap<u64, (u64, Source)>,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Zeros,
    Log(LoggedSector),
}

impl<R: ReadAt> Replayed<R> {
    pub(super) fn new(inner: R, inner_len: u64, replay: &Replay) -> Self {
        let mut this = Self {
            inner,
            inner_len,
            len: inner_len.max(replay.file_len),
            ranges: BTreeMap::new(),
        };
        for change in &replay.changes {
            match *change {
                Change::Data(sector, target) => {
                    this.put(target, LOG_SECTOR, Source::Log(sector));
                }
                Change::Zero { target, len } => this.put(target, len, Source::Zeros),
            }
        }
        this
    }

    /// What was there before gives way. Only ranges of zeros can be cut: all others are one sector long.
    fn put(&mut self, start: u64, len: u64, source: Source) {
        let end = start.saturating_add(len);
        if start == end {
            return;
        }
        if let Some((&first, &(first_end, old))) = self.ranges.range(..start).next_back()
            && first_end > start
        {
            self.ranges.insert(first, (start, old));
            if first_end > end {
                self.ranges.insert(end, (first_end, old));
            }
        }
        while let Some((&next, &(next_end, old))) = self.ranges.range(start..end).next() {
            self.ranges.remove(&next);
            if next_end > end {
                self.ranges.insert(end, (next_end, old));
            }
        }
        self.ranges.insert(start, (end, source));
    }

    /// Whether there is anything that the file itself doesn't show.
    pub(super) fn is_changed(&self) -> bool {
        !self.ranges.is_empty() || self.len != self.inner_len
    }

    fn read_inner(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let n = self.inner.read_at(offset, buf)?;
        if let Some(rest) = buf.get_mut(n..) {
            rest.fill(0);
        }
        Ok(())
    }
}

impl<R: ReadAt> ReadAt for Replayed<R> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if !self.is_changed() {
            return self.inner.read_at(offset, buf);
        }
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let total = left.min(buf.len());
        let mut buf = buf.get_mut(..total).unwrap_or_default();
        let mut at = offset;
        while !buf.is_empty() {
            let here = self
                .ranges
                .range(..=at)
                .next_back()
                .filter(|(_, (end, _))| *end > at);
            let end = match here {
                Some((_, (end, _))) => *end,
                None => self
                    .ranges
                    .range(at..)
                    .next()
                    .map_or(self.len, |(&start, _)| start),
            };
            let n = usize::try_from(end.saturating_sub(at))
                .unwrap_or(usize::MAX)
                .min(buf.len());
            let (piece, rest) = buf.split_at_mut(n);
            match here {
                None => self.read_inner(at, piece)?,
                Some((_, (_, Source::Zeros))) => piece.fill(0),
                Some((&start, (_, Source::Log(sector)))) => {
                    let bytes = sector.read(&self.inner)?;
                    let from = usize::try_from(at.saturating_sub(start)).unwrap_or(0);
                    let source = bytes.iter().skip(from);
                    piece
                        .iter_mut()
                        .zip(source)
                        .for_each(|(to, from)| *to = *from);
                }
            }
            buf = rest;
            at = end;
        }
        Ok(total)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        if self.is_changed() {
            // The log's sectors are few and metadata: nothing is lost by not knowing the holes until it is replayed.
            return Ok((offset < self.len).then_some(offset..self.len));
        }
        self.inner.next_data(offset)
    }
}

/// Makes the log's changes on the disk, and then says in the headers that the log is empty.
///
/// A power cut on the way leaves the log as it was: the next open does it all again (MS-VHDX 2.3.3).
pub(super) fn apply<D: WriteAt + ?Sized>(
    disk: &D,
    header: &mut Header,
    replay: &Replay,
) -> Result<(), VhdxError> {
    let len = disk.size().map_err(VhdxError::io("sizing", 0))?;
    if replay.file_len > len {
        disk.set_len(replay.file_len)
            .map_err(VhdxError::io("growing", len))?;
    }
    for change in &replay.changes {
        match *change {
            Change::Data(sector, target) => {
                let bytes = sector
                    .read(disk)
                    .map_err(VhdxError::reading(Structure::Log, sector.offset()))?;
                disk.write_all_at(target, &bytes)
                    .map_err(VhdxError::io("writing", target))?;
            }
            Change::Zero { target, len } => disk
                .zero_range(target, len)
                .map_err(VhdxError::io("zeroing", target))?,
        }
    }
    disk.sync().map_err(VhdxError::io("syncing", 0))?;
    header.update(disk, |raw| raw.log_guid = Guid::ZERO)
}
