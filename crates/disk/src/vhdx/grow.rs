//! Making a disk larger, and giving a copy of one an identity of its own.

use std::collections::BTreeMap;

use lcow_blockio::WriteAt;
use zerocopy::IntoBytes;

use super::bat::{self, Bat, PAGE_ENTRIES, Slot, State};
use super::disk::{Disk, Inner};
use super::error::{Structure, VhdxError};
use super::format::{
    BAT_REGION, Guid, LOG_SECTOR, MAX_VIRTUAL_SIZE, MIB, REGION_TABLE_OFFSETS, RawRegionEntry,
    RawRegionTable, SECTOR_BYTES, TABLE_BYTES, seal,
};
use super::header::Extent;
use super::layout::{region_entries, region_table};

impl<D: WriteAt> Disk<D> {
    /// Makes the disk larger; what is new reads as zeros. When this returns the new size is safe, and a power cut before
    /// leaves the old size or the new one. A table that gets too small moves to the end of the file.
    ///
    /// # Errors
    /// [`VhdxError::Refused`] if the size is smaller than the disk's, larger than 64 TiB, or not in whole logical sectors;
    /// [`VhdxError::Io`] if the file can't be written.
    pub fn grow(&self, virtual_size: u64) -> Result<(), VhdxError> {
        let info = self.info();
        if virtual_size == info.virtual_size {
            return Ok(());
        }
        if virtual_size < info.virtual_size {
            return Err(VhdxError::refused(format!(
                "a VHDX of {} bytes can't be made smaller",
                info.virtual_size
            )));
        }
        if virtual_size > MAX_VIRTUAL_SIZE
            || !virtual_size.is_multiple_of(u64::from(info.logical_sector_size))
        {
            return Err(VhdxError::refused(format!(
                "a VHDX can't have {virtual_size} bytes: whole sectors of {} bytes, at most 64 TiB, are possible",
                info.logical_sector_size
            )));
        }
        self.change()?
            .grow(self.file(), self.log_guid(), virtual_size)
    }

    /// Gives the disk another identity (MS-VHDX 2.6.2.3), as a copy needs one: two disks with one id can't be told apart by a
    /// machine that has both. Safe when this returns.
    ///
    /// # Errors
    /// [`VhdxError::Io`] if the file can't be written.
    pub fn set_id(&self, id: Guid) -> Result<(), VhdxError> {
        if self.info().id == id {
            return Ok(());
        }
        let mut inner = self.change()?;
        // What is logged must not be followed by data that is not yet safe.
        inner.commit(self.file(), self.log_guid())?;
        let mut sectors = Sectors(BTreeMap::new());
        sectors.put(self.file(), inner.layout.id_at, &id.0)?;
        let sectors: Vec<_> = sectors.0.into_iter().collect();
        inner.write_logged(self.file(), self.log_guid(), &sectors)?;
        inner.layout.info.id = id;
        Ok(())
    }
}

/// Sectors of the file that are to be changed together.
struct Sectors(BTreeMap<u64, [u8; 4096]>);

impl Sectors {
    /// Bytes at a place; the rest of their sectors stays as it is in the file.
    fn put<D: WriteAt>(&mut self, file: &D, at: u64, bytes: &[u8]) -> Result<(), VhdxError> {
        for (at, byte) in (at..).zip(bytes) {
            let start = at & !(LOG_SECTOR.saturating_sub(1));
            let sector = match self.0.entry(start) {
                std::collections::btree_map::Entry::Occupied(sector) => sector.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    let mut sector = [0; 4096];
                    file.read_exact_at(start, &mut sector)
                        .map_err(VhdxError::reading(Structure::Metadata, start))?;
                    place.insert(sector)
                }
            };
            let within = usize::try_from(at.saturating_sub(start)).unwrap_or(0);
            if let Some(place) = sector.get_mut(within) {
                *place = *byte;
            }
        }
        Ok(())
    }
}

impl Inner {
    fn grow<D: WriteAt>(&mut self, file: &D, log_guid: Guid, size: u64) -> Result<(), VhdxError> {
        let old_size = self.layout.info.virtual_size;
        let block_size = u64::from(self.layout.info.block_size);
        // What the last block holds behind the old end was of no disk, and is of this one from now on.
        let within = old_size.checked_rem(block_size).unwrap_or(0);
        let last = old_size.checked_div(block_size).unwrap_or(0);
        if within > 0
            && let State::Present(mib) = self.state(file, last)?
        {
            let end = self.layout.block_place(mib).end();
            self.grow_file(file, end)?;
            let at = mib.bytes().saturating_add(within);
            file.zero_range(at, block_size.saturating_sub(within))
                .map_err(VhdxError::io("zeroing", at))?;
        }
        // So are entries behind the old last one.
        let mut stale = Vec::new();
        bat::scan(&self.layout, file, &mut |slot, index, _| {
            if slot == Slot::Unused {
                stale.push(index);
            }
            Ok(())
        })?;
        for index in stale {
            self.bat.set(file, index, 0)?;
        }
        self.commit(file, log_guid)?;
        self.sync(file)?;

        let mut sectors = Sectors(BTreeMap::new());
        sectors.put(file, self.layout.virtual_size_at, &size.to_le_bytes())?;
        let need = self.layout.bat_entries(size).saturating_mul(8);
        let moved = if need > self.layout.bat.len {
            let place = self.copy_table(file, need.next_multiple_of(MIB))?;
            move_region(file, place, &mut sectors)?;
            Some(place)
        } else {
            None
        };
        let sectors: Vec<_> = sectors.0.into_iter().collect();
        self.write_logged(file, log_guid, &sectors)?;
        self.layout.info.virtual_size = size;
        if let Some(place) = moved {
            let old = std::mem::replace(&mut self.layout.bat, place);
            self.bat = Bat::new(place);
            file.zero_range(old.start, old.len)
                .map_err(VhdxError::io("zeroing", old.start))?;
            self.space.free(old);
        }
        Ok(())
    }

    /// Copies the table to the end of the file, and makes the copy safe.
    fn copy_table<D: WriteAt>(&mut self, file: &D, len: u64) -> Result<Extent, VhdxError> {
        let start = self.space.append(len).bytes();
        self.grow_file(file, start.saturating_add(len))?;
        let place = Extent { start, len };
        let old = self.layout.bat;
        let entries = self.layout.bat_entries(self.layout.info.virtual_size);
        let mut page = [0; 4096];
        for number in 0..entries.div_ceil(PAGE_ENTRIES) {
            let offset = number.saturating_mul(LOG_SECTOR);
            let from = old.start.saturating_add(offset);
            file.read_exact_at(from, &mut page)
                .map_err(VhdxError::reading(Structure::Bat, from))?;
            if page.iter().any(|&byte| byte != 0) {
                let to = start.saturating_add(offset);
                file.write_all_at(to, &page)
                    .map_err(VhdxError::io("writing", to))?;
            }
        }
        self.sync(file)?;
        Ok(place)
    }
}

/// Gives the table another place in both copies of the region table.
fn move_region<D: WriteAt>(
    file: &D,
    place: Extent,
    sectors: &mut Sectors,
) -> Result<(), VhdxError> {
    let found = region_table(file)?;
    let entries = region_entries(&found.bytes, found.offset)?;
    let mut table = found.bytes;
    let length = u32::try_from(place.len)
        .map_err(|_| VhdxError::refused("a block allocation table of 4 GiB"))?;
    let chunks = table
        .get_mut(size_of::<RawRegionTable>()..)
        .unwrap_or_default()
        .chunks_exact_mut(size_of::<RawRegionEntry>());
    for (mut entry, bytes) in entries.into_iter().zip(chunks) {
        if entry.guid == BAT_REGION {
            entry.file_offset = place.start.into();
            entry.length = length.into();
            bytes.copy_from_slice(entry.as_bytes());
        }
    }
    seal(&mut table);
    for offset in REGION_TABLE_OFFSETS {
        let mut old = vec![0; TABLE_BYTES];
        file.read_exact_at(offset, &mut old)
            .map_err(VhdxError::reading(Structure::RegionTable, offset))?;
        let places = (offset..).step_by(SECTOR_BYTES);
        let pairs = table
            .as_chunks::<4096>()
            .0
            .iter()
            .zip(old.as_chunks::<4096>().0);
        for (at, (new, old)) in places.zip(pairs) {
            if new != old {
                sectors.0.insert(at, *new);
            }
        }
    }
    Ok(())
}
