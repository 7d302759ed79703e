//! Where the bytes of a data root are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Store;
use super::quarantine::QUARANTINE;
use crate::id::REMOVING;
use crate::record::Kind;
use crate::vfs::FileKind;
use crate::{DriverError, LayerId};

/// What a layer takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerSpace {
    /// The layer.
    pub id: LayerId,
    /// What it is; absent if that can't be told because it is damaged.
    pub kind: Option<Kind>,
    /// Bytes that its files seem to take.
    pub apparent: u64,
    /// Bytes allocated to its files.
    pub allocated: u64,
    /// Of the allocated bytes, those in files that other layers have too.
    pub shared: u64,
}

impl LayerSpace {
    /// Bytes that are free once the layer is gone, and no other.
    #[must_use]
    pub fn own(&self) -> u64 {
        self.allocated.saturating_sub(self.shared)
    }
}

/// What a data root takes, in allocated bytes where nothing else is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Space {
    /// All layers and sandboxes, sorted by id.
    pub layers: Vec<LayerSpace>,
    /// The layers together, a file that several have counted once.
    pub allocated: u64,
    /// Bytes that they seem to take, counted likewise.
    pub apparent: u64,
    /// Bytes that sharing saves: what the layers would take beyond `allocated` if each had its own files.
    pub saved: u64,
    /// Cached blank sandboxes.
    pub cache: u64,
    /// Half-made things and removals in progress, of the living and the dead.
    pub temporary: u64,
    /// Damaged layers that were put aside.
    pub quarantine: u64,
    /// Manifests and configurations of images, and records of containers.
    pub documents: u64,
    /// What utility VMs keep.
    pub machines: u64,
}

impl Store {
    /// Measures all that the data root holds.
    ///
    /// # Errors
    /// [`DriverError::Io`] if the data root can't be listed. What vanishes meanwhile counts nothing.
    pub fn space(&self) -> Result<Space, DriverError> {
        let root = self.root();
        let mut space = Space::default();
        let mut layers = Vec::new();
        // How many layers have a file, and what it takes.
        let mut users: HashMap<(u64, u64), (u64, u64, u64)> = HashMap::new();
        for entry in self.0.files.list(root)? {
            let Ok(name) = entry.name.into_string() else {
                continue;
            };
            let path = root.join(&name);
            match name.as_str() {
                "cache" => self.each(&path, |_, file| {
                    if file.links < 2 {
                        space.cache += file.allocated;
                    }
                }),
                "tmp" | "scratch" => self.each(&path, |_, file| space.temporary += file.allocated),
                QUARANTINE => self.each(&path, |_, file| space.quarantine += file.allocated),
                "images" | "containers" => {
                    self.each(&path, |_, file| space.documents += file.allocated);
                }
                "uvm" => self.each(&path, |_, file| space.machines += file.allocated),
                _ if name.ends_with(REMOVING) => {
                    self.each(&path, |_, file| space.temporary += file.allocated);
                }
                _ if entry.kind == FileKind::Directory => {
                    let Ok(id) = LayerId::new(&name) else {
                        continue;
                    };
                    let mut files = Vec::new();
                    self.each(&path, |_, file| {
                        let user = users.entry(file.identity).or_default();
                        user.0 += 1;
                        (user.1, user.2) = (file.allocated, file.len);
                        files.push(file.identity);
                    });
                    layers.push((id, files));
                }
                _ => {}
            }
        }
        for (allocated, apparent, count) in users.values().map(|(n, a, l)| (a, l, n)) {
            space.allocated += allocated;
            space.apparent += apparent;
            space.saved += allocated * (count - 1);
        }
        for (id, files) in layers {
            let mut layer = LayerSpace {
                kind: self.0.kind(&id).ok().map(|(kind, _)| kind),
                id,
                apparent: 0,
                allocated: 0,
                shared: 0,
            };
            for (count, allocated, apparent) in files.iter().filter_map(|file| users.get(file)) {
                layer.apparent += apparent;
                layer.allocated += allocated;
                if *count > 1 {
                    layer.shared += allocated;
                }
            }
            space.layers.push(layer);
        }
        space.layers.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(space)
    }

    /// Visits all files under a directory.
    fn each(&self, directory: &Path, mut visit: impl FnMut(&Path, &crate::vfs::Metadata)) {
        let mut todo: Vec<PathBuf> = vec![directory.to_owned()];
        while let Some(directory) = todo.pop() {
            for entry in self.0.files.list(&directory).unwrap_or_default() {
                let path = directory.join(&entry.name);
                if entry.kind == FileKind::Directory {
                    todo.push(path);
                } else if let Ok(Some(metadata)) = self.0.files.look(&path) {
                    visit(&path, &metadata);
                }
            }
        }
    }
}
