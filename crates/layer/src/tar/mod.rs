//! Reading and writing tar archives: v7, ustar, PAX, GNU and star headers, sparse files in all forms.
//!
//! [`Reader`] takes a stream of entries and applies every extended header to the entry it belongs to. It is our own and not a
//! crate's, because a layer's meaning hangs on details that the crates at hand settle otherwise: *only regular files carry
//! data*. A directory, link or device with a size has none behind its header, whatever the field says; GNU
//! tar, Go and Python read it so, and one that doesn't loses its place in the stream. Times before 1970 and fractions of seconds, names that are
//! not UTF-8 and attributes with any bytes are kept.
//!
//! Where readers differ on damaged archives this one refuses: what Go's `archive/tar` calls an error is one here.
//!
//! A [`Record`]er sees every byte that is not a file's data, so that the archive can be made again (see [`crate::split`]).
//!
//! The writer (`Builder` and friends) makes one canonical form: ustar where it can hold an entry, PAX where not.

mod acl;
mod entry;
mod error;
pub(crate) mod field;
mod pax;
mod reader;
mod sparse;
mod write;

pub use entry::{Entry, Kind, Segment};
pub use error::{Malformed, TarError};
pub use field::{BLOCK, Block};
pub use reader::{Reader, Record};
pub use write::*;

/// The longest PAX header, GNU long name or sparse map that is read, in bytes.
pub const MAX_SPECIAL: usize = 1 << 20;
