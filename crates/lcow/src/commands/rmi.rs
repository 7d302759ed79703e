//! `lcow rmi`: images away.

use anyhow::Result;
use clap::Args;
use lcow_image::Name;

use crate::containers::Containers;
use crate::context::Context;
use crate::errors::hinted;
use crate::output;

/// Remove images
#[derive(Debug, Args)]
#[command(
    after_help = "A name goes; with its last name the image goes, and those of its layers that no other image or container
needs. Given an id, all its names go.

Examples:
  lcow rmi demo:1
  lcow rmi $(lcow images --quiet)      all"
)]
pub(crate) struct Rmi {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Also if containers were made from it; they keep its layers
    #[arg(long, short)]
    force: bool,
}

impl Rmi {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let images = context.images()?;
        let containers = Containers::new(images.store());
        let mut results = Vec::new();
        for query in &self.images {
            let image = images.find(query)?;
            let last = !query
                .parse::<Name>()
                .is_ok_and(|n| image.names.contains(&n))
                || image.names.len() == 1;
            let users = containers.of_image(&image)?;
            if last && !self.force && !users.is_empty() {
                let names: Vec<_> = users.iter().map(|c| c.name.as_str()).collect();
                return Err(hinted(
                    format!(
                        "image {query} is used by the containers {}",
                        names.join(", ")
                    ),
                    format!(
                        "remove them with `lcow rm {}`, or use --force: they keep the layers",
                        names.join(" ")
                    ),
                ));
            }
            let removed = images.remove(query)?;
            if !context.json {
                for name in &removed.names {
                    output::line(format_args!("untagged {name}"))?;
                }
                if let Some(id) = removed.id {
                    output::line(format_args!("deleted {id}"))?;
                }
                for layer in &removed.layers {
                    output::line(format_args!("deleted layer {layer}"))?;
                }
            }
            results.push(serde_json::json!({
                "id": image.id,
                "names": removed.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "deleted": removed.id.is_some(),
                "layers": removed.layers,
            }));
        }
        if context.json {
            output::json(&results)
        } else {
            Ok(())
        }
    }
}
