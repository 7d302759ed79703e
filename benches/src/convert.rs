//! tar → disk: plain, gzip, zstd.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::Options;
use crate::table::{self, Row, Way};

const OURS: &str = r#"exec "$3" -q disk from-tar --no-sync -i "$1" -o "$2""#;
/// `$3` is this program, and how large the disk is.
const FLOOR: &str = r#"exec ${3% *} floor "$1" "$2" ${3##* }"#;
const OURS_VERITY: &str = r#"exec "$3" -q disk from-tar --no-sync --verity -i "$1" -o "$2""#;
const OURS_UNHASHED: &str = r#"exec "$3" -q disk from-tar --no-sync --no-digest -i "$1" -o "$2""#;
/// A disk half as large again as the tar, and an inode for each 4 KiB, hold every input here.
const MKE2FS: &str = r#"exec "$3" -q -F -t ext4 -b 4096 -i 4096 -O ^has_journal -d "$1" "$2" \
  $(($(stat -c %s "$1") * 3 / 8192 + 16384))"#;

pub(crate) fn print(options: &Options) -> Result<()> {
    for name in &options.inputs {
        plain(options, name)?;
        compressed(options, name, "gz")?;
        compressed(options, name, "zst")?;
    }
    Ok(())
}

/// `(what, figure, at most)`.
fn judge(lines: &[(&str, f64, f64)]) {
    println!();
    for (what, figure, limit) in lines {
        let verdict = if figure <= limit { "met" } else { "not met" };
        println!("{what}: {figure:.2} (at most {limit:.2}: {verdict})");
    }
}

fn plain(options: &Options, name: &str) -> Result<()> {
    let input = options.dir.join(format!("{name}.tar"));
    let peers = options
        .dir
        .join("peers/release/peers")
        .display()
        .to_string();
    let own = std::env::current_exe()?;
    let floor = format!("{} {}", own.display(), disk_size(options, &input)?);
    let ways = [
        Way::new("cat", r#"exec cat "$1" >"$2""#, ""),
        Way::new("cp", r#"exec cp "$1" "$2""#, ""),
        Way::new("sha256sum", r#"exec sha256sum "$1" >"$2""#, ""),
        Way::new("read and write alone", FLOOR, floor),
        Way::new("lcow --no-digest", OURS_UNHASHED, &options.lcow),
        Way::new("lcow", OURS, &options.lcow),
        Way::new("lcow --verity", OURS_VERITY, &options.lcow),
        Way::new("mkext4 0.0.3", r#"exec "$3" mkext4 "$1" "$2""#, &peers),
        Way::new("arcbox-ext4 0.1.2", r#"exec "$3" arcbox "$1" "$2""#, &peers).slow(),
        Way::new(
            "mkfs.erofs",
            r#"exec "$3" --quiet --tar=f "$2" "$1""#,
            options.dir.join("mkfs.erofs").display(),
        )
        .slow(),
        Way::new("mke2fs -d", MKE2FS, options.dir.join("mke2fs").display()).slow(),
    ];
    let rows = table::run(&format!("{name}, plain"), &input, options.rounds, &ways)?;
    let [cat, _, sha, floor, unhashed, ours, _, peers @ ..] = rows.as_slice() else {
        return Ok(());
    };
    let best = peers
        .iter()
        .map(|row| row.least)
        .fold(f64::INFINITY, f64::min);
    let mke2fs = peers.last().map_or(f64::NAN, |row| row.cpu);
    println!(
        "\nCPU without digest / read and write alone, least: {:.2}",
        unhashed.least / floor.least
    );
    judge(&[
        (
            "CPU without digest / cat, medians",
            unhashed.cpu / cat.cpu,
            1.6,
        ),
        (
            "CPU without digest / cat, least",
            unhashed.least / cat.least,
            1.6,
        ),
        (
            "wall with digest / max(cat, sha256sum)",
            ours.wall / cat.wall.max(sha.wall),
            1.3,
        ),
        ("CPU without digest / mke2fs -d", unhashed.cpu / mke2fs, 0.2),
        (
            "CPU without digest / the best other",
            unhashed.least / best,
            1.0,
        ),
        ("disk / tar", unhashed.made as f64 / cat.made as f64, 1.05),
    ]);
    Ok(())
}

/// How large the disk of a tar is, in bytes.
fn disk_size(options: &Options, tar: &Path) -> Result<u64> {
    let dir = tempfile::tempdir_in(&options.dir)?;
    let disk = dir.path().join("disk");
    let status = Command::new(&options.lcow)
        .args(["-q", "disk", "from-tar", "--no-sync", "--no-digest", "-i"])
        .arg(tar)
        .arg("-o")
        .arg(&disk)
        .status()?;
    ensure!(status.success(), "from-tar: {status}");
    Ok(disk.metadata()?.len())
}

fn compressed(options: &Options, name: &str, extension: &str) -> Result<()> {
    let input = options.dir.join(format!("{name}.tar.{extension}"));
    let own = std::env::current_exe()?;
    let mut ways = vec![
        Way::new(
            "inflating alone",
            r#"exec "$3" inflate "$1""#,
            own.display(),
        )
        .discards(),
        Way::new("lcow --no-digest", OURS_UNHASHED, &options.lcow),
        Way::new("lcow", OURS, &options.lcow),
    ];
    if extension == "gz" {
        ways.push(Way::new("igzip -d", r#"exec igzip -dc "$1" >/dev/null"#, "").discards());
        ways.push(
            Way::new("gzip -d", r#"exec gzip -dc "$1" >/dev/null"#, "")
                .discards()
                .slow(),
        );
    } else {
        ways.push(Way::new("zstd -d", r#"exec zstd -q -dc "$1" >/dev/null"#, "").discards());
    }
    let rows = table::run(
        &format!("{name}, {extension}"),
        &input,
        options.rounds,
        &ways,
    )?;
    let [alone, unhashed, ours, ..] = rows.as_slice() else {
        return Ok(());
    };
    let wall = |row: &Row| row.wall / alone.wall;
    judge(&[
        ("wall without digest / inflating alone", wall(unhashed), 1.1),
        ("wall with digests / inflating alone", wall(ours), 1.1),
    ]);
    Ok(())
}
