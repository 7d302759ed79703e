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
mod kills;
mod layers;
mod life;
mod model;
mod options;
mod original;
mod page;
mod power;
mod processes;
mod quarantine;
mod rows;
mod sandboxes;
mod sharing;
mod shutdown;
mod verity;
mod versions;
