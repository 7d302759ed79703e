//! `lcow check`: whether the store is in order.

use anyhow::Result;
use clap::Args;

use super::layer;
use crate::context::Context;

/// Check every layer of the store
#[derive(Debug, Args)]
#[command(
    after_help = "Chains, records, footers, every structure of every file system, and that each layer's tar comes out of its disk again.
Layers that are being written to are passed over. Nothing is changed. Exit code 1 if anything is wrong.

Examples:
  lcow check
  lcow check --quiet         damaged layers alone"
)]
pub(crate) struct Check {}

impl Check {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let Self {} = self;
        let store = context.store()?;
        layer::verify(&store, &store.layers()?, context, true)
    }
}
