//! The small files of the store: `store.json`, `layer.json` and `layerchain.json`.

use std::path::Path;

use lcow_layer::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::{DriverError, LayerId};

/// The store's layout, counted up when an older program must not touch it.
pub(crate) const LAYOUT: u32 = 1;
/// Names of the features of this version, by what an older program may do with a store that has them: `compat` anything,
/// `ro_compat` read, `incompat` nothing.
pub(crate) const KNOWN_RO_COMPAT: &[&str] = &[];
/// See [`KNOWN_RO_COMPAT`].
pub(crate) const KNOWN_INCOMPAT: &[&str] = &[];

/// `store.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreRecord {
    /// The layout's version.
    pub layout: u32,
    /// Features that any version may ignore.
    #[serde(default)]
    pub compat: Vec<String>,
    /// Features that a version must know in order to write.
    #[serde(default)]
    pub ro_compat: Vec<String>,
    /// Features that a version must know in order to open the store at all.
    #[serde(default)]
    pub incompat: Vec<String>,
}

impl Default for StoreRecord {
    fn default() -> Self {
        Self {
            layout: LAYOUT,
            compat: Vec::new(),
            ro_compat: Vec::new(),
            incompat: Vec::new(),
        }
    }
}

/// How a disk lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// A fixed VHD: the disk, then a footer of 512 bytes.
    #[default]
    Vhd,
    /// A dynamic VHDX.
    Vhdx,
}

impl DiskFormat {
    /// `vhd` or `vhdx`: the option's value and the file's ending.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }
}

/// What a layer directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A read-only layer with its contents.
    Layer,
    /// A sandbox: the writable disk of a container.
    Sandbox,
    /// A layer that nothing was applied to yet.
    Empty,
}

impl Kind {
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Layer => "a read-only layer",
            Self::Sandbox => "a sandbox",
            Self::Empty => "a layer without contents",
        }
    }
}

/// `layer.json`. Fields that this version does not know are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// When the layer was made, RFC 3339.
    pub created: String,
    /// How the disk lies in its file.
    #[serde(default)]
    pub format: DiskFormat,
    /// What a tar was made into. Counts only if `layer.vhd` is there: the disk is renamed into place last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<AppliedRecord>,
    /// What the sandbox was made as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxRecord>,
    /// What a newer version wrote.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// The part of `layer.json` about an applied tar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedRecord {
    /// SHA-256 of the uncompressed tar.
    pub diff_id: Digest,
    /// The OCI chain ID; absent if the parent has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_id: Option<Digest>,
    /// Length of the uncompressed tar, in bytes.
    pub tar_size: u64,
    /// Entries in the tar.
    pub entries: u64,
    /// Size of the file system, in bytes; verity tree and footer are not counted.
    pub disk_size: u64,
    /// Bytes of the file as allocated when it was made.
    pub allocated: u64,
    /// The tar as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed: Option<CompressedRecord>,
    /// Whether OCI whiteouts were made into overlay ones.
    #[serde(default = "yes")]
    pub overlay: bool,
    /// Root hash of the dm-verity tree behind the file system, in hexadecimal digits. Absent: there is no tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity_root: Option<String>,
}

fn yes() -> bool {
    true
}

/// A compressed tar, as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressedRecord {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// The part of `layer.json` about a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Size of the file system, in bytes; the footer is not counted.
    pub size: u64,
    /// The file system's UUID, as hexadecimal digits with hyphens.
    pub uuid: String,
    /// Whether it has a journal.
    pub journal: bool,
}

impl LayerRecord {
    pub(crate) fn new() -> Self {
        Self {
            created: jiff::Timestamp::now().to_string(),
            format: DiskFormat::Vhd,
            applied: None,
            sandbox: None,
            other: serde_json::Map::new(),
        }
    }
}

/// Reads `layerchain.json`: ids, nearest parent first. The original driver wrote absolute paths there, of which the final
/// components count, and `null` for no parent.
pub(crate) fn parse_chain(path: &Path, bytes: &[u8]) -> Result<Vec<LayerId>, DriverError> {
    let entries: Option<Vec<String>> =
        serde_json::from_slice(bytes).map_err(|e| DriverError::corrupt(path, e))?;
    entries
        .unwrap_or_default()
        .iter()
        .map(|entry| LayerId::new(entry).map_err(|e| DriverError::corrupt(path, e)))
        .collect()
}

/// The bytes of a record as it is written: readable, with a newline at the end.
pub(crate) fn to_bytes<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, DriverError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| DriverError::corrupt(path, e))?;
    bytes.push(b'\n');
    Ok(bytes)
}
