//! From a tar to a layer.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use lcow_layer::digest::{Digest, chain_id};
use serde::Serialize;

use super::layers::HalfLayer;
use super::snapshot::Snapshot;
use super::{Inner, Store};
use crate::cancel::Cancel;
use crate::isolate;
use crate::record::{AppliedRecord, CompressedRecord, Kind, LayerRecord};
use crate::vfs::Handle;
use crate::{DriverError, LayerId};

/// The default limit of a layer's disk, in bytes.
pub(super) const MAX_LAYER_BYTES: u64 = 128 << 30;

/// Where a tar comes from: plain, or gzip, zstd, xz, bzip2, told apart by content.
pub enum Input<'a> {
    /// A file, a pipe or a socket, from its present position to its end. The conversion process reads it itself.
    File(File),
    /// Anything else, read by the calling thread. While it blocks, a cancellation waits.
    Reader(&'a mut (dyn Read + Send)),
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File(_) => "Input::File",
            Self::Reader(_) => "Input::Reader",
        })
    }
}

/// How a tar is applied.
#[derive(Debug, Clone)]
pub struct ApplyRequest {
    /// Make OCI whiteouts into overlay ones: what a layer needs. Off for a tar that is no layer.
    pub overlay: bool,
    /// The largest disk that may result, in bytes: to 16 TiB.
    pub max_size: u64,
    /// The diff ID that the tar must turn out to have. A layer with another one is not kept.
    pub expected: Option<Digest>,
}

impl Default for ApplyRequest {
    fn default() -> Self {
        Self {
            overlay: true,
            max_size: MAX_LAYER_BYTES,
            expected: None,
        }
    }
}

/// What applying a tar gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Bytes that the layer takes on disk.
    pub size: u64,
    /// What `layer.json` holds of it.
    #[serde(flatten)]
    pub record: AppliedRecord,
}

/// What placing a staged layer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It is a new layer.
    Created,
    /// There is a layer of that id already; the staged one was dropped.
    AlreadyThere,
}

/// A layer with its contents that is not visible yet. Dropping it deletes it.
#[derive(Debug)]
pub struct Staged {
    store: Store,
    half: HalfLayer,
    applied: Applied,
}

impl Staged {
    /// What came of the tar.
    #[must_use]
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Makes it the layer `id`, whole and durable. A layer that is there already stays as it is.
    ///
    /// # Errors
    /// [`DriverError::NoParent`] if the parent was removed meanwhile, [`DriverError::Io`].
    pub fn place(self, id: &LayerId) -> Result<Placed, DriverError> {
        let inner = &self.store.0;
        if self.half.place(inner, id)? {
            inner.offer(&inner.path(id).join("layer.vhd"), &self.applied.record);
            Ok(Placed::Created)
        } else {
            self.store.0.already_there()
        }
    }
}

impl Store {
    /// Makes a tar into a layer that has no id yet.
    ///
    /// # Errors
    /// [`DriverError::NotFound`] for a missing parent, [`DriverError::Convert`], [`DriverError::Input`],
    /// [`DriverError::WrongDiffId`], [`DriverError::Cancelled`], [`DriverError::Io`]; nothing is left behind.
    pub fn stage(
        &self,
        parent: Option<&LayerId>,
        input: Input<'_>,
        request: &ApplyRequest,
        cancel: &Cancel,
    ) -> Result<Staged, DriverError> {
        let half = self.0.half_layer_on(self, parent)?;
        let applied = self.convert(&half, parent, input, request, cancel)?;
        let mut record = LayerRecord::new();
        record.applied = Some(applied.record.clone());
        half.write_record(&record)?;
        Ok(Staged {
            store: self.clone(),
            half,
            applied,
        })
    }

    /// Makes a layer from a tar in one step: [`stage`](Store::stage) and [`place`](Staged::place). If there is a layer of
    /// that id already, nothing is read.
    ///
    /// # Errors
    /// As theirs.
    pub fn import(
        &self,
        id: &LayerId,
        parent: Option<&LayerId>,
        input: Input<'_>,
        request: &ApplyRequest,
        cancel: &Cancel,
    ) -> Result<Placed, DriverError> {
        if self.exists(id)? {
            return self.0.already_there();
        }
        match self.stage(parent, input, request, cancel) {
            Ok(staged) => staged.place(id),
            Err(DriverError::NotFound { id: missing }) if Some(&missing) == parent => {
                Err(DriverError::NoParent {
                    id: id.clone(),
                    parent: missing,
                })
            }
            Err(e) => Err(e),
        }
    }

    /// Gives a layer without contents the contents of a tar. Gives what that takes on disk.
    ///
    /// `parent` is the layer's own, or none for "as it was created".
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::AlreadyApplied`], [`DriverError::WrongKind`] for a sandbox,
    /// [`DriverError::NoParent`] if `parent` is not the layer's, and as [`stage`](Store::stage). The layer stays without
    /// contents then.
    pub fn apply_diff(
        &self,
        id: &LayerId,
        parent: Option<&LayerId>,
        input: Input<'_>,
        request: &ApplyRequest,
        cancel: &Cancel,
    ) -> Result<Applied, DriverError> {
        self.writable()?;
        let _reference = self.reference(id)?;
        self.0.must_be_empty(id)?;
        let chain = self.0.chain(id)?;
        if let Some(parent) = parent
            && chain.first() != Some(parent)
        {
            return Err(DriverError::NoParent {
                id: id.clone(),
                parent: parent.clone(),
            });
        }
        let half = self.0.half_layer_on(self, chain.first())?;
        let applied = self.convert(&half, chain.first(), input, request, cancel)?;
        let mut record = self.0.record(id)?.unwrap_or_else(LayerRecord::new);
        record.applied = Some(applied.record.clone());
        half.write_record(&record)?;
        let files = &self.0.files;
        files.sync_dir(&half.dir)?;

        let dir = self.0.path(id);
        let _guard = self.0.commit_lock()?;
        self.0.must_be_empty(id)?;
        let rename = |name: &str| {
            let to = dir.join(name);
            files.rename(&half.dir.join(name), &to)
        };
        // The disk comes last: what lies beside it counts only when it is there.
        let placed = rename("diff.split.zst")
            .and_then(|()| rename("layer.json"))
            .and_then(|()| files.sync_dir(&dir))
            .and_then(|()| rename("layer.vhd"))
            .and_then(|()| files.sync_dir(&dir));
        if let Err(e) = placed {
            // Back to a layer without contents, as far as the failing disk lets us; recovery does the rest.
            for name in ["layer.vhd", "diff.split.zst"] {
                if let Err(error) = files.delete(&dir.join(name)) {
                    tracing::warn!(layer = %id, %error, "what a failed apply left stays behind");
                }
            }
            return Err(e);
        }
        self.0.offer(&dir.join("layer.vhd"), &applied.record);
        Ok(applied)
    }

    /// Makes a sandbox's changes a new layer on the sandbox's parent. The sandbox stays as it is.
    ///
    /// # Errors
    /// [`DriverError::InUse`] while the sandbox is being written to; as [`Store::diff`] and [`Store::stage`].
    pub fn commit(
        &self,
        id: &LayerId,
        new: &LayerId,
        cancel: &Cancel,
    ) -> Result<Applied, DriverError> {
        self.commit_with(&[], id, new, cancel)
    }

    pub(crate) fn commit_with(
        &self,
        copies: &[Snapshot],
        id: &LayerId,
        new: &LayerId,
        cancel: &Cancel,
    ) -> Result<Applied, DriverError> {
        if self.exists(new)? {
            return Err(DriverError::AlreadyExists { id: new.clone() });
        }
        let staged = self.stage_commit_with(copies, id, cancel)?;
        let applied = staged.applied().clone();
        match staged.place(new)? {
            Placed::Created => Ok(applied),
            Placed::AlreadyThere => Err(DriverError::AlreadyExists { id: new.clone() }),
        }
    }

    /// As [`Store::commit`], for a layer whose id is known only when its digest is.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn stage_commit(&self, id: &LayerId, cancel: &Cancel) -> Result<Staged, DriverError> {
        self.stage_commit_with(&[], id, cancel)
    }

    pub(crate) fn stage_commit_with(
        &self,
        copies: &[Snapshot],
        id: &LayerId,
        cancel: &Cancel,
    ) -> Result<Staged, DriverError> {
        let (kind, _) = self.0.kind(id)?;
        if kind != Kind::Sandbox {
            return Err(DriverError::WrongKind {
                id: id.clone(),
                is: kind.describe(),
                needs: "a sandbox",
            });
        }
        let chain = self.0.chain(id)?;
        let (reader, writer) = std::io::pipe().map_err(DriverError::io("making", "a pipe"))?;
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        // A failed diff ends the pipe as if all were well, so its verdict is awaited before anything is placed.
        std::thread::scope(|scope| {
            let diff = scope.spawn(move || {
                let mut writer = writer;
                self.diff_with(copies, id, &super::Against::Parent, &mut writer, cancel)
            });
            let staged = self.stage(
                chain.first(),
                Input::File(reader),
                &ApplyRequest::default(),
                cancel,
            );
            let diff = diff
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match (diff, staged) {
                (Ok(_), staged) => staged,
                // The diff failed because nobody read it any more.
                (Err(DriverError::Output(_)), Err(staged)) => Err(staged),
                (Err(e), _) => Err(e),
            }
        })
    }

    fn convert(
        &self,
        half: &HalfLayer,
        parent: Option<&LayerId>,
        input: Input<'_>,
        request: &ApplyRequest,
        cancel: &Cancel,
    ) -> Result<Applied, DriverError> {
        cancel.check()?;
        let disk_path = half.dir.join("layer.vhd");
        let split_path = half.dir.join("diff.split.zst");
        let disk = self.0.files.create_new(&disk_path)?;
        let split = self.0.files.create_new(&split_path)?;
        let task = isolate::Task {
            overlay: request.overlay,
            max_size: request.max_size,
            verity: self.0.options.verity,
        };
        let done = isolate::convert(&self.0.isolation, &task, input, &disk, &split, cancel)?;
        if let Some(expected) = &request.expected
            && *expected != done.diff_id
        {
            return Err(DriverError::WrongDiffId {
                expected: *expected,
                found: done.diff_id,
            });
        }
        cancel.check()?;
        disk.sync()
            .map_err(DriverError::io("syncing", &disk_path))?;
        split
            .sync()
            .map_err(DriverError::io("syncing", &split_path))?;
        let chain_id = match parent {
            None => Some(chain_id(None, &done.diff_id)),
            Some(parent) => self
                .0
                .applied(parent)?
                .and_then(|p| p.chain_id)
                .map(|parent| chain_id(Some(&parent), &done.diff_id)),
        };
        let blocks = |file: &Handle, path: &Path| {
            file.metadata()
                .map(|m| m.allocated)
                .map_err(DriverError::io("reading", path))
        };
        let allocated = blocks(&disk, &disk_path)?;
        let record = AppliedRecord {
            diff_id: done.diff_id,
            chain_id,
            tar_size: done.tar_size,
            entries: done.entries,
            disk_size: done.disk_size,
            allocated,
            compressed: done
                .compressed
                .map(|(digest, size)| CompressedRecord { digest, size }),
            overlay: request.overlay,
            verity_root: done.verity_root,
        };
        self.0.adopt(&disk_path, &disk, &record);
        Ok(Applied {
            size: allocated + blocks(&split, &split_path)?,
            record,
        })
    }
}

impl Inner {
    /// Who placed the layer may not have come to make that durable, and be dead.
    fn already_there(&self) -> Result<Placed, DriverError> {
        self.files.sync_dir(&self.root)?;
        Ok(Placed::AlreadyThere)
    }

    fn must_be_empty(&self, id: &LayerId) -> Result<(), DriverError> {
        match self.kind(id)?.0 {
            Kind::Empty => Ok(()),
            Kind::Layer => Err(DriverError::AlreadyApplied { id: id.clone() }),
            Kind::Sandbox => Err(DriverError::WrongKind {
                id: id.clone(),
                is: Kind::Sandbox.describe(),
                needs: Kind::Empty.describe(),
            }),
        }
    }
}
