//! Utility VMs: small Linux machines that open layers and run containers, so that the host never mounts what it did not write.
//!
//! Life of a [`Machine`]: [`start`](Machine::start) (find a kernel, make an initrd of the embedded agent and the kernel's
//! modules, start QEMU confined, shake hands with the agent) → [`attach`](Machine::attach) disks by file descriptor →
//! [`container_root`](Machine::container_root) unites them → [`exec`](Machine::exec) → [`power_off`](Machine::power_off).
//! Dropping a machine kills it, and so does the end of the process that started it.
//!
//! ```text
//!  UtilityVms         a driver's Mounter: a machine per layer in use
//!    │
//!  Machine ─┬─ vmm      starts it, adds and removes disks     trait Vmm: Qemu, and a fake in tests
//!           ├─ session  talks to the agent                    yamux over one port
//!           ├─ boot     kernel and initrd, found and cached
//!           └─ process  standard streams, signals, exit       Read, Write
//! ```
//!
//! I/O: every call blocks, up to the configuration's timeout; inside, each machine has one thread that moves bytes. Calls may
//! be made from any thread, an asynchronous runtime's too (it is then blocked). Errors are [`UvmError`]s: what is missing and
//! what to install, what the guest answered (errno, operation, path), or that the machine is gone; those that a person has to
//! look into name a directory with everything known about the machine.
//!
//! ```no_run
//! use lcow_uvm::{DiskFormat, DiskSpec, Machine, MachineConfig, ProcessSpec};
//! use std::io::Read;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let machine = Machine::start(&MachineConfig::new("/var/lib/lcow/uvm"))?;
//! let file = std::fs::File::open("layer.ext4")?;
//! let bytes = file.metadata()?.len();
//! let layer = DiskSpec { file, format: DiskFormat::Raw, bytes, read_only: true, serial: String::new() };
//! let disks = machine.attach(vec![layer])?;
//! let root = machine.container_root(&disks, None)?;
//! let mut process = machine.exec(&ProcessSpec::new(Some(root), ["cat", "/etc/os-release"]))?;
//! let mut text = String::new();
//! process.take_stdout().ok_or("taken")?.read_to_string(&mut text)?;
//! println!("{text}{}", process.wait()?);
//! machine.power_off()?;
//! # Ok(())
//! # }
//! ```

pub mod accel;
mod boot;
mod config;
mod diagnostics;
mod disks;
mod error;
mod freeze;
mod machine;
mod mounter;
mod process;
mod session;
pub mod vmm;

pub use config::{Accel, DEFAULT_MEMORY_MIB, DEFAULT_TIMEOUT, MachineConfig};
pub use disks::{DiskFormat, DiskSpec};
pub use error::UvmError;
pub use freeze::Frozen;
pub use lcow_protocol::{
    AgentInfo, DiskId, ErrorKind, ExitStatus, Lower, ProcessId, RemoteError, Statistics, UnionId,
};
pub use machine::Machine;
pub use mounter::{MountedLayer, UtilityVms};
pub use process::{Process, ProcessOutput, ProcessSpec, ProcessStdin};
