//! Reading the log (MS-VHDX 2.3).
//!
//! The log is a ring of entries, each a whole number of 4 KiB sectors: a header with descriptors behind it, further sectors of
//! descriptors, and one data sector for each data descriptor. Entries that follow one another in place and number make a
//! sequence; the one whose last entry has the greatest number is what must be replayed.
//!
//! The cost of finding it is linear in the log's length whatever the log says: an entry can't contain a sector that begins
//! with an entry's signature, so every sector belongs to one candidate only.

use std::collections::HashMap;

use lcow_blockio::ReadAt;
use zerocopy::{FromBytes, IntoBytes};

use super::error::{Structure, VhdxError};
use super::format::{
    DATA_DESCRIPTOR_SIGNATURE, DATA_SIGNATURE, Guid, LOG_SECTOR, LOG_SIGNATURE, MAX_FILE_SIZE,
    REGION_TABLE_OFFSETS, RawDataSector, RawDescriptor, RawLogEntry, ZERO_SIGNATURE,
};
use super::header::{Extent, Header};

/// What a log entry does to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// A sector gets new bytes.
    Data(LoggedSector, u64),
    /// So many bytes from there on become zeros.
    Zero { target: u64, len: u64 },
}

/// Where the bytes of a logged sector are: most in the log's data sector, twelve in the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoggedSector {
    /// Where in the file the data sector is.
    source: u64,
    leading: [u8; 8],
    trailing: [u8; 4],
}

impl LoggedSector {
    /// Where in the file the data sector is, in bytes.
    pub(super) fn offset(&self) -> u64 {
        self.source
    }

    pub(super) fn read<R: ReadAt + ?Sized>(&self, disk: &R) -> std::io::Result<[u8; 4096]> {
        let mut sector = [0; 4096];
        disk.read_exact_at(self.source, &mut sector)?;
        if let Some(head) = sector.first_chunk_mut::<8>() {
            *head = self.leading;
        }
        if let Some(tail) = sector.last_chunk_mut::<4>() {
            *tail = self.trailing;
        }
        Ok(sector)
    }
}

/// What must be replayed.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// In order.
    pub changes: Vec<Change>,
    /// The file must have at least this length once they are made, in bytes.
    pub file_len: u64,
    /// Entries in the sequence.
    pub entries: usize,
}

/// A log entry that is whole.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where in the log, in sectors.
    at: u64,
    /// In sectors.
    sectors: u64,
    sequence: u64,
    /// Where in the log the first entry to replay is, in bytes.
    tail: u64,
    flushed_file_offset: u64,
    last_file_offset: u64,
}

/// Reads what the log holds. Nothing, if the header says that the log is empty or no entry was ever completed: an entry that
/// is not whole was not yet followed by any change of what it describes.
pub(super) fn read<R: ReadAt + ?Sized>(
    disk: &R,
    header: &Header,
    file_len: u64,
) -> Result<Replay, VhdxError> {
    if header.log_guid() == Guid::ZERO {
        return Ok(Replay::default());
    }
    if header.log.end() > file_len {
        return Err(VhdxError::corrupt(
            Structure::Log,
            header.log.start,
            "the file ends before the log does",
        ));
    }
    let log = Log {
        disk,
        place: header.log,
        guid: header.log_guid(),
    };
    let sequence = log.active()?;
    let Some(head) = sequence.last() else {
        return Ok(Replay::default());
    };
    if head.flushed_file_offset > file_len {
        let detail = format!(
            "the file has {file_len} bytes, and had {} when the log was written",
            head.flushed_file_offset
        );
        return Err(VhdxError::corrupt(Structure::File, file_len, detail));
    }
    let mut replay = Replay {
        changes: Vec::new(),
        file_len: file_len.max(head.last_file_offset),
        entries: sequence.len(),
    };
    for entry in &sequence {
        log.entry(entry.at, &mut |change| replay.changes.push(change))?;
    }
    for change in &replay.changes {
        let (target, len) = match *change {
            Change::Data(_, target) => (target, LOG_SECTOR),
            Change::Zero { target, len } => (target, len),
        };
        let extent = Extent { start: target, len };
        let detail = if !target.is_multiple_of(LOG_SECTOR) || !len.is_multiple_of(LOG_SECTOR) {
            "is not in whole sectors"
        } else if extent.end() > MAX_FILE_SIZE {
            "is past any file's end"
        } else if target < REGION_TABLE_OFFSETS[0] || extent.overlaps(header.log) {
            "is in the headers or in the log"
        } else {
            replay.file_len = replay.file_len.max(extent.end());
            continue;
        };
        let detail = format!("an entry for {len} bytes at byte {target}, which {detail}");
        return Err(VhdxError::corrupt(Structure::Log, header.log.start, detail));
    }
    if replay.file_len > MAX_FILE_SIZE {
        let detail = format!("an entry for a file of {} bytes", replay.file_len);
        return Err(VhdxError::corrupt(Structure::Log, header.log.start, detail));
    }
    Ok(replay)
}

struct Log<'a, R: ?Sized> {
    disk: &'a R,
    place: Extent,
    guid: Guid,
}

impl<R: ReadAt + ?Sized> Log<'_, R> {
    fn sectors(&self) -> u64 {
        self.place.len / LOG_SECTOR
    }

    /// Where in the file a sector of the ring is.
    fn offset(&self, sector: u64) -> u64 {
        let inside = sector.checked_rem(self.sectors()).unwrap_or(0);
        self.place
            .start
            .saturating_add(inside.saturating_mul(LOG_SECTOR))
    }

    fn sector(&self, sector: u64) -> Result<[u8; 4096], VhdxError> {
        let mut bytes = [0; 4096];
        let offset = self.offset(sector);
        self.disk
            .read_exact_at(offset, &mut bytes)
            .map_err(VhdxError::reading(Structure::Log, offset))?;
        Ok(bytes)
    }

    /// The active sequence, oldest entry first (MS-VHDX 2.3.2).
    fn active(&self) -> Result<Vec<Entry>, VhdxError> {
        let mut entries = Vec::new();
        let mut at = 0;
        let mut data_end = 0;
        while at < self.sectors() {
            // A log may be 4 GiB long, and mostly a hole.
            if at >= data_end {
                let from = self.offset(at);
                let data = self
                    .disk
                    .next_data(from)
                    .map_err(VhdxError::reading(Structure::Log, from))?;
                let Some(data) = data.filter(|data| data.start < self.place.end()) else {
                    break;
                };
                let sector = |at: u64| at.saturating_sub(self.place.start) / LOG_SECTOR;
                at = sector(data.start);
                data_end = sector(data.end).saturating_add(1);
            }
            let found = self.entry(at, &mut |_| {})?;
            let sectors = found.map_or(1, |entry| entry.sectors);
            entries.extend(found);
            at = at.saturating_add(sectors);
        }
        let ring = self.sectors().max(1);
        let by_end: HashMap<u64, usize> = entries
            .iter()
            .enumerate()
            .filter_map(|(n, e)| Some((e.at.saturating_add(e.sectors).checked_rem(ring)?, n)))
            .collect();
        let before = |entry: &Entry| {
            let earlier = entries.get(*by_end.get(&entry.at)?)?;
            (earlier.sequence.checked_add(1) == Some(entry.sequence)).then_some(earlier)
        };
        let followed: std::collections::HashSet<u64> =
            entries.iter().filter_map(|e| Some(before(e)?.at)).collect();
        let mut heads: Vec<&Entry> = entries
            .iter()
            .filter(|e| !followed.contains(&e.at))
            .collect();
        heads.sort_by_key(|e| std::cmp::Reverse(e.sequence));
        for head in heads {
            let mut sequence = vec![*head];
            let mut oldest = head;
            while oldest.at.saturating_mul(LOG_SECTOR) != head.tail {
                let Some(earlier) = before(oldest) else { break };
                sequence.push(*earlier);
                oldest = earlier;
            }
            if oldest.at.saturating_mul(LOG_SECTOR) == head.tail {
                sequence.reverse();
                return Ok(sequence);
            }
        }
        Ok(Vec::new())
    }

    /// The entry that begins in a sector, if there is a whole one; its changes are handed over one by one, even if it turns
    /// out not to be whole.
    fn entry(&self, at: u64, each: &mut dyn FnMut(Change)) -> Result<Option<Entry>, VhdxError> {
        let first = self.sector(at)?;
        let Ok((raw, _)) = RawLogEntry::ref_from_prefix(&first) else {
            return Ok(None);
        };
        let (length, count) = (
            u64::from(raw.entry_length.get()),
            raw.descriptor_count.get(),
        );
        let tail = u64::from(raw.tail.get());
        let sequence = raw.sequence_number.get();
        let sectors = length / LOG_SECTOR;
        let descriptors_end = u64::from(count).saturating_mul(32).saturating_add(64);
        let descriptor_sectors = descriptors_end.div_ceil(LOG_SECTOR);
        if raw.signature != LOG_SIGNATURE
            || raw.log_guid != self.guid
            || sequence == 0
            || !length.is_multiple_of(LOG_SECTOR)
            || !tail.is_multiple_of(LOG_SECTOR)
            || tail >= self.place.len
            || sectors > self.sectors()
            || descriptor_sectors > sectors
        {
            return Ok(None);
        }
        let entry = Entry {
            at,
            sectors,
            sequence,
            tail,
            flushed_file_offset: raw.flushed_file_offset.get(),
            last_file_offset: raw.last_file_offset.get(),
        };
        let sum = raw.checksum.get();
        let mut crc = crc32c::crc32c_append(0, &first[..4]);
        crc = crc32c::crc32c_append(crc, &[0; 4]);
        crc = crc32c::crc32c_append(crc, &first[8..]);

        let mut left = count;
        let mut data_sectors: u64 = 0;
        for n in 0..descriptor_sectors {
            let later;
            let descriptors = if n == 0 {
                &first[size_of::<RawLogEntry>()..]
            } else {
                later = self.sector(at.saturating_add(n))?;
                crc = crc32c::crc32c_append(crc, &later);
                &later[..]
            };
            for bytes in descriptors.chunks_exact(size_of::<RawDescriptor>()) {
                let Some(next) = left.checked_sub(1) else {
                    break;
                };
                left = next;
                let Ok(raw) = RawDescriptor::ref_from_bytes(bytes) else {
                    return Ok(None);
                };
                if raw.sequence_number.get() != sequence {
                    return Ok(None);
                }
                let target = raw.file_offset.get();
                match raw.signature {
                    ZERO_SIGNATURE => each(Change::Zero {
                        target,
                        len: raw.leading_bytes.get(),
                    }),
                    DATA_DESCRIPTOR_SIGNATURE => {
                        let place = at
                            .saturating_add(descriptor_sectors)
                            .saturating_add(data_sectors);
                        data_sectors = data_sectors.saturating_add(1);
                        let sector = LoggedSector {
                            source: self.offset(place),
                            leading: raw.leading_bytes.to_bytes(),
                            trailing: raw.trailing_bytes,
                        };
                        each(Change::Data(sector, target));
                    }
                    _ => return Ok(None),
                }
            }
        }
        let data_end = descriptor_sectors.saturating_add(data_sectors);
        if data_end > sectors {
            return Ok(None);
        }
        for n in descriptor_sectors..sectors {
            let bytes = self.sector(at.saturating_add(n))?;
            crc = crc32c::crc32c_append(crc, &bytes);
            let Ok(raw) = RawDataSector::ref_from_bytes(&bytes) else {
                return Ok(None);
            };
            // Sectors behind the last data sector may hold anything but an entry.
            let good = if n < data_end {
                let high = u64::from(raw.sequence_high.get()) << 32;
                raw.signature == DATA_SIGNATURE
                    && (high | u64::from(raw.sequence_low.get())) == sequence
            } else {
                raw.signature != LOG_SIGNATURE
            };
            if !good {
                return Ok(None);
            }
        }
        Ok((crc == sum).then_some(entry))
    }
}

/// The bytes of a log entry that gives sectors of the file new bytes.
///
/// `at` and `tail` are places in the log; `flushed` and `last` lengths of the file, all in bytes.
pub(super) fn write_entry(
    guid: Guid,
    sequence: u64,
    tail: u64,
    (flushed, last): (u64, u64),
    sectors: &[(u64, [u8; 4096])],
) -> Result<Vec<u8>, VhdxError> {
    let count = sectors.len();
    let too_many = || VhdxError::refused(format!("{count} sectors don't fit in a log entry"));
    let descriptors_len = count
        .checked_mul(size_of::<RawDescriptor>())
        .and_then(|n| n.checked_add(size_of::<RawLogEntry>()))
        .and_then(|n| n.checked_next_multiple_of(4096))
        .ok_or_else(too_many)?;
    let len = count
        .checked_mul(4096)
        .and_then(|n| n.checked_add(descriptors_len))
        .ok_or_else(too_many)?;
    let raw = RawLogEntry {
        signature: LOG_SIGNATURE,
        checksum: 0.into(),
        entry_length: u32::try_from(len).map_err(|_| too_many())?.into(),
        tail: u32::try_from(tail).map_err(|_| too_many())?.into(),
        sequence_number: sequence.into(),
        descriptor_count: u32::try_from(count).map_err(|_| too_many())?.into(),
        reserved: 0.into(),
        log_guid: guid,
        flushed_file_offset: flushed.into(),
        last_file_offset: last.into(),
    };
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(raw.as_bytes());
    for (target, sector) in sectors {
        let (leading, trailing) = (sector.first_chunk::<8>(), sector.last_chunk::<4>());
        let raw = RawDescriptor {
            signature: DATA_DESCRIPTOR_SIGNATURE,
            trailing_bytes: trailing.copied().unwrap_or_default(),
            leading_bytes: u64::from_le_bytes(leading.copied().unwrap_or_default()).into(),
            file_offset: (*target).into(),
            sequence_number: sequence.into(),
        };
        bytes.extend_from_slice(raw.as_bytes());
    }
    bytes.resize(descriptors_len, 0);
    let [low, high] = [sequence & u64::from(u32::MAX), sequence >> 32]
        .map(|half| u32::try_from(half).unwrap_or(u32::MAX));
    for (_, sector) in sectors {
        bytes.extend_from_slice(&DATA_SIGNATURE);
        bytes.extend_from_slice(&high.to_le_bytes());
        bytes.extend_from_slice(sector.get(8..4092).unwrap_or_default());
        bytes.extend_from_slice(&low.to_le_bytes());
    }
    super::format::seal(&mut bytes);
    Ok(bytes)
}
