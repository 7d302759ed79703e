//! `lcow prune`: what nobody needs.

use anyhow::Result;
use clap::Args;
use lcow_image::Images;
use serde::Serialize;

use crate::containers::Containers;
use crate::context::Context;
use crate::output;

/// Remove what nothing needs any more
#[derive(Debug, Args)]
#[command(
    after_help = "Layers that came with images no longer here, documents of such images, half-made things of processes
that died. Layers that you made under ids of your own stay, and so does what is in quarantine.

Examples:
  lcow prune --dry-run       what would go
  lcow prune --containers    stopped containers too, and what only they need
  lcow prune --cache         blank sandboxes too; they are made again when needed"
)]
pub(crate) struct Prune {
    /// Stopped containers too, with all that was written in them
    #[arg(long)]
    containers: bool,
    /// Cached blank sandboxes too
    #[arg(long)]
    cache: bool,
    /// Only say what would be removed
    #[arg(long, short = 'n')]
    dry_run: bool,
}

#[derive(Default, Serialize)]
struct Report {
    containers: Vec<String>,
    layers: Vec<String>,
    /// Half-made things, as paths in the data root.
    leftovers: Vec<String>,
    cache: Vec<String>,
    /// Bytes that were freed, or would be.
    reclaimed: u64,
}

impl Prune {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let images = context.images()?;
        let store = images.store();
        // Opening the store deleted them.
        let recovery = store.recovery();
        let mut report = Report {
            leftovers: recovery.deleted.clone(),
            ..Report::default()
        };
        let before = store.space()?;
        let containers = Containers::new(store);
        if self.containers {
            for container in containers.list()?.iter().filter(|c| !c.state().is_alive()) {
                report.containers.push(container.name.clone());
                if !self.dry_run {
                    containers.remove(container)?;
                }
            }
        }
        if self.dry_run {
            self.plan(&images, &mut report)?;
            let own = |id: &str| {
                let layer = before.layers.iter().find(|l| l.id.as_str() == id);
                layer.map_or(0, lcow_driver::LayerSpace::own)
            };
            report.reclaimed = report.layers.iter().map(|id| own(id)).sum();
            if self.cache {
                report.reclaimed += before.cache;
            }
        } else {
            let layers = images.prune()?;
            report.layers = layers.iter().map(ToString::to_string).collect();
            if self.cache {
                report.cache = store.drop_cache()?;
            }
            let all = |s: &lcow_driver::Space| s.allocated + s.cache + s.documents;
            report.reclaimed = all(&before).saturating_sub(all(&store.space()?));
        }
        self.print(context, &report)
    }

    fn plan(&self, images: &Images, report: &mut Report) -> Result<()> {
        report.layers = images.unneeded()?.iter().map(ToString::to_string).collect();
        if self.cache {
            let cache = images.store().status()?.cache;
            report.cache = cache.into_iter().map(|entry| entry.name).collect();
        }
        Ok(())
    }

    fn print(&self, context: &Context, report: &Report) -> Result<()> {
        if context.json {
            return output::json(report);
        }
        let verb = if self.dry_run {
            "would delete"
        } else {
            "deleted"
        };
        let lists = [
            ("container", &report.containers),
            ("layer", &report.layers),
            ("cached", &report.cache),
        ];
        for (what, names) in lists {
            for name in names {
                output::line(format_args!("{verb} {what} {name}"))?;
            }
        }
        for name in &report.leftovers {
            output::line(format_args!("deleted {name}"))?;
        }
        if context.quiet {
            return Ok(());
        }
        let size = output::size(report.reclaimed);
        match self.dry_run {
            true if self.containers => output::line(format_args!(
                "would free {size}, and what the containers take"
            )),
            true => output::line(format_args!("would free {size}")),
            false => output::line(format_args!("freed {size}")),
        }
    }
}
