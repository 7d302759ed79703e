//! The graph driver: a store, and something that mounts its layers.

mod live;
#[cfg(test)]
mod schedules;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError};
#[cfg(not(test))]
use std::sync::{Mutex, MutexGuard};

use serde::Serialize;
// Tests choose in which order threads get the locks.
#[cfg(test)]
use shuttle::sync::{Mutex, MutexGuard};

use crate::mounter::{MountError, MountRequest, Mounter, MounterStatus};
use crate::record::Kind;
use crate::store::{Recovery, Reference, Removed, SandboxGuard, Store, StoreStatus};
use crate::{DriverError, LayerId};

/// The driver's name, as it is reported and registered.
pub const NAME: &str = "lcow";

/// A store together with a [`Mounter`]: what front ends talk to.
///
/// # Handles
/// ```text
///              get (first)                first use of any handle
///   (nothing) ────────────► referenced ─────────────────────────► mounted
///       ▲                       │  ▲ get: + 1, put: - 1              │  ▲ get: + 1, put: - 1
///       │                       ▼                                    ▼
///       └──────────────── last put: unmounted if it was mounted, reference released
/// ```
/// The count is of this process. Between processes the reference itself counts: a lock that vanishes with its holder.
pub struct GraphDriver<M: Mounter>(Arc<Shared<M>>);

impl<M: Mounter> Clone for GraphDriver<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Mounter> fmt::Debug for GraphDriver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GraphDriver")
            .field("store", &self.0.store)
            .finish_non_exhaustive()
    }
}

struct Shared<M: Mounter> {
    store: Store,
    mounter: M,
    // Held for look-ups only; a mount or unmount holds its own entry's lock.
    entries: Mutex<HashMap<LayerId, Arc<Entry<M>>>>,
}

/// The handles on one layer.
struct Entry<M: Mounter> {
    id: LayerId,
    state: Mutex<State<M>>,
    /// One copy at a time: a file system is frozen once.
    copying: Mutex<()>,
}

struct State<M: Mounter> {
    handles: usize,
    reference: Option<Reference>,
    mounted: Option<Arc<M::Mounted>>,
    /// Keeps everybody else from the mounted sandbox, whatever the mounter does with its own share of it.
    sandbox: Option<Arc<SandboxGuard>>,
    /// The last handle was put: whoever waited for the lock looks for a new entry.
    gone: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What [`GraphDriver::status`] tells.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// `lcow`.
    pub driver: &'static str,
    /// The program's version.
    pub version: &'static str,
    /// `safe` or `global`.
    pub mode: &'static str,
    /// The mounter's name.
    pub mounter: &'static str,
    /// What the mounter works with, and the virtual machines that run.
    pub mounting: MounterStatus,
    /// Layers with handles, and how many.
    pub references: Vec<(LayerId, usize)>,
    /// The data root.
    #[serde(flatten)]
    pub store: StoreStatus,
}

/// What [`GraphDriver::cleanup`] did, and could not do.
#[derive(Debug)]
pub struct Cleanup {
    /// Removals and half-made things.
    pub store: Recovery,
    /// What the mounter found of dead processes and took away.
    pub reaped: Vec<String>,
    /// What this driver had mounted, and unmounted now.
    pub stopped: Vec<LayerId>,
    /// What it could not unmount; nothing of it stays mounted all the same.
    pub not_stopped: Vec<(LayerId, MountError)>,
    /// The mounter's failure to look for what dead processes left, if it had one.
    pub failed: Option<MountError>,
}

impl<M: Mounter> GraphDriver<M> {
    /// A driver over an open store.
    pub fn new(store: Store, mounter: M) -> Self {
        Self(Arc::new(Shared {
            store,
            mounter,
            entries: Mutex::default(),
        }))
    }

    /// The store, with all operations that mount nothing.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The mounter.
    #[must_use]
    pub fn mounter(&self) -> &M {
        &self.0.mounter
    }

    /// Takes a handle on a layer. Nothing is mounted, and no VM started, until [`Handle::mounted`] is first called.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::Io`].
    pub fn get(&self, id: &LayerId, label: Option<&str>) -> Result<Handle<M>, DriverError> {
        loop {
            let entry = Arc::clone(lock(&self.0.entries).entry(id.clone()).or_insert_with(|| {
                Arc::new(Entry {
                    id: id.clone(),
                    state: Mutex::new(State {
                        handles: 0,
                        reference: None,
                        mounted: None,
                        sandbox: None,
                        gone: false,
                    }),
                    copying: Mutex::default(),
                })
            }));
            let mut state = lock(&entry.state);
            if state.gone {
                continue;
            }
            if state.reference.is_none() {
                match self.0.store.reference(id) {
                    Ok(reference) => state.reference = Some(reference),
                    Err(e) => {
                        state.gone = true;
                        self.0.forget(&entry);
                        return Err(e);
                    }
                }
            }
            state.handles += 1;
            drop(state);
            return Ok(Handle {
                shared: Arc::clone(&self.0),
                entry: Some(entry),
                label: label.map(str::to_owned),
            });
        }
    }

    /// Gives a handle back. The last one of a layer unmounts it.
    ///
    /// # Errors
    /// [`DriverError::Mount`] if unmounting failed; the handle and the reference are released all the same.
    pub fn put(&self, mut handle: Handle<M>) -> Result<(), DriverError> {
        handle.release()
    }

    /// Layers with handles of this process, and how many each has, sorted.
    #[must_use]
    pub fn references(&self) -> Vec<(LayerId, usize)> {
        let entries: Vec<_> = lock(&self.0.entries).values().cloned().collect();
        let mut counts: Vec<_> = entries
            .iter()
            .map(|e| (e.id.clone(), lock(&e.state).handles))
            .filter(|(_, n)| *n > 0)
            .collect();
        counts.sort();
        counts
    }

    /// Removes a layer. With `force`, what runs on it is stopped first; handles on it, and children, keep it all the same.
    ///
    /// # Errors
    /// As [`Store::remove`]; [`DriverError::Mount`] if it can't be stopped.
    pub fn remove(&self, id: &LayerId, force: bool) -> Result<Removed, DriverError> {
        if force {
            self.0
                .mounter
                .force_stop(id)
                .map_err(|source| DriverError::Mount {
                    operation: "stopping",
                    id: id.clone(),
                    source,
                })?;
        }
        self.0.store.remove(id)
    }

    /// Unmounts all that is mounted, finishes removals, deletes half-made things, and takes away what dead processes left
    /// mounted or running. Every step is tried whatever became of the others. Handles stay, and mount again when they are
    /// used again.
    ///
    /// # Errors
    /// [`DriverError::Io`] if the data root can't be listed.
    pub fn cleanup(&self) -> Result<Cleanup, DriverError> {
        let (mut stopped, mut not_stopped) = (Vec::new(), Vec::new());
        let mut entries: Vec<_> = lock(&self.0.entries).values().cloned().collect();
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        for entry in entries {
            let mut state = lock(&entry.state);
            let Some(mounted) = state.mounted.take() else {
                continue;
            };
            match self.0.mounter.unmount(&entry.id, &mounted) {
                Ok(()) => stopped.push(entry.id.clone()),
                Err(e) => not_stopped.push((entry.id.clone(), e)),
            }
            state.sandbox = None;
        }
        let (reaped, failed) = match self.0.mounter.recover() {
            Ok(reaped) => (reaped, None),
            Err(e) => (Vec::new(), Some(e)),
        };
        Ok(Cleanup {
            store: self.0.store.cleanup()?,
            reaped,
            stopped,
            not_stopped,
            failed,
        })
    }

    /// The driver's state.
    ///
    /// # Errors
    /// As [`Store::status`].
    pub fn status(&self) -> Result<Status, DriverError> {
        let options = self.0.store.options();
        Ok(Status {
            driver: NAME,
            version: env!("CARGO_PKG_VERSION"),
            mode: if options.global_mode {
                "global"
            } else {
                "safe"
            },
            mounter: self.0.mounter.name(),
            mounting: self.0.mounter.status(),
            references: self.references(),
            store: self.0.store.status()?,
        })
    }
}

impl<M: Mounter> Shared<M> {
    fn forget(&self, entry: &Arc<Entry<M>>) {
        let mut entries = lock(&self.entries);
        if entries
            .get(&entry.id)
            .is_some_and(|e| Arc::ptr_eq(e, entry))
        {
            entries.remove(&entry.id);
        }
    }

    fn mount(&self, id: &LayerId, label: Option<&str>) -> Result<MountedSandbox<M>, DriverError> {
        let mut lowers = Vec::new();
        let mut upper = None;
        if self.store.metadata(id)?.kind == Kind::Sandbox {
            let guard = Arc::new(self.store.lock_sandbox(id)?);
            upper = self.store.disk(id)?.map(|disk| (disk, guard));
        } else {
            lowers.extend(self.store.disk(id)?);
        }
        for parent in self.store.chain(id)? {
            let Some(disk) = self.store.disk(&parent)? else {
                continue;
            };
            if !disk.read_only {
                self.store.settle(&disk)?;
            }
            // Read from here on, even if it is a sandbox itself.
            lowers.push(crate::Disk {
                read_only: true,
                ..disk
            });
        }
        let request = MountRequest {
            id: id.clone(),
            label: label.map(str::to_owned),
            lowers,
            upper,
        };
        let mounted = self.mounter.mount(&request);
        let mounted = mounted.map_err(|source| DriverError::Mount {
            operation: "mounting",
            id: id.clone(),
            source,
        })?;
        Ok((mounted, request.upper.map(|(_, guard)| guard)))
    }
}

/// What was mounted, and the lock on the sandbox in it.
type MountedSandbox<M> = (<M as Mounter>::Mounted, Option<Arc<SandboxGuard>>);

/// One counted use of a layer. Give it back with [`GraphDriver::put`], which tells about failures; dropping it does the same
/// and logs them.
pub struct Handle<M: Mounter> {
    shared: Arc<Shared<M>>,
    entry: Option<Arc<Entry<M>>>,
    label: Option<String>,
}

impl<M: Mounter> fmt::Debug for Handle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.entry.as_ref().map(|e| &e.id);
        f.debug_struct("Handle")
            .field("id", &id)
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

impl<M: Mounter> Handle<M> {
    /// What is mounted: made now if this is the first use of the layer, else what the other handles have. A failure leaves
    /// nothing mounted, and the next call tries again.
    ///
    /// # Errors
    /// [`DriverError::Mount`], [`DriverError::InUse`] if the sandbox runs elsewhere, and as [`Store::disks`].
    pub fn mounted(&self) -> Result<Arc<M::Mounted>, DriverError> {
        let Some(entry) = &self.entry else {
            // Only `release` takes the entry, and it has the handle to itself.
            return Err(DriverError::Cancelled);
        };
        let mut state = lock(&entry.state);
        if let Some(mounted) = &state.mounted {
            return Ok(Arc::clone(mounted));
        }
        let (mounted, sandbox) = self.shared.mount(&entry.id, self.label.as_deref())?;
        let mounted = Arc::new(mounted);
        state.sandbox = sandbox;
        state.mounted = Some(Arc::clone(&mounted));
        Ok(mounted)
    }

    fn release(&mut self) -> Result<(), DriverError> {
        let Some(entry) = self.entry.take() else {
            return Ok(());
        };
        let mut state = lock(&entry.state);
        state.handles -= 1;
        if state.handles > 0 {
            return Ok(());
        }
        state.gone = true;
        // Unmounted under the entry's lock: a new `get` of this layer waits, so that it never mounts a disk still in use.
        let result = match state.mounted.take() {
            Some(mounted) => self.shared.mounter.unmount(&entry.id, &mounted),
            None => Ok(()),
        };
        state.sandbox = None;
        state.reference = None;
        self.shared.forget(&entry);
        result.map_err(|source| DriverError::Mount {
            operation: "unmounting",
            id: entry.id.clone(),
            source,
        })
    }
}

impl<M: Mounter> Drop for Handle<M> {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!(error = crate::error::chain(&error), "a handle was dropped");
        }
    }
}
