//! Everything that can go wrong with images, told apart by kind.

use std::io;
use std::path::PathBuf;

use lcow_driver::DriverError;
use lcow_layer::digest::Digest;

/// What sort of failure an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The input is no container image of any known form.
    NotAnImage,
    /// The input, or something in the store, is damaged.
    Corrupt,
    /// The input ends too early.
    Truncated,
    /// Valid, but not something this program does.
    Unsupported,
    /// Over a limit that protects this machine.
    Refused,
    /// There is no such image.
    NotFound,
    /// Several images match.
    Ambiguous,
    /// An argument is not acceptable.
    Invalid,
    /// A container uses the image.
    InUse,
    /// The operating system said no.
    Io,
    /// The caller asked to stop.
    Cancelled,
    /// The layer store's own error; ask it for its kind.
    Store,
}

/// What can go wrong with images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The input is not an image.
    #[error("{input} is not a container image: {why}")]
    NotAnImage {
        /// The input, as people know it.
        input: String,
        /// What was found instead.
        why: String,
    },
    /// A document or the archive around it can't be understood.
    #[error("{input} is damaged: {what}: {detail}")]
    Corrupt {
        /// The input, as people know it.
        input: String,
        /// The part of it, as `index.json`.
        what: String,
        /// What is wrong.
        detail: String,
    },
    /// A blob's bytes are not those its digest names.
    #[error("{input} is corrupt: blob {expected} has the digest {actual}")]
    BlobDigest {
        /// The input.
        input: String,
        /// The digest the manifest gives.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// A blob is not as long as its descriptor says.
    #[error(
        "{input} is corrupt: blob {digest} has {actual} bytes, and its descriptor says {expected}"
    )]
    BlobSize {
        /// The input.
        input: String,
        /// The blob.
        digest: Digest,
        /// Length by the descriptor, in bytes.
        expected: u64,
        /// Length found, in bytes; where it is longer, only that much was read.
        actual: u64,
    },
    /// A layer's tar is not the one that the image's configuration names.
    #[error(
        "{input} is corrupt: layer {index} of {total} has the diff ID {actual}, and the configuration says {expected}"
    )]
    DiffId {
        /// The input.
        input: String,
        /// Which layer, counted from 1 at the base.
        index: usize,
        /// How many there are.
        total: usize,
        /// The diff ID in the configuration.
        expected: Digest,
        /// The digest of the uncompressed tar.
        actual: Digest,
    },
    /// Something that the input refers to is not in it.
    #[error("{input} is incomplete: it holds no {what}")]
    Missing {
        /// The input.
        input: String,
        /// What is missing, as `blob sha256:…` or a path.
        what: String,
    },
    /// The input ends in the middle of something.
    #[error("{input} is truncated: it ends at offset {offset}, inside {inside}")]
    Truncated {
        /// The input.
        input: String,
        /// Where it ends, in bytes of the uncompressed archive.
        offset: u64,
        /// What was being read.
        inside: String,
    },
    /// No image in the index is for the platform.
    #[error("{input} holds no image for {wanted}: it has {available}")]
    NoPlatform {
        /// The input.
        input: String,
        /// The platform asked for.
        wanted: String,
        /// The ones there are, separated by commas.
        available: String,
    },
    /// Valid, but not something this program does.
    #[error("{what} is not supported ({input})")]
    Unsupported {
        /// The input.
        input: String,
        /// What it asks for.
        what: String,
    },
    /// Over a limit that protects this machine from hostile input.
    #[error("{input} is refused: {what}")]
    Refused {
        /// The input.
        input: String,
        /// What is over which limit.
        what: String,
    },
    /// A layer could not be made into a disk, or not be placed.
    #[error("{input}: layer {index} of {total} ({digest})")]
    Layer {
        /// The input.
        input: String,
        /// Which layer, counted from 1 at the base.
        index: usize,
        /// How many there are.
        total: usize,
        /// The layer's blob, or its diff ID where the input has no digest of the blob.
        digest: String,
        /// The store's error.
        #[source]
        source: Box<DriverError>,
    },
    /// A root file system's tar could not be made into a disk.
    #[error("{input}")]
    RootFs {
        /// The input.
        input: String,
        /// The store's error.
        #[source]
        source: Box<DriverError>,
    },
    /// No image matches.
    #[error("there is no image {query}")]
    NotFound {
        /// What was asked for.
        query: String,
    },
    /// Several images match.
    #[error("{query} could be any of {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        query: String,
        /// The images it could be: name and short id.
        candidates: Vec<String>,
    },
    /// A name that no image can have.
    #[error("{name:?} can't be an image's name: {reason}")]
    InvalidName {
        /// The name as given.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A platform that can't be understood.
    #[error("{platform:?} is not a platform: OS/ARCHITECTURE[/VARIANT], as linux/arm64")]
    InvalidPlatform {
        /// The platform as given.
        platform: String,
    },
    /// Reading the input failed.
    #[error("reading {input} at offset {offset}")]
    Input {
        /// The input.
        input: String,
        /// How far reading came, in bytes of the input.
        offset: u64,
        /// The operating system's, or the decompressor's, error.
        #[source]
        source: io::Error,
    },
    /// Writing an archive failed.
    #[error("writing the archive")]
    Output(#[source] io::Error),
    /// A file operation failed.
    #[error("{operation} {path}", path = path.display())]
    Io {
        /// What was being done, as "opening".
        operation: &'static str,
        /// The file it was done to.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The layer store failed.
    #[error(transparent)]
    Store(#[from] DriverError),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl ImageError {
    /// What sort of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAnImage { .. } => ErrorKind::NotAnImage,
            Self::Corrupt { .. }
            | Self::BlobDigest { .. }
            | Self::BlobSize { .. }
            | Self::DiffId { .. }
            | Self::Missing { .. } => ErrorKind::Corrupt,
            Self::Truncated { .. } => ErrorKind::Truncated,
            Self::NoPlatform { .. } | Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Refused { .. } => ErrorKind::Refused,
            Self::Store(DriverError::Cancelled) => ErrorKind::Cancelled,
            Self::Layer { .. } | Self::RootFs { .. } | Self::Store(_) => ErrorKind::Store,
            Self::Ambiguous { .. } => ErrorKind::Ambiguous,
            Self::InvalidName { .. } | Self::InvalidPlatform { .. } => ErrorKind::Invalid,
            Self::Input { .. } | Self::Output(_) | Self::Io { .. } => ErrorKind::Io,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// What to do next, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotAnImage { .. } => {
                "an image is an OCI layout or archive, a `docker save` archive, or a tar of a root file system".into()
            }
            Self::BlobDigest { .. }
            | Self::BlobSize { .. }
            | Self::DiffId { .. }
            | Self::Missing { .. }
            | Self::Truncated { .. } => "get the archive again: what is here is not what was saved".into(),
            Self::NoPlatform { available, .. } => {
                format!("name one with --platform: {available}")
            }
            Self::Layer { source, .. } | Self::RootFs { source, .. } => return source.hint(),
            Self::Store(source) => return source.hint(),
            _ => return None,
        };
        Some(hint)
    }

    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}
