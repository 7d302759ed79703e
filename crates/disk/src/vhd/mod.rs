//! The fixed VHD: a raw disk and a 512-byte footer behind it.
//!
//! Rules from Microsoft's *Virtual Hard Disk Image Format Specification*, version 1.0 (2006), cited below as "VHD" with
//! the section's name; the page `docs/format/vhd.md` gives the layout as this project writes it.

mod format;

pub use format::{Creator, FOOTER_LEN, Geometry, RawFooter};

use std::io;

use lcow_blockio::{ReadAt, SubRange, WriteAt};
use zerocopy::{FromZeros, IntoBytes};

/// What is wrong with a VHD.
#[derive(Debug, thiserror::Error)]
pub enum VhdError {
    /// Not a VHD, or a damaged one.
    #[error("not a good VHD footer at byte {offset}: {detail}")]
    Corrupt {
        /// Where in the file, in bytes.
        offset: u64,
        /// What was found, and what should have been.
        detail: String,
    },
    /// A VHD of a kind that is not read here.
    #[error("a {kind} VHD is not supported here: only fixed ones are")]
    Unsupported {
        /// `dynamic`, or the type's number.
        kind: String,
    },
    /// A VHD that names another file as its parent. Following it could open any file on the host, so none is.
    #[error(
        "a differencing VHD is refused: its data is in a parent file, and parents are never followed"
    )]
    Differencing,
    /// A size that a VHD can't have.
    #[error("a VHD of {size} bytes is not possible: the size must be a multiple of 512")]
    Size {
        /// The size asked for, in bytes.
        size: u64,
    },
    /// Reading or writing failed.
    #[error("{operation} the VHD footer at byte {offset}")]
    Io {
        /// `reading` or `writing`.
        operation: &'static str,
        /// Where in the file, in bytes.
        offset: u64,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

/// A footer whose checksum, version and type were found good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// The disk's size in bytes; the footer is not counted.
    pub current_size: u64,
    /// The disk's identity.
    pub unique_id: [u8; 16],
    /// Who wrote it.
    pub creator: Creator,
    /// Cylinders, heads and sectors. Zero in disks of the original driver, which wrote none.
    pub geometry: Geometry,
}

/// Writes a fixed VHD's footer at byte `data_len`, behind the disk's data, and makes the file end there.
///
/// The same size and id give the same bytes: the timestamp is zero (VHD "Time Stamp": 2000-01-01T00:00:00Z).
///
/// # Errors
/// [`VhdError::Size`] unless `data_len` is a multiple of 512; [`VhdError::Io`] if the disk can't be written.
pub fn write_footer<D: WriteAt>(
    disk: &D,
    data_len: u64,
    unique_id: [u8; 16],
) -> Result<(), VhdError> {
    if !data_len.is_multiple_of(format::SECTOR) {
        return Err(VhdError::Size { size: data_len });
    }
    let Some(end) = data_len.checked_add(FOOTER_LEN) else {
        return Err(VhdError::Size { size: data_len });
    };
    let footer = RawFooter::fixed(data_len, unique_id);
    let failed = |source| VhdError::Io {
        operation: "writing",
        offset: data_len,
        source,
    };
    disk.set_len(end).map_err(failed)?;
    disk.write_all_at(data_len, footer.as_bytes())
        .map_err(failed)
}

/// Reads a fixed VHD: its footer, and the disk in it as a byte range.
///
/// # Errors
/// [`VhdError::Corrupt`] if the last 512 bytes are no good footer or the file is too short for the size it gives;
/// [`VhdError::Differencing`] and [`VhdError::Unsupported`] for the other types.
pub fn open<R: ReadAt>(disk: R) -> Result<(Footer, SubRange<R>), VhdError> {
    let io = |offset| {
        move |source| VhdError::Io {
            operation: "reading",
            offset,
            source,
        }
    };
    let size = disk.size().map_err(io(0))?;
    let Some(offset) = size.checked_sub(FOOTER_LEN) else {
        return Err(VhdError::Corrupt {
            offset: 0,
            detail: format!("the file has only {size} bytes"),
        });
    };
    let mut raw = RawFooter::new_zeroed();
    disk.read_exact_at(offset, raw.as_mut_bytes())
        .map_err(io(offset))?;
    let footer = raw.validate().map_err(|e| e.at(offset))?;
    if footer.current_size > offset {
        let detail = format!(
            "a disk of {} bytes in a file with {offset} bytes before its footer",
            footer.current_size
        );
        return Err(VhdError::Corrupt { offset, detail });
    }
    Ok((footer, SubRange::new(disk, 0, footer.current_size)))
}
