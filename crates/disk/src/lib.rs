//! Disk containers: the formats that a file system image is wrapped in.
//!
//! * [`vhd`]: the fixed VHD, a disk's bytes followed by a 512-byte footer, so that every loop device and virtual machine
//!   monitor can take the file as a raw disk, and tools that know VHD take it as one.
//! * [`vhdx`]: the dynamic VHDX, whose blocks are allocated as they are written, with a log that a crash can't hurt.
//! * [`verity`]: a tree of hashes behind the data of a disk, and before a footer, of which one hash vouches for all the data.
//!
//! Nothing here looks at what is *in* a disk, and nothing guesses a format: a caller names the format it expects, since a
//! guest could have written bytes that look like another one. No backing or parent file is ever opened.
//!
//! ```
//! use lcow_blockio::{MemDisk, ReadAt, WriteAt};
//! use lcow_disk::vhd;
//!
//! let disk = MemDisk::new();
//! disk.write_all_at(0, &[7; 8192])?;
//! vhd::write_footer(&disk, 8192, [1; 16])?;
//!
//! let (footer, contents) = vhd::open(&disk)?;
//! assert_eq!(footer.current_size, 8192);
//! assert_eq!(contents.size()?, 8192);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

pub mod verity;
pub mod vhd;
pub mod vhdx;
