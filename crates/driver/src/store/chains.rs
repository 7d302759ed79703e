//! Who is whose parent. Chains are read from disk once, and again only where the file changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Inner;
use crate::record::parse_chain;
use crate::vfs::{FileKind, Metadata};
use crate::{DriverError, LayerId};

/// What tells one version of a chain's file from another: (inode, size, mtime, ctime in nanoseconds).
type Stamp = (u64, u64, i128, i128);

#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<HashMap<LayerId, Known>>);

/// A chain, and the version of its file that it was read from.
type Known = (Stamp, Arc<[LayerId]>);

impl Inner {
    /// The ids of all layers, unsorted. Names that are no layer's are passed over.
    pub(super) fn ids(&self) -> Result<Vec<LayerId>, DriverError> {
        let mut ids = Vec::new();
        for entry in self.files.list(&self.root)? {
            let Some(Ok(id)) = entry.name.to_str().map(LayerId::new) else {
                continue;
            };
            if *id.as_str() == *entry.name && entry.kind == FileKind::Directory {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    pub(super) fn is_layer(&self, id: &LayerId) -> Result<bool, DriverError> {
        let found = self.files.look(&self.path(id))?;
        Ok(found.is_some_and(|m| m.is_dir()))
    }

    /// A layer's parents, nearest first. [`DriverError::NotFound`] if there is no such layer.
    pub(super) fn chain(&self, id: &LayerId) -> Result<Arc<[LayerId]>, DriverError> {
        let path = self.path(id).join("layerchain.json");
        let Some(found) = self.files.look(&path)? else {
            // The original driver wrote none for a layer without parents.
            return if self.is_layer(id)? {
                Ok([].into())
            } else {
                Err(DriverError::NotFound { id: id.clone() })
            };
        };
        let stamp = stamp(&found);
        let cache = || self.chains.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, chain)) = cache().get(id)
            && *known == stamp
        {
            return Ok(chain.clone());
        }
        let bytes = self
            .files
            .read_small(&path)?
            .ok_or_else(|| DriverError::NotFound { id: id.clone() })?;
        let chain: Arc<[LayerId]> = parse_chain(&path, &bytes)?.into();
        if chain.contains(id) {
            return Err(DriverError::corrupt(&path, "the layer is its own parent"));
        }
        cache().insert(id.clone(), (stamp, chain.clone()));
        Ok(chain)
    }

    /// The layers built directly on `id`, sorted.
    pub(super) fn children(&self, id: &LayerId) -> Result<Vec<LayerId>, DriverError> {
        let mut children = Vec::new();
        for other in self.ids()? {
            match self.chain(&other) {
                Ok(chain) if chain.first() == Some(id) => children.push(other),
                Ok(_) => {}
                // Removed meanwhile.
                Err(DriverError::NotFound { .. }) => {}
                // A damaged chain must not keep every other layer from being removed; it is named by `verify`.
                Err(DriverError::Corrupt { path, detail }) => {
                    tracing::warn!(path = %path.display(), detail, "a damaged chain is passed over");
                }
                Err(e) => return Err(e),
            }
        }
        children.sort();
        Ok(children)
    }

    pub(super) fn forget(&self, id: &LayerId) {
        self.chains
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

fn stamp(m: &Metadata) -> Stamp {
    (m.identity.1, m.len, m.mtime, m.ctime)
}
