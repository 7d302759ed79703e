//! `lcow save`: images as an archive.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use lcow_image::{Name, Saved};

use crate::context::Context;
use crate::files::Output;
use crate::output;
use crate::progress::Progress;

/// Save images as an OCI archive
#[derive(Debug, Args)]
#[command(
    after_help = "The layers in the archive are, byte for byte, the tars that were loaded. skopeo, podman, containerd and
`docker load` take the archive.

Examples:
  lcow save demo -o demo.tar
  lcow save demo:1 demo:2 | ssh host lcow load -
  lcow save demo | zstd >demo.tar.zst"
)]
pub(crate) struct Save {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Where to; `-` for standard output
    #[arg(short, long, default_value = "-", value_name = "FILE")]
    output: PathBuf,
}

impl Save {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let images = context.images()?;
        let mut saved: Vec<Saved> = Vec::new();
        for query in &self.images {
            let image = images.find(query)?;
            let names = match query.parse::<Name>() {
                Ok(name) if image.names.contains(&name) => vec![name],
                // By id or a beginning: with the name it has, if there is but one.
                _ if image.names.len() == 1 => image.names.clone(),
                _ => Vec::new(),
            };
            match saved.iter_mut().find(|s| s.image.id == image.id) {
                Some(same) => {
                    same.names.extend(names);
                    same.names.sort();
                    same.names.dedup();
                }
                None => saved.push(Saved { image, names }),
            }
        }
        let output = Output::create(&self.output, true)?;
        // To a pipe there is nothing to clean up: then a signal just ends the process.
        let cancel = if output.is_stdout() {
            context.no_cancel()
        } else {
            context.cancel_on_signals()?
        };
        let progress = Progress::new(context.quiet);
        progress.begin("saving", Some(images.saved_size(&saved)?));
        let mut writer = BufWriter::with_capacity(1 << 20, output);
        let written = images.save(&saved, &mut writer, &cancel, &|bytes| progress.add(bytes));
        written.with_context(|| format!("saving {}", self.images.join(" ")))?;
        writer
            .flush()
            .with_context(|| format!("writing {}", self.output.display()))?;
        let output = writer
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        let to_stdout = output.is_stdout();
        output.keep()?;
        if !to_stdout {
            progress.end(None);
            if context.json {
                let ids: Vec<_> = saved.iter().map(|s| s.image.id).collect();
                output::json(&serde_json::json!({ "file": self.output, "images": ids }))?;
            }
        }
        Ok(())
    }
}
