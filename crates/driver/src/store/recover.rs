//! What opening a store finishes: removals in progress, half-made things of the dead.

use std::path::Path;

use super::layers::HIDDEN;
use super::{Inner, share};
use crate::files::Files;
use crate::id::REMOVING;
use crate::lock::Locked;
use crate::vfs::{Entry, FileKind, LockMode, OpenMode};
use crate::{DriverError, LayerId};

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
    make_removals_durable(inner)?;
    for directory in ["tmp", "scratch"] {
        let (gone, failed) = inner.files.sweep(&inner.root.join(directory))?;
        done.deleted
            .extend(gone.iter().map(|name| format!("{directory}/{name}")));
        done.failed
            .extend(failed.iter().map(|e| crate::error::chain(e)));
    }
    for entry in inner.files.list(&inner.root)? {
        let path = inner.root.join(&entry.name);
        let Ok(name) = entry.name.into_string() else {
            continue;
        };
        let result = if let Some(id) = name.strip_suffix(REMOVING) {
            finish_removal(&inner.files, &path).map(|finished| {
                if finished {
                    done.removals_finished.push(id.to_owned());
                }
            })
        } else if LayerId::new(&name).is_ok() && entry.kind == FileKind::Directory {
            half_made(&inner.files, &path).map(|names| {
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
    let (gone, failed) = inner.sweep_all_shared()?;
    done.deleted
        .extend(gone.iter().map(|name| format!("{}/{name}", share::SHARED)));
    done.failed
        .extend(failed.iter().map(|e| crate::error::chain(e)));
    if !done.removals_finished.is_empty() {
        inner.files.sync_dir(&inner.root)?;
    }
    done.removals_finished.sort();
    done.deleted.sort();
    Ok(done)
}

/// A layer's files must not go before its name has gone for good: who renamed it away may have died before that.
fn make_removals_durable(inner: &Inner) -> Result<(), DriverError> {
    let is_removal = |e: &Entry| e.name.to_string_lossy().ends_with(REMOVING);
    let is_hidden = |e: &Entry| e.name.to_string_lossy().starts_with(HIDDEN);
    if inner.files.list(&inner.root)?.iter().any(is_removal)
        || inner.files.list(&inner.tmp())?.iter().any(is_hidden)
    {
        inner.files.sync_dir(&inner.root)?;
    }
    Ok(())
}

/// Deletes a `<id>-removing` whose remover is dead: a live one holds it locked. `Ok(false)` if it is alive.
fn finish_removal(files: &Files, path: &Path) -> Result<bool, DriverError> {
    let Some(file) = files.open_if_there(path)? else {
        return Ok(false);
    };
    match Locked::try_new(file, LockMode::Exclusive).map_err(DriverError::io("locking", path))? {
        Ok(_locked) => files.delete(path).map(|()| true),
        Err(_) => Ok(false),
    }
}

/// Deletes from a layer what an apply left that died between its renames: `diff.split.zst` comes before `layer.vhd`, and
/// means nothing without it.
fn half_made(files: &Files, layer: &Path) -> Result<Vec<String>, DriverError> {
    let split = layer.join("diff.split.zst");
    let disk = layer.join("layer.vhd");
    if files.look(&split)?.is_none() || files.look(&disk)?.is_some() {
        return Ok(Vec::new());
    }
    // An apply holds the layer while it renames.
    let locked = files.try_lock(layer, OpenMode::Read, LockMode::Exclusive)?;
    if locked.is_err() || files.look(&disk)?.is_some() {
        return Ok(Vec::new());
    }
    files.delete(&split)?;
    files.sync_dir(layer)?;
    Ok(vec!["diff.split.zst".into()])
}
