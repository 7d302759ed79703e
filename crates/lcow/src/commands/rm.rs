//! `lcow rm`: containers away.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use lcow_driver::DriverError;
use rustix::process::{Pid, Signal, kill_process};

use crate::containers::{Container, Containers, explain_in_use};
use crate::context::Context;
use crate::errors::hinted;
use crate::output;

/// How long a container may take to end when asked to.
const PATIENCE: Duration = Duration::from_secs(10);

/// Remove containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow rm NAME
  lcow rm --force NAME            stop it first
  lcow rm $(lcow ps -a --quiet)   all")]
pub(crate) struct Rm {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Stop a running one first
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let containers = Containers::new(&store);
        for query in &self.containers {
            let container = containers.find(query)?;
            if container.state().is_alive() {
                if !self.force {
                    return Err(hinted(
                        format!("container {} is running", container.name),
                        "wait until it ends, or use --force",
                    ));
                }
                stop(&container)?;
            }
            if let Err(error) = containers.remove(&container) {
                return Err(match error.downcast::<DriverError>() {
                    Ok(error) => explain_in_use(&container, error),
                    Err(error) => error,
                });
            }
            output::line(&container.name)?;
        }
        Ok(())
    }
}

/// Asks the process that runs a container to end, and makes it.
fn stop(container: &Container) -> Result<()> {
    let Some(runner) = &container.runner else {
        return Ok(());
    };
    let Some(pid) = i32::try_from(runner.pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    for (signal, patience) in [
        (Signal::TERM, PATIENCE),
        (Signal::TERM, PATIENCE),
        (Signal::KILL, PATIENCE),
    ] {
        if !runner.lives() {
            return Ok(());
        }
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => {
                return Err(
                    anyhow::Error::from(std::io::Error::from(e)).context(format!(
                        "stopping container {} (pid {})",
                        container.name, runner.pid
                    )),
                );
            }
        }
        let start = Instant::now();
        while runner.lives() && start.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}
