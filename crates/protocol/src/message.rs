//! The messages. Their order in each enum is their number on the wire: new ones go at the end, with a new
//! [`VERSION`](crate::VERSION).

use crate::RemoteError;
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// Number of a request; the response repeats it. Unique while a connection lives.
    RequestId
);
id!(
    /// A disk mounted in the guest. Chosen by the host; mounted at `/d/<number>`.
    DiskId
);
id!(
    /// A union in the guest. Chosen by the host; mounted at `/u/<number>`.
    UnionId
);
id!(
    /// A process started by [`Call::Exec`]. Chosen by the agent.
    ProcessId
);

/// What the host asks, one per stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Repeated in the response.
    pub id: RequestId,
    /// Milliseconds from receipt after which the host no longer waits: the agent stops waiting too, undoes, and answers with
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut). 0 means none.
    pub deadline_ms: u32,
    /// What to do.
    pub call: Call,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The request's.
    pub id: RequestId,
    /// What came of it.
    pub result: Result<Reply, RemoteError>,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Call {
    /// Who is there? [`Reply::Info`].
    Info,
    /// Find, check and mount disks that the host has added; all of them or none. [`Reply::Done`].
    MountDisks(Vec<DiskMount>),
    /// Trim (if writable), unmount, and let go of disks, so that the host can remove them. [`Reply::Done`].
    UnmountDisks(Vec<DiskId>),
    /// Unite disks. [`Reply::Done`].
    MakeUnion(UnionSpec),
    /// Take a union apart. [`Reply::Done`].
    RemoveUnion(UnionId),
    /// Start a process. [`Reply::Started`]; from then on the stream carries [`ProcessControl`] frames to the guest and
    /// [`ProcessEvent`] frames to the host, and its end kills the process.
    Exec(ExecSpec),
    /// Turn this stream into one of a process's standard streams, carried as chunks. [`Reply::Done`], then the bytes.
    AttachStdio {
        /// Whose.
        process: ProcessId,
        /// Which.
        stdio: Stdio,
    },
    /// Write everything to the disks. [`Reply::Done`].
    Sync,
    /// Give free blocks of a writable disk back to the host. [`Reply::Trimmed`].
    Trim(DiskId),
    /// The guest kernel's log, its end if it is long. [`Reply::Text`].
    KernelLog,
    /// Memory, load, counts. [`Reply::Statistics`].
    Statistics,
    /// Set the wall clock. [`Reply::Done`].
    SetClock {
        /// Seconds since 1970-01-01 UTC.
        seconds: i64,
        /// Nanoseconds, below 1,000,000,000.
        nanoseconds: u32,
    },
    /// The agent's log from its start, then as it grows: [`Reply::Done`], then chunks.
    FollowLog,
    /// End every process, take every union apart, unmount every disk, sync. [`Reply::Done`], after which the machine may be
    /// stopped at any time; the agent powers it off by itself when the connection ends.
    PowerOff,
    /// Write everything to a writable disk and let nothing more change it. [`Reply::Done`] once that is so. The disk stays
    /// frozen until the host ends its side of the stream, or the stream goes with the connection, or the limit has passed;
    /// then a second [`Response`] tells whether it was frozen all the time: [`Reply::Done`], or
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut).
    Freeze {
        /// Which.
        disk: DiskId,
        /// Milliseconds after which the disk is thawed whatever the host does, 1 to [`MAX_FREEZE_MS`].
        limit_ms: u32,
    },
}

/// Milliseconds that a disk may be frozen at most: a minute.
pub const MAX_FREEZE_MS: u32 = 60_000;

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reply {
    /// It is done.
    Done,
    /// To [`Call::Info`].
    Info(AgentInfo),
    /// To [`Call::Exec`].
    Started(ProcessId),
    /// To [`Call::Trim`]: bytes given back.
    Trimmed(u64),
    /// To [`Call::KernelLog`]: raw bytes, the end of the log.
    Text(Vec<u8>),
    /// To [`Call::Statistics`].
    Statistics(Statistics),
}

/// The agent and what its kernel can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Version of the agent's package.
    pub version: String,
    /// `uname -r` of the guest.
    pub kernel: String,
    /// Nanoseconds from the start of the guest's kernel to the agent's start.
    pub boot_ns: u64,
    /// Whether overlayfs takes its lower layers one by one (`lowerdir+`, Linux 6.8).
    pub lowerdir_plus: bool,
}

/// Where the guest finds a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScsiAddress {
    /// SCSI target, 0–255.
    pub target: u16,
    /// Logical unit, 0–254.
    pub lun: u16,
}

/// A disk to mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMount {
    /// Its number from now on.
    pub disk: DiskId,
    /// Where it was added.
    pub address: ScsiAddress,
    /// The serial number it must have: the wrong disk at the right address is an error.
    pub serial: String,
    /// Mounted `ro,noload`, else read-write.
    pub read_only: bool,
}

/// A read-only layer of a union.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lower {
    /// Its disk.
    pub disk: DiskId,
    /// Whether it is a sandbox: its files are then in the disk's directory `upper`, else in its root directory.
    pub sandbox: bool,
}

impl From<DiskId> for Lower {
    fn from(disk: DiskId) -> Self {
        Self {
            disk,
            sandbox: false,
        }
    }
}

/// A union of disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnionSpec {
    /// Its number from now on.
    pub union: UnionId,
    /// Read-only layers, nearest first.
    pub lowers: Vec<Lower>,
    /// The writable disk; its directories `upper` and `work` take the changes.
    pub upper: Option<DiskId>,
    /// Adds a lowest layer that is in no disk, with the mount points a container needs (`/proc`, `/sys`, `/dev`, `/tmp`,
    /// `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`), so that none has to be made in the writable disk.
    pub mount_points: bool,
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// Numbers as they are, no name looked up.
    Ids {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
        /// Supplementary groups.
        groups: Vec<u32>,
    },
    /// `user[:group]`, names or numbers, resolved in the container's `/etc/passwd` and `/etc/group`. Empty: root.
    Named(String),
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The union that is its root directory; none: the agent's own, empty but for `/proc`, `/sys`, `/dev`.
    pub root: Option<UnionId>,
    /// The command and its arguments. The command is looked up in the environment's `PATH` if it has no slash.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value`; `HOME` and `PATH` are added if absent.
    pub env: Vec<Vec<u8>>,
    /// Working directory, made if absent; empty: `/`.
    pub cwd: Vec<u8>,
    /// Who it runs as.
    pub identity: Identity,
    /// Host name; empty: the virtual machine's.
    pub hostname: String,
    /// Lines of `/etc/resolv.conf`; an empty file where there is no network.
    pub resolv_conf: Vec<u8>,
    /// Whether standard input is a stream ([`Call::AttachStdio`]); else it reads as empty.
    pub stdin: bool,
}

/// One of a process's standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stdio {
    /// Host to guest.
    In,
    /// Guest to host.
    Out,
    /// Guest to host.
    Err,
}

/// Host to guest, about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ProcessControl {
    /// Send a signal (1–64) to the process's group.
    Signal(u8),
    /// Kill everything in the process's namespace.
    Kill,
}

/// Guest to host, about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ProcessEvent {
    /// It is gone, and everything it left behind in its namespace too. The last event.
    Exited(ExitStatus),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code, 0–255.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl ExitStatus {
    /// As a shell's `$?` has it: the code, or 128 + the signal.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }

    /// Whether it is code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// The guest at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Time since the kernel's start, in seconds.
    pub uptime_s: u64,
    /// Memory the kernel has, in bytes.
    pub memory_total: u64,
    /// Memory available without swapping, in bytes (`MemAvailable`).
    pub memory_available: u64,
    /// Disks mounted.
    pub disks: u32,
    /// Unions mounted.
    pub unions: u32,
    /// Processes started by the host that still run.
    pub processes: u32,
}
