//! Images made by hand, in every form they travel in.

use std::io::Write;
use std::path::Path;

use lcow_layer::digest::Digest;
use serde_json::{Value, json};

/// Files by path, in the order they have in an archive.
pub(crate) type Files = Vec<(String, Vec<u8>)>;

/// What an image is made of.
#[derive(Clone)]
pub(crate) struct ImageSpec {
    pub layers: Vec<Vec<u8>>,
    pub gzip: bool,
    pub config: Value,
    pub name: Option<String>,
    pub architecture: String,
}

impl ImageSpec {
    pub(crate) fn new(name: &str, layers: Vec<Vec<u8>>) -> Self {
        Self {
            layers,
            gzip: true,
            config: json!({ "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "Labels": null }),
            name: Some(name.to_owned()),
            architecture: "amd64".to_owned(),
        }
    }

    pub(crate) fn diff_ids(&self) -> Vec<String> {
        self.layers
            .iter()
            .map(|tar| Digest::of(tar).to_string())
            .collect()
    }

    pub(crate) fn config_bytes(&self) -> Vec<u8> {
        let config = json!({
            "created": "2024-05-06T07:08:09Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids() },
            "history": self.layers.iter().map(|_| json!({ "created_by": "a test" })).collect::<Vec<_>>(),
        });
        serde_json::to_vec(&config).unwrap()
    }

    pub(crate) fn id(&self) -> String {
        Digest::of(&self.config_bytes()).to_string()
    }
}

/// A tar of regular files and, with names that end in `/`, directories.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
        } else {
            header.set_mode(0o755);
            header.set_size(data.len() as u64);
        }
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that don't compress, the same every time.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": Digest::of(bytes).to_string(),
        "size": bytes.len(),
    })
}

fn blob(bytes: &[u8]) -> (String, Vec<u8>) {
    (
        format!("blobs/sha256/{}", Digest::of(bytes).hex()),
        bytes.to_vec(),
    )
}

/// An OCI layout: what says where layers belong comes first, as `lcow save` writes it.
pub(crate) fn oci(images: &[ImageSpec]) -> Files {
    let mut documents = Vec::new();
    let mut layers = Vec::new();
    let mut index = Vec::new();
    for image in images {
        let config = image.config_bytes();
        let mut descriptors = Vec::new();
        for tar in &image.layers {
            let (kind, bytes) = if image.gzip {
                ("layer.v1.tar+gzip", gzip(tar))
            } else {
                ("layer.v1.tar", tar.clone())
            };
            descriptors.push(descriptor(kind, &bytes));
            layers.push(blob(&bytes));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config),
            "layers": descriptors,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let mut entry = descriptor("manifest.v1+json", &manifest);
        entry["platform"] = json!({ "os": "linux", "architecture": image.architecture });
        if let Some(name) = &image.name {
            entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        }
        index.push(entry);
        documents.push(blob(&config));
        documents.push(blob(&manifest));
    }
    let index = json!({ "schemaVersion": 2, "manifests": index });
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
    ];
    files.extend(documents);
    files.extend(layers);
    files
}

/// The old form of `docker save`.
pub(crate) fn docker(image: &ImageSpec) -> Files {
    let config = image.config_bytes();
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let mut files = Vec::new();
    let mut paths = Vec::new();
    for tar in &image.layers {
        let path = format!("{}/layer.tar", Digest::of(tar).hex());
        paths.push(path.clone());
        files.push((path, tar.clone()));
    }
    let manifest = json!([{ "Config": config_name, "RepoTags": [image.name], "Layers": paths }]);
    files.push((config_name, config));
    files.push((
        "manifest.json".to_owned(),
        serde_json::to_vec(&manifest).unwrap(),
    ));
    files
}

/// The files as an archive.
pub(crate) fn archive(files: &Files) -> Vec<u8> {
    let files: Vec<_> = files
        .iter()
        .map(|(name, data)| (name.as_str(), data.as_slice()))
        .collect();
    tar(&files)
}

/// The files with what says where layers belong at the end, as the field's tools write them: sorted by name.
pub(crate) fn sorted(mut files: Files) -> Files {
    files.sort();
    files
}

/// The files as a directory.
pub(crate) fn write_directory(files: &Files, directory: &Path) {
    for (name, data) in files {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }
}

/// Two layers: the second replaces, deletes and adds.
pub(crate) fn two_layers() -> Vec<Vec<u8>> {
    vec![
        tar(&[
            ("etc/", b""),
            ("etc/one", b"1"),
            ("etc/two", b"2"),
            ("big", &noise(300_000, 1)),
        ]),
        tar(&[
            ("etc/", b""),
            ("etc/.wh.one", b""),
            ("etc/two", b"two"),
            ("new", b"new"),
        ]),
    ]
}
