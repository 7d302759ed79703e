//! Writing.
//!
//! The order in which things reach the disk, and why a power cut at any moment leaves a good file:
//!
//! * A block's bytes go straight to its place. A new block is a hole, or was emptied, before anything refers to it.
//! * Changes of the table are gathered in memory. [`Disk::sync`](lcow_blockio::WriteAt::sync) makes them: sync, so that the
//!   blocks are there and what an earlier entry of the log described is in place; write an entry with the changed sectors;
//!   sync; then write the sectors to their places. An entry thus needs no other, and is its own tail.
//! * The log has two halves, used in turn: the entry before is whole until the next one is.
//! * The header names the log only once the first entry is whole, and no longer once all is in place.
//! * A block that is given up is used again only after the table without it is safe.

use std::io;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use lcow_blockio::{ReadAt, WriteAt};

use super::bat::{self, Bat, Mib, Slot, State};
use super::error::{Structure, VhdxError};
use super::format::{Guid, LOG_SECTOR, MIB};
use super::header::{Extent, Header};
use super::image::{self, pieces, read_piece, readable};
use super::layout::{self, Info, Layout};
use super::space::Space;
use super::{header, log, replay};

/// Sectors that one entry of the log carries: descriptors for so many fill the entry's first sector, and with it they fit in
/// half of the smallest log.
const ENTRY_SECTORS: usize = 126;
/// Changed sectors of the table that are kept in memory: 2 MiB.
const DIRTY_PAGES: usize = 512;

/// GUIDs for one time that a file is open for writing. They must be new ones each time; nothing here makes any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionGuids {
    /// For the header's "FileWriteGuid".
    pub file_write: Guid,
    /// For the header's "DataWriteGuid".
    pub data_write: Guid,
    /// For the log. Not zero.
    pub log: Guid,
}

impl From<[[u8; 16]; 3]> for SessionGuids {
    fn from([file_write, data_write, log]: [[u8; 16]; 3]) -> Self {
        Self {
            file_write: Guid(file_write),
            data_write: Guid(data_write),
            log: Guid(log),
        }
    }
}

/// The disk in a VHDX, for reading and writing. Made by [`open_writable`].
///
/// What was written is safe after [`sync`](WriteAt::sync). [`close`](Self::close) leaves a file with an empty log, as other
/// programs like it; a disk that is dropped instead, or cut off, is as good, with a log to replay and without what was not
/// synced. The file must not be used by anyone else meanwhile.
///
/// After a sync or a write of metadata that failed nothing more is written, and nothing said to be safe (what a failed fsync did not
/// write, a second one may say nothing of): the disk must be opened again, which replays the log.
#[derive(Debug)]
pub struct Disk<D> {
    file: D,
    guids: SessionGuids,
    inner: RwLock<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub layout: Layout,
    header: Header,
    pub bat: Bat,
    pub space: Space,
    /// Places of blocks that were given up; free once the table says so.
    given_up: Vec<Mib>,
    pub file_len: u64,
    /// The file is at least so long on stable storage.
    flushed_len: u64,
    /// The headers say that the file is being changed.
    changed: bool,
    /// Entries that were written to the log.
    entries: u64,
    /// A sync failed, or a write of metadata half-way.
    failed: bool,
}

/// Opens a VHDX for reading and writing. A log that was not yet replayed is, on the disk; otherwise nothing is written before
/// the first change.
///
/// # Errors
/// As [`open`](super::open()); also if any entry of the block allocation table is damaged, or two blocks share a place.
/// [`VhdxError::Refused`] if the file has no log, or the log's GUID is zero.
pub fn open_writable<D: WriteAt>(file: D, guids: SessionGuids) -> Result<Disk<D>, VhdxError> {
    if guids.log == Guid::ZERO {
        return Err(VhdxError::refused("a log's GUID can't be zero"));
    }
    let (mut header, len) = header::read(&file)?;
    if header.log.len < MIB || header.log.end() > len {
        return Err(VhdxError::refused(
            "a VHDX without a log can't be changed: changes would not survive a crash",
        ));
    }
    if header.log_guid() != Guid::ZERO {
        // All that comes of the log is looked at before anything is changed.
        image::open(&file)?;
        let replay = log::read(&file, &header, len)?;
        replay::apply(&file, &mut header, &replay)?;
    }
    let file_len = file.size().map_err(VhdxError::io("sizing", 0))?;
    let layout = layout::read(&file, &header)?;
    let mut space = Space::new(file_len);
    for place in layout.reserved() {
        space.take(place);
    }
    bat::scan(&layout, &file, &mut |slot, index, entry| {
        let Slot::Block(block) = slot else {
            return Ok(());
        };
        if let State::Present(mib) = bat::validate(&layout, file_len, block, entry)?
            && !space.take(layout.block_place(mib))
        {
            let at = layout.bat.start.saturating_add(index.saturating_mul(8));
            let detail = format!("block {block} shares its place with another");
            return Err(VhdxError::corrupt(Structure::Bat, at, detail));
        }
        Ok(())
    })?;
    let inner = Inner {
        bat: Bat::new(layout.bat),
        layout,
        header,
        space,
        given_up: Vec::new(),
        file_len,
        flushed_len: file_len,
        changed: false,
        entries: 0,
        failed: false,
    };
    Ok(Disk {
        file,
        guids,
        inner: RwLock::new(inner),
    })
}

impl<D: WriteAt> Disk<D> {
    /// What the disk is.
    #[must_use]
    pub fn info(&self) -> Info {
        self.read_lock().layout.info.clone()
    }

    /// Makes all changes safe, empties the log, and gives the file back.
    ///
    /// # Errors
    /// [`VhdxError::Io`] if the file can't be written; the disk is then as one that was not closed.
    pub fn close(self) -> Result<D, VhdxError> {
        let mut inner = self
            .inner
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        inner.commit(&self.file, self.guids.log)?;
        if inner.header.log_guid() != Guid::ZERO {
            self.file.sync().map_err(VhdxError::io("syncing", 0))?;
            inner
                .header
                .update(&self.file, |raw| raw.log_guid = Guid::ZERO)?;
        }
        Ok(self.file)
    }

    /// Gives up what a range of the disk holds: whole blocks give their space back, and it reads as zeros from then on.
    ///
    /// # Errors
    /// As writing.
    pub fn trim(&self, offset: u64, len: u64) -> Result<(), VhdxError> {
        self.clear(offset, len, State::Unmapped)
    }

    pub(super) fn read_lock(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, to change it; the headers say from now on that the file is being changed.
    pub(super) fn change(&self) -> Result<RwLockWriteGuard<'_, Inner>, VhdxError> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.begin(&self.file, &self.guids)?;
        Ok(inner)
    }

    pub(super) fn file(&self) -> &D {
        &self.file
    }

    pub(super) fn log_guid(&self) -> Guid {
        self.guids.log
    }

    fn clear(&self, offset: u64, len: u64, to: State) -> Result<(), VhdxError> {
        let mut guard = self.change()?;
        let inner = &mut *guard;
        let virtual_size = inner.layout.info.virtual_size;
        let len = len.min(virtual_size.saturating_sub(offset));
        let block_size = inner.layout.info.block_size;
        for piece in pieces(block_size, offset, len) {
            let state = inner.state(&self.file, piece.block)?;
            let end = piece
                .block
                .saturating_mul(u64::from(block_size))
                .saturating_add(piece.within)
                .saturating_add(piece.len);
            let whole = piece.within == 0
                && (piece.len == u64::from(block_size) || end == virtual_size)
                && !inner.layout.info.fixed;
            match state {
                State::Present(mib) if whole => {
                    inner.set_state(&self.file, piece.block, to)?;
                    inner.given_up.push(mib);
                }
                State::Present(mib) => {
                    let at = mib.bytes().saturating_add(piece.within);
                    self.file
                        .zero_range(at, piece.len)
                        .map_err(VhdxError::io("zeroing", at))?;
                }
                State::Undefined if whole => inner.set_state(&self.file, piece.block, to)?,
                _ => {}
            }
            inner.relieve(&self.file, self.guids.log)?;
        }
        Ok(())
    }

    fn write_piece(&self, block: u64, within: u64, buf: &[u8]) -> Result<(), VhdxError> {
        let write = |state: State| match state {
            State::Present(mib) => {
                let at = mib.bytes().saturating_add(within);
                self.file
                    .write_all_at(at, buf)
                    .map_err(VhdxError::io("writing", at))
                    .map(|()| true)
            }
            _ => Ok(false),
        };
        // Where blocks are there already, writers go side by side.
        {
            let inner = self.read_lock();
            if inner.changed
                && !inner.failed
                && let Some(state) = inner.known_state(block)?
                && write(state)?
            {
                return Ok(());
            }
        }
        let mut guard = self.change()?;
        let inner = &mut *guard;
        let state = inner.state(&self.file, block)?;
        if !write(state)? {
            let mib = inner.allocate(&self.file)?;
            write(State::Present(mib))?;
            inner.set_state(&self.file, block, State::Present(mib))?;
            inner.relieve(&self.file, self.guids.log)?;
        }
        Ok(())
    }
}

impl Inner {
    /// Before the first change: empties the log, since entries of an earlier time must not be taken for this one's, and gives the
    /// file and its contents new GUIDs (MS-VHDX 2.2.2).
    fn begin<D: WriteAt>(&mut self, file: &D, guids: &SessionGuids) -> Result<(), VhdxError> {
        self.refuse_after_failure()?;
        if self.changed {
            return Ok(());
        }
        let log = self.layout.log;
        file.zero_range(log.start, log.len)
            .map_err(VhdxError::io("zeroing", log.start))?;
        self.sync(file)?;
        self.header.update(file, |raw| {
            raw.file_write_guid = guids.file_write;
            raw.data_write_guid = guids.data_write;
        })?;
        self.layout.info.data_write_guid = guids.data_write;
        self.changed = true;
        Ok(())
    }

    /// A block's state, if the table's page is at hand.
    fn known_state(&self, block: u64) -> Result<Option<State>, VhdxError> {
        self.bat
            .peek(self.layout.bat_index(block))
            .map(|entry| bat::validate(&self.layout, self.file_len, block, entry))
            .transpose()
    }

    pub(super) fn state<D: ReadAt>(&mut self, file: &D, block: u64) -> Result<State, VhdxError> {
        let entry = self.bat.get(file, self.layout.bat_index(block))?;
        bat::validate(&self.layout, self.file_len, block, entry)
    }

    fn set_state<D: ReadAt>(&mut self, file: &D, block: u64, to: State) -> Result<(), VhdxError> {
        let index = self.layout.bat_index(block);
        self.bat.set(file, index, to.entry())
    }

    /// A place for a block, empty.
    fn allocate<D: WriteAt>(&mut self, file: &D) -> Result<Mib, VhdxError> {
        let len = u64::from(self.layout.info.block_size);
        let mib = match self.space.reuse(len) {
            Some(mib) => {
                file.zero_range(mib.bytes(), len)
                    .map_err(VhdxError::io("zeroing", mib.bytes()))?;
                mib
            }
            None => self.space.append(len),
        };
        // Also where a crash left a file that ends within a MiB.
        self.grow_file(file, mib.bytes().saturating_add(len))?;
        Ok(mib)
    }

    pub(super) fn grow_file<D: WriteAt>(&mut self, file: &D, len: u64) -> Result<(), VhdxError> {
        if len > super::MAX_FILE_SIZE {
            return Err(VhdxError::refused("the file would get too long"));
        }
        if len > self.file_len {
            file.set_len(len)
                .map_err(VhdxError::io("growing", self.file_len))?;
            self.file_len = len;
        }
        Ok(())
    }

    /// Makes the table's changes when they take too much memory.
    fn relieve<D: WriteAt>(&mut self, file: &D, log_guid: Guid) -> Result<(), VhdxError> {
        if self.bat.dirty() > DIRTY_PAGES {
            self.commit(file, log_guid)?;
        }
        Ok(())
    }

    /// Makes everything safe.
    pub(super) fn commit<D: WriteAt>(&mut self, file: &D, log_guid: Guid) -> Result<(), VhdxError> {
        loop {
            self.sync(file)?;
            let pages = self.bat.dirty_pages(ENTRY_SECTORS);
            if pages.is_empty() {
                break;
            }
            let sectors: Vec<_> = pages.iter().map(|&(_, at, bytes)| (at, bytes)).collect();
            self.write_logged(file, log_guid, &sectors)?;
            for (page, _, _) in pages {
                self.bat.clean(page);
            }
            if self.bat.dirty() == 0 {
                break;
            }
        }
        for mib in std::mem::take(&mut self.given_up) {
            let place = self.layout.block_place(mib);
            let len = place.len.min(self.file_len.saturating_sub(place.start));
            file.zero_range(place.start, len)
                .map_err(VhdxError::io("zeroing", place.start))?;
            self.space.free(place);
        }
        Ok(())
    }

    fn refuse_after_failure(&self) -> Result<(), VhdxError> {
        if !self.failed {
            return Ok(());
        }
        Err(VhdxError::Io {
            operation: "writing",
            offset: 0,
            source: io::Error::other("an earlier write failed: open the disk again"),
        })
    }

    /// Waits until all that was written is safe.
    pub(super) fn sync<D: WriteAt>(&mut self, file: &D) -> Result<(), VhdxError> {
        self.refuse_after_failure()?;
        file.sync().map_err(|source| {
            self.failed = true;
            VhdxError::io("syncing", 0)(source)
        })?;
        self.flushed_len = self.file_len;
        Ok(())
    }

    /// Gives sectors of metadata new bytes, all or none; what was written before must be safe. They are safe in the log when
    /// this returns, and written to their places.
    pub(super) fn write_logged<D: WriteAt>(
        &mut self,
        file: &D,
        log_guid: Guid,
        sectors: &[(u64, [u8; 4096])],
    ) -> Result<(), VhdxError> {
        self.refuse_after_failure()?;
        // Half-way, neither the file nor this state is what the other takes it for.
        self.failed = true;
        let half = (self.layout.log.len / 2) & !(LOG_SECTOR.saturating_sub(1));
        let tail = if self.entries.is_multiple_of(2) {
            0
        } else {
            half
        };
        self.entries = self.entries.saturating_add(1);
        let lengths = (self.flushed_len, self.file_len);
        let bytes = log::write_entry(log_guid, self.entries, tail, lengths, sectors)?;
        if bytes.len() as u64 > half {
            return Err(VhdxError::refused(
                "a log entry longer than half of the log",
            ));
        }
        let at = self.layout.log.start.saturating_add(tail);
        file.write_all_at(at, &bytes)
            .map_err(VhdxError::io("writing", at))?;
        file.sync().map_err(VhdxError::io("syncing", at))?;
        self.flushed_len = self.file_len;
        if self.header.log_guid() == Guid::ZERO {
            self.header.update(file, |raw| raw.log_guid = log_guid)?;
        }
        for (target, bytes) in sectors {
            file.write_all_at(*target, bytes)
                .map_err(VhdxError::io("writing", *target))?;
        }
        self.failed = false;
        Ok(())
    }
}

impl Layout {
    pub(super) fn block_place(&self, mib: Mib) -> Extent {
        Extent {
            start: mib.bytes(),
            len: u64::from(self.info.block_size),
        }
    }
}

impl<D: WriteAt> ReadAt for Disk<D> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.read_lock().layout.info.virtual_size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let (total, block_size) = {
            let info = &self.read_lock().layout.info;
            (
                readable(info.virtual_size, offset, buf.len()),
                info.block_size,
            )
        };
        let mut rest = buf.get_mut(..total).unwrap_or_default();
        for piece in pieces(block_size, offset, total as u64) {
            let n = usize::try_from(piece.len).unwrap_or(usize::MAX);
            let (here, later) = rest.split_at_mut(n.min(rest.len()));
            // The lock is held while reading: a block that is given up must not be another's by then.
            let inner = self.read_lock();
            if let Some(state) = inner.known_state(piece.block)? {
                read_piece(&self.file, state, piece.within, here)?;
            } else {
                drop(inner);
                let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
                let state = inner.state(&self.file, piece.block)?;
                read_piece(&self.file, state, piece.within, here)?;
            }
            rest = later;
        }
        Ok(total)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let mut guard = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let layout = guard.layout.clone();
        image::next_data(&layout, &self.file, offset, |block| {
            guard.state(&self.file, block)
        })
    }
}

impl<D: WriteAt> WriteAt for Disk<D> {
    /// Unlike a file, a disk doesn't grow by itself: a write past its end fails.
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let Info {
            virtual_size,
            block_size,
            ..
        } = self.info();
        let fits = offset
            .checked_add(buf.len() as u64)
            .is_some_and(|end| end <= virtual_size);
        if !fits {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "a write past the end of the disk",
            ));
        }
        let mut rest = buf;
        for piece in pieces(block_size, offset, buf.len() as u64) {
            let n = usize::try_from(piece.len).unwrap_or(usize::MAX);
            let (here, later) = rest.split_at(n.min(rest.len()));
            self.write_piece(piece.block, piece.within, here)?;
            rest = later;
        }
        Ok(())
    }

    /// Grows the disk as [`Disk::grow`] does; it can't shrink.
    fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(self.grow(len)?)
    }

    /// Whole blocks give their space back.
    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(self.clear(offset, len, State::Zero)?)
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        Ok(inner.commit(&self.file, self.guids.log)?)
    }
}
