//! `lcow layer files` and `cat`.

use std::io::{self, BufReader, Write};

use anyhow::{Context as _, Result};
use clap::Args;
use lcow_layer::tree::{Follow, Tree};

use super::find;
use super::read::contents;
use crate::commands::disk::inside;
use crate::commands::disk::ls::Listing;
use crate::context::Context;
use crate::output;

/// List the files of a layer and its parents, as a container would see them
#[derive(Debug, Args)]
#[command(after_help = "Read from the disks; no utility VM is started.

Examples:
  lcow layer files demo
  lcow layer files CONTAINER /etc -l
  lcow layer files demo -R --json")]
pub(crate) struct Files {
    /// Id, or name of an image or container
    #[arg(value_name = "LAYER")]
    layer: String,
    /// A directory or a file in it
    #[arg(default_value = "/", value_name = "PATH")]
    path: String,
    /// Mode, links, owner, size and time too
    #[arg(short, long)]
    long: bool,
    /// What is below directories too
    #[arg(short = 'R', long)]
    recursive: bool,
}

impl Files {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let id = find(&store, &self.layer)?;
        let chain = store.open_chain(&id)?;
        let union = contents(&chain)?;
        let found = union
            .resolve(&inside(&self.path), Follow::No)
            .with_context(|| format!("finding {} in layer {id}", self.path))?;
        let listing = Listing {
            long: self.long,
            recursive: self.recursive,
        };
        listing.show(context, union, &self.path, found.node)
    }
}

/// Write a file of a layer to standard output
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow layer cat demo /etc/os-release
  lcow layer cat CONTAINER /var/log/app.log
  lcow layer cat demo /etc/motd --own     only if this layer itself has it")]
pub(crate) struct Cat {
    /// Id, or name of an image or container
    #[arg(value_name = "LAYER")]
    layer: String,
    /// The file; symbolic links are followed, within the layer and its parents
    #[arg(value_name = "PATH")]
    path: String,
    /// Not from its parents
    #[arg(long)]
    own: bool,
}

impl Cat {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let id = find(&store, &self.layer)?;
        let path = inside(&self.path);
        let reading = || format!("reading {} in layer {id}", self.path);
        let mut out = output::stdout();
        if self.own {
            let file = store.diff_getter(&id)?.open(&path)?;
            io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut out)
                .with_context(reading)?;
        } else {
            let chain = store.open_chain(&id)?;
            let file = chain.open(&path)?;
            io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut out)
                .with_context(reading)?;
        }
        out.flush()?;
        Ok(())
    }
}
