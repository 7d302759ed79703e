//! placeholder docs
#![allow(missing_docs, unused_variables, clippy::todo)]
use crate::writer::Metadata;
use lcow_blockio::WriteAt;
use std::io;
#[derive(Debug, Clone)]
pub struct FormatOptions<'a> {
    /// The size in bytes, 16 MiB … 16 TiB; rounded down to whole blocks.
    pub size: u64,
    /// With a journal, of the size `mke2fs` would choose.
    pub journal: bool,
    pub uuid: [u8; 16],
    pub hash_seed: [u8; 16],
    /// Up to 16 bytes.
    pub label: &'a str,
    /// Directories to make in the root, in this order.
    pub root_dirs: &'a [(&'a str, Metadata)],
}
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    #[error("a size of {size} bytes is not between 16 MiB and 16 TiB")]
    Size { size: u64 },
    #[error("the label {label:?} is longer than 16 bytes")]
    Label { label: String },
    #[error("{name:?} can't be the name of a directory in the root")]
    RootDir { name: String },
    #[error("there is no ext4 filesystem on the disk, or one without `metadata_csum_seed`")]
    NotOurs,
    #[error("can't {operation} at byte {offset} of the disk")]
    Io {
        operation: &'static str,
        offset: u64,
        source: io::Error,
    },
}
pub fn format<D: WriteAt>(disk: &D, options: &FormatOptions<'_>) -> Result<(), FormatError> {
    todo!()
}
pub fn set_uuid<D: WriteAt>(disk: &D, uuid: [u8; 16]) -> Result<(), FormatError> {
    todo!()
}
