//! A file system that fails.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lcow_blockio::{ReadAt, WriteAt};

use super::{Cloned, Entry, Handle, LockMode, Metadata, OpenMode, Vfs, VfsFile};
use crate::lock::Holder;

/// Which calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fails {
    /// One.
    Once,
    /// One, and all after it.
    FromThenOn,
}

/// A file system on which a call of one's choice fails. Clones are the same. Conversions run in this process.
#[derive(Debug, Clone)]
pub struct Faulty {
    inner: Arc<dyn Vfs>,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    calls: u64,
    fault: Option<(u64, i32, Fails)>,
    failed: Option<&'static str>,
}

impl Faulty {
    /// One on which nothing fails so far.
    #[must_use]
    pub fn new(inner: Arc<dyn Vfs>) -> Self {
        Self {
            inner,
            plan: Arc::default(),
        }
    }

    /// Makes the call numbered `call`, counted from now on and from 0, fail with an error number of the operating system.
    pub fn fail(&self, call: u64, error: i32, which: Fails) {
        *self.plan() = Plan {
            fault: Some((call, error, which)),
            ..Plan::default()
        };
    }

    /// Makes nothing fail any more, and gives the name of the first call that did.
    pub fn heal(&self) -> Option<&'static str> {
        std::mem::take(&mut *self.plan()).failed
    }

    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, name: &'static str) -> io::Result<()> {
        let mut plan = self.plan();
        let number = plan.calls;
        plan.calls += 1;
        match plan.fault {
            Some((at, error, which))
                if number == at || number > at && which == Fails::FromThenOn =>
            {
                plan.failed.get_or_insert(name);
                Err(io::Error::from_raw_os_error(error))
            }
            _ => Ok(()),
        }
    }
}

impl Vfs for Faulty {
    fn open(&self, path: &Path, how: OpenMode) -> io::Result<Handle> {
        self.call("open")?;
        Ok(Arc::new(FaultyFile {
            inner: self.inner.open(path, how)?,
            of: self.clone(),
        }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call("mkdir")?;
        self.inner.create_dir(path)
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.call("lstat")?;
        self.inner.metadata(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.call("getdents")?;
        self.inner.read_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("rename")?;
        self.inner.rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("rename")?;
        self.inner.rename_new(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("link")?;
        self.inner.link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call("unlink")?;
        self.inner.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call("rmdir")?;
        self.inner.remove_dir(path)
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        self.call("realpath")?;
        self.inner.canonicalize(path)
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Handle,
    of: Faulty,
}

impl VfsFile for FaultyFile {
    fn metadata(&self) -> io::Result<Metadata> {
        self.of.call("fstat")?;
        self.inner.metadata()
    }

    fn try_lock(&self, mode: LockMode) -> io::Result<bool> {
        self.of.call("flock")?;
        self.inner.try_lock(mode)
    }

    fn unlock(&self) {
        self.inner.unlock();
    }

    fn holders(&self) -> Vec<Holder> {
        self.inner.holders()
    }

    fn become_clone_of(&self, from: &dyn VfsFile) -> io::Result<Cloned> {
        self.of.call("clone")?;
        self.inner.become_clone_of(from)
    }

    fn as_file(&self) -> Option<&File> {
        None
    }
}

impl ReadAt for FaultyFile {
    fn size(&self) -> io::Result<u64> {
        self.of.call("fstat")?;
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.of.call("read")?;
        self.inner.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.of.call("lseek")?;
        self.inner.next_data(offset)
    }
}

impl WriteAt for FaultyFile {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.of.call("write")?;
        self.inner.write_all_at(offset, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.of.call("truncate")?;
        self.inner.set_len(len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.of.call("fallocate")?;
        self.inner.zero_range(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.of.call("fsync")?;
        self.inner.sync()
    }
}
