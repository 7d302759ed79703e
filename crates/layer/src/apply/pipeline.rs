//! The threads beside the writer.
//!
//! ```text
//!  producer: read (and inflate) ──► pooled buffers ──► caller: parse, write the disk
//!       │                                   └────────► hash of the plain tar   (diff ID)
//!       └──► buffers as read ─────────────────────────► hash of the input      (compressed inputs only)
//! ```
//!
//! All channels are bounded, and a buffer goes back to its pool when the last one who has it lets go of it. A thread that finds the other side of its
//! channel gone stops. They are scoped threads, so none outlives the call; one that waits in the input's `read` is waited for.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::thread::{Scope, ScopedJoinHandle};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::{ApplyError, ApplyOptions, CompressedInput};
use crate::compress::Compression;
use crate::digest::{Digest, Hasher};

/// A multiple of the tar block, so that all buffers but the last hold whole blocks. Small enough for two cores' caches.
const BUFFER: usize = 256 << 10;
/// Buffers on their way in each channel.
const DEPTH: usize = 8;

/// Buffers that come back.
#[derive(Clone)]
struct Pool {
    back: Sender<Vec<u8>>,
    free: Receiver<Vec<u8>>,
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
    fn new() -> Self {
        let (back, free) = bounded(DEPTH);
        Self { back, free }
    }

    fn take(&self) -> Vec<u8> {
        self.free.try_recv().unwrap_or_else(|_| vec![0; BUFFER])
    }

    fn share(&self, bytes: Vec<u8>, len: usize) -> Bytes {
        let back = self.back.clone();
        Bytes::from_owner(Pooled { bytes, back }).slice(..len)
    }
}

/// Fills a buffer as far as the input goes.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0_usize;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(n) => filled = filled.saturating_add(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// The other end is gone: whoever took our buffers has failed, and its error is the one that counts.
struct Gone;

/// The input, buffered, with a copy of every buffer sent to be hashed.
struct Tee<'a, R> {
    input: R,
    pool: Pool,
    hash: Option<Sender<Bytes>>,
    current: Bytes,
    /// Bytes read.
    taken: &'a Cell<u64>,
    /// Whether the input itself failed, as opposed to the decoder finding fault with its content.
    failed: &'a Cell<bool>,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let buffer = self.fill_buf()?;
        let n = buffer.len().min(out.len());
        for (to, from) in out.iter_mut().zip(buffer) {
            *to = *from;
        }
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for Tee<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() {
            let mut buffer = self.pool.take();
            // One read, not a full buffer: the decoder can work on what there is.
            let n = loop {
                match self.input.read(&mut buffer) {
                    Ok(n) => break n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        self.failed.set(true);
                        return Err(e);
                    }
                }
            };
            self.current = self.pool.share(buffer, n);
            let taken = self.taken.get();
            self.taken
                .set(taken.saturating_add(u64::try_from(n).unwrap_or(0)));
            if let Some(hash) = &self.hash
                && n > 0
            {
                // The hasher only ends when we do.
                let _ = hash.send(self.current.clone());
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, n: usize) {
        let _ = self.current.split_to(n.min(self.current.len()));
    }
}

type Message = Result<Bytes, Box<ApplyError>>;

/// What the threads found out.
pub(super) struct Totals {
    pub(super) diff_id: Digest,
    pub(super) tar_size: u64,
    pub(super) compressed: Option<CompressedInput>,
}

/// The plain tar as the caller's thread reads it, and the threads that bring it.
pub(super) struct Pipeline<'scope> {
    buffers: Option<Receiver<Message>>,
    current: Bytes,
    producer: ScopedJoinHandle<'scope, Option<Compression>>,
    plain: ScopedJoinHandle<'scope, (Digest, u64)>,
    input: ScopedJoinHandle<'scope, (Digest, u64)>,
}

impl<'scope> Pipeline<'scope> {
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        input: impl Read + Send + 'scope,
        options: &ApplyOptions,
    ) -> Self {
        let (plain_tx, plain_rx) = bounded(DEPTH);
        let (input_tx, input_rx) = bounded(DEPTH);
        let (tx, rx) = bounded(DEPTH);
        let producer = Producer {
            pool: Pool::new(),
            tx,
            hash: plain_tx,
            max_ratio: options.max_ratio,
            ratio_floor: options.ratio_floor,
            offset: 0,
        };
        Self {
            buffers: Some(rx),
            current: Bytes::new(),
            producer: scope.spawn(move || producer.run(input, input_tx)),
            plain: scope.spawn(move || hash(&plain_rx)),
            input: scope.spawn(move || hash(&input_rx)),
        }
    }

    /// Waits for the threads. To be called once the input has been read to its end.
    pub(super) fn finish(mut self) -> Totals {
        self.buffers = None;
        let format = join(self.producer);
        let (diff_id, tar_size) = join(self.plain);
        let (digest, size) = join(self.input);
        Totals {
            diff_id,
            tar_size,
            compressed: format.map(|format| CompressedInput {
                format,
                digest,
                size,
            }),
        }
    }
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn hash(buffers: &Receiver<Bytes>) -> (Digest, u64) {
    let mut hasher = Hasher::new();
    let mut size = 0_u64;
    for buffer in buffers {
        hasher.update(&buffer);
        size = size.saturating_add(u64::try_from(buffer.len()).unwrap_or(0));
    }
    (hasher.finish(), size)
}

impl Read for Pipeline<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let buffer = self.fill_buf()?;
        let n = buffer.len().min(out.len());
        for (to, from) in out.iter_mut().zip(buffer) {
            *to = *from;
        }
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Pipeline<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty()
            && let Some(buffers) = &self.buffers
        {
            match buffers.recv() {
                Ok(Ok(buffer)) => self.current = buffer,
                Ok(Err(error)) => {
                    self.buffers = None;
                    return Err(io::Error::other(*error));
                }
                Err(_) => self.buffers = None,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, n: usize) {
        let _ = self.current.split_to(n.min(self.current.len()));
    }
}

struct Producer {
    pool: Pool,
    tx: Sender<Message>,
    hash: Sender<Bytes>,
    max_ratio: u32,
    ratio_floor: u64,
    /// Plain bytes sent.
    offset: u64,
}

impl Producer {
    /// Returns the compression found, if any.
    fn run(mut self, mut input: impl Read, hash: Sender<Bytes>) -> Option<Compression> {
        let mut start = self.pool.take();
        let probe = start.get_mut(..Compression::DETECT_LEN).unwrap_or_default();
        let len = match fill(&mut input, probe) {
            Ok(len) => len,
            Err(source) => {
                self.fail(read_failed(0, source));
                return None;
            }
        };
        let format = Compression::detect(start.get(..len).unwrap_or_default());
        if format == Compression::None {
            drop(hash);
            let _ = self.plain(start, len, input);
            return None;
        }
        let start = self.pool.share(start, len);
        // Hashed like all that follows it.
        let _ = hash.send(start.clone());
        let taken = Cell::new(u64::try_from(len).unwrap_or(0));
        let failed = Cell::new(false);
        let tee = Tee {
            input,
            pool: Pool::new(),
            hash: Some(hash),
            current: start,
            taken: &taken,
            failed: &failed,
        };
        let _ = self.decompress(format, tee);
        Some(format)
    }

    fn plain(
        &mut self,
        mut buffer: Vec<u8>,
        probed: usize,
        mut input: impl Read,
    ) -> Result<(), Gone> {
        let mut have = probed;
        loop {
            let rest = buffer.get_mut(have..).unwrap_or_default();
            let asked = rest.len();
            match fill(&mut input, rest) {
                Ok(n) => {
                    let len = have.saturating_add(n);
                    self.send(buffer, len)?;
                    if n < asked {
                        return Ok(());
                    }
                }
                Err(source) => {
                    self.fail(read_failed(self.offset, source));
                    return Err(Gone);
                }
            }
            buffer = self.pool.take();
            have = 0;
        }
    }

    fn decompress(&mut self, format: Compression, tee: Tee<'_, impl Read>) -> Result<(), Gone> {
        let (taken, failed) = (tee.taken, tee.failed);
        let mut decoder = match format.decoder(tee) {
            Ok(decoder) => decoder,
            Err(source) => {
                self.fail(ApplyError::Compression {
                    format,
                    offset: 0,
                    source,
                });
                return Err(Gone);
            }
        };
        loop {
            let mut buffer = self.pool.take();
            let n = match fill(&mut decoder, &mut buffer) {
                Ok(n) => n,
                Err(source) => {
                    let offset = self.offset;
                    self.fail(if failed.get() {
                        read_failed(offset, source)
                    } else {
                        ApplyError::Compression {
                            format,
                            offset,
                            source,
                        }
                    });
                    return Err(Gone);
                }
            };
            let full = n == buffer.len();
            self.send(buffer, n)?;
            let limit = taken.get().saturating_mul(u64::from(self.max_ratio));
            if self.offset > self.ratio_floor && self.offset > limit {
                self.fail(ApplyError::Ratio {
                    format,
                    offset: self.offset,
                    max_ratio: self.max_ratio,
                });
                return Err(Gone);
            }
            if !full {
                return Ok(());
            }
        }
    }

    fn send(&mut self, buffer: Vec<u8>, len: usize) -> Result<(), Gone> {
        if len == 0 {
            return Ok(());
        }
        let shared = self.pool.share(buffer, len);
        self.offset = self.offset.saturating_add(u64::try_from(len).unwrap_or(0));
        self.hash.send(shared.clone()).map_err(|_| Gone)?;
        self.tx.send(Ok(shared)).map_err(|_| Gone)
    }

    fn fail(&mut self, error: ApplyError) {
        // If nobody listens, there is an earlier error.
        let _ = self.tx.send(Err(Box::new(error)));
    }
}

fn read_failed(offset: u64, source: io::Error) -> ApplyError {
    ApplyError::Io {
        operation: "read the input",
        offset,
        source,
    }
}
