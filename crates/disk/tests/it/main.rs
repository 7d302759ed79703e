//! The containers against their specifications, `qemu-img`, `veritysetup`, power cuts and damage.

mod qemu;
mod support;
mod verity;
mod vhd;
mod vhdx;
