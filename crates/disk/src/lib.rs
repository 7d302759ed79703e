//! Disk containers: the formats that a file system image is wrapped in.
//!
//! | format | made | read | written to | |
//! |---|---|---|---|---|
//! | fixed VHD ([`vhd`]) | yes | yes | yes | the disk's bytes and a footer: a raw disk to whoever doesn't know it |
//! | dynamic VHD ([`vhd`]) | | yes | | |
//! | VHDX ([`vhdx`]) | yes | yes | yes | space is taken block by block; a log keeps the metadata whole |
//! | differencing ones | | refused | | their data is in a parent file |
//!
//! [`verity`] is a tree of hashes behind the data of a disk, and before a footer, of which one hash vouches for all the data.
//!
//! Each container gives the disk in it as one that [`lcow_blockio`] knows: bytes at offsets, with holes. [`Container`] is any of them.
//!
//! Nothing here looks at what is *in* a disk, and nothing guesses a format: a caller names the format it expects, since a
//! guest could have written bytes that look like another one. No backing or parent file is ever opened.
//!
//! ```
//! use lcow_blockio::{MemDisk, ReadAt, WriteAt};
//! use lcow_disk::{Container, Format, vhd, vhdx};
//!
//! let disk = MemDisk::new();
//! disk.write_all_at(0, &[7; 8192])?;
//! vhd::write_footer(&disk, 8192, [1; 16])?;
//!
//! let (footer, contents) = vhd::open(&disk)?;
//! assert_eq!(footer.current_size, 8192);
//! assert_eq!(contents.size()?, 8192);
//!
//! let file = MemDisk::new();
//! vhdx::create(&file, &vhdx::CreateOptions::new(1 << 40, vhdx::Guid([1; 16])))?;
//! let disk = Container::open(Format::Vhdx, &file)?;
//! assert_eq!(disk.size()?, 1 << 40);
//! assert_eq!(disk.next_data(0)?, None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

mod container;
pub mod verity;
pub mod vhd;
pub mod vhdx;

pub use container::{Container, ContainerError, Format};
