//! `lcow layer create`, `create-rw`, `apply`, `commit` and `rm`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lcow_driver::{ApplyRequest, Input, LayerId, Removed, SandboxOptions};

use super::find;
use crate::containers::Containers;
use crate::context::Context;
use crate::errors::hinted;
use crate::progress::Progress;
use crate::{files, output};

/// Make a layer without contents
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow layer create base && lcow layer apply base <base.tar
  lcow layer create top --parent base")]
pub(crate) struct Create {
    /// The new layer's id
    #[arg(value_name = "ID")]
    id: LayerId,
    /// The layer it is built on
    #[arg(long, value_name = "LAYER")]
    parent: Option<String>,
}

impl Create {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let parent = self
            .parent
            .as_deref()
            .map(|query| find(&store, query))
            .transpose()?;
        store.create(&self.id, parent.as_ref())?;
        if context.json {
            output::json(&serde_json::json!({ "id": self.id }))
        } else {
            output::line(&self.id)
        }
    }
}

/// Make a sandbox: the writable disk of a container
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow layer create-rw work --parent demo
  lcow layer create-rw work --parent demo --storage-opt size=512m --storage-opt lcow.sandboxformat=vhdx")]
pub(crate) struct CreateRw {
    /// The new sandbox's id
    #[arg(value_name = "ID")]
    id: LayerId,
    /// The layer it is built on
    #[arg(long, value_name = "LAYER")]
    parent: Option<String>,
    /// An option of the disk: size, lcow.sandboxsize, lcow.sandboxformat, journal (may be repeated)
    #[arg(long = "storage-opt", value_name = "KEY=VALUE")]
    storage: Vec<String>,
}

impl CreateRw {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let parent = self
            .parent
            .as_deref()
            .map(|query| find(&store, query))
            .transpose()?;
        let options = SandboxOptions::parse(&self.storage)?;
        store.create_read_write(&self.id, parent.as_ref(), &options)?;
        if context.json {
            output::json(&store.metadata(&self.id)?)
        } else {
            output::line(&self.id)
        }
    }
}

/// Make a layer of what a sandbox changed in its parent
#[derive(Debug, Args)]
#[command(after_help = "The sandbox stays as it is. No utility VM is started.

Examples:
  lcow layer commit work changed
  lcow layer commit work changed --json")]
pub(crate) struct Commit {
    /// Id of the sandbox, or name of its container
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// The new layer's id
    #[arg(value_name = "ID")]
    id: LayerId,
}

impl Commit {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let cancel = context.cancel_on_signals()?;
        let store = context.store()?;
        let sandbox = find(&store, &self.sandbox)?;
        let progress = Progress::new(context.quiet);
        progress.begin("committing", None);
        let applied = store.commit(&sandbox, &self.id, &cancel)?;
        progress.end(None);
        if context.json {
            output::json(&applied)
        } else {
            output::line(applied.record.diff_id)
        }
    }
}

/// Give a layer without contents those of a tar
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow layer apply base -i base.tar.gz
  zcat base.tar.gz | lcow layer apply base")]
pub(crate) struct Apply {
    /// The layer
    #[arg(value_name = "LAYER")]
    layer: String,
    /// The tar, plain or compressed; `-` for standard input
    #[arg(short, long, default_value = "-", value_name = "TAR")]
    input: PathBuf,
}

impl Apply {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let cancel = context.cancel_on_signals()?;
        let store = context.store()?;
        let id = find(&store, &self.layer)?;
        let mut input = files::input(&self.input, "a tar", &cancel)?;
        let progress = Progress::new(context.quiet);
        progress.begin("applying", None);
        let applied = store.apply_diff(
            &id,
            None,
            Input::Reader(&mut *input),
            &ApplyRequest::default(),
            &cancel,
        )?;
        progress.end(None);
        if context.json {
            output::json(&applied)
        } else {
            output::line(applied.record.diff_id)
        }
    }
}

/// Remove layers
#[derive(Debug, Args)]
#[command(
    after_help = "A layer that others are built on, or that is in use, is not removed. Layers of images go with `lcow rmi`,
sandboxes of containers with `lcow rm`.

Example:
  lcow layer rm top base"
)]
pub(crate) struct Rm {
    /// Ids
    #[arg(required = true, value_name = "LAYER")]
    layers: Vec<String>,
}

impl Rm {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let images = context.images()?;
        let store = images.store();
        let mut removed = Vec::new();
        for query in &self.layers {
            let id = find(store, query)?;
            if let Some(image) = images.list()?.into_iter().find(|i| i.layers.contains(&id)) {
                return Err(hinted(
                    format!("layer {id} belongs to image {}", image.display_name()),
                    format!("remove the image: lcow rmi {}", image.display_name()),
                ));
            }
            if let Some(container) = Containers::new(store)
                .list()?
                .into_iter()
                .find(|c| c.id == id)
            {
                return Err(hinted(
                    format!("layer {id} is the sandbox of container {}", container.name),
                    format!("remove the container: lcow rm {}", container.name),
                ));
            }
            if store.remove(&id)? == Removed::Removed {
                if !context.json {
                    output::line(&id)?;
                }
                removed.push(id);
            }
        }
        if context.json {
            output::json(&serde_json::json!({ "removed": removed }))?;
        }
        Ok(())
    }
}
