//! Region table and metadata: where things are, and what the disk is (MS-VHDX 2.2.3, 2.6).

use std::collections::HashSet;

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::error::{Structure, VhdxError};
use super::format::{
    BAT_REGION, FILE_PARAMETERS, Guid, HAS_PARENT, HEADER_SECTION_LEN, IS_REQUIRED, IS_USER,
    LEAVE_BLOCKS_ALLOCATED, LOGICAL_SECTOR_SIZE, MAX_BLOCK_SIZE, MAX_TABLE_ENTRIES,
    MAX_VIRTUAL_SIZE, METADATA_REGION, METADATA_SIGNATURE, MIB, MIN_BLOCK_SIZE, PARENT_LOCATOR,
    PHYSICAL_SECTOR_SIZE, REGION_REQUIRED, REGION_SIGNATURE, REGION_TABLE_OFFSETS,
    RawFileParameters, RawMetadataEntry, RawMetadataTable, RawRegionEntry, RawRegionTable,
    TABLE_BYTES, TABLE_LEN, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE, is_sealed,
};
use super::header::{Extent, Header};

/// What a VHDX is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Size of the disk in it, in bytes.
    pub virtual_size: u64,
    /// Size of a block, in bytes: what space is taken in.
    pub block_size: u32,
    /// Size of a sector as the disk tells a machine, in bytes: 512 or 4096.
    pub logical_sector_size: u32,
    /// Size of a sector of the medium as the disk tells a machine, in bytes: 512 or 4096.
    pub physical_sector_size: u32,
    /// The disk's identity (SCSI page 0x83).
    pub id: Guid,
    /// Whether blocks stay allocated: a fixed disk.
    pub fixed: bool,
    /// Changes whenever the disk's contents begin to be changed.
    pub data_write_guid: Guid,
    /// Log entries that were not yet made: replayed in memory, or on opening for writing.
    pub replayed: usize,
}

/// Where everything is. What this holds was checked: places lie in the file and don't overlap.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub info: Info,
    pub log: Extent,
    pub bat: Extent,
    pub metadata: Extent,
    /// Regions that are optional and not known; nothing else may be there.
    pub others: Vec<Extent>,
    /// Where the item "Virtual Disk Size" is in the file.
    pub virtual_size_at: u64,
    /// Where the item "Virtual Disk ID" is in the file.
    pub id_at: u64,
    /// How many blocks of payload come before each sector bitmap block (MS-VHDX 2.5).
    pub chunk_ratio: u64,
}

impl Layout {
    /// Entries that the table must have for a disk of so many bytes, those of sector bitmap blocks included.
    pub(super) fn bat_entries(&self, virtual_size: u64) -> u64 {
        let Info {
            block_size,
            logical_sector_size,
            ..
        } = self.info;
        bat_entries(virtual_size, block_size, logical_sector_size)
    }

    /// Where in the table a block's entry is: each chunk has one more, for its sector bitmap.
    pub(super) fn bat_index(&self, block: u64) -> u64 {
        block.saturating_add(block.checked_div(self.chunk_ratio).unwrap_or(0))
    }

    /// All places that no block may be in.
    pub(super) fn reserved(&self) -> impl Iterator<Item = Extent> {
        let headers = Extent {
            start: 0,
            len: HEADER_SECTION_LEN,
        };
        [headers, self.log, self.bat, self.metadata]
            .into_iter()
            .chain(self.others.iter().copied())
    }
}

/// Blocks of payload for each sector bitmap block, which has a bit for each of 2²³ sectors (MS-VHDX 2.4.2). A whole number: all
/// factors are powers of two, and blocks are at most 256 MiB.
fn chunk_ratio(block_size: u32, logical_sector_size: u32) -> u64 {
    u64::from(logical_sector_size)
        .saturating_mul(1 << 23)
        .checked_div(u64::from(block_size))
        .unwrap_or(0)
        .max(1)
}

/// Entries of the table of a disk without a parent (MS-VHDX 2.5).
pub(super) fn bat_entries(virtual_size: u64, block_size: u32, logical_sector_size: u32) -> u64 {
    let ratio = chunk_ratio(block_size, logical_sector_size);
    let blocks = virtual_size.div_ceil(u64::from(block_size.max(1)));
    let bitmaps = blocks
        .checked_sub(1)
        .and_then(|last| last.checked_div(ratio));
    blocks.saturating_add(bitmaps.unwrap_or(0))
}

/// The region table that is in use.
pub(super) struct RegionTable {
    /// Where it is, in bytes.
    pub offset: u64,
    pub bytes: Vec<u8>,
    /// What is wrong with the other copy, and where.
    pub other: Option<(u64, String)>,
}

/// Reads the first good copy of the region table.
pub(super) fn region_table<R: ReadAt + ?Sized>(disk: &R) -> Result<RegionTable, VhdxError> {
    let mut found: Option<RegionTable> = None;
    let mut bad = None;
    for offset in REGION_TABLE_OFFSETS {
        let mut bytes = vec![0; TABLE_BYTES];
        disk.read_exact_at(offset, &mut bytes)
            .map_err(VhdxError::reading(Structure::RegionTable, offset))?;
        let detail = if bytes.get(..4) != Some(&REGION_SIGNATURE[..]) {
            "the signature is not \"regi\""
        } else if !is_sealed(&bytes) {
            "the checksum is wrong"
        } else {
            match &found {
                None => {
                    found = Some(RegionTable {
                        offset,
                        bytes,
                        other: None,
                    });
                    continue;
                }
                Some(first) if first.bytes == bytes => continue,
                Some(_) => "the two copies differ",
            }
        };
        bad = bad.or(Some((offset, detail.to_owned())));
    }
    match (found, bad) {
        (Some(table), other) => Ok(RegionTable { other, ..table }),
        (None, bad) => {
            let (offset, detail) = bad.unwrap_or_default();
            Err(VhdxError::corrupt(Structure::RegionTable, offset, detail))
        }
    }
}

/// The entries of a region table.
pub(super) fn region_entries(bytes: &[u8], offset: u64) -> Result<Vec<RawRegionEntry>, VhdxError> {
    let corrupt = |detail: String| VhdxError::corrupt(Structure::RegionTable, offset, detail);
    let (table, rest) =
        RawRegionTable::read_from_prefix(bytes).map_err(|_| corrupt("it is cut short".into()))?;
    let count = table.entry_count.get();
    if count > MAX_TABLE_ENTRIES {
        return Err(corrupt(format!("{count} entries")));
    }
    Ok(rest
        .chunks_exact(size_of::<RawRegionEntry>())
        .take(usize::try_from(count).unwrap_or(usize::MAX))
        .filter_map(|entry| RawRegionEntry::read_from_bytes(entry).ok())
        .collect())
}

/// Reads region table and metadata of a file whose log is replayed.
pub(super) fn read<R: ReadAt + ?Sized>(disk: &R, header: &Header) -> Result<Layout, VhdxError> {
    let file_len = disk.size().map_err(VhdxError::io("sizing", 0))?;
    let RegionTable { offset, bytes, .. } = region_table(disk)?;
    let corrupt = |detail: String| VhdxError::corrupt(Structure::RegionTable, offset, detail);
    let (mut bat, mut metadata, mut others) = (None, None, Vec::new());
    let mut places = vec![header.log];
    let mut seen = HashSet::new();
    for entry in region_entries(&bytes, offset)? {
        let place = Extent {
            start: entry.file_offset.get(),
            len: u64::from(entry.length.get()),
        };
        let guid = entry.guid;
        if !seen.insert(guid) {
            return Err(corrupt(format!("region {guid} twice")));
        }
        if !place.start.is_multiple_of(MIB)
            || !place.len.is_multiple_of(MIB)
            || place.start < HEADER_SECTION_LEN
        {
            let (start, len) = (place.start, place.len);
            return Err(corrupt(format!(
                "region {guid} of {len} bytes at byte {start}"
            )));
        }
        if place.end() > file_len {
            return Err(corrupt(format!(
                "region {guid} ends at byte {}, and the file at byte {file_len}",
                place.end()
            )));
        }
        places.push(place);
        match guid {
            BAT_REGION => bat = Some(place),
            METADATA_REGION => metadata = Some(place),
            _ if entry.required.get() & REGION_REQUIRED != 0 => {
                let what = format!("a required region {guid}");
                return Err(VhdxError::Unsupported { what });
            }
            _ => others.push(place),
        }
    }
    places.retain(|place| place.len > 0);
    places.sort();
    if let Some(pair) = places.windows(2).find(|p| p[0].overlaps(p[1])) {
        return Err(corrupt(format!("two regions share byte {}", pair[1].start)));
    }
    let bat = bat.ok_or_else(|| corrupt("no block allocation table".into()))?;
    let metadata = metadata.ok_or_else(|| corrupt("no metadata".into()))?;
    let items = Items::read(disk, metadata)?;
    let mut info = items.info(disk)?;
    info.data_write_guid = header.raw.data_write_guid;
    let chunk_ratio = chunk_ratio(info.block_size, info.logical_sector_size);
    let layout = Layout {
        info,
        log: header.log,
        bat,
        metadata,
        others,
        virtual_size_at: items.virtual_size,
        id_at: items.id,
        chunk_ratio,
    };
    let (need, have) = (layout.bat_entries(layout.info.virtual_size), bat.len / 8);
    if need > have {
        let detail = format!("{have} entries, and the disk needs {need}");
        return Err(VhdxError::corrupt(Structure::Bat, bat.start, detail));
    }
    Ok(layout)
}

/// Where the items of the metadata are in the file, in bytes.
struct Items {
    table: u64,
    file_parameters: u64,
    virtual_size: u64,
    id: u64,
    logical_sector_size: u64,
    physical_sector_size: u64,
}

impl Items {
    fn read<R: ReadAt + ?Sized>(disk: &R, region: Extent) -> Result<Self, VhdxError> {
        let at = region.start;
        let corrupt = |detail: String| VhdxError::corrupt(Structure::Metadata, at, detail);
        let mut bytes = vec![0; TABLE_BYTES];
        if region.len < TABLE_LEN {
            return Err(corrupt(format!("a region of {} bytes", region.len)));
        }
        disk.read_exact_at(at, &mut bytes)
            .map_err(VhdxError::reading(Structure::Metadata, at))?;
        let (table, rest) = RawMetadataTable::read_from_prefix(&bytes)
            .map_err(|_| corrupt("it is cut short".into()))?;
        if table.signature != METADATA_SIGNATURE {
            return Err(corrupt("the signature is not \"metadata\"".into()));
        }
        let count = table.entry_count.get();
        if u32::from(count) > MAX_TABLE_ENTRIES {
            return Err(corrupt(format!("{count} entries")));
        }
        let known = [
            (FILE_PARAMETERS, 8),
            (VIRTUAL_DISK_SIZE, 8),
            (VIRTUAL_DISK_ID, 16),
            (LOGICAL_SECTOR_SIZE, 4),
            (PHYSICAL_SECTOR_SIZE, 4),
        ];
        let mut places = [None; 5];
        let mut taken = Vec::new();
        let mut seen = HashSet::new();
        let entries = rest
            .chunks_exact(size_of::<RawMetadataEntry>())
            .take(usize::from(count))
            .filter_map(|entry| RawMetadataEntry::read_from_bytes(entry).ok());
        for entry in entries {
            let (guid, flags) = (entry.item_id, entry.flags.get());
            let (offset, length) = (u64::from(entry.offset.get()), u64::from(entry.length.get()));
            if !seen.insert((guid, flags & IS_USER)) {
                return Err(corrupt(format!("item {guid} twice")));
            }
            let end = offset.saturating_add(length);
            if length > MIB || (length > 0 && offset < TABLE_LEN) || end > region.len {
                return Err(corrupt(format!(
                    "item {guid} of {length} bytes at byte {offset} of the region"
                )));
            }
            taken.push(Extent {
                start: offset,
                len: length,
            });
            let which = known.iter().position(|(id, _)| *id == guid);
            if flags & IS_USER != 0 {
                // A user's item: the same GUID means something else, and none is known here.
                if flags & IS_REQUIRED != 0 {
                    let what = format!("a required user item {guid}");
                    return Err(VhdxError::Unsupported { what });
                }
            } else if let Some(which) = which {
                let expected = known[which].1;
                if length != expected {
                    return Err(corrupt(format!("item {guid} of {length} bytes")));
                }
                places[which] = Some(at.saturating_add(offset));
            } else if guid == PARENT_LOCATOR {
                // Only differencing disks have one, and the file parameters say which are.
            } else if flags & IS_REQUIRED != 0 {
                let what = format!("a required metadata item {guid}");
                return Err(VhdxError::Unsupported { what });
            }
        }
        taken.retain(|item| item.len > 0);
        taken.sort();
        if let Some(pair) = taken.windows(2).find(|p| p[0].overlaps(p[1])) {
            let shared = pair[1].start;
            return Err(corrupt(format!(
                "two items share byte {shared} of the region"
            )));
        }
        let place = |which: usize| {
            places[which].ok_or_else(|| corrupt(format!("no item {}", known[which].0)))
        };
        Ok(Self {
            table: at,
            file_parameters: place(0)?,
            virtual_size: place(1)?,
            id: place(2)?,
            logical_sector_size: place(3)?,
            physical_sector_size: place(4)?,
        })
    }

    fn info<R: ReadAt + ?Sized>(&self, disk: &R) -> Result<Info, VhdxError> {
        fn item<const N: usize, R: ReadAt + ?Sized>(
            disk: &R,
            offset: u64,
        ) -> Result<[u8; N], VhdxError> {
            let mut bytes = [0; N];
            disk.read_exact_at(offset, &mut bytes)
                .map_err(VhdxError::reading(Structure::Metadata, offset))?;
            Ok(bytes)
        }
        let corrupt = |offset, detail| VhdxError::corrupt(Structure::Metadata, offset, detail);
        let parameters =
            RawFileParameters::read_from_bytes(&item::<8, R>(disk, self.file_parameters)?)
                .map_err(|_| corrupt(self.table, "file parameters".to_owned()))?;
        let (block_size, flags) = (parameters.block_size.get(), parameters.flags.get());
        if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size)
        {
            let detail = format!("blocks of {block_size} bytes");
            return Err(corrupt(self.file_parameters, detail));
        }
        if flags & HAS_PARENT != 0 {
            return Err(VhdxError::Differencing);
        }
        let sector = |offset| match u32::from_le_bytes(item(disk, offset)?) {
            size @ (512 | 4096) => Ok(size),
            other => Err(corrupt(offset, format!("sectors of {other} bytes"))),
        };
        let logical_sector_size = sector(self.logical_sector_size)?;
        let virtual_size = u64::from_le_bytes(item(disk, self.virtual_size)?);
        if virtual_size > MAX_VIRTUAL_SIZE
            || !virtual_size.is_multiple_of(u64::from(logical_sector_size))
        {
            let detail = format!("a disk of {virtual_size} bytes");
            return Err(corrupt(self.virtual_size, detail));
        }
        Ok(Info {
            virtual_size,
            block_size,
            logical_sector_size,
            physical_sector_size: sector(self.physical_sector_size)?,
            id: Guid(item(disk, self.id)?),
            fixed: flags & LEAVE_BLOCKS_ALLOCATED != 0,
            data_write_guid: Guid::ZERO,
            replayed: 0,
        })
    }
}
