//! `lcow ps`: what containers there are.

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::containers::{Container, Containers, State};
use crate::context::Context;
use crate::output;

/// List containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow ps            those that run
  lcow ps -a         those that ended too: they stay for diff and commit
  lcow ps -a --json")]
pub(crate) struct Ps {
    /// Also containers that ended
    #[arg(short, long)]
    all: bool,
}

#[derive(Serialize)]
struct Line {
    id: String,
    name: String,
    image: String,
    image_id: String,
    command: Vec<String>,
    created: String,
    started: Option<String>,
    finished: Option<String>,
    state: &'static str,
    exit_code: Option<i32>,
    pid: Option<u32>,
    /// Bytes allocated to its sandbox.
    disk_size: u64,
}

impl Ps {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let mut containers = Containers::new(&store).list()?;
        containers.retain(|c| self.all || c.state().is_alive());
        if context.json {
            let lines: Vec<_> = containers
                .iter()
                .map(|c| Line {
                    id: c.id.to_string(),
                    name: c.name.clone(),
                    image: c.image.clone(),
                    image_id: c.image_id.to_string(),
                    command: c.command.clone(),
                    created: c.created.clone(),
                    started: c.started.clone(),
                    finished: c.finished.clone(),
                    state: c.state().as_str(),
                    exit_code: c.exit_code,
                    pid: c
                        .runner
                        .as_ref()
                        .filter(|_| c.state().is_alive())
                        .map(|r| r.pid),
                    disk_size: store.metadata(&c.id).map_or(0, |m| m.allocated),
                })
                .collect();
            return output::json(&lines);
        }
        if context.quiet {
            return containers.iter().try_for_each(|c| output::line(&c.id));
        }
        let rows = containers
            .iter()
            .map(|c| {
                vec![
                    c.short_id().to_owned(),
                    c.name.clone(),
                    c.image.clone(),
                    command(c),
                    output::ago(Some(&c.created)),
                    state(c),
                ]
            })
            .collect();
        output::table(
            &["ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATE"],
            &[],
            rows,
        )
    }
}

fn command(container: &Container) -> String {
    let text = output::printable(container.command.join(" ").as_bytes());
    if text.chars().count() > 30 {
        format!("{}…", text.chars().take(29).collect::<String>())
    } else {
        text
    }
}

fn state(container: &Container) -> String {
    match (container.state(), container.exit_code) {
        (State::Exited, Some(code)) => format!("exited ({code})"),
        (state, _) => state.as_str().to_owned(),
    }
}
