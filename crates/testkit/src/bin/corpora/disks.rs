//! VHD and VHDX disks: what `lcow disk convert` makes of them beside what qemu-img sees in them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use lcow_testkit::{Corpora, hex};
use sha2::{Digest, Sha256};

use crate::process::Lab;
use crate::{Case, Outcome};

/// The disks of the index.
pub(crate) fn cases(corpora: &Corpora) -> io::Result<Vec<Case>> {
    let index = fs::read_to_string(corpora.index.join("INDEX.vhd.tsv"))?;
    let mut cases = Vec::new();
    for line in index.lines().skip(1) {
        let columns: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let field = |n: usize| columns.get(n).map_or("", String::as_str);
        let class = match (field(4), field(6)) {
            ("differencing", _) => "differencing",
            ("", _) => "other",
            (_, "0") => "good",
            _ => "damaged",
        };
        cases.push(Case {
            group: "disk",
            class: class.to_owned(),
            name: format!("{}/{}", field(0), field(1)),
            columns,
        });
    }
    Ok(cases)
}

pub(crate) fn judge(corpora: &Corpora, case: &Case, lab: &mut Lab) -> io::Result<Outcome> {
    let field = |n: usize| case.columns.get(n).map_or("", String::as_str);
    let disk = corpora.files.join(&case.name);
    let disk = disk.to_string_lossy();
    let from = if field(3) == "vhdx" || disk.ends_with(".vhdx") {
        "vhdx"
    } else {
        "vhd"
    };
    let convert = [
        "disk", "convert", "--from", from, "--to", "raw", &disk, "out.raw",
    ];
    if let Err(failure) = lab.lcow(&convert, &[], &["out.raw"])? {
        // A log to be replayed may be refused.
        if case.class == "good" && failure.kind != "refused" {
            lab.complain(format!("{}: {}", failure.kind, failure.message));
        }
        return Ok(failure.outcome());
    }
    if case.class == "good" {
        let size = field(5).parse().map_err(io::Error::other)?;
        let found = digest(&lab.path("out.raw"), size)?;
        if found != field(9) {
            lab.complain(format!("contents {found}, not {}", field(9)));
        }
    } else {
        lab.complain("converted");
    }
    Ok("converted")
}

/// The digest of a disk of `size` bytes: qemu-img rounds up to whole cylinders.
fn digest(path: &Path, size: u64) -> io::Result<String> {
    let zeros = size.saturating_sub(fs::metadata(path)?.len());
    let mut digest = Sha256::new();
    let mut input = File::open(path)?.chain(io::repeat(0).take(zeros));
    let mut buffer = vec![0; 1 << 18];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(hex(&digest.finalize())),
            n => digest.update(&buffer[..n]),
        }
    }
}
