//! What a sandbox holds while it is mounted here: read from a copy that is made while nothing changes it.
//!
//! ```text
//!   freeze (the mounter) ── copy the file ── thaw ── read the copy, as long as it takes
//! ```
//! Sandboxes that are not mounted by this driver are read as they are: in use by others, they give [`DriverError::InUse`].

use std::io::Write;
use std::sync::Arc;

use lcow_layer::changes::Change;

use super::{GraphDriver, lock};
use crate::mounter::Mounter;
use crate::store::{Against, Applied, DiffSummary, FileGetter, Snapshot, Staged};
use crate::{Cancel, DriverError, LayerId};

impl<M: Mounter> GraphDriver<M> {
    /// As [`Store::diff`](crate::Store::diff), of mounted sandboxes too.
    ///
    /// # Errors
    /// As there; [`DriverError::Mount`] if a mounted sandbox can't be frozen.
    pub fn diff(
        &self,
        id: &LayerId,
        against: &Against,
        out: &mut dyn Write,
        cancel: &Cancel,
    ) -> Result<DiffSummary, DriverError> {
        let copies = self.copies(id, against)?;
        self.store().diff_with(&copies, id, against, out, cancel)
    }

    /// As [`Store::changes`](crate::Store::changes), of mounted sandboxes too.
    ///
    /// # Errors
    /// As there; [`DriverError::Mount`] if a mounted sandbox can't be frozen.
    pub fn changes(&self, id: &LayerId, against: &Against) -> Result<Vec<Change>, DriverError> {
        let copies = self.copies(id, against)?;
        self.store().changes_with(&copies, id, against)
    }

    /// As [`Store::diff_size`](crate::Store::diff_size), of mounted sandboxes too.
    ///
    /// # Errors
    /// As there; [`DriverError::Mount`] if a mounted sandbox can't be frozen.
    pub fn diff_size(&self, id: &LayerId, against: &Against) -> Result<u64, DriverError> {
        let copies = self.copies(id, against)?;
        self.store().diff_size_with(&copies, id, against)
    }

    /// As [`Store::diff_getter`](crate::Store::diff_getter), of mounted sandboxes too: as they are now.
    ///
    /// # Errors
    /// As there; [`DriverError::Mount`] if a mounted sandbox can't be frozen.
    pub fn diff_getter(&self, id: &LayerId) -> Result<FileGetter, DriverError> {
        match self.copy(id)? {
            Some(copy) => copy.getter(),
            None => self.store().diff_getter(id),
        }
    }

    /// As [`Store::commit`](crate::Store::commit), of mounted sandboxes too: as they are now.
    ///
    /// # Errors
    /// As there; [`DriverError::Mount`] if a mounted sandbox can't be frozen.
    pub fn commit(
        &self,
        id: &LayerId,
        new: &LayerId,
        cancel: &Cancel,
    ) -> Result<Applied, DriverError> {
        let copies = self.copies(id, &Against::Parent)?;
        self.store().commit_with(&copies, id, new, cancel)
    }

    /// As [`Store::stage_commit`](crate::Store::stage_commit), of mounted sandboxes too: as they are now.
    ///
    /// # Errors
    /// As there; [`DriverError::Mount`] if a mounted sandbox can't be frozen.
    pub fn stage_commit(&self, id: &LayerId, cancel: &Cancel) -> Result<Staged, DriverError> {
        let copies = self.copies(id, &Against::Parent)?;
        self.store().stage_commit_with(&copies, id, cancel)
    }

    /// Copies of what is mounted of the two.
    fn copies(&self, id: &LayerId, against: &Against) -> Result<Vec<Snapshot>, DriverError> {
        let mut copies: Vec<_> = self.copy(id)?.into_iter().collect();
        if let Against::Layer(other) = against
            && other != id
        {
            copies.extend(self.copy(other)?);
        }
        Ok(copies)
    }

    /// A copy of a sandbox, if it is mounted here.
    fn copy(&self, id: &LayerId) -> Result<Option<Snapshot>, DriverError> {
        if !lock(&self.0.entries).contains_key(id) {
            return Ok(None);
        }
        // It stays mounted until the copy is made, whoever puts the last other handle.
        let handle = self.get(id, None)?;
        let copied = self.copy_of(&handle, id);
        let put = self.put(handle);
        let copied = copied?;
        put?;
        copied.map(|c| self.store().open_copy(c)).transpose()
    }

    fn copy_of(
        &self,
        handle: &super::Handle<M>,
        id: &LayerId,
    ) -> Result<Option<crate::store::Copied>, DriverError> {
        let Some(entry) = &handle.entry else {
            return Ok(None);
        };
        let (mounted, guard) = {
            let state = lock(&entry.state);
            match (&state.mounted, &state.sandbox) {
                (Some(mounted), Some(guard)) => (Arc::clone(mounted), Arc::clone(guard)),
                _ => return Ok(None),
            }
        };
        let failed = |operation| {
            move |source| DriverError::Mount {
                operation,
                id: id.clone(),
                source,
            }
        };
        let _one = lock(&entry.copying);
        let frozen = self.0.mounter.freeze(id, &mounted);
        let frozen = frozen.map_err(failed("freezing"))?;
        let copied = self.store().copy_sandbox(&guard);
        let thawed = frozen.thaw().map_err(failed("thawing"));
        let copied = copied?;
        thawed?;
        Ok(Some(copied))
    }
}
