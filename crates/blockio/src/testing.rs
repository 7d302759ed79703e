//! Doubles for tests of what must survive a crash: a disk that records what is done to it, the disks that a power cut may
//! leave of it, and a disk that fails.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{MemDisk, ReadAt, WriteAt};

/// What a power cut can't tear, in bytes: a sector of the oldest disks.
const ATOM: usize = 512;

/// Something that was done to a disk.
#[derive(Debug, Clone)]
pub enum Op {
    /// Bytes were written at an offset.
    Write(u64, Arc<[u8]>),
    /// The length was set.
    SetLen(u64),
    /// So many bytes at an offset were zeroed.
    Zero(u64, u64),
    /// All before this is on stable storage.
    Sync,
}

impl Op {
    fn apply(&self, disk: &MemDisk) -> io::Result<()> {
        match self {
            Self::Write(at, bytes) => disk.write_all_at(*at, bytes),
            Self::SetLen(len) => disk.set_len(*len),
            Self::Zero(at, len) => disk.zero_range(*at, *len),
            Self::Sync => Ok(()),
        }
    }
}

/// A disk in memory that remembers all that is done to it.
#[derive(Debug, Default)]
pub struct Recorder {
    disk: MemDisk,
    ops: Mutex<Vec<Op>>,
}

impl Recorder {
    /// Records from here on.
    #[must_use]
    pub fn new(disk: MemDisk) -> Self {
        Self {
            disk,
            ops: Mutex::default(),
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        self.lock().clone()
    }

    /// How much was done so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Op>> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, op: Op) -> io::Result<()> {
        op.apply(&self.disk)?;
        self.lock().push(op);
        Ok(())
    }
}

impl ReadAt for Recorder {
    fn size(&self) -> io::Result<u64> {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.disk.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.disk.next_data(offset)
    }
}

impl WriteAt for Recorder {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.record(Op::Write(offset, buf.into()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.record(Op::SetLen(len))
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.record(Op::Zero(offset, len))
    }

    fn sync(&self) -> io::Result<()> {
        self.record(Op::Sync)
    }
}

/// Calls `each` with disks that a power cut may leave, after each of `ops` done to `start`: what came before the last sync is
/// there; of what came after it all, nothing, or, `random` times, any part, in pieces of 512 bytes.
///
/// The first argument says how many ops had been done. The same seed gives the same disks.
///
/// # Errors
/// If an op can't be done again.
pub fn power_cuts(
    start: &MemDisk,
    ops: &[Op],
    random: usize,
    seed: u64,
    mut each: impl FnMut(usize, MemDisk),
) -> io::Result<()> {
    let mut dice = Dice(seed | 1);
    let safe = start.snapshot();
    let mut unsafe_from = 0;
    for done in 0..=ops.len() {
        if let Some(Op::Sync) = done.checked_sub(1).and_then(|last| ops.get(last)) {
            for op in &ops[unsafe_from..done] {
                op.apply(&safe)?;
            }
            unsafe_from = done;
        }
        let pending = &ops[unsafe_from..done];
        let all = safe.snapshot();
        for op in pending {
            op.apply(&all)?;
        }
        each(done, all);
        if pending.is_empty() {
            continue;
        }
        each(done, safe.snapshot());
        for _ in 0..random {
            let cut = safe.snapshot();
            for op in pending {
                match (dice.roll(4), op) {
                    (0, _) => {}
                    (1, Op::Write(at, bytes)) => {
                        for (n, piece) in bytes.chunks(ATOM).enumerate() {
                            if dice.roll(2) == 0 {
                                cut.write_all_at(at + (n * ATOM) as u64, piece)?;
                            }
                        }
                    }
                    _ => op.apply(&cut)?,
                }
            }
            each(done, cut);
        }
    }
    Ok(())
}

/// Random enough (xorshift64), and the same everywhere.
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % sides
    }
}

/// A disk on which, after so many changes, every further one fails, or only the next one.
#[derive(Debug)]
pub struct Failing<D> {
    inner: D,
    left: AtomicU64,
    once: bool,
}

impl<D> Failing<D> {
    /// Fails after `changes` writes, sizings, zeroings and syncs.
    pub fn after(inner: D, changes: u64) -> Self {
        Self {
            inner,
            left: changes.into(),
            once: false,
        }
    }

    /// Fails once, after `changes` writes, sizings, zeroings and syncs.
    pub fn once_after(inner: D, changes: u64) -> Self {
        Self {
            once: true,
            ..Self::after(inner, changes)
        }
    }

    fn count(&self) -> io::Result<()> {
        let again = if self.once { u64::MAX } else { 0 };
        self.left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                Some(n.checked_sub(1).unwrap_or(again))
            })
            .and_then(|n| if n == 0 { Err(n) } else { Ok(n) })
            .map(drop)
            .map_err(|_| io::Error::other("the disk failed, as the test wanted"))
    }
}

impl<D: ReadAt> ReadAt for Failing<D> {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }
}

impl<D: WriteAt> WriteAt for Failing<D> {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.count()?;
        self.inner.write_all_at(offset, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.count()?;
        self.inner.set_len(len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.count()?;
        self.inner.zero_range(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.count()?;
        self.inner.sync()
    }
}
