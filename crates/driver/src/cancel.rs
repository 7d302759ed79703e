//! Asking a long operation to stop.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lcow_blockio::ReadAt;

use crate::DriverError;

/// A flag that long operations look at, and stop cleanly when it is set.
///
/// Clones share the flag. A signal handler may set it: that is one atomic store.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the stop was asked for.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`DriverError::Cancelled`] if the stop was asked for.
    pub fn check(&self) -> Result<(), DriverError> {
        if self.is_cancelled() {
            Err(DriverError::Cancelled)
        } else {
            Ok(())
        }
    }

    fn check_io(&self) -> io::Result<()> {
        // Not `Interrupted`: readers retry on that one.
        if self.is_cancelled() {
            Err(io::Error::other("cancelled"))
        } else {
            Ok(())
        }
    }
}

impl From<Arc<AtomicBool>> for Cancel {
    fn from(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }
}

/// Passes reads and writes through until the flag is set, and fails from then on.
pub(crate) struct Stoppable<T> {
    inner: T,
    cancel: Cancel,
}

impl<T> Stoppable<T> {
    pub(crate) fn new(inner: T, cancel: &Cancel) -> Self {
        Self {
            inner,
            cancel: cancel.clone(),
        }
    }
}

impl<T: Read> Read for Stoppable<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.cancel.check_io()?;
        self.inner.read(buf)
    }
}

impl<T: ReadAt> ReadAt for Stoppable<T> {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.cancel.check_io()?;
        self.inner.read_at(offset, buf)
    }
}

impl<T: Write> Write for Stoppable<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.cancel.check_io()?;
        self.inner.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
