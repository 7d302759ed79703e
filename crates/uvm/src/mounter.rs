//! Layers of a store made visible in utility VMs: a machine of its own for each layer or sandbox in use.
//!
//! What a layer holds is looked at by nobody but the machine that was started for it, so that a hostile one reaches no other.

use crate::vmm::Qemu;
use crate::{DiskId, DiskSpec, Frozen, Lower, Machine, MachineConfig, UnionId, UvmError};
use crate::{accel, boot};
use lcow_driver::{Disk, LayerId, MachineStatus, MountError, MountRequest, Mounter, MounterStatus};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How long a sandbox may be frozen while its file is copied. Whatever writes to it waits meanwhile.
const FREEZE_LIMIT: Duration = Duration::from_secs(60);

impl lcow_driver::Frozen for Frozen {
    fn thaw(self: Box<Self>) -> Result<(), MountError> {
        Ok((*self).thaw()?)
    }
}

/// The [`Mounter`] that starts utility VMs.
#[derive(Debug)]
pub struct UtilityVms {
    config: MachineConfig,
    /// Machines by what they were started for, to end them by force. Whoever uses them owns them.
    running: Mutex<BTreeMap<LayerId, Weak<Machine>>>,
}

impl UtilityVms {
    /// Machines of this configuration, started on demand.
    #[must_use]
    pub fn new(config: MachineConfig) -> Self {
        Self {
            config,
            running: Mutex::default(),
        }
    }

    /// The configuration of the machines.
    #[must_use]
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<LayerId, Weak<Machine>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, request: &MountRequest) -> Result<MountedLayer, UvmError> {
        let mut specs = Vec::with_capacity(request.lowers.len() + 1);
        for disk in &request.lowers {
            specs.push(spec(disk, disk.open())?);
        }
        if let Some((disk, guard)) = &request.upper {
            // The very open file that is locked: as long as the machine has it, nobody else gets the sandbox.
            specs.push(spec(disk, guard.file().try_clone())?);
        }
        let machine = Arc::new(Machine::start(&self.config)?);
        self.running()
            .insert(request.id.clone(), Arc::downgrade(&machine));
        let disks = machine.attach(specs)?;
        let lowers = request
            .lowers
            .iter()
            .zip(&disks)
            .map(|(layer, disk)| Lower {
                disk: *disk,
                sandbox: !layer.directory.is_empty(),
            })
            .collect();
        // They follow the lowers.
        let upper = disks.get(request.lowers.len()).copied();
        let root = machine.container_root_of(lowers, upper)?;
        Ok(MountedLayer {
            machine,
            root,
            disks,
            upper,
        })
    }
}

fn spec(disk: &Disk, file: std::io::Result<File>) -> Result<DiskSpec, UvmError> {
    let file = file.map_err(UvmError::io("open", &disk.path))?;
    Ok(DiskSpec::of(disk, file))
}

/// A layer or sandbox in its machine.
#[derive(Debug)]
pub struct MountedLayer {
    machine: Arc<Machine>,
    root: UnionId,
    disks: Vec<DiskId>,
    upper: Option<DiskId>,
}

impl MountedLayer {
    /// The machine, which belongs to this layer alone.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The layer's files, as the root directory of processes.
    #[must_use]
    pub fn root(&self) -> UnionId {
        self.root
    }

    /// The sandbox's disk, if it is one.
    #[must_use]
    pub fn upper(&self) -> Option<DiskId> {
        self.upper
    }
}

impl Mounter for UtilityVms {
    type Mounted = MountedLayer;

    fn name(&self) -> &'static str {
        "uvm"
    }

    fn mount(&self, request: &MountRequest) -> Result<MountedLayer, MountError> {
        // On failure the machine is dropped, which ends it, and with it everything attached.
        let mounted = self.start(request);
        if mounted.is_err() {
            self.running().remove(&request.id);
        }
        Ok(mounted?)
    }

    fn unmount(&self, id: &LayerId, mounted: &MountedLayer) -> Result<(), MountError> {
        let forget = || {
            let mut running = self.running();
            let ours = Arc::downgrade(&mounted.machine);
            if running.get(id).is_some_and(|other| other.ptr_eq(&ours)) {
                running.remove(id);
            }
        };
        if mounted.machine.is_off() {
            // It was stopped by force: what that lost is known to whoever did it.
            forget();
            return Ok(());
        }
        let machine = &mounted.machine;
        let steps = [
            machine.remove_union(mounted.root),
            machine.detach(&mounted.disks),
            machine.power_off(),
        ];
        // Whatever came of them, nothing of the machine stays.
        machine.kill();
        forget();
        let mut failed = steps.into_iter().filter_map(Result::err);
        match failed.next() {
            None => Ok(()),
            Some(first) => Err(first.followed_by(failed.collect()).into()),
        }
    }

    fn freeze(
        &self,
        id: &LayerId,
        mounted: &MountedLayer,
    ) -> Result<Box<dyn lcow_driver::Frozen>, MountError> {
        let upper = mounted
            .upper
            .ok_or_else(|| format!("{id} is mounted read-only"))?;
        Ok(Box::new(mounted.machine.freeze(upper, FREEZE_LIMIT)?))
    }

    fn status(&self) -> MounterStatus {
        let accelerator = accel::outlook(self.config.accel, &self.config.state_dir);
        let (kernel, problem) = match boot::kernel_path(&self.config) {
            Ok(kernel) => (Some(kernel), Qemu::find().err()),
            Err(error) => (None, Some(error)),
        };
        let machines: Vec<_> = {
            let running = self.running();
            let live = running
                .iter()
                .filter_map(|(id, machine)| Some((id.clone(), machine.upgrade()?)));
            live.filter(|(_, machine)| machine.ended().is_none())
                .collect()
        };
        let machines = machines.into_iter().map(|(id, machine)| {
            let statistics = machine.statistics().ok();
            MachineStatus {
                id,
                name: machine.name().to_owned(),
                pid: machine.process_id(),
                uptime: statistics.map(|s| s.uptime_s),
                disks: statistics.map_or(0, |s| s.disks),
                unions: statistics.map_or(0, |s| s.unions),
                processes: statistics.map_or(0, |s| s.processes),
            }
        });
        MounterStatus {
            accelerator: accelerator.0.map(|a| a.to_string()),
            accelerator_reason: Some(accelerator.1),
            kernel,
            problem: problem.map(|error| error.to_string()),
            machines: machines.collect(),
        }
    }

    fn force_stop(&self, id: &LayerId) -> Result<(), MountError> {
        let machine = self.running().get(id).and_then(Weak::upgrade);
        if let Some(machine) = machine {
            machine.kill();
        }
        Ok(())
    }

    // `recover` has nothing to do: a machine ends with the process that started it, however that one ends.
}
