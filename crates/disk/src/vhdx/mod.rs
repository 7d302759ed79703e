//! VHDX: a disk whose blocks take space when they are first written, with a log that keeps its metadata whole.
//!
//! Rules from Microsoft's *[MS-VHDX]: Virtual Hard Disk v2 (VHDX) File Format*, cited below as "MS-VHDX" with the section's
//! number; the page `docs/format/vhdx.md` gives the layout as this project writes it.
//!
//! ```text
//! 0        1 MiB   2 MiB     3 MiB
//! │ headers │ log   │ metadata │ block allocation table … │ block │ block │ …
//! ```
//!
//! * [`create`] writes a blank dynamic disk: a few sectors, whatever the size.
//! * [`open`] gives an [`Image`] to read. Nothing is written; a log that was left behind is replayed in memory.
//! * [`open_writable`] gives a [`Disk`] to read and write, [grow](Disk::grow) and [trim](Disk::trim). Both are disks to
//!   [`lcow_blockio`]: bytes at offsets, from any number of threads.
//! * [`check`] looks at every structure.
//!
//! # Crashes
//!
//! What was written before a [`sync`](lcow_blockio::WriteAt::sync) is there after it, whatever happens; what came later is
//! there, or not, sector by sector, as on any disk. Metadata changes only through the log, so the file is good at any
//! moment. [`Disk::close`] empties the log.
//!
//! # Hostile files
//!
//! Every number from a file is checked before it is used, and when it can't be right the error is [`VhdxError::Corrupt`] with
//! the place. Memory: a few megabytes of the table, about 64 bytes for each sector in the log, and, for writing and
//! checking, a bit for each MiB of the file. A differencing disk is refused, and no parent is ever opened.
//!
//! # Example
//!
//! ```
//! use lcow_blockio::{MemDisk, ReadAt, WriteAt};
//! use lcow_disk::vhdx::{self, CreateOptions, Guid, SessionGuids};
//!
//! let file = MemDisk::new();
//! vhdx::create(&file, &CreateOptions::new(20 << 30, Guid([1; 16])))?;
//!
//! // New GUIDs for each time that a file is written, from the caller: nothing here is random.
//! let disk = vhdx::open_writable(&file, SessionGuids::from([[2; 16], [3; 16], [4; 16]]))?;
//! disk.write_all_at(10 << 30, b"in the middle")?;
//! disk.sync()?;
//! disk.close()?;
//!
//! let image = vhdx::open(&file)?;
//! let mut word = [0; 13];
//! image.read_exact_at(10 << 30, &mut word)?;
//! assert_eq!(&word, b"in the middle");
//! assert!(vhdx::check(&file)?.is_clean());
//! assert_eq!(file.size()?, 5 << 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bat;
mod check;
mod create;
mod disk;
mod error;
mod format;
mod grow;
mod header;
mod image;
mod layout;
mod log;
mod replay;
mod space;

pub use check::{Problem, Report, check};
pub use create::{CreateOptions, create};
pub use disk::{Disk, SessionGuids, open_writable};
pub use error::{Structure, VhdxError};
pub use format::*;
pub use image::{Image, open};
pub use layout::Info;
