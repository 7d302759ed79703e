//! `lcow disk`: disks, without a store.

mod convert;
pub(crate) mod flatten;
mod from_tar;
mod inspect;
pub(crate) mod ls;
mod mkfs;
mod new_disk;
mod to_tar;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use lcow_blockio::{FileDisk, ReadAt, SubRange};
use lcow_disk::{Container, ContainerError, verity, vhd};
use lcow_ext4::check::{CheckOptions, Report, check};
use lcow_ext4::reader::{Filesystem, ReadError, ReadErrorKind};

use crate::context::Context;
use crate::errors::{explained, hinted};

/// Make, read and check disks, without a store
#[derive(Debug, Subcommand)]
pub(crate) enum Disk {
    FromTar(from_tar::FromTar),
    ToTar(to_tar::ToTar),
    Flatten(flatten::Flatten),
    Ls(ls::Ls),
    Cat(ls::Cat),
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Mkfs(mkfs::Mkfs),
    Convert(convert::Convert),
}

impl Disk {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::FromTar(command) => command.run(context),
            Self::ToTar(command) => command.run(context),
            Self::Flatten(command) => command.run(context),
            Self::Ls(command) => command.run(context),
            Self::Cat(command) => command.run(context),
            Self::Inspect(command) => command.run(context),
            Self::Verify(command) => command.run(context),
            Self::Mkfs(command) => command.run(context),
            Self::Convert(command) => command.run(context),
        }
    }
}

/// What a disk is wrapped in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The disk's bytes alone
    Raw,
    /// Fixed or dynamic VHD
    Vhd,
    /// VHDX
    Vhdx,
}

impl From<Format> for lcow_disk::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Vhd => Self::Vhd,
            Format::Vhdx => Self::Vhdx,
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        lcow_disk::Format::from(*self).fmt(f)
    }
}

/// A disk to read: an ext2, ext3 or ext4 file system, with or without a VHD footer behind it, or in a container.
#[derive(Debug, Args)]
struct Source {
    /// The disk: a file or a block device
    #[arg(value_name = "DISK")]
    disk: PathBuf,
    /// What the disk is wrapped in; a fixed VHD is read as a raw disk just as well [default: vhdx for names ending in .vhdx, else raw]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Where the file system begins, in bytes: that of a partition
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    offset: u64,
    /// How long it is, in bytes [default: to the end]
    #[arg(long, value_name = "BYTES")]
    length: Option<u64>,
}

type SourceDisk = SubRange<Container<FileDisk>>;

impl Source {
    fn format(&self) -> Format {
        self.format
            .unwrap_or_else(|| match Format::of_name(&self.disk) {
                // A footer is behind the file system, and disks without one are named so, too.
                Format::Vhd => Format::Raw,
                other => other,
            })
    }

    /// The range of the disk that was asked for.
    fn range(&self) -> Result<SourceDisk> {
        let path = &self.disk;
        let opening = || format!("opening {}", path.display());
        let disk = open_container(path, self.format())?;
        let size = disk.size().with_context(opening)?;
        let Some(rest) = size.checked_sub(self.offset) else {
            return Err(hinted(
                format!(
                    "{} has {size} bytes, and the offset is {}",
                    path.display(),
                    self.offset
                ),
                "give an offset within the disk",
            ));
        };
        Ok(SubRange::new(
            disk,
            self.offset,
            self.length.unwrap_or(rest).min(rest),
        ))
    }

    /// The disk, and the size of the data in it that a verity tree covers: that follows from the length alone. A last piece of
    /// 512 bytes is a VHD's footer.
    fn with_tree(&self) -> Result<(SourceDisk, u64)> {
        let range = self.range()?;
        let size = range
            .size()
            .with_context(|| format!("reading {}", self.disk.display()))?;
        let footer = match size % verity::BLOCK {
            vhd::FOOTER_LEN => vhd::FOOTER_LEN,
            _ => 0,
        };
        match verity::data_size(size - footer) {
            Some(data) => Ok((range, data)),
            None => Err(hinted(
                format!(
                    "{} has no verity tree: no disk with one is {size} bytes long",
                    self.disk.display()
                ),
                "leave --root-hash away, or make the disk with --verity",
            )),
        }
    }

    fn open(&self) -> Result<Arc<Filesystem<SourceDisk>>> {
        let fs = Filesystem::open(self.range()?).map_err(|e| self.failed(e))?;
        Ok(Arc::new(fs))
    }

    /// What is wrong with the disk's structures.
    fn check(&self) -> Result<Report> {
        check(self.range()?, &CheckOptions::default()).map_err(|e| self.failed(e))
    }

    fn failed(&self, error: ReadError) -> anyhow::Error {
        let hint = match error.kind() {
            ReadErrorKind::Corrupt if self.offset == 0 && self.format() == Format::Raw => {
                "if the file system is in a partition, say where with --offset; if the disk is a dynamic VHD or a VHDX, with --format"
            }
            ReadErrorKind::Corrupt if self.offset == 0 => {
                "if the file system is in a partition, say where with --offset"
            }
            _ => "",
        };
        let reading = format!("reading {}", self.disk.display());
        explained(anyhow::Error::from(error).context(reading), hint)
    }
}

/// Opens a disk that is said to be wrapped so.
fn open_container(path: &Path, format: Format) -> Result<Container<FileDisk>> {
    let opening = || format!("opening {}", path.display());
    if std::fs::metadata(path).with_context(opening)?.is_dir() {
        return Err(hinted(
            format!("{} is a directory, not a disk", path.display()),
            "name the disk's file",
        ));
    }
    let disk = FileDisk::open(path).with_context(opening)?;
    Container::open(format.into(), disk).map_err(|error| {
        use lcow_disk::{vhd::VhdError, vhdx::VhdxError};
        let hint = match &error {
            ContainerError::Vhd(VhdError::Differencing)
            | ContainerError::Vhdx(VhdxError::Differencing) => {
                "merge it with its parent first, with the program that made it"
            }
            ContainerError::Vhd(VhdError::Corrupt { .. })
            | ContainerError::Vhdx(VhdxError::Corrupt { .. }) => {
                "if it is a disk of another format, say which"
            }
            _ => "",
        };
        let error = anyhow::Error::from(error).context(format!("reading {}", path.display()));
        explained(error, hint)
    })
}

/// What `SOURCE_DATE_EPOCH` says (<https://reproducible-builds.org/specs/source-date-epoch/>).
pub(crate) fn source_date_epoch() -> Option<i64> {
    std::env::var("SOURCE_DATE_EPOCH").ok()?.parse().ok()
}

/// A path given by a person, as a path in a file system.
pub(crate) fn inside(path: &str) -> Vec<u8> {
    path.trim_start_matches('/').as_bytes().to_vec()
}

/// Bytes that a person gave as hexadecimal digits.
#[derive(Debug, Clone)]
struct Bytes(Vec<u8>);

fn parse_bytes(text: &str) -> Result<Bytes, String> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |b: u8| char::from(b).to_digit(16);
    let bytes: Option<Vec<u8>> = pairs
        .iter()
        .map(|&[high, low]| u8::try_from(digit(high)? << 4 | digit(low)?).ok())
        .collect();
    match bytes {
        Some(bytes) if rest.is_empty() && bytes.len() <= verity::MAX_SALT => Ok(Bytes(bytes)),
        _ => Err("an even number of hexadecimal digits, at most 512, is needed".into()),
    }
}

/// A size of a disk: a number and a unit, all powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    lcow_driver::parse_size("size", text).map_err(|e| e.to_string())
}
