//! `lcow commit`: a container's changes as an image.

use anyhow::Result;
use clap::Args;
use lcow_driver::DriverError;
use lcow_image::{CommitOptions, ImageError, Name};

use crate::containers::{Containers, explain_in_use};
use crate::context::Context;
use crate::errors::hinted;
use crate::output;
use crate::progress::Progress;

/// Make an image of what a container changed
#[derive(Debug, Args)]
#[command(
    after_help = "The image is the container's with one layer more. No utility VM is started. With SOURCE_DATE_EPOCH set, the
same changes give the same image.

Examples:
  lcow commit NAME demo:changed
  lcow commit -m 'with jq' NAME demo:jq"
)]
pub(crate) struct Commit {
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The new image's name
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<Name>,
    /// Why, for the image's history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// By whom, for the image's history
    #[arg(short, long, value_name = "TEXT")]
    author: Option<String>,
}

impl Commit {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let cancel = context.cancel_on_signals()?;
        let images = context.images()?;
        let container = Containers::new(images.store()).find(&self.container)?;
        let base = images.find(&container.image_id.to_string()).map_err(|_| {
            hinted(
                format!(
                    "the image of container {}, {}, is no longer there",
                    container.name, container.image
                ),
                "load it again: the new image's configuration is made from it",
            )
        })?;
        let options = CommitOptions {
            name: self.name.clone(),
            created: output::now(),
            created_by: Some(container.command.join(" ")),
            author: self.author,
            comment: self.message,
        };
        let progress = Progress::new(context.quiet);
        progress.begin("committing", None);
        let image = images
            .commit(&container.id, &base, &options, &cancel)
            .map_err(|e| match e {
                ImageError::Store(e @ DriverError::InUse { .. }) => explain_in_use(&container, e),
                e => e.into(),
            })?;
        if context.json {
            return output::json(&serde_json::json!({
                "id": image.id,
                "name": self.name.as_ref().map(ToString::to_string),
                "layers": image.layers.len(),
            }));
        }
        match &self.name {
            Some(name) => output::line(name),
            None => output::line(image.id),
        }
    }
}
