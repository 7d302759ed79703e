//! The utility VM, with the real QEMU where it is installed and with a fake machine for the rest.
//!
//! Everything here emulates (`Accel::Tcg`): that is what works everywhere. A boot costs two seconds of CPU, so the tests of
//! one theme share a machine.

mod aged;
mod boots;
mod disks;
mod fake;
mod faults;
mod mounter;
mod processes;
mod same;
mod support;
