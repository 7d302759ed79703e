//! `lcow layer tree`: what is built on what.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use lcow_driver::{Kind, Metadata};
use serde::Serialize;

use super::ls::{Line, Names, line};
use super::{find, short};
use crate::context::Context;
use crate::output;

/// Show which layer is built on which
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow layer tree
  lcow layer tree demo       the chain of one image, and what is built on it")]
pub(crate) struct Tree {
    /// Only trees that hold this layer, image or container
    #[arg(value_name = "LAYER")]
    layer: Option<String>,
}

#[derive(Serialize)]
struct Branch {
    #[serde(flatten)]
    line: Line,
    children: Vec<Branch>,
}

struct Forest {
    layers: BTreeMap<String, Metadata>,
    children: BTreeMap<String, Vec<String>>,
    names: Names,
}

impl Tree {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let only = self
            .layer
            .as_deref()
            .map(|query| find(&store, query))
            .transpose()?;
        let mut forest = Forest {
            layers: BTreeMap::new(),
            children: BTreeMap::new(),
            names: Names::of(&store)?,
        };
        for id in store.layers()? {
            let metadata = store.metadata(&id)?;
            let root = metadata.parents.last().unwrap_or(&id);
            if let Some(only) = &only {
                let chain = store.chain(only)?;
                if root != chain.last().unwrap_or(only) {
                    continue;
                }
            }
            // The empty parent stands for none.
            let parent = metadata
                .parents
                .first()
                .map(ToString::to_string)
                .unwrap_or_default();
            forest
                .children
                .entry(parent)
                .or_default()
                .push(id.to_string());
            forest.layers.insert(id.to_string(), metadata);
        }
        // A parent that is missing would hide what is built on it.
        let roots: Vec<_> = forest
            .children
            .iter()
            .filter(|(parent, _)| !forest.layers.contains_key(*parent))
            .flat_map(|(_, children)| children.clone())
            .collect();
        if context.json {
            return output::json(
                &roots
                    .iter()
                    .filter_map(|id| branch(&forest, id))
                    .collect::<Vec<_>>(),
            );
        }
        for root in &roots {
            show(&forest, root, "", "")?;
        }
        Ok(())
    }
}

fn branch(forest: &Forest, id: &str) -> Option<Branch> {
    let metadata = forest.layers.get(id)?;
    let children = forest
        .children
        .get(id)
        .map(Vec::as_slice)
        .unwrap_or_default();
    Some(Branch {
        line: line(&forest.names, metadata),
        children: children
            .iter()
            .filter_map(|child| branch(forest, child))
            .collect(),
    })
}

fn show(forest: &Forest, id: &str, first: &str, rest: &str) -> Result<()> {
    let Some(metadata) = forest.layers.get(id) else {
        return Ok(());
    };
    let names = forest.names.all(id).join(", ");
    let what = match (metadata.kind, &metadata.applied) {
        (Kind::Sandbox, _) => format!("sandbox  {}", output::size(metadata.allocated)),
        (Kind::Empty, _) => "empty".to_owned(),
        (Kind::Layer, Some(applied)) => output::size(applied.tar_size),
        (Kind::Layer, None) => output::size(metadata.allocated),
    };
    let missing = if metadata
        .parents
        .first()
        .is_some_and(|p| !forest.layers.contains_key(p.as_str()))
    {
        "  (its parent is missing)"
    } else {
        ""
    };
    let line = format!("{first}{}  {what}{missing}  {names}", short(id));
    output::line(line.trim_end())?;
    let children = forest
        .children
        .get(id)
        .map(Vec::as_slice)
        .unwrap_or_default();
    for (index, child) in children.iter().enumerate() {
        let (branch, below) = if index + 1 == children.len() {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        show(
            forest,
            child,
            &format!("{rest}{branch}"),
            &format!("{rest}{below}"),
        )?;
    }
    Ok(())
}
