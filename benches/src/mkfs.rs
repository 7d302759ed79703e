//! `lcow-benches mkfs`: how long a blank disk takes, and how much of it there is.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::measure::{self, median};
use crate::{Options, words};

/// Sizes, as both programs take them.
const SIZES: [&str; 5] = ["16M", "1G", "20G", "1T", "16T"];

/// Formats disks of a table of sizes, with and without a journal, as whole processes.
pub(crate) fn print(options: &Options) -> Result<()> {
    let (rounds, lcow, mke2fs) = (options.rounds, &options.lcow, "mke2fs");
    // In memory: few file systems take a file of 16 TiB.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() {
        tempfile::tempdir_in(memory)?
    } else {
        tempfile::tempdir()?
    };
    println!("\nblank disks: medians of {rounds} runs, whole processes");
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "",
        "journal",
        "lcow ms",
        "lcow KiB",
        "mke2fs ms",
        "mke2fs KiB",
    ]);
    for size in SIZES {
        for journal in [true, false] {
            let out = dir.path().join("disk");
            let mut ours = words(&[lcow, &"disk", &"mkfs", &out.display(), &"--size", &size]);
            let mut theirs = words(&[&mke2fs, &"-q", &"-F", &"-t", &"ext4"]);
            if !journal {
                ours.push("--no-journal".to_owned());
                theirs.extend(words(&[&"-O", &"^has_journal"]));
            }
            theirs.extend(words(&[&out.display(), &size]));
            let mut row = vec![
                Cell::new(size),
                Cell::new(if journal { "yes" } else { "no" }),
            ];
            for command in [ours, theirs] {
                row.extend(
                    one(&command, &out, rounds)
                        .unwrap_or_else(|_| ["-".to_owned(), "-".to_owned()])
                        .map(|figure| Cell::new(figure).set_alignment(CellAlignment::Right)),
                );
            }
            table.add_row(row);
        }
    }
    println!("{table}");
    Ok(())
}

/// Median milliseconds, and the KiB that the disk takes.
fn one(command: &[String], out: &Path, rounds: usize) -> Result<[String; 2]> {
    let mut walls = Vec::new();
    let mut allocated = 0;
    for round in 0..=rounds {
        let usage = measure::run(command)?;
        allocated = std::fs::metadata(out)?.blocks() / 2;
        std::fs::remove_file(out)?;
        if round > 0 {
            walls.push(usage.wall * 1000.0);
        }
    }
    Ok([
        format!("{:.1}", median(walls.into_iter())),
        allocated.to_string(),
    ])
}
