//! Tests of `lcow-layer` from outside, by theme.

mod apply;
mod canonical;
mod differences;
mod extraction;
mod forest;
mod gnu;
mod kernel;
mod support;
mod tars;
mod unions;
