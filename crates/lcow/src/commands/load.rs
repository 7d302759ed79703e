//! `lcow load`: an image from a file or a pipe.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use lcow_image::{Event, Input, LoadOptions, Loaded, Name, Platform};
use lcow_layer::digest::Digest;
use serde::Serialize;

use crate::context::Context;
use crate::files;
use crate::output;
use crate::progress::Progress;

/// Load an image: an OCI archive or layout, a `docker save` archive, or a root file system's tar
#[derive(Debug, Args)]
#[command(
    after_help = "The input may be compressed with gzip, zstd, xz or bzip2. Every digest in it is checked. The last line of
standard output is the image's name, or its id if it has none.

Examples:
  lcow load demo.tar                                an OCI archive or a `docker save` archive
  lcow load ./layout                                an OCI layout, as skopeo copy … oci:layout makes it
  skopeo copy docker://debian oci-archive:/dev/stdout | lcow load - --name debian
  docker save demo | lcow load -
  tar -C rootfs -c . | lcow load - --name mine:1    a root file system becomes an image of one layer"
)]
pub(crate) struct Load {
    /// The archive or directory; `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The image's name, in place of those in the archive
    #[arg(long, value_name = "NAME[:TAG]")]
    name: Option<Name>,
    /// Which of several platforms, as linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

#[derive(Serialize)]
struct Line {
    id: Digest,
    name: Option<String>,
    names: Vec<String>,
    layers: usize,
    new_layers: usize,
    platform: String,
}

impl Load {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let cancel = context.cancel_on_signals()?;
        let images = context.images()?;
        let input = if files::is_dash(&self.file) {
            let reader = Box::new(files::stdin("an image", &cancel)?);
            Input::Stream {
                name: "standard input".to_owned(),
                reader,
            }
        } else {
            Input::Path(self.file.clone())
        };
        let options = LoadOptions {
            name: self.name,
            platform: self.platform,
            stem: stem(&self.file),
        };
        let progress = Progress::new(context.quiet);
        let loaded = images.load(input, &options, &cancel, &|event| show(&progress, event))?;
        if context.json {
            return output::json(&loaded.iter().map(line).collect::<Vec<_>>());
        }
        for loaded in &loaded {
            let offered = loaded.image.config.platform();
            if !Platform::host().accepts(&offered) && !context.quiet {
                eprintln!(
                    "note: {} is for {offered}, and this machine is {}",
                    loaded.image.display_name(),
                    Platform::host()
                );
            }
            for name in &loaded.names {
                output::line(name)?;
            }
            if loaded.names.is_empty() {
                output::line(loaded.image.id)?;
            }
        }
        Ok(())
    }
}

fn line(loaded: &Loaded) -> Line {
    Line {
        id: loaded.image.id,
        name: loaded.names.first().map(ToString::to_string),
        names: loaded.names.iter().map(ToString::to_string).collect(),
        layers: loaded.image.layers.len(),
        new_layers: loaded.new_layers,
        platform: loaded.image.config.platform().to_string(),
    }
}

fn show(progress: &Progress, event: Event) {
    match event {
        Event::Layer {
            index,
            total,
            diff_id,
            size,
        } => {
            let id = diff_id
                .map(|d| format!("  {}", d.hex().get(..12).unwrap_or_default()))
                .unwrap_or_default();
            progress.begin(&format!("layer {index}/{total}{id}"), size);
        }
        Event::Bytes(bytes) => progress.add(bytes),
        Event::Done { present } => progress.end(present.then_some("already there")),
        _ => {}
    }
}

/// The file's name without what says how it is packed.
fn stem(path: &Path) -> Option<String> {
    if files::is_dash(path) {
        return None;
    }
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let mut stem = name.as_str();
    for ending in [".gz", ".tgz", ".zst", ".xz", ".bz2", ".tar", ".oci"] {
        stem = stem.strip_suffix(ending).unwrap_or(stem);
    }
    Some(stem.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stems() {
        for (path, expected) in [
            ("/a/Debian.tar.gz", "debian"),
            ("x.oci", "x"),
            ("layout", "layout"),
        ] {
            assert_eq!(stem(Path::new(path)).as_deref(), Some(expected));
        }
        assert_eq!(stem(Path::new("-")), None);
    }
}
