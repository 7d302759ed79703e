//! What is kept of a tar besides what goes to the disk.

use std::io;

use crate::digest::{Digest, Hasher};
use crate::split::SplitWriter;
use crate::tar::{Block, Record};

/// Sees all of the tar but the data of files.
pub(super) enum Recorder {
    Nothing,
    /// Keeps all of it for the sidecar.
    Split(Box<SplitWriter>),
    /// Keeps its crc32c.
    Sum(u32),
}

impl Recorder {
    /// The sidecar, if there is to be one.
    pub(super) fn split(&mut self) -> Option<&mut SplitWriter> {
        match self {
            Self::Split(split) => Some(split),
            Self::Nothing | Self::Sum(_) => None,
        }
    }

    /// What the disk's identity follows from when the tar was not hashed. Not for telling contents apart: only headers are in it.
    pub(super) fn stand_in(&self, tar_size: u64) -> Digest {
        let sum = match self {
            Self::Sum(sum) => *sum,
            Self::Nothing | Self::Split(_) => 0,
        };
        let mut hasher = Hasher::new();
        hasher.update(b"lcow layer: headers and size of a tar that was not hashed");
        hasher.update(&sum.to_le_bytes());
        hasher.update(&tar_size.to_le_bytes());
        hasher.finish()
    }
}

impl Record for Recorder {
    fn header(&mut self, block: &Block) -> io::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Split(split) => split.header(block),
            Self::Sum(sum) => {
                *sum = crc32c::crc32c_append(*sum, block);
                Ok(())
            }
        }
    }

    fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Split(split) => split.literal(bytes),
            Self::Sum(sum) => {
                *sum = crc32c::crc32c_append(*sum, bytes);
                Ok(())
            }
        }
    }

    fn zeros(&mut self, len: u64) -> io::Result<()> {
        match self {
            Self::Nothing | Self::Sum(_) => Ok(()),
            Self::Split(split) => split.zeros(len),
        }
    }
}
