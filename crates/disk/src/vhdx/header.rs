//! The two headers, of which one is current (MS-VHDX 2.2.2).

use lcow_blockio::{ReadAt, WriteAt};
use zerocopy::{FromZeros, IntoBytes};

use super::error::{Structure, VhdxError};
use super::format::{
    FILE_TYPE_OFFSET, FILE_TYPE_SIGNATURE, Guid, HEADER_OFFSETS, HEADER_SECTION_LEN,
    HEADER_SIGNATURE, LOG_VERSION, MAX_FILE_SIZE, MIB, RawHeader, VERSION, is_sealed, seal,
};

/// A range of the file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Extent {
    pub start: u64,
    pub len: u64,
}

impl Extent {
    pub(super) fn end(self) -> u64 {
        self.start.saturating_add(self.len)
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// The current header.
#[derive(Debug, Clone)]
pub(super) struct Header {
    /// As it was read.
    pub raw: RawHeader,
    /// Which of the two it is.
    pub slot: usize,
    /// Why the other one was not taken, if it should not look as it does.
    pub other: Option<(u64, String)>,
    pub log: Extent,
}

impl Header {
    pub(super) fn log_guid(&self) -> Guid {
        self.raw.log_guid
    }

    /// Makes `raw`'s fields current: first in the place of the header that is not, then in the other place, so that a power
    /// cut at any moment leaves one good header, and damage to one later loses nothing (MS-VHDX 2.2.2.1).
    pub(super) fn update<D: WriteAt + ?Sized>(
        &mut self,
        disk: &D,
        change: impl Fn(&mut RawHeader),
    ) -> Result<(), VhdxError> {
        change(&mut self.raw);
        for _ in 0..2 {
            let Some(sequence) = self.raw.sequence_number.get().checked_add(1) else {
                return Err(VhdxError::Unsupported {
                    what: "no header sequence numbers left".into(),
                });
            };
            self.raw.sequence_number = sequence.into();
            self.raw.checksum = 0.into();
            seal(self.raw.as_mut_bytes());
            self.slot = usize::from(self.slot == 0);
            let offset = HEADER_OFFSETS[self.slot];
            disk.write_all_at(offset, self.raw.as_bytes())
                .map_err(VhdxError::io("writing", offset))?;
            disk.sync().map_err(VhdxError::io("syncing", offset))?;
        }
        Ok(())
    }
}

/// Checks the file's length and type, and finds the current header.
pub(super) fn read<R: ReadAt + ?Sized>(disk: &R) -> Result<(Header, u64), VhdxError> {
    let file_len = disk.size().map_err(VhdxError::io("sizing", 0))?;
    if !(HEADER_SECTION_LEN..=MAX_FILE_SIZE).contains(&file_len) {
        let detail = format!("{file_len} bytes can't be a VHDX's length");
        return Err(VhdxError::corrupt(Structure::File, 0, detail));
    }
    let mut signature = [0; 8];
    disk.read_exact_at(FILE_TYPE_OFFSET, &mut signature)
        .map_err(VhdxError::reading(Structure::File, FILE_TYPE_OFFSET))?;
    if signature != FILE_TYPE_SIGNATURE {
        return Err(VhdxError::corrupt(
            Structure::File,
            FILE_TYPE_OFFSET,
            "the signature is not \"vhdxfile\"",
        ));
    }
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for (slot, offset) in HEADER_OFFSETS.into_iter().enumerate() {
        let mut raw = RawHeader::new_zeroed();
        disk.read_exact_at(offset, raw.as_mut_bytes())
            .map_err(VhdxError::reading(Structure::Header, offset))?;
        if raw.signature != HEADER_SIGNATURE {
            bad.push((offset, "the signature is not \"head\"".to_owned()));
        } else if !is_sealed(raw.as_bytes()) {
            bad.push((offset, "the checksum is wrong".to_owned()));
        } else {
            good.push((slot, raw));
        }
    }
    let (slot, raw) = match *good.as_slice() {
        [one] => one,
        // Disk2vhd writes the same header twice, number and all.
        [one, two] if one.1 == two.1 => one,
        [one, two] if one.1.sequence_number == two.1.sequence_number => {
            return Err(VhdxError::corrupt(
                Structure::Header,
                HEADER_OFFSETS[two.0],
                "two different headers with the same sequence number",
            ));
        }
        [one, two] if one.1.sequence_number.get() > two.1.sequence_number.get() => one,
        [_, two] => two,
        _ => {
            let (offset, detail) = bad.swap_remove(0);
            return Err(VhdxError::corrupt(Structure::Header, offset, detail));
        }
    };
    let log = validate(&raw, HEADER_OFFSETS[slot])?;
    let header = Header {
        raw,
        slot,
        other: bad.pop(),
        log,
    };
    Ok((header, file_len))
}

/// Checks a header's fields, and gives the log's place.
fn validate(raw: &RawHeader, offset: u64) -> Result<Extent, VhdxError> {
    if raw.version.get() != VERSION {
        let what = format!("version {}", raw.version.get());
        return Err(VhdxError::Unsupported { what });
    }
    let log = Extent {
        start: raw.log_offset.get(),
        len: u64::from(raw.log_length.get()),
    };
    if raw.log_guid != Guid::ZERO && raw.log_version.get() != LOG_VERSION {
        let what = format!("log version {}", raw.log_version.get());
        return Err(VhdxError::Unsupported { what });
    }
    let aligned = log.start.is_multiple_of(MIB) && log.len.is_multiple_of(MIB);
    if !aligned || log.start < HEADER_SECTION_LEN || log.end() > MAX_FILE_SIZE {
        let detail = format!("a log of {} bytes at byte {}", log.len, log.start);
        return Err(VhdxError::corrupt(Structure::Header, offset, detail));
    }
    Ok(log)
}
