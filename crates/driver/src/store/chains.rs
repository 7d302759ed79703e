//! Who is whose parent. Chains are read from disk once, and again only where the file changed.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

use super::Inner;
use crate::record::parse_chain;
use crate::{DriverError, LayerId, files};

/// What tells one version of a chain's file from another: (inode, size, mtime, ctime in nanoseconds).
type Stamp = (u64, u64, i128, i128);

#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<HashMap<LayerId, Known>>);

/// A chain, and the version of its file that it was read from.
type Known = (Stamp, Arc<[LayerId]>);

impl Inner {
    /// The ids of all layers, unsorted. Names that are no layer's are passed over.
    pub(super) fn ids(&self) -> Result<Vec<LayerId>, DriverError> {
        let failed = || DriverError::io("listing", &self.root);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name();
            let Some(Ok(id)) = name.to_str().map(LayerId::new) else {
                continue;
            };
            if id.as_str() == name && entry.file_type().is_ok_and(|t| t.is_dir()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    pub(super) fn is_layer(&self, id: &LayerId) -> Result<bool, DriverError> {
        let path = self.path(id);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => Ok(metadata.is_dir()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(DriverError::io("reading", path)(e)),
        }
    }

    /// A layer's parents, nearest first. [`DriverError::NotFound`] if there is no such layer.
    pub(super) fn chain(&self, id: &LayerId) -> Result<Arc<[LayerId]>, DriverError> {
        let path = self.path(id).join("layerchain.json");
        let stamp = match stamp(&path) {
            Ok(stamp) => stamp,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // The original driver wrote none for a layer without parents.
                return if self.is_layer(id)? {
                    Ok([].into())
                } else {
                    Err(DriverError::NotFound { id: id.clone() })
                };
            }
            Err(e) => return Err(DriverError::io("reading", path)(e)),
        };
        let cache = || self.chains.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, chain)) = cache().get(id)
            && *known == stamp
        {
            return Ok(chain.clone());
        }
        let bytes =
            files::read_small(&path)?.ok_or_else(|| DriverError::NotFound { id: id.clone() })?;
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

fn stamp(path: &Path) -> io::Result<Stamp> {
    let m = fs::symlink_metadata(path)?;
    let nanos = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
    Ok((
        m.ino(),
        m.len(),
        nanos(m.mtime(), m.mtime_nsec()),
        nanos(m.ctime(), m.ctime_nsec()),
    ))
}
