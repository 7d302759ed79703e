//! Whole processes that look up one path in a layer.

use anyhow::{Context as _, Result};

use crate::Options;
use crate::measure::{self, Usage, median};

pub(crate) fn print(options: &Options) -> Result<()> {
    for name in &options.inputs {
        let tar = options.dir.join(format!("{name}.tar"));
        let dir = tempfile::tempdir_in(&options.dir)?;
        let disk = dir.path().join("disk").display().to_string();
        let from_tar = [
            "-q",
            "disk",
            "from-tar",
            "--no-sync",
            "--no-digest",
            "-o",
            &disk,
            "-i",
        ];
        let status = std::process::Command::new(&options.lcow)
            .args(from_tar)
            .arg(&tar)
            .status()?;
        anyhow::ensure!(status.success(), "from-tar: {status}");
        let listing = std::process::Command::new("tar")
            .arg("-tf")
            .arg(&tar)
            .output()?;
        let listing = String::from_utf8_lossy(&listing.stdout);
        let files: Vec<&str> = listing
            .lines()
            .filter(|line| !line.ends_with('/'))
            .collect();
        let path = files.get(files.len() / 2).context("an empty tar")?;
        println!("\none path of {name} ({path}), whole processes, medians of 50\n");
        for command in ["ls", "cat"] {
            let words = [&options.lcow, "disk", command, &disk, path].map(str::to_owned);
            let runs = (0..50)
                .map(|_| measure::run(&words))
                .collect::<Result<Vec<_>>>()?;
            println!(
                "lcow disk {command}: {:.1} ms wall, {:.1} ms CPU (at most 5 ms)",
                median(runs.iter().map(|u| u.wall)) * 1e3,
                median(runs.iter().map(Usage::cpu)) * 1e3
            );
        }
    }
    Ok(())
}
