//! Reading.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use lcow_blockio::ReadAt;

use super::bat::{self, Bat, State};
use super::error::VhdxError;
use super::layout::{self, Info, Layout};
use super::replay::Replayed;
use super::{header, log};

/// The disk in a VHDX, for reading. Made by [`open`].
///
/// Threads read side by side; they share a few megabytes of the block allocation table.
#[derive(Debug)]
pub struct Image<R> {
    file: Replayed<R>,
    file_len: u64,
    layout: Layout,
    bat: Mutex<Bat>,
}

/// Opens a VHDX for reading. Nothing is written: a log that was not yet replayed is replayed in memory.
///
/// # Errors
/// [`VhdxError::Corrupt`] if a structure is damaged; [`VhdxError::Unsupported`] if the file requires what is not known here;
/// [`VhdxError::Differencing`] if it has a parent. Entries of the block allocation table are checked when they are used, and
/// then a read fails with the same errors inside an [`io::Error`]; [`check`](super::check()) looks at all of them.
pub fn open<R: ReadAt>(disk: R) -> Result<Image<R>, VhdxError> {
    let (header, file_len) = header::read(&disk)?;
    let replay = log::read(&disk, &header, file_len)?;
    let file = Replayed::new(disk, file_len, &replay);
    let mut layout = layout::read(&file, &header)?;
    layout.info.replayed = replay.entries;
    let file_len = file.size().map_err(VhdxError::io("sizing", 0))?;
    Ok(Image {
        bat: Mutex::new(Bat::new(layout.bat)),
        file,
        file_len,
        layout,
    })
}

impl<R: ReadAt> Image<R> {
    /// What the disk is.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.layout.info
    }

    fn state(&self, block: u64) -> Result<State, VhdxError> {
        let index = self.layout.bat_index(block);
        let mut bat = self.bat.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = bat.get(&self.file, index)?;
        drop(bat);
        bat::validate(&self.layout, self.file_len, block, entry)
    }
}

/// A piece of a disk that lies in one block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub block: u64,
    /// From the block's beginning, in bytes.
    pub within: u64,
    pub len: u64,
}

/// The pieces of `offset .. offset + len` by block.
pub(super) fn pieces(block_size: u32, offset: u64, len: u64) -> impl Iterator<Item = Piece> {
    let block_size = u64::from(block_size);
    let end = offset.saturating_add(len);
    let mut at = offset;
    std::iter::from_fn(move || {
        let (block, within) = (at.checked_div(block_size)?, at.checked_rem(block_size)?);
        let len = block_size
            .saturating_sub(within)
            .min(end.saturating_sub(at));
        at = at.saturating_add(len);
        (len > 0).then_some(Piece { block, within, len })
    })
}

/// Reads a piece whose state is known. A block may be cut short by the end of the file, behind the disk's last byte.
pub(super) fn read_piece<R: ReadAt + ?Sized>(
    file: &R,
    state: State,
    within: u64,
    buf: &mut [u8],
) -> io::Result<()> {
    match state {
        State::Present(mib) => file.read_exact_at(mib.bytes().saturating_add(within), buf),
        _ => {
            buf.fill(0);
            Ok(())
        }
    }
}

/// How much of a read lies before the disk's end.
pub(super) fn readable(virtual_size: u64, offset: u64, len: usize) -> usize {
    usize::try_from(virtual_size.saturating_sub(offset))
        .unwrap_or(usize::MAX)
        .min(len)
}

/// The next range that a block's place in the file may hold data for, by the blocks' states and the file's own holes.
pub(super) fn next_data<R: ReadAt + ?Sized>(
    layout: &Layout,
    file: &R,
    offset: u64,
    mut state: impl FnMut(u64) -> Result<State, VhdxError>,
) -> io::Result<Option<Range<u64>>> {
    let left = layout.info.virtual_size.saturating_sub(offset);
    for piece in pieces(layout.info.block_size, offset, left) {
        let State::Present(mib) = state(piece.block)? else {
            continue;
        };
        let base = mib.bytes();
        let start = base.saturating_add(piece.within);
        let end = start.saturating_add(piece.len);
        if let Some(data) = file.next_data(start)?
            && data.start < end
        {
            let block = piece
                .block
                .saturating_mul(u64::from(layout.info.block_size));
            let on_disk = |at: u64| block.saturating_add(at.saturating_sub(base));
            return Ok(Some(
                on_disk(data.start.max(start))..on_disk(data.end.min(end)),
            ));
        }
    }
    Ok(None)
}

impl<R: ReadAt> ReadAt for Image<R> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.layout.info.virtual_size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let total = readable(self.layout.info.virtual_size, offset, buf.len());
        let mut rest = buf.get_mut(..total).unwrap_or_default();
        for piece in pieces(self.layout.info.block_size, offset, total as u64) {
            let n = usize::try_from(piece.len).unwrap_or(usize::MAX);
            let (here, later) = rest.split_at_mut(n.min(rest.len()));
            read_piece(&self.file, self.state(piece.block)?, piece.within, here)?;
            rest = later;
        }
        Ok(total)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        next_data(&self.layout, &self.file, offset, |block| self.state(block))
    }
}
