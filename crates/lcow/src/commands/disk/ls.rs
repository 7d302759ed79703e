//! `lcow disk ls` and `cat`.

use std::io::{BufWriter, Write};

use anyhow::{Context as _, Result};
use clap::Args;
use jiff::Timestamp;
use lcow_ext4::FileType;
use lcow_layer::tree::{Follow, Node, Stat, Subtree, Tree};
use serde::Serialize;

use super::{Source, SourceDisk, inside};
use crate::context::Context;
use crate::errors::hinted;
use crate::output::{self, printable};

/// List the files on a disk
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow disk ls rootfs.ext4
  lcow disk ls rootfs.ext4 /etc -l
  lcow disk ls rootfs.ext4 -lR
  lcow disk ls rootfs.ext4 / --json")]
pub(crate) struct Ls {
    #[command(flatten)]
    source: Source,
    /// A directory or a file on it
    #[arg(default_value = "/", value_name = "PATH")]
    path: String,
    /// Mode, links, owner, size and time too
    #[arg(short, long)]
    long: bool,
    /// What is below directories too
    #[arg(short = 'R', long)]
    recursive: bool,
}

#[derive(Serialize)]
struct Line {
    path: String,
    #[serde(rename = "type")]
    file_type: &'static str,
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    modified: String,
    inode: u32,
    target: Option<String>,
    device: Option<String>,
    xattrs: Vec<String>,
}

impl Ls {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let tree = Subtree::open(self.source.open()?, b"")?;
        let node = find(&tree, &self.source, &self.path, Follow::No)?;
        let listing = Listing {
            long: self.long,
            recursive: self.recursive,
        };
        listing.show(context, &tree, &self.path, node)
    }
}

/// How files are listed.
pub(crate) struct Listing {
    pub(crate) long: bool,
    pub(crate) recursive: bool,
}

impl Listing {
    /// Lists what a directory of a tree holds, or the one file that is no directory.
    pub(crate) fn show<T: Tree>(
        &self,
        context: &Context,
        tree: &T,
        path: &str,
        node: Node,
    ) -> Result<()> {
        let mut out = BufWriter::new(output::stdout());
        let mut lines = Vec::new();
        // Shown paths are below what was asked for; a file is shown by its own name.
        let mut todo = vec![(Vec::new(), node)];
        let single = todo
            .first()
            .is_some_and(|(_, n)| n.file_type() != FileType::Directory);
        if single && let Some((_, node)) = todo.pop() {
            let name = inside(path.rsplit('/').next().unwrap_or_default());
            self.one(context, tree, &name, &node, &mut out, &mut lines)?;
        }
        while let Some((path, dir)) = todo.pop() {
            let mut below = Vec::new();
            for entry in tree.read_dir(&dir)? {
                let node = tree.node(&entry)?;
                let mut path: Vec<u8> = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&entry.name);
                self.one(context, tree, &path, &node, &mut out, &mut lines)?;
                if self.recursive && node.file_type() == FileType::Directory {
                    below.push((path, node));
                }
            }
            todo.extend(below.into_iter().rev());
        }
        if context.json {
            drop(out);
            return output::json(&lines);
        }
        out.flush()?;
        Ok(())
    }

    fn one<T: Tree>(
        &self,
        context: &Context,
        tree: &T,
        path: &[u8],
        node: &Node,
        out: &mut impl Write,
        lines: &mut Vec<Line>,
    ) -> Result<()> {
        let stat = node.stat();
        let shown = printable(path);
        let target = match stat.file_type {
            FileType::Symlink => Some(printable(&tree.read_link(node)?)),
            _ => None,
        };
        if context.json {
            let xattrs = tree
                .xattrs(node)?
                .iter()
                .map(|x| printable(&x.name))
                .collect();
            lines.push(Line {
                path: shown,
                file_type: type_name(stat.file_type),
                mode: format!("{:04o}", stat.permissions),
                links: stat.links,
                uid: stat.uid,
                gid: stat.gid,
                size: stat.size,
                modified: time(&stat),
                inode: stat.inode.0,
                target,
                device: is_device(&stat)
                    .then(|| format!("{}:{}", stat.device.major, stat.device.minor)),
                xattrs,
            });
            return Ok(());
        }
        if !self.long {
            let slash = if stat.file_type == FileType::Directory {
                "/"
            } else {
                ""
            };
            writeln!(out, "{shown}{slash}")?;
            return Ok(());
        }
        let size = match is_device(&stat) {
            true => format!("{},{}", stat.device.major, stat.device.minor),
            false => stat.size.to_string(),
        };
        let target = target.map(|t| format!(" -> {t}")).unwrap_or_default();
        writeln!(
            out,
            "{} {:>4} {:>5} {:>5} {size:>12} {} {shown}{target}",
            mode(&stat),
            stat.links,
            stat.uid,
            stat.gid,
            time(&stat),
        )?;
        Ok(())
    }
}

/// Write a file of a disk to standard output
#[derive(Debug, Args)]
#[command(after_help = "Example:
  lcow disk cat rootfs.ext4 /etc/os-release")]
pub(crate) struct Cat {
    #[command(flatten)]
    source: Source,
    /// The file on it; symbolic links are followed, within the disk
    #[arg(value_name = "PATH")]
    path: String,
}

impl Cat {
    pub(crate) fn run(self, _context: &Context) -> Result<()> {
        let tree = Subtree::open(self.source.open()?, b"")?;
        let node = find(&tree, &self.source, &self.path, Follow::Yes)?;
        if node.file_type() != FileType::Regular {
            let what = type_name(node.file_type());
            return Err(hinted(
                format!("{} is a {what}, not a file", self.path),
                "`lcow disk ls` lists directories",
            ));
        }
        let reading = || format!("reading {} on {}", self.path, self.source.disk.display());
        let file = tree.open_file(&node).with_context(reading)?;
        let mut out = output::stdout();
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        loop {
            let n = file.read_at(offset, &mut buffer).with_context(reading)?;
            if n == 0 {
                out.flush()?;
                return Ok(());
            }
            out.write_all(&buffer[..n])?;
            offset += n as u64;
        }
    }
}

fn find(tree: &Subtree<SourceDisk>, source: &Source, path: &str, follow: Follow) -> Result<Node> {
    let found = tree.resolve(&inside(path), follow);
    Ok(found
        .with_context(|| format!("finding {path} on {}", source.disk.display()))?
        .node)
}

fn is_device(stat: &Stat) -> bool {
    matches!(stat.file_type, FileType::CharDevice | FileType::BlockDevice)
}

fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Regular => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::CharDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
    }
}

/// As `ls -l` shows it.
fn mode(stat: &Stat) -> String {
    let kind = match stat.file_type {
        FileType::Regular => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
    };
    let mut text = String::from(kind);
    let bits = stat.permissions;
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let own = bits >> shift;
        text.push(if own & 4 == 0 { '-' } else { 'r' });
        text.push(if own & 2 == 0 { '-' } else { 'w' });
        text.push(match (own & 1 != 0, bits & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn time(stat: &Stat) -> String {
    let nanos = i32::try_from(stat.mtime.nanos.min(999_999_999)).unwrap_or(0);
    Timestamp::new(stat.mtime.secs, nanos)
        .map_or_else(|_| stat.mtime.secs.to_string(), |t| t.to_string())
}
