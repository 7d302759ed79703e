//! `lcow layer inspect`, `path`, `exists` and `verify`.

use anyhow::Result;
use clap::Args;
use lcow_driver::{ErrorKind, LayerId, Store, VerifyReport};

use super::ls::{Names, kind, line};
use super::{find, short};
use crate::context::Context;
use crate::errors::hinted;
use crate::output;

/// Show all that is known of layers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lcow layer inspect 3fa1        by the beginning of an id
  lcow layer inspect demo        an image's top layer
  lcow layer inspect demo --json")]
pub(crate) struct Inspect {
    /// Ids, or names of images or containers
    #[arg(required = true, value_name = "LAYER")]
    layers: Vec<String>,
}

impl Inspect {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let names = Names::of(&store)?;
        let mut all = Vec::new();
        for query in &self.layers {
            let metadata = store.metadata(&find(&store, query)?)?;
            all.push((line(&names, &metadata), metadata));
        }
        if context.json {
            let values: Vec<_> = all
                .iter()
                .map(|(line, metadata)| {
                    let mut value = serde_json::json!(metadata);
                    if let (Some(whole), serde_json::Value::Object(line)) =
                        (value.as_object_mut(), serde_json::json!(line))
                    {
                        whole.extend(line);
                    }
                    value
                })
                .collect();
            return output::json(&values);
        }
        for (index, (_, m)) in all.iter().enumerate() {
            if index > 0 {
                output::line("")?;
            }
            let mut rows = vec![
                ("Id", m.id.to_string()),
                ("Kind", kind(m.kind).to_owned()),
                ("Used by", names.all(m.id.as_str()).join(", ")),
                ("Created", m.created.clone().unwrap_or_default()),
                ("Directory", m.dir.display().to_string()),
            ];
            if let Some(disk) = &m.disk {
                rows.push((
                    "Disk",
                    format!("{} ({})", disk.display(), m.format.as_str()),
                ));
                let size = m.applied.as_ref().map_or(m.disk_size, |a| a.disk_size);
                rows.push(("File system", format!("{size} bytes")));
            }
            rows.push((
                "On disk",
                format!("{} bytes ({})", m.allocated, output::size(m.allocated)),
            ));
            if let Some(applied) = &m.applied {
                rows.push(("Diff ID", applied.diff_id.to_string()));
                rows.push((
                    "Chain ID",
                    applied.chain_id.map(|c| c.to_string()).unwrap_or_default(),
                ));
                rows.push((
                    "Tar",
                    format!("{} bytes in {} entries", applied.tar_size, applied.entries),
                ));
                if let Some(compressed) = &applied.compressed {
                    rows.push((
                        "Came as",
                        format!("{} ({} bytes)", compressed.digest, compressed.size),
                    ));
                }
            }
            if let Some(root) = m.applied.as_ref().and_then(|a| a.verity_root.clone()) {
                rows.push(("Verity root", root));
            }
            let parents: Vec<_> = m.parents.iter().map(|p| short(p.as_str())).collect();
            rows.push(("Parents", parents.join(" ")));
            for (key, value) in rows {
                if !value.is_empty() {
                    output::line(format_args!("{key:<12}{value}"))?;
                }
            }
        }
        Ok(())
    }
}

/// Show a layer's directory in the data root
#[derive(Debug, Args)]
#[command(after_help = "Example:
  ls -l $(lcow layer path demo)")]
pub(crate) struct Location {
    /// Id, or name of an image or container
    #[arg(value_name = "LAYER")]
    layer: String,
}

impl Location {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let id = find(&store, &self.layer)?;
        let path = store.layer_path(&id)?;
        if context.json {
            output::json(&serde_json::json!({ "id": id, "path": path }))
        } else {
            output::line(path.display())
        }
    }
}

/// Tell whether there is a layer of that very id: exit code 0 if there is, else 1
#[derive(Debug, Args)]
#[command(after_help = "Example:
  lcow layer exists base || lcow layer create base")]
pub(crate) struct Exists {
    /// The id, in full
    #[arg(value_name = "ID")]
    id: LayerId,
}

impl Exists {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let exists = context.store()?.exists(&self.id)?;
        if context.json {
            output::json(&serde_json::json!({ "id": self.id, "exists": exists }))?;
        }
        if exists {
            Ok(())
        } else {
            Err(lcow_driver::DriverError::NotFound { id: self.id }.into())
        }
    }
}

/// Check layers: chain, records, footer, verity tree, file system, digest
#[derive(Debug, Args)]
#[command(after_help = "Nothing is changed. Exit code 1 if anything is wrong.

Examples:
  lcow layer verify demo
  lcow layer verify --all")]
pub(crate) struct Verify {
    /// Ids, or names of images or containers
    #[arg(required_unless_present = "all", value_name = "LAYER")]
    layers: Vec<String>,
    /// All layers
    #[arg(long, conflicts_with = "layers")]
    all: bool,
}

impl Verify {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let store = context.store()?;
        let ids = if self.all {
            store.layers()?
        } else {
            self.layers
                .iter()
                .map(|query| find(&store, query))
                .collect::<Result<_>>()?
        };
        verify(&store, &ids, context, false)
    }
}

/// Prints what was found, for people.
pub(crate) fn print(report: &VerifyReport, context: &Context) -> Result<()> {
    let verdict = match (report.is_good(), report.is_damaged()) {
        (true, _) => "ok",
        (false, true) => "damaged",
        (false, false) => "incomplete",
    };
    if !context.quiet || !report.is_good() {
        output::line(format_args!("{}  {verdict}", short(report.id.as_str())))?;
    }
    for finding in &report.findings {
        output::line(format_args!("  {}: {}", finding.check, finding.problem))?;
    }
    Ok(())
}

/// Checks layers and says what is wrong; `idle`: passes over those that are being written to.
pub(crate) fn verify(store: &Store, ids: &[LayerId], context: &Context, idle: bool) -> Result<()> {
    let mut reports = Vec::new();
    for id in ids {
        let report = match store.verify(id, &context.no_cancel()) {
            Err(error) if idle && error.kind() == ErrorKind::InUse => {
                if !context.json && !context.quiet {
                    output::line(format_args!("{}  in use, not checked", short(id.as_str())))?;
                }
                continue;
            }
            report => report?,
        };
        if !context.json {
            print(&report, context)?;
        }
        reports.push(report);
    }
    if context.json {
        output::json(&reports)?;
    }
    let bad = reports.iter().filter(|r| !r.is_good()).count();
    if bad > 0 {
        return Err(hinted(
            format!("{bad} of {} layers are damaged", reports.len()),
            "remove the images made of them and load those again",
        ));
    }
    Ok(())
}
