//! The JSON documents of images: OCI index, manifest and configuration, and Docker's equivalents.
//!
//! Written by Go programs, they hold `null` where a list is empty, media types of two families, and fields that newer
//! specifications added. So the types here take what they need and nothing else, a `null` counts as absent, and the bytes
//! themselves, not these types, are what is stored. OCI image specification v1.1; Docker image manifest version 2,
//! schema 2.

use std::collections::BTreeMap;

use lcow_layer::digest::Digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{ImageError, Platform};

/// The longest index, manifest or configuration that is read, in bytes: the limit registries have.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// The most layers of an image: the longest chain the store promises to mount.
pub const MAX_LAYERS: usize = 500;
/// The most entries of an index.
pub(crate) const MAX_INDEX: usize = 10_000;
/// How deep indexes may refer to indexes.
pub(crate) const MAX_INDEX_DEPTH: usize = 4;

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The annotation that holds a name or a tag (OCI image specification, annotations).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation that holds a full name (containerd and Docker).
pub(crate) const FULL_NAME: &str = "io.containerd.image.name";
/// The annotation of manifests that are not images but statements about one (BuildKit).
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// What a descriptor refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Index,
    Manifest,
    Other,
}

/// A reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default, deserialize_with = "null")]
    pub media_type: String,
    /// SHA-256 of the blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What the image it belongs to runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Names and the like.
    #[serde(
        default,
        deserialize_with = "null",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    pub(crate) fn target(&self) -> Target {
        match self.media_type.as_str() {
            INDEX | DOCKER_INDEX => Target::Index,
            MANIFEST | DOCKER_MANIFEST => Target::Manifest,
            _ => Target::Other,
        }
    }

    /// Whether this is a manifest that runs nowhere: a provenance statement or the like.
    pub(crate) fn is_attestation(&self) -> bool {
        self.annotations.contains_key(REFERENCE_TYPE)
            || self
                .platform
                .as_ref()
                .is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
    }
}

/// A list of manifests: of the images in a layout, or of one image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, deserialize_with = "null")]
    pub manifests: Vec<Descriptor>,
}

impl Index {
    pub(crate) fn of(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(INDEX.to_owned()),
            manifests,
        }
    }
}

/// An image: its configuration and its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What the document says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, base first.
    #[serde(default, deserialize_with = "null")]
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    pub(crate) fn is_image(&self) -> bool {
        // Docker's own archives leave the type out now and then.
        matches!(self.config.media_type.as_str(), CONFIG | DOCKER_CONFIG | "")
    }
}

/// An image's configuration: what runs in it, and what its layers are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Config {
    /// When it was made, RFC 3339.
    #[serde(default)]
    pub created: Option<String>,
    /// As `amd64`.
    #[serde(default, deserialize_with = "null")]
    pub architecture: String,
    /// As `linux`.
    #[serde(default, deserialize_with = "null")]
    pub os: String,
    /// As `v8`.
    #[serde(default)]
    pub variant: Option<String>,
    /// What runs.
    #[serde(default, deserialize_with = "null")]
    pub config: RunConfig,
    /// The layers.
    #[serde(default, deserialize_with = "null")]
    pub rootfs: RootFs,
    /// How it was made, base first.
    #[serde(default, deserialize_with = "null")]
    pub history: Vec<History>,
}

impl Config {
    /// What it runs on.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// The defaults of a container's process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// Name or number, with an optional `:group`; empty for root.
    #[serde(default, deserialize_with = "null")]
    pub user: String,
    /// `NAME=value`.
    #[serde(default, deserialize_with = "null")]
    pub env: Vec<String>,
    /// What comes before the command.
    #[serde(default, deserialize_with = "null")]
    pub entrypoint: Vec<String>,
    /// The command, where none is given.
    #[serde(default, deserialize_with = "null")]
    pub cmd: Vec<String>,
    /// The working directory; empty for `/`.
    #[serde(default, deserialize_with = "null")]
    pub working_dir: String,
    /// What whoever made it wants to say.
    #[serde(default, deserialize_with = "null")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the process to end, as `SIGTERM`.
    #[serde(default, deserialize_with = "null")]
    pub stop_signal: String,
}

/// The layers of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// SHA-256 of each uncompressed layer tar, base first.
    #[serde(default, deserialize_with = "null")]
    pub diff_ids: Vec<Digest>,
}

/// One step of how an image was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether it made no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// One image of a `docker save` archive's `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    /// The configuration's path in the archive.
    pub config: String,
    #[serde(default, deserialize_with = "null")]
    pub repo_tags: Vec<String>,
    /// The layers' paths in the archive, base first.
    #[serde(default, deserialize_with = "null")]
    pub layers: Vec<String>,
}

fn null<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads a document of `input`, or says which one is damaged.
pub(crate) fn parse<T: DeserializeOwned>(
    input: &str,
    what: &str,
    bytes: &[u8],
) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|e| ImageError::Corrupt {
        input: input.to_owned(),
        what: what.to_owned(),
        detail: e.to_string(),
    })
}

/// The bytes of a document that this program makes. The order of its fields is that of the type, so the same document has
/// the same bytes everywhere.
pub(crate) fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("maps with text keys and plain values serialise")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_count_as_absent() {
        let config: Config = parse(
            "x",
            "config",
            br#"{"os":"linux","architecture":"amd64","created":null,"config":{"Env":null,"Cmd":null,"Entrypoint":null,
                 "Labels":null,"User":"","WorkingDir":""},"rootfs":{"type":"layers","diff_ids":null},"history":null}"#,
        )
        .unwrap();
        assert_eq!(config.platform().to_string(), "linux/amd64");
        assert_eq!(config.config, RunConfig::default());
        let no_config: Config = parse("x", "config", br#"{"config":null}"#).unwrap();
        assert_eq!(no_config, Config::default());
    }

    #[test]
    fn other_digests_are_an_error_that_names_the_document() {
        let bytes = br#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"../../etc/passwd","size":1}]}"#;
        let error = parse::<Index>("a.tar", "index.json", bytes)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("a.tar") && error.contains("index.json"),
            "{error}"
        );
    }
}
