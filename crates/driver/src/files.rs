//! Files that appear whole or not at all.
//!
//! The order is always the same: write under a temporary name, fsync, rename, fsync the directory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lcow_blockio::{ReadAt, WriteAt};

use crate::DriverError;
use crate::lock::Locked;
use crate::vfs::{Entry, Handle, LockMode, Metadata, OpenMode, Vfs};

/// What the store does to files, on whichever file system; errors name the operation and the path.
#[derive(Debug, Clone)]
pub(crate) struct Files(Arc<dyn Vfs>);

impl Files {
    pub(crate) fn new(vfs: Arc<dyn Vfs>) -> Self {
        Self(vfs)
    }

    pub(crate) fn open(&self, path: &Path, how: OpenMode) -> Result<Handle, DriverError> {
        self.0
            .open(path, how)
            .map_err(DriverError::io("opening", path))
    }

    /// Opens for reading; `None` if it is not there.
    pub(crate) fn open_if_there(&self, path: &Path) -> Result<Option<Handle>, DriverError> {
        if_there(self.0.open(path, OpenMode::Read)).map_err(DriverError::io("opening", path))
    }

    /// What is there; `None` if nothing is. Symbolic links are not followed.
    pub(crate) fn look(&self, path: &Path) -> Result<Option<Metadata>, DriverError> {
        if_there(self.0.metadata(path)).map_err(DriverError::io("reading", path))
    }

    pub(crate) fn list(&self, path: &Path) -> Result<Vec<Entry>, DriverError> {
        self.0
            .read_dir(path)
            .map_err(DriverError::io("listing", path))
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), DriverError> {
        self.0
            .rename(from, to)
            .map_err(DriverError::io("renaming", to))
    }

    pub(crate) fn link(&self, from: &Path, to: &Path) -> Result<(), DriverError> {
        self.0
            .link(from, to)
            .map_err(DriverError::io("linking", to))
    }

    /// Deletes a name of a file. Not an error if it is gone already; does not sync.
    pub(crate) fn unlink(&self, path: &Path) -> Result<(), DriverError> {
        if_there(self.0.remove_file(path))
            .map(drop)
            .map_err(DriverError::io("deleting", path))
    }

    pub(crate) fn canonicalize(&self, path: &Path) -> Result<PathBuf, DriverError> {
        self.0
            .canonicalize(path)
            .map_err(DriverError::io("opening", path))
    }

    /// Makes a directory with mode 0700, and says whether it was missing.
    pub(crate) fn ensure_dir(&self, path: &Path) -> Result<bool, DriverError> {
        let is_there = || {
            self.0
                .open(path, OpenMode::Read)
                .and_then(|file| file.metadata())
                .is_ok_and(|m| m.is_dir())
        };
        match self.0.create_dir(path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_there() => Ok(false),
            Err(e) => Err(DriverError::io("creating", path)(e)),
        }
    }

    /// Makes a directory and, durably, those above it that are missing.
    pub(crate) fn ensure_dirs(&self, path: &Path) -> Result<(), DriverError> {
        if let Some(parent) = path.parent()
            && !parent.as_os_str().is_empty()
            && self.look(parent)?.is_none()
        {
            self.ensure_dirs(parent)?;
            if let Some(above) = parent.parent() {
                self.sync_dir(above)?;
            }
        }
        self.ensure_dir(path).map(drop)
    }

    /// Makes a directory's entries durable.
    pub(crate) fn sync_dir(&self, path: &Path) -> Result<(), DriverError> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        self.0
            .open(path, OpenMode::Read)
            .and_then(|directory| directory.sync())
            .map_err(DriverError::io("syncing", path))
    }

    /// A new file that only its owner may touch.
    pub(crate) fn create_new(&self, path: &Path) -> Result<Handle, DriverError> {
        self.0
            .open(path, OpenMode::CreateNew)
            .map_err(DriverError::io("creating", path))
    }

    /// Writes a file's bytes durably. The caller fsyncs the directory.
    pub(crate) fn write_new(&self, path: &Path, bytes: &[u8]) -> Result<(), DriverError> {
        let file = self.create_new(path)?;
        file.write_all_at(0, bytes)
            .map_err(DriverError::io("writing", path))?;
        file.sync().map_err(DriverError::io("syncing", path))
    }

    /// Puts `bytes` in place of whatever `path` holds, durably: after a crash at any point it holds the old or the new ones.
    /// `temp` is a directory on the same file system for the half-made file.
    ///
    /// # Errors
    /// [`DriverError::Io`]; nothing is left behind then.
    pub(crate) fn replace(
        &self,
        temp: &TempDir,
        path: &Path,
        bytes: &[u8],
    ) -> Result<(), DriverError> {
        let half = temp.path().join(format!("file-{}", random_name()?));
        self.write_new(&half, bytes)
            .and_then(|()| self.rename(&half, path))
            .inspect_err(|_| drop(self.0.remove_file(&half)))?;
        match path.parent() {
            Some(directory) => self.sync_dir(directory),
            None => Ok(()),
        }
    }

    /// Deletes a file durably. Not an error if it is gone already.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), DriverError> {
        if_there(self.0.remove_file(path)).map_err(DriverError::io("deleting", path))?;
        match path.parent() {
            Some(directory) => self.sync_dir(directory),
            None => Ok(()),
        }
    }

    /// Renames without replacing anything: `Ok(false)` if `to` is there already.
    pub(crate) fn rename_new(&self, from: &Path, to: &Path) -> Result<bool, DriverError> {
        use io::ErrorKind as Kind;
        match self.0.rename_new(from, to) {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.kind(), Kind::AlreadyExists | Kind::DirectoryNotEmpty) => {
                Ok(false)
            }
            // A file system without this. The caller holds the commit lock, so nobody comes in between.
            Err(e) if matches!(e.kind(), Kind::InvalidInput | Kind::Unsupported) => {
                if self.look(to)?.is_some() {
                    return Ok(false);
                }
                self.rename(from, to).map(|()| true)
            }
            Err(e) => Err(DriverError::io("renaming", to)(e)),
        }
    }

    /// Deletes a file or a directory with all in it. Not an error if it is gone, or if somebody else deletes it as well.
    pub(crate) fn delete(&self, path: &Path) -> Result<(), DriverError> {
        let mut attempts = 0;
        // Directories that are being emptied, the innermost last.
        let mut open = vec![path.to_owned()];
        while let Some(path) = open.last() {
            let result = match self.0.metadata(path) {
                Ok(m) if m.is_dir() => self.delete_directory(path),
                Ok(_) => self.0.remove_file(path).map(|()| Vec::new()),
                Err(e) => Err(e),
            };
            match result {
                Ok(inner) if inner.is_empty() => drop(open.pop()),
                Ok(inner) => open.extend(inner),
                Err(e) if e.kind() == io::ErrorKind::NotFound => drop(open.pop()),
                // Somebody put something there meanwhile.
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && attempts < 10 => {
                    attempts += 1;
                }
                Err(e) => return Err(DriverError::io("deleting", path)(e)),
            }
        }
        Ok(())
    }

    /// Deletes a directory's files, and itself unless there are directories in it: those are given back.
    fn delete_directory(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut inner = Vec::new();
        for entry in self.0.read_dir(path)? {
            let path = path.join(&entry.name);
            if entry.kind == crate::vfs::FileKind::Directory {
                inner.push(path);
            } else {
                if_there(self.0.remove_file(&path))?;
            }
        }
        if inner.is_empty() {
            self.0.remove_dir(path)?;
        }
        Ok(inner)
    }

    /// The bytes of a small file; `None` if it is not there.
    pub(crate) fn read_small(&self, path: &Path) -> Result<Option<Vec<u8>>, DriverError> {
        // A chain of 500 ids of 255 bytes is far below this; a larger file is not one of ours.
        self.read_up_to(path, 4 << 20)
    }

    /// The bytes of a file; `None` if it is not there, [`DriverError::Corrupt`] if it is longer than that.
    pub(crate) fn read_up_to(
        &self,
        path: &Path,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, DriverError> {
        let Some(file) = self.open_if_there(path)? else {
            return Ok(None);
        };
        let read = || -> io::Result<Option<Vec<u8>>> {
            let size = file.size()?;
            if size > limit {
                return Ok(None);
            }
            let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
            let n = file.read_at(0, &mut bytes)?;
            bytes.truncate(n);
            Ok(Some(bytes))
        };
        match read().map_err(DriverError::io("reading", path))? {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(DriverError::corrupt(
                path,
                format!("longer than {limit} bytes"),
            )),
        }
    }

    /// Locks what is at a path, if that is possible at once; gives the file back if not.
    pub(crate) fn try_lock(
        &self,
        path: &Path,
        how: OpenMode,
        mode: LockMode,
    ) -> Result<Result<Locked, Handle>, DriverError> {
        Locked::try_new(self.open(path, how)?, mode).map_err(DriverError::io("locking", path))
    }

    /// Whether `path` still is the file that was locked.
    pub(crate) fn is_still(&self, locked: &Locked, path: &Path) -> Result<bool, DriverError> {
        let own = locked.file().metadata();
        let own = own.map_err(DriverError::io("reading", path))?;
        Ok(self
            .look(path)?
            .is_some_and(|now| now.identity == own.identity))
    }

    /// Locks what is at a path; `None` if it is gone, or somebody else has it.
    fn lock_if_still(&self, path: &Path) -> Result<Option<Locked>, DriverError> {
        let Some(file) = self.open_if_there(path)? else {
            return Ok(None);
        };
        let locked =
            Locked::try_new(file, LockMode::Exclusive).map_err(DriverError::io("locking", path))?;
        match locked {
            Ok(locked) if self.is_still(&locked, path)? => Ok(Some(locked)),
            _ => Ok(None),
        }
    }

    /// Deletes what is half-made in `directory` and whose owner is dead. Gives the names of what it deleted, and what it
    /// could not delete.
    pub(crate) fn sweep(
        &self,
        directory: &Path,
    ) -> Result<(Vec<String>, Vec<DriverError>), DriverError> {
        let (mut gone, mut failed) = (Vec::new(), Vec::new());
        for Entry { name, .. } in self.list(directory)? {
            if name == ".commit" {
                continue;
            }
            match self.sweep_one(&directory.join(&name)) {
                Ok(true) => gone.push(name.to_string_lossy().into_owned()),
                Ok(false) => {}
                Err(e) => failed.push(e),
            }
        }
        gone.sort();
        Ok((gone, failed))
    }

    fn sweep_one(&self, path: &Path) -> Result<bool, DriverError> {
        let Some(found) = self.look(path)? else {
            return Ok(false);
        };
        if !found.is_dir() && !found.is_file() {
            // Nothing that this program makes, and opening it could block.
            self.delete(path)?;
            return Ok(true);
        }
        match self.lock_if_still(path)? {
            Some(_locked) => self.delete(path).map(|()| true),
            None => Ok(false),
        }
    }
}

/// `None` for what is not there.
fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
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
    files: Files,
    path: PathBuf,
    _locked: Locked,
}

impl TempDir {
    pub(crate) fn new(files: &Files, parent: &Path, prefix: &str) -> Result<Self, DriverError> {
        loop {
            let path = parent.join(format!("{prefix}-{}", random_name()?));
            files
                .0
                .create_dir(&path)
                .map_err(DriverError::io("creating", &path))?;
            // Between its making and its locking a recovery may take it for a dead process's: then make another.
            let locked = files
                .lock_if_still(&path)
                .inspect_err(|_| drop(files.0.remove_dir(&path)))?;
            if let Some(locked) = locked {
                return Ok(Self {
                    files: files.clone(),
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
        if let Err(error) = self.files.delete(&self.path) {
            // The next recovery deletes it.
            tracing::warn!(path = %self.path.display(), %error, "a temporary directory stays behind");
        }
    }
}
