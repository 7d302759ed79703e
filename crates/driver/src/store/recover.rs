//! What opening a store finishes: removals in progress, half-made things of the dead.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::Inner;
use crate::id::REMOVING;
use crate::lock::{Locked, Mode};
use crate::{DriverError, LayerId, files};

/// What opening a store, or a cleanup, did. Doing it again does nothing more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Removals that were finished: the layers' ids.
    pub removals_finished: Vec<String>,
    /// Half-made things that were deleted, as paths within the data root.
    pub deleted: Vec<String>,
    /// What could not be done, and why. It does not keep the store from serving, and is tried again the next time.
    pub failed: Vec<String>,
}

impl Recovery {
    /// Whether there was nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Finishes and deletes. Only what no live process holds is touched, so this runs beside other processes.
pub(super) fn recover(inner: &Inner) -> Result<Recovery, DriverError> {
    let mut done = Recovery::default();
    for directory in ["tmp", "scratch"] {
        let (gone, failed) = files::sweep(&inner.root.join(directory))?;
        done.deleted
            .extend(gone.iter().map(|name| format!("{directory}/{name}")));
        done.failed
            .extend(failed.iter().map(|e| crate::error::chain(e)));
    }
    let failed = || DriverError::io("listing", &inner.root);
    for entry in fs::read_dir(&inner.root).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = entry.path();
        let result = if let Some(id) = name.strip_suffix(REMOVING) {
            finish_removal(&path).map(|finished| {
                if finished {
                    done.removals_finished.push(id.to_owned());
                }
            })
        } else if LayerId::new(&name).is_ok() && entry.file_type().is_ok_and(|t| t.is_dir()) {
            half_made(&path).map(|names| {
                done.deleted
                    .extend(names.iter().map(|n| format!("{name}/{n}")));
            })
        } else {
            Ok(())
        };
        if let Err(e) = result {
            done.failed.push(crate::error::chain(&e));
        }
    }
    if !done.removals_finished.is_empty() {
        files::sync_dir(&inner.root)?;
    }
    done.removals_finished.sort();
    done.deleted.sort();
    Ok(done)
}

/// Deletes a `<id>-removing` whose remover is dead: a live one holds it locked. `Ok(false)` if it is alive.
fn finish_removal(path: &Path) -> Result<bool, DriverError> {
    match File::open(path) {
        Ok(file) => {
            if Locked::try_new(file, Mode::Exclusive)
                .map_err(DriverError::io("locking", path))?
                .is_err()
            {
                return Ok(false);
            }
            files::delete(path)?;
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(DriverError::io("opening", path)(e)),
    }
}

/// Deletes from a layer what an apply left that died between its renames: `diff.split.zst` comes before `layer.vhd`, and
/// means nothing without it.
fn half_made(layer: &Path) -> Result<Vec<String>, DriverError> {
    let split = layer.join("diff.split.zst");
    let is_there = |path: &Path| match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(DriverError::io("reading", path)(e)),
    };
    if !is_there(&split)? || is_there(&layer.join("layer.vhd"))? {
        return Ok(Vec::new());
    }
    // An apply holds the layer while it renames.
    let directory = File::open(layer).map_err(DriverError::io("opening", layer))?;
    let locked =
        Locked::try_new(directory, Mode::Exclusive).map_err(DriverError::io("locking", layer))?;
    if locked.is_err() || is_there(&layer.join("layer.vhd"))? {
        return Ok(Vec::new());
    }
    files::delete(&split)?;
    files::sync_dir(layer)?;
    Ok(vec!["diff.split.zst".into()])
}
