//! `lcow disk verify`: whether a disk is in order, and can be read to the end.

use std::collections::HashSet;

use anyhow::Result;
use clap::Args;
use lcow_ext4::FileType;
use lcow_ext4::reader::{FileMap, ReadError};

use super::Source;
use crate::context::Context;
use crate::errors::explained;
use crate::output;

/// Check a disk: every structure and every checksum, without mounting it
#[derive(Debug, Args)]
#[command(
    after_help = "Checks every structure as `e2fsck -fn` does (descriptors, bitmaps, inodes, blocks with two owners, directories, hash
trees, attributes, links, counts) and reads every file's map and, with --data, its contents. A journal is replayed in memory first.
Exit code 1 if anything is wrong. Nothing is changed."
)]
pub(crate) struct Verify {
    #[command(flatten)]
    source: Source,
    /// Read the contents of all files too
    #[arg(long)]
    data: bool,
}

const HINT: &str =
    "make the disk again from its tar; a disk that a guest wrote can be repaired by `e2fsck`";

impl Verify {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
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
                "names": counts.names,
                "inodes": counts.inodes,
                "bytes": counts.bytes,
            }))?;
        }
        match checked {
            Ok(()) if context.json || context.quiet => Ok(()),
            Ok(()) => output::line(format_args!(
                "ok: {} names of {} files and directories, {} of contents",
                counts.names,
                counts.inodes,
                output::size(counts.bytes)
            )),
            Err(error) => Err(explained(
                anyhow::Error::from(error)
                    .context(format!("{} is damaged", self.source.disk.display())),
                HINT,
            )),
        }
    }
}

#[derive(Default)]
struct Counts {
    names: u64,
    inodes: u64,
    bytes: u64,
}
