//! `lcow`: container layers as disks, opened only in userspace or in a utility VM.
//!
//! The binary translates between people and the crates under it: it parses the command line, shows progress, tables and
//! errors, and decides nothing else. One file for each command under [`commands`].
//!
//! # Lifecycle
//! A process is one command. It opens the data root shared with other commands, works, and exits with 0 done, 1 failed,
//! 2 wrong usage; `run` with the container's own code, or 125, 126, 127 as shells and other engines do. SIGINT, SIGTERM and
//! SIGHUP are turned into a cancellation where there is something to clean up, and then take their usual effect.
//!
//! # Output
//! Results go to standard output, everything else to standard error. A closed pipe ends the program as SIGPIPE would, after
//! it has cleaned up.
//!
//! # Errors
//! Crates return typed errors; here they become one line, `lcow: what failed: on what: why`, and a hint of what to do next.
//! With `--json` that line is an object, `{"error": {"kind", "message", "hint"}}`, whose kind is `corrupt`, `unsupported`,
//! `refused`, `not-a-tar`, `not-an-image`, `not-found`, `io`, or `failed` for all else.

mod args;
mod commands;
mod config;
mod containers;
mod context;
mod errors;
mod files;
mod output;
mod progress;
mod signals;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A conversion runs in a child process that is this program.
    lcow_driver::isolate::child_main_if_asked();
    let args = args::Args::parse();
    allow_open_files();
    let (json, debug) = (args.global.json, args.global.debug);
    let in_run = matches!(args.command, args::Command::Run(_));
    init_logging(debug);
    match commands::run(args) {
        Ok(code) => code,
        Err(error) => errors::report(&error, json, debug, in_run),
    }
}

/// A chain has an open file for each of its layers, and the usual limit of 1,024 is there for programs that use select(2), which
/// none of ours do.
fn allow_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it can't be raised, what needs more fails with an error of its own.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Warnings go to standard error; `--debug`, or `LCOW_LOG` with a filter, shows more.
fn init_logging(debug: bool) {
    let default = if debug {
        "lcow=debug,lcow_driver=debug,lcow_image=debug,lcow_uvm=debug,info"
    } else {
        "error"
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("LCOW_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(debug)
        .without_time()
        .init();
}
