//! Making a blank disk.

use lcow_blockio::WriteAt;
use zerocopy::{FromZeros, IntoBytes};

use super::error::VhdxError;
use super::format::{
    BAT_REGION, FILE_PARAMETERS, FILE_TYPE_OFFSET, FILE_TYPE_SIGNATURE, Guid, HEADER_OFFSETS,
    HEADER_SECTION_LEN, HEADER_SIGNATURE, IS_REQUIRED, IS_VIRTUAL_DISK, LOGICAL_SECTOR_SIZE,
    MAX_BLOCK_SIZE, MAX_VIRTUAL_SIZE, METADATA_REGION, METADATA_SIGNATURE, MIB, MIN_BLOCK_SIZE,
    PHYSICAL_SECTOR_SIZE, REGION_REQUIRED, REGION_SIGNATURE, REGION_TABLE_OFFSETS,
    RawFileParameters, RawFileType, RawHeader, RawMetadataEntry, RawMetadataTable, RawRegionEntry,
    RawRegionTable, TABLE_BYTES, TABLE_LEN, VERSION, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE, seal,
};

/// The log's place, in bytes.
const LOG_OFFSET: u64 = HEADER_SECTION_LEN;
/// The log's length, in bytes.
const LOG_LEN: u32 = 1 << 20;
/// The metadata's place, in bytes.
const METADATA_OFFSET: u64 = 2 * MIB;
/// The metadata's length, in bytes.
const METADATA_LEN: u32 = 1 << 20;
/// The table's place, in bytes; blocks come behind it.
const BAT_OFFSET: u64 = 3 * MIB;

/// What disk to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size of the disk, in bytes: a multiple of the logical sector size, at most [`MAX_VIRTUAL_SIZE`].
    pub virtual_size: u64,
    /// Size of a block, in bytes: a power of two from 1 MiB to 256 MiB. Small ones waste less, large ones need a smaller table.
    pub block_size: u32,
    /// Size of a sector as a machine sees it, in bytes: 512 or 4096.
    pub logical_sector_size: u32,
    /// Size of a sector of the medium as a machine sees it, in bytes: 512 or 4096, at least the logical one.
    pub physical_sector_size: u32,
    /// The disk's identity. The same options give the same bytes, so two disks need two ids.
    pub id: Guid,
}

impl CreateOptions {
    /// A disk of so many bytes with blocks of 1 MiB, logical sectors of 512 bytes and physical ones of 4096.
    #[must_use]
    pub fn new(virtual_size: u64, id: Guid) -> Self {
        Self {
            virtual_size,
            block_size: MIN_BLOCK_SIZE,
            logical_sector_size: 512,
            physical_sector_size: 4096,
            id,
        }
    }

    fn validate(&self) -> Result<(), VhdxError> {
        let Self {
            virtual_size,
            block_size,
            logical_sector_size: logical,
            physical_sector_size: physical,
            ..
        } = *self;
        let refused = |what: String| Err(VhdxError::refused(what));
        if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size)
        {
            return refused(format!(
                "a VHDX can't have blocks of {block_size} bytes: powers of two from 1 MiB to 256 MiB are possible"
            ));
        }
        if ![512, 4096].contains(&logical) || ![512, 4096].contains(&physical) || physical < logical
        {
            return refused(format!(
                "a VHDX can't have sectors of {logical} bytes on a medium with {physical}: 512 and 4096 are possible"
            ));
        }
        if virtual_size == 0
            || virtual_size > MAX_VIRTUAL_SIZE
            || !virtual_size.is_multiple_of(u64::from(logical))
        {
            return refused(format!(
                "a VHDX can't have {virtual_size} bytes: whole sectors of {logical} bytes, at most 64 TiB, are possible"
            ));
        }
        Ok(())
    }
}

/// Writes a blank dynamic VHDX. What was in the file before is gone.
///
/// A few 4 KiB sectors are written; the rest of the file, 4 MiB for disks up to 128 GiB, is a hole. Nothing is synced, and a
/// file that is half made is no VHDX: make it under a temporary name, or [`sync`](WriteAt::sync) it before it is used.
///
/// # Errors
/// [`VhdxError::Refused`] for options that the format doesn't allow; [`VhdxError::Io`] if the file can't be written.
pub fn create<D: WriteAt + ?Sized>(disk: &D, options: &CreateOptions) -> Result<(), VhdxError> {
    options.validate()?;
    let bat_len = super::layout::bat_entries(
        options.virtual_size,
        options.block_size,
        options.logical_sector_size,
    )
    .saturating_mul(8)
    .next_multiple_of(MIB);
    let write = |offset: u64, bytes: &[u8]| {
        disk.write_all_at(offset, bytes)
            .map_err(VhdxError::io("writing", offset))
    };
    disk.set_len(0).map_err(VhdxError::io("emptying", 0))?;
    let end = BAT_OFFSET.saturating_add(bat_len);
    disk.set_len(end).map_err(VhdxError::io("growing", 0))?;

    let mut file_type = RawFileType::new_zeroed();
    file_type.signature = FILE_TYPE_SIGNATURE;
    for (unit, letter) in file_type.creator.iter_mut().zip("lcow".encode_utf16()) {
        *unit = letter.into();
    }
    write(FILE_TYPE_OFFSET, file_type.as_bytes())?;

    for (sequence, offset) in (1_u64..).zip(HEADER_OFFSETS) {
        let mut header = RawHeader::new_zeroed();
        header.signature = HEADER_SIGNATURE;
        header.sequence_number = sequence.into();
        // They only need to change when the file does.
        header.file_write_guid = options.id;
        header.data_write_guid = options.id;
        header.version = VERSION.into();
        header.log_length = LOG_LEN.into();
        header.log_offset = LOG_OFFSET.into();
        seal(header.as_mut_bytes());
        write(offset, header.as_bytes())?;
    }

    let bat_len = u32::try_from(bat_len)
        .map_err(|_| VhdxError::refused("a block allocation table of 4 GiB"))?;
    let regions = [
        (METADATA_REGION, METADATA_OFFSET, METADATA_LEN),
        (BAT_REGION, BAT_OFFSET, bat_len),
    ];
    let mut table = vec![0; TABLE_BYTES];
    let mut head = RawRegionTable::new_zeroed();
    head.signature = REGION_SIGNATURE;
    head.entry_count = 2.into();
    let mut entries = head.as_bytes().to_vec();
    for (guid, offset, length) in regions {
        let entry = RawRegionEntry {
            guid,
            file_offset: offset.into(),
            length: length.into(),
            required: REGION_REQUIRED.into(),
        };
        entries.extend_from_slice(entry.as_bytes());
    }
    table.splice(..entries.len(), entries);
    seal(&mut table);
    for offset in REGION_TABLE_OFFSETS {
        write(offset, &table)?;
    }

    let parameters = RawFileParameters {
        block_size: options.block_size.into(),
        flags: 0.into(),
    };
    let of_disk = IS_REQUIRED | IS_VIRTUAL_DISK;
    let items: [(Guid, u32, &[u8]); 5] = [
        (FILE_PARAMETERS, IS_REQUIRED, parameters.as_bytes()),
        (
            VIRTUAL_DISK_SIZE,
            of_disk,
            &options.virtual_size.to_le_bytes(),
        ),
        (VIRTUAL_DISK_ID, of_disk, options.id.as_bytes()),
        (
            LOGICAL_SECTOR_SIZE,
            of_disk,
            &options.logical_sector_size.to_le_bytes(),
        ),
        (
            PHYSICAL_SECTOR_SIZE,
            of_disk,
            &options.physical_sector_size.to_le_bytes(),
        ),
    ];
    let mut head = RawMetadataTable::new_zeroed();
    head.signature = METADATA_SIGNATURE;
    head.entry_count = 5.into();
    let mut table = head.as_bytes().to_vec();
    let mut contents = Vec::new();
    for (item_id, flags, bytes) in items {
        let behind = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let entry = RawMetadataEntry {
            item_id,
            offset: behind(contents.len().saturating_add(TABLE_BYTES)).into(),
            length: behind(bytes.len()).into(),
            flags: flags.into(),
            reserved: 0.into(),
        };
        table.extend_from_slice(entry.as_bytes());
        contents.extend_from_slice(bytes);
    }
    write(METADATA_OFFSET, &table)?;
    write(METADATA_OFFSET.saturating_add(TABLE_LEN), &contents)
}
