//! Container layers as disks: tar → ext4 and back, several disks seen as one tree, and what changed between two.
//!
//! ```text
//!  layer tar ──► apply ──► ext4 disk (+ VHD footer)  and  diff.split.zst
//!                              │                              │
//!                              ├──► export::exact ◄───────────┘   the same tar, byte for byte
//!                              ├──► export::canonical             any tree as a tar in one fixed form
//!                              └──► union ──► changes ──► diff    N layers and a container's own writes
//!                                     └──► flatten                   and as one disk again
//! ```
//!
//! * [`apply`] turns a layer's tar into a disk in one pass over a stream: compression is recognised by content, hashing
//!   and decompression run on threads of their own, file data goes to the disk as it arrives.
//! * [`split`] is the sidecar of a disk that holds whatever the disk does not: with both, [`export::exact`] emits the tar again.
//! * [`export`] makes tars from disks, [`union`] shows several disks as one tree, [`changes`] and [`diff`] compare two trees,
//!   [`flatten`](mod@flatten) makes one disk of several.
//! * [`digest`] names content; [`whiteout`] holds the two ways of saying "deleted".
//!
//! # Lifecycle
//! There is none beyond a call: every function runs to its end on the caller's thread, and the threads it starts are
//! joined before it returns, whether it succeeds or fails. To cancel, let the input's `read` fail: the error comes back.
//!
//! # I/O
//! Input is any [`std::io::Read`], disks are [`lcow_blockio::ReadAt`] / [`lcow_blockio::WriteAt`]. Nothing here knows of paths on the host, of
//! where layers live, or syncs anything: that is the caller's.
//!
//! # Errors
//! One enum for each phase, with the entry's name, the offset in the plain tar and the source kept. [`ErrorKind`] tells
//! *corrupt* input, *unsupported* features, *refused* (well-formed, but hostile or past a limit) and *I/O* apart.
//!
//! ```
//! use lcow_blockio::MemDisk;
//! use lcow_layer::apply::{ApplyOptions, apply};
//!
//! // The end of an archive alone: an empty layer.
//! let tar = [0; 1024];
//! let disk = MemDisk::new();
//! let applied = apply(&tar[..], &disk, None, &ApplyOptions::default())?;
//! assert_eq!(applied.entries, 0);
//! assert_eq!(applied.tar_size, 1024);
//! # Ok::<(), lcow_layer::apply::ApplyError>(())
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

pub mod apply;
pub mod changes;
pub mod compress;
pub mod diff;
pub mod digest;
mod error;
pub mod export;
pub mod flatten;
mod pool;
pub mod split;
pub mod tar;
pub mod tree;
pub mod union;
pub mod whiteout;

pub use error::{EntryName, ErrorKind};
