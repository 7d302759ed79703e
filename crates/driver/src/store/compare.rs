//! Unions of chains, and what differs between two.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use lcow_ext4::reader::Filesystem;
use lcow_layer::changes::{Change, changes, diff_size};
use lcow_layer::diff::diff;
use lcow_layer::digest::Hasher;
use lcow_layer::export::ExportError;
use lcow_layer::flatten::LayerName;
use lcow_layer::tree::Subtree;
use lcow_layer::union::Union;

use super::Store;
use super::disk_file::LayerDisk;
use super::layers::Reference;
use super::read::{
    Against, DiffSummary, OpenLayer, layer_error, layer_kind, read_error, tree_error,
};
use super::snapshot::Snapshot;
use crate::{DriverError, ErrorKind, LayerId};

/// A layer seen together with its parents, as a container would see it. None of them can be removed, and no sandbox among
/// them be written to, while this lives.
pub struct Chain {
    id: LayerId,
    union: Option<Union<LayerDisk>>,
    names: Vec<LayerName>,
    _open: Opened,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Chain {
    /// The layer.
    #[must_use]
    pub fn id(&self) -> &LayerId {
        &self.id
    }

    /// All its files; `None` if no layer of the chain has contents.
    #[must_use]
    pub fn union(&self) -> Option<&Union<LayerDisk>> {
        self.union.as_ref()
    }

    /// What the union's layers are known by in a [flattened disk's name](lcow_layer::flatten::name), nearest first: their diff IDs, or the
    /// UUIDs of their disks where no tar was applied.
    #[must_use]
    pub fn names(&self) -> &[LayerName] {
        &self.names
    }
}

/// Layers that were opened, each once: what two unions share is known to be the same by that.
#[derive(Default)]
struct Opened {
    layers: HashMap<LayerId, Option<Arc<OpenLayer>>>,
    /// On the top of each union: what it stands on can't be removed while it is there. A chain of 500 layers takes 500 open
    /// files so, and not 1,000.
    references: Vec<Reference>,
}

impl Opened {
    /// With copies to be read in place of the sandboxes they were made of.
    fn with(copies: &[Snapshot]) -> Self {
        let open = copies.iter().map(|copy| {
            let open = Arc::clone(copy.layer());
            (open.disk.id.clone(), Some(open))
        });
        Self {
            layers: open.collect(),
            references: Vec::new(),
        }
    }

    fn union(
        &mut self,
        store: &Store,
        id: &LayerId,
    ) -> Result<Option<Union<LayerDisk>>, DriverError> {
        self.references.push(store.reference(id)?);
        let chain = store.0.chain(id)?;
        let mut trees = Vec::new();
        for layer in std::iter::once(id).chain(chain.iter()) {
            if !self.layers.contains_key(layer) {
                let open = store.open_one(layer, None)?.map(Arc::new);
                self.layers.insert(layer.clone(), open);
            }
            if let Some(Some(open)) = self.layers.get(layer) {
                trees.extend(open.subtree()?);
            }
        }
        Ok(Union::new(trees))
    }

    /// The layer's own union, and that of what it is compared with.
    fn pair(
        &mut self,
        store: &Store,
        id: &LayerId,
        against: &Against,
    ) -> Result<Pair, DriverError> {
        let after = self.union(store, id)?;
        let before = match against {
            Against::Parent => match store.0.chain(id)?.first() {
                Some(parent) => self.union(store, parent)?,
                None => None,
            },
            Against::Nothing => None,
            Against::Layer(other) => self.union(store, other)?,
        };
        match (after, before) {
            (Some(after), before) => Ok(Some((after, before))),
            (None, None) => Ok(None),
            // All that is there is deleted, from a tree without files.
            (None, Some(before)) => Ok(Some((no_files(id)?, Some(before)))),
        }
    }
}

/// The union of a chain without contents.
fn no_files(id: &LayerId) -> Result<Union<LayerDisk>, DriverError> {
    let failed = |e| layer_error("comparing", id, ErrorKind::Io, e);
    let disk = LayerDisk::empty().map_err(failed)?;
    let fs = Filesystem::open(disk).map_err(|e| read_error("comparing", id, e))?;
    let tree = Subtree::open(Arc::new(fs), b"").map_err(|e| tree_error("comparing", id, e))?;
    // It has one layer.
    Union::new(vec![tree]).ok_or_else(|| DriverError::NotFound { id: id.clone() })
}

/// Two unions to compare; `None` if both are empty.
type Pair = Option<(Union<LayerDisk>, Option<Union<LayerDisk>>)>;

impl Store {
    /// Opens a layer together with its parents.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::InUse`] for a sandbox that is being written to, [`DriverError::Layer`],
    /// [`DriverError::Corrupt`], [`DriverError::Unsupported`].
    pub fn open_chain(&self, id: &LayerId) -> Result<Chain, DriverError> {
        let mut open = Opened::default();
        let union = open.union(self, id)?;
        let mut names = Vec::new();
        for layer in std::iter::once(id).chain(self.0.chain(id)?.iter()) {
            if let Some(Some(opened)) = open.layers.get(layer) {
                names.push(match self.0.applied(layer)? {
                    Some(applied) => LayerName::DiffId(applied.diff_id),
                    None => LayerName::FileSystem(opened.uuid()),
                });
            }
        }
        Ok(Chain {
            id: id.clone(),
            union,
            names,
            _open: open,
        })
    }

    /// What differs between a layer and another, sorted by path.
    ///
    /// # Errors
    /// As [`Store::open_chain`].
    pub fn changes(&self, id: &LayerId, against: &Against) -> Result<Vec<Change>, DriverError> {
        self.changes_with(&[], id, against)
    }

    pub(crate) fn changes_with(
        &self,
        copies: &[Snapshot],
        id: &LayerId,
        against: &Against,
    ) -> Result<Vec<Change>, DriverError> {
        let mut open = Opened::with(copies);
        let Some((after, before)) = open.pair(self, id, against)? else {
            return Ok(Vec::new());
        };
        let found =
            changes(&after, before.as_ref()).map_err(|e| export_error("comparing", id, e))?;
        Ok(found.iter().collect())
    }

    /// Bytes of the files that are new or changed against another layer.
    ///
    /// # Errors
    /// As [`Store::open_chain`].
    pub fn diff_size(&self, id: &LayerId, against: &Against) -> Result<u64, DriverError> {
        self.diff_size_with(&[], id, against)
    }

    pub(crate) fn diff_size_with(
        &self,
        copies: &[Snapshot],
        id: &LayerId,
        against: &Against,
    ) -> Result<u64, DriverError> {
        let mut open = Opened::with(copies);
        let Some((after, before)) = open.pair(self, id, against)? else {
            return Ok(0);
        };
        diff_size(&after, before.as_ref()).map_err(|e| export_error("comparing", id, e))
    }

    pub(super) fn diff_computed(
        &self,
        copies: &[Snapshot],
        id: &LayerId,
        against: &Against,
        out: &mut impl Write,
    ) -> Result<DiffSummary, DriverError> {
        let mut open = Opened::with(copies);
        let mut out = Hashing {
            out,
            hasher: Hasher::new(),
            size: 0,
        };
        match open.pair(self, id, against)? {
            Some((after, before)) => {
                diff(&after, before.as_ref(), None, &mut out)
                    .map_err(|e| export_error("comparing", id, e))?;
            }
            // An archive of nothing: two blocks of zeros.
            None => out.write_all(&[0; 1024]).map_err(DriverError::Output)?,
        }
        out.flush().map_err(DriverError::Output)?;
        Ok(DiffSummary {
            digest: out.hasher.finish(),
            size: out.size,
            exact: false,
        })
    }
}

struct Hashing<'a, W> {
    out: &'a mut W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

pub(super) fn export_error(
    operation: &'static str,
    id: &LayerId,
    error: ExportError,
) -> DriverError {
    match error.output_error() {
        Some(e) => DriverError::Output(io::Error::new(e.kind(), e.to_string())),
        None => layer_error(operation, id, layer_kind(error.kind()), error),
    }
}
