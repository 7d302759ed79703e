//! `lcow images`: what images there are.

use anyhow::Result;
use clap::Args;
use lcow_image::{Image, Images};
use lcow_layer::digest::Digest;
use serde::Serialize;

use crate::context::Context;
use crate::output;

/// List images
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow images
  lcow images demo           those whose name or id begins so
  lcow images --json
  lcow images --quiet        ids alone")]
pub(crate) struct ImagesArgs {
    /// Only images whose name or id begins with this
    #[arg(value_name = "PREFIX")]
    prefix: Option<String>,
}

#[derive(Serialize)]
struct Line {
    /// The digest of the configuration.
    id: Digest,
    name: Option<String>,
    names: Vec<String>,
    manifest: Digest,
    created: Option<String>,
    platform: String,
    layers: usize,
    /// Bytes of the uncompressed layer tars.
    size: u64,
    /// Bytes allocated to its layers' disks, shared ones included.
    disk_size: u64,
}

impl ImagesArgs {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let images = context.images()?;
        let mut lines = Vec::new();
        for image in images.list()? {
            if self.prefix.as_ref().is_none_or(|p| matches(&image, p)) {
                lines.push(line(&images, &image)?);
            }
        }
        if context.json {
            return output::json(&lines);
        }
        if context.quiet {
            return lines.iter().try_for_each(|l| output::line(l.id));
        }
        let mut rows = Vec::new();
        for line in &lines {
            let cells = |name: &str| {
                vec![
                    name.to_owned(),
                    line.id.hex().chars().take(12).collect(),
                    output::ago(line.created.as_deref()),
                    line.layers.to_string(),
                    output::size(line.size),
                    output::size(line.disk_size),
                ]
            };
            if line.names.is_empty() {
                rows.push(cells("<none>"));
            }
            rows.extend(line.names.iter().map(|name| cells(name)));
        }
        output::table(
            &["NAME", "ID", "CREATED", "LAYERS", "SIZE", "ON DISK"],
            &[3, 4, 5],
            rows,
        )
    }
}

fn matches(image: &Image, prefix: &str) -> bool {
    image.begins_with(prefix)
        || image
            .names
            .iter()
            .any(|n| n.to_string().starts_with(prefix))
}

fn line(images: &Images, image: &Image) -> Result<Line> {
    let size = images.size(image)?;
    Ok(Line {
        id: image.id,
        name: image.names.first().map(ToString::to_string),
        names: image.names.iter().map(ToString::to_string).collect(),
        manifest: image.manifest,
        created: image.config.created.clone(),
        platform: image.config.platform().to_string(),
        layers: image.layers.len(),
        size: size.tar,
        disk_size: size.disk,
    })
}
