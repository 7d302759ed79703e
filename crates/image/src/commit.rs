//! From a container's changes to an image.

use lcow_driver::{Cancel, LayerId, Placed};
use lcow_layer::digest::{Digest, chain_id};
use serde_json::{Map, Value, json};

use crate::documents::{History, RunConfig, parse, to_bytes};
use crate::{Image, ImageError, Images, Name, Platform};

/// What a commit's record says of it.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// The new image's name.
    pub name: Option<Name>,
    /// When, RFC 3339. The caller decides whether that is now.
    pub created: String,
    /// What ran.
    pub created_by: Option<String>,
    /// By whom.
    pub author: Option<String>,
    /// Why.
    pub comment: Option<String>,
}

impl Images {
    /// Makes a container's changes a layer, and an image of that layer on the container's image.
    ///
    /// `base` is the image that the sandbox was made on; its configuration is kept but for the new layer.
    ///
    /// # Errors
    /// [`ImageError::Store`], also while the container runs.
    pub fn commit(
        &self,
        sandbox: &LayerId,
        base: &Image,
        options: &CommitOptions,
        cancel: &Cancel,
    ) -> Result<Image, ImageError> {
        let staged = self.store.stage_commit(sandbox, cancel)?;
        let record = staged.applied().record.clone();
        let parent = base
            .config
            .rootfs
            .diff_ids
            .iter()
            .fold(None, |chain: Option<Digest>, diff| {
                Some(chain_id(chain.as_ref(), diff))
            });
        let id = LayerId::new(&chain_id(parent.as_ref(), &record.diff_id).hex())?;
        let placed = staged.place(&id)?;
        let result = self
            .store
            .reference(&id)
            .map_err(ImageError::from)
            .and_then(|reference| {
                let config = extend(&self.config_bytes(base)?, &record.diff_id, options)?;
                let mut layers = Vec::new();
                for (id, diff_id) in base.layers.iter().zip(&base.config.rootfs.diff_ids) {
                    let applied = self.store.metadata(id)?.applied;
                    layers.push((*diff_id, applied.map_or(0, |a| a.tar_size)));
                }
                layers.push((record.diff_id, record.tar_size));
                let manifest = crate::save::manifest(&config, &layers);
                let names: Vec<_> = options.name.iter().cloned().collect();
                let image = self.add(&manifest, &config, &names);
                drop(reference);
                image
            });
        if result.is_err() && placed == Placed::Created {
            self.collect(std::slice::from_ref(&id))?;
        }
        result
    }
}

/// A configuration with one more layer. Everything else stays, also what this program does not know.
fn extend(config: &[u8], diff_id: &Digest, options: &CommitOptions) -> Result<Vec<u8>, ImageError> {
    let mut whole: Map<String, Value> = parse("the image", "configuration", config)?;
    whole.insert("created".to_owned(), json!(options.created));
    if let Some(author) = &options.author {
        whole.insert("author".to_owned(), json!(author));
    }
    // Docker's builder leaves a description of its intermediate container, which this is not.
    for old in ["container", "container_config", "parent", "id"] {
        whole.remove(old);
    }
    let history = History {
        created: Some(options.created.clone()),
        created_by: options.created_by.clone(),
        author: options.author.clone(),
        comment: options.comment.clone(),
        empty_layer: false,
    };
    push(&mut whole, &["history"], json!(history))?;
    push(&mut whole, &["rootfs", "diff_ids"], json!(diff_id))?;
    if let Some(Value::Object(rootfs)) = whole.get_mut("rootfs") {
        rootfs.entry("type").or_insert(json!("layers"));
    }
    Ok(to_bytes(&whole))
}

/// Appends to the list at a path, making what is missing or null.
fn push(whole: &mut Map<String, Value>, path: &[&str], value: Value) -> Result<(), ImageError> {
    let odd = || ImageError::Corrupt {
        input: "the image".to_owned(),
        what: "configuration".to_owned(),
        detail: format!("{} is not a list", path.join(".")),
    };
    let Some((last, outer)) = path.split_last() else {
        return Err(odd());
    };
    let mut object = whole;
    for key in outer {
        let inner = object.entry(*key).or_insert(Value::Null);
        if inner.is_null() {
            *inner = Value::Object(Map::new());
        }
        object = inner.as_object_mut().ok_or_else(odd)?;
    }
    let list = object.entry(*last).or_insert(Value::Null);
    if list.is_null() {
        *list = Value::Array(Vec::new());
    }
    list.as_array_mut().ok_or_else(odd)?.push(value);
    Ok(())
}

/// The configuration of an image made from a root file system's tar. It says nothing of when it was made, so that the same
/// tar gives the same image.
pub(crate) fn new_config(platform: &Platform, run: &RunConfig, diff_id: &Digest) -> Vec<u8> {
    let mut config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": { "Env": run.env, "Cmd": run.cmd },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created_by": "root file system" }],
    });
    if let (Some(variant), Some(whole)) = (&platform.variant, config.as_object_mut()) {
        whole.insert("variant".to_owned(), json!(variant));
    }
    to_bytes(&config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extends_and_keeps_the_rest() {
        let old = br#"{"os":"linux","odd":{"x":1},"history":null,"rootfs":{"type":"layers","diff_ids":null},"container":"x"}"#;
        let digest = Digest::of(b"layer");
        let options = CommitOptions {
            created: "2020-01-01T00:00:00Z".to_owned(),
            ..CommitOptions::default()
        };
        let new: Value = serde_json::from_slice(&extend(old, &digest, &options).unwrap()).unwrap();
        assert_eq!(new["odd"]["x"], 1);
        assert_eq!(new["rootfs"]["diff_ids"], json!([digest]));
        assert_eq!(
            new["history"],
            json!([{ "created": "2020-01-01T00:00:00Z" }])
        );
        assert_eq!(new["container"], Value::Null);
        assert!(extend(br#"{"history":5}"#, &digest, &options).is_err());
    }
}
