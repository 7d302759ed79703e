//! Files of the data root that others keep: images, containers.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::Store;
use crate::DriverError;
use crate::lock::FileLock;

impl Store {
    /// The bytes of a file of the data root; `None` if it is not there.
    ///
    /// # Errors
    /// [`DriverError::Corrupt`] if it is longer than `limit` bytes, [`DriverError::Io`].
    pub fn read_file(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, DriverError> {
        self.0.files.read_up_to(path, limit)
    }

    /// Whether there is a file or a directory.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    pub fn is_there(&self, path: &Path) -> Result<bool, DriverError> {
        Ok(self.0.files.look(path)?.is_some())
    }

    /// The names in a directory of the data root, in no order.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    pub fn list_dir(&self, path: &Path) -> Result<Vec<OsString>, DriverError> {
        let entries = self.0.files.list(path)?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    /// Makes a directory of the data root, if it is not there, in one that is there, and makes its name durable in any case: who made
    /// it may have died before that.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    pub fn make_dir(&self, path: &Path) -> Result<(), DriverError> {
        self.writable()?;
        self.0.files.ensure_dir(path)?;
        match path.parent() {
            Some(parent) => self.sync_dir(parent),
            None => Ok(()),
        }
    }

    /// Makes the names in a directory durable: whoever put them there may have died before that.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    pub fn sync_dir(&self, path: &Path) -> Result<(), DriverError> {
        self.0.files.sync_dir(path)
    }

    /// Locks a file of the data root, made if it is not there, against all other threads and processes.
    ///
    /// # Errors
    /// [`DriverError::Timeout`] if it is not free in time, [`DriverError::Io`].
    pub fn lock_file(&self, path: &Path, patience: Duration) -> Result<FileLock, DriverError> {
        FileLock::take(&self.0.files, path, patience)
    }

    /// Replaces a file of the data root durably: after a crash it holds the old or the new bytes.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    pub fn replace_file(&self, path: &Path, bytes: &[u8]) -> Result<(), DriverError> {
        let temp = self.temp_dir("file")?;
        self.0.files.replace(&temp, path, bytes)
    }

    /// Deletes a file of the data root durably. Not an error if it is gone already.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    pub fn remove_file(&self, path: &Path) -> Result<(), DriverError> {
        self.writable()?;
        self.0.files.remove(path)
    }
}
