//! From an image's documents to what there is to do: which blobs, in which order, onto which layers.

use lcow_driver::LayerId;
use lcow_layer::digest::{Digest, chain_id};

use crate::documents::{
    Config, Descriptor, DockerImage, FULL_NAME, Index, MAX_INDEX, MAX_INDEX_DEPTH, MAX_LAYERS,
    Manifest, REF_NAME, Target, parse,
};
use crate::hashing::verify;
use crate::source::Blobs;
use crate::{ImageError, Name, Platform};

/// An image to be made.
pub(crate) struct PlannedImage {
    pub names: Vec<Name>,
    /// The manifest as it came; `None` where the archive has none of its own.
    pub manifest: Option<Vec<u8>>,
    pub config: Vec<u8>,
    /// Base first.
    pub layers: Vec<PlannedLayer>,
}

/// A layer to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedLayer {
    /// Where its blob is in the input.
    pub path: String,
    /// What its descriptor says of the blob; `None` where only the diff ID is known.
    pub blob: Option<(Digest, u64)>,
    pub diff_id: Digest,
    /// The layer's id: the chain ID's digits.
    pub id: LayerId,
}

/// Which of the images in the input are meant.
pub(crate) struct Choice<'a> {
    pub platform: &'a Platform,
    /// Whether the platform was asked for, and so must be the one.
    pub strict: bool,
    /// What a bare tag in the input belongs to: the input file's name.
    pub stem: Option<&'a str>,
}

/// Why there is no plan.
pub(crate) enum Unplanned {
    /// Something is not there (yet, if the input is a stream).
    Missing(String),
    Failed(ImageError),
}

impl From<ImageError> for Unplanned {
    fn from(error: ImageError) -> Self {
        Self::Failed(error)
    }
}

/// Finds the images of an input.
pub(crate) fn plan(blobs: &Blobs, choice: &Choice<'_>) -> Result<Vec<PlannedImage>, Unplanned> {
    if let Some(bytes) = blobs.document("index.json")? {
        if let Some(layout) = blobs.document("oci-layout")? {
            check_layout(blobs.input(), &layout)?;
        }
        let index: Index = parse(blobs.input(), "index.json", &bytes)?;
        oci(blobs, choice, &index)
    } else if let Some(bytes) = blobs.document("manifest.json")? {
        let images: Vec<DockerImage> = parse(blobs.input(), "manifest.json", &bytes)?;
        if images.is_empty() {
            return Err(not_an_image(blobs, "its manifest.json lists no image").into());
        }
        images
            .iter()
            .map(|image| docker(blobs, choice, image))
            .collect()
    } else {
        Err(Unplanned::Missing("index.json or manifest.json".to_owned()))
    }
}

fn not_an_image(blobs: &Blobs, why: &str) -> ImageError {
    ImageError::NotAnImage {
        input: blobs.input().to_owned(),
        why: why.to_owned(),
    }
}

fn check_layout(input: &str, bytes: &[u8]) -> Result<(), ImageError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: String,
    }
    let layout: Layout = parse(input, "oci-layout", bytes)?;
    if layout.image_layout_version.split('.').next() == Some("1") {
        return Ok(());
    }
    Err(ImageError::Unsupported {
        input: input.to_owned(),
        what: format!(
            "version {:?} of the image layout",
            layout.image_layout_version
        ),
    })
}

fn oci(blobs: &Blobs, choice: &Choice<'_>, index: &Index) -> Result<Vec<PlannedImage>, Unplanned> {
    // Manifests of one name, or without one, are the same image for several platforms.
    let mut groups: Vec<(Vec<Name>, Vec<&Descriptor>)> = Vec::new();
    for descriptor in listed(blobs, index)? {
        let names = name_of(descriptor, choice.stem);
        match groups.iter_mut().find(|(known, _)| *known == names) {
            Some((_, group)) => group.push(descriptor),
            None => groups.push((names, vec![descriptor])),
        }
    }
    let mut images: Vec<(Descriptor, PlannedImage)> = Vec::new();
    for (names, group) in groups {
        let manifest = select(blobs, choice, &group, 1)?;
        if let Some((_, known)) = images.iter_mut().find(|(d, _)| d.digest == manifest.digest) {
            known.names.extend(names);
            continue;
        }
        let mut image = from_manifest(blobs, choice, &manifest)?;
        image.names = names;
        images.push((manifest, image));
    }
    if images.is_empty() {
        return Err(not_an_image(blobs, "its index.json lists no image").into());
    }
    Ok(images.into_iter().map(|(_, image)| image).collect())
}

fn listed<'i>(blobs: &Blobs, index: &'i Index) -> Result<Vec<&'i Descriptor>, ImageError> {
    if index.manifests.len() > MAX_INDEX {
        return Err(ImageError::Refused {
            input: blobs.input().to_owned(),
            what: format!("an index lists more than {MAX_INDEX} manifests"),
        });
    }
    Ok(index
        .manifests
        .iter()
        .filter(|d| !d.is_attestation() && d.target() != Target::Other)
        .collect())
}

/// The manifest that fits the platform, of those that could be meant.
fn select(
    blobs: &Blobs,
    choice: &Choice<'_>,
    candidates: &[&Descriptor],
    depth: usize,
) -> Result<Descriptor, Unplanned> {
    if depth > MAX_INDEX_DEPTH {
        return Err(ImageError::Refused {
            input: blobs.input().to_owned(),
            what: format!("indexes are nested more than {MAX_INDEX_DEPTH} deep"),
        }
        .into());
    }
    let fits = |d: &Descriptor| {
        d.platform
            .as_ref()
            .is_none_or(|p| choice.platform.accepts(p))
    };
    let chosen = match candidates {
        // Alone in a layout, a manifest is the image, whatever it is for; in an index made for choosing it is not.
        [one] if depth == 1 && !choice.strict => one,
        _ => {
            let exact = candidates.iter().find(|d| d.platform.is_some() && fits(d));
            match exact.or_else(|| candidates.iter().find(|d| fits(d))) {
                Some(found) => found,
                None => return Err(no_platform(blobs, choice, candidates).into()),
            }
        }
    };
    if chosen.target() == Target::Manifest {
        return Ok((*chosen).clone());
    }
    let bytes = blob(blobs, chosen)?;
    let index: Index = parse(blobs.input(), &format!("index {}", chosen.digest), &bytes)?;
    select(blobs, choice, &listed(blobs, &index)?, depth + 1)
}

fn no_platform(blobs: &Blobs, choice: &Choice<'_>, candidates: &[&Descriptor]) -> ImageError {
    let mut available: Vec<_> = candidates
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .map(ToString::to_string)
        .collect();
    available.sort();
    available.dedup();
    ImageError::NoPlatform {
        input: blobs.input().to_owned(),
        wanted: choice.platform.to_string(),
        available: if available.is_empty() {
            "none".to_owned()
        } else {
            available.join(", ")
        },
    }
}

/// A document by its descriptor, held to it.
fn blob(blobs: &Blobs, descriptor: &Descriptor) -> Result<Vec<u8>, Unplanned> {
    let path = Blobs::path_of(&descriptor.digest);
    let Some(bytes) = blobs.document(&path)? else {
        return Err(Unplanned::Missing(format!("blob {}", descriptor.digest)));
    };
    verify(blobs.input(), &descriptor.digest, descriptor.size, &bytes)?;
    Ok(bytes)
}

fn from_manifest(
    blobs: &Blobs,
    choice: &Choice<'_>,
    descriptor: &Descriptor,
) -> Result<PlannedImage, Unplanned> {
    let input = blobs.input();
    let bytes = blob(blobs, descriptor)?;
    let what = format!("manifest {}", descriptor.digest);
    let manifest: Manifest = parse(input, &what, &bytes)?;
    if !manifest.is_image() {
        let why = format!(
            "its manifest describes an artifact of type {}",
            manifest.config.media_type
        );
        return Err(not_an_image(blobs, &why).into());
    }
    for layer in &manifest.layers {
        let kind = layer.media_type.as_str();
        if !kind.is_empty() && !kind.contains("tar") || kind.contains("encrypted") {
            return Err(ImageError::Unsupported {
                input: input.to_owned(),
                what: format!("layer {} of type {kind}", layer.digest),
            }
            .into());
        }
    }
    let config = blob(blobs, &manifest.config)?;
    let found: Vec<_> = manifest
        .layers
        .iter()
        .map(|l| (Blobs::path_of(&l.digest), Some((l.digest, l.size))))
        .collect();
    let mut image = image(
        blobs,
        choice,
        config,
        &format!("configuration {}", manifest.config.digest),
        found,
    )?;
    image.manifest = Some(bytes);
    Ok(image)
}

fn docker(
    blobs: &Blobs,
    choice: &Choice<'_>,
    listed: &DockerImage,
) -> Result<PlannedImage, Unplanned> {
    let input = blobs.input();
    let Some(config) = blobs.document(&listed.config)? else {
        return Err(Unplanned::Missing(listed.config.clone()));
    };
    // The names say what the contents should be.
    let named = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        let digits = file.strip_suffix(".json").unwrap_or(file);
        format!("sha256:{digits}").parse::<Digest>().ok()
    };
    if let Some(digest) = named(&listed.config) {
        verify(input, &digest, config.len() as u64, &config)?;
    }
    let mut layers = Vec::new();
    for path in &listed.layers {
        let blob = match (path.starts_with("blobs/"), named(path)) {
            (true, Some(digest)) => blobs.size(path)?.map(|size| (digest, size)),
            _ => None,
        };
        layers.push((path.clone(), blob));
    }
    let mut image = image(blobs, choice, config, &listed.config, layers)?;
    for tag in &listed.repo_tags {
        image.names.push(tag.parse()?);
    }
    Ok(image)
}

type BlobAt = (String, Option<(Digest, u64)>);

fn image(
    blobs: &Blobs,
    choice: &Choice<'_>,
    config: Vec<u8>,
    what: &str,
    found: Vec<BlobAt>,
) -> Result<PlannedImage, Unplanned> {
    let input = blobs.input();
    let parsed: Config = parse(input, what, &config)?;
    if !parsed.os.is_empty() && parsed.os != "linux" {
        let what = format!("an image for {}", parsed.os);
        return Err(ImageError::Unsupported {
            input: input.to_owned(),
            what,
        }
        .into());
    }
    if choice.strict && !choice.platform.accepts(&parsed.platform()) {
        return Err(ImageError::NoPlatform {
            input: input.to_owned(),
            wanted: choice.platform.to_string(),
            available: parsed.platform().to_string(),
        }
        .into());
    }
    let diff_ids = &parsed.rootfs.diff_ids;
    if diff_ids.len() != found.len() {
        return Err(ImageError::Corrupt {
            input: input.to_owned(),
            what: what.to_owned(),
            detail: format!(
                "it has {} diff IDs, and the manifest {} layers",
                diff_ids.len(),
                found.len()
            ),
        }
        .into());
    }
    if found.len() > MAX_LAYERS {
        return Err(ImageError::Refused {
            input: input.to_owned(),
            what: format!(
                "an image has {} layers, and at most {MAX_LAYERS} are taken",
                found.len()
            ),
        }
        .into());
    }
    let mut chain = None;
    let mut layers = Vec::with_capacity(found.len());
    for ((path, blob), diff_id) in found.into_iter().zip(diff_ids) {
        let this = chain_id(chain.as_ref(), diff_id);
        chain = Some(this);
        let id = LayerId::new(&this.hex()).map_err(ImageError::from)?;
        layers.push(PlannedLayer {
            path: crate::archive::normalise(&path),
            blob,
            diff_id: *diff_id,
            id,
        });
    }
    Ok(PlannedImage {
        names: Vec::new(),
        manifest: None,
        config,
        layers,
    })
}

/// The names that a layout gives a manifest.
///
/// The standard annotation holds a tag by the specification, and a whole name by what most tools write.
fn name_of(descriptor: &Descriptor, stem: Option<&str>) -> Vec<Name> {
    let annotation = |key| descriptor.annotations.get(key).map(String::as_str);
    if let Some(name) = annotation(FULL_NAME).and_then(|n| n.parse().ok()) {
        return vec![name];
    }
    let Some(reference) = annotation(REF_NAME) else {
        return Vec::new();
    };
    let name = if reference.contains([':', '/']) || !Name::looks_like_tag(reference) {
        reference.parse()
    } else {
        match stem {
            Some(stem) => format!("{stem}:{reference}").parse(),
            None => return Vec::new(),
        }
    };
    match name {
        Ok(name) => vec![name],
        Err(error) => {
            tracing::warn!(reference, %error, "an image's name in the input is passed over");
            Vec::new()
        }
    }
}
