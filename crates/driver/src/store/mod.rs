//! The data root: opening it, its parts, and who may do what at the same time.

mod apply;
mod chains;
mod compare;
mod disk_file;
mod documents;
mod layers;
mod quarantine;
mod read;
mod recover;
mod sandbox;
mod share;
mod snapshot;
mod space;
mod status;
mod verify;
mod view;

pub use apply::{Applied, ApplyRequest, Input, Placed, Staged};
pub use compare::Chain;
pub use disk_file::LayerDisk;
pub use layers::{Created, Metadata, Reference, Removed};
pub use quarantine::{PutAside, Repair};
pub(crate) use read::layer_kind;
pub use read::{Against, DiffSummary, FileGetter, LayerFile, LayerFs};
pub use recover::Recovery;
pub use sandbox::SandboxGuard;
pub(crate) use snapshot::{Copied, Snapshot};
pub use space::{LayerSpace, Space};
pub use status::{CacheEntry, StoreStatus};
pub use verify::{Finding, VerifyReport};
pub use view::ChainFile;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::files::{Files, TempDir};
use crate::isolate::Isolation;
use crate::lock::{CommitGuard, RootLock};
use crate::record::{KNOWN_INCOMPAT, KNOWN_RO_COMPAT, LAYOUT, StoreRecord};
use crate::vfs::{Host, LockMode, Vfs};
use crate::{DriverError, LayerId, Options};

/// Who else may have the data root open at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Other processes that also share it: commands.
    #[default]
    Shared,
    /// Nobody: a daemon.
    Exclusive,
}

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Who else may have it open.
    pub access: Access,
    /// The `lcow.*` options.
    pub options: Options,
    /// Where tars are converted.
    pub isolation: Isolation,
    /// The file system that the data root is on. With any but the host's, tars are converted in the same process.
    pub vfs: Arc<dyn Vfs>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            access: Access::default(),
            options: Options::default(),
            isolation: Isolation::default(),
            vfs: Arc::new(Host),
        }
    }
}

/// An open data root. Clones are the same store; all methods may be called from any number of threads.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    files: Files,
    options: Options,
    isolation: Isolation,
    access: Access,
    /// Features that keep this version from writing, if there are any.
    read_only: Option<String>,
    recovery: Recovery,
    /// Serialises this process's threads before the commit lock serialises processes.
    commit: Mutex<()>,
    /// Serialises the making of blank sandboxes, so that threads don't all make the same one.
    blanks: Mutex<()>,
    chains: chains::Cache,
    // Last: released when all else is gone.
    _lock: RootLock,
}

impl Store {
    /// Opens a data root, making it if it is not there, and finishes what dead processes left undone.
    ///
    /// # Errors
    /// [`DriverError::Busy`] if another process owns it, [`DriverError::NewerStore`] if a newer version wrote it,
    /// [`DriverError::Corrupt`] if `store.json` can't be understood, [`DriverError::Io`].
    pub fn open(root: &Path, open: OpenOptions) -> Result<Self, DriverError> {
        let files = Files::new(open.vfs);
        files.ensure_dirs(root)?;
        let root = files.canonicalize(root)?;
        let mode = match open.access {
            Access::Shared => LockMode::Shared,
            Access::Exclusive => LockMode::Exclusive,
        };
        let lock = RootLock::take(&files, &root, mode)?;
        for directory in ["tmp", "cache", "scratch", "images", "containers"] {
            files.ensure_dir(&root.join(directory))?;
        }
        let commit = Mutex::new(());
        let read_only = check_version(&files, &root, &commit)?;
        let mut inner = Inner {
            root,
            files,
            options: open.options,
            isolation: open.isolation,
            access: open.access,
            read_only,
            recovery: Recovery::default(),
            commit,
            blanks: Mutex::new(()),
            chains: chains::Cache::default(),
            _lock: lock,
        };
        if inner.read_only.is_none() {
            inner.recovery = recover::recover(&inner)?;
        }
        Ok(Self(Arc::new(inner)))
    }

    /// The data root's absolute path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// The options it was opened with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// What was finished or deleted on opening.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.0.recovery
    }

    /// `images/`: an OCI layout whose layer blobs live as disks. The store itself never looks into it.
    #[must_use]
    pub fn images_dir(&self) -> PathBuf {
        self.0.root.join("images")
    }

    /// `containers/`: one record for each container. The store itself never looks into it.
    #[must_use]
    pub fn containers_dir(&self) -> PathBuf {
        self.0.root.join("containers")
    }

    /// `uvm/`: what utility VMs keep. Made when first asked for.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    pub fn uvm_dir(&self) -> Result<PathBuf, DriverError> {
        let path = self.0.root.join("uvm");
        self.0.files.ensure_dir(&path)?;
        Ok(path)
    }

    /// A directory under `tmp/` for half-made things. It is deleted when dropped, and by recovery if this process dies.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    pub fn temp_dir(&self, prefix: &str) -> Result<TempDir, DriverError> {
        self.writable()?;
        TempDir::new(&self.0.files, &self.0.tmp(), prefix)
    }

    /// Serialises short commits (a rename into place, an index that is read, changed and replaced) between all threads
    /// and processes. Hold it for milliseconds, never across a conversion or a VM's start, and don't call the store's
    /// changing methods while holding it: they take it themselves.
    ///
    /// # Errors
    /// [`DriverError::Timeout`] after a minute, [`DriverError::Io`].
    pub fn commit_lock(&self) -> Result<CommitGuard<'_>, DriverError> {
        self.0.commit_lock()
    }

    fn writable(&self) -> Result<(), DriverError> {
        match &self.0.read_only {
            Some(found) => Err(DriverError::ReadOnlyStore {
                root: self.0.root.clone(),
                found: found.clone(),
            }),
            None => Ok(()),
        }
    }
}

impl Inner {
    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn path(&self, id: &LayerId) -> PathBuf {
        self.root.join(id.as_str())
    }

    fn commit_lock(&self) -> Result<CommitGuard<'_>, DriverError> {
        CommitGuard::take(&self.files, &self.tmp(), &self.commit)
    }
}

/// Holds `store.json` against what this version knows; writes it if it is missing. A data root of the original driver has
/// none, and the same layout otherwise. Gives the features that allow reading only.
fn check_version(
    files: &Files,
    root: &Path,
    commit: &Mutex<()>,
) -> Result<Option<String>, DriverError> {
    let path = root.join("store.json");
    let bytes = match files.read_small(&path)? {
        Some(bytes) => bytes,
        None => {
            let tmp = root.join("tmp");
            let _guard = CommitGuard::take(files, &tmp, commit)?;
            match files.read_small(&path)? {
                // Another process came first.
                Some(bytes) => bytes,
                None => {
                    // Once it is there, all that it vouches for is on stable storage: the root and its directories.
                    if let Some(parent) = root.parent() {
                        files.sync_dir(parent)?;
                    }
                    files.sync_dir(root)?;
                    let bytes = crate::record::to_bytes(&path, &StoreRecord::default())?;
                    files.replace(&TempDir::new(files, &tmp, "store")?, &path, &bytes)?;
                    bytes
                }
            }
        }
    };
    // The version is looked at first: a newer layout's file need not make sense otherwise.
    let layout = serde_json::from_slice::<serde_json::Value>(&bytes)
        .map_err(|e| DriverError::corrupt(&path, e))?
        .get("layout")
        .and_then(serde_json::Value::as_u64)
        .ok_or_else(|| DriverError::corrupt(&path, "it gives no layout version"))?;
    let newer = |found| DriverError::NewerStore {
        root: root.to_owned(),
        found,
    };
    if layout > u64::from(LAYOUT) {
        return Err(newer(format!(
            "layout {layout}, and this version knows layouts up to {LAYOUT}"
        )));
    }
    let record: StoreRecord =
        serde_json::from_slice(&bytes).map_err(|e| DriverError::corrupt(&path, e))?;
    if let Some(found) = unknown(&record.incompat, KNOWN_INCOMPAT) {
        return Err(newer(found));
    }
    Ok(unknown(&record.ro_compat, KNOWN_RO_COMPAT))
}

fn unknown(features: &[String], known: &[&str]) -> Option<String> {
    let unknown: Vec<_> = features
        .iter()
        .filter(|f| !known.contains(&f.as_str()))
        .map(String::as_str)
        .collect();
    (!unknown.is_empty()).then(|| format!("the features {}", unknown.join(", ")))
}
