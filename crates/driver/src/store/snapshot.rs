//! Copies of sandboxes that are being written to.

use std::sync::Arc;

use super::Store;
use super::read::{FileGetter, OpenLayer};
use super::sandbox::SandboxGuard;
use crate::files::TempDir;
use crate::vfs::OpenMode;
use crate::{Disk, DriverError};

/// A copy of a sandbox as it was at one moment, to be read while the sandbox itself is written to. Dropping it deletes it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    layer: Arc<OpenLayer>,
    // Last: deleted when it is closed.
    _temp: TempDir,
}

impl Snapshot {
    pub(super) fn layer(&self) -> &Arc<OpenLayer> {
        &self.layer
    }

    /// Gives access to its files.
    pub(crate) fn getter(self) -> Result<FileGetter, DriverError> {
        FileGetter::new(Arc::clone(&self.layer), Some(Arc::new(self)))
    }
}

/// A copy that was made while the sandbox was frozen, and not yet looked at.
#[derive(Debug)]
pub(crate) struct Copied {
    disk: Disk,
    temp: TempDir,
}

impl Store {
    /// Copies a sandbox that its holder lets nobody write to just now: by reflink where the file system can, else its data.
    pub(crate) fn copy_sandbox(&self, guard: &SandboxGuard) -> Result<Copied, DriverError> {
        let id = guard.id();
        let disk = self
            .disk(id)?
            .ok_or_else(|| DriverError::NotFound { id: id.clone() })?;
        let temp = self.temp_dir("snapshot")?;
        let path = temp.path().join("sandbox");
        // Opened anew: the holder's own open file has one cursor for all.
        let from = self.0.files.open(&disk.path, OpenMode::Read)?;
        self.0
            .files
            .create_new(&path)?
            .become_clone_of(&*from)
            .map_err(DriverError::io("copying to", &path))?;
        let disk = Disk {
            path,
            read_only: true,
            ..disk
        };
        Ok(Copied { disk, temp })
    }

    /// Opens a copy for reading.
    pub(crate) fn open_copy(&self, copied: Copied) -> Result<Snapshot, DriverError> {
        let reference = self.reference(&copied.disk.id)?;
        let layer = self.open_file_system(copied.disk, Some(reference), None)?;
        Ok(Snapshot {
            layer: Arc::new(layer),
            _temp: copied.temp,
        })
    }
}
