//! What a store holds, in numbers.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Access, Recovery, Store, recover};
use crate::files::Files;
use crate::record::Kind;
use crate::vfs::Metadata;
use crate::{DriverError, LayerId};

/// A cached disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CacheEntry {
    /// Its file name.
    pub name: String,
    /// Bytes allocated.
    pub allocated: u64,
}

/// What a store holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreStatus {
    /// The data root.
    pub root: PathBuf,
    /// Whether this process has it for itself.
    pub exclusive: bool,
    /// Read-only layers.
    pub layers: usize,
    /// Sandboxes.
    pub sandboxes: usize,
    /// Layers that nothing was applied to.
    pub empty: usize,
    /// Layers that could not be looked at.
    pub damaged: Vec<LayerId>,
    /// Bytes that all files of all layers take on disk. A file shared by several layers counts once.
    pub allocated: u64,
    /// Bytes that they seem to take.
    pub apparent: u64,
    /// Cached blank disks.
    pub cache: Vec<CacheEntry>,
}

impl Store {
    /// Counts layers and bytes.
    ///
    /// # Errors
    /// [`DriverError::Io`] if the data root can't be listed.
    pub fn status(&self) -> Result<StoreStatus, DriverError> {
        let mut status = StoreStatus {
            root: self.root().to_owned(),
            exclusive: self.0.access == Access::Exclusive,
            layers: 0,
            sandboxes: 0,
            empty: 0,
            damaged: Vec::new(),
            allocated: 0,
            apparent: 0,
            cache: Vec::new(),
        };
        let mut seen = HashSet::new();
        for id in self.layers()? {
            match self.0.kind(&id) {
                Ok((Kind::Layer, _)) => status.layers += 1,
                Ok((Kind::Sandbox, _)) => status.sandboxes += 1,
                Ok((Kind::Empty, _)) => status.empty += 1,
                // Removed meanwhile.
                Err(DriverError::NotFound { .. }) => continue,
                Err(_) => {
                    status.damaged.push(id);
                    continue;
                }
            }
            each_file(&self.0.files, &self.0.path(&id), |_, file| {
                if seen.insert(file.identity) {
                    status.allocated += file.allocated;
                    status.apparent += file.len;
                }
            });
        }
        each_file(&self.0.files, &self.0.root.join("cache"), |name, file| {
            status.cache.push(CacheEntry {
                name,
                allocated: file.allocated,
            });
        });
        status.cache.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(status)
    }

    /// Finishes removals and deletes half-made things of dead processes, as opening the store does.
    ///
    /// # Errors
    /// [`DriverError::Io`] if the data root can't be listed; what else can't be done is in the result.
    pub fn cleanup(&self) -> Result<Recovery, DriverError> {
        self.writable()?;
        recover::recover(&self.0)
    }
}

/// Visits the files in a directory. What vanishes meanwhile is passed over: this only counts.
fn each_file(files: &Files, dir: &Path, mut visit: impl FnMut(String, &Metadata)) {
    for entry in files.list(dir).unwrap_or_default() {
        if let Ok(Some(metadata)) = files.look(&dir.join(&entry.name))
            && metadata.is_file()
        {
            visit(entry.name.to_string_lossy().into_owned(), &metadata);
        }
    }
}
