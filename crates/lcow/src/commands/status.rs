//! `lcow status`: what the store holds.

use anyhow::Result;
use clap::Args;
use lcow_driver::{CacheEntry, GraphDriver, MounterStatus};
use lcow_uvm::UtilityVms;
use serde::Serialize;

use super::run::machine_config;
use crate::containers::{Container, Containers};
use crate::context::Context;
use crate::output;

/// Show what the data root holds, what runs, and on what
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow status
  lcow status --json")]
pub(crate) struct Status {}

#[derive(Serialize)]
struct Report {
    driver: &'static str,
    version: &'static str,
    root: String,
    mode: &'static str,
    mounter: &'static str,
    /// `kvm` or `tcg`; absent before it was tried.
    accelerator: Option<String>,
    accelerator_reason: Option<String>,
    kernel: Option<String>,
    /// What keeps utility VMs from being started.
    problem: Option<String>,
    images: usize,
    containers: usize,
    running: usize,
    /// The utility VMs that run, each with the container it runs.
    machines: Vec<Machine>,
    layers: usize,
    sandboxes: usize,
    /// Layers without contents.
    empty: usize,
    damaged: Vec<String>,
    /// Bytes that all layers take.
    disk_size: u64,
    /// Bytes that they seem to take.
    apparent_size: u64,
    /// Bytes of cached blank disks.
    cache_size: u64,
    cache: Vec<CacheEntry>,
}

/// A utility VM. What is in it, only the process that started it can ask.
#[derive(Serialize)]
struct Machine {
    id: String,
    name: String,
    /// The process that runs it.
    pid: Option<u32>,
    /// Seconds since it was started.
    uptime: Option<u64>,
    /// Disks that it was given.
    disks: usize,
    /// Unions made of them.
    unions: usize,
    /// Layers that it keeps from being removed.
    references: usize,
}

impl Machine {
    fn of(container: &Container) -> Self {
        let started = container.started.as_ref().unwrap_or(&container.created);
        let uptime = started.parse::<jiff::Timestamp>().ok().map(|started| {
            let seconds = jiff::Timestamp::now().duration_since(started).as_secs();
            u64::try_from(seconds).unwrap_or(0)
        });
        Self {
            id: container.id.to_string(),
            name: container.name.clone(),
            pid: container.runner.as_ref().map(|runner| runner.pid),
            uptime,
            // The image's layers and the sandbox, in one union.
            disks: container.layers.len() + 1,
            unions: 1,
            references: 1,
        }
    }
}

impl Status {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let images = context.images()?;
        let store = images.store();
        let containers = Containers::new(store).list()?;
        let machine = machine_config(store, &context.options()?)?;
        let driver = GraphDriver::new(store.clone(), UtilityVms::new(machine));
        let status = driver.status()?;
        let MounterStatus {
            accelerator,
            accelerator_reason,
            kernel,
            problem,
            machines: _,
        } = status.mounting;
        let machines: Vec<_> = containers
            .iter()
            .filter(|c| c.state().is_alive())
            .map(Machine::of)
            .collect();
        let report = Report {
            driver: status.driver,
            version: status.version,
            root: status.store.root.display().to_string(),
            mode: status.mode,
            mounter: status.mounter,
            accelerator,
            accelerator_reason,
            kernel: kernel.map(|path| path.display().to_string()),
            problem,
            images: images.list()?.len(),
            containers: containers.len(),
            running: machines.len(),
            machines,
            layers: status.store.layers,
            sandboxes: status.store.sandboxes,
            empty: status.store.empty,
            damaged: status
                .store
                .damaged
                .iter()
                .map(ToString::to_string)
                .collect(),
            disk_size: status.store.allocated,
            apparent_size: status.store.apparent,
            cache_size: status.store.cache.iter().map(|c| c.allocated).sum(),
            cache: status.store.cache,
        };
        if context.json {
            return output::json(&report);
        }
        report
            .rows()
            .into_iter()
            .try_for_each(|(key, value)| output::line(format_args!("{key:<12}{value}")))
    }
}

impl Report {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let Self {
            driver,
            version,
            mode,
            mounter,
            containers,
            running,
            layers,
            sandboxes,
            ..
        } = self;
        let accelerator = self.accelerator.as_deref().unwrap_or("not known yet");
        let why = self.accelerator_reason.as_deref().unwrap_or_default();
        let mut rows = vec![
            ("Driver", format!("{driver} {version}")),
            ("Data root", self.root.clone()),
            ("Mode", format!("{mode}, mounter {mounter}")),
            ("Accelerator", format!("{accelerator} ({why})")),
            (
                "Kernel",
                self.kernel.clone().unwrap_or_else(|| "none".to_owned()),
            ),
        ];
        rows.extend(self.problem.clone().map(|problem| ("Problem", problem)));
        rows.extend([
            ("Images", self.images.to_string()),
            ("Containers", format!("{containers} ({running} running)")),
        ]);
        for machine in &self.machines {
            let uptime = machine.uptime.map_or("-".to_owned(), |s| format!("{s} s"));
            let pid = machine.pid.map_or("-".to_owned(), |pid| pid.to_string());
            rows.push((
                "  VM",
                format!(
                    "{}: up {uptime}, {} disks, pid {pid}",
                    machine.name, machine.disks
                ),
            ));
        }
        rows.extend([
            ("Layers", format!("{layers}, and {sandboxes} sandboxes")),
            (
                "On disk",
                format!(
                    "{} (apparent {})",
                    output::size(self.disk_size),
                    output::size(self.apparent_size)
                ),
            ),
            (
                "Cache",
                format!(
                    "{} in {} blank disks",
                    output::size(self.cache_size),
                    self.cache.len()
                ),
            ),
        ]);
        if !self.damaged.is_empty() {
            rows.push(("Damaged", self.damaged.join(", ")));
        }
        rows
    }
}
