//! Everything that can go wrong in a store, told apart by kind.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lcow_layer::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::lock::Holder;
use crate::{LayerId, Origin};

/// What sort of failure an error is, for callers that act on it rather than show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The layer, or the thing in it, is not there.
    NotFound,
    /// Something of that name is there already.
    AlreadyExists,
    /// A live process uses it.
    InUse,
    /// Other layers are built on it.
    HasChildren,
    /// An argument, an id or an option is not acceptable.
    Invalid,
    /// Bytes on disk, or in the input, are damaged.
    Corrupt,
    /// Valid, but not something this program does.
    Unsupported,
    /// Deliberately not done, because it would be unsafe.
    Refused,
    /// The file system is full, or a quota is reached.
    DiskFull,
    /// The operating system said no.
    Io,
    /// The caller asked for the operation to stop.
    Cancelled,
    /// Mounting, or what does it, failed.
    Mount,
    /// A helper process failed.
    Isolation,
}

/// What can go wrong in a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// There is no such layer.
    #[error("there is no layer {id}")]
    NotFound {
        /// The id asked for.
        id: LayerId,
    },
    /// The parent of a layer to be made is not there.
    #[error("the parent of layer {id}, {parent}, does not exist")]
    NoParent {
        /// The layer to be made.
        id: LayerId,
        /// The parent asked for.
        parent: LayerId,
    },
    /// The layer holds no file of that path.
    #[error("layer {id} holds no {path}", path = String::from_utf8_lossy(path))]
    NoSuchFile {
        /// The layer.
        id: LayerId,
        /// The path asked for, as bytes.
        path: Vec<u8>,
    },
    /// There is such a layer already.
    #[error("layer {id} already exists")]
    AlreadyExists {
        /// The id asked for.
        id: LayerId,
    },
    /// A tar was already applied to the layer.
    #[error("layer {id} already has its contents")]
    AlreadyApplied {
        /// The layer.
        id: LayerId,
    },
    /// A live process uses the layer.
    #[error("layer {id} is in use by {by}", by = crate::lock::list(by))]
    InUse {
        /// The layer.
        id: LayerId,
        /// Who uses it. Empty if the operating system doesn't tell.
        by: Vec<Holder>,
    },
    /// Other layers are built on the layer.
    #[error("layer {id} has {n} built on it: {list}", n = count(children.len(), "layer"), list = join(children))]
    HasChildren {
        /// The layer.
        id: LayerId,
        /// Its direct children, sorted.
        children: Vec<LayerId>,
    },
    /// The layer is not of the kind that the operation needs.
    #[error("layer {id} is {is}, and the operation needs {needs}")]
    WrongKind {
        /// The layer.
        id: LayerId,
        /// What it is.
        is: &'static str,
        /// What it should be.
        needs: &'static str,
    },
    /// The id can't name a layer.
    #[error("{id:?} can't be a layer's id: {reason}")]
    InvalidId {
        /// The id as given.
        id: String,
        /// Why not.
        reason: &'static str,
    },
    /// An option's key, or its value, is not acceptable.
    #[error("option {key}={value:?}{origin}: allowed are {allowed}")]
    InvalidOption {
        /// The key as given.
        key: String,
        /// The value as given.
        value: String,
        /// Where it was given.
        origin: Origin,
        /// What is allowed in its place.
        allowed: String,
    },
    /// There is no option of that name.
    #[error("unknown option {key:?} with the value {value:?}{origin}: known are {known}")]
    UnknownOption {
        /// The key as given.
        key: String,
        /// The value as given.
        value: String,
        /// Where it was given.
        origin: Origin,
        /// The keys there are.
        known: String,
    },
    /// An option without `=`.
    #[error("option {option:?} has no \"=\": options are given as key=value")]
    OptionWithoutValue {
        /// The option as given.
        option: String,
    },
    /// Something in the store is damaged.
    #[error("{path} is damaged: {detail}", path = path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The store can't do this.
    #[error("{what} is not supported{}", path.as_deref().map(|p| format!(" ({})", p.display())).unwrap_or_default())]
    Unsupported {
        /// What was asked for.
        what: String,
        /// The file it was asked of.
        path: Option<PathBuf>,
    },
    /// Another process owns the data root.
    #[error("data root {root} is in use by {by}", root = root.display(), by = crate::lock::list(by))]
    Busy {
        /// The data root.
        root: PathBuf,
        /// Who holds it.
        by: Vec<Holder>,
    },
    /// The store was written by a newer version.
    #[error("data root {root} was written by a newer version: {found}", root = root.display())]
    NewerStore {
        /// The data root.
        root: PathBuf,
        /// The layout version or the features that are not known here.
        found: String,
    },
    /// The store may be read, but not written, by this version.
    #[error("data root {root} can only be read by this version: it uses {found}", root = root.display())]
    ReadOnlyStore {
        /// The data root.
        root: PathBuf,
        /// The features that are not known here.
        found: String,
    },
    /// A tar could not be made into a disk.
    #[error("converting the tar failed")]
    Convert(#[source] ConvertError),
    /// The process that converts died, or could not be started.
    #[error("the conversion process failed: {detail}")]
    Isolation {
        /// What happened to it.
        detail: String,
        /// The operating system's error, if there is one.
        #[source]
        source: Option<io::Error>,
    },
    /// A tar is not the one that was announced.
    #[error("the tar has the diff ID {found}, not {expected}")]
    WrongDiffId {
        /// What was announced.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A blank file system could not be made.
    #[error("formatting {path}", path = path.display())]
    Format {
        /// The disk.
        path: PathBuf,
        /// What sort of failure it is.
        kind: ErrorKind,
        /// The formatter's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tar that was to be applied could not be read.
    #[error("reading the tar")]
    Input(#[source] io::Error),
    /// The output could not be written.
    #[error("writing the tar")]
    Output(#[source] io::Error),
    /// A layer's disk could not be read, or not be written out again.
    #[error("{operation} layer {id}")]
    Layer {
        /// What was being done, as "reading".
        operation: &'static str,
        /// The layer.
        id: LayerId,
        /// What sort of failure it is.
        kind: ErrorKind,
        /// The format's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Mounting or unmounting failed.
    #[error("{operation} {id}")]
    Mount {
        /// `mounting`, `unmounting`, `stopping`, `freezing` or `thawing`.
        operation: &'static str,
        /// The layer.
        id: LayerId,
        /// The mounter's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A lock was not to be had in time.
    #[error("waited {seconds} s for {path}", seconds = waited.as_secs(), path = path.display())]
    Timeout {
        /// The lock.
        path: PathBuf,
        /// How long.
        waited: Duration,
    },
    /// The operating system said no.
    #[error("{operation} {path}", path = path.display())]
    Io {
        /// What was being done, as "creating".
        operation: &'static str,
        /// The file it was done to.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

/// Why a tar could not be made into a disk.
///
/// The conversion may have run in another process, so this is a plain record of the original error rather than the
/// error itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ConvertError {
    /// What sort of failure it is.
    pub kind: ErrorKind,
    /// The whole story, causes included.
    pub message: String,
}

impl DriverError {
    /// Says of an option's error where the option was given.
    pub(crate) fn given(mut self, at: &Origin) -> Self {
        if let Self::InvalidOption { origin, .. } | Self::UnknownOption { origin, .. } = &mut self {
            *origin = at.clone();
        }
        self
    }

    /// What sort of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::NoParent { .. } | Self::NoSuchFile { .. } => {
                ErrorKind::NotFound
            }
            Self::AlreadyExists { .. } | Self::AlreadyApplied { .. } => ErrorKind::AlreadyExists,
            Self::InUse { .. } | Self::Busy { .. } | Self::Timeout { .. } => ErrorKind::InUse,
            Self::HasChildren { .. } => ErrorKind::HasChildren,
            Self::WrongKind { .. }
            | Self::InvalidId { .. }
            | Self::InvalidOption { .. }
            | Self::UnknownOption { .. }
            | Self::OptionWithoutValue { .. } => ErrorKind::Invalid,
            Self::Corrupt { .. } | Self::WrongDiffId { .. } => ErrorKind::Corrupt,
            Self::Unsupported { .. } | Self::NewerStore { .. } | Self::ReadOnlyStore { .. } => {
                ErrorKind::Unsupported
            }
            Self::Convert(e) => e.kind,
            Self::Isolation { .. } => ErrorKind::Isolation,
            Self::Layer { kind, .. } | Self::Format { kind, .. } => *kind,
            Self::Mount { .. } => ErrorKind::Mount,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Io { source, .. } | Self::Input(source) | Self::Output(source) => io_kind(source),
        }
    }

    /// Whether the file system is full, or a quota is reached.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        self.kind() == ErrorKind::DiskFull
    }

    /// What to do next, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::InUse { by, .. } if by.is_empty() => {
                "stop the container or the program that uses it".into()
            }
            Self::InUse { by, .. } => format!("stop {} first", crate::lock::list(by)),
            Self::HasChildren { .. } => "remove the layers built on it first".into(),
            Self::Busy { by, .. } if by.is_empty() => {
                "stop the program that uses it, or name another data root".into()
            }
            Self::Busy { by, .. } => {
                format!(
                    "stop {}, send it your request, or name another data root",
                    crate::lock::list(by)
                )
            }
            Self::NewerStore { .. } | Self::ReadOnlyStore { .. } => {
                "use the newer version of this program, or name another data root".into()
            }
            Self::InvalidId { .. } => {
                "an id is 1 to 255 bytes of file name, and none of the data root's own names".into()
            }
            Self::Corrupt { .. } => {
                "verify the layer; if it came from an image, remove the image and load it again"
                    .into()
            }
            Self::Isolation { .. } => {
                "LCOW_NO_REEXEC=1 converts in the same process, without that protection".into()
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as the user that owns the data root, or name another one".into()
            }
            _ if self.is_disk_full() => {
                "free some space on the data root's file system and try again".into()
            }
            _ => return None,
        };
        Some(hint)
    }

    /// An operating system error, with what was being done and to which file.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }

    pub(crate) fn corrupt(path: &Path, detail: impl ToString) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            detail: detail.to_string(),
        }
    }
}

pub(crate) fn io_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
        _ => ErrorKind::Io,
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = e.source();
    }
    text
}

fn count(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}

fn join(ids: &[LayerId]) -> String {
    ids.iter()
        .map(LayerId::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}
