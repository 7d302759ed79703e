//! The binary as its users run it.

#[path = "../../../image/tests/it/archive.rs"]
mod archive;
mod disks;
mod failures;
mod images;
mod interrupts;
mod layers;
mod run;
mod space;
mod support;
