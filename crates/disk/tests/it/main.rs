//! The containers against their specifications, `qemu-img`, power cuts and damage.

mod qemu;
mod support;
mod vhd;
mod vhdx;
