//! From an input to layers and an image.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use lcow_driver::{
    ApplyRequest, Cancel, DriverError, Input as Tar, LayerId, Placed, Reference, Store, TempDir,
};
use lcow_layer::digest::{Digest, chain_id};

use crate::archive::{Entry, EntryKind, Stream, Walker};
use crate::documents::{MAX_DOCUMENT, RunConfig};
use crate::hashing::Watched;
use crate::plan::{Choice, PlannedImage, PlannedLayer, Unplanned, plan};
use crate::source::{Blobs, Held, RootFs, Source};
use crate::{Image, ImageError, Images, Input, Name, Platform};

/// How much of a stream's short blobs is kept in memory, in bytes; the rest waits in files.
const MAX_MEMORY: u64 = 64 << 20;
/// The search path of programs in an image that was made from a bare tar.
pub(crate) const DEFAULT_PATH: &str =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How an image is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The image's name, in place of those in the input.
    pub name: Option<Name>,
    /// Which of an index's images; this machine's by default.
    pub platform: Option<Platform>,
    /// What a bare tag in the input belongs to: the input file's name without its ending.
    pub stem: Option<String>,
}

/// What happens during a load, for progress.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A layer begins.
    Layer {
        /// Counted from 1 at the base.
        index: usize,
        /// How many the image has; 0 if that is not known yet.
        total: usize,
        /// What it will be known by; `None` for a bare tar.
        diff_id: Option<Digest>,
        /// Length of its blob in bytes, where known.
        size: Option<u64>,
    },
    /// So many more bytes of the layer were read.
    Bytes(u64),
    /// The layer is there.
    Done {
        /// Whether it was there before.
        present: bool,
    },
    /// A blob that came before what says where it belongs waits in a file.
    Waiting {
        /// Its length in bytes.
        size: u64,
    },
}

/// An image that was loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The image, with all its names.
    pub image: Image,
    /// The names that this load gave it.
    pub names: Vec<Name>,
    /// How many of its layers are new.
    pub new_layers: usize,
}

impl Images {
    /// Loads the image or images of an input.
    ///
    /// Layers that are there already are not read. On failure, layers that this load made are removed again.
    ///
    /// # Errors
    /// All of [`ImageError`].
    pub fn load(
        &self,
        input: Input<'_>,
        options: &LoadOptions,
        cancel: &Cancel,
        progress: &(dyn Fn(Event) + Sync),
    ) -> Result<Vec<Loaded>, ImageError> {
        let input_name = match &input {
            Input::Path(path) => path.display().to_string(),
            Input::Stream { name, .. } => name.clone(),
        };
        let mut session = Session {
            images: self,
            store: &self.store,
            input: input_name,
            cancel,
            progress,
            held: HashMap::new(),
            made: Vec::new(),
        };
        let result = session.run(input, options);
        if result.is_err() {
            session.undo();
        }
        // A reader that failed because of the cancellation says so in its own way.
        result.map_err(|e| {
            if cancel.is_cancelled() {
                ImageError::Cancelled
            } else {
                e
            }
        })
    }
}

/// One load: what it holds, and what it made.
struct Session<'a> {
    images: &'a Images,
    store: &'a Store,
    input: String,
    cancel: &'a Cancel,
    progress: &'a (dyn Fn(Event) + Sync),
    /// Keeps the layers from being removed until the image's record names them.
    held: HashMap<LayerId, Reference>,
    /// In the order they were made.
    made: Vec<LayerId>,
}

impl Session<'_> {
    fn run(&mut self, input: Input<'_>, options: &LoadOptions) -> Result<Vec<Loaded>, ImageError> {
        let host = Platform::host();
        let choice = Choice {
            platform: options.platform.as_ref().unwrap_or(&host),
            strict: options.platform.is_some(),
            stem: options.stem.as_deref(),
        };
        let images = match crate::source::open(input)? {
            Source::RootFs(tar) => return self.root_fs(tar, options).map(|loaded| vec![loaded]),
            Source::Blobs(blobs) => {
                let images = plan(&blobs, &choice).map_err(|e| self.unplanned(e))?;
                self.one_name(&images, options)?;
                self.layers(&images, &blobs)?;
                images
            }
            Source::Stream(walker) => self.stream(walker, &choice, options)?,
        };
        images
            .into_iter()
            .map(|image| self.record(image, options))
            .collect()
    }

    fn one_name(&self, images: &[PlannedImage], options: &LoadOptions) -> Result<(), ImageError> {
        if options.name.is_some() && images.len() > 1 {
            return Err(ImageError::Refused {
                input: self.input.clone(),
                what: format!(
                    "it holds {} images, and one name was given for all",
                    images.len()
                ),
            });
        }
        Ok(())
    }

    fn unplanned(&self, why: Unplanned) -> ImageError {
        match why {
            Unplanned::Failed(error) => error,
            // With neither, there is nothing to say that it should be an image.
            Unplanned::Missing(what) if what.contains(" or ") => ImageError::NotAnImage {
                input: self.input.clone(),
                why: format!("it holds no {what}"),
            },
            Unplanned::Missing(what) => ImageError::Missing {
                input: self.input.clone(),
                what,
            },
        }
    }

    /// Makes all layers from blobs that can be had in any order.
    fn layers(&mut self, images: &[PlannedImage], blobs: &Blobs) -> Result<(), ImageError> {
        for image in images {
            for index in 0..image.layers.len() {
                self.cancel.check()?;
                let layer = &image.layers[index];
                if self.there(image, index)? {
                    continue;
                }
                let Some(mut reader) = blobs.open(&layer.path)? else {
                    let what = match &layer.blob {
                        Some((digest, _)) => format!("blob {digest}"),
                        None => layer.path.clone(),
                    };
                    return Err(ImageError::Missing {
                        input: self.input.clone(),
                        what,
                    });
                };
                self.layer(image, index, blobs.size(&layer.path)?, &mut reader)?;
            }
        }
        Ok(())
    }

    /// Reads an archive from start to end: what is needed and can be placed is converted as it passes, and the rest kept.
    fn stream(
        &mut self,
        mut walker: Walker<Stream<Box<dyn Read + Send + '_>>>,
        choice: &Choice<'_>,
        options: &LoadOptions,
    ) -> Result<Vec<PlannedImage>, ImageError> {
        let mut blobs = Blobs::held(&self.input);
        let mut spool = Spool {
            store: self.store,
            directory: None,
            count: 0,
            memory: 0,
        };
        while let Some(entry) = walker.next()? {
            self.cancel.check()?;
            match entry.kind {
                EntryKind::Other => continue,
                EntryKind::Link(target) => {
                    blobs.hold(entry.path, Held::Link(target));
                    continue;
                }
                EntryKind::File
                    if entry.size <= MAX_DOCUMENT && spool.memory + entry.size <= MAX_MEMORY =>
                {
                    spool.memory += entry.size;
                    blobs.hold(entry.path, Held::Memory(walker.read_all()?));
                    continue;
                }
                EntryKind::File => {}
            }
            if self.large(&mut walker, &entry, &blobs, choice, options)? {
                continue;
            }
            (self.progress)(Event::Waiting { size: entry.size });
            let file = spool
                .keep(&mut walker.data(), self.cancel)
                .map_err(|e| self.input_error(e))?;
            blobs.hold(entry.path, Held::File(file, entry.size));
        }
        let images = plan(&blobs, choice).map_err(|e| self.unplanned(e))?;
        self.one_name(&images, options)?;
        self.layers(&images, &blobs)?;
        Ok(images)
    }

    /// Deals with a large blob as it passes, if what came before it says what it is for: it is not needed, or it is a layer
    /// that can be made now. Gives whether it is dealt with.
    fn large(
        &mut self,
        walker: &mut Walker<Stream<Box<dyn Read + Send + '_>>>,
        entry: &Entry,
        blobs: &Blobs,
        choice: &Choice<'_>,
        options: &LoadOptions,
    ) -> Result<bool, ImageError> {
        let images = match plan(blobs, choice) {
            Ok(images) => images,
            Err(Unplanned::Missing(_)) => return Ok(false),
            // What came is wrong, and what is still to come can't mend it.
            Err(Unplanned::Failed(error)) => return Err(error),
        };
        self.one_name(&images, options)?;
        let mut uses = Vec::new();
        for image in &images {
            for (index, layer) in image.layers.iter().enumerate() {
                if layer.path == entry.path && !self.there_quietly(layer)? {
                    uses.push((image, index));
                }
            }
        }
        match *uses.as_slice() {
            [] => Ok(true),
            [(image, index)] if self.layers_below(image, index, blobs)? => {
                self.layer(image, index, Some(entry.size), &mut walker.data())?;
                Ok(true)
            }
            // It passes but once.
            _ => Ok(false),
        }
    }

    /// Makes the layers below one, as far as their blobs are there. Gives whether all are.
    fn layers_below(
        &mut self,
        image: &PlannedImage,
        end: usize,
        blobs: &Blobs,
    ) -> Result<bool, ImageError> {
        for index in 0..end {
            let layer = &image.layers[index];
            if self.there_quietly(layer)? {
                continue;
            }
            let size = blobs.size(&layer.path)?;
            let Some(mut reader) = blobs.open(&layer.path)? else {
                return Ok(false);
            };
            self.layer(image, index, size, &mut reader)?;
        }
        Ok(true)
    }

    /// Whether a layer is there; if so it stays until the load is over.
    fn there_quietly(&mut self, layer: &PlannedLayer) -> Result<bool, ImageError> {
        if self.held.contains_key(&layer.id) {
            return Ok(true);
        }
        let reference = match self.store.reference(&layer.id) {
            Ok(reference) => reference,
            Err(DriverError::NotFound { .. }) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let found = self.store.metadata(&layer.id)?.applied.map(|a| a.diff_id);
        if found != Some(layer.diff_id) {
            return Err(ImageError::Corrupt {
                input: self.store.root().display().to_string(),
                what: format!("layer {}", layer.id),
                detail: match found {
                    Some(found) => format!("it holds the diff ID {found}, not {}", layer.diff_id),
                    None => "it has no contents".to_owned(),
                },
            });
        }
        self.held.insert(layer.id.clone(), reference);
        Ok(true)
    }

    fn there(&mut self, image: &PlannedImage, index: usize) -> Result<bool, ImageError> {
        let layer = &image.layers[index];
        if self.held.contains_key(&layer.id) {
            return Ok(true);
        }
        let there = self.there_quietly(layer)?;
        if there {
            self.begin(image, index, layer.blob.map(|(_, size)| size));
            (self.progress)(Event::Done { present: true });
        }
        Ok(there)
    }

    fn begin(&self, image: &PlannedImage, index: usize, size: Option<u64>) {
        let total = image.layers.len();
        let diff_id = Some(image.layers[index].diff_id);
        (self.progress)(Event::Layer {
            index: index + 1,
            total,
            diff_id,
            size,
        });
    }

    /// Makes one layer from its blob, on layers that are there.
    fn layer(
        &mut self,
        image: &PlannedImage,
        index: usize,
        size: Option<u64>,
        blob: &mut (dyn Read + Send),
    ) -> Result<(), ImageError> {
        let layer = &image.layers[index];
        let total = image.layers.len();
        self.begin(image, index, size);
        let parent = index.checked_sub(1).map(|below| &image.layers[below].id);
        let request = ApplyRequest {
            expected: Some(layer.diff_id),
            ..ApplyRequest::default()
        };
        let on_read = |n| (self.progress)(Event::Bytes(n));
        let mut watched = Watched::new(blob, &self.input, layer.blob, &on_read);
        let result = self
            .store
            .stage(parent, Tar::Reader(&mut watched), &request, self.cancel);
        // A layer that can't be converted may be damaged: then its digest is the better story. And one whose end was not
        // read is not verified yet.
        watched.finish(self.cancel)?;
        let staged = result.map_err(|error| self.layer_error(layer, index, total, error))?;
        let placed = staged
            .place(&layer.id)
            .map_err(|e| self.layer_error(layer, index, total, e))?;
        if placed == Placed::Created {
            self.made.push(layer.id.clone());
        }
        let reference = self.store.reference(&layer.id)?;
        self.held.insert(layer.id.clone(), reference);
        (self.progress)(Event::Done {
            present: placed == Placed::AlreadyThere,
        });
        Ok(())
    }

    fn layer_error(
        &self,
        layer: &PlannedLayer,
        index: usize,
        total: usize,
        source: DriverError,
    ) -> ImageError {
        let input = self.input.clone();
        match source {
            DriverError::WrongDiffId { expected, found } => ImageError::DiffId {
                input,
                index: index + 1,
                total,
                expected,
                actual: found,
            },
            DriverError::Cancelled => ImageError::Cancelled,
            source => {
                let digest = layer
                    .blob
                    .as_ref()
                    .map_or(layer.diff_id, |(digest, _)| *digest);
                ImageError::Layer {
                    input,
                    index: index + 1,
                    total,
                    digest: digest.to_string(),
                    source: Box::new(source),
                }
            }
        }
    }

    fn input_error(&self, source: io::Error) -> ImageError {
        source
            .downcast::<ImageError>()
            .unwrap_or_else(|source| ImageError::Input {
                input: self.input.clone(),
                offset: 0,
                source,
            })
    }

    /// Makes an image of a root file system's tar. The same tar gives the same image.
    fn root_fs(&mut self, tar: RootFs<'_>, options: &LoadOptions) -> Result<Loaded, ImageError> {
        let size = match &tar {
            RootFs::File(file) => file.metadata().ok().map(|m| m.len()),
            RootFs::Stream(_) => None,
        };
        (self.progress)(Event::Layer {
            index: 1,
            total: 1,
            diff_id: None,
            size,
        });
        let mut reader: Box<dyn Read + Send + '_> = match tar {
            RootFs::File(file) => Box::new(file),
            RootFs::Stream(reader) => reader,
        };
        let on_read = |n| (self.progress)(Event::Bytes(n));
        let mut watched = Watched::new(&mut reader, &self.input, None, &on_read);
        let request = ApplyRequest::default();
        let result = self
            .store
            .stage(None, Tar::Reader(&mut watched), &request, self.cancel);
        watched.finish(self.cancel)?;
        let staged = result.map_err(|source| ImageError::RootFs {
            input: self.input.clone(),
            source: Box::new(source),
        })?;
        let record = staged.applied().record.clone();
        let id = LayerId::new(&chain_id(None, &record.diff_id).hex())?;
        let placed = staged.place(&id)?;
        if placed == Placed::Created {
            self.made.push(id.clone());
        }
        let reference = self.store.reference(&id)?;
        self.held.insert(id.clone(), reference);
        (self.progress)(Event::Done {
            present: placed == Placed::AlreadyThere,
        });

        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let run = RunConfig {
            env: vec![DEFAULT_PATH.to_owned()],
            cmd: vec!["/bin/sh".to_owned()],
            ..RunConfig::default()
        };
        let config = crate::commit::new_config(&platform, &run, &record.diff_id);
        let manifest = crate::save::manifest(&config, &[(record.diff_id, record.tar_size)]);
        let names: Vec<Name> = options.name.iter().cloned().collect();
        let image = self.images.add(&manifest, &config, &names)?;
        Ok(Loaded {
            image,
            names,
            new_layers: self.made.len(),
        })
    }

    fn record(&mut self, image: PlannedImage, options: &LoadOptions) -> Result<Loaded, ImageError> {
        let names: Vec<Name> = match &options.name {
            Some(name) => vec![name.clone()],
            None => image.names,
        };
        let manifest = match image.manifest {
            Some(bytes) => bytes,
            None => {
                let mut layers = Vec::with_capacity(image.layers.len());
                for layer in &image.layers {
                    let applied = self.store.metadata(&layer.id)?.applied;
                    layers.push((layer.diff_id, applied.map_or(0, |a| a.tar_size)));
                }
                crate::save::manifest(&image.config, &layers)
            }
        };
        let new_layers = image
            .layers
            .iter()
            .filter(|l| self.made.contains(&l.id))
            .count();
        let image = self.images.add(&manifest, &image.config, &names)?;
        Ok(Loaded {
            image,
            names,
            new_layers,
        })
    }

    /// Takes back what a failed load made.
    fn undo(&mut self) {
        self.held.clear();
        if let Err(error) = self.images.collect(&self.made) {
            tracing::warn!(%error, "layers of a failed load stay behind");
        }
    }
}

/// Keeps blobs of a stream in files until it is known where they belong.
struct Spool<'a> {
    store: &'a Store,
    directory: Option<TempDir>,
    count: u64,
    memory: u64,
}

impl Spool<'_> {
    fn keep(&mut self, data: &mut dyn Read, cancel: &Cancel) -> io::Result<PathBuf> {
        if self.directory.is_none() {
            self.directory = Some(self.store.temp_dir("load").map_err(other)?);
        }
        let directory = self
            .directory
            .as_ref()
            .map_or_else(PathBuf::new, |d| d.path().to_owned());
        self.count += 1;
        let path = directory.join(format!("blob-{}", self.count));
        let failed = |e: io::Error| io::Error::other(ImageError::io("writing", &path)(e));
        let mut file = File::create_new(&path).map_err(failed)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            cancel.check().map_err(other)?;
            let n = data.read(&mut buffer)?;
            if n == 0 {
                return Ok(path);
            }
            io::Write::write_all(&mut file, &buffer[..n]).map_err(failed)?;
        }
    }
}

fn other(error: DriverError) -> io::Error {
    io::Error::other(ImageError::Store(error))
}
