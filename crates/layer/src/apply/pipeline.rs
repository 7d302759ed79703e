//! The plain tar as the caller's thread reads it, and the threads beside that one.
//!
//! ```text
//!  plain input:       caller: read, parse, write the disk ──► hash of the tar   (diff ID)
//!
//!  compressed input:  producer: read and inflate ──► caller: parse, write the disk
//!                          │        └──────────────► hash of the tar
//!                          └───────────────────────► hash of the input
//! ```
//!
//! A plain input is read by the caller's own thread, so that what was read is still in that core's cache when it is written. All channels are
//! bounded, and a buffer goes back to its pool when the last one who has it lets go of it. A thread that finds the other side of its
//! channel gone stops. They are scoped threads, so none outlives the call; one that waits in the input's `read` is waited for.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::thread::{Scope, ScopedJoinHandle};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::{ApplyError, ApplyOptions, CompressedInput};
use crate::compress::Compression;
use crate::digest::{Digest, Hasher};
use crate::pool::{DEPTH, Pool};

/// A multiple of the tar block, so that all buffers but the last hold whole blocks. Small enough for two cores' caches.
const BUFFER: usize = 128 << 10;

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
        if let (Some(to), Some(from)) = (out.get_mut(..n), buffer.get(..n)) {
            to.copy_from_slice(from);
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

/// What the input turned out to be.
pub(super) struct Totals {
    /// If it was asked for.
    pub(super) diff_id: Option<Digest>,
    pub(super) tar_size: u64,
    /// How the input is compressed.
    pub(super) format: Compression,
    /// The input as read, if it is compressed and was hashed.
    pub(super) compressed: Option<CompressedInput>,
}

/// Where buffers come from.
enum Source<R> {
    /// The input is the tar itself, and not at its end.
    Plain {
        input: R,
        pool: Pool,
    },
    /// A thread makes them.
    Made(Receiver<Message>),
    Ended,
}

/// The plain tar, buffer by buffer.
pub(super) struct Pipeline<'scope, R> {
    source: Source<R>,
    current: Bytes,
    /// Bytes of the plain tar read so far, `current` included.
    taken: u64,
    /// To the thread that hashes what a plain input brings.
    hash: Option<Sender<Bytes>>,
    hasher: Option<ScopedJoinHandle<'scope, (Digest, u64)>>,
    decoding: Option<Decoding<'scope>>,
}

/// The threads that a compressed input needs.
struct Decoding<'scope> {
    format: Compression,
    producer: ScopedJoinHandle<'scope, ()>,
    /// What was read, if that is hashed.
    input: Option<ScopedJoinHandle<'scope, (Digest, u64)>>,
}

impl<'scope, R: Read + Send + 'scope> Pipeline<'scope, R> {
    /// Reads the start of the input to see what it is. With `hashed`, the tar and a compressed input are hashed.
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        mut input: R,
        options: &ApplyOptions,
        hashed: bool,
    ) -> Result<Self, ApplyError> {
        let pool = Pool::new(BUFFER);
        let mut start = pool.take();
        // The rest of the buffer is left for later: who feeds a pipe may not have written more.
        let probe = start.get_mut(..Compression::DETECT_LEN).unwrap_or_default();
        let len = fill(&mut input, probe).map_err(|source| read_failed(0, source))?;
        let format = Compression::detect(start.get(..len).unwrap_or_default());
        let start = pool.share(start, len);
        let hashing = || {
            let (tx, rx) = bounded(DEPTH);
            (tx, scope.spawn(move || hash(&rx)))
        };
        let (hash, hasher) = hashed.then(hashing).unzip();
        if format == Compression::None {
            let mut pipeline = Self {
                source: Source::Plain { input, pool },
                current: Bytes::new(),
                taken: 0,
                hash,
                hasher,
                decoding: None,
            };
            pipeline.set_current(start);
            return Ok(pipeline);
        }
        let (tx, rx) = bounded(DEPTH);
        let (input_hash, input_hasher) = hashed.then(hashing).unzip();
        let producer = Producer {
            pool,
            tx,
            hash,
            format,
            max_ratio: options.max_ratio,
            ratio_floor: options.ratio_floor,
            offset: 0,
        };
        let decoding = Decoding {
            format,
            producer: scope.spawn(move || producer.run(input, start, input_hash)),
            input: input_hasher,
        };
        Ok(Self {
            source: Source::Made(rx),
            current: Bytes::new(),
            taken: 0,
            hash: None,
            hasher,
            decoding: Some(decoding),
        })
    }

    /// Waits for the threads. To be called once the input has been read to its end.
    pub(super) fn finish(mut self) -> Totals {
        self.source = Source::Ended;
        self.hash = None;
        let format = self
            .decoding
            .as_ref()
            .map_or(Compression::None, |d| d.format);
        let compressed = self.decoding.and_then(|decoding| {
            join(decoding.producer);
            let (digest, size) = join(decoding.input?);
            Some(CompressedInput {
                format,
                digest,
                size,
            })
        });
        Totals {
            diff_id: self.hasher.map(|hasher| join(hasher).0),
            tar_size: self.taken,
            format,
            compressed,
        }
    }

    /// Makes a buffer the current one.
    fn set_current(&mut self, buffer: Bytes) {
        self.taken = self
            .taken
            .saturating_add(u64::try_from(buffer.len()).unwrap_or(0));
        if let Some(hash) = &self.hash
            && !buffer.is_empty()
        {
            // The hasher only ends when we do.
            let _ = hash.send(buffer.clone());
        }
        self.current = buffer;
    }

    /// The next buffer; an empty one at the end.
    fn next(&mut self) -> io::Result<Bytes> {
        match &mut self.source {
            Source::Plain { input, pool } => {
                let mut buffer = pool.take();
                match fill(input, &mut buffer) {
                    Ok(len) => {
                        let full = len == buffer.len();
                        let shared = pool.share(buffer, len);
                        if !full {
                            self.source = Source::Ended;
                        }
                        Ok(shared)
                    }
                    Err(source) => {
                        self.source = Source::Ended;
                        Err(io::Error::other(read_failed(self.taken, source)))
                    }
                }
            }
            Source::Made(buffers) => match buffers.recv() {
                Ok(Ok(buffer)) => Ok(buffer),
                Ok(Err(error)) => {
                    self.source = Source::Ended;
                    Err(io::Error::other(*error))
                }
                Err(_) => {
                    self.source = Source::Ended;
                    Ok(Bytes::new())
                }
            },
            Source::Ended => Ok(Bytes::new()),
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

impl<'scope, R: Read + Send + 'scope> Read for Pipeline<'scope, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let buffer = self.fill_buf()?;
        let n = buffer.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..n), buffer.get(..n)) {
            to.copy_from_slice(from);
        }
        self.consume(n);
        Ok(n)
    }
}

impl<'scope, R: Read + Send + 'scope> BufRead for Pipeline<'scope, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() {
            let buffer = self.next()?;
            self.set_current(buffer);
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
    hash: Option<Sender<Bytes>>,
    format: Compression,
    max_ratio: u32,
    ratio_floor: u64,
    /// Plain bytes sent.
    offset: u64,
}

impl Producer {
    /// Decompresses what begins with `start`.
    fn run(mut self, input: impl Read, start: Bytes, hash: Option<Sender<Bytes>>) {
        if let Some(hash) = &hash {
            // Hashed like all that follows it.
            let _ = hash.send(start.clone());
        }
        let taken = Cell::new(u64::try_from(start.len()).unwrap_or(0));
        let failed = Cell::new(false);
        let tee = Tee {
            input,
            pool: Pool::new(BUFFER),
            hash,
            current: start,
            taken: &taken,
            failed: &failed,
        };
        // If the other side is gone, its error is the one that counts.
        let _ = self.decompress(tee);
    }

    fn decompress(&mut self, tee: Tee<'_, impl Read>) -> Result<(), Gone> {
        let format = self.format;
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
        if let Some(hash) = &self.hash {
            hash.send(shared.clone()).map_err(|_| Gone)?;
        }
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
