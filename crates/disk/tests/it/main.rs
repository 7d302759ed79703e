//! The containers against their specifications, `qemu-img`, `veritysetup`, power cuts and damage.

mod corpora;
mod crash;
mod damage;
mod dynamic;
mod pages;
mod qemu;
mod support;
mod verity;
mod vhd;
mod vhdx;
