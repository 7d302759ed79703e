//! VHD: a raw disk and a 512-byte footer behind it (fixed), or blocks that take space when they are first written (dynamic).
//!
//! Layers and sandboxes are fixed ones: [`write_footer`] makes them and [`open`] takes nothing else. [`open_any`] reads dynamic
//! ones too, for what people bring along. Differencing ones are refused, and no parent is ever opened.
//!
//! Rules from Microsoft's *Virtual Hard Disk Image Format Specification*, version 1.0 (2006), cited below as "VHD" with
//! the section's name; the page `docs/format/vhd.md` gives the layout as this project writes it.

mod dynamic;
mod format;

pub use dynamic::Dynamic;
pub use format::{Creator, FOOTER_LEN, Geometry, Kind, RawDynamicHeader, RawFooter};

use std::io;
use std::ops::Range;

use lcow_blockio::{ReadAt, SubRange, WriteAt};
use zerocopy::{FromZeros, IntoBytes};

/// What is wrong with a VHD.
#[derive(Debug, thiserror::Error)]
pub enum VhdError {
    /// Not a VHD, or a damaged one.
    #[error("a damaged VHD, or none: at byte {offset}: {detail}")]
    Corrupt {
        /// Where in the file, in bytes.
        offset: u64,
        /// What was found, and what should have been.
        detail: String,
    },
    /// A VHD of a kind that is not read here.
    #[error("a VHD of another kind is not supported here: {kind}")]
    Unsupported {
        /// `dynamic`, where only fixed ones are taken, or the type's or version's number.
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
    #[error("{operation} the VHD at byte {offset}")]
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
    /// Fixed or dynamic.
    pub kind: Kind,
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

impl VhdError {
    /// For `map_err`: reading at `offset` failed. A read that ends early means that the file is cut short.
    fn reading(offset: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Corrupt {
                offset,
                detail: "the file ends here".into(),
            },
            _ => Self::Io {
                operation: "reading",
                offset,
                source,
            },
        }
    }
}

/// For the traits of `lcow_blockio`; the VHD's error stays the source, and can be had by downcast.
impl From<VhdError> for io::Error {
    fn from(error: VhdError) -> Self {
        let kind = match &error {
            VhdError::Corrupt { .. } => io::ErrorKind::InvalidData,
            VhdError::Unsupported { .. } => io::ErrorKind::Unsupported,
            VhdError::Differencing | VhdError::Size { .. } => io::ErrorKind::InvalidInput,
            VhdError::Io { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// Reads the footer at the end, and says where it is.
fn read_footer<R: ReadAt>(disk: &R) -> Result<(Footer, u64), VhdError> {
    let size = disk.size().map_err(VhdError::reading(0))?;
    let Some(offset) = size.checked_sub(FOOTER_LEN) else {
        return Err(VhdError::Corrupt {
            offset: 0,
            detail: format!("the file has only {size} bytes"),
        });
    };
    Ok((footer_at(disk, offset)?, offset))
}

fn footer_at<R: ReadAt>(disk: &R, offset: u64) -> Result<Footer, VhdError> {
    let mut raw = RawFooter::new_zeroed();
    disk.read_exact_at(offset, raw.as_mut_bytes())
        .map_err(VhdError::reading(offset))?;
    raw.validate().map_err(|e| e.at(offset))
}

/// Reads a fixed VHD: its footer, and the disk in it as a byte range.
///
/// # Errors
/// [`VhdError::Corrupt`] if the last 512 bytes are no good footer or the file is too short for the size it gives;
/// [`VhdError::Differencing`] and [`VhdError::Unsupported`] for the other types.
pub fn open<R: ReadAt>(disk: R) -> Result<(Footer, SubRange<R>), VhdError> {
    let (footer, offset) = read_footer(&disk)?;
    let Kind::Fixed = footer.kind else {
        return Err(VhdError::Unsupported {
            kind: "dynamic".into(),
        });
    };
    if footer.current_size > offset {
        let detail = format!(
            "a disk of {} bytes in a file with {offset} bytes before its footer",
            footer.current_size
        );
        return Err(VhdError::Corrupt { offset, detail });
    }
    let size = footer.current_size;
    Ok((footer, SubRange::new(disk, 0, size)))
}

/// The disk in a VHD, for reading. Made by [`open_any`].
#[derive(Debug)]
pub struct Vhd<R> {
    footer: Footer,
    contents: Contents<R>,
}

#[derive(Debug)]
enum Contents<R> {
    Fixed(SubRange<R>),
    Dynamic(Dynamic<R>),
}

/// Reads a fixed or a dynamic VHD.
///
/// A dynamic one has its footer at the end and a copy at the beginning, which must agree. Where the end has none, as when the
/// file is cut short, the copy counts, if it is a dynamic disk's (VHD "Dynamic Disk Header Format").
///
/// # Errors
/// As [`open`], but for dynamic disks, of which the dynamic header must be good, too. Entries of their table are checked when
/// they are used, and then a read fails with the same errors inside an [`io::Error`]; [`Dynamic::check`] looks at all of them.
pub fn open_any<R: ReadAt>(disk: R) -> Result<Vhd<R>, VhdError> {
    let (footer, end) = match read_footer(&disk) {
        Ok((footer, offset)) => match footer.kind {
            Kind::Fixed => {
                let (footer, contents) = open(disk)?;
                let contents = Contents::Fixed(contents);
                return Ok(Vhd { footer, contents });
            }
            Kind::Dynamic { .. } => {
                let copy = footer_at(&disk, 0)?;
                if (copy.kind, copy.current_size) != (footer.kind, footer.current_size) {
                    return Err(VhdError::Corrupt {
                        offset: 0,
                        detail: "the copy of the footer differs from the footer".into(),
                    });
                }
                (footer, offset)
            }
        },
        Err(error @ VhdError::Corrupt { .. }) => match footer_at(&disk, 0) {
            Ok(copy) if copy.kind != Kind::Fixed => {
                (copy, disk.size().map_err(VhdError::reading(0))?)
            }
            Err(VhdError::Differencing) => return Err(VhdError::Differencing),
            _ => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let Kind::Dynamic { header_offset } = footer.kind else {
        return Err(VhdError::Corrupt {
            offset: 0,
            detail: "the copy of the footer is a fixed disk's".into(),
        });
    };
    let contents = Dynamic::open(disk, header_offset, footer.virtual_size(), end)?;
    Ok(Vhd {
        footer,
        contents: Contents::Dynamic(contents),
    })
}

impl Footer {
    /// The size that a guest sees, in bytes: "Current Size", but for dynamic disks of Virtual PC, which showed guests as much as
    /// the geometry says.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        let Geometry {
            cylinders,
            heads,
            sectors,
        } = self.geometry;
        let shown = [u64::from(heads), u64::from(sectors), format::SECTOR]
            .into_iter()
            .fold(u64::from(cylinders), u64::saturating_mul);
        let largest = (cylinders, heads, sectors) == (65535, 16, 255);
        if self.kind != Kind::Fixed && self.creator == Creator::VIRTUAL_PC && shown > 0 && !largest
        {
            shown.min(self.current_size)
        } else {
            self.current_size
        }
    }
}

impl<R: ReadAt> Vhd<R> {
    /// What the footer says.
    #[must_use]
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The disk as a dynamic one, if it is.
    #[must_use]
    pub fn dynamic(&self) -> Option<&Dynamic<R>> {
        match &self.contents {
            Contents::Fixed(_) => None,
            Contents::Dynamic(disk) => Some(disk),
        }
    }

    fn contents(&self) -> &dyn ReadAt {
        match &self.contents {
            Contents::Fixed(disk) => disk,
            Contents::Dynamic(disk) => disk,
        }
    }
}

impl<R: ReadAt> ReadAt for Vhd<R> {
    fn size(&self) -> io::Result<u64> {
        self.contents().size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.contents().read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.contents().next_data(offset)
    }
}
