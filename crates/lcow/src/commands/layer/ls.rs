//! `lcow layer ls`.

use anyhow::Result;
use clap::Args;
use lcow_driver::{Kind, Metadata, Store};
use lcow_image::Images;
use serde::Serialize;

use super::short;
use crate::containers::Containers;
use crate::context::Context;
use crate::output;

/// List layers and sandboxes
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow layer ls
  lcow layer ls --json
  lcow layer rm $(lcow layer ls -q)")]
pub(crate) struct Ls {}

/// One layer, as every listing gives it.
#[derive(Serialize)]
pub(super) struct Line {
    id: String,
    /// The images whose top it is, or the container whose sandbox it is.
    name: Option<String>,
    names: Vec<String>,
    kind: Kind,
    parent: Option<String>,
    depth: usize,
    created: Option<String>,
    diff_id: Option<String>,
    chain_id: Option<String>,
    /// Bytes of the uncompressed tar.
    size: Option<u64>,
    /// Bytes allocated.
    disk_size: u64,
    /// Bytes of the file system that the disk holds.
    virtual_size: u64,
}

impl Ls {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let names = Names::of(&store)?;
        let mut lines = Vec::new();
        for id in store.layers()? {
            lines.push(line(&names, &store.metadata(&id)?));
        }
        if context.json {
            return output::json(&lines);
        }
        if context.quiet {
            return lines.iter().try_for_each(|l| output::line(&l.id));
        }
        let rows = lines
            .iter()
            .map(|l| {
                vec![
                    short(&l.id).to_owned(),
                    kind(l.kind).to_owned(),
                    l.parent.as_deref().map_or("-", short).to_owned(),
                    output::ago(l.created.as_deref()),
                    l.size.map_or("-".to_owned(), output::size),
                    output::size(l.disk_size),
                    l.names.join(", "),
                ]
            })
            .collect();
        output::table(
            &[
                "ID", "KIND", "PARENT", "CREATED", "TAR", "ON DISK", "USED BY",
            ],
            &[4, 5],
            rows,
        )
    }
}

/// Who uses which layer, by name.
pub(crate) struct Names(Vec<(String, String)>);

impl Names {
    pub(crate) fn of(store: &Store) -> Result<Self> {
        let mut names = Vec::new();
        for image in Images::open(store)?.list()? {
            if let Some(top) = image.top() {
                if image.names.is_empty() {
                    names.push((top.to_string(), image.short_id()));
                }
                names.extend(image.names.iter().map(|n| (top.to_string(), n.to_string())));
            }
        }
        for container in Containers::new(store).list()? {
            names.push((container.id.to_string(), container.name));
        }
        Ok(Self(names))
    }

    pub(crate) fn all(&self, id: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(layer, _)| layer == id)
            .map(|(_, name)| name.clone())
            .collect()
    }
}

pub(super) fn line(names: &Names, metadata: &Metadata) -> Line {
    let applied = metadata.applied.as_ref();
    let names = names.all(metadata.id.as_str());
    Line {
        id: metadata.id.to_string(),
        name: names.first().cloned(),
        names,
        kind: metadata.kind,
        parent: metadata.parents.first().map(ToString::to_string),
        depth: metadata.parents.len() + 1,
        created: metadata.created.clone(),
        diff_id: applied.map(|a| a.diff_id.to_string()),
        chain_id: applied.and_then(|a| a.chain_id).map(|c| c.to_string()),
        size: applied.map(|a| a.tar_size),
        disk_size: metadata.allocated,
        virtual_size: metadata.disk_size,
    }
}

pub(crate) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Layer => "layer",
        Kind::Sandbox => "sandbox",
        Kind::Empty => "empty",
    }
}
