//! `lcow disk mkfs`: a blank ext4 disk.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use lcow_disk::vhd;
use lcow_ext4::mkfs;

use super::new_disk::NewDisk;
use crate::context::Context;
use crate::errors::hinted;

/// Make a blank ext4 disk
#[derive(Debug, Args)]
#[command(
    after_help = "The disk is sparse and takes a few megabytes at most; making it takes milliseconds at any size.

Examples:
  lcow disk mkfs scratch.ext4 --size 20G
  lcow disk mkfs data.vhd --size 512M --vhd --label data --no-journal"
)]
pub(crate) struct Mkfs {
    /// The disk to make
    #[arg(value_name = "DISK")]
    disk: PathBuf,
    /// Its size, from 16M to 16T
    #[arg(short, long, value_name = "SIZE", value_parser = super::parse_size)]
    size: u64,
    /// Put a fixed VHD's footer behind the file system
    #[arg(long)]
    vhd: bool,
    /// Without a journal: for what need not survive a crash
    #[arg(long)]
    no_journal: bool,
    /// A label of at most 16 bytes
    #[arg(long, default_value = "", value_name = "TEXT")]
    label: String,
    /// Overwrite a file that is there
    #[arg(short, long)]
    force: bool,
}

impl Mkfs {
    pub(crate) fn run(self, _context: &Context) -> Result<()> {
        let path = &self.disk;
        match std::fs::metadata(path) {
            Ok(m) if m.is_file() && !self.force => {
                return Err(hinted(
                    format!("{} is there already", path.display()),
                    "remove it, or use --force to overwrite it",
                ));
            }
            _ => {}
        }
        let mut random = [0; 48];
        if let Err(error) = getrandom::fill(&mut random) {
            bail!("getting random bytes: {error}");
        }
        let [mut uuid, hash_seed, id] = [0, 16, 32].map(|at| {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&random[at..at + 16]);
            bytes
        });
        // RFC 9562: version 4, random.
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let writing = || format!("making {}", path.display());
        let new = NewDisk::create(path)?;
        let disk = new.disk()?;
        let options = mkfs::FormatOptions {
            size: self.size,
            journal: !self.no_journal,
            uuid,
            hash_seed,
            label: &self.label,
            root_dirs: &[],
        };
        mkfs::format(&disk, &options).with_context(writing)?;
        if self.vhd {
            vhd::write_footer(&disk, self.size, id).with_context(writing)?;
        }
        new.keep(true)?;
        Ok(())
    }
}
