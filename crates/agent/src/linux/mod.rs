//! The agent's operating system, for real.

pub mod boot;
mod disks;
mod ioctl;
mod processes;
mod unions;

use crate::{Deadline, GuestOs, Memory, Spawned, UnionMount};
use lcow_protocol::{AgentInfo, DiskMount, ExecSpec, RemoteError};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::Path;

pub(crate) use ioctl::loopback_up;

/// A failed system call as the protocol has it.
pub(crate) fn failed(
    operation: &'static str,
    at: impl AsRef<Path>,
) -> impl FnOnce(Errno) -> RemoteError {
    use std::os::unix::ffi::OsStrExt as _;
    move |errno| {
        RemoteError::system(operation, errno.raw_os_error()).at(at.as_ref().as_os_str().as_bytes())
    }
}

/// The same for the standard library's errors.
pub(crate) fn failed_io(
    operation: &'static str,
    at: impl AsRef<Path>,
) -> impl FnOnce(std::io::Error) -> RemoteError {
    use std::os::unix::ffi::OsStrExt as _;
    move |error| {
        let mut remote = RemoteError::system(operation, error.raw_os_error().unwrap_or(0))
            .at(at.as_ref().as_os_str().as_bytes());
        if error.raw_os_error().is_none() {
            remote = remote.because(error.to_string());
        }
        remote
    }
}

fn directory(at: &Path) -> Result<rustix::fd::OwnedFd, RemoteError> {
    rustix::fs::open(
        at,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed("open", at))
}

/// Linux, as PID 1 of a utility VM.
pub struct Linux {
    boot_ns: u64,
    lowerdir_plus: bool,
    children: processes::Children,
}

impl Linux {
    /// Takes over the machine's children. One per process.
    #[must_use]
    pub fn new(boot_ns: u64) -> Self {
        Self {
            boot_ns,
            lowerdir_plus: unions::has_lowerdir_plus(),
            children: processes::Children::new(),
        }
    }
}

impl GuestOs for Linux {
    fn info(&self) -> AgentInfo {
        AgentInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            boot_ns: self.boot_ns,
            lowerdir_plus: self.lowerdir_plus,
        }
    }

    fn mount_disk(
        &self,
        mount: &DiskMount,
        at: &Path,
        deadline: Deadline,
    ) -> Result<(), RemoteError> {
        disks::mount(mount, at, deadline)
    }

    fn unmount_disk(
        &self,
        mount: &DiskMount,
        at: &Path,
        deadline: Deadline,
    ) -> Result<(), RemoteError> {
        disks::unmount(mount, at, deadline)
    }

    fn mount_union(&self, union: &UnionMount, at: &Path) -> Result<(), RemoteError> {
        unions::mount(union, at, self.lowerdir_plus)
    }

    fn unmount_union(&self, at: &Path, deadline: Deadline) -> Result<(), RemoteError> {
        unions::unmount(at, deadline)
    }

    fn spawn(&self, spec: &ExecSpec, root: Option<&Path>) -> Result<Spawned, RemoteError> {
        self.children.spawn(spec, root)
    }

    fn sync(&self) {
        rustix::fs::sync();
    }

    fn trim(&self, at: &Path) -> Result<u64, RemoteError> {
        ioctl::trim(&directory(at)?).map_err(failed("trim", at))
    }

    fn freeze(&self, at: &Path) -> Result<(), RemoteError> {
        ioctl::freeze(&directory(at)?).map_err(failed("freeze", at))
    }

    fn thaw(&self, at: &Path) -> Result<(), RemoteError> {
        ioctl::thaw(&directory(at)?).map_err(failed("thaw", at))
    }

    fn kernel_log(&self, limit: usize) -> Result<Vec<u8>, RemoteError> {
        let log = rustix::fs::open(
            "/dev/kmsg",
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed("open", "/dev/kmsg"))?;
        let mut all = Vec::new();
        let mut record = [0; 8192];
        loop {
            match rustix::io::read(&log, &mut record) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(n) => all.extend_from_slice(&record[..n]),
                // EPIPE: records were overwritten while reading; the next read goes on after them.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(errno) => return Err(failed("read", "/dev/kmsg")(errno)),
            }
        }
        let excess = all.len().saturating_sub(limit);
        all.drain(..excess);
        Ok(all)
    }

    fn memory(&self) -> Result<Memory, RemoteError> {
        const PATH: &str = "/proc/meminfo";
        let text = std::fs::read_to_string(PATH).map_err(failed_io("read", PATH))?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
                .map_or(0, |kib| kib * 1024)
        };
        let uptime = rustix::system::sysinfo().uptime;
        Ok(Memory {
            uptime_s: u64::try_from(uptime).unwrap_or(0),
            total: field("MemTotal"),
            available: field("MemAvailable"),
        })
    }

    fn set_clock(&self, seconds: i64, nanoseconds: u32) -> Result<(), RemoteError> {
        let time = rustix::time::Timespec {
            tv_sec: seconds,
            tv_nsec: i64::from(nanoseconds),
        };
        rustix::time::clock_settime(rustix::time::ClockId::Realtime, time)
            .map_err(|errno| RemoteError::system("set clock", errno.raw_os_error()))
    }

    fn power_off(&self) {
        rustix::fs::sync();
        if let Err(errno) = rustix::system::reboot(rustix::system::RebootCommand::PowerOff) {
            crate::log::fault(format_args!("power off: {errno}"));
        }
    }
}
