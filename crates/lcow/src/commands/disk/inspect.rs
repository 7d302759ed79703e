//! `lcow disk inspect`: what a disk is.

use anyhow::Result;
use clap::Args;
use lcow_blockio::ReadAt;
use lcow_disk::verity::Tree;
use lcow_disk::{Container, vhd, vhdx};
use lcow_ext4::dump::{DumpError, dump};
use lcow_ext4::reader::Journal;
use serde::Serialize;

use super::Source;
use crate::context::Context;
use crate::output;

/// Show what a disk is: file system, sizes, features
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    source: Source,
    /// Print the whole file system as text: superblock, groups, inodes, extents, directories, attributes
    #[arg(long)]
    dump: bool,
}

#[derive(Serialize)]
struct Report {
    disk: String,
    /// Length in bytes.
    size: u64,
    /// The footer's disk size and id, if there is one behind the file system.
    vhd: Option<Footer>,
    /// The dm-verity tree, if there is one behind the file system.
    verity: Option<Verity>,
    vhdx: Option<Vhdx>,
    uuid: String,
    label: String,
    block_size: u64,
    /// Bytes of the file system.
    filesystem_size: u64,
    free_size: u64,
    inodes: u32,
    free_inodes: u32,
    features: Vec<String>,
    clean: bool,
    journal: String,
}

#[derive(Serialize)]
struct Footer {
    #[serde(rename = "type")]
    kind: &'static str,
    size: u64,
    id: String,
}

#[derive(Serialize)]
struct Verity {
    /// What the tree's top hashes to. It vouches for nothing unless it comes from elsewhere too.
    root_hash: String,
    salt: String,
    uuid: String,
}

impl Footer {
    fn new(footer: &vhd::Footer) -> Self {
        Self {
            kind: match footer.kind {
                vhd::Kind::Fixed => "fixed",
                vhd::Kind::Dynamic { .. } => "dynamic",
            },
            size: footer.current_size,
            id: uuid(&footer.unique_id),
        }
    }
}

#[derive(Serialize)]
struct Vhdx {
    #[serde(rename = "type")]
    kind: &'static str,
    size: u64,
    block_size: u32,
    sector_size: u32,
    id: String,
    /// Entries of the log that were replayed in memory.
    log_entries: usize,
}

impl Vhdx {
    fn new(info: &vhdx::Info) -> Self {
        Self {
            kind: match info.fixed {
                true => "fixed",
                false => "dynamic",
            },
            size: info.virtual_size,
            block_size: info.block_size,
            sector_size: info.logical_sector_size,
            id: info.id.to_string(),
            log_entries: info.replayed,
        }
    }
}

impl Inspect {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        if self.dump {
            let fs = self.source.open()?;
            let mut out = output::stdout();
            return match dump(&fs, &mut out) {
                Err(DumpError::Read(error)) => Err(self.source.failed(error)),
                Err(error) => Err(error.into()),
                Ok(()) => Ok(()),
            };
        }
        let range = self.source.range()?;
        let size = range.size()?;
        let (footer, vhdx) = match &super::open_container(&self.source.disk, self.source.format())?
        {
            // Shown as what it is; what the file system is does not depend on it.
            Container::Raw(_) => {
                let footer = vhd::open(&range)
                    .ok()
                    .map(|(footer, _)| Footer::new(&footer));
                (footer, None)
            }
            Container::Vhd(disk) => (Some(Footer::new(disk.footer())), None),
            Container::Vhdx(disk) => (None, Some(Vhdx::new(disk.info()))),
        };
        let fs = self.source.open()?;
        let info = fs.info();
        let filesystem_size = info.blocks.saturating_mul(info.block_size);
        let verity = Tree::open(&range, filesystem_size).ok().and_then(|tree| {
            let superblock = tree.superblock();
            Some(Verity {
                root_hash: tree.root().ok()?.to_string(),
                salt: superblock.salt.iter().map(|b| format!("{b:02x}")).collect(),
                uuid: uuid(&superblock.uuid),
            })
        });
        let report = Report {
            disk: self.source.disk.display().to_string(),
            size,
            vhd: footer,
            verity,
            vhdx,
            uuid: uuid(&info.uuid),
            label: output::printable(&info.label),
            block_size: info.block_size,
            filesystem_size,
            free_size: info.free_blocks.saturating_mul(info.block_size),
            inodes: info.inodes,
            free_inodes: info.free_inodes,
            features: info.features.clone(),
            clean: info.clean,
            journal: match info.journal {
                Journal::None => "none".to_owned(),
                Journal::External => "on another device".to_owned(),
                Journal::Clean => "clean".to_owned(),
                Journal::Replayed { transactions, .. } => {
                    format!("{transactions} transactions replayed")
                }
                _ => "unknown".to_owned(),
            },
        };
        if context.json {
            return output::json(&[report]);
        }
        let human = |bytes: u64| format!("{bytes} bytes ({})", output::size(bytes));
        let vhd = match &report.vhd {
            Some(footer) => format!("{}, {}, id {}", footer.kind, human(footer.size), footer.id),
            None if report.vhdx.is_some() => String::new(),
            None => "no footer".to_owned(),
        };
        let verity = match &report.verity {
            Some(v) => format!("root hash {}, salt {}", v.root_hash, v.salt),
            None => "no tree".to_owned(),
        };
        let vhdx = report.vhdx.as_ref().map_or_else(String::new, |disk| {
            let log = match disk.log_entries {
                0 => String::new(),
                n => format!(", {n} log entries replayed"),
            };
            format!(
                "{}, {}, blocks of {}, id {}{log}",
                disk.kind,
                human(disk.size),
                output::size(disk.block_size.into()),
                disk.id
            )
        });
        let rows = [
            ("Disk", report.disk),
            ("Length", human(report.size)),
            ("VHD", vhd),
            ("Verity", verity),
            ("VHDX", vhdx),
            ("UUID", report.uuid),
            ("Label", report.label),
            ("File system", human(report.filesystem_size)),
            ("Free", human(report.free_size)),
            ("Block size", format!("{} bytes", report.block_size)),
            (
                "Inodes",
                format!("{}, {} free", report.inodes, report.free_inodes),
            ),
            ("Features", report.features.join(" ")),
            ("Journal", report.journal),
            ("Clean", if report.clean { "yes" } else { "no" }.to_owned()),
        ];
        for (key, value) in rows {
            if !value.is_empty() {
                output::line(format_args!("{key:<13}{value}"))?;
            }
        }
        Ok(())
    }
}

/// With hyphens, as people write it.
pub(super) fn uuid(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let parts: Vec<_> = [0..8, 8..12, 12..16, 16..20, 20..32]
        .into_iter()
        .map(|r| hex.get(r).unwrap_or_default())
        .collect();
    parts.join("-")
}
