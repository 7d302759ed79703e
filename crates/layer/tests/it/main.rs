//! Tests of `lcow-layer` from outside, by theme.

mod apply;
mod canonical;
mod differences;
mod extraction;
mod flatten;
mod forest;
mod gnu;
mod kernel;
mod overlay;
mod peers;
mod sidecar;
mod support;
mod tars;
mod traps;
mod unions;
mod weird;
