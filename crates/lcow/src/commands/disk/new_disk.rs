//! The file of a disk in the making: it appears under its name only when it is complete.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use lcow_blockio::FileDisk;
use tempfile::NamedTempFile;

use crate::errors::hinted;
use crate::files;

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
