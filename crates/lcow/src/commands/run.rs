//! `lcow run`: a container in its own utility VM.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use lcow_driver::{Accel, LayerId, Options, SandboxGuard, SandboxOptions, Store};
use lcow_image::{Image, RunConfig};
use lcow_uvm::{DiskSpec, Machine, MachineConfig, Process, ProcessSpec, UvmError};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::containers::{Container, Containers, Runner, random_id};
use crate::context::Context;
use crate::errors::{coded, hinted};
use crate::{output, signals};

/// How long a machine that is still starting is waited for once it is no longer wanted.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// How long the output of a process that has ended is waited for: what it started may hold it open.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(5);

/// Run a command in a new container, in its own utility VM
#[derive(Debug, Args)]
#[command(
    after_help = "Standard input, output and error are the command's. The exit code is the command's own; 125 if lcow failed,
126 if the command can't be executed, 127 if it is not found. Ctrl-C is passed to the command; a second one
kills it. Without --rm the container stays, for `lcow diff` and `lcow commit`.

Examples:
  lcow run --rm demo uname -a
  lcow run --name work -e LANG=C -w /srv demo /bin/sh -c 'echo hello >file'
  tar -c . | lcow run --rm demo tar -t
  lcow run --rm --memory 1g --cpus 2 demo make -j2"
)]
pub(crate) struct Run {
    /// Remove the container when the command ends
    #[arg(long)]
    rm: bool,
    /// The container's name [default: a random one]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Set a variable; without a value, pass on this environment's (may be repeated)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// The working directory, in place of the image's
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Who runs it, by name or number, in place of the image's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// What comes before the command, in place of the image's; empty for nothing
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Memory of the utility VM, as 512m or 2g
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// Processors of the utility VM
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Host name [default: the container's id]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// An option of the writable disk, as size=512m (may be repeated)
    #[arg(long = "storage-opt", value_name = "KEY=VALUE")]
    storage: Vec<String>,
    /// Accepted for habit: standard input is always passed on
    #[arg(short, long, hide = true)]
    interactive: bool,
    /// Name, id, or the unique beginning of either
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The command and its arguments, in place of the image's
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

impl Run {
    pub(crate) fn run(mut self: Box<Self>, context: &Context) -> Result<ExitCode> {
        let images = context.images()?;
        let store = images.store();
        let image = images.find(&self.image)?;
        let machine = self.machine(context, store)?;
        let argv = self.argv(&image.config.config)?;
        let sandbox = SandboxOptions::parse(&self.storage)?;
        let containers = Containers::new(store);
        let name = containers.free_name(self.name.as_deref())?;
        let signals = signals::receive()?;

        let container = Container {
            id: random_id()?,
            name,
            image: image.display_name(),
            image_id: image.id,
            layers: image.layers.clone(),
            command: argv.clone(),
            created: jiff::Timestamp::now().to_string(),
            started: None,
            finished: None,
            exit_code: None,
            runner: Runner::this(),
        };
        let spec = self.spec(&image, &container, argv);
        store.create_read_write(&container.id, image.top(), &sandbox)?;
        let mut held = Held {
            containers: &containers,
            container,
            keep: false,
        };
        containers.save(&held.container)?;
        let status = run(store, &mut held, &machine, &spec, signals)?;
        held.keep = !self.rm;
        if self.rm {
            held.remove()?;
        }
        let code = status.shell_code();
        Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(125)))
    }

    fn machine(&self, context: &Context, store: &Store) -> Result<MachineConfig> {
        let options = context.options()?;
        let mut machine = machine_config(store, &options)?;
        if let Some(memory) = &self.memory {
            machine.memory_mib = parse_memory(memory)?;
        }
        if let Some(cpus) = self.cpus {
            machine.cpus = cpus;
        }
        Ok(machine)
    }

    /// The image's entrypoint and command, or what was given in their place.
    fn argv(&mut self, config: &RunConfig) -> Result<Vec<String>> {
        let command = std::mem::take(&mut self.command);
        let mut argv = match &self.entrypoint {
            Some(entrypoint) if entrypoint.is_empty() => Vec::new(),
            Some(entrypoint) => vec![entrypoint.clone()],
            None => config.entrypoint.clone(),
        };
        // The image's command belongs to the image's entrypoint.
        if !command.is_empty() {
            argv.extend(command);
        } else if self.entrypoint.is_none() {
            argv.extend(config.cmd.iter().cloned());
        }
        if argv.is_empty() {
            return Err(hinted(
                format!(
                    "there is no command to run: image {} has none of its own",
                    self.image
                ),
                format!("give one: lcow run {} COMMAND", self.image),
            ));
        }
        Ok(argv)
    }

    fn spec(&self, image: &Image, container: &Container, argv: Vec<String>) -> ProcessSpec {
        let config = &image.config.config;
        let mut spec = ProcessSpec::new(None, argv);
        spec.env = environment(&config.env, &self.env)
            .into_iter()
            .map(String::into_bytes)
            .collect();
        spec.cwd = self
            .workdir
            .clone()
            .unwrap_or_else(|| config.working_dir.clone())
            .into_bytes();
        spec.user = self.user.clone().unwrap_or_else(|| config.user.clone());
        spec.hostname = self
            .hostname
            .clone()
            .unwrap_or_else(|| container.short_id().to_owned());
        spec.stdin = true;
        spec
    }
}

/// A machine by the store's options.
pub(crate) fn machine_config(store: &Store, options: &Options) -> Result<MachineConfig> {
    let unsupported = |what: &str| lcow_driver::DriverError::Unsupported {
        what: what.to_owned(),
        path: None,
    };
    if options.mounter == lcow_driver::MounterKind::Host {
        return Err(unsupported("the option lcow.mounter=host").into());
    }
    if options.vhdx.is_some() {
        return Err(unsupported("booting from a root disk (lcow.vhdx)").into());
    }
    let mut machine = MachineConfig::new(store.uvm_dir()?);
    machine.memory_mib = options.memory_mib;
    machine.cpus = options.cpus;
    machine.accel = match options.accel {
        Accel::Auto => lcow_uvm::Accel::Auto,
        Accel::Kvm => lcow_uvm::Accel::Kvm,
        Accel::Tcg => lcow_uvm::Accel::Tcg,
    };
    machine.kernel = options.kernel_path();
    machine.initrd = options.initrd_path();
    machine.boot_parameters = options.boot_parameters.clone().unwrap_or_default();
    machine.timeout = options.timeout;
    Ok(machine)
}

/// A container that is removed again unless it is to be kept.
struct Held<'a> {
    containers: &'a Containers<'a>,
    container: Container,
    keep: bool,
}

impl Held<'_> {
    fn remove(&mut self) -> Result<()> {
        self.keep = true;
        self.containers.remove(&self.container)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.containers.remove(&self.container)
        {
            eprintln!(
                "lcow: container {} stays behind: {}",
                self.container.name,
                crate::errors::text(&error)
            );
        }
    }
}

fn run(
    store: &Store,
    held: &mut Held<'_>,
    config: &MachineConfig,
    spec: &ProcessSpec,
    signals: Receiver<i32>,
) -> Result<lcow_uvm::ExitStatus> {
    let guard = store.lock_sandbox(&held.container.id)?;
    let (machine, signals) = start(config, signals)?;
    let result = in_machine(store, held, &machine, &guard, spec, signals);
    // In good order, so that the sandbox is clean: diff and commit read it as it is.
    if let Err(error) = machine.power_off()
        && result.is_ok()
    {
        tracing::warn!(%error, "the utility VM did not power off");
        eprintln!(
            "lcow: the utility VM did not end in good order: {}",
            crate::errors::text(&error.into())
        );
    }
    drop(machine);
    drop(guard);
    let status = result?;
    held.container.finished = Some(jiff::Timestamp::now().to_string());
    held.container.exit_code = Some(status.shell_code());
    held.containers.save(&held.container)?;
    Ok(status)
}

/// Starts the machine. A signal meanwhile ends the wait for it.
fn start(config: &MachineConfig, signals: Receiver<i32>) -> Result<(Machine, Receiver<i32>)> {
    let (sender, receiver) = mpsc::channel();
    let config = config.clone();
    std::thread::Builder::new()
        .name("start".to_owned())
        .spawn(move || {
            // Nobody waits any more: then the machine is dropped, which kills it.
            let _ = sender.send(Machine::start(&config));
        })?;
    let mut unwanted: Option<Instant> = None;
    loop {
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(machine) if unwanted.is_none() => return Ok((machine?, signals)),
            Err(RecvTimeoutError::Disconnected) if unwanted.is_none() => {
                return Err(anyhow!("starting the utility VM: its thread ended"));
            }
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Ok(signal) = signals.try_recv() {
            signals::remember(signal);
            // The machine dies with this process at the latest.
            unwanted.get_or_insert_with(Instant::now);
        }
        if unwanted.is_some_and(|since| since.elapsed() > START_PATIENCE) {
            break;
        }
    }
    Err(lcow_driver::DriverError::Cancelled.into())
}

fn in_machine(
    store: &Store,
    held: &mut Held<'_>,
    machine: &Machine,
    guard: &SandboxGuard,
    spec: &ProcessSpec,
    signals: Receiver<i32>,
) -> Result<lcow_uvm::ExitStatus> {
    let root = union(store, machine, &held.container.id, guard)?;
    let spec = ProcessSpec {
        root: Some(root),
        ..spec.clone()
    };
    let mut process = machine
        .exec(&spec)
        .map_err(|error| failed_to_start(error, &spec))?;
    held.container.started = Some(jiff::Timestamp::now().to_string());
    held.containers.save(&held.container)?;

    let out = process
        .take_stdout()
        .map(|reader| copy("stdout", reader, output::stdout))
        .transpose()?;
    let err = process
        .take_stderr()
        .map(|reader| copy("stderr", reader, io::stderr))
        .transpose()?;
    if let Some(stdin) = process.take_stdin() {
        // It may wait for input forever, and ends with this process.
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || {
                let mut stdin = stdin;
                // A process that does not read its input is no error.
                if io::copy(&mut io::stdin().lock(), &mut stdin).is_ok() {
                    let _ = stdin.finish();
                }
            })?;
    }
    let process = Arc::new(process);
    pass_on(&process, signals)?;
    let status = process.wait().context("waiting for the command")?;
    let since = Instant::now();
    for thread in [out, err].into_iter().flatten() {
        while !thread.is_finished() && since.elapsed() < OUTPUT_PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(status)
}

/// Attaches the container's disks and unites them.
fn union(
    store: &Store,
    machine: &Machine,
    id: &LayerId,
    guard: &SandboxGuard,
) -> Result<lcow_uvm::UnionId> {
    let mut specs = Vec::new();
    for disk in store.disks(id)? {
        let file = if disk.read_only {
            disk.open()
        } else {
            // The same open file: whoever has it keeps the sandbox locked.
            guard.file().try_clone()
        };
        let file = file.with_context(|| format!("opening {}", disk.path.display()))?;
        specs.push(DiskSpec::of(&disk, file));
    }
    let disks = machine.attach(specs)?;
    let (upper, lowers) = disks
        .split_first()
        .ok_or_else(|| anyhow!("container {id} has no disk"))?;
    Ok(machine.container_root(lowers, Some(*upper))?)
}

fn failed_to_start(error: UvmError, spec: &ProcessSpec) -> anyhow::Error {
    let code = error
        .shell_exit_code()
        .and_then(|code| u8::try_from(code).ok());
    let command = spec
        .argv
        .first()
        .map(|c| output::printable(c))
        .unwrap_or_default();
    match code {
        Some(code) => coded(code, error, format!("running {command}")),
        None => anyhow::Error::from(error).context(format!("running {command}")),
    }
}

/// Copies a stream of the process to ours, until either ends.
fn copy<R, W, F>(name: &str, mut from: R, to: F) -> Result<JoinHandle<()>>
where
    R: Read + Send + 'static,
    W: Write,
    F: FnOnce() -> W + Send + 'static,
{
    let body = move || {
        let mut to = to();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return,
                // When nobody reads ours, the process's next write is to fail: that is what dropping its end does.
                Ok(n)
                    if to
                        .write_all(&buffer[..n])
                        .and_then(|()| to.flush())
                        .is_err() =>
                {
                    return;
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The machine is gone, which whoever waits for the process is told.
                Err(_) => return,
            }
        }
    };
    Ok(std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)?)
}

/// Passes signals on. The second of those that ask for the end kills.
fn pass_on(process: &Arc<Process>, signals: Receiver<i32>) -> io::Result<()> {
    let process = Arc::downgrade(process);
    std::thread::Builder::new()
        .name("signals to the command".to_owned())
        .spawn(move || {
            let mut asked = false;
            for signal in signals {
                let Some(process) = process.upgrade() else {
                    return;
                };
                let ends = matches!(signal, SIGINT | SIGTERM | SIGHUP | SIGQUIT);
                // If the machine is gone, whoever waits for the process is told.
                let _ = if ends && asked {
                    process.kill()
                } else {
                    process.signal(u8::try_from(signal).unwrap_or(15))
                };
                asked |= ends;
            }
        })?;
    Ok(())
}

/// The image's variables, those given in their place or beside them.
fn environment(image: &[String], given: &[String]) -> Vec<String> {
    let mut all: Vec<String> = image.to_vec();
    for variable in given {
        let whole = match variable.split_once('=') {
            Some(_) => variable.clone(),
            None => match std::env::var(variable) {
                Ok(value) => format!("{variable}={value}"),
                Err(_) => continue,
            },
        };
        let name = whole.split('=').next().unwrap_or_default();
        all.retain(|known| known.split('=').next() != Some(name));
        all.push(whole);
    }
    all
}

/// Memory in MiB from a number and a unit; without one it is bytes, as elsewhere in the field.
fn parse_memory(text: &str) -> Result<u32> {
    let bad = || {
        hinted(
            format!("{text:?} is not a size of memory"),
            "give a number and a unit, at least 64m: 512m, 2g",
        )
    };
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(bad()),
    };
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(bad)?;
    match u32::try_from(bytes >> 20) {
        Ok(mib) if mib >= 64 => Ok(mib),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory() {
        assert_eq!(parse_memory("512m").unwrap(), 512);
        assert_eq!(parse_memory("2G").unwrap(), 2048);
        assert_eq!(parse_memory("268435456").unwrap(), 256);
        for bad in ["", "512", "1x", "-1", "63m", "99999999g"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn given_variables_win() {
        let image = ["A=1".to_owned(), "B=2".to_owned()];
        let given = [
            "B=3".to_owned(),
            "C=".to_owned(),
            "LCOW_TEST_UNSET_VARIABLE".to_owned(),
        ];
        assert_eq!(environment(&image, &given), ["A=1", "B=3", "C="]);
    }
}
