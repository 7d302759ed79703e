//! Times whole processes, ours beside their peers, on the same input in the same run, and prints tables.
//!
//! Runs are interleaved (A B C A B C …) because machines drift; the tables give medians, and ratios to the first row.
//! CPU is user + system time, peak memory the largest resident set of the process, both as the kernel accounts them for
//! each finished process. Every output is checked to exist, then deleted, so all start alike. Nobody syncs.
//!
//! `scripts/bench.sh` prepares inputs and peers in one folder and calls this as
//! `lcow-benches TABLE --dir FOLDER --lcow FILE [--rounds N] [INPUT…]`; each table has its own file here.

mod convert;
mod exact;
mod floor;
mod graph;
mod inflate;
mod measure;
mod mkfs;
mod shapes;
mod start;
mod table;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// What all tables are told.
struct Options {
    /// How often each command runs, not counting the run that warms the page cache.
    rounds: usize,
    /// The program to time.
    lcow: String,
    /// Where the inputs are (`NAME.tar`, `NAME.tar.gz`, `NAME.tar.zst`), and the peers' programs.
    dir: PathBuf,
    /// Names of inputs.
    inputs: Vec<String>,
}

impl Options {
    fn new(args: impl Iterator<Item = std::ffi::OsString>) -> Result<Self> {
        let (mut rounds, mut lcow, mut dir, mut inputs) = (5, None, None, Vec::new());
        let mut args = args.map(|arg| arg.to_string_lossy().into_owned());
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} wants a value"));
            match arg.as_str() {
                "--rounds" => rounds = value()?.parse().context("--rounds")?,
                "--lcow" => lcow = Some(value()?),
                "--dir" => dir = Some(value()?.into()),
                _ => inputs.push(arg),
            }
        }
        Ok(Self {
            rounds,
            lcow: lcow.context("--lcow is missing")?,
            dir: dir.context("--dir is missing")?,
            inputs,
        })
    }
}

fn words(words: &[&dyn std::fmt::Display]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let table = args.next().unwrap_or_default();
    match table.to_str() {
        Some("one") => measure::child(args),
        Some("inflate") => inflate::run(args),
        Some("floor") => floor::run(args),
        Some("convert") => convert::print(&Options::new(args)?),
        Some("exact") => exact::print(&Options::new(args)?),
        Some("shapes") => shapes::print(&Options::new(args)?),
        Some("mkfs") => mkfs::print(&Options::new(args)?),
        Some("graph") => graph::print(&Options::new(args)?),
        Some("start") => start::print(&Options::new(args)?),
        _ => bail!(
            "usage: lcow-benches convert|exact|shapes|start|mkfs|graph --dir FOLDER --lcow FILE [--rounds N] [INPUT…]"
        ),
    }
}
