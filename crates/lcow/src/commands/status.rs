//! `lcow status`: what the store holds.

use anyhow::Result;
use clap::Args;
use lcow_driver::NAME;
use serde::Serialize;

use crate::containers::Containers;
use crate::context::Context;
use crate::output;

/// Show what the data root holds
#[derive(Debug, Args)]
pub(crate) struct Status {}

#[derive(Serialize)]
struct Report {
    driver: &'static str,
    version: &'static str,
    root: String,
    images: usize,
    containers: usize,
    running: usize,
    layers: usize,
    sandboxes: usize,
    damaged: Vec<String>,
    /// Bytes that all layers take.
    disk_size: u64,
    /// Bytes that they seem to take.
    apparent_size: u64,
    /// Bytes of cached blank disks.
    cache_size: u64,
}

impl Status {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let images = context.images()?;
        let containers = Containers::new(images.store()).list()?;
        let status = images.store().status()?;
        let report = Report {
            driver: NAME,
            version: env!("CARGO_PKG_VERSION"),
            root: status.root.display().to_string(),
            images: images.list()?.len(),
            containers: containers.len(),
            running: containers.iter().filter(|c| c.state().is_alive()).count(),
            layers: status.layers,
            sandboxes: status.sandboxes,
            damaged: status.damaged.iter().map(ToString::to_string).collect(),
            disk_size: status.allocated,
            apparent_size: status.apparent,
            cache_size: status.cache.iter().map(|c| c.allocated).sum(),
        };
        if context.json {
            return output::json(&report);
        }
        let Report {
            driver,
            version,
            root,
            images,
            containers,
            running,
            layers,
            sandboxes,
            ..
        } = &report;
        let mut rows = vec![
            ("Driver", format!("{driver} {version}")),
            ("Data root", root.clone()),
            ("Images", images.to_string()),
            ("Containers", format!("{containers} ({running} running)")),
            ("Layers", format!("{layers}, and {sandboxes} sandboxes")),
            (
                "On disk",
                format!(
                    "{} (apparent {})",
                    output::size(report.disk_size),
                    output::size(report.apparent_size)
                ),
            ),
            ("Cache", output::size(report.cache_size)),
        ];
        if !report.damaged.is_empty() {
            rows.push(("Damaged", report.damaged.join(", ")));
        }
        rows.into_iter()
            .try_for_each(|(key, value)| output::line(format_args!("{key:<12}{value}")))
    }
}
