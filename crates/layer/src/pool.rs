//! Buffers that threads share and that come back.

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

/// Buffers on their way in a channel.
pub(crate) const DEPTH: usize = 8;

/// Buffers of one size.
#[derive(Clone)]
pub(crate) struct Pool {
    back: Sender<Vec<u8>>,
    free: Receiver<Vec<u8>>,
    size: usize,
}

struct Pooled {
    bytes: Vec<u8>,
    back: Sender<Vec<u8>>,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        // A full pool is one that has enough: the buffer is freed.
        let _ = self.back.try_send(std::mem::take(&mut self.bytes));
    }
}

impl Pool {
    pub(crate) fn new(size: usize) -> Self {
        let (back, free) = bounded(DEPTH);
        Self { back, free, size }
    }

    pub(crate) fn take(&self) -> Vec<u8> {
        self.free.try_recv().unwrap_or_else(|_| vec![0; self.size])
    }

    /// The first `len` bytes of a buffer, which comes back when the last who has them lets go.
    pub(crate) fn share(&self, bytes: Vec<u8>, len: usize) -> Bytes {
        let back = self.back.clone();
        Bytes::from_owner(Pooled { bytes, back }).slice(..len)
    }
}
