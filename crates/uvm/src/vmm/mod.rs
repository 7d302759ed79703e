//! What runs a virtual machine. The trait names neither a program, nor a bus, nor a kind of handle, so that other
//! hypervisors fit beside QEMU.

mod confine;
mod qemu;
mod qmp;

pub use qemu::Qemu;

use crate::{DiskFormat, UvmError};
use lcow_protocol::ScsiAddress;
use std::fs::File;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of bytes to the agent.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// The processor's maker, decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processor.
    Kvm,
    /// Emulation.
    Tcg,
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// A machine to start.
#[derive(Debug)]
pub struct LaunchPlan {
    /// For people: in process lists and logs.
    pub name: String,
    /// The kernel, open for reading.
    pub kernel: File,
    /// The initrd, open for reading.
    pub initrd: File,
    /// The kernel's command line.
    pub command_line: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// Who makes them.
    pub accelerator: Accelerator,
}

/// A disk to add.
#[derive(Debug)]
pub struct NewDisk {
    /// Open for reading, and for writing unless `read_only`.
    pub file: File,
    /// How the disk lies in it: as a range of bytes from its start, or as a VHDX whose structure was checked.
    pub format: DiskFormat,
    /// How many bytes the disk has; a multiple of 512.
    pub bytes: u64,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// The serial number the guest sees: 1–20 ASCII letters and digits.
    pub serial: String,
}

/// Starts machines.
pub trait Vmm: Send + Sync {
    /// Starts one. The machine dies with this process, however it ends.
    ///
    /// # Errors
    /// The program is not there, or could not be started. That it ends at once is told later, by the machine.
    fn launch(&self, plan: LaunchPlan) -> Result<Box<dyn VirtualMachine>, UvmError>;
}

/// A running machine. Dropping it kills it.
pub trait VirtualMachine: Send + Sync {
    /// The stream to the agent, once; called inside an asynchronous runtime.
    ///
    /// # Errors
    /// If it was taken already, or the system's.
    fn connect(&self) -> Result<Box<dyn ByteStream>, UvmError>;
    /// Adds disks, all or none; where the guest finds each.
    ///
    /// # Errors
    /// The monitor's; nothing stays added.
    fn add_disks(
        &self,
        disks: Vec<NewDisk>,
        timeout: Duration,
    ) -> Result<Vec<ScsiAddress>, UvmError>;
    /// Removes disks that the guest has let go of. Carries on through errors; the first is returned.
    ///
    /// # Errors
    /// The monitor's, or a disk that does not go in time.
    fn remove_disks(&self, disks: &[ScsiAddress], timeout: Duration) -> Result<(), UvmError>;
    /// How it ended, if it has.
    fn ended(&self) -> Option<String>;
    /// Ends a machine whose guest has written everything out, without loss of what the guest wrote.
    ///
    /// # Errors
    /// If it does not end in time; it is then killed.
    fn stop(&self, timeout: Duration) -> Result<(), UvmError>;
    /// Ends it now, and returns when it is gone. Idempotent.
    fn kill(&self);
    /// The machine's process, where it is one.
    fn process_id(&self) -> Option<u32>;
    /// What is known about it, as named texts: console, monitor's trace, command line…
    fn diagnostics(&self) -> Vec<(&'static str, Vec<u8>)>;
}
