//! disk → tar, byte for byte, and how large the sidecar is that it takes; and disk → disk, flattened.

use std::fs::File;
use std::io::{BufReader, Read as _};

use anyhow::{Context as _, Result};
use lcow_layer::tar::Reader;

use crate::Options;
use crate::table::{self, Way};

pub(crate) fn print(options: &Options) -> Result<()> {
    for name in &options.inputs {
        let tar = options.dir.join(format!("{name}.tar"));
        let dir = tempfile::tempdir_in(&options.dir)?;
        let (disk, split) = (dir.path().join("disk"), dir.path().join("split"));
        let status = std::process::Command::new(&options.lcow)
            .args(["-q", "disk", "from-tar", "--no-sync", "-i"])
            .arg(&tar)
            .arg("-o")
            .arg(&disk)
            .arg("--split")
            .arg(&split)
            .stdout(std::process::Stdio::null())
            .status()?;
        anyhow::ensure!(status.success(), "from-tar --split: {status}");
        let folder = dir.path().display();
        let ways = [
            Way::new("cat TAR", r#"exec cat "$1" >"$2""#, ""),
            Way::new("sha256sum TAR", r#"exec sha256sum "$1" >"$2""#, ""),
            Way::new(
                "lcow disk to-tar --split",
                r#"exec ${3%% *} -q disk to-tar "${3#* }/disk" --split "${3#* }/split" >"$2""#,
                format!("{} {folder}", options.lcow),
            ),
            Way::new(
                "… --no-verify",
                r#"exec ${3%% *} -q disk to-tar "${3#* }/disk" --split "${3#* }/split" --no-verify >"$2""#,
                format!("{} {folder}", options.lcow),
            ),
            Way::new(
                "lcow disk flatten",
                r#"exec ${3%% *} -q disk flatten "${3#* }/disk" -o "$2""#,
                format!("{} {folder}", options.lcow),
            ),
        ];
        table::run(&format!("{name}, disk to tar"), &tar, options.rounds, &ways)?;
        let metadata = metadata(&tar)?;
        let size = std::fs::metadata(&split)?.len();
        println!(
            "\nsidecar: {:.2} MB for {:.1} MB of headers and padding: {:.2} % (at most 5 %)",
            size as f64 / 1e6,
            metadata as f64 / 1e6,
            100.0 * size as f64 / metadata as f64
        );
    }
    Ok(())
}

/// All of a tar but the data of its files, in bytes.
fn metadata(tar: &std::path::Path) -> Result<u64> {
    let file = File::open(tar)?;
    let size = file.metadata()?.len();
    let mut reader = Reader::new(BufReader::with_capacity(1 << 20, file.take(u64::MAX)), ());
    let mut data = 0;
    while let Some(entry) = reader.next_entry().context("reading the tar")? {
        data += entry.stored;
    }
    Ok(size - data)
}
