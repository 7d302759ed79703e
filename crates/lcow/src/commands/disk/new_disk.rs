//! The file of a disk in the making: it appears under its name only when it is complete.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context as _, Result};
use lcow_blockio::{FileDisk, ReadAt, WriteAt};
use lcow_driver::Cancel;
use tempfile::NamedTempFile;

use crate::errors::hinted;
use crate::files;
use crate::progress::Progress;

/// Under a temporary name in the same directory until it is kept; gone if it never is.
pub(super) struct NewDisk<'p> {
    file: NamedTempFile,
    path: &'p Path,
}

impl<'p> NewDisk<'p> {
    /// Begins a disk. What is there under its name is replaced at the end, if it is a file.
    pub(super) fn create(path: &'p Path) -> Result<Self> {
        if files::is_dash(path) {
            return Err(hinted(
                "a disk can't be written to standard output",
                "name a file: the disk is sparse, and its metadata is written last",
            ));
        }
        if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            return Err(hinted(
                format!("{} is not a regular file", path.display()),
                "name a file; write it to a device with `dd conv=sparse` afterwards",
            ));
        }
        let file = files::temporary(path, ".lcow-disk.")?;
        Ok(Self { file, path })
    }

    /// The disk, to be written.
    pub(super) fn disk(&self) -> Result<FileDisk> {
        let file = self.file.as_file().try_clone();
        Ok(FileDisk::from(file.with_context(|| self.writing())?))
    }

    /// Gives the file its name. `durable`: it and its name are on stable storage when this returns.
    pub(super) fn keep(self, durable: bool) -> Result<File> {
        let writing = self.writing();
        if durable {
            self.file
                .as_file()
                .sync_all()
                .with_context(|| writing.clone())?;
        }
        let kept = self.file.persist(self.path).map_err(|e| e.error);
        let file = kept.with_context(|| writing.clone())?;
        if durable {
            files::sync_directory(self.path).with_context(|| writing)?;
        }
        Ok(file)
    }

    fn writing(&self) -> String {
        format!("writing {}", self.path.display())
    }
}

/// What a disk's file takes, in bytes.
pub(super) fn allocated(file: &File, path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata();
    let metadata = metadata.with_context(|| format!("reading {}", path.display()))?;
    Ok(metadata.blocks() * 512)
}

/// A disk on its way: reading and writing end when the user asks for it.
pub(super) struct Watched<'a> {
    pub(super) disk: FileDisk,
    pub(super) cancel: &'a Cancel,
    /// Told of what is written.
    pub(super) progress: Option<&'a Progress>,
}

impl Watched<'_> {
    fn go_on(&self, written: usize) -> io::Result<()> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        if let Some(progress) = self.progress {
            progress.add(written as u64);
        }
        Ok(())
    }
}

impl ReadAt for Watched<'_> {
    fn size(&self) -> io::Result<u64> {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.go_on(0)?;
        self.disk.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.disk.next_data(offset)
    }
}

impl WriteAt for Watched<'_> {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.go_on(buf.len())?;
        self.disk.write_all_at(offset, buf)
    }

    fn write_both_at(&self, offset: u64, first: &[u8], second: &[u8]) -> io::Result<()> {
        self.go_on(first.len().saturating_add(second.len()))?;
        self.disk.write_both_at(offset, first, second)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.zero_range(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }

    fn expect(&self, offset: u64, len: u64) {
        self.disk.expect(offset, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_tree_is_not_built_to_its_end() {
        let cancel = Cancel::new();
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let disk = Watched {
            disk: FileDisk::from(file),
            cancel: &cancel,
            progress: None,
        };
        let build = || lcow_disk::verity::build(&disk, 1 << 20, b"", [1; 16]);
        build().unwrap();
        cancel.cancel();
        assert!(build().is_err());
    }
}
