//! `lcow disk convert`: a disk in another container.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use lcow_blockio::{ReadAt, WriteAt};
use lcow_disk::vhdx::{self, CreateOptions, Guid, SessionGuids};
use lcow_disk::{Container, vhd};

use super::Format;
use super::new_disk::{NewDisk, allocated};
use crate::context::Context;
use crate::errors::hinted;
use crate::progress::Progress;

/// Bytes that are copied at once.
const CHUNK: u64 = 1 << 20;
/// Zeros in such pieces, in bytes, become holes.
const PIECE: usize = 4096;
/// What a VHD's and a VHDX's size is counted in, in bytes.
const SECTOR: u64 = 512;

/// Convert a disk between raw, VHD and VHDX
#[derive(Debug, Args)]
#[command(
    after_help = "The formats are those given, or else those that the names end in: .vhd, .vhdx, and raw for all others. What is in
a file never decides, since a guest may have written it. Fixed and dynamic VHDs are read, and fixed ones written; VHDXs are
dynamic. Only what holds data is copied, and zeros become holes. A disk that is not a multiple of 512 bytes is filled up
with zeros in a VHD or VHDX. The disk's id is kept where it has one.

Examples:
  lcow disk convert sandbox.vhdx sandbox.img
  lcow disk convert rootfs.ext4 rootfs.vhdx --block-size 32M
  lcow disk convert old.disk new.vhd --from vhdx"
)]
pub(crate) struct Convert {
    /// The disk to read
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The disk to make
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The format of IN [default: by its name]
    #[arg(long, value_name = "FORMAT")]
    from: Option<Format>,
    /// The format of OUT [default: by its name]
    #[arg(long, value_name = "FORMAT")]
    to: Option<Format>,
    /// What a VHDX takes space in: a power of two from 1M to 256M [default: 1M]
    #[arg(long, value_name = "SIZE", value_parser = parse_block_size)]
    block_size: Option<u32>,
}

impl Convert {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let from = self.from.unwrap_or_else(|| Format::of_name(&self.input));
        let to = self.to.unwrap_or_else(|| Format::of_name(&self.output));
        if self.block_size.is_some() && to != Format::Vhdx {
            return Err(hinted(
                format!("a {to} disk has no blocks"),
                "leave --block-size away, or use --to vhdx",
            ));
        }
        let reading = || format!("reading {}", self.input.display());
        let writing = || format!("writing {}", self.output.display());
        let source = super::open_container(&self.input, from)?;
        let size = source.size().with_context(reading)?;
        let id = match &source {
            Container::Raw(_) => random()?,
            Container::Vhd(vhd) => vhd.footer().unique_id,
            Container::Vhdx(image) => image.info().id.0,
        };

        let cancel = context.cancel_on_signals()?;
        let new = NewDisk::create(&self.output)?;
        let disk = new.disk()?;
        let progress = Progress::new(context.quiet);
        progress.begin("converting", Some(size));
        let copy = |target: &dyn WriteAt| -> Result<()> {
            copy(&source, size, target, |n| {
                progress.add(n);
                match cancel.is_cancelled() {
                    true => Err(lcow_driver::DriverError::Cancelled.into()),
                    false => Ok(()),
                }
            })
        };
        let explain = |error: anyhow::Error| {
            error.context(format!(
                "converting {} to {}",
                self.input.display(),
                self.output.display()
            ))
        };
        match to {
            Format::Raw => {
                disk.set_len(size).with_context(writing)?;
                copy(&disk).map_err(explain)?;
            }
            Format::Vhd => {
                disk.set_len(size).with_context(writing)?;
                copy(&disk).map_err(explain)?;
                let end = size.next_multiple_of(SECTOR);
                vhd::write_footer(&disk, end, id).with_context(writing)?;
            }
            Format::Vhdx => {
                let mut options = CreateOptions::new(size.next_multiple_of(SECTOR), Guid(id));
                if let Some(block_size) = self.block_size {
                    options.block_size = block_size;
                }
                vhdx::create(&disk, &options).with_context(writing)?;
                let session = SessionGuids::from([random()?, random()?, random()?]);
                let target = vhdx::open_writable(&disk, session).with_context(writing)?;
                copy(&target).map_err(explain)?;
                target.close().with_context(writing)?;
            }
        }
        let file = new.keep(true)?;
        if context.json {
            return crate::output::json(&serde_json::json!({
                "disk": self.output,
                "format": to.to_string(),
                "size": size,
                "length": file.metadata().with_context(writing)?.len(),
                "allocated": allocated(&file, &self.output)?,
            }));
        }
        progress.end(None);
        Ok(())
    }
}

/// Copies what is not zeros. `step` is told of every piece of the disk that is done, holes too, and may end it.
fn copy(
    source: &dyn ReadAt,
    size: u64,
    target: &dyn WriteAt,
    mut step: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut at = 0;
    while let Some(data) = source.next_data(at)? {
        step(data.start - at)?;
        at = data.start;
        while at < data.end {
            // Up to the next chunk's border, so that pieces lie as the target's blocks do.
            let n = (CHUNK - at % CHUNK).min(data.end - at) as usize;
            source.read_exact_at(at, &mut buffer[..n])?;
            write_runs(target, at, &buffer[..n])?;
            at += n as u64;
            step(n as u64)?;
        }
    }
    step(size.saturating_sub(at))
}

/// Writes the runs of pieces that are not all zeros.
fn write_runs(target: &dyn WriteAt, offset: u64, bytes: &[u8]) -> Result<()> {
    static ZEROS: [u8; PIECE] = [0; PIECE];
    let mut run = None;
    let mut place = 0;
    for piece in bytes.chunks(PIECE) {
        if *piece == ZEROS[..piece.len()] {
            if let Some(start) = run.take() {
                target.write_all_at(offset + start as u64, &bytes[start..place])?;
            }
        } else {
            run.get_or_insert(place);
        }
        place += piece.len();
    }
    if let Some(start) = run {
        target.write_all_at(offset + start as u64, &bytes[start..])?;
    }
    Ok(())
}

/// A size of a block: those that a VHDX can have (MS-VHDX 2.6.2.1).
fn parse_block_size(text: &str) -> Result<u32, String> {
    let mib = text.trim_end_matches("iB").strip_suffix(['M', 'm']);
    match mib.and_then(|n| n.parse().ok()) {
        Some(n @ (1 | 2 | 4 | 8 | 16 | 32 | 64 | 128 | 256)) => Ok(n << 20),
        _ => Err("allowed are powers of two from 1M to 256M".to_owned()),
    }
}

fn random() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    if let Err(error) = getrandom::fill(&mut bytes) {
        bail!("getting random bytes: {error}");
    }
    // RFC 9562: version 4, random. A GUID in a VHDX has its third field little-endian, so the version is in byte 7.
    bytes[7] = bytes[7] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}

impl Format {
    /// By the ending of a file's name.
    pub(super) fn of_name(path: &Path) -> Self {
        let ending = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
        match ending.as_deref().and_then(std::ffi::OsStr::to_str) {
            Some("vhd") => Self::Vhd,
            Some("vhdx") => Self::Vhdx,
            _ => Self::Raw,
        }
    }
}
