//! Writing, formatting and reading ext4 filesystems, without a kernel, a mount or root.
//!
//! * [`writer::Writer`] builds a complete filesystem in one pass: the bytes of files are appended to the disk as they come,
//!   everything else is kept compactly in memory and written at the end. The same calls give the same bytes.
//! * [`mkfs::format`] makes a blank filesystem for a kernel to write on, and [`mkfs::set_uuid`] a clone's own identity.
//! * [`reader`] reads any ext2/3/4 filesystem, including hostile ones.
//! * [`mod@check`] verifies one, structure by structure, as `e2fsck -fn` would.
//! * [`mod@dump`] shows one as text.
//! * [`mod@format`] holds the on-disk structures that the three share.
//!
//! # I/O
//! All of it is positioned, blocking I/O through [`lcow_blockio::ReadAt`] and [`lcow_blockio::WriteAt`]. The writer writes
//! large aligned pieces and never reads but to give back or check what it wrote itself. Blocks of zeros are not written: they
//! are holes of the file inside the filesystem, and of the disk where that is a sparse file. Nothing syncs: the owner of the
//! disk does, once.
//!
//! # Errors
//! [`writer::WriteError`], [`mkfs::FormatError`] and the reader's error tell *refused* input from *I/O*, and
//! (reading) *corrupt* from *unsupported*.
//!
//! # Example
//! ```
//! use lcow_blockio::{MemDisk, ReadAt};
//! use lcow_ext4::writer::{Content, Identity, Metadata, Writer, WriterOptions};
//! use lcow_ext4::InodeNumber;
//!
//! let disk = MemDisk::new();
//! let mut writer = Writer::new(&disk, &WriterOptions::default())?;
//! let metadata = Metadata { permissions: 0o644, ..Metadata::default() };
//! let file = writer.create(InodeNumber::ROOT, b"hello", Content::Regular, &metadata)?;
//! writer.begin_data(file)?;
//! writer.write_data(b"hello, world\n")?;
//! writer.end_data()?;
//! let summary = writer.finish(&Identity { uuid: [1; 16], hash_seed: [2; 16] })?;
//! assert_eq!(summary.size_bytes, disk.size()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

pub mod check;
pub mod dump;
pub mod format;
pub mod mkfs;
pub mod reader;
mod types;
pub mod writer;

pub use types::{Device, FileType, InodeNumber, Timestamp, Xattr};
