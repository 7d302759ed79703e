//! What the server needs of the operating system it runs on.

use lcow_protocol::{AgentInfo, DiskMount, ErrorKind, ExecSpec, ExitStatus, RemoteError};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// When to stop waiting.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// `ms` milliseconds from now; 0 is never.
    #[must_use]
    pub fn after_ms(ms: u32) -> Self {
        Self((ms != 0).then(|| Instant::now() + Duration::from_millis(u64::from(ms))))
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        self.0.is_some_and(|at| Instant::now() >= at)
    }

    /// An error if it has passed.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] in `operation`.
    pub fn check(self, operation: &str) -> Result<(), RemoteError> {
        if self.passed() {
            Err(RemoteError::new(ErrorKind::TimedOut, operation))
        } else {
            Ok(())
        }
    }
}

/// A union to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnionMount {
    /// Where the read-only disks are mounted, nearest first.
    pub lowers: Vec<PathBuf>,
    /// Where the writable disk is mounted.
    pub upper: Option<PathBuf>,
    /// Whether the layer of mount points is added below all.
    pub mount_points: bool,
}

/// Memory of the guest, in bytes, and its uptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Seconds since the kernel's start.
    pub uptime_s: u64,
    /// All the kernel has.
    pub total: u64,
    /// What can be had without swapping.
    pub available: u64,
}

/// A process that runs.
pub struct Spawned {
    /// The writing end of its standard input, if it has one.
    pub stdin: Option<OwnedFd>,
    /// The reading end of its standard output.
    pub stdout: OwnedFd,
    /// The reading end of its standard error.
    pub stderr: OwnedFd,
    /// The rest.
    pub process: Arc<dyn GuestProcess>,
}

/// A handle on a running process.
pub trait GuestProcess: Send + Sync {
    /// Sends a signal to the process's group; nothing happens if it is gone.
    ///
    /// # Errors
    /// The kernel's, for a number that is no signal.
    fn signal(&self, signal: u8) -> Result<(), RemoteError>;
    /// Kills all of its namespace.
    fn kill(&self);
    /// Waits until it is gone. Called once.
    fn wait(&self) -> ExitStatus;
}

/// The operating system under the server. Every method may block, up to its deadline where it has one.
pub trait GuestOs: Send + Sync + 'static {
    /// Who answers.
    fn info(&self) -> AgentInfo;
    /// Finds the disk at its address, checks its serial, mounts it at `at`; undoes all of it on failure.
    ///
    /// # Errors
    /// Timed out (it did not come up), corrupt (wrong serial), or the kernel's.
    fn mount_disk(
        &self,
        mount: &DiskMount,
        at: &Path,
        deadline: Deadline,
    ) -> Result<(), RemoteError>;
    /// Unmounts it, waits until the kernel has let go of the device, and deletes the device.
    ///
    /// # Errors
    /// Busy, or the kernel's.
    fn unmount_disk(
        &self,
        mount: &DiskMount,
        at: &Path,
        deadline: Deadline,
    ) -> Result<(), RemoteError>;
    /// Mounts a union at `at`.
    ///
    /// # Errors
    /// The kernel's; nothing stays mounted.
    fn mount_union(&self, union: &UnionMount, at: &Path) -> Result<(), RemoteError>;
    /// Unmounts a union.
    ///
    /// # Errors
    /// Busy until the deadline, or the kernel's.
    fn unmount_union(&self, at: &Path, deadline: Deadline) -> Result<(), RemoteError>;
    /// Starts a process with `root` as its root directory.
    ///
    /// # Errors
    /// Command not found or not executable, no such user, or the kernel's.
    fn spawn(&self, spec: &ExecSpec, root: Option<&Path>) -> Result<Spawned, RemoteError>;
    /// Writes everything out.
    fn sync(&self);
    /// Discards free blocks of the file system at `at`; how many bytes.
    ///
    /// # Errors
    /// The kernel's.
    fn trim(&self, at: &Path) -> Result<u64, RemoteError>;
    /// Writes the file system at `at` out, and lets nothing change it: what would, waits.
    ///
    /// # Errors
    /// The kernel's.
    fn freeze(&self, at: &Path) -> Result<(), RemoteError>;
    /// Takes the freeze back.
    ///
    /// # Errors
    /// The kernel's.
    fn thaw(&self, at: &Path) -> Result<(), RemoteError>;
    /// The end of the kernel's log, at most `limit` bytes.
    ///
    /// # Errors
    /// The kernel's.
    fn kernel_log(&self, limit: usize) -> Result<Vec<u8>, RemoteError>;
    /// Memory and uptime.
    ///
    /// # Errors
    /// The kernel's.
    fn memory(&self) -> Result<Memory, RemoteError>;
    /// Sets the wall clock.
    ///
    /// # Errors
    /// The kernel's.
    fn set_clock(&self, seconds: i64, nanoseconds: u32) -> Result<(), RemoteError>;
    /// Ends the machine. Returns only where there is none to end.
    fn power_off(&self);
}
