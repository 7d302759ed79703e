//! The command line as a whole; each command's own options live with the command.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::commands::{
    check, commit, df, diff, disk, images, layer, load, prune, ps, rm, rmi, run, save, status,
};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Yellow.on_default().bold())
    .usage(AnsiColor::Yellow.on_default().bold())
    .literal(AnsiColor::Green.on_default())
    .placeholder(AnsiColor::Cyan.on_default());

/// Container layers as disks, opened only in userspace or in a utility VM.
#[derive(Debug, Parser)]
#[command(
    name = "lcow",
    version,
    styles = STYLES,
    max_term_width = 100,
    propagate_version = true,
    after_help = "Examples:
  lcow load demo.tar                     convert an image's layers to disks
  lcow run --rm demo:latest uname -a     run a command in a utility VM
  lcow diff NAME; lcow commit NAME new   what a container changed, and as an image
  lcow save new -o new.tar               an OCI archive for skopeo, podman, docker, containerd

Exit codes: 0 done, 1 failed, 2 wrong usage; `run`: the command's own, 125 if lcow itself failed,
126 if the command can't be executed, 127 if it is not found."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command, before or after its name.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Global {
    /// The data root [default: /var/lib/lcow for root, else ~/.local/share/lcow]
    #[arg(
        long,
        global = true,
        env = "LCOW_ROOT",
        value_name = "DIR",
        help_heading = "Global options",
        hide_env_values = true
    )]
    pub root: Option<PathBuf>,
    /// A store option, as lcow.memory=512 (may be repeated); also LCOW_OPT_MEMORY=512 in the environment
    #[arg(
        long = "opt",
        global = true,
        value_name = "KEY=VALUE",
        help_heading = "Global options"
    )]
    pub options: Vec<String>,
    /// Options in TOML, as `lcow.memory = 512` [default: /etc/lcow/config.toml for root, else
    /// ~/.config/lcow/config.toml]
    #[arg(
        long,
        global = true,
        env = "LCOW_CONFIG",
        value_name = "FILE",
        help_heading = "Global options",
        hide_env_values = true
    )]
    pub config: Option<PathBuf>,
    /// Print results as JSON, and errors too, to standard error
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// No progress, no remarks; of listings the ids alone
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Show what happens, and the whole story of an error
    #[arg(long, global = true, help_heading = "Global options")]
    pub debug: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Load(load::Load),
    Images(images::ImagesArgs),
    Save(save::Save),
    Rmi(rmi::Rmi),
    Run(Box<run::Run>),
    Ps(ps::Ps),
    Rm(rm::Rm),
    Diff(diff::Diff),
    Commit(commit::Commit),
    Check(check::Check),
    Df(df::Df),
    Prune(prune::Prune),
    /// Work with single layers
    #[command(subcommand)]
    Layer(layer::Layer),
    /// Make, read and check disks, without a store
    #[command(subcommand)]
    Disk(disk::Disk),
    Status(status::Status),
}
