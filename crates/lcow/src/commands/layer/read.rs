//! `lcow layer diff`, `changes`, `export` and `flatten`.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use lcow_driver::{Against, Chain, LayerDisk, Store};
use lcow_layer::export::ExportOptions;
use lcow_layer::union::Union;

use super::find;
use crate::commands::disk::flatten::FlatDisk;
use crate::commands::disk::{inside, source_date_epoch};
use crate::context::Context;
use crate::errors::hinted;
use crate::files::Output;
use crate::output;

/// Write a layer's changes as a tar
#[derive(Debug, Args)]
#[command(
    after_help = "A read-only layer's own changes come back byte for byte as they were applied.

Examples:
  lcow layer diff demo -o top.tar
  lcow layer diff CONTAINER | tar -tv
  lcow layer diff demo --against base -o both.tar"
)]
pub(crate) struct Diff {
    /// Id, or name of an image or container
    #[arg(value_name = "LAYER")]
    layer: String,
    /// Another layer to compare with, or `none` [default: its parent]
    #[arg(long, value_name = "LAYER")]
    against: Option<String>,
    /// Where to; `-` for standard output
    #[arg(short, long, default_value = "-", value_name = "TAR")]
    output: PathBuf,
}

impl Diff {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let id = find(&store, &self.layer)?;
        let against = against(&store, self.against.as_deref())?;
        let output = Output::create(&self.output, true)?;
        let cancel = if output.is_stdout() {
            context.no_cancel()
        } else {
            context.cancel_on_signals()?
        };
        let mut writer = BufWriter::with_capacity(1 << 20, output);
        store.diff(&id, &against, &mut writer, &cancel)?;
        finish(writer, &self.output)
    }
}

/// List what a layer changes: A added, C changed, D deleted
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow layer changes demo
  lcow layer changes CONTAINER --against base --json")]
pub(crate) struct Changes {
    /// Id, or name of an image or container
    #[arg(value_name = "LAYER")]
    layer: String,
    /// Another layer to compare with, or `none` [default: its parent]
    #[arg(long, value_name = "LAYER")]
    against: Option<String>,
}

impl Changes {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let id = find(&store, &self.layer)?;
        let changes = store.changes(&id, &against(&store, self.against.as_deref())?)?;
        crate::commands::diff::show(context, changes)
    }
}

/// Show how much a layer changes: the bytes of files that are new or changed
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow layer diff-size CONTAINER
  lcow layer diff-size demo --against none")]
pub(crate) struct DiffSize {
    /// Id, or name of an image or container
    #[arg(value_name = "LAYER")]
    layer: String,
    /// Another layer to compare with, or `none` [default: its parent]
    #[arg(long, value_name = "LAYER")]
    against: Option<String>,
}

impl DiffSize {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let id = find(&store, &self.layer)?;
        let size = store.diff_size(&id, &against(&store, self.against.as_deref())?)?;
        if context.json {
            output::json(&serde_json::json!({ "id": id, "size": size }))
        } else {
            output::line(size)
        }
    }
}

/// Write all files of a layer and its parents as one tar
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow layer export demo -o rootfs.tar
  lcow layer export demo /etc | tar -t
  lcow layer export demo | lcow disk from-tar -o rootfs.ext4")]
pub(crate) struct Export {
    /// Id, or name of an image or container
    #[arg(value_name = "LAYER")]
    layer: String,
    /// The directory to write, with names from there on
    #[arg(default_value = "/", value_name = "PATH")]
    path: String,
    /// Where to; `-` for standard output
    #[arg(short, long, default_value = "-", value_name = "TAR")]
    output: PathBuf,
}

impl Export {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let id = find(&store, &self.layer)?;
        let chain = store.open_chain(&id)?;
        contents(&chain)?;
        let mut writer = BufWriter::with_capacity(1 << 20, Output::create(&self.output, true)?);
        let options = ExportOptions {
            overlay_whiteouts: false,
            source_date_epoch: source_date_epoch(),
        };
        chain.archive(&inside(&self.path), &options, &mut writer)?;
        finish(writer, &self.output)
    }
}

/// Make one disk of a layer and its parents
#[derive(Debug, Args)]
#[command(
    after_help = "The result is a layer itself. It shows what the layer and its parents show together, and whiteouts are gone. The same
layers give the same bytes.

Examples:
  lcow layer flatten demo -o demo.vhd --vhd
  lcow layer flatten CONTAINER -o all.ext4     with what the container wrote"
)]
pub(crate) struct Flatten {
    /// Id, or name of an image or container
    #[arg(value_name = "LAYER")]
    layer: String,
    #[command(flatten)]
    result: FlatDisk,
}

impl Flatten {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let id = find(&store, &self.layer)?;
        let chain = store.open_chain(&id)?;
        let union = contents(&chain)?;
        self.result.write(context, union, chain.names())
    }
}

pub(super) fn contents(chain: &Chain) -> Result<&Union<LayerDisk>> {
    chain.union().ok_or_else(|| {
        hinted(
            format!("layer {} and its parents have no contents", chain.id()),
            "apply a tar first",
        )
    })
}

fn finish(mut writer: BufWriter<Output>, path: &std::path::Path) -> Result<()> {
    writer
        .flush()
        .with_context(|| format!("writing {}", path.display()))?;
    writer
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?
        .keep()
}

fn against(store: &Store, query: Option<&str>) -> Result<Against> {
    Ok(match query {
        None => Against::Parent,
        Some("none") => Against::Nothing,
        Some(query) => Against::Layer(find(store, query)?),
    })
}
