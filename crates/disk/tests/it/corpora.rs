//! Disks that nobody here made.

use std::path::Path;

use lcow_blockio::{FileDisk, ReadAt};
use lcow_disk::vhd::VhdError;
use lcow_disk::vhdx::VhdxError;
use lcow_disk::{Container, ContainerError, Format};
use sha2::{Digest, Sha256};

/// What came of a file.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It was read to the end: the hash of the disk.
    Read(String),
    Corrupt,
    Unsupported,
    Refused,
}

fn outcome(path: &Path, format: Format) -> Outcome {
    let disk = match Container::open(format, FileDisk::open(path).unwrap()) {
        Ok(disk) => disk,
        Err(ContainerError::Vhd(error)) => match error {
            VhdError::Corrupt { .. } => return Outcome::Corrupt,
            VhdError::Unsupported { .. } => return Outcome::Unsupported,
            VhdError::Differencing => return Outcome::Refused,
            other => panic!("{}: {other}", path.display()),
        },
        Err(ContainerError::Vhdx(error)) => match error {
            VhdxError::Corrupt { .. } => return Outcome::Corrupt,
            VhdxError::Unsupported { .. } => return Outcome::Unsupported,
            VhdxError::Differencing => return Outcome::Refused,
            other => panic!("{}: {other}", path.display()),
        },
    };
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        match disk.read_at(at, &mut chunk) {
            Ok(0) => break,
            Ok(n) => hash.update(&chunk[..n]),
            Err(error) => {
                let typed = error.get_ref().is_some_and(|e| {
                    matches!(e.downcast_ref(), Some(VhdError::Corrupt { .. }))
                        || matches!(e.downcast_ref(), Some(VhdxError::Corrupt { .. }))
                });
                assert!(typed, "{}: {error}", path.display());
                return Outcome::Corrupt;
            }
        }
        at += 1 << 20;
    }
    let hex = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Outcome::Read(hex)
}

#[test]
fn other_projects_disks_end_as_they_should() {
    let Some(corpora) = lcow_testkit::Corpora::find() else {
        lcow_testkit::skip!("no corpora");
    };
    let index = std::fs::read_to_string(corpora.index.join("INDEX.vhd.tsv")).unwrap();
    let mut lines = index.lines();
    let head: Vec<&str> = lines.next().unwrap().split('\t').collect();
    let column = |name: &str| head.iter().position(|h| *h == name).unwrap();
    let mut files = 0;
    for line in lines {
        let cells: Vec<&str> = line.split('\t').collect();
        let cell = |name: &str| cells.get(column(name)).copied().unwrap_or_default();
        let path = corpora.files.join(cell("corpus")).join(cell("file"));
        files += 1;
        let vhdx = cell("qemu_format") == "vhdx" || path.extension().is_some_and(|e| e == "vhdx");
        let format = if vhdx { Format::Vhdx } else { Format::Vhd };
        let found = outcome(&path, format);
        let place = path.display();
        println!("{place}: {found:?}");
        match (
            cell("vhd_kind"),
            cell("qemu_format"),
            cell("sha256_of_virtual_disk"),
        ) {
            // Not of this family, whatever it is taken for.
            (_, "qcow2" | "vmdk", _) => {
                assert_eq!(found, Outcome::Corrupt, "{place}");
                assert_eq!(outcome(&path, Format::Vhdx), Outcome::Corrupt, "{place}");
            }
            // Some of them have bad checksums as well.
            ("differencing", ..) => {
                let expected = match cell("info_rc") {
                    "0" => Outcome::Refused,
                    _ => Outcome::Corrupt,
                };
                assert_eq!(found, expected, "{place}");
            }
            (_, _, sha256) if cell("info_rc") == "0" && !sha256.is_empty() => {
                assert_eq!(found, Outcome::Read(sha256.to_owned()), "{place}");
            }
            _ => assert_eq!(found, Outcome::Corrupt, "{place}"),
        }
    }
    assert!(files >= 6, "{files}");
}
