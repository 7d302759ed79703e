//! The file system under a store, as the store sees it.
//!
//! All that a store reads and writes in its data root goes through [`Vfs`] and [`VfsFile`]: the host's file system
//! ([`Host`]), or a double that loses power or fails (feature `testing`). `docs/crash-safety.md` says what the store takes for
//! granted of it.
//!
//! # For implementors
//! A call that a signal interrupted is started again, never given back as [`io::ErrorKind::Interrupted`]. New files are
//! 0600, new directories 0700. Symbolic links are not followed where nothing else is said.

#[cfg(feature = "testing")]
pub mod faulty;
mod real;
#[cfg(feature = "testing")]
pub mod sim;

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lcow_blockio::WriteAt;

use crate::lock::Holder;

pub use real::Host;

/// A file system.
pub trait Vfs: Debug + Send + Sync {
    /// Opens a file or a directory. The last component may be a symbolic link.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, path: &Path, how: OpenMode) -> io::Result<Handle>;

    /// Makes a directory.
    ///
    /// # Errors
    /// The operating system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Describes what is there.
    ///
    /// # Errors
    /// The operating system's.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;

    /// What a directory holds, in no order.
    ///
    /// # Errors
    /// The operating system's.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Renames, and replaces what has the new name.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames, and replaces nothing: [`io::ErrorKind::AlreadyExists`] or [`io::ErrorKind::DirectoryNotEmpty`] if there is
    /// something of the new name. [`io::ErrorKind::InvalidInput`] or [`io::ErrorKind::Unsupported`] where this can't be done.
    ///
    /// # Errors
    /// The operating system's.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name, which must not be there. [`io::ErrorKind::Unsupported`] or another error where this can't
    /// be done.
    ///
    /// # Errors
    /// The operating system's.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Deletes anything but a directory.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Deletes an empty directory.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The absolute path, without symbolic links.
    ///
    /// # Errors
    /// The operating system's.
    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf>;
}

/// An open file or directory. [`WriteAt::sync`] makes a file's bytes, or a directory's entries, durable.
pub trait VfsFile: WriteAt + Debug {
    /// Describes it.
    ///
    /// # Errors
    /// The operating system's.
    fn metadata(&self) -> io::Result<Metadata>;

    /// Locks it as flock(2) does, if that is possible at once: `Ok(false)` if not. A lock ends with its process.
    ///
    /// # Errors
    /// The operating system's.
    fn try_lock(&self, mode: LockMode) -> io::Result<bool>;

    /// Releases its lock.
    fn unlock(&self);

    /// Who holds a lock on it. Empty where that can't be known.
    fn holders(&self) -> Vec<Holder>;

    /// Gives this empty file the contents of another of the same file system. Does not sync.
    ///
    /// # Errors
    /// The operating system's.
    fn become_clone_of(&self, from: &dyn VfsFile) -> io::Result<Cloned>;

    /// The host's file, if it is one: to be given to another process.
    fn as_file(&self) -> Option<&File>;
}

/// An open file or directory, closed with its last clone.
pub type Handle = Arc<dyn VfsFile>;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading.
    Read,
    /// For reading and writing.
    Write,
    /// For reading and writing, made if it is not there.
    Create,
    /// For reading and writing, and it must not be there.
    CreateNew,
}

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Together with others.
    Shared,
    /// Alone.
    Exclusive,
}

/// How a file was cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloned {
    /// The two share their blocks.
    Reflink,
    /// The data was copied, and holes stayed holes.
    Copy,
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Anything else, symbolic links among it.
    Other,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Its length in bytes.
    pub len: u64,
    /// Bytes allocated to it.
    pub allocated: u64,
    /// How many names it has.
    pub links: u64,
    /// Device and inode: the same file if they are the same.
    pub identity: (u64, u64),
    /// When its contents changed, in nanoseconds since the epoch.
    pub mtime: i128,
    /// When anything of it changed, in nanoseconds since the epoch.
    pub ctime: i128,
}

impl Metadata {
    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind == FileKind::File
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

/// Something in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// What it is.
    pub kind: FileKind,
}

/// Reads a file from its beginning to its end.
pub(crate) struct Sequential {
    handle: Handle,
    at: u64,
}

impl Sequential {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle, at: 0 }
    }
}

impl io::Read for Sequential {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.handle.read_at(self.at, buf)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl io::Write for Sequential {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.handle.write_all_at(self.at, buf)?;
        self.at += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
