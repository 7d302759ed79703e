//! `lcow disk flatten`: layers as one disk. `lcow layer flatten` writes its disk with this too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;
use lcow_blockio::{FileDisk, ReadAt};
use lcow_ext4::reader::Filesystem;
use lcow_layer::flatten::{FlattenOptions, LayerName, flatten, name};
use lcow_layer::tree::{Subtree, TreeError};
use lcow_layer::union::Union;

use super::new_disk::{NewDisk, Watched, allocated};
use crate::context::Context;
use crate::output;
use crate::progress::Progress;

/// Make one disk of several layers
#[derive(Debug, Args)]
#[command(
    after_help = "The layers are given nearest first, as to overlayfs: what the first one has hides what the others have. The result
is a layer itself, and shows what all of them show together; whiteouts are gone. The same layers give the same bytes.

Examples:
  lcow disk flatten top.vhd middle.vhd base.vhd -o all.vhd --vhd
  lcow disk flatten --upper sandbox.vhd app.vhd base.vhd -o all.ext4   with what a container wrote"
)]
pub(crate) struct Flatten {
    /// The layers' disks, nearest (topmost) first
    #[arg(value_name = "LAYER", required = true)]
    layers: Vec<PathBuf>,
    /// A container's disk: its directory `upper` lies over all layers
    #[arg(long, value_name = "DISK")]
    upper: Option<PathBuf>,
    #[command(flatten)]
    result: FlatDisk,
}

/// The disk to make.
#[derive(Debug, Args)]
pub(crate) struct FlatDisk {
    /// The disk to make
    #[arg(short, long, value_name = "DISK")]
    output: PathBuf,
    /// Put a fixed VHD's footer behind the file system
    #[arg(long)]
    vhd: bool,
    /// Don't wait until the disk is on stable storage
    #[arg(long)]
    no_sync: bool,
    /// The largest disk that may result, as 64G [default: 128G, at most 16T]
    #[arg(long, value_name = "SIZE", value_parser = super::parse_size)]
    max_size: Option<u64>,
}

impl Flatten {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let mut names = Vec::new();
        let mut layers = Vec::new();
        let mut open = |path: &Path, directory: &[u8]| -> Result<()> {
            let reading = || format!("reading {}", path.display());
            let disk = FileDisk::open(path).with_context(reading)?;
            let fs = Filesystem::open(disk).with_context(reading)?;
            names.push(LayerName::FileSystem(fs.info().uuid));
            let tree = Subtree::open(Arc::new(fs), directory);
            layers.push(tree.map_err(unnumbered).with_context(reading)?);
            Ok(())
        };
        if let Some(upper) = &self.upper {
            open(upper, b"upper")?;
        }
        for layer in &self.layers {
            open(layer, b"")?;
        }
        let union = Union::new(layers).context("there are no layers")?;
        self.result.write(context, &union, &names)
    }
}

/// Opened alone, every disk is layer 0, which says nothing beside its file's name.
fn unnumbered(error: TreeError) -> anyhow::Error {
    match error {
        TreeError::Disk { source, .. } => source.into(),
        other => other.into(),
    }
}

impl FlatDisk {
    /// Writes a union under its layers' names, nearest first.
    pub(crate) fn write<R: ReadAt>(
        &self,
        context: &Context,
        union: &Union<R>,
        layers: &[LayerName],
    ) -> Result<()> {
        let cancel = context.cancel_on_signals()?;
        let new = NewDisk::create(&self.output)?;
        let mut options = FlattenOptions {
            vhd: self.vhd,
            ..FlattenOptions::default()
        };
        if let Some(max) = self.max_size {
            options.max_size = max;
        }
        let name = name(layers, &options);
        let progress = Progress::new(context.quiet);
        progress.begin("flattening", None);
        let watched = Watched {
            disk: new.disk()?,
            cancel: &cancel,
            progress: Some(&progress),
        };
        let flat = match flatten(union, &name, watched, &options) {
            Ok(flat) => flat,
            Err(_) if cancel.is_cancelled() => {
                return Err(lcow_driver::DriverError::Cancelled.into());
            }
            Err(error) => {
                let number = union.layers().len();
                let layers = if number == 1 { "layer" } else { "layers" };
                let context = format!("flattening {number} {layers} (0 is the nearest)");
                return Err(anyhow::Error::from(error).context(context));
            }
        };
        let file = new.keep(!self.no_sync)?;
        if context.json {
            return output::json(&serde_json::json!({
                "disk": self.output,
                "name": name,
                "layers": layers.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "names": flat.names,
                "data": flat.data,
                "disk_size": flat.disk_size,
                "allocated": allocated(&file, &self.output)?,
            }));
        }
        progress.end(None);
        if !context.quiet {
            output::line(name)?;
        }
        Ok(())
    }
}
