//! Tests of the crate, by theme; see each module.

mod kernel;
mod limits;
mod mkfs;
mod random;
mod support;
mod xattrs;
