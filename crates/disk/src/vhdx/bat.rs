//! The block allocation table (MS-VHDX 2.5), read and kept page by page: a disk of 64 TiB can have 512 MiB of it.

use std::collections::{BTreeSet, HashMap};

use lcow_blockio::ReadAt;
use zerocopy::little_endian::U64;
use zerocopy::{FromZeros, IntoBytes};

use super::error::{Structure, VhdxError};
use super::format::{LOG_SECTOR, MIB, SECTOR_BYTES};
use super::header::Extent;
use super::layout::Layout;

/// Entries in a page, which is a sector of the log's kind.
pub(super) const PAGE_ENTRIES: u64 = LOG_SECTOR / 8;
/// Pages that are kept though they could be read again: 8 MiB.
const CACHED_PAGES: usize = 2048;

/// A position in the file, in MiB: what an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Mib(pub u64);

impl Mib {
    /// The same position, in bytes. Entries hold 44 bits of MiB, which fit.
    pub(super) fn bytes(self) -> u64 {
        self.0.saturating_mul(MIB)
    }
}

/// The state of a block (MS-VHDX 2.5.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Never written. Undefined by the specification; zeros to Hyper-V, QEMU, and here.
    NotPresent,
    /// Its contents don't matter; zeros here.
    Undefined,
    /// Zeros.
    Zero,
    /// Discarded; zeros here.
    Unmapped,
    /// All of it is in the file.
    Present(Mib),
}

impl State {
    /// What an entry says; `None` if a disk without a parent can't have it: partially present (7) and reserved (4, 5) ones.
    pub(super) fn of(entry: u64) -> Option<Self> {
        match entry & 7 {
            0 => Some(Self::NotPresent),
            1 => Some(Self::Undefined),
            2 => Some(Self::Zero),
            3 => Some(Self::Unmapped),
            6 => Some(Self::Present(Mib(entry >> 20))),
            _ => None,
        }
    }

    pub(super) fn entry(self) -> u64 {
        match self {
            Self::NotPresent => 0,
            Self::Undefined => 1,
            Self::Zero => 2,
            Self::Unmapped => 3,
            Self::Present(Mib(mib)) => (mib << 20) | 6,
        }
    }
}

type Page = Box<[U64; SECTOR_BYTES / 8]>;

/// The table: the pages that were used lately, and those that are not yet on the disk.
#[derive(Debug)]
pub(super) struct Bat {
    pub place: Extent,
    pages: HashMap<u64, Page>,
    dirty: BTreeSet<u64>,
}

impl Bat {
    pub(super) fn new(place: Extent) -> Self {
        Self {
            place,
            pages: HashMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    fn split(index: u64) -> (u64, usize) {
        let within = usize::try_from(index % PAGE_ENTRIES).unwrap_or(0);
        (index / PAGE_ENTRIES, within)
    }

    /// Where in the file a page is.
    pub(super) fn page_offset(&self, page: u64) -> u64 {
        self.place
            .start
            .saturating_add(page.saturating_mul(LOG_SECTOR))
    }

    /// An entry, if its page is at hand.
    pub(super) fn peek(&self, index: u64) -> Option<u64> {
        let (page, within) = Self::split(index);
        Some(self.pages.get(&page)?.get(within)?.get())
    }

    /// An entry; its page is read if need be.
    pub(super) fn get<R: ReadAt + ?Sized>(
        &mut self,
        disk: &R,
        index: u64,
    ) -> Result<u64, VhdxError> {
        let (page, within) = Self::split(index);
        let page = self.page(disk, page)?;
        Ok(page.get(within).map_or(0, |entry| entry.get()))
    }

    /// Changes an entry in memory.
    pub(super) fn set<R: ReadAt + ?Sized>(
        &mut self,
        disk: &R,
        index: u64,
        entry: u64,
    ) -> Result<(), VhdxError> {
        let (number, within) = Self::split(index);
        if let Some(place) = self.page(disk, number)?.get_mut(within) {
            *place = entry.into();
        }
        self.dirty.insert(number);
        Ok(())
    }

    fn page<R: ReadAt + ?Sized>(&mut self, disk: &R, number: u64) -> Result<&mut Page, VhdxError> {
        if self.pages.len() >= CACHED_PAGES.saturating_add(self.dirty.len())
            && !self.pages.contains_key(&number)
        {
            let dirty = &self.dirty;
            self.pages.retain(|page, _| dirty.contains(page));
        }
        let offset = self.page_offset(number);
        match self.pages.entry(number) {
            std::collections::hash_map::Entry::Occupied(page) => Ok(page.into_mut()),
            std::collections::hash_map::Entry::Vacant(place) => {
                let mut page: Page = Box::new([U64::new_zeroed(); SECTOR_BYTES / 8]);
                disk.read_exact_at(offset, page.as_mut_bytes())
                    .map_err(VhdxError::reading(Structure::Bat, offset))?;
                Ok(place.insert(page))
            }
        }
    }

    /// Pages that are not yet on the disk.
    pub(super) fn dirty(&self) -> usize {
        self.dirty.len()
    }

    /// The first of those pages, at most so many: where in the file they go, and their bytes.
    pub(super) fn dirty_pages(&self, most: usize) -> Vec<(u64, u64, [u8; 4096])> {
        self.dirty
            .iter()
            .take(most)
            .filter_map(|&number| {
                let bytes = self.pages.get(&number)?.as_bytes().try_into().ok()?;
                Some((number, self.page_offset(number), bytes))
            })
            .collect()
    }

    pub(super) fn clean(&mut self, page: u64) {
        self.dirty.remove(&page);
    }
}

/// Checks an entry of a block against the file: the block's bytes, as far as the disk needs them, must be in the file, and in
/// no region.
pub(super) fn validate(
    layout: &Layout,
    file_len: u64,
    block: u64,
    entry: u64,
) -> Result<State, VhdxError> {
    let corrupt = |detail: String| {
        let at = layout.bat_index(block).saturating_mul(8);
        VhdxError::corrupt(
            Structure::Bat,
            layout.bat.start.saturating_add(at),
            format!("block {block} {detail}"),
        )
    };
    let state = State::of(entry).ok_or_else(|| match entry & 7 {
        7 => corrupt("is partially present, and the disk has no parent".into()),
        other => corrupt(format!("is in state {other}")),
    })?;
    if let State::Present(mib) = state {
        let block_size = u64::from(layout.info.block_size);
        let used = block_size.min(
            layout
                .info
                .virtual_size
                .saturating_sub(block.saturating_mul(block_size)),
        );
        let place = Extent {
            start: mib.bytes(),
            len: block_size,
        };
        if place.start.saturating_add(used) > file_len {
            return Err(corrupt(format!(
                "is at byte {}, and the file has {file_len} bytes",
                place.start
            )));
        }
        if layout.reserved().any(|region| region.overlaps(place)) {
            return Err(corrupt(format!("is at byte {}, in a region", place.start)));
        }
    }
    Ok(state)
}

/// What an entry of the table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// A block of the disk.
    Block(u64),
    /// A sector bitmap block: only disks with a parent have any.
    Bitmap,
    /// Behind the disk's last block.
    Unused,
}

/// Goes through all entries of the table's region that are not zero, in order.
pub(super) fn scan<R: ReadAt + ?Sized>(
    layout: &Layout,
    file: &R,
    each: &mut dyn FnMut(Slot, u64, u64) -> Result<(), VhdxError>,
) -> Result<(), VhdxError> {
    let used = layout.bat_entries(layout.info.virtual_size);
    let group = layout.chunk_ratio.saturating_add(1);
    let place = layout.bat;
    let mut chunk = vec![0; 64 << 10];
    let mut at = place.start;
    while at < place.end() {
        let data = file
            .next_data(at)
            .map_err(VhdxError::reading(Structure::Bat, at))?;
        let Some(data) = data.filter(|data| data.start < place.end()) else {
            break;
        };
        at = data.start & !7;
        let n = usize::try_from(place.end().saturating_sub(at)).unwrap_or(usize::MAX);
        let n = n.min(chunk.len());
        let bytes = chunk.get_mut(..n).unwrap_or_default();
        file.read_exact_at(at, bytes)
            .map_err(VhdxError::reading(Structure::Bat, at))?;
        let first = at.saturating_sub(place.start) / 8;
        for (index, entry) in (first..).zip(bytes.as_chunks::<8>().0) {
            let entry = u64::from_le_bytes(*entry);
            if entry == 0 {
                continue;
            }
            let (before, within) = (
                index.checked_div(group).unwrap_or(0),
                index.checked_rem(group).unwrap_or(0),
            );
            let slot = if index >= used {
                Slot::Unused
            } else if within == layout.chunk_ratio {
                Slot::Bitmap
            } else {
                Slot::Block(index.saturating_sub(before))
            };
            each(slot, index, entry)?;
        }
        at = at.saturating_add(n as u64);
    }
    Ok(())
}
