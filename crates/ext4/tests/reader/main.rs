//! The reader against images of other makers, against the kernel, and against damage.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

mod export;
mod journal;
mod kernel;
mod memory;
mod mutation;
mod property;
