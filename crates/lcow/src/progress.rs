//! Progress on standard error: a bar on a terminal, a line for each step elsewhere.

use std::io::{IsTerminal, stderr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::size;

/// Bars show only for what takes longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// One operation's progress.
pub(crate) struct Progress {
    terminal: bool,
    quiet: bool,
    state: Mutex<State>,
}

struct State {
    begun: Instant,
    step: String,
    step_begun: Instant,
    done: u64,
    total: Option<u64>,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let now = Instant::now();
        let state = State {
            begun: now,
            step: String::new(),
            step_begun: now,
            done: 0,
            total: None,
            bar: None,
        };
        Self {
            terminal: stderr().is_terminal(),
            quiet,
            state: Mutex::new(state),
        }
    }

    /// A step begins, of so many bytes if that is known.
    pub(crate) fn begin(&self, step: &str, total: Option<u64>) {
        let mut state = self.state();
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        step.clone_into(&mut state.step);
        state.step_begun = Instant::now();
        state.done = 0;
        state.total = total;
    }

    /// So many more bytes of the step are done.
    pub(crate) fn add(&self, bytes: u64) {
        if self.quiet || !self.terminal {
            return;
        }
        let mut state = self.state();
        state.done += bytes;
        if state.bar.is_none() {
            if state.begun.elapsed() < PATIENCE {
                return;
            }
            state.bar = Some(new_bar(state.total, &state.step));
        }
        if let Some(bar) = &state.bar {
            bar.set_position(state.done);
        }
    }

    /// The step is done; `remark` says what came of it, in place of the time it took.
    pub(crate) fn end(&self, remark: Option<&str>) {
        let mut state = self.state();
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        if self.quiet {
            return;
        }
        let took = format!("{:.1} s", state.step_begun.elapsed().as_secs_f64());
        let bytes = state
            .total
            .map(|t| format!("  {}", size(t)))
            .unwrap_or_default();
        eprintln!("{}{bytes}  {}", state.step, remark.unwrap_or(&took));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.state().bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn new_bar(total: Option<u64>, step: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let template = match total {
        Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{msg} {spinner} {bytes} {bytes_per_sec}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(step.to_owned());
    bar
}
