//! What makes the files of a layer visible: a utility VM, the host's kernel, or a fake in tests.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::LayerId;
use crate::record::DiskFormat;
use crate::store::SandboxGuard;

/// A mounter's own error.
pub type MountError = Box<dyn std::error::Error + Send + Sync>;

/// Makes layers and sandboxes visible.
///
/// The driver calls [`mount`](Mounter::mount) once for all handles on a layer, on the first use of any, and
/// [`unmount`](Mounter::unmount) once, when the last handle is put. It holds no lock of its own that another layer's
/// operations wait for, so calls for different layers come at the same time.
pub trait Mounter: Send + Sync {
    /// What a mounted layer is, to whoever uses it: a union in a VM, a directory, …
    type Mounted: Send + Sync;

    /// The name in `lcow.mounter` and in `status`.
    fn name(&self) -> &'static str;

    /// Makes the layer visible. On failure nothing is left attached or mounted.
    ///
    /// # Errors
    /// The mounter's own.
    fn mount(&self, request: &MountRequest) -> Result<Self::Mounted, MountError>;

    /// Takes back all that `mount` did, and carries on through every step.
    ///
    /// # Errors
    /// The first failure, with the rest attached.
    fn unmount(&self, id: &LayerId, mounted: &Self::Mounted) -> Result<(), MountError>;

    /// Writes the sandbox of what is mounted out, and lets nothing change it until that is taken back. The driver does so for
    /// as long as it takes to copy the sandbox's file.
    ///
    /// # Errors
    /// The mounter's own; nothing is frozen then.
    fn freeze(&self, id: &LayerId, mounted: &Self::Mounted) -> Result<Box<dyn Frozen>, MountError> {
        let _ = mounted;
        Err(format!("the mounter {} can't freeze {id}", self.name()).into())
    }

    /// Stops whatever uses the layer, by force, before it is removed. Not an error if nothing does.
    ///
    /// # Errors
    /// The mounter's own.
    fn force_stop(&self, id: &LayerId) -> Result<(), MountError> {
        let _ = id;
        Ok(())
    }

    /// What runs, and on what, as far as it concerns this mounter. Nothing is started to find out.
    fn status(&self) -> MounterStatus {
        MounterStatus::default()
    }

    /// Takes away what a dead process left (virtual machines, mounts), and names it.
    ///
    /// # Errors
    /// The mounter's own.
    fn recover(&self) -> Result<Vec<String>, MountError> {
        Ok(Vec::new())
    }
}

/// A sandbox that nothing changes. Dropping it takes the freeze back.
pub trait Frozen: Send {
    /// Takes the freeze back.
    ///
    /// # Errors
    /// The sandbox may have been changed meanwhile: the mounter's own.
    fn thaw(self: Box<Self>) -> Result<(), MountError>;
}

/// What a mounter works with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MounterStatus {
    /// What runs virtual machines' processors: `kvm` or `tcg`. `None` if there are no machines, or it is not known before the
    /// first one is started.
    pub accelerator: Option<String>,
    /// Why that one, in words.
    pub accelerator_reason: Option<String>,
    /// The kernel that machines boot.
    pub kernel: Option<PathBuf>,
    /// What keeps machines from being started, as far as can be seen without starting one.
    pub problem: Option<String>,
    /// The machines of this process.
    pub machines: Vec<MachineStatus>,
}

/// A running virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineStatus {
    /// What it was started for.
    pub id: LayerId,
    /// Its name on this host.
    pub name: String,
    /// The process that is it.
    pub pid: Option<u32>,
    /// Seconds since its kernel started; `None` if it does not answer.
    pub uptime: Option<u64>,
    /// Disks that are mounted in it.
    pub disks: u32,
    /// Unions of them.
    pub unions: u32,
    /// Processes that run in it.
    pub processes: u32,
}

/// What is to be mounted: the disks of a chain and, for a sandbox, the writable one on top.
#[derive(Debug)]
pub struct MountRequest {
    /// The layer or sandbox that was asked for.
    pub id: LayerId,
    /// Who asked, for logs.
    pub label: Option<String>,
    /// The read-only layers, nearest first. Layers without contents are left out.
    pub lowers: Vec<Disk>,
    /// The sandbox's disk, and the lock that keeps everybody else from it.
    pub upper: Option<(Disk, Arc<SandboxGuard>)>,
}

/// One disk of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The layer it belongs to.
    pub id: LayerId,
    /// The file.
    pub path: PathBuf,
    /// The format, as the store recorded it; never probed.
    pub format: DiskFormat,
    /// Size of the disk, in bytes. In a VHD it is the file without its footer, and this many bytes are what a virtual machine
    /// gets as a raw disk; of a VHDX it is the size that its own metadata says. A verity tree is among them; the file
    /// system knows where it ends itself.
    pub bytes: u64,
    /// The directory in the file system that is the layer's root: empty for a layer's own root, `upper` in a sandbox.
    pub directory: &'static str,
    /// Whether it may only be read.
    pub read_only: bool,
}

impl Disk {
    /// Opens the file: for reading, and for writing too unless the disk is read-only.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(&self) -> std::io::Result<File> {
        File::options()
            .read(true)
            .write(!self.read_only)
            .open(&self.path)
    }
}
