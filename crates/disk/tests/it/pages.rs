//! The pages under `docs/format/` against the structures and constants.

use lcow_disk::vhd::{RawDynamicHeader, RawFooter};
use lcow_disk::vhdx::*;

/// The first three columns of a structure's table: offset, length, name.
macro_rules! fields {
    ($structure:ty: $($field:ident),*) => {{
        let fields = [$((std::mem::offset_of!($structure, $field), stringify!($field))),*];
        let ends = fields.iter().skip(1).map(|f| f.0).chain([size_of::<$structure>()]);
        fields
            .iter()
            .zip(ends)
            .map(|(&(at, name), end)| [at.to_string(), (end - at).to_string(), name.to_owned()])
            .collect::<Vec<_>>()
    }};
}

fn layout(table: &[Vec<String>]) -> Vec<Vec<String>> {
    table.iter().map(|row| row[..3].to_vec()).collect()
}

#[test]
fn the_vhd_page_tells_the_layout() {
    let tables = lcow_testkit::page_tables("format/vhd.md");
    let footer = fields!(
        RawFooter: cookie, features, file_format_version, data_offset, time_stamp, creator_application,
        creator_version, creator_host_os, original_size, current_size, cylinders, heads, sectors, disk_type,
        checksum, unique_id, saved_state, reserved
    );
    assert_eq!(layout(&tables[0]), footer);
    let header = fields!(
        RawDynamicHeader: cookie, data_offset, table_offset, header_version, max_table_entries, block_size,
        checksum, parent_unique_id, parent_time_stamp, reserved, parent_unicode_name, parent_locator_entries,
        reserved2
    );
    assert_eq!(layout(&tables[1]), header);
}

#[test]
fn the_vhdx_page_tells_the_layout() {
    let tables = lcow_testkit::page_tables("format/vhdx.md");
    let [
        places,
        header,
        regions,
        region,
        metadata,
        item,
        guids,
        states,
        entry,
        descriptor,
        data,
    ] = tables.as_slice()
    else {
        panic!("{} tables", tables.len())
    };
    let offsets: Vec<u64> = places.iter().map(|row| row[0].parse().unwrap()).collect();
    let [h1, h2] = HEADER_OFFSETS;
    let [r1, r2] = REGION_TABLE_OFFSETS;
    let file = crate::support::blank(1 << 30, 1 << 20);
    let field = |at: u64| {
        let mut bytes = [0; 8];
        lcow_blockio::ReadAt::read_exact_at(&file, at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    let (log, metadata_at, bat) = (field(h2 + 72), field(r1 + 32), field(r1 + 64));
    assert_eq!(
        offsets,
        [FILE_TYPE_OFFSET, h1, h2, r1, r2, log, metadata_at, bat]
    );
    assert_eq!(log, HEADER_SECTION_LEN);

    let header_fields = fields!(
        RawHeader: signature, checksum, sequence_number, file_write_guid, data_write_guid, log_guid, log_version,
        version, log_length, log_offset, reserved
    );
    assert_eq!(layout(header), header_fields);
    assert_eq!(
        layout(regions),
        fields!(RawRegionTable: signature, checksum, entry_count, reserved)
    );
    assert_eq!(
        layout(region),
        fields!(RawRegionEntry: guid, file_offset, length, required)
    );
    assert_eq!(
        layout(metadata),
        fields!(RawMetadataTable: signature, reserved, entry_count, reserved2)
    );
    assert_eq!(
        layout(item),
        fields!(RawMetadataEntry: item_id, offset, length, flags, reserved)
    );
    let named = [
        BAT_REGION,
        METADATA_REGION,
        FILE_PARAMETERS,
        VIRTUAL_DISK_SIZE,
        VIRTUAL_DISK_ID,
        LOGICAL_SECTOR_SIZE,
        PHYSICAL_SECTOR_SIZE,
        PARENT_LOCATOR,
    ]
    .map(|guid| guid.to_string());
    let on_page: Vec<_> = guids.iter().map(|row| row[0].clone()).collect();
    assert_eq!(on_page, named);
    let entry_fields = fields!(
        RawLogEntry: signature, checksum, entry_length, tail, sequence_number, descriptor_count, reserved, log_guid,
        flushed_file_offset, last_file_offset
    );
    assert_eq!(layout(entry), entry_fields);
    assert_eq!(
        layout(descriptor),
        fields!(RawDescriptor: signature, trailing_bytes, leading_bytes, file_offset, sequence_number)
    );
    assert_eq!(
        layout(data),
        fields!(RawDataSector: signature, sequence_high, data, sequence_low)
    );

    // What each state reads as, as the page says.
    for row in states {
        let file = crate::support::blank(1 << 20, 1 << 20);
        let place = bat + (1 << 20);
        lcow_blockio::WriteAt::write_all_at(&file, place, &[7; 4096]).unwrap();
        lcow_blockio::WriteAt::set_len(&file, place + (1 << 20)).unwrap();
        let entry = (place >> 20 << 20) | row[0].parse::<u64>().unwrap();
        lcow_blockio::WriteAt::write_all_at(&file, bat, &entry.to_le_bytes()).unwrap();
        let mut byte = [1];
        let image = open(&file).unwrap();
        let read = lcow_blockio::ReadAt::read_at(&image, 0, &mut byte);
        match row[3].as_str() {
            "zeros" => assert_eq!((read.unwrap(), byte), (1, [0]), "{row:?}"),
            "what is there" => assert_eq!((read.unwrap(), byte), (1, [7]), "{row:?}"),
            _ => assert!(read.is_err(), "{row:?}"),
        }
    }
}
