//! The commands, one file each.

pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod df;
pub(crate) mod diff;
pub(crate) mod disk;
pub(crate) mod images;
pub(crate) mod layer;
pub(crate) mod load;
pub(crate) mod prune;
pub(crate) mod ps;
pub(crate) mod rm;
pub(crate) mod rmi;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod status;

use std::process::ExitCode;

use anyhow::Result;

use crate::args::{Args, Command};
use crate::context::Context;

/// Runs the command that was asked for.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let context = Context::new(args.global);
    match args.command {
        Command::Load(command) => command.run(&context)?,
        Command::Images(command) => command.run(&context)?,
        Command::Save(command) => command.run(&context)?,
        Command::Rmi(command) => command.run(&context)?,
        Command::Run(command) => return command.run(&context),
        Command::Ps(command) => command.run(&context)?,
        Command::Rm(command) => command.run(&context)?,
        Command::Diff(command) => command.run(&context)?,
        Command::Commit(command) => command.run(&context)?,
        Command::Check(command) => command.run(&context)?,
        Command::Df(command) => command.run(&context)?,
        Command::Prune(command) => command.run(&context)?,
        Command::Layer(command) => command.run(&context)?,
        Command::Disk(command) => command.run(&context)?,
        Command::Status(command) => command.run(&context)?,
    }
    Ok(ExitCode::SUCCESS)
}
