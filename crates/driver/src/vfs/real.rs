//! The host's file system.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lcow_blockio::{FileDisk, ReadAt, WriteAt};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use super::{Cloned, Entry, FileKind, Handle, LockMode, Metadata, OpenMode, Vfs, VfsFile};
use crate::clone;
use crate::lock::{self, Holder};

/// The host's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host;

/// Starts a call again that a signal interrupted.
fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Vfs for Host {
    fn open(&self, path: &Path, how: OpenMode) -> io::Result<Handle> {
        let mut options = File::options();
        options.read(true).mode(0o600);
        match how {
            OpenMode::Read => &mut options,
            OpenMode::Write => options.write(true),
            OpenMode::Create => options.write(true).create(true).truncate(false),
            OpenMode::CreateNew => options.write(true).create_new(true),
        };
        let file = retried(|| options.open(path))?;
        Ok(Arc::new(HostFile(FileDisk::from(file))))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        retried(|| DirBuilder::new().mode(0o700).create(path))
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        retried(|| fs::symlink_metadata(path)).map(|m| describe(&m))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<Entry>> {
        retried(|| {
            let mut entries = Vec::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                match entry.file_type() {
                    Ok(file_type) => entries.push(Entry {
                        name: entry.file_name(),
                        kind: kind(file_type),
                    }),
                    // Deleted since it was listed.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(entries)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        retried(|| fs::rename(from, to))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        retried(|| Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        retried(|| fs::hard_link(from, to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        retried(|| fs::remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        retried(|| fs::remove_dir(path))
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        retried(|| fs::canonicalize(path))
    }
}

#[derive(Debug)]
struct HostFile(FileDisk);

impl VfsFile for HostFile {
    fn metadata(&self) -> io::Result<Metadata> {
        self.0.file().metadata().map(|m| describe(&m))
    }

    fn try_lock(&self, mode: LockMode) -> io::Result<bool> {
        let operation = match mode {
            LockMode::Shared => FlockOperation::NonBlockingLockShared,
            LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match retried(|| Ok(flock(self.0.file(), operation)?)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn unlock(&self) {
        // Fails only for a bad descriptor, which this can't be.
        let _ = flock(self.0.file(), FlockOperation::Unlock);
    }

    fn holders(&self) -> Vec<Holder> {
        lock::holders(self.0.file())
    }

    fn become_clone_of(&self, from: &dyn VfsFile) -> io::Result<Cloned> {
        let from = from.as_file().ok_or(io::ErrorKind::CrossesDevices)?;
        retried(|| clone::clone(from, self.0.file()))
    }

    fn as_file(&self) -> Option<&File> {
        Some(self.0.file())
    }
}

impl ReadAt for HostFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
}

impl WriteAt for HostFile {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_all_at(offset, buf)
    }

    fn write_both_at(&self, offset: u64, first: &[u8], second: &[u8]) -> io::Result<()> {
        self.0.write_both_at(offset, first, second)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.zero_range(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn expect(&self, offset: u64, len: u64) {
        self.0.expect(offset, len);
    }
}

fn kind(file_type: fs::FileType) -> FileKind {
    if file_type.is_file() {
        FileKind::File
    } else if file_type.is_dir() {
        FileKind::Directory
    } else {
        FileKind::Other
    }
}

fn describe(m: &fs::Metadata) -> Metadata {
    let nanos = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
    Metadata {
        kind: kind(m.file_type()),
        len: m.len(),
        allocated: m.blocks() * 512,
        links: m.nlink(),
        identity: (m.dev(), m.ino()),
        mtime: nanos(m.mtime(), m.mtime_nsec()),
        ctime: nanos(m.ctime(), m.ctime_nsec()),
    }
}
