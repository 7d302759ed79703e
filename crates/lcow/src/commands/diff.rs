//! `lcow diff`: what a container changed.

use std::io::Write;

use anyhow::Result;
use clap::Args;
use lcow_driver::Against;
use lcow_layer::changes::{Change, ChangeKind};
use serde::Serialize;

use crate::containers::{Containers, explain_in_use};
use crate::context::Context;
use crate::output;

/// Show what a container changed in its image: A added, C changed, D deleted
#[derive(Debug, Args)]
#[command(
    after_help = "Read from the container's disk; no utility VM is started.

Examples:
  lcow diff NAME
  lcow diff NAME --json"
)]
pub(crate) struct Diff {
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

#[derive(Serialize)]
struct Line {
    kind: &'static str,
    path: String,
}

impl Diff {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let container = Containers::new(&store).find(&self.container)?;
        let changes = store
            .changes(&container.id, &Against::Parent)
            .map_err(|e| explain_in_use(&container, e))?;
        show(context, changes)
    }
}

/// Prints changes, sorted by path as they come.
pub(crate) fn show(context: &Context, changes: impl IntoIterator<Item = Change>) -> Result<()> {
    let path = |change: &Change| format!("/{}", output::printable(&change.path));
    if context.json {
        let lines: Vec<_> = changes
            .into_iter()
            .map(|c| {
                let kind = match c.kind {
                    ChangeKind::Added => "added",
                    ChangeKind::Modified => "changed",
                    ChangeKind::Deleted => "deleted",
                };
                Line {
                    kind,
                    path: path(&c),
                }
            })
            .collect();
        return output::json(&lines);
    }
    let mut out = std::io::BufWriter::new(output::stdout());
    for change in changes {
        let letter = match change.kind {
            ChangeKind::Added => 'A',
            ChangeKind::Modified => 'C',
            ChangeKind::Deleted => 'D',
        };
        writeln!(out, "{letter} {}", path(&change))?;
    }
    out.flush()?;
    Ok(())
}
