use std::fmt;
use std::io;
use std::ops::Range;

use lcow_blockio::ReadAt;

use crate::vhd::{self, Vhd, VhdError};
use crate::vhdx::{self, VhdxError};

/// How a disk is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Not at all: the file's bytes are the disk's.
    Raw,
    /// A VHD, fixed or dynamic.
    Vhd,
    /// A VHDX.
    Vhdx,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        })
    }
}

/// Why a container can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// A VHD.
    #[error(transparent)]
    Vhd(#[from] VhdError),
    /// A VHDX.
    #[error(transparent)]
    Vhdx(#[from] VhdxError),
}

/// The disk in a container, for reading.
#[derive(Debug)]
pub enum Container<R> {
    /// The file itself.
    Raw(R),
    /// In a VHD.
    Vhd(Vhd<R>),
    /// In a VHDX.
    Vhdx(Box<vhdx::Image<R>>),
}

impl<R: ReadAt> Container<R> {
    /// Opens a container of the format that the caller knows it to have: what is in a file may have been written by a guest,
    /// who could make it look like any format, so nothing is guessed.
    ///
    /// # Errors
    /// As [`vhd::open_any`] and [`vhdx::open`].
    pub fn open(format: Format, disk: R) -> Result<Self, ContainerError> {
        Ok(match format {
            Format::Raw => Self::Raw(disk),
            Format::Vhd => Self::Vhd(vhd::open_any(disk)?),
            Format::Vhdx => Self::Vhdx(Box::new(vhdx::open(disk)?)),
        })
    }

    fn inner(&self) -> &dyn ReadAt {
        match self {
            Self::Raw(disk) => disk,
            Self::Vhd(disk) => disk,
            Self::Vhdx(disk) => disk,
        }
    }
}

impl<R: ReadAt> ReadAt for Container<R> {
    fn size(&self) -> io::Result<u64> {
        self.inner().size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner().read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner().next_data(offset)
    }
}
