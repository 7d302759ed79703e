//! Reading and writing tar archives.

mod error;
mod write;

pub use error::Malformed;
pub use write::*;
