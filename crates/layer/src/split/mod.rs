//! The sidecar `diff.split.zst`: what a layer's tar has and its disk has not.
//!
//! A tar can't be made again from a tree alone: headers may be written in a dozen ways, entries come in any order and more than
//! once, padding may be anything. The sidecar keeps all of that, and refers to the disk for files' data. It
//! is small because a header is written as its difference from an earlier one, and compressed on top.
//!
//! `docs/format/split.md` is the format's page; the constants of [`mod@format`] are held against it by a test.
//! [`crate::apply::apply`] writes it, [`crate::export::exact`] reads it. A sidecar is not trusted: whatever it says, reading one takes bounded
//! memory and ends in the right tar or a typed error.

pub mod format;
mod header;
mod read;
mod write;

pub(crate) use read::{Op, SplitError, SplitReader};
pub(crate) use write::SplitWriter;
