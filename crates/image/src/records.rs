//! `images/` in the data root: which images there are.
//!
//! The directory is an OCI image layout without the layers' blobs. `index.json` has one entry for each name, and one
//! without a name for an image that has none. It is changed under `images/.lock` and replaced whole.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lcow_driver::{DriverError, FileLock, LayerId, Store};
use lcow_layer::digest::{Digest, chain_id};

use crate::documents::{
    Config, Descriptor, FULL_NAME, Index, MANIFEST, MAX_DOCUMENT, Manifest, REF_NAME, parse,
    to_bytes,
};
use crate::{ImageError, Name};

/// How long a change waits for another process's. They take milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of its configuration.
    pub id: Digest,
    /// The digest of its manifest, as it came.
    pub manifest: Digest,
    /// Its names, sorted; none if they were taken by others.
    pub names: Vec<Name>,
    /// Its configuration.
    pub config: Config,
    /// Its layers' ids, base first: the digits of their chain IDs.
    pub layers: Vec<LayerId>,
}

impl Image {
    /// The layer that a container is made on; `None` for an image without layers.
    #[must_use]
    pub fn top(&self) -> Option<&LayerId> {
        self.layers.last()
    }

    /// Its first name, or the beginning of its id.
    #[must_use]
    pub fn display_name(&self) -> String {
        self.names
            .first()
            .map_or_else(|| self.short_id(), ToString::to_string)
    }

    /// Whether the text is the id or the manifest's digest, or begins one of them; with or without `sha256:`.
    #[must_use]
    pub fn begins_with(&self, text: &str) -> bool {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        !digits.is_empty()
            && (self.id.hex().starts_with(digits) || self.manifest.hex().starts_with(digits))
    }

    /// The first 12 digits of the id.
    #[must_use]
    pub fn short_id(&self) -> String {
        self.id.hex().chars().take(12).collect()
    }
}

/// What an image takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Bytes of its layers' uncompressed tars.
    pub tar: u64,
    /// Bytes that its layers take on disk, those shared with other images included.
    pub disk: u64,
}

/// What removing an image did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub names: Vec<Name>,
    /// The image's id, if it is gone too.
    pub id: Option<Digest>,
    /// Layers that are gone, nearest to the top first.
    pub layers: Vec<LayerId>,
}

/// The images of a store.
#[derive(Debug, Clone)]
pub struct Images {
    pub(crate) store: Store,
    directory: PathBuf,
}

impl Images {
    /// The images of an open store.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::Store`].
    pub fn open(store: &Store) -> Result<Self, ImageError> {
        let this = Self {
            store: store.clone(),
            directory: store.images_dir(),
        };
        // Once the layout's mark is there, its directories are on stable storage.
        let layout = this.directory.join("oci-layout");
        let blobs = this.directory.join("blobs/sha256");
        if !store.is_there(&layout)? || !store.is_there(&blobs)? {
            store.make_dir(&this.directory.join("blobs"))?;
            store.make_dir(&blobs)?;
            store.replace_file(&layout, crate::save::LAYOUT)?;
        }
        Ok(this)
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// All images, by name; those without one come last. A damaged one is logged and left out.
    ///
    /// # Errors
    /// [`ImageError::Corrupt`] if the index can't be understood, [`ImageError::Io`].
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut images: BTreeMap<Digest, Image> = BTreeMap::new();
        for entry in self.index()?.manifests {
            let image = match self.image(&entry) {
                Ok(image) => image,
                Err(error) => {
                    tracing::warn!(manifest = %entry.digest, %error, "a damaged image is left out");
                    continue;
                }
            };
            match images.get_mut(&image.id) {
                Some(known) => known.names.extend(image.names),
                None => drop(images.insert(image.id, image)),
            }
        }
        let mut images: Vec<_> = images.into_values().collect();
        for image in &mut images {
            image.names.sort();
            image.names.dedup();
        }
        images.sort_by(|a, b| {
            (a.names.is_empty(), &a.names, a.id).cmp(&(b.names.is_empty(), &b.names, b.id))
        });
        Ok(images)
    }

    /// The image that a name, an id, or the unique beginning of either means.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; [`ImageError::Ambiguous`] with the images it could be; as [`Images::list`].
    pub fn find(&self, query: &str) -> Result<Image, ImageError> {
        let images = self.list()?;
        if let Ok(name) = query.parse::<Name>()
            && let Some(image) = images.iter().find(|i| i.names.contains(&name))
        {
            return Ok(image.clone());
        }
        let begins = |image: &&Image| {
            let named = |n: &Name| n.to_string().starts_with(query);
            image.begins_with(query) || !query.is_empty() && image.names.iter().any(named)
        };
        let mut found: Vec<_> = images.iter().filter(begins).cloned().collect();
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(ImageError::NotFound {
                query: query.to_owned(),
            }),
            (Some(image), true) => Ok(image),
            (Some(last), false) => {
                found.push(last);
                let describe = |i: &Image| match i.names.first() {
                    Some(name) => format!("{name} ({})", i.short_id()),
                    None => i.short_id(),
                };
                let candidates = found.iter().map(describe).collect();
                Err(ImageError::Ambiguous {
                    query: query.to_owned(),
                    candidates,
                })
            }
        }
    }

    /// What an image takes. Layers that are missing count nothing.
    ///
    /// # Errors
    /// The store's, but for missing layers.
    pub fn size(&self, image: &Image) -> Result<Size, ImageError> {
        let mut size = Size::default();
        for id in &image.layers {
            match self.store.metadata(id) {
                Ok(metadata) => {
                    size.tar += metadata.applied.map_or(0, |a| a.tar_size);
                    size.disk += metadata.allocated;
                }
                Err(DriverError::NotFound { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(size)
    }

    /// Removes a name, or, given an id, the image with all its names. With the last name go the image and
    /// those of its layers that nothing else needs.
    ///
    /// # Errors
    /// As [`Images::find`]; the store's.
    pub fn remove(&self, query: &str) -> Result<Removed, ImageError> {
        let image = self.find(query)?;
        let names: BTreeSet<Name> = match query.parse::<Name>() {
            Ok(name) if image.names.contains(&name) => [name].into(),
            _ if image.begins_with(query) => image.names.iter().cloned().collect(),
            // The beginning of a name says no more than that name.
            _ => image
                .names
                .iter()
                .filter(|n| n.to_string().starts_with(query))
                .cloned()
                .collect(),
        };
        let _lock = self.lock()?;
        let mut index = self.index()?;
        let manifests: HashSet<Digest> = self.manifests_of(&index, &image.id);
        let mut removed = Removed::default();
        let whole = names.len() == image.names.len();
        index.manifests.retain(|entry| {
            if !manifests.contains(&entry.digest) {
                return true;
            }
            match entry_name(entry) {
                Some(name) if names.contains(&name) => {
                    removed.names.push(name);
                    false
                }
                // Named by another process since it was looked for.
                Some(_) => true,
                None => !whole,
            }
        });
        self.replace_index(&index)?;
        if self.manifests_of(&index, &image.id).is_empty() {
            removed.id = Some(image.id);
            self.drop_documents(&index)?;
            removed.layers = self.drop_layers(&index, &image.layers)?;
        }
        Ok(removed)
    }

    /// Removes those of `layers` (base first) that no image, no container and no other layer needs, and that nobody uses.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::Store`].
    pub fn collect(&self, layers: &[LayerId]) -> Result<Vec<LayerId>, ImageError> {
        let _lock = self.lock()?;
        let index = self.durable_index()?;
        self.drop_layers(&index, layers)
    }

    /// The layers that came with images, and that no image, no container and no other layer needs any more: each after all
    /// that stand on it. A process that died between placing layers and naming their image leaves such.
    ///
    /// Layers that were made otherwise, under ids of their own, are never among them.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::Store`].
    pub fn unneeded(&self) -> Result<Vec<LayerId>, ImageError> {
        let _lock = self.lock()?;
        let index = self.index()?;
        self.unneeded_layers(&index)
    }

    /// Deletes documents that no image has, and removes [unneeded](Self::unneeded) layers, but for those that are in use. Gives
    /// the layers that are gone.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::Store`].
    pub fn prune(&self) -> Result<Vec<LayerId>, ImageError> {
        let _lock = self.lock()?;
        let index = self.durable_index()?;
        self.drop_documents(&index)?;
        let mut gone = Vec::new();
        for id in self.unneeded_layers(&index)? {
            match self.store.remove(&id) {
                Ok(lcow_driver::Removed::Removed) => gone.push(id),
                Ok(lcow_driver::Removed::AlreadyGone)
                | Err(DriverError::HasChildren { .. } | DriverError::InUse { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(gone)
    }

    fn unneeded_layers(&self, index: &Index) -> Result<Vec<LayerId>, ImageError> {
        let Some(mut needed) = self.needed_layers(index) else {
            return Ok(Vec::new());
        };
        let mut candidates = Vec::new();
        for id in self.store.layers()? {
            let metadata = match self.store.metadata(&id) {
                Ok(metadata) => metadata,
                Err(DriverError::NotFound { .. }) => continue,
                // What it stands on can't be known, so nothing is given up.
                Err(error) => {
                    tracing::warn!(layer = %id, %error, "layers are kept for a damaged one");
                    return Ok(Vec::new());
                }
            };
            let own = metadata.applied.and_then(|a| a.chain_id);
            if own.is_some_and(|chain_id| chain_id.hex() == id.as_str()) {
                candidates.push((metadata.parents.len(), id, metadata.parents));
            } else {
                needed.extend(metadata.parents);
            }
        }
        // Those that stand on many others come first: what a needed one stands on is needed.
        candidates.sort_by(|a, b| b.cmp(a));
        let mut unneeded = Vec::new();
        for (_, id, parents) in candidates {
            if needed.contains(&id) {
                needed.extend(parents);
            } else {
                unneeded.push(id);
            }
        }
        Ok(unneeded)
    }

    /// The layers of all images; `None` if that can't be known.
    fn needed_layers(&self, index: &Index) -> Option<HashSet<LayerId>> {
        let mut needed = HashSet::new();
        for entry in &index.manifests {
            match self.image(entry) {
                Ok(image) => needed.extend(image.layers),
                // What it needs can't be known, so nothing is given up.
                Err(error) => {
                    tracing::warn!(manifest = %entry.digest, %error, "layers are kept for a damaged image");
                    return None;
                }
            }
        }
        Some(needed)
    }

    fn drop_layers(&self, index: &Index, layers: &[LayerId]) -> Result<Vec<LayerId>, ImageError> {
        let Some(needed) = self.needed_layers(index) else {
            return Ok(Vec::new());
        };
        let mut gone = Vec::new();
        for id in layers.iter().rev() {
            if needed.contains(id) {
                break;
            }
            match self.store.remove(id) {
                Ok(lcow_driver::Removed::Removed) => gone.push(id.clone()),
                Ok(lcow_driver::Removed::AlreadyGone) => {}
                // Then its parents are needed too.
                Err(DriverError::HasChildren { .. } | DriverError::InUse { .. }) => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(gone)
    }

    /// Adds an image: its documents, then its names, which other images lose.
    pub(crate) fn add(
        &self,
        manifest: &[u8],
        config: &[u8],
        names: &[Name],
    ) -> Result<Image, ImageError> {
        let _lock = self.lock()?;
        for bytes in [config, manifest] {
            let path = self.blob_path(&Digest::of(bytes));
            if !self.store.is_there(&path)? {
                self.store.replace_file(&path, bytes)?;
            }
        }
        // The index is about to rely on what was there too.
        self.store.sync_dir(&self.directory.join("blobs/sha256"))?;
        let parsed: Config = parse("the image", "configuration", config)?;
        let mut entry = Descriptor::new(MANIFEST, Digest::of(manifest), manifest.len() as u64);
        if let Some(kind) = parse::<Manifest>("the image", "manifest", manifest)?.media_type {
            entry.media_type = kind;
        }
        entry.platform = Some(parsed.platform());
        let mut index = self.index()?;
        let id = Digest::of(config);
        let same = self.manifests_of(&index, &id);
        let mut orphans = Vec::new();
        index.manifests.retain(|other| match entry_name(other) {
            Some(name) => {
                let taken = names.contains(&name);
                if taken && !same.contains(&other.digest) {
                    orphans.push(other.clone());
                }
                !taken
            }
            // With a name, an entry without one says nothing more.
            None => !same.contains(&other.digest) || names.is_empty(),
        });
        for mut orphan in orphans {
            if !index.manifests.iter().any(|e| e.digest == orphan.digest) {
                orphan.annotations.remove(REF_NAME);
                orphan.annotations.remove(FULL_NAME);
                index.manifests.push(orphan);
            }
        }
        for name in names {
            let mut named = entry.clone();
            named
                .annotations
                .insert(REF_NAME.to_owned(), name.to_string());
            index.manifests.push(named);
        }
        if self.manifests_of(&index, &id).is_empty() {
            index.manifests.push(entry);
        }
        self.replace_index(&index)?;
        let image = self.list()?.into_iter().find(|image| image.id == id);
        image.ok_or_else(|| ImageError::NotFound {
            query: id.to_string(),
        })
    }

    /// The bytes of an image's configuration, as they came.
    pub(crate) fn config_bytes(&self, image: &Image) -> Result<Vec<u8>, ImageError> {
        self.document(&image.id)
    }

    fn image(&self, entry: &Descriptor) -> Result<Image, ImageError> {
        let manifest: Manifest = self.parse(&entry.digest)?;
        let config: Config = self.parse(&manifest.config.digest)?;
        let mut chain = None;
        let mut layers = Vec::with_capacity(config.rootfs.diff_ids.len());
        for diff_id in &config.rootfs.diff_ids {
            let this = chain_id(chain.as_ref(), diff_id);
            chain = Some(this);
            layers.push(LayerId::new(&this.hex())?);
        }
        let names = entry_name(entry).into_iter().collect();
        Ok(Image {
            id: manifest.config.digest,
            manifest: entry.digest,
            names,
            config,
            layers,
        })
    }

    fn manifests_of(&self, index: &Index, id: &Digest) -> HashSet<Digest> {
        let is = |entry: &&Descriptor| self.image(entry).is_ok_and(|image| image.id == *id);
        index
            .manifests
            .iter()
            .filter(is)
            .map(|entry| entry.digest)
            .collect()
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Result<T, ImageError> {
        let bytes = self.document(digest)?;
        parse(
            &self.blob_path(digest).display().to_string(),
            "document",
            &bytes,
        )
    }

    fn document(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(digest);
        let bytes = self.store.read_file(&path, MAX_DOCUMENT)?;
        let bytes = bytes.ok_or(io::ErrorKind::NotFound.into());
        let bytes = bytes.map_err(ImageError::io("reading", &path))?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(ImageError::BlobDigest {
                input: path.display().to_string(),
                expected: *digest,
                actual,
            });
        }
        Ok(bytes)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs/sha256").join(digest.hex())
    }

    fn index(&self) -> Result<Index, ImageError> {
        let path = self.directory.join("index.json");
        match self.store.read_file(&path, 16 * MAX_DOCUMENT)? {
            Some(bytes) => parse(&path.display().to_string(), "index", &bytes),
            None => Ok(Index::of(Vec::new())),
        }
    }

    /// The index, for who is about to delete what it does not name: who replaced it may have died before that was durable.
    fn durable_index(&self) -> Result<Index, ImageError> {
        self.store.sync_dir(&self.directory)?;
        self.index()
    }

    fn replace_index(&self, index: &Index) -> Result<(), ImageError> {
        Ok(self
            .store
            .replace_file(&self.directory.join("index.json"), &to_bytes(index))?)
    }

    /// Deletes manifests and configurations that no entry refers to.
    fn drop_documents(&self, index: &Index) -> Result<(), ImageError> {
        let mut needed = HashSet::new();
        for entry in &index.manifests {
            needed.insert(entry.digest);
            match self.parse::<Manifest>(&entry.digest) {
                Ok(manifest) => drop(needed.insert(manifest.config.digest)),
                // Of a damaged image nothing more is known, and nothing is made worse.
                Err(_) => return Ok(()),
            }
        }
        let blobs = self.directory.join("blobs/sha256");
        for name in self.store.list_dir(&blobs)? {
            let digest = name
                .to_str()
                .and_then(|n| format!("sha256:{n}").parse().ok());
            if digest.is_none_or(|d: Digest| !needed.contains(&d)) {
                self.store.remove_file(&blobs.join(name))?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> Result<FileLock, ImageError> {
        Ok(self
            .store
            .lock_file(&self.directory.join(".lock"), PATIENCE)?)
    }
}

fn entry_name(entry: &Descriptor) -> Option<Name> {
    entry.annotations.get(REF_NAME)?.parse().ok()
}
