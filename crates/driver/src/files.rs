//! Files that appear whole or not at all.
//!
//! The order is always the same: write under a temporary name, fsync, rename, fsync the directory.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::DriverError;
use crate::lock::{Locked, Mode};

/// Makes a directory with mode 0700, and says whether it was missing.
pub(crate) fn ensure_dir(path: &Path) -> Result<bool, DriverError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(e) => Err(DriverError::io("creating", path)(e)),
    }
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), DriverError> {
    File::open(path)
        .and_then(|d| d.sync_all())
        .map_err(DriverError::io("syncing", path))
}

/// A new file that only its owner may touch.
pub(crate) fn create_new(path: &Path) -> Result<File, DriverError> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(DriverError::io("creating", path))
}

/// Writes a file's bytes durably. The caller fsyncs the directory.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), DriverError> {
    let mut file = create_new(path)?;
    file.write_all(bytes)
        .map_err(DriverError::io("writing", path))?;
    file.sync_all().map_err(DriverError::io("syncing", path))
}

/// Puts `bytes` in place of whatever `path` holds, durably: after a crash at any point it holds the old or the new ones.
/// `temp` is a directory on the same file system for the half-made file.
///
/// # Errors
/// [`DriverError::Io`]; nothing is left behind then.
pub(crate) fn replace_file(temp: &TempDir, path: &Path, bytes: &[u8]) -> Result<(), DriverError> {
    let half = temp.path().join(format!("file-{}", random_name()?));
    write_new(&half, bytes)
        .and_then(|()| fs::rename(&half, path).map_err(DriverError::io("renaming", path)))
        .inspect_err(|_| drop(fs::remove_file(&half)))?;
    match path.parent() {
        Some(directory) => sync_dir(directory),
        None => Ok(()),
    }
}

/// Renames without replacing anything: `Ok(false)` if `to` is there already.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<bool, DriverError> {
    loop {
        return match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
            Err(Errno::INTR) => continue,
            // A file system without the flag. The caller holds the commit lock, so nobody comes in between.
            Err(Errno::INVAL | Errno::NOSYS) => {
                if fs::symlink_metadata(to).is_ok() {
                    return Ok(false);
                }
                fs::rename(from, to)
                    .map(|()| true)
                    .map_err(DriverError::io("renaming", to))
            }
            Err(e) => Err(DriverError::io("renaming", to)(e.into())),
        };
    }
}

/// Deletes a file or a directory with all in it. Not an error if it is gone, or if somebody else deletes it as well.
pub(crate) fn delete(path: &Path) -> Result<(), DriverError> {
    for attempt in 0.. {
        let result = match fs::symlink_metadata(path) {
            Ok(m) if m.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(e) => Err(e),
        };
        match result {
            Ok(()) => return Ok(()),
            Err(e)
                if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() =>
            {
                return Ok(());
            }
            Err(e) if attempt == 10 => return Err(DriverError::io("deleting", path)(e)),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) => {}
            Err(e) => return Err(DriverError::io("deleting", path)(e)),
        }
    }
    Ok(())
}

/// The bytes of a small file; `None` if it is not there.
pub(crate) fn read_small(path: &Path) -> Result<Option<Vec<u8>>, DriverError> {
    use std::io::Read;
    // A chain of 500 ids of 255 bytes is far below this; a larger file is not one of ours.
    const LIMIT: u64 = 4 << 20;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(DriverError::io("opening", path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(DriverError::io("reading", path))?;
    if bytes.len() as u64 > LIMIT {
        return Err(DriverError::corrupt(
            path,
            format!("longer than {LIMIT} bytes"),
        ));
    }
    Ok(Some(bytes))
}

/// 16 random bytes, from the operating system.
pub(crate) fn random_bytes() -> Result<[u8; 16], DriverError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| DriverError::io("reading", "/dev/urandom")(io::Error::other(e.to_string())))?;
    Ok(bytes)
}

pub(crate) fn random_name() -> Result<String, DriverError> {
    Ok(random_bytes()?
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect())
}

/// A directory for half-made things, deleted when dropped, or by the next process to open the store if its owner died: it
/// is locked for as long as the owner lives.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    _locked: Locked,
}

impl TempDir {
    pub(crate) fn new(parent: &Path, prefix: &str) -> Result<Self, DriverError> {
        loop {
            let path = parent.join(format!("{prefix}-{}", random_name()?));
            DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .map_err(DriverError::io("creating", &path))?;
            // Between its making and its locking a recovery may take it for a dead process's: then make another.
            let opened = match File::open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(DriverError::io("opening", &path)(e)),
            };
            let locked = Locked::try_new(opened, Mode::Exclusive)
                .map_err(DriverError::io("locking", &path))?;
            if let Ok(locked) = locked
                && locked
                    .is_still(&path)
                    .map_err(DriverError::io("reading", &path))?
            {
                return Ok(Self {
                    path,
                    _locked: locked,
                });
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.path) {
            // The next recovery deletes it.
            tracing::warn!(path = %self.path.display(), %error, "a temporary directory stays behind");
        }
    }
}

/// Deletes what is half-made in `directory` and whose owner is dead. Gives the names of what it deleted, and what it
/// could not delete.
pub(crate) fn sweep(directory: &Path) -> Result<(Vec<String>, Vec<DriverError>), DriverError> {
    let (mut gone, mut failed) = (Vec::new(), Vec::new());
    let entries = fs::read_dir(directory).map_err(DriverError::io("listing", directory))?;
    for entry in entries {
        let entry = entry.map_err(DriverError::io("listing", directory))?;
        let name = entry.file_name();
        if name == ".commit" {
            continue;
        }
        let path = entry.path();
        match sweep_one(&path) {
            Ok(true) => gone.push(name.to_string_lossy().into_owned()),
            Ok(false) => {}
            Err(e) => failed.push(e),
        }
    }
    gone.sort();
    Ok((gone, failed))
}

fn sweep_one(path: &Path) -> Result<bool, DriverError> {
    let file_type = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(DriverError::io("reading", path)(e)),
    };
    if !file_type.is_dir() && !file_type.is_file() {
        // Nothing that this program makes, and opening it could block.
        delete(path)?;
        return Ok(true);
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(DriverError::io("opening", path)(e)),
    };
    let locked =
        Locked::try_new(file, Mode::Exclusive).map_err(DriverError::io("locking", path))?;
    if locked.is_err() {
        return Ok(false);
    }
    delete(path)?;
    Ok(true)
}
