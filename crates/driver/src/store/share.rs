//! One disk for all layers that the same tar was applied to.
//!
//! `cache/disks/` has a hard link to the disk of each applied tar, named after what makes the disk's bytes: the tar's diff ID and
//! how it was converted. It is an index and no more: a layer's own directory is what counts, so nothing here is synced, and
//! where hard links can't be made each layer has a disk of its own. An entry whose file has no other name left belongs to
//! no layer, and is deleted with the last one, or by recovery.

use std::io;
use std::path::{Path, PathBuf};

use lcow_blockio::ReadAt;

use super::Inner;
use crate::DriverError;
use crate::record::AppliedRecord;
use crate::vfs::Handle;

/// The directory of the index.
pub(super) const SHARED: &str = "cache/disks";

impl Inner {
    fn shared_path(&self, record: &AppliedRecord) -> PathBuf {
        let plain = if record.overlay { "" } else { "-plain" };
        let verity = match record.verity_root {
            Some(_) => "-verity",
            None => "",
        };
        let name = format!("{}{plain}{verity}.vhd", record.diff_id.hex());
        self.root.join(SHARED).join(name)
    }

    /// Puts a disk that is there already, with the same bytes, in place of the new one `disk` at `path`. Whether or not that can
    /// be done, there is a good disk at `path` afterwards.
    pub(super) fn adopt(&self, path: &Path, disk: &Handle, record: &AppliedRecord) {
        let shared = self.shared_path(record);
        match self.try_adopt(path, disk, &shared) {
            Ok(true) => tracing::debug!(disk = %shared.display(), "shared with another layer"),
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(disk = %shared.display(), error = crate::error::chain(&error), "not shared");
            }
        }
    }

    fn try_adopt(&self, path: &Path, disk: &Handle, shared: &Path) -> Result<bool, DriverError> {
        let Some(there) = self.files.open_if_there(shared)? else {
            return Ok(false);
        };
        // One that was damaged since, or that another version of this program made, is not spread any further.
        if !same_bytes(&there, disk).map_err(DriverError::io("comparing", shared))? {
            return Ok(false);
        }
        let link = path.with_extension("shared");
        self.files.link(shared, &link)?;
        self.files.rename(&link, path).inspect_err(|_| {
            // The layer is placed with its own disk, and without this name in it.
            let _ = self.files.unlink(&link);
        })?;
        Ok(true)
    }

    /// Offers the disk at `path`, which belongs to a layer, to layers to come.
    pub(super) fn offer(&self, path: &Path, record: &AppliedRecord) {
        let shared = self.shared_path(record);
        let offered = self.try_offer(path, &shared);
        if let Err(error) = offered {
            tracing::debug!(disk = %shared.display(), error = crate::error::chain(&error), "not offered");
        }
    }

    fn try_offer(&self, path: &Path, shared: &Path) -> Result<(), DriverError> {
        if let Some(there) = self.files.look(shared)? {
            let own = self.files.look(path)?;
            if own.is_some_and(|own| own.identity == there.identity) {
                return Ok(());
            }
            self.files.unlink(shared)?;
        }
        self.files.ensure_dir(&self.root.join(SHARED))?;
        self.files.link(path, shared)
    }

    /// Deletes the index's entry for a layer that was removed, if it was the last one with that disk.
    pub(super) fn withdraw(&self, record: &AppliedRecord) -> Result<(), DriverError> {
        let shared = self.shared_path(record);
        self.sweep_shared(&shared).map(drop)
    }

    /// Deletes an entry that belongs to no layer: `Ok(true)`. A layer that adopts the disk at the same time keeps it.
    pub(super) fn sweep_shared(&self, entry: &Path) -> Result<bool, DriverError> {
        match self.files.look(entry)? {
            Some(metadata) if metadata.is_file() && metadata.links < 2 => {
                self.files.unlink(entry).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// Deletes all entries that belong to no layer, and gives their names.
    pub(super) fn sweep_all_shared(&self) -> Result<(Vec<String>, Vec<DriverError>), DriverError> {
        let directory = self.root.join(SHARED);
        let (mut gone, mut failed) = (Vec::new(), Vec::new());
        // Made when it is first needed.
        if self.files.look(&directory)?.is_none() {
            return Ok((gone, failed));
        }
        for entry in self.files.list(&directory)? {
            match self.sweep_shared(&directory.join(&entry.name)) {
                Ok(true) => gone.push(entry.name.to_string_lossy().into_owned()),
                Ok(false) => {}
                Err(error) => failed.push(error),
            }
        }
        Ok((gone, failed))
    }
}

fn same_bytes(a: &Handle, b: &Handle) -> io::Result<bool> {
    const PIECE: usize = 1 << 20;
    if a.metadata()?.identity == b.metadata()?.identity {
        return Ok(true);
    }
    let size = a.size()?;
    if size != b.size()? {
        return Ok(false);
    }
    let (mut ours, mut theirs) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    while at < size {
        // What is a hole in both is the same.
        let next = [a.next_data(at)?, b.next_data(at)?];
        let Some(start) = next.iter().flatten().map(|range| range.start).min() else {
            break;
        };
        at = start.max(at);
        let len = usize::try_from(size - at).map_or(PIECE, |left| left.min(PIECE));
        a.read_exact_at(at, &mut ours[..len])?;
        b.read_exact_at(at, &mut theirs[..len])?;
        if ours[..len] != theirs[..len] {
            return Ok(false);
        }
        at += len as u64;
    }
    Ok(true)
}
