//! `lcow disk to-tar`: a disk as a tar.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use lcow_layer::export::{ExactError, Expected, ExportOptions, canonical, exact, unverified};
use lcow_layer::tree::Subtree;

use super::{Source, source_date_epoch};
use crate::context::Context;
use crate::errors::explained;
use crate::files::Output;

/// The largest tar that a sidecar makes, unless told otherwise, in bytes: as much data as `from-tar` puts on a disk.
const MAX_SIZE: u64 = 128 << 30;

/// Write the files of a disk as a tar
#[derive(Debug, Args)]
#[command(
    after_help = "Reads any ext2, ext3 or ext4 file system. Without --split the tar has a form of its own: sorted, the same for
the same files. SOURCE_DATE_EPOCH limits its times.

Examples:
  lcow disk to-tar rootfs.ext4 -o rootfs.tar
  lcow disk to-tar layer.vhd --split layer.split | sha256sum
  lcow disk to-tar disk.img --offset 1048576 | tar -tv"
)]
pub(crate) struct ToTar {
    #[command(flatten)]
    source: Source,
    /// The tar; `-` for standard output
    #[arg(short, long, default_value = "-", value_name = "TAR")]
    output: PathBuf,
    /// The sidecar that `from-tar --split` wrote: gives back the same tar, byte for byte
    #[arg(long, value_name = "FILE")]
    split: Option<PathBuf>,
    /// Don't hash the tar: a disk that changed since then gives another one, and no error
    #[arg(long, requires = "split")]
    no_verify: bool,
    /// The largest tar that a sidecar may make, as 64G: it can have any size, zeros need no disk [default: 128G]
    #[arg(long, value_name = "SIZE", requires = "split", value_parser = super::parse_size)]
    max_size: Option<u64>,
    /// Turn overlayfs's whiteouts into a layer's (.wh.NAME)
    #[arg(long, conflicts_with = "split")]
    overlay: bool,
}

impl ToTar {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let reading = || format!("reading {}", self.source.disk.display());
        let output = Output::create(&self.output, true)?;
        if !output.is_stdout() {
            // For the temporary file: the loops below end when a write is refused.
            context.cancel_on_signals()?;
        }
        let cancel = context.no_cancel();
        let mut writer = Stoppable {
            inner: BufWriter::with_capacity(128 << 10, output),
            cancel,
        };
        let result = match &self.split {
            Some(path) => {
                let split =
                    File::open(path).with_context(|| format!("opening {}", path.display()))?;
                let disk = self.source.range()?;
                let max = self.max_size.unwrap_or(MAX_SIZE);
                let made = if self.no_verify {
                    unverified(disk, split, max, &mut writer)
                } else {
                    exact(disk, split, Expected::AtMost(max), &mut writer)
                };
                match made {
                    Err(error @ ExactError::TooLarge { .. }) => Err(explained(
                        anyhow::Error::from(error).context(reading()),
                        "if you trust the sidecar, allow more with --max-size",
                    )),
                    made => made.map(drop).with_context(reading),
                }
            }
            None => {
                let tree = Subtree::open(self.source.open()?, b"").with_context(reading)?;
                let options = ExportOptions {
                    overlay_whiteouts: self.overlay,
                    source_date_epoch: source_date_epoch(),
                };
                canonical(&tree, &options, &mut writer)
                    .map(drop)
                    .with_context(reading)
            }
        };
        if writer.cancel.is_cancelled() {
            return Err(lcow_driver::DriverError::Cancelled.into());
        }
        result?;
        let mut writer = writer.inner;
        writer
            .flush()
            .with_context(|| format!("writing {}", self.output.display()))?;
        writer
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?
            .keep()
    }
}

struct Stoppable<W> {
    inner: W,
    cancel: lcow_driver::Cancel,
}

impl<W: Write> Write for Stoppable<W> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(std::io::Error::other("cancelled"));
        }
        self.inner.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
