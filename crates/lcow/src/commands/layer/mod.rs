//! `lcow layer`: single layers of the store.

mod change;
mod files;
mod inspect;
mod ls;
mod read;
mod tree;

pub(crate) use inspect::{print, verify};
pub(crate) use ls::{Names, kind};

use anyhow::Result;
use clap::Subcommand;
use lcow_driver::{LayerId, Store};
use lcow_image::Images;

use crate::containers::Containers;
use crate::context::Context;
use crate::errors::hinted;

/// Work with single layers
#[derive(Debug, Subcommand)]
pub(crate) enum Layer {
    Ls(ls::Ls),
    Tree(tree::Tree),
    #[command(visible_alias = "metadata")]
    Inspect(inspect::Inspect),
    Path(inspect::Location),
    Exists(inspect::Exists),
    Create(change::Create),
    CreateRw(change::CreateRw),
    Apply(change::Apply),
    Diff(read::Diff),
    Changes(read::Changes),
    DiffSize(read::DiffSize),
    Files(files::Files),
    Cat(files::Cat),
    Export(read::Export),
    Flatten(read::Flatten),
    Commit(change::Commit),
    Verify(inspect::Verify),
    #[command(visible_alias = "remove")]
    Rm(change::Rm),
}

impl Layer {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Ls(command) => command.run(context),
            Self::Tree(command) => command.run(context),
            Self::Inspect(command) => command.run(context),
            Self::Path(command) => command.run(context),
            Self::Exists(command) => command.run(context),
            Self::Create(command) => command.run(context),
            Self::CreateRw(command) => command.run(context),
            Self::Apply(command) => command.run(context),
            Self::Diff(command) => command.run(context),
            Self::Changes(command) => command.run(context),
            Self::DiffSize(command) => command.run(context),
            Self::Files(command) => command.run(context),
            Self::Cat(command) => command.run(context),
            Self::Export(command) => command.run(context),
            Self::Flatten(command) => command.run(context),
            Self::Commit(command) => command.run(context),
            Self::Verify(command) => command.run(context),
            Self::Rm(command) => command.run(context),
        }
    }
}

/// The layer that an id, its unique beginning, a container's or an image's name means.
fn find(store: &Store, query: &str) -> Result<LayerId> {
    let ids = store.layers()?;
    let digits = query.strip_prefix("sha256:").unwrap_or(query);
    if let Some(exact) = ids.iter().find(|id| id.as_str() == digits) {
        return Ok(exact.clone());
    }
    if let Some(container) = Containers::new(store)
        .list()?
        .into_iter()
        .find(|c| c.name == query)
    {
        return Ok(container.id);
    }
    let found: Vec<_> = ids
        .iter()
        .filter(|id| !digits.is_empty() && id.as_str().starts_with(digits))
        .collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let image = Images::open(store)?.find(query).ok();
            match image.and_then(|image| image.top().cloned()) {
                Some(top) => Ok(top),
                None => Err(hinted(
                    format!("there is no layer {query}"),
                    "`lcow layer ls` lists the layers there are; an image's name means its top layer",
                )),
            }
        }
        several => {
            let list: Vec<_> = several.iter().map(|id| short(id.as_str())).collect();
            Err(hinted(
                format!("{query} could be any of {}", list.join(", ")),
                "give more of the id",
            ))
        }
    }
}

/// As much of an id as a person needs to see.
pub(crate) fn short(id: &str) -> &str {
    match id.len() {
        64 => id.get(..12).unwrap_or(id),
        _ => id,
    }
}
