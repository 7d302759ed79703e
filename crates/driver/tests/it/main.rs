//! The store and the driver, by theme.

mod apply;
mod common;
mod crash;
mod deep;
mod diff;
mod failing;
mod faults;
mod handles;
mod helper;
mod ids;
mod layers;
mod life;
mod model;
mod options;
mod original;
mod page;
mod power;
mod processes;
mod quarantine;
mod sandboxes;
mod sharing;
mod verity;
mod versions;
