//! `lcow disk verify`: whether a disk is in order, and can be read to the end.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use clap::Args;
use lcow_blockio::FileDisk;
use lcow_disk::verity::{BlockHash, Tree, VerityError};
use lcow_disk::{Container, vhdx};
use lcow_ext4::FileType;
use lcow_ext4::reader::{FileMap, ReadError};

use super::Source;
use crate::context::Context;
use crate::errors::{explained, hinted};
use crate::output;

/// Check a disk: every structure and every checksum, without mounting it
#[derive(Debug, Args)]
#[command(
    after_help = "Checks the container first: of a VHDX headers, regions, log and block allocation table, of a dynamic VHD headers and table.
Then checks every structure as `e2fsck -fn` does (descriptors, bitmaps, inodes, blocks with two owners, directories, hash
trees, attributes, links, counts) and reads every file's map and, with --data, its contents. A journal is replayed in memory first.
With --root-hash, first holds every block against the disk's dm-verity tree, from the root down, and names the first that is
not what was hashed. Exit code 1 if anything is wrong. Nothing is changed.

Examples:
  lcow disk verify layer.vhd --data
  lcow disk verify layer.vhd --root-hash 4a2f…     as `disk from-tar --verity` printed it"
)]
pub(crate) struct Verify {
    #[command(flatten)]
    source: Source,
    /// Read the contents of all files too
    #[arg(long)]
    data: bool,
    /// The root hash that the disk's verity tree must have
    #[arg(long, value_name = "HEX")]
    root_hash: Option<BlockHash>,
}

const HINT: &str =
    "make the disk again from its tar; a disk that a guest wrote can be repaired by `e2fsck`";

const CONTAINER_HINT: &str =
    "use a copy that is good; `lcow disk convert` copies a disk of which all blocks can be read";

impl Verify {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        self.container()?;
        if let Some(root) = &self.root_hash {
            self.hold_against(root, context)?;
        }
        let found = self.source.check()?;
        if let Some(first) = found.findings.first() {
            let findings: Vec<String> = found.findings.iter().map(ToString::to_string).collect();
            if context.json {
                output::json(&serde_json::json!({
                    "disk": self.source.disk,
                    "good": false,
                    "findings": findings,
                }))?;
            } else {
                findings.iter().try_for_each(output::line)?;
            }
            let error = ReadError::Corrupt {
                structure: first.structure,
                offset: first.offset,
                detail: first.detail.clone(),
            };
            let rest = if found.complete {
                ""
            } else {
                ", not all of it looked at"
            };
            let what = format!(
                "{} is damaged ({} findings{rest})",
                self.source.disk.display(),
                findings.len()
            );
            return Err(explained(anyhow::Error::from(error).context(what), HINT));
        }
        let fs = self.source.open()?;
        let mut counts = Counts::default();
        let checked = (|| -> Result<(), ReadError> {
            let mut buffer = vec![0; 1 << 20];
            let next =
                |map: &FileMap, offset| self.data.then(|| fs.next_data(map, offset)).flatten();
            let mut seen = HashSet::new();
            let root = fs.root()?;
            for file in fs.walk(&root)? {
                let file = file?;
                counts.names += 1;
                if !seen.insert(file.inode.number) {
                    continue;
                }
                counts.inodes += 1;
                fs.xattrs(&file.inode)?;
                match file.inode.file_type {
                    FileType::Symlink => drop(fs.read_link(&file.inode)?),
                    FileType::Regular => {
                        let map = fs.map_file(&file.inode)?;
                        counts.bytes += file.inode.size;
                        let mut offset = 0;
                        while let Some(range) = next(&map, offset) {
                            offset = range.start;
                            while offset < range.end {
                                let n = fs.read_mapped(&map, offset, &mut buffer)?;
                                if n == 0 {
                                    break;
                                }
                                offset += n as u64;
                            }
                            offset = offset.max(range.end);
                        }
                    }
                    _ => {}
                }
            }
            Ok(())
        })();
        let problem = checked.as_ref().err().map(ToString::to_string);
        if context.json {
            output::json(&serde_json::json!({
                "disk": self.source.disk,
                "good": problem.is_none(),
                "findings": problem.iter().collect::<Vec<_>>(),
                "root_hash": self.root_hash.map(|root| root.to_string()),
                "names": counts.names,
                "inodes": counts.inodes,
                "bytes": counts.bytes,
            }))?;
        }
        match checked {
            Ok(()) if context.json || context.quiet => Ok(()),
            Ok(()) => output::line(format_args!(
                "ok: {} names of {} files and directories, {} of contents{}",
                counts.names,
                counts.inodes,
                output::size(counts.bytes),
                match self.root_hash {
                    Some(_) => "; every block is what the root hash vouches for",
                    None => "",
                }
            )),
            Err(error) => Err(explained(
                anyhow::Error::from(error)
                    .context(format!("{} is damaged", self.source.disk.display())),
                HINT,
            )),
        }
    }
}

impl Verify {
    /// Every block is what was hashed, and the file system is all there is to it.
    fn hold_against(&self, root: &BlockHash, context: &Context) -> Result<()> {
        let name = self.source.disk.display();
        let (range, data_size) = self.source.with_tree()?;
        let verified = Tree::open(range, data_size).and_then(|tree| tree.verify(root));
        let error = match verified {
            Ok(()) => {
                let info = self.source.open()?;
                let info = info.info();
                let size = info.blocks.saturating_mul(info.block_size);
                if size == data_size {
                    return Ok(());
                }
                return Err(hinted(
                    format!(
                        "{name} has a file system of {size} bytes, and its tree covers {data_size}"
                    ),
                    "the root hash is of another disk, or the disk was not made by lcow",
                ));
            }
            Err(error @ VerityError::Io { .. }) => {
                return Err(error).with_context(|| format!("reading {name}"));
            }
            Err(error) => error,
        };
        if context.json {
            let (block, offset) = match &error {
                VerityError::Mismatch { block, offset, .. }
                | VerityError::Root { block, offset, .. } => {
                    (Some(block.to_string()), Some(*offset))
                }
                VerityError::Corrupt { offset, .. } => (None, Some(*offset)),
                _ => (None, None),
            };
            output::json(&serde_json::json!({
                "disk": self.source.disk,
                "good": false,
                "findings": [error.to_string()],
                "root_hash": root.to_string(),
                "block": block,
                "offset": offset,
            }))?;
        }
        let hint = match error {
            VerityError::Corrupt { .. } => {
                "make the disk again from its tar; if it was made without --verity, leave --root-hash away"
            }
            _ => "make the disk again from its tar",
        };
        Err(explained(
            anyhow::Error::from(error).context(format!("{name} is damaged")),
            hint,
        ))
    }

    /// What a disk is wrapped in must be right before what is in it is looked at.
    fn container(&self) -> Result<()> {
        let path = &self.source.disk;
        let damaged = |error: anyhow::Error| {
            let what = format!("{} is damaged", path.display());
            explained(error.context(what), CONTAINER_HINT)
        };
        match super::open_container(path, self.source.format())? {
            Container::Raw(_) => Ok(()),
            Container::Vhd(disk) => match disk.dynamic().map(lcow_disk::vhd::Dynamic::check) {
                Some(Err(error)) => Err(damaged(error.into())),
                _ => Ok(()),
            },
            Container::Vhdx(_) => {
                let disk = FileDisk::open(path)?;
                let report = vhdx::check(disk)?;
                for note in &report.notes {
                    tracing::info!(note, "the VHDX");
                }
                match report.problems.first() {
                    None => Ok(()),
                    Some(first) => {
                        let more = match report.problem_count {
                            1 => String::new(),
                            n => format!(", and {} more problems", n - 1),
                        };
                        let error = vhdx::VhdxError::Corrupt {
                            structure: first.structure,
                            offset: first.offset,
                            detail: format!("{}{more}", first.detail),
                        };
                        Err(damaged(error.into()))
                    }
                }
            }
        }
    }
}

#[derive(Default)]
struct Counts {
    names: u64,
    inodes: u64,
    bytes: u64,
}
