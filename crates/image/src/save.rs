//! From images to an OCI archive.
//!
//! The archive has everything that says what a layer is before the layers, base first, so that a reader can convert each as
//! it streams by. Layers are uncompressed tars, made again byte for byte; the configuration is the one that came; the
//! manifest is new, since the one that came may name compressed blobs. A `manifest.json` in Docker's form refers to the same
//! blobs, for engines that read no other. The same images give the same bytes.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};

use lcow_driver::{Against, Cancel, DriverError, LayerId};
use lcow_layer::digest::Digest;

use crate::documents::{
    CONFIG, Descriptor, DockerImage, FULL_NAME, Index, LAYER, MANIFEST, Manifest, REF_NAME,
    to_bytes,
};
use crate::source::Blobs;
use crate::write::Archive;
use crate::{Image, ImageError, Images, Name};

/// `oci-layout` (OCI image specification, image-layout.md).
pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An image to be saved, with the names it gets in the archive.
#[derive(Debug, Clone)]
pub struct Saved {
    /// The image.
    pub image: Image,
    /// Its names there; with none it can be found by its digest alone.
    pub names: Vec<Name>,
}

struct Layer {
    id: LayerId,
    diff_id: Digest,
    size: u64,
}

impl Images {
    /// Bytes that [`save`](Images::save) will write of layers, for progress.
    ///
    /// # Errors
    /// The store's.
    pub fn saved_size(&self, images: &[Saved]) -> Result<u64, ImageError> {
        let mut seen = HashSet::new();
        let mut sum = 0;
        for saved in images {
            for layer in self.layers_of(&saved.image)? {
                if seen.insert(layer.diff_id) {
                    sum += layer.size;
                }
            }
        }
        Ok(sum)
    }

    /// Writes images as one OCI archive. `progress` is told the bytes of layers written since the last time.
    ///
    /// # Errors
    /// [`ImageError::Output`]; [`ImageError::Store`] if a layer can't be made again exactly as it came; the output is
    /// worthless then.
    pub fn save(
        &self,
        images: &[Saved],
        out: &mut dyn Write,
        cancel: &Cancel,
        progress: &dyn Fn(u64),
    ) -> Result<(), ImageError> {
        // By path, and so in one order whatever the order of the images.
        let mut documents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut index = Vec::new();
        let mut docker: Vec<DockerImage> = Vec::new();
        let mut layers: Vec<Layer> = Vec::new();
        for saved in images {
            let config = self.config_bytes(&saved.image)?;
            let own = self.layers_of(&saved.image)?;
            let sizes: Vec<_> = own.iter().map(|l| (l.diff_id, l.size)).collect();
            let manifest = manifest(&config, &sizes);
            let mut entry = Descriptor::new(MANIFEST, Digest::of(&manifest), manifest.len() as u64);
            entry.platform = Some(saved.image.config.platform());
            for name in &saved.names {
                let mut named = entry.clone();
                named
                    .annotations
                    .insert(REF_NAME.to_owned(), name.to_string());
                named.annotations.insert(FULL_NAME.to_owned(), name.full());
                index.push(named);
            }
            if saved.names.is_empty() {
                index.push(entry);
            }
            let config_path = Blobs::path_of(&Digest::of(&config));
            docker.push(DockerImage {
                config: config_path.clone(),
                repo_tags: saved.names.iter().map(ToString::to_string).collect(),
                layers: own.iter().map(|l| Blobs::path_of(&l.diff_id)).collect(),
            });
            documents.insert(Blobs::path_of(&Digest::of(&manifest)), manifest);
            documents.insert(config_path, config);
            for layer in own {
                if !layers.iter().any(|known| known.diff_id == layer.diff_id) {
                    layers.push(layer);
                }
            }
        }

        let mut archive = Archive::new(out);
        let documents_written = (|| {
            archive.file("oci-layout", LAYOUT)?;
            archive.file("index.json", &to_bytes(&Index::of(index)))?;
            archive.file("manifest.json", &to_bytes(&docker))?;
            archive.directory("blobs/")?;
            archive.directory("blobs/sha256/")?;
            documents
                .iter()
                .try_for_each(|(path, bytes)| archive.file(path, bytes))
        })();
        documents_written.map_err(ImageError::Output)?;
        for layer in &layers {
            let path = Blobs::path_of(&layer.diff_id);
            archive
                .begin(&path, layer.size)
                .map_err(ImageError::Output)?;
            let mut tar = Counted {
                inner: archive.data(),
                progress,
            };
            self.store
                .diff(&layer.id, &Against::Parent, &mut tar, cancel)
                .map_err(|e| match e {
                    DriverError::Output(e) => ImageError::Output(e),
                    DriverError::Cancelled => ImageError::Cancelled,
                    e => ImageError::Store(e),
                })?;
            archive.end(layer.size).map_err(ImageError::Output)?;
        }
        archive.finish().map_err(ImageError::Output)
    }

    fn layers_of(&self, image: &Image) -> Result<Vec<Layer>, ImageError> {
        let mut layers = Vec::with_capacity(image.layers.len());
        for (id, diff_id) in image.layers.iter().zip(&image.config.rootfs.diff_ids) {
            let applied = self.store.metadata(id)?.applied;
            match applied {
                Some(applied) if applied.diff_id == *diff_id => {
                    layers.push(Layer {
                        id: id.clone(),
                        diff_id: *diff_id,
                        size: applied.tar_size,
                    });
                }
                _ => {
                    return Err(ImageError::Corrupt {
                        input: self.store.root().display().to_string(),
                        what: format!("layer {id}"),
                        detail: format!("it does not hold the diff ID {diff_id}"),
                    });
                }
            }
        }
        Ok(layers)
    }
}

/// A manifest of uncompressed layers: (diff ID, bytes of the tar), base first.
pub(crate) fn manifest(config: &[u8], layers: &[(Digest, u64)]) -> Vec<u8> {
    to_bytes(&Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        config: Descriptor::new(CONFIG, Digest::of(config), config.len() as u64),
        layers: layers
            .iter()
            .map(|&(digest, size)| Descriptor::new(LAYER, digest, size))
            .collect(),
    })
}

struct Counted<'a, W> {
    inner: W,
    progress: &'a dyn Fn(u64),
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        (self.progress)(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
