//! The crate's tests, by theme.

mod forest;
mod unions;
