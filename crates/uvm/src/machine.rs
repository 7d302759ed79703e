//! A utility VM as its user sees it.

use crate::accel::{self, PROBE, Plan, Verdict};
use crate::boot::{self, BootFiles};
use crate::diagnostics::write_bundle;
use crate::disks::{DiskSpec, Written};
use crate::freeze::Frozen;
use crate::process::{Process, ProcessSpec};
use crate::session::{Failure, Session};
use crate::vmm::{Accelerator, LaunchPlan, Qemu, VirtualMachine, Vmm};
use crate::{MachineConfig, UvmError};
use lcow_protocol::{
    AgentInfo, Call, DiskId, DiskMount, Lower, Reply, ScsiAddress, Statistics, UnionId, UnionSpec,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The kernel's command line (level 1, not 0: at 0 even a panic says nothing): silent, no self-tests of the crypto code, dead at once on any fault.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=1 panic=-1 oops=panic cryptomgr.notests";
/// How long a machine may take to answer, whatever the timeout of its operations.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the agent may be silent before the machine counts as dead. Longer than any guest is ever busy.
const SILENCE: Duration = Duration::from_secs(60);
/// How long to wait for more to be known about a machine whose connection has just closed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A running utility VM. All methods may be called from any number of threads. Dropping it, with all its processes, kills it.
pub struct Machine {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.inner.name)
            .finish_non_exhaustive()
    }
}

/// What its processes hold too.
pub(crate) struct Inner {
    name: String,
    config: MachineConfig,
    accelerator: Accelerator,
    info: OnceLock<AgentInfo>,
    session: Session,
    vm: Arc<dyn VirtualMachine>,
    disks: Mutex<BTreeMap<DiskId, Attached>>,
    next: AtomicU32,
    off: AtomicBool,
}

/// A disk that the machine has.
#[derive(Debug)]
struct Attached {
    address: ScsiAddress,
    written: Option<Written>,
}

static MACHINES: AtomicU32 = AtomicU32::new(0);

impl Machine {
    /// Starts a machine with QEMU and waits until its agent answers.
    ///
    /// # Errors
    /// QEMU, kernel or modules are missing ([`UvmError::hint`] says what to install), an option is bad, or the machine did not
    /// come up.
    pub fn start(config: &MachineConfig) -> Result<Self, UvmError> {
        config.check()?;
        let vmm = Qemu::find()?;
        Self::start_with(&vmm, config)
    }

    /// As [`start`](Self::start), with another monitor.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(vmm: &dyn Vmm, config: &MachineConfig) -> Result<Self, UvmError> {
        config.check()?;
        let timeout = config.timeout.min(BOOT_TIMEOUT);
        match accel::plan(config.accel, &config.state_dir)? {
            Plan::Only(accelerator) => Self::boot(vmm, config, accelerator, timeout),
            Plan::Probe => match Self::boot(vmm, config, Accelerator::Kvm, timeout.min(PROBE)) {
                Ok(machine) => {
                    accel::remember(&config.state_dir, Verdict::Works, "");
                    Ok(machine)
                }
                Err(error) if error.wants_bundle() || error.bundle().is_some() => {
                    accel::remember(
                        &config.state_dir,
                        Verdict::Hangs,
                        &error.cause().to_string(),
                    );
                    tracing::warn!(
                        "{}",
                        accel::reason(&config.state_dir).unwrap_or_else(|| error.to_string())
                    );
                    Self::boot(vmm, config, Accelerator::Tcg, timeout)
                }
                Err(error) => Err(error),
            },
        }
    }

    fn boot(
        vmm: &dyn Vmm,
        config: &MachineConfig,
        accelerator: Accelerator,
        timeout: Duration,
    ) -> Result<Self, UvmError> {
        let BootFiles {
            kernel,
            initrd,
            kernel_path,
        } = boot::prepare(config)?;
        let number = MACHINES.fetch_add(1, Ordering::Relaxed);
        let name = format!("lcow-{}-{number}", std::process::id());
        let plan = LaunchPlan {
            name: name.clone(),
            kernel,
            initrd,
            command_line: format!("{COMMAND_LINE} {}", config.boot_parameters)
                .trim_end()
                .to_owned(),
            memory_mib: config.memory_mib,
            cpus: config.cpus,
            accelerator,
        };
        let began = Instant::now();
        let vm: Arc<dyn VirtualMachine> = Arc::from(vmm.launch(plan)?);
        let session = match Session::open(vm.as_ref(), timeout) {
            Ok(session) => session,
            Err(failure) => {
                let error = explain(vm.as_ref(), "start", failure, timeout);
                vm.kill();
                return Err(bundle(config, &name, error, vm.diagnostics()));
            }
        };
        let machine = vm.clone();
        session.watch_heartbeat(SILENCE, move || machine.kill());
        let inner = Arc::new(Inner {
            name,
            config: config.clone(),
            accelerator,
            info: OnceLock::new(),
            session,
            vm,
            disks: Mutex::default(),
            next: AtomicU32::new(1),
            off: AtomicBool::new(false),
        });
        match inner.call("ask the agent", Call::Info)? {
            Reply::Info(info) => {
                tracing::debug!(
                    "{} is up after {} ms under {accelerator}: kernel {} of {}",
                    inner.name,
                    began.elapsed().as_millis(),
                    info.kernel,
                    kernel_path.display(),
                );
                inner.info.get_or_init(|| info);
            }
            _ => return Err(inner.diagnose(UvmError::protocol("the agent did not say who it is"))),
        }
        // A kernel takes half a second more than the real-time clock shows: files would be written in the host's future.
        inner.set_clock()?;
        Ok(Self { inner })
    }

    /// A name for logs, unique on this host while the machine runs.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The agent and its kernel.
    ///
    /// # Panics
    /// Never: it is set before the machine is handed out.
    #[must_use]
    pub fn info(&self) -> &AgentInfo {
        self.inner
            .info
            .get()
            .expect("set before the machine is handed out")
    }

    /// What runs its processor.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.inner.accelerator
    }

    /// The monitor's process.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.inner.vm.process_id()
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        self.inner.ended()
    }

    /// Adds disks and mounts them in the guest, all or none.
    ///
    /// # Errors
    /// The monitor's or the agent's; nothing stays attached.
    pub fn attach(&self, disks: Vec<DiskSpec>) -> Result<Vec<DiskId>, UvmError> {
        self.inner.attach(disks)
    }

    /// Unmounts disks and removes them. Free blocks of writable ones are given back to their files first. Carries on through
    /// errors and returns the first; a disk that is in use stays.
    ///
    /// # Errors
    /// Busy (part of a union), or the agent's or monitor's.
    pub fn detach(&self, disks: &[DiskId]) -> Result<(), UvmError> {
        self.inner.detach(disks)
    }

    /// Unites disks: `lowers` are read-only, nearest first; changes go to `upper`'s directory `upper`.
    ///
    /// # Errors
    /// The agent's; nothing stays mounted.
    pub fn union(&self, lowers: &[DiskId], upper: Option<DiskId>) -> Result<UnionId, UvmError> {
        self.inner.union(plain(lowers), upper, false)
    }

    /// As [`union`](Self::union), for the root directory of processes: a lowest layer that is in no disk has the mount points
    /// they need, so that none is made in `upper`.
    ///
    /// # Errors
    /// The agent's; nothing stays mounted.
    pub fn container_root(
        &self,
        lowers: &[DiskId],
        upper: Option<DiskId>,
    ) -> Result<UnionId, UvmError> {
        self.inner.union(plain(lowers), upper, true)
    }

    /// As [`container_root`](Self::container_root), with layers that may be sandboxes; without any layer it has the mount
    /// points only.
    ///
    /// # Errors
    /// The agent's; nothing stays mounted.
    pub fn container_root_of(
        &self,
        lowers: Vec<Lower>,
        upper: Option<DiskId>,
    ) -> Result<UnionId, UvmError> {
        self.inner.union(lowers, upper, true)
    }

    /// Takes a union apart.
    ///
    /// # Errors
    /// Busy (a process runs in it), or the agent's.
    pub fn remove_union(&self, union: UnionId) -> Result<(), UvmError> {
        self.inner
            .done("take a union apart", Call::RemoveUnion(union))
    }

    /// Starts a process.
    ///
    /// # Errors
    /// Command not found or not executable ([`UvmError::shell_exit_code`]), no such user, or the agent's.
    pub fn exec(&self, spec: &ProcessSpec) -> Result<Process, UvmError> {
        Process::start(&self.inner, spec)
    }

    /// Writes everything in the guest to its disks.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn sync(&self) -> Result<(), UvmError> {
        self.inner.done("sync", Call::Sync)
    }

    /// Writes a writable disk out and lets nothing change it until it is thawed, at most for `limit` (a minute is the most):
    /// what would change it waits. Its file then holds a whole file system that nobody writes to.
    ///
    /// # Errors
    /// The agent's: Busy if it is frozen already.
    pub fn freeze(&self, disk: DiskId, limit: Duration) -> Result<Frozen, UvmError> {
        Frozen::new(&self.inner, disk, limit)
    }

    /// Gives a writable disk's free blocks back to its file; how many bytes.
    ///
    /// # Errors
    /// The agent's.
    pub fn trim(&self, disk: DiskId) -> Result<u64, UvmError> {
        match self.inner.call("trim", Call::Trim(disk))? {
            Reply::Trimmed(bytes) => Ok(bytes),
            _ => Err(self
                .inner
                .diagnose(UvmError::protocol("trim was not answered with a size"))),
        }
    }

    /// The end of the guest kernel's log.
    ///
    /// # Errors
    /// The agent's.
    pub fn kernel_log(&self) -> Result<Vec<u8>, UvmError> {
        match self.inner.call("read the kernel's log", Call::KernelLog)? {
            Reply::Text(text) => Ok(text),
            _ => Err(self
                .inner
                .diagnose(UvmError::protocol("the log was not answered with text"))),
        }
    }

    /// Memory, uptime and counts of the guest.
    ///
    /// # Errors
    /// The agent's.
    pub fn statistics(&self) -> Result<Statistics, UvmError> {
        match self.inner.call("ask for statistics", Call::Statistics)? {
            Reply::Statistics(statistics) => Ok(statistics),
            _ => Err(self
                .inner
                .diagnose(UvmError::protocol("statistics were not answered with any"))),
        }
    }

    /// Sets the guest's wall clock to the host's, as was done at the start: for a host whose own clock was set.
    ///
    /// # Errors
    /// The agent's.
    pub fn set_clock(&self) -> Result<(), UvmError> {
        self.inner.set_clock()
    }

    /// Ends all processes, takes all unions apart, unmounts all disks, and stops the machine. Afterwards the disks' files hold
    /// everything the guest wrote, and their journals are clean.
    ///
    /// # Errors
    /// Something could not be unmounted, or the machine did not stop; it is gone all the same.
    pub fn power_off(&self) -> Result<(), UvmError> {
        self.inner.power_off()
    }

    /// Whether it was told to end, in whichever way.
    pub(crate) fn is_off(&self) -> bool {
        self.inner.off.load(Ordering::Acquire)
    }

    /// Ends it now, and returns when it is gone.
    pub fn kill(&self) {
        self.inner.off.store(true, Ordering::Release);
        self.inner.vm.kill();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its processes may keep the rest, but not the machine.
        self.inner.vm.kill();
    }
}

fn plain(lowers: &[DiskId]) -> Vec<Lower> {
    lowers.iter().copied().map(Lower::from).collect()
}

/// Says what a failure of the connection means for the machine.
fn explain(
    vm: &dyn VirtualMachine,
    operation: &str,
    failure: Failure,
    after: Duration,
) -> UvmError {
    match failure {
        Failure::Other(error) => error,
        Failure::TimedOut => UvmError::TimedOut {
            operation: format!("{operation} the utility VM"),
            after,
        },
        Failure::Closed => {
            let began = Instant::now();
            loop {
                match vm.ended() {
                    Some(status) => return UvmError::Gone { status },
                    None if began.elapsed() > LAST_WORDS => {
                        return UvmError::Gone {
                            status: "its agent closed the connection".into(),
                        };
                    }
                    None => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        }
    }
}

fn bundle(
    config: &MachineConfig,
    name: &str,
    error: UvmError,
    files: Vec<(&'static str, Vec<u8>)>,
) -> UvmError {
    match write_bundle(&config.state_dir, name, &error, &files) {
        Ok(bundle) => UvmError::Diagnosed {
            source: Box::new(error),
            bundle,
        },
        Err(failed) => {
            tracing::warn!("diagnostics could not be kept: {failed}");
            error
        }
    }
}

impl Inner {
    fn disks(&self) -> MutexGuard<'_, BTreeMap<DiskId, Attached>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ended(&self) -> Option<String> {
        self.vm.ended()
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.config.timeout
    }

    pub(crate) fn with_session<T>(&self, body: impl FnOnce(&Session) -> T) -> Option<T> {
        self.vm.ended().is_none().then(|| body(&self.session))
    }

    /// Adds a bundle to an error that deserves one.
    pub(crate) fn diagnose(&self, error: UvmError) -> UvmError {
        if !error.wants_bundle() {
            return error;
        }
        let mut files = self.vm.diagnostics();
        files.push(("agent.log", self.session.agent_log()));
        if self.vm.ended().is_none()
            && let Ok(Reply::Text(log)) = self.session.call(Call::KernelLog, LAST_WORDS)
        {
            files.push(("kernel.log", log));
        }
        bundle(&self.config, &self.name, error, files)
    }

    pub(crate) fn failed(&self, operation: &str, failure: Failure) -> UvmError {
        if self.off.load(Ordering::Acquire) {
            return UvmError::Gone {
                status: "it was powered off".into(),
            };
        }
        let error = explain(self.vm.as_ref(), operation, failure, self.config.timeout);
        self.diagnose(match error {
            UvmError::TimedOut { after, .. } => UvmError::TimedOut {
                operation: operation.to_owned(),
                after,
            },
            other => other,
        })
    }

    pub(crate) fn ask(
        &self,
        operation: &str,
        call: Call,
    ) -> Result<(Reply, yamux::Stream), UvmError> {
        self.session
            .ask(call, self.config.timeout)
            .map_err(|failure| self.failed(operation, failure))
    }

    fn call(&self, operation: &str, call: Call) -> Result<Reply, UvmError> {
        self.ask(operation, call).map(|(reply, _)| reply)
    }

    fn done(&self, operation: &str, call: Call) -> Result<(), UvmError> {
        self.call(operation, call).map(drop)
    }

    fn set_clock(&self) -> Result<(), UvmError> {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.done(
            "set the clock",
            Call::SetClock {
                seconds,
                nanoseconds: now.subsec_nanos(),
            },
        )
    }

    fn attach(&self, specs: Vec<DiskSpec>) -> Result<Vec<DiskId>, UvmError> {
        if specs.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<DiskId> = specs
            .iter()
            .map(|_| DiskId(self.next.fetch_add(1, Ordering::Relaxed)))
            .collect();
        let mut disks = Vec::with_capacity(specs.len());
        let mut written = Vec::with_capacity(specs.len());
        for (spec, id) in specs.into_iter().zip(&ids) {
            let (disk, watched) = spec.prepare(*id)?;
            disks.push(disk);
            written.push(watched);
        }
        let facts: Vec<(String, bool)> = disks
            .iter()
            .map(|disk| (disk.serial.clone(), disk.read_only))
            .collect();
        let timeout = self.config.timeout;
        let addresses = self
            .vm
            .add_disks(disks, timeout)
            .map_err(|error| self.diagnose(error))?;
        let mounts = ids
            .iter()
            .zip(&addresses)
            .zip(facts)
            .map(|((disk, address), (serial, read_only))| DiskMount {
                disk: *disk,
                address: *address,
                serial,
                read_only,
            })
            .collect();
        if let Err(error) = self.done("mount disks", Call::MountDisks(mounts)) {
            if self.vm.ended().is_none()
                && let Err(second) = self.vm.remove_disks(&addresses, timeout)
            {
                tracing::warn!("taking back disks that did not mount: {second}");
            }
            return Err(error);
        }
        let attached = addresses
            .into_iter()
            .zip(written)
            .map(|(address, written)| Attached { address, written });
        self.disks().extend(ids.iter().copied().zip(attached));
        Ok(ids)
    }

    fn detach(&self, ids: &[DiskId]) -> Result<(), UvmError> {
        let addresses = {
            let disks = self.disks();
            let find = |id: &DiskId| {
                let disk = disks.get(id).map(|disk| disk.address);
                disk.ok_or_else(|| UvmError::Unknown {
                    operation: "detach",
                    what: format!("disk {id}"),
                })
            };
            ids.iter().map(find).collect::<Result<Vec<_>, _>>()?
        };
        self.done("unmount disks", Call::UnmountDisks(ids.to_vec()))?;
        let result = self.vm.remove_disks(&addresses, self.config.timeout);
        let mut gone = Vec::with_capacity(ids.len());
        {
            let mut disks = self.disks();
            gone.extend(ids.iter().filter_map(|id| disks.remove(id)));
        }
        result
            .and_then(|()| checked(gone))
            .map_err(|error| self.diagnose(error))
    }

    fn union(
        &self,
        lowers: Vec<Lower>,
        upper: Option<DiskId>,
        mount_points: bool,
    ) -> Result<UnionId, UvmError> {
        let union = UnionId(self.next.fetch_add(1, Ordering::Relaxed));
        let spec = UnionSpec {
            union,
            lowers,
            upper,
            mount_points,
        };
        self.done("make a union", Call::MakeUnion(spec))
            .map(|()| union)
    }

    fn power_off(&self) -> Result<(), UvmError> {
        if self.off.load(Ordering::Acquire) {
            return Ok(());
        }
        let down = self.done("power off", Call::PowerOff);
        self.off.store(true, Ordering::Release);
        let stopped = if self.vm.ended().is_some() {
            Ok(())
        } else {
            self.vm.stop(self.config.timeout)
        };
        self.vm.kill();
        self.session.wait_closed(LAST_WORDS);
        let gone = std::mem::take(&mut *self.disks());
        down.and(
            stopped
                .and_then(|()| checked(gone.into_values()))
                .map_err(|error| self.diagnose(error)),
        )
    }
}

/// Checks the disks that a machine has let go of.
fn checked(disks: impl IntoIterator<Item = Attached>) -> Result<(), UvmError> {
    disks
        .into_iter()
        .filter_map(|disk| disk.written)
        .try_for_each(|written| written.check())
}
