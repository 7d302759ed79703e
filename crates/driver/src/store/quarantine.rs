//! Damaged layers are put aside, never deleted: what is in them may still be wanted.

use std::path::PathBuf;

use super::Store;
use super::share::SHARED;
use crate::lock::Locked;
use crate::vfs::{LockMode, OpenMode};
use crate::{Cancel, DriverError, LayerId};

/// The directory of what was put aside.
pub(super) const QUARANTINE: &str = "quarantine";

impl Store {
    /// Puts a layer aside, whole: its directory becomes `quarantine/<id>`, or `quarantine/<id>.1` and so on if there is one
    /// already. Layers built on it stay where they are, and can be used again when there is a layer of that id and chain again.
    ///
    /// Gives where it is now.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::InUse`], [`DriverError::Io`].
    pub fn quarantine(&self, id: &LayerId) -> Result<PathBuf, DriverError> {
        self.writable()?;
        let files = &self.0.files;
        let directory = self.root().join(QUARANTINE);
        let path = self.0.path(id);
        let _guard = self.0.commit_lock()?;
        if !self.0.is_layer(id)? {
            return Err(DriverError::NotFound { id: id.clone() });
        }
        let locked = files.try_lock(&path, OpenMode::Read, LockMode::Exclusive)?;
        let _locked: Locked = locked.map_err(|file| DriverError::InUse {
            id: id.clone(),
            by: file.holders(),
        })?;
        self.0.sandbox_is_free(id)?;
        files.ensure_dir(&directory)?;
        // Always: who made it may have died before this.
        files.sync_dir(self.root())?;
        // The index of shared disks must not offer this one any more.
        if let Ok(Some(disk)) = files.look(&path.join("layer.vhd")) {
            self.forget_shared(disk.identity)?;
        }
        let mut number = 0;
        let aside = loop {
            let aside = match number {
                0 => directory.join(id.as_str()),
                n => directory.join(format!("{id}.{n}")),
            };
            if files.rename_new(&path, &aside)? {
                break aside;
            }
            number += 1;
        };
        self.0.forget(id);
        files.sync_dir(self.root())?;
        Ok(aside)
    }

    fn forget_shared(&self, identity: (u64, u64)) -> Result<(), DriverError> {
        let directory = self.root().join(SHARED);
        if self.0.files.look(&directory)?.is_none() {
            return Ok(());
        }
        for entry in self.0.files.list(&directory)? {
            let path = directory.join(&entry.name);
            if self
                .0
                .files
                .look(&path)?
                .is_some_and(|m| m.identity == identity)
            {
                self.0.files.unlink(&path)?;
            }
        }
        Ok(())
    }

    /// Checks all layers, or those given, and puts aside what is damaged itself. A layer that is whole but stands on a missing or
    /// damaged one stays; so does one that is in use.
    ///
    /// # Errors
    /// [`DriverError::Cancelled`], [`DriverError::Io`] if the data root can't be listed.
    pub fn repair(&self, ids: Option<&[LayerId]>, cancel: &Cancel) -> Result<Repair, DriverError> {
        let all;
        let ids = match ids {
            Some(ids) => ids,
            None => {
                all = self.layers()?;
                &all
            }
        };
        let mut repair = Repair::default();
        for id in ids {
            cancel.check()?;
            let report = match self.verify(id, cancel) {
                Ok(report) => report,
                Err(DriverError::InUse { .. }) => {
                    repair.in_use.push(id.clone());
                    continue;
                }
                Err(DriverError::NotFound { .. }) => continue,
                Err(e) => return Err(e),
            };
            if report.is_damaged() {
                match self.quarantine(id) {
                    Ok(to) => repair.put_aside.push(PutAside { id: id.clone(), to }),
                    Err(DriverError::InUse { .. }) => repair.in_use.push(id.clone()),
                    Err(e) => return Err(e),
                }
            }
            repair.reports.push(report);
        }
        Ok(repair)
    }
}

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Repair {
    /// What was found, layer by layer.
    pub reports: Vec<super::VerifyReport>,
    /// Damaged layers, and where they are now.
    pub put_aside: Vec<PutAside>,
    /// Layers that could not be looked at or moved, because they are in use.
    pub in_use: Vec<LayerId>,
}

/// A layer that was put aside.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PutAside {
    /// Its id.
    pub id: LayerId,
    /// Its directory now.
    pub to: PathBuf,
}
