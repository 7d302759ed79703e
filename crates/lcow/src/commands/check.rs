//! `lcow check`: whether the store is in order.

use anyhow::Result;
use clap::Args;

use super::layer::{self, short};
use crate::context::Context;
use crate::errors::hinted;
use crate::output;

/// Check every layer of the store, and put damaged ones aside
#[derive(Debug, Args)]
#[command(
    after_help = "Chains, records, footers, every structure of every file system, and that each layer's tar comes out
of its disk again. Layers that are in use are passed over. Nothing is changed without --repair, and
nothing is ever deleted: a damaged layer moves to the data root's `quarantine` directory, whole.
Loading its image again brings it back, and all that stands on it.

Exit code 1 if anything is wrong, with --repair if anything still is.

Examples:
  lcow check
  lcow check --quiet         damaged layers alone
  lcow check --repair"
)]
pub(crate) struct Check {
    /// Move damaged layers to the quarantine
    #[arg(long)]
    repair: bool,
}

impl Check {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        if !self.repair {
            return layer::verify(&store, &store.layers()?, context, true);
        }
        let cancel = context.cancel_on_signals()?;
        let repair = store.repair(None, &cancel)?;
        if context.json {
            output::json(&repair)?;
        } else {
            for report in &repair.reports {
                layer::print(report, context)?;
            }
            for moved in &repair.put_aside {
                let id = short(moved.id.as_str());
                output::line(format_args!("{id}  is now {}", moved.to.display()))?;
            }
            for id in repair.in_use.iter().filter(|_| !context.quiet) {
                output::line(format_args!("{}  in use, not checked", short(id.as_str())))?;
            }
        }
        // What stands on a layer that is gone now was whole when it was looked at.
        let gone = |id| repair.put_aside.iter().any(|moved| moved.id == id);
        let mut incomplete = 0;
        for id in store.layers()? {
            let chain = store.chain(&id).unwrap_or_default();
            let missing = |parent: &_| !store.exists(parent).unwrap_or(false);
            incomplete += usize::from(!gone(id) && chain.iter().any(missing));
        }
        if incomplete > 0 {
            return Err(hinted(
                format!("{incomplete} layers stand on layers that are not there"),
                "load the images they came from again",
            ));
        }
        Ok(())
    }
}
