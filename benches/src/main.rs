//! Times whole processes that turn a tar into a disk, ours beside its peers, on the same input in the same run.
//!
//! Runs are interleaved (A B C A B C …) because machines drift; the table gives medians, and ratios to the first row.
//! CPU is user + system time, peak memory the largest resident set of the process, both as the kernel accounts them for
//! each finished process. Every output is checked to exist, then deleted, so all start alike.
//!
//! `scripts/bench.sh` prepares inputs and peers and calls this as
//! `lcow-benches convert --rounds N --lcow FILE --mke2fs FILE TAR…` and `lcow-benches mkfs --rounds N --lcow FILE --mke2fs FILE`.

mod measure;
mod mkfs;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use comfy_table::{Cell, CellAlignment, Table, presets};

use measure::{Usage, median};

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|a| a.to_str()) {
        Some("one") => measure::child(args),
        Some("convert") => convert(args.map(PathBuf::from).collect()),
        Some("mkfs") => mkfs::mkfs(args.map(PathBuf::from)),
        _ => bail!("usage: lcow-benches convert --rounds N --lcow FILE --mke2fs FILE TAR…"),
    }
}

/// A command line, for a tar and the disk to make of it.
type Command = Box<dyn Fn(&Path, &Path) -> Vec<String>>;

/// A way of turning a tar into a disk.
struct Way {
    name: &'static str,
    command: Command,
}

fn words(words: &[&dyn std::fmt::Display]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn ways(lcow: String, mke2fs: String) -> Vec<Way> {
    vec![
        Way {
            name: "cp",
            command: Box::new(|tar, out| words(&[&"cp", &tar.display(), &out.display()])),
        },
        Way {
            name: "cat",
            command: Box::new(|tar, out| shell("cat", tar, out)),
        },
        Way {
            name: "sha256sum",
            command: Box::new(|tar, out| shell("sha256sum", tar, out)),
        },
        Way {
            name: "lcow disk from-tar",
            command: Box::new(move |tar, out| {
                words(&[
                    &lcow,
                    &"disk",
                    &"from-tar",
                    &"-i",
                    &tar.display(),
                    &"-o",
                    &out.display(),
                ])
            }),
        },
        Way {
            name: "mke2fs -d",
            // A disk half as large again as the tar, and an inode for each 4 KiB, hold every input here.
            command: Box::new(move |tar, out| {
                let blocks = std::fs::metadata(tar).map_or(0, |m| m.len()) * 3 / 2 / 4096 + 16384;
                words(&[
                    &mke2fs,
                    &"-q",
                    &"-F",
                    &"-t",
                    &"ext4",
                    &"-b",
                    &4096,
                    &"-i",
                    &4096,
                    &"-O",
                    &"^has_journal",
                    &"-d",
                    &tar.display(),
                    &out.display(),
                    &blocks,
                ])
            }),
        },
    ]
}

fn shell(program: &str, tar: &Path, out: &Path) -> Vec<String> {
    words(&[
        &"sh",
        &"-c",
        &format!("exec {program} \"$0\" >\"$1\""),
        &tar.display(),
        &out.display(),
    ])
}

fn convert(args: Vec<PathBuf>) -> Result<()> {
    let (mut rounds, mut lcow, mut mke2fs, mut tars) = (5, None, None, Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .with_context(|| format!("{} wants a value", arg.display()))
        };
        match arg.to_str() {
            Some("--rounds") => rounds = value()?.to_string_lossy().parse().context("--rounds")?,
            Some("--lcow") => lcow = Some(value()?.display().to_string()),
            Some("--mke2fs") => mke2fs = Some(value()?.display().to_string()),
            _ => tars.push(arg),
        }
    }
    let ways = ways(
        lcow.context("--lcow is missing")?,
        mke2fs.context("--mke2fs is missing")?,
    );
    for tar in &tars {
        one_input(tar, rounds, &ways)?;
    }
    Ok(())
}

fn one_input(tar: &Path, rounds: usize, ways: &[Way]) -> Result<()> {
    let size = std::fs::metadata(tar)
        .with_context(|| tar.display().to_string())?
        .len();
    let dir = tempfile::tempdir_in(tar.parent().context("the input has no folder")?)?;
    let mut runs: Vec<Vec<Usage>> = vec![Vec::new(); ways.len()];
    // Round 0 warms the page cache and is not counted.
    for round in 0..=rounds {
        for (way, runs) in ways.iter().zip(&mut runs) {
            let out = dir.path().join("out");
            let usage = measure::run(&(way.command)(tar, &out)).with_context(|| way.name)?;
            std::fs::remove_file(&out).with_context(|| format!("{} made nothing", way.name))?;
            if round > 0 {
                runs.push(usage);
            }
        }
    }
    print(tar, size, rounds, ways, &runs);
    Ok(())
}

fn print(tar: &Path, size: u64, rounds: usize, ways: &[Way], runs: &[Vec<Usage>]) {
    let name = tar.file_name().unwrap_or_default().display();
    println!(
        "\n{name}: {:.0} MB, medians of {rounds} interleaved runs",
        size as f64 / 1e6
    );
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["", "CPU s", "wall s", "peak MB", "CPU ×", "wall ×"]);
    let middle = |i: usize, f: fn(&Usage) -> f64| median(runs[i].iter().map(f));
    for (i, way) in ways.iter().enumerate() {
        let (cpu, wall) = (middle(i, Usage::cpu), middle(i, |u| u.wall));
        let ratio = |x: f64, base: f64| format!("{:.2}", x / base);
        let mut row = vec![Cell::new(way.name)];
        let figures = [
            format!("{cpu:.2}"),
            format!("{wall:.2}"),
            format!("{:.0}", middle(i, |u| u.peak_bytes as f64) / 1e6),
            ratio(cpu, middle(0, Usage::cpu)),
            ratio(wall, middle(0, |u| u.wall)),
        ];
        row.extend(figures.map(|f| Cell::new(f).set_alignment(CellAlignment::Right)));
        table.add_row(row);
    }
    println!("{table}");
}
