//! Reading layers without a VM: their trees, their files, their tars, and what changed.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use lcow_blockio::ReadAt;
use lcow_ext4::FileType;
use lcow_ext4::reader::{FileMap, Filesystem, ReadError, ReadErrorKind};
use lcow_layer::digest::Digest;
use lcow_layer::export::{ExactError, Expected, Exported, exact};
use lcow_layer::tree::{Follow, Subtree, Tree, TreeError};
use serde::Serialize;

use super::Store;
use super::disk_file::LayerDisk;
use super::layers::Reference;
use super::sandbox::QuietSandbox;
use super::snapshot::Snapshot;
use crate::cancel::{Cancel, Stoppable};
use crate::record::Kind;
use crate::vfs::{OpenMode, Sequential};
use crate::{Disk, DriverError, ErrorKind, LayerId};

/// An open file system of a layer.
pub type LayerFs = Filesystem<LayerDisk>;

/// What a layer is compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Against {
    /// Its own parent.
    #[default]
    Parent,
    /// Nothing: all that is seen in the layer is new.
    Nothing,
    /// Any layer, in its chain or not.
    Layer(LayerId),
}

/// What a diff wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiffSummary {
    /// SHA-256 of the tar.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Whether it is, byte for byte, the tar that was applied.
    pub exact: bool,
}

/// A layer that is open for reading and, if it is a sandbox, kept from being written to. Its own reference keeps it from being
/// removed, or that of whoever opened it.
pub(super) struct OpenLayer {
    pub(super) disk: Disk,
    fs: Arc<LayerFs>,
    _reference: Option<Reference>,
    _quiet: Option<QuietSandbox>,
}

impl std::fmt::Debug for OpenLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenLayer")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Writes a tar of a layer's changes against another. The own diff of a read-only layer comes back byte for byte as it
    /// was applied; everything else in the canonical form of the layer format.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::InUse`] for a sandbox that is being written to, [`DriverError::Output`],
    /// [`DriverError::Layer`], [`DriverError::Cancelled`]. What was written until then must be thrown away.
    pub fn diff(
        &self,
        id: &LayerId,
        against: &Against,
        out: &mut dyn Write,
        cancel: &Cancel,
    ) -> Result<DiffSummary, DriverError> {
        self.diff_with(&[], id, against, out, cancel)
    }

    pub(crate) fn diff_with(
        &self,
        copies: &[Snapshot],
        id: &LayerId,
        against: &Against,
        out: &mut dyn Write,
        cancel: &Cancel,
    ) -> Result<DiffSummary, DriverError> {
        let mut out = Stoppable::new(out, cancel);
        let result = if self.is_own_diff(id, against)? {
            self.diff_exact(id, &mut out)
        } else {
            self.diff_computed(copies, id, against, &mut out)
        };
        cancel.check()?;
        result
    }

    /// Whether the diff asked for is the one that was applied, and there is what it takes to give it back.
    fn is_own_diff(&self, id: &LayerId, against: &Against) -> Result<bool, DriverError> {
        let chain = self.0.chain(id)?;
        let own = match against {
            Against::Parent => true,
            Against::Nothing => chain.is_empty(),
            Against::Layer(other) => chain.first() == Some(other),
        };
        let split = self.0.path(id).join("diff.split.zst");
        Ok(own && self.0.applied(id)?.is_some() && self.0.files.look(&split)?.is_some())
    }

    pub(super) fn diff_exact(
        &self,
        id: &LayerId,
        out: &mut impl Write,
    ) -> Result<DiffSummary, DriverError> {
        let _reference = self.reference(id)?;
        let applied = self
            .0
            .applied(id)?
            .ok_or_else(|| DriverError::NotFound { id: id.clone() })?;
        let disk = self
            .disk(id)?
            .ok_or_else(|| DriverError::NotFound { id: id.clone() })?;
        let path = self.0.path(id).join("diff.split.zst");
        let split = Sequential::new(self.0.files.open(&path, OpenMode::Read)?);
        let expected = Exported {
            diff_id: applied.diff_id,
            size: applied.tar_size,
        };
        let exported = exact(self.open_disk(&disk)?, split, Expected::This(expected), out)
            .map_err(|e| exact_error(id, e))?;
        Ok(DiffSummary {
            digest: exported.diff_id,
            size: exported.size,
            exact: true,
        })
    }

    /// Opens a layer's own file system for reading. `None` if it has no contents.
    ///
    /// The caller keeps a [`Reference`] on it.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::Layer`], [`DriverError::Unsupported`].
    pub fn open_layer(&self, id: &LayerId) -> Result<Option<Arc<LayerFs>>, DriverError> {
        let _reference = self.reference(id)?;
        Ok(self.open_one(id, None)?.map(|open| open.fs))
    }

    /// Without a reference, the caller keeps it from being removed.
    pub(super) fn open_one(
        &self,
        id: &LayerId,
        reference: Option<Reference>,
    ) -> Result<Option<OpenLayer>, DriverError> {
        let Some(disk) = self.disk(id)? else {
            return Ok(None);
        };
        let quiet = match self.0.kind(id)?.0 {
            Kind::Sandbox => Some(self.quiet_sandbox(id)?),
            _ => None,
        };
        self.open_file_system(disk, reference, quiet).map(Some)
    }

    pub(super) fn open_file_system(
        &self,
        disk: Disk,
        reference: Option<Reference>,
        quiet: Option<QuietSandbox>,
    ) -> Result<OpenLayer, DriverError> {
        let fs = Filesystem::open(self.open_disk(&disk)?);
        Ok(OpenLayer {
            fs: Arc::new(fs.map_err(|e| read_error("reading", &disk.id, e))?),
            disk,
            _reference: reference,
            _quiet: quiet,
        })
    }

    pub(super) fn open_disk(&self, disk: &Disk) -> Result<LayerDisk, DriverError> {
        LayerDisk::open(&self.0.files, &disk.path, disk.format)
    }

    /// Gives access to the files of one layer, without those of its parents.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::WrongKind`] for a layer without contents, [`DriverError::InUse`],
    /// [`DriverError::Layer`].
    pub fn diff_getter(&self, id: &LayerId) -> Result<FileGetter, DriverError> {
        let reference = self.reference(id)?;
        let open = self
            .open_one(id, Some(reference))?
            .ok_or_else(|| DriverError::WrongKind {
                id: id.clone(),
                is: Kind::Empty.describe(),
                needs: "one with contents",
            })?;
        FileGetter::new(Arc::new(open), None)
    }
}

impl OpenLayer {
    /// The file system's UUID.
    pub(super) fn uuid(&self) -> [u8; 16] {
        self.fs.info().uuid
    }

    /// The layer's files. `None`: a sandbox that was never mounted may have no directory for them yet, if whoever made it left
    /// that to the first mount, as the original driver did.
    pub(super) fn subtree(&self) -> Result<Option<Subtree<LayerDisk>>, DriverError> {
        let directory = self.disk.directory.as_bytes();
        let open = |path: &[u8]| Subtree::open(Arc::clone(&self.fs), path);
        let opened = match directory {
            [] => open(b"").map(Some),
            _ => open(b"").and_then(|whole| match whole.lookup(whole.root(), directory)? {
                Some(_) => open(directory).map(Some),
                None => Ok(None),
            }),
        };
        opened.map_err(|e| tree_error("reading", &self.disk.id, e))
    }
}

/// Opens the files of one layer by path. The layer can't be removed meanwhile.
pub struct FileGetter {
    layer: Arc<OpenLayer>,
    tree: Option<Subtree<LayerDisk>>,
    /// What is read, if it is a copy.
    copy: Option<Arc<Snapshot>>,
}

impl std::fmt::Debug for FileGetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileGetter")
            .field("layer", &self.layer.disk.id)
            .finish()
    }
}

impl FileGetter {
    pub(super) fn new(
        layer: Arc<OpenLayer>,
        copy: Option<Arc<Snapshot>>,
    ) -> Result<Self, DriverError> {
        Ok(Self {
            tree: layer.subtree()?,
            layer,
            copy,
        })
    }

    /// The layer's tree, as stored: whiteouts are devices. `None` for a sandbox that nothing was ever written to.
    #[must_use]
    pub fn tree(&self) -> Option<&Subtree<LayerDisk>> {
        self.tree.as_ref()
    }

    /// Opens a regular file by its path in the layer. Symbolic links are followed within the layer.
    ///
    /// # Errors
    /// [`DriverError::NoSuchFile`] if there is none or it is no regular file, [`DriverError::Layer`].
    pub fn open(&self, path: &[u8]) -> Result<LayerFile, DriverError> {
        let id = &self.layer.disk.id;
        let no_such = || DriverError::NoSuchFile {
            id: id.clone(),
            path: path.to_owned(),
        };
        let tree = self.tree.as_ref().ok_or_else(no_such)?;
        let found = match tree.resolve(path, Follow::Yes) {
            Ok(found) => found,
            Err(
                TreeError::NotFound { .. }
                | TreeError::NotADirectory { .. }
                | TreeError::Loop { .. }
                | TreeError::NameTooLong { .. },
            ) => return Err(no_such()),
            Err(e) => return Err(tree_error("reading", id, e)),
        };
        if found.node.file_type() != FileType::Regular {
            return Err(no_such());
        }
        // Mapped once: each read costs what it reads.
        let number = found.node.identity().inode;
        let inode = self.layer.fs.inode(number);
        let map =
            inode.and_then(|inode| self.layer.fs.map_file(&inode).map(|map| (inode.size, map)));
        let (size, map) = map.map_err(|e| read_error("reading", id, e))?;
        Ok(LayerFile {
            layer: Arc::clone(&self.layer),
            map,
            size,
            at: 0,
            _copy: self.copy.clone(),
        })
    }
}

/// An open file of a layer: seekable, streaming, and never in memory as a whole.
pub struct LayerFile {
    layer: Arc<OpenLayer>,
    map: FileMap,
    size: u64,
    at: u64,
    _copy: Option<Arc<Snapshot>>,
}

impl std::fmt::Debug for LayerFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerFile")
            .field("layer", &self.layer.disk.id)
            .field("size", &self.size)
            .finish()
    }
}

impl ReadAt for LayerFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.layer
            .fs
            .read_mapped(&self.map, offset, buf)
            .map_err(io::Error::other)
    }
}

impl Read for LayerFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.read_at(self.at, buf)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for LayerFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::Current(offset) => (self.at, offset),
            SeekFrom::End(offset) => (self.size, offset),
        };
        self.at = base
            .checked_add_signed(offset)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

pub(super) fn layer_error(
    operation: &'static str,
    id: &LayerId,
    kind: ErrorKind,
    source: impl std::error::Error + Send + Sync + 'static,
) -> DriverError {
    DriverError::Layer {
        operation,
        id: id.clone(),
        kind,
        source: Box::new(source),
    }
}

pub(super) fn read_error(operation: &'static str, id: &LayerId, error: ReadError) -> DriverError {
    let kind = match error.kind() {
        ReadErrorKind::Corrupt => ErrorKind::Corrupt,
        ReadErrorKind::Unsupported => ErrorKind::Unsupported,
        ReadErrorKind::Usage => ErrorKind::NotFound,
        _ => ErrorKind::Io,
    };
    layer_error(operation, id, kind, error)
}

pub(super) fn tree_error(operation: &'static str, id: &LayerId, error: TreeError) -> DriverError {
    layer_error(operation, id, layer_kind(error.kind()), error)
}

pub(super) fn exact_error(id: &LayerId, error: ExactError) -> DriverError {
    // Reading the re-emission data and writing the tar fail alike; the tar's is by far the commoner, and the reader of a
    // pipe that went away must not look like a damaged store.
    if let ExactError::Io {
        operation, source, ..
    } = error
    {
        if operation.contains("write") || source.kind() == io::ErrorKind::BrokenPipe {
            return DriverError::Output(source);
        }
        return layer_error(
            "reading the tar of",
            id,
            crate::error::io_kind(&source),
            source,
        );
    }
    let kind = layer_kind(error.kind());
    layer_error("giving back the tar of", id, kind, error)
}

pub(crate) fn layer_kind(kind: lcow_layer::ErrorKind) -> ErrorKind {
    match kind {
        lcow_layer::ErrorKind::Corrupt => ErrorKind::Corrupt,
        lcow_layer::ErrorKind::Unsupported => ErrorKind::Unsupported,
        lcow_layer::ErrorKind::Refused => ErrorKind::Refused,
        lcow_layer::ErrorKind::Io => ErrorKind::Io,
    }
}
