//! Tests of the crate, by theme; see each module.

mod golden;
mod inline;
mod kernel;
mod limits;
mod mkfs;
mod random;
mod support;
mod traps;
mod xattrs;
