//! QEMU 7.2 and newer, one process a machine.
//!
//! It opens no path of ours: kernel, initrd, sockets and disks are descriptors it is given. See [`super::confine`] for what
//! else it may not do.

use super::confine::Confinement;
use super::qmp::Qmp;
use super::{Accelerator, ByteStream, LaunchPlan, NewDisk, VirtualMachine, Vmm};
use crate::diagnostics::Ring;
use crate::{DiskFormat, UvmError};
use command_fds::{CommandFdExt, FdMapping};
use lcow_protocol::{PORT_NAME, ScsiAddress};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

const PROGRAM: &str = "qemu-system-x86_64";
/// Units on one target. More than 256 do not come up at their number; the last one is left free.
const LUNS: u16 = 255;
/// Targets of one virtio-scsi adapter.
const TARGETS: u16 = 256;
/// How long a killed process may take to be gone. It takes its memory's worth of work in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(30);

/// Descriptors as the child has them.
const KERNEL_FD: i32 = 3;
const INITRD_FD: i32 = 4;
const AGENT_FD: i32 = 5;
const QMP_FD: i32 = 6;
const CONSOLE_FD: i32 = 7;

/// Starts machines with the QEMU found in `PATH`.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
}

impl Qemu {
    /// Looks QEMU up in `PATH`.
    ///
    /// # Errors
    /// [`UvmError::NoVmm`].
    pub fn find() -> Result<Self, UvmError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path)
            .map(|dir| dir.join(PROGRAM))
            .find(|program| {
                program.is_file()
                    && rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok()
            });
        found
            .map(|program| Self { program })
            .ok_or_else(|| UvmError::NoVmm {
                program: PROGRAM,
                path: path.to_string_lossy().into_owned(),
            })
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &std::path::Path {
        &self.program
    }

    fn arguments(plan: &LaunchPlan) -> Vec<OsString> {
        let (machine, processor) = match plan.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg,thread=multi", "max"),
        };
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        add(&[
            "-name",
            &plan.name,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-vga",
            "none",
        ]);
        add(&[
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        ]);
        add(&["-machine", "q35", "-accel", machine, "-cpu", processor]);
        add(&[
            "-m",
            &format!("{}M", plan.memory_mib),
            "-smp",
            &plan.cpus.to_string(),
            "-no-reboot",
        ]);
        add(&["-kernel", &format!("/proc/self/fd/{KERNEL_FD}")]);
        add(&["-initrd", &format!("/proc/self/fd/{INITRD_FD}")]);
        add(&["-append", &plan.command_line]);
        add(&["-chardev", &format!("socket,id=agent,fd={AGENT_FD}")]);
        add(&[
            "-device",
            "virtio-serial-pci",
            "-device",
            &format!("virtserialport,chardev=agent,name={PORT_NAME}"),
        ]);
        add(&["-device", "virtio-scsi-pci,id=scsi0"]);
        add(&[
            "-chardev",
            &format!("socket,id=qmp,fd={QMP_FD}"),
            "-mon",
            "chardev=qmp,mode=control",
        ]);
        add(&[
            "-chardev",
            &format!("socket,id=console,fd={CONSOLE_FD}"),
            "-serial",
            "chardev:console",
        ]);
        arguments
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn socket() -> Result<(UnixStream, UnixStream), UvmError> {
    UnixStream::pair().map_err(UvmError::io("make", "socket pair"))
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), UvmError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
        .map_err(UvmError::io("start thread", name))
}

impl Vmm for Qemu {
    fn launch(&self, plan: LaunchPlan) -> Result<Box<dyn VirtualMachine>, UvmError> {
        let arguments = Self::arguments(&plan);
        let (agent, agent_theirs) = socket()?;
        let (qmp, qmp_theirs) = socket()?;
        let (console, console_theirs) = socket()?;
        let mut command = Command::new(&self.program);
        command
            .args(&arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A terminal's Ctrl-C is for us; the machine ends in order.
            .process_group(0);
        let mapping = |fd: OwnedFd, child_fd| FdMapping {
            parent_fd: fd,
            child_fd,
        };
        command
            .fd_mappings(vec![
                mapping(plan.kernel.into(), KERNEL_FD),
                mapping(plan.initrd.into(), INITRD_FD),
                mapping(agent_theirs.into(), AGENT_FD),
                mapping(qmp_theirs.into(), QMP_FD),
                mapping(console_theirs.into(), CONSOLE_FD),
            ])
            .map_err(|error| UvmError::Vmm {
                operation: "pass descriptors".into(),
                detail: error.to_string(),
            })?;
        Confinement::new(kvm_group(plan.accelerator)).apply(&mut command);

        let logs = Logs {
            command_line: std::iter::once(self.program.as_os_str())
                .chain(arguments.iter().map(OsString::as_os_str))
                .map(|word| format!("{word:?}"))
                .collect::<Vec<_>>()
                .join(" "),
            ..Logs::default()
        };
        let trace = logs.qmp.clone();
        let life = Arc::new(Life::default());
        let (pidfd, pid, stderr) = start(command, &life, &self.program)?;
        let running = Running {
            life,
            pidfd,
            pid,
            logs,
            agent: Mutex::new(Some(agent)),
            qmp: Qmp::new(qmp, trace)?,
            negotiated: Mutex::new(false),
            disks: Mutex::new(Disks::default()),
        };
        let log = running.logs.console.clone();
        thread("lcow-console", move || log.follow(console))?;
        let log = running.logs.stderr.clone();
        thread("lcow-stderr", move || log.follow(stderr))?;
        Ok(Box::new(running))
    }
}

/// The group that may open the KVM device, if it takes one.
fn kvm_group(accelerator: Accelerator) -> Option<u32> {
    let metadata =
        (accelerator == Accelerator::Kvm).then(|| std::fs::metadata("/dev/kvm").ok())??;
    // Everybody may: no group is needed. Else only a group that is not root's own.
    (metadata.mode() & 0o006 != 0o006 && metadata.mode() & 0o060 == 0o060 && metadata.gid() != 0)
        .then(|| metadata.gid())
}

/// Whether the process runs, and how it ended.
#[derive(Default)]
struct Life {
    ended: Mutex<Option<ExitStatus>>,
    changed: Condvar,
}

impl Life {
    fn wait(&self, timeout: Duration) -> Option<ExitStatus> {
        let guard = lock(&self.ended);
        let waited = self
            .changed
            .wait_timeout_while(guard, timeout, |ended| ended.is_none());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

type Started = (OwnedFd, u32, std::process::ChildStderr);

/// Starts the process on a thread of its own, which then waits for its end: the process is killed by the kernel when the
/// thread that started it dies, so that thread must live as long as the process.
fn start(
    mut command: Command,
    life: &Arc<Life>,
    program: &std::path::Path,
) -> Result<Started, UvmError> {
    let (tell, told) = mpsc::channel();
    let theirs = life.clone();
    thread("lcow-vm", move || {
        let started = command.spawn().and_then(|mut child| {
            let opened = i32::try_from(child.id())
                .ok()
                .and_then(Pid::from_raw)
                .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidData))
                .and_then(|pid| Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?));
            match (opened, child.stderr.take()) {
                (Ok(pidfd), Some(stderr)) => Ok(((pidfd, child.id(), stderr), child)),
                (opened, _) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    Err(opened
                        .err()
                        .unwrap_or_else(|| std::io::ErrorKind::BrokenPipe.into()))
                }
            }
        });
        // Our copies of the child's ends must go, or we would never see them close.
        drop(command);
        let child: Option<Child> = match started {
            Ok((started, child)) => {
                let _ = tell.send(Ok(started));
                Some(child)
            }
            Err(error) => {
                let _ = tell.send(Err(error));
                None
            }
        };
        if let Some(mut child) = child {
            let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0));
            *lock(&theirs.ended) = Some(status);
            theirs.changed.notify_all();
        }
    })?;
    told.recv()
        .unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()))
        .map_err(UvmError::io("start", program))
}

#[derive(Default)]
struct Logs {
    command_line: String,
    console: Arc<Ring>,
    stderr: Arc<Ring>,
    qmp: Arc<Ring>,
}

/// Which addresses are taken, and by which descriptor set.
#[derive(Default)]
struct Disks {
    taken: BTreeMap<ScsiAddress, u32>,
    next: u32,
}

impl Disks {
    /// The lowest free address: an address is used again only once the disk before it is gone on both sides.
    fn take(&mut self) -> Option<(ScsiAddress, u32)> {
        let address = (0..TARGETS)
            .flat_map(|target| (0..LUNS).map(move |lun| ScsiAddress { target, lun }))
            .find(|address| !self.taken.contains_key(address))?;
        self.next += 1;
        self.taken.insert(address, self.next);
        Some((address, self.next))
    }
}

struct Running {
    life: Arc<Life>,
    pidfd: OwnedFd,
    pid: u32,
    logs: Logs,
    agent: Mutex<Option<UnixStream>>,
    qmp: Qmp,
    negotiated: Mutex<bool>,
    disks: Mutex<Disks>,
}

fn node(set: u32) -> String {
    format!("n{set}")
}

fn device(set: u32) -> String {
    format!("d{set}")
}

impl Running {
    /// QMP is only spoken once it is needed: the boot need not wait for it.
    fn ready(&self, deadline: Instant) -> Result<(), UvmError> {
        let mut negotiated = lock(&self.negotiated);
        if !*negotiated {
            self.qmp
                .negotiate(deadline)
                .map_err(|error| self.explain(error))?;
            *negotiated = true;
        }
        Ok(())
    }

    /// A closed monitor means that the process is ending: its status says more.
    fn explain(&self, error: UvmError) -> UvmError {
        match error {
            UvmError::Gone { .. } => match self.life.wait(Duration::from_secs(2)) {
                Some(status) => UvmError::Gone {
                    status: self.describe(status),
                },
                None => error,
            },
            other => other,
        }
    }

    fn describe(&self, status: ExitStatus) -> String {
        let stderr = self.logs.stderr.contents();
        let stderr = String::from_utf8_lossy(&stderr);
        match stderr.trim().lines().last() {
            Some(line) => format!("QEMU: {status}: {line}"),
            None => format!("QEMU: {status}"),
        }
    }

    /// Removes what was added for `taken`, in the host only; errors are not reported, since one is being reported already.
    fn undo(&self, taken: &[(ScsiAddress, u32)], deadline: Instant) {
        let delete = |command, argument: fn(u32) -> serde_json::Value| {
            self.qmp.run_all(
                taken
                    .iter()
                    .map(|(_, set)| (command, argument(*set)))
                    .collect(),
                deadline,
            )
        };
        let removed = delete("device_del", |set| json!({"id": device(set)}));
        for ((_, set), result) in taken.iter().zip(removed) {
            if result.is_ok() {
                let _ = self.qmp.wait_deleted(&device(*set), deadline);
            }
        }
        delete("blockdev-del", |set| json!({"node-name": node(set)}));
        delete("remove-fd", |set| json!({"fdset-id": set}));
        let mut disks = lock(&self.disks);
        for (address, _) in taken {
            disks.taken.remove(address);
        }
    }
}

impl VirtualMachine for Running {
    fn connect(&self) -> Result<Box<dyn ByteStream>, UvmError> {
        let socket = lock(&self.agent).take().ok_or_else(|| UvmError::Vmm {
            operation: "connect".into(),
            detail: "the port is taken".into(),
        })?;
        socket
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(socket))
            .map(|socket| Box::new(socket) as Box<dyn ByteStream>)
            .map_err(UvmError::io("use", "agent socket"))
    }

    fn add_disks(
        &self,
        disks: Vec<NewDisk>,
        timeout: Duration,
    ) -> Result<Vec<ScsiAddress>, UvmError> {
        let deadline = Instant::now() + timeout;
        self.ready(deadline)?;
        let mut taken = Vec::with_capacity(disks.len());
        {
            let mut table = lock(&self.disks);
            for _ in &disks {
                match table.take() {
                    Some(place) => taken.push(place),
                    None => {
                        for (address, _) in taken {
                            table.taken.remove(&address);
                        }
                        return Err(UvmError::Vmm {
                            operation: "add disks".into(),
                            detail: "all SCSI addresses are taken".into(),
                        });
                    }
                }
            }
        }
        let result = disks
            .iter()
            .zip(&taken)
            .try_for_each(|(disk, (_, set))| self.qmp.add_fd(*set, &disk.file, deadline));
        let result = result.and_then(|()| {
            let nodes = disks.iter().zip(&taken).map(|(disk, (_, set))| {
                let on_host = json!({"driver": "file", "filename": format!("/dev/fdset/{set}")});
                let mut arguments = json!({
                    "driver": "raw", "node-name": node(*set),
                    "read-only": disk.read_only, "auto-read-only": false, "file": on_host,
                });
                match disk.format {
                    DiskFormat::Raw => arguments["size"] = json!(disk.bytes),
                    // Its size is in its own metadata.
                    DiskFormat::Vhdx => arguments["driver"] = json!("vhdx"),
                }
                if !disk.read_only {
                    arguments["discard"] = json!("unmap");
                    arguments["detect-zeroes"] = json!("unmap");
                    arguments["file"]["discard"] = json!("unmap");
                }
                ("blockdev-add", arguments)
            });
            let devices = disks.iter().zip(&taken).map(|(disk, (address, set))| {
                let arguments = json!({
                    "driver": "scsi-hd", "id": device(*set), "drive": node(*set), "bus": "scsi0.0", "channel": 0,
                    "scsi-id": address.target, "lun": address.lun, "serial": disk.serial, "rotation_rate": 1,
                });
                ("device_add", arguments)
            });
            let results = self.qmp.run_all(nodes.chain(devices).collect(), deadline);
            results.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
        });
        match result {
            Ok(()) => Ok(taken.into_iter().map(|(address, _)| address).collect()),
            Err(error) => {
                self.undo(
                    &taken,
                    Instant::now() + timeout.min(Duration::from_secs(10)),
                );
                Err(self.explain(error))
            }
        }
    }

    fn remove_disks(&self, disks: &[ScsiAddress], timeout: Duration) -> Result<(), UvmError> {
        let deadline = Instant::now() + timeout;
        self.ready(deadline)?;
        let found: Vec<(ScsiAddress, u32)> = {
            let table = lock(&self.disks);
            disks
                .iter()
                .filter_map(|address| Some((*address, *table.taken.get(address)?)))
                .collect()
        };
        let commands = found
            .iter()
            .map(|(_, set)| ("device_del", json!({"id": device(*set)})))
            .collect();
        let asked = self.qmp.run_all(commands, deadline);
        let mut first = Ok(());
        let mut gone = Vec::with_capacity(found.len());
        for ((address, set), result) in found.into_iter().zip(asked) {
            match result.and_then(|_| self.qmp.wait_deleted(&device(set), deadline)) {
                Ok(()) => gone.push((address, set)),
                Err(error) => first = first.and(Err(self.explain(error))),
            }
        }
        let clean = |(_, set): &(ScsiAddress, u32)| {
            [
                ("blockdev-del", json!({"node-name": node(*set)})),
                ("remove-fd", json!({"fdset-id": set})),
            ]
        };
        for result in self
            .qmp
            .run_all(gone.iter().flat_map(clean).collect(), deadline)
        {
            first = first.and(result.map(drop).map_err(|error| self.explain(error)));
        }
        let mut table = lock(&self.disks);
        for (address, _) in gone {
            table.taken.remove(&address);
        }
        first
    }

    fn ended(&self) -> Option<String> {
        self.life
            .wait(Duration::ZERO)
            .map(|status| self.describe(status))
    }

    fn stop(&self, timeout: Duration) -> Result<(), UvmError> {
        let deadline = Instant::now() + timeout;
        let asked = self
            .ready(deadline)
            .and_then(|()| self.qmp.run("quit", json!({}), deadline));
        let left = deadline.saturating_duration_since(Instant::now());
        match (self.life.wait(left), asked) {
            (Some(status), _) if status.success() => Ok(()),
            (Some(status), _) => Err(UvmError::Gone {
                status: self.describe(status),
            }),
            (None, asked) => {
                self.kill();
                Err(asked.err().unwrap_or(UvmError::TimedOut {
                    operation: "stop".into(),
                    after: timeout,
                }))
            }
        }
    }

    fn kill(&self) {
        if self.life.wait(Duration::ZERO).is_none() {
            // ESRCH: it ended in between.
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
            self.life.wait(KILL_WAIT);
        }
    }

    fn process_id(&self) -> Option<u32> {
        Some(self.pid)
    }

    fn diagnostics(&self) -> Vec<(&'static str, Vec<u8>)> {
        let status = self.ended().unwrap_or_else(|| "running".into());
        vec![
            ("console.log", self.logs.console.contents()),
            ("qemu-stderr.log", self.logs.stderr.contents()),
            ("qmp.log", self.logs.qmp.contents()),
            (
                "command.txt",
                format!("{}\n", self.logs.command_line).into_bytes(),
            ),
            ("status.txt", format!("{status}\n").into_bytes()),
        ]
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_fill_targets_and_are_used_again_lowest_first() {
        let mut disks = Disks::default();
        let taken: Vec<_> = (0..600).map(|_| disks.take().unwrap().0).collect();
        assert_eq!(
            taken[254],
            ScsiAddress {
                target: 0,
                lun: 254
            }
        );
        assert_eq!(taken[255], ScsiAddress { target: 1, lun: 0 });
        assert_eq!(taken[599], ScsiAddress { target: 2, lun: 89 });
        disks.taken.remove(&taken[7]);
        let (again, set) = disks.take().unwrap();
        assert_eq!(again, taken[7]);
        assert_eq!(set, 601, "the name is new although the address is not");
    }
}
