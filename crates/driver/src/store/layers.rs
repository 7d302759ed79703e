//! Making, removing, referencing and describing layers.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::disk_file::disk_size;
use super::{Inner, Store};
use crate::files::{self, Files, TempDir};
use crate::id::REMOVING;
use crate::lock::Locked;
use crate::mounter::Disk;
use crate::record::{self, AppliedRecord, DiskFormat, Kind, LayerRecord, SandboxRecord};
use crate::vfs::{LockMode, OpenMode};
use crate::{DriverError, LayerId};

/// What making a layer did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The layer's directory.
    pub path: PathBuf,
}

/// What removing a layer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It was there, and is gone.
    Removed,
    /// There was none.
    AlreadyGone,
}

/// All that is known of a layer without reading its contents.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metadata {
    /// The layer.
    pub id: LayerId,
    /// Its directory.
    pub dir: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Its parents, nearest first.
    pub parents: Vec<LayerId>,
    /// When it was made, RFC 3339. Absent in layers of the original driver.
    pub created: Option<String>,
    /// How the disk lies in its file.
    pub format: DiskFormat,
    /// The disk's file; absent in a layer without contents.
    pub disk: Option<PathBuf>,
    /// Size of the disk, in bytes: what a VM sees. A verity tree is part of it.
    pub disk_size: u64,
    /// Length of the disk's file, in bytes.
    pub file_size: u64,
    /// Bytes allocated to all files of the layer.
    pub allocated: u64,
    /// What was applied to it. Absent in sandboxes, and in layers of the original driver.
    pub applied: Option<AppliedRecord>,
    /// What it was made as, if it is a sandbox.
    pub sandbox: Option<SandboxRecord>,
}

/// A layer that is kept from being removed, by this and by other processes, until this is dropped or the process ends,
/// however it ends. Any number may hold one at the same time.
#[derive(Debug)]
pub struct Reference {
    id: LayerId,
    _locked: Locked,
}

impl Reference {
    /// The layer.
    #[must_use]
    pub fn id(&self) -> &LayerId {
        &self.id
    }
}

/// How a removal in progress is called in `tmp/`, where its own name is taken or too long.
pub(super) const HIDDEN: &str = "removing-";

/// How long a reference waits for a removal that has begun to rename the layer away.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);

impl Store {
    /// Whether there is such a layer.
    ///
    /// # Errors
    /// [`DriverError::Io`] if that can't be found out.
    pub fn exists(&self, id: &LayerId) -> Result<bool, DriverError> {
        self.0.is_layer(id)
    }

    /// The ids of all layers and sandboxes, sorted.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    pub fn layers(&self) -> Result<Vec<LayerId>, DriverError> {
        let mut ids = self.0.ids()?;
        ids.sort();
        Ok(ids)
    }

    /// A layer's parents, nearest first.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::Corrupt`], [`DriverError::Io`].
    pub fn chain(&self, id: &LayerId) -> Result<Vec<LayerId>, DriverError> {
        self.0.chain(id).map(|chain| chain.to_vec())
    }

    /// The layers and sandboxes built directly on a layer, sorted.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::Io`].
    pub fn children(&self, id: &LayerId) -> Result<Vec<LayerId>, DriverError> {
        if !self.0.is_layer(id)? {
            return Err(DriverError::NotFound { id: id.clone() });
        }
        self.0.children(id)
    }

    /// A layer's directory.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::Io`].
    pub fn layer_path(&self, id: &LayerId) -> Result<PathBuf, DriverError> {
        if self.0.is_layer(id)? {
            Ok(self.0.path(id))
        } else {
            Err(DriverError::NotFound { id: id.clone() })
        }
    }

    /// Makes a layer without contents on top of `parent`.
    ///
    /// # Errors
    /// [`DriverError::AlreadyExists`], [`DriverError::NoParent`], [`DriverError::Io`]; nothing is left behind.
    pub fn create(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<Created, DriverError> {
        let half = self.0.half_layer(self, id, parent)?;
        half.write_record(&LayerRecord::new())?;
        if half.place(&self.0, id)? {
            Ok(Created {
                path: self.0.path(id),
            })
        } else {
            Err(DriverError::AlreadyExists { id: id.clone() })
        }
    }

    /// Keeps a layer from being removed for as long as the result lives.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::Io`].
    pub fn reference(&self, id: &LayerId) -> Result<Reference, DriverError> {
        let path = self.0.path(id);
        let start = Instant::now();
        loop {
            let Some(file) = self.0.files.open_if_there(&path)? else {
                return Err(DriverError::NotFound { id: id.clone() });
            };
            match Locked::try_new(file, LockMode::Shared)
                .map_err(DriverError::io("locking", &path))?
            {
                // Renamed away before it was locked: another look tells whether there is a new one.
                Ok(locked) => {
                    if self.0.files.is_still(&locked, &path)? {
                        return Ok(Reference {
                            id: id.clone(),
                            _locked: locked,
                        });
                    }
                }
                Err(file) if start.elapsed() > REMOVAL_PATIENCE => {
                    return Err(DriverError::InUse {
                        id: id.clone(),
                        by: file.holders(),
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Removes a layer or a sandbox.
    ///
    /// # Errors
    /// [`DriverError::HasChildren`], [`DriverError::InUse`] while a live process references it, [`DriverError::Io`]. After
    /// an I/O error the layer is there whole, or gone with the rest of its removal left to [`Store::cleanup`].
    pub fn remove(&self, id: &LayerId) -> Result<Removed, DriverError> {
        self.writable()?;
        let path = self.0.path(id);
        let (locked, away, applied) = {
            let _guard = self.0.commit_lock()?;
            if !self.0.is_layer(id)? {
                // Who renamed it away may not have come to make that durable, and be dead.
                self.0.files.sync_dir(&self.0.root)?;
                return Ok(Removed::AlreadyGone);
            }
            let children = self.0.children(id)?;
            if !children.is_empty() {
                return Err(DriverError::HasChildren {
                    id: id.clone(),
                    children,
                });
            }
            let locked = match self
                .0
                .files
                .try_lock(&path, OpenMode::Read, LockMode::Exclusive)?
            {
                Ok(locked) => locked,
                Err(file) => {
                    return Err(DriverError::InUse {
                        id: id.clone(),
                        by: file.holders(),
                    });
                }
            };
            // A running container whose process let go of the directory still holds its disk.
            self.0.sandbox_is_free(id)?;
            // A record that can't be read keeps no layer from being removed.
            let applied = self.0.applied(id).unwrap_or_default();
            (locked, self.0.rename_away(id)?, applied)
        };
        self.0.forget(id);
        self.0.files.sync_dir(&self.0.root)?;
        self.0.files.delete(&away)?;
        if let Some(applied) = applied {
            self.0.withdraw(&applied)?;
        }
        // That the files are gone need not be durable: what comes back of them, recovery deletes again.
        drop(locked);
        Ok(Removed::Removed)
    }

    /// What is known of a layer.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::Corrupt`], [`DriverError::Io`].
    pub fn metadata(&self, id: &LayerId) -> Result<Metadata, DriverError> {
        let parents = self.chain(id)?;
        let dir = self.0.path(id);
        let (kind, disk) = self.0.kind(id)?;
        let record = self.0.record(id)?;
        let mut metadata = Metadata {
            id: id.clone(),
            parents,
            kind,
            created: record.as_ref().map(|r| r.created.clone()),
            format: record.as_ref().map(|r| r.format).unwrap_or_default(),
            disk: None,
            disk_size: 0,
            file_size: 0,
            allocated: allocated(&self.0.files, &dir)?,
            applied: None,
            sandbox: None,
            dir,
        };
        if let Some((path, format)) = disk {
            metadata.format = format;
            metadata.file_size = self.0.files.look(&path)?.map_or(0, |file| file.len);
            metadata.disk_size = disk_size(&self.0.files, &path, format)?;
            metadata.disk = Some(path);
        }
        if let Some(record) = record {
            match kind {
                Kind::Layer => metadata.applied = record.applied,
                Kind::Sandbox => metadata.sandbox = record.sandbox,
                Kind::Empty => {}
            }
        }
        Ok(metadata)
    }

    /// The disks of a chain: the layer's own, if it has one, then its parents', nearest first. Layers without contents are
    /// left out.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::Corrupt`], [`DriverError::Unsupported`] for a differencing disk.
    pub fn disks(&self, id: &LayerId) -> Result<Vec<Disk>, DriverError> {
        let chain = self.0.chain(id)?;
        let mut disks = Vec::new();
        for layer in std::iter::once(id).chain(chain.iter()) {
            disks.extend(self.disk(layer)?);
        }
        Ok(disks)
    }

    /// A layer's own disk; `None` if it has no contents.
    ///
    /// # Errors
    /// As [`Store::disks`].
    pub fn disk(&self, id: &LayerId) -> Result<Option<Disk>, DriverError> {
        let (kind, disk) = self.0.kind(id)?;
        let Some((path, format)) = disk else {
            return Ok(None);
        };
        let bytes = disk_size(&self.0.files, &path, format)?;
        let directory = if kind == Kind::Sandbox { "upper" } else { "" };
        Ok(Some(Disk {
            id: id.clone(),
            path,
            format,
            bytes,
            directory,
            read_only: kind != Kind::Sandbox,
        }))
    }
}

impl Inner {
    /// What a layer is, and its disk. Only "not found" makes the next candidate be looked for.
    pub(super) fn kind(
        &self,
        id: &LayerId,
    ) -> Result<(Kind, Option<(PathBuf, DiskFormat)>), DriverError> {
        let dir = self.path(id);
        let candidates = [
            ("layer.vhd", Kind::Layer, DiskFormat::Vhd),
            ("sandbox.vhd", Kind::Sandbox, DiskFormat::Vhd),
            ("sandbox.vhdx", Kind::Sandbox, DiskFormat::Vhdx),
        ];
        for (name, kind, format) in candidates {
            let path = dir.join(name);
            match self.files.look(&path)? {
                Some(m) if m.is_file() => return Ok((kind, Some((path, format)))),
                // A symbolic link could name any file on the host.
                Some(_) => return Err(DriverError::corrupt(&path, "it is not a regular file")),
                None => {}
            }
        }
        if self.is_layer(id)? {
            Ok((Kind::Empty, None))
        } else {
            Err(DriverError::NotFound { id: id.clone() })
        }
    }

    /// `layer.json`, if there is one.
    pub(super) fn record(&self, id: &LayerId) -> Result<Option<LayerRecord>, DriverError> {
        let path = self.path(id).join("layer.json");
        let Some(bytes) = self.files.read_small(&path)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| DriverError::corrupt(&path, e))
    }

    /// What was applied to a layer, if it has its contents and a record of them.
    pub(super) fn applied(&self, id: &LayerId) -> Result<Option<AppliedRecord>, DriverError> {
        match self.kind(id)?.0 {
            Kind::Layer => Ok(self.record(id)?.and_then(|r| r.applied)),
            _ => Ok(None),
        }
    }

    /// Renames a layer out of sight. The caller holds the commit lock and the layer.
    fn rename_away(&self, id: &LayerId) -> Result<PathBuf, DriverError> {
        let path = self.path(id);
        let name = format!("{id}{REMOVING}");
        // An id may be too long for the ending, and an earlier removal may not be through.
        if name.len() <= crate::id::MAX_ID {
            let away = self.root.join(name);
            if self.files.rename_new(&path, &away)? {
                return Ok(away);
            }
        }
        let away = self
            .tmp()
            .join(format!("{HIDDEN}{}", files::random_name()?));
        if self.files.rename_new(&path, &away)? {
            return Ok(away);
        }
        Err(DriverError::io("renaming", path)(
            io::ErrorKind::AlreadyExists.into(),
        ))
    }

    /// Begins a layer: a directory under `tmp/` with its chain.
    pub(super) fn half_layer(
        &self,
        store: &Store,
        id: &LayerId,
        parent: Option<&LayerId>,
    ) -> Result<HalfLayer, DriverError> {
        // Found now, this saves the work; found when the layer is placed, it is decided.
        if self.is_layer(id)? {
            return Err(DriverError::AlreadyExists { id: id.clone() });
        }
        self.half_layer_on(store, parent)
            .map_err(|e| match (e, parent) {
                (DriverError::NotFound { id: missing }, Some(parent)) if missing == *parent => {
                    DriverError::NoParent {
                        id: id.clone(),
                        parent: missing,
                    }
                }
                (e, _) => e,
            })
    }

    pub(super) fn half_layer_on(
        &self,
        store: &Store,
        parent: Option<&LayerId>,
    ) -> Result<HalfLayer, DriverError> {
        let mut chain = Vec::new();
        if let Some(parent) = parent {
            chain.push(parent.clone());
            chain.extend(self.chain(parent)?.iter().cloned());
        }
        let temp = store.temp_dir("layer")?;
        let dir = temp.path().join("layer");
        self.files.ensure_dir(&dir)?;
        let path = dir.join("layerchain.json");
        self.files
            .write_new(&path, &record::to_bytes(&path, &chain)?)?;
        Ok(HalfLayer {
            files: self.files.clone(),
            temp,
            dir,
            chain,
        })
    }
}

/// A layer that is not visible yet.
#[derive(Debug)]
pub(super) struct HalfLayer {
    files: Files,
    // Kept for its lock, and deleted with all in it unless the layer was placed.
    pub(super) temp: TempDir,
    pub(super) dir: PathBuf,
    pub(super) chain: Vec<LayerId>,
}

impl HalfLayer {
    pub(super) fn write_record(&self, record: &LayerRecord) -> Result<(), DriverError> {
        let path = self.dir.join("layer.json");
        self.files
            .write_new(&path, &record::to_bytes(&path, record)?)
    }

    /// Makes the layer visible. `Ok(false)`: there is one of that id already.
    pub(super) fn place(self, inner: &Inner, id: &LayerId) -> Result<bool, DriverError> {
        self.files.sync_dir(&self.dir)?;
        let own = self.files.look(&self.dir)?.map(|m| m.identity);
        {
            let _guard = inner.commit_lock()?;
            if let Some((parent, rest)) = self.chain.split_first() {
                let gone = || DriverError::NoParent {
                    id: id.clone(),
                    parent: parent.clone(),
                };
                match inner.chain(parent) {
                    Ok(now) if *now == *rest => {}
                    // Removed and made anew on other layers: not the parent that was asked for.
                    Ok(_) | Err(DriverError::NotFound { .. }) => return Err(gone()),
                    Err(e) => return Err(e),
                }
            }
            if !self.files.rename_new(&self.dir, &inner.path(id))? {
                return Ok(false);
            }
        }
        if let Err(e) = self.files.sync_dir(&inner.root) {
            if let Err(error) = self.take_back(inner, id, own) {
                tracing::warn!(layer = %id, %error, "a layer that may not be durable stays");
            }
            return Err(e);
        }
        drop(self.temp);
        Ok(true)
    }

    /// Hides a layer again that could not be made durable, unless somebody uses it by now.
    fn take_back(
        &self,
        inner: &Inner,
        id: &LayerId,
        own: Option<(u64, u64)>,
    ) -> Result<(), DriverError> {
        let path = inner.path(id);
        let _guard = inner.commit_lock()?;
        let found = self.files.look(&path)?.map(|m| m.identity);
        if found != own || !inner.children(id)?.is_empty() {
            return Ok(());
        }
        match self
            .files
            .try_lock(&path, OpenMode::Read, LockMode::Exclusive)?
        {
            Ok(_locked) => self.files.rename(&path, &self.dir),
            Err(_) => Ok(()),
        }
    }
}

/// Bytes allocated to the files in a directory. What vanishes meanwhile counts nothing.
pub(super) fn allocated(files: &Files, dir: &Path) -> Result<u64, DriverError> {
    let mut sum = 0;
    for entry in files.list(dir)? {
        if let Ok(Some(metadata)) = files.look(&dir.join(&entry.name)) {
            sum += metadata.allocated;
        }
    }
    Ok(sum)
}
