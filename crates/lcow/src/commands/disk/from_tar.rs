//! `lcow disk from-tar`: a tar as an ext4 disk.

use std::io::{BufWriter, Read, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use lcow_layer::apply::{Applied, ApplyError, ApplyOptions, Salt, apply, convert};

use super::new_disk::{NewDisk, Watched, allocated};
use crate::context::Context;
use crate::errors::explained;
use crate::files::{self, Output};
use crate::output;
use crate::progress::Progress;

/// Make an ext4 disk of a tar
#[derive(Debug, Args)]
#[command(
    after_help = "The same tar gives the same bytes everywhere. The tar may be compressed with gzip, zstd, xz, bzip2 or compress.

Examples:
  lcow disk from-tar -i rootfs.tar -o rootfs.ext4
  zcat layer.tar.gz | lcow disk from-tar -o layer.vhd --vhd --overlay
  lcow disk from-tar -i layer.tar -o layer.vhd --vhd --split layer.split   and back, byte for byte:
  lcow disk to-tar layer.vhd --split layer.split | cmp - layer.tar
  lcow disk from-tar -i layer.tar -o layer.vhd --vhd --verity   prints diff ID and root hash, a line each:
  lcow disk verify layer.vhd --root-hash HEX"
)]
pub(crate) struct FromTar {
    /// The tar; `-` for standard input
    #[arg(short, long, default_value = "-", value_name = "TAR")]
    input: PathBuf,
    /// The disk to make
    #[arg(short, long, value_name = "DISK")]
    output: PathBuf,
    /// Put a fixed VHD's footer behind the file system
    #[arg(long)]
    vhd: bool,
    /// Put a dm-verity hash tree behind the file system, and print its root hash too
    #[arg(long)]
    verity: bool,
    /// What the tree's hashes are salted with, to 256 bytes [default: what follows from the diff ID]
    #[arg(long, value_name = "HEX", requires = "verity", value_parser = super::parse_bytes)]
    verity_salt: Option<super::Bytes>,
    /// Turn a layer's whiteouts (.wh.NAME) into overlayfs's
    #[arg(long)]
    overlay: bool,
    /// Keep small files and directories in their inodes (ext4's inline_data)
    #[arg(long)]
    inline: bool,
    /// Also write what it takes to get the tar back byte for byte
    #[arg(long, value_name = "FILE")]
    split: Option<PathBuf>,
    /// Don't compute the diff ID: the file system's UUID follows from the tar's size and headers instead
    #[arg(long, conflicts_with = "split")]
    no_digest: bool,
    /// Don't wait until the disk is on stable storage
    #[arg(long)]
    no_sync: bool,
    /// The largest disk that may result, as 64G [default: 128G, at most 16T]
    #[arg(long, value_name = "SIZE", value_parser = super::parse_size)]
    max_size: Option<u64>,
}

impl FromTar {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let cancel = context.cancel_on_signals()?;
        let new = NewDisk::create(&self.output)?;
        let input = files::input(&self.input, "a tar", &cancel)?;
        let size = match files::is_dash(&self.input) {
            true => None,
            false => std::fs::metadata(&self.input)
                .ok()
                .filter(std::fs::Metadata::is_file)
                .map(|m| m.len()),
        };
        let mut split = match &self.split {
            Some(path) => Some(BufWriter::with_capacity(
                256 << 10,
                Output::create(path, true)?,
            )),
            None => None,
        };
        let mut options = ApplyOptions {
            overlay: self.overlay,
            inline: self.inline,
            vhd: self.vhd,
            verity: self.verity.then(|| match &self.verity_salt {
                Some(salt) => Salt::Given(salt.0.clone()),
                None => Salt::Derived,
            }),
            ..ApplyOptions::default()
        };
        if let Some(max) = self.max_size {
            options.max_size = max;
        }

        let progress = Progress::new(context.quiet);
        progress.begin("converting", size);
        let input = Input {
            inner: input,
            progress: &progress,
            cancel: &cancel,
        };
        // The input is at its end while a hash tree is built.
        let disk = Watched {
            disk: new.disk()?,
            cancel: &cancel,
            progress: None,
        };
        let sidecar = split.as_mut().map(|s| s as &mut dyn Write);
        let made = match self.make(input, disk, sidecar, &options) {
            Ok(made) => made,
            Err(_) if cancel.is_cancelled() => {
                return Err(lcow_driver::DriverError::Cancelled.into());
            }
            Err(error) => return Err(self.explain(error)),
        };
        if let Some(mut split) = split {
            split.flush().with_context(|| "writing the sidecar")?;
            split
                .into_inner()
                .map_err(std::io::IntoInnerError::into_error)?
                .keep()?;
        }
        let file = new.keep(!self.no_sync)?;
        if context.json {
            return output::json(&serde_json::json!({
                "disk": self.output,
                "diff_id": made.applied.map(|a| a.diff_id),
                "entries": made.entries,
                "tar_size": made.tar_size,
                "disk_size": made.disk_size,
                "verity_root": made.verity_root.map(|root| root.to_string()),
                "allocated": allocated(&file, &self.output)?,
                "compressed": made.applied.and_then(|a| a.compressed).map(|c| serde_json::json!({ "digest": c.digest, "size": c.size })),
            }));
        }
        progress.end(None);
        if !context.quiet {
            if let Some(applied) = made.applied {
                output::line(applied.diff_id)?;
            }
            if let Some(root) = made.verity_root {
                output::line(root)?;
            }
        }
        Ok(())
    }

    fn make(
        &self,
        input: Input<'_>,
        disk: Watched<'_>,
        split: Option<&mut dyn Write>,
        options: &ApplyOptions,
    ) -> Result<Made, ApplyError> {
        if self.no_digest {
            let converted = convert(input, disk, options)?;
            return Ok(Made {
                tar_size: converted.tar_size,
                entries: converted.entries,
                disk_size: converted.disk_size,
                verity_root: converted.verity_root,
                applied: None,
            });
        }
        let applied = apply(input, disk, split, options)?;
        Ok(Made {
            tar_size: applied.tar_size,
            entries: applied.entries,
            disk_size: applied.disk_size,
            verity_root: applied.verity_root,
            applied: Some(applied),
        })
    }

    fn explain(&self, error: ApplyError) -> anyhow::Error {
        let name = if files::is_dash(&self.input) {
            "standard input".to_owned()
        } else {
            self.input.display().to_string()
        };
        let hint = match error.kind() {
            lcow_layer::ErrorKind::Corrupt => {
                "get the tar again: what is here is not what was made"
            }
            lcow_layer::ErrorKind::Refused => {
                "the entry would be unsafe or can't be kept; nothing was written"
            }
            _ => "",
        };
        let error = anyhow::Error::from(error).context(format!("converting {name}"));
        explained(error, hint)
    }
}

/// What there is to say about the disk.
struct Made {
    tar_size: u64,
    entries: u64,
    disk_size: u64,
    verity_root: Option<lcow_disk::verity::BlockHash>,
    /// If the tar was hashed.
    applied: Option<Applied>,
}

struct Input<'a> {
    inner: Box<dyn Read + Send>,
    progress: &'a Progress,
    cancel: &'a lcow_driver::Cancel,
}

impl Read for Input<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(std::io::Error::other("cancelled"));
        }
        let n = self.inner.read(buf)?;
        self.progress.add(n as u64);
        Ok(n)
    }
}
