//! `lcow df`: where the data root's bytes are, and which could be had back.

use std::collections::HashSet;

use anyhow::Result;
use clap::Args;
use lcow_driver::{Kind, LayerSpace, Space};
use serde::Serialize;

use super::layer::{Names, short};
use crate::context::Context;
use crate::output;

/// Show what takes space
#[derive(Debug, Args)]
#[command(
    after_help = "APPARENT is what files seem to take, ON DISK what is allocated to them. A disk that several layers
share is counted once in ON DISK, and SHARED is what that saves. RECLAIMABLE is what
`lcow prune --cache` would free.

Examples:
  lcow df
  lcow df --layers           layer by layer, the largest first
  lcow df --json"
)]
pub(crate) struct Df {
    /// Each layer and sandbox, the largest first
    #[arg(long, short)]
    layers: bool,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    space: Space,
    /// Layers that nothing needs.
    unneeded: Vec<String>,
    /// Bytes that are free without them and the cache.
    reclaimable: u64,
}

impl Df {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let images = context.images()?;
        let unneeded: HashSet<_> = images.unneeded()?.into_iter().collect();
        let space = images.store().space()?;
        let free = |layer: &LayerSpace| match unneeded.contains(&layer.id) {
            true => layer.own(),
            false => 0,
        };
        let layers_free: u64 = space.layers.iter().map(free).sum();
        if context.json {
            let mut unneeded: Vec<_> = unneeded.iter().map(ToString::to_string).collect();
            unneeded.sort();
            return output::json(&Report {
                reclaimable: layers_free + space.cache,
                unneeded,
                space,
            });
        }
        if self.layers {
            let names = Names::of(images.store())?;
            let mut layers: Vec<_> = space.layers.iter().collect();
            layers.sort_by_key(|layer| std::cmp::Reverse(layer.allocated));
            let rows = layers.iter().map(|layer| {
                vec![
                    short(layer.id.as_str()).to_owned(),
                    layer.kind.map_or("damaged", super::layer::kind).to_owned(),
                    output::size(layer.apparent),
                    output::size(layer.allocated),
                    output::size(layer.shared),
                    output::size(free(layer)),
                    names.all(layer.id.as_str()).join(", "),
                ]
            });
            let header = [
                "ID",
                "KIND",
                "APPARENT",
                "ON DISK",
                "SHARED",
                "RECLAIMABLE",
                "USED BY",
            ];
            return output::table(&header, &[2, 3, 4, 5], rows.collect());
        }
        let is_sandbox = |layer: &&LayerSpace| layer.kind == Some(Kind::Sandbox);
        let sandboxes: Vec<_> = space.layers.iter().filter(is_sandbox).collect();
        let on_sandboxes: u64 = sandboxes.iter().map(|s| s.allocated).sum();
        let of_sandboxes: u64 = sandboxes.iter().map(|s| s.apparent).sum();
        let row = |what: &str, count: Option<usize>, sizes: [Option<u64>; 4]| {
            let mut row = vec![
                what.to_owned(),
                count.map_or("-".to_owned(), |n| n.to_string()),
            ];
            row.extend(sizes.map(|size| size.map_or("-".to_owned(), output::size)));
            row
        };
        let layers = space.layers.len() - sandboxes.len();
        let on_layers = space.allocated - on_sandboxes;
        let of_layers = space.apparent - of_sandboxes;
        let rows = vec![
            row(
                "Layers",
                Some(layers),
                [
                    Some(of_layers),
                    Some(on_layers),
                    Some(space.saved),
                    Some(layers_free),
                ],
            ),
            row(
                "Sandboxes",
                Some(sandboxes.len()),
                [Some(of_sandboxes), Some(on_sandboxes), None, None],
            ),
            row(
                "Cache",
                None,
                [None, Some(space.cache), None, Some(space.cache)],
            ),
            row("Temporary", None, [None, Some(space.temporary), None, None]),
            row(
                "Quarantine",
                None,
                [None, Some(space.quarantine), None, None],
            ),
            row("Documents", None, [None, Some(space.documents), None, None]),
            row(
                "Utility VMs",
                None,
                [None, Some(space.machines), None, None],
            ),
        ];
        output::table(
            &["", "COUNT", "APPARENT", "ON DISK", "SHARED", "RECLAIMABLE"],
            &[1, 2, 3, 4, 5],
            rows,
        )
    }
}
