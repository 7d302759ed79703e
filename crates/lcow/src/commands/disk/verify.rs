//! `lcow disk verify`: whether a disk can be read to the end.

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
    after_help = "Reads superblock, groups, directories, inodes, extents, extended attributes and, with --data, all contents.
Exit code 1 if anything is wrong. Nothing is changed."
)]
pub(crate) struct Verify {
    #[command(flatten)]
    source: Source,
    /// Read the contents of all files too
    #[arg(long)]
    data: bool,
}

impl Verify {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
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
                "problem": problem,
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
                "make the disk again from its tar; `e2fsck -fn` says more of a disk that a guest wrote",
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
