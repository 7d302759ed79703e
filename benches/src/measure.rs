use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

/// What one process took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Seconds in user mode.
    pub(crate) user: f64,
    /// Seconds in the kernel.
    pub(crate) system: f64,
    /// Seconds from start to exit.
    pub(crate) wall: f64,
    /// The largest resident set, in bytes.
    pub(crate) peak_bytes: u64,
}

impl Usage {
    pub(crate) fn cpu(&self) -> f64 {
        self.user + self.system
    }
}

/// Runs a command in a helper process of its own, so that the helper's account of its children is that command's alone.
pub(crate) fn run(command: &[String]) -> Result<Usage> {
    let own = std::env::current_exe()?;
    let output = Command::new(own)
        .arg("one")
        .args(command)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("the helper's report")
}

/// The helper: runs one command, prints its [`Usage`] as JSON.
pub(crate) fn child(mut args: impl Iterator<Item = OsString>) -> Result<()> {
    let program = args.next().context("no command")?;
    let start = Instant::now();
    let status = Command::new(&program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| program.display().to_string())?;
    let wall = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{}: {status}", program.display());
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |t: TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    let usage = Usage {
        user: seconds(usage.user_time()),
        system: seconds(usage.system_time()),
        wall,
        // Linux counts kibibytes.
        peak_bytes: u64::try_from(usage.max_rss()).unwrap_or(0) * 1024,
    };
    println!("{}", serde_json::to_string(&usage)?);
    Ok(())
}

/// The middle value.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}
