//! Trees of odd shapes: a million empty files, and 300,000 names in one directory.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::Options;
use crate::measure::{self, Usage, median};

pub(crate) fn print(options: &Options) -> Result<()> {
    let dir = tempfile::tempdir_in(&options.dir)?;
    let shapes: [(&str, u32, u32); 2] = [
        ("1,000,000 empty files, 1,000 a directory", 1_000_000, 1000),
        ("300,000 names in one directory", 300_000, 300_000),
    ];
    for (title, files, per_directory) in shapes {
        let (tar, disk) = (dir.path().join("tar"), dir.path().join("disk"));
        make(&tar, files, per_directory)?;
        let words = [&options.lcow, "-q", "disk", "from-tar", "--no-sync", "-i"].map(str::to_owned);
        let rest = [
            &tar.display().to_string(),
            "-o",
            &disk.display().to_string(),
        ]
        .map(str::to_owned);
        let command = [&words[..], &rest[..]].concat();
        let runs = (0..options.rounds)
            .map(|_| measure::run(&command))
            .collect::<Result<Vec<_>>>()?;
        println!(
            "\n{title}: {:.2} CPU s, {:.2} s wall, {:.0} MB at the peak, a disk of {:.2} GB",
            median(runs.iter().map(Usage::cpu)),
            median(runs.iter().map(|u| u.wall)),
            median(runs.iter().map(|u| u.peak_bytes as f64)) / 1e6,
            std::fs::metadata(&disk)?.len() as f64 / 1e9
        );
        if files == per_directory {
            match lookups(&disk, &dir.path().join("mnt"), files)? {
                Some(micros) => println!("{micros:.1} µs a look-up in the kernel (at most 60)"),
                None => println!("skipped: look-ups in the kernel need root and loop devices"),
            }
        }
    }
    Ok(())
}

fn make(tar: &Path, files: u32, per_directory: u32) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(tar)?);
    for n in 0..files {
        if n % per_directory == 0 {
            out.write_all(&header(&format!("d{:04}/", n / per_directory), b'5'))?;
        }
        let name = format!("d{:04}/file-{n:07}", n / per_directory);
        out.write_all(&header(&name, b'0'))?;
    }
    out.write_all(&[0; 1024])?;
    out.flush()?;
    Ok(())
}

/// A ustar header (POSIX.1-1988) of an empty file or a directory.
fn header(name: &str, kind: u8) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(
        100,
        b"0000755\x000000000\x000000000\x0000000000000\x0014000000000\x00        ",
    );
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Mounts the disk and looks names up that no cache knows yet, in an order that jumps about.
fn lookups(disk: &Path, mount: &Path, files: u32) -> Result<Option<f64>> {
    std::fs::create_dir_all(mount)?;
    let mounted = Command::new("mount")
        .args(["-o", "loop,ro,noload"])
        .args([disk, mount])
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let count = 20_000_u64;
    let start = Instant::now();
    let mut found = 0;
    for i in 0..count {
        let n = i * 7919 * 13 % u64::from(files);
        found += u64::from(mount.join(format!("d0000/file-{n:07}")).exists());
    }
    let took = start.elapsed().as_secs_f64();
    Command::new("umount").arg(mount).status()?;
    ensure!(found == count, "{found} of {count} names found");
    Ok(Some(took * 1e6 / count as f64))
}
