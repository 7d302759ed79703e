use std::cell::Cell;
use std::io::{self, Read, Write};
use std::sync::Mutex;

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};
use lcow_blockio::ReadAt;
use lcow_ext4::reader::{Filesystem, ReadError, ReadErrorKind};
use lcow_ext4::{FileType, InodeNumber};

use crate::ErrorKind;
use crate::digest::{Digest, Hasher};
use crate::pool::{self, Pool};
use crate::split::{Op, SplitError, SplitReader};

/// What is written, and hashed, at a time, in bytes: little enough to stay in a core's cache on its way.
const PIECE: usize = 128 << 10;
/// How much is read at a time for small files, in bytes.
const WINDOW: usize = 128 << 10;
/// How far apart two reads may be to count as neighbours, in bytes.
const NEAR: u64 = 64 << 10;

/// Why a tar could not be emitted again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExactError {
    /// The sidecar is damaged, or is none.
    #[error("the split sidecar is damaged: {detail}")]
    BadSplit {
        /// What is wrong.
        detail: &'static str,
    },
    /// The sidecar is of a version that this program does not know.
    #[error("the split sidecar has version {version}, newer than this program knows")]
    SplitVersion {
        /// The version found.
        version: u32,
    },
    /// The sidecar is of a tar larger than may be written.
    #[error("the split sidecar is of a tar of {size} bytes, more than the {max} that may be")]
    TooLarge {
        /// The tar's size, in bytes.
        size: u64,
        /// The limit, in bytes.
        max: u64,
    },
    /// The tar that came out is not the one that went in.
    #[error("the tar that came out has digest {found}, not {expected}")]
    Differs {
        /// The digest it should have.
        expected: Digest,
        /// The digest it has.
        found: Digest,
    },
    /// The disk could not be read.
    #[error("can't read the layer's disk")]
    Disk(#[from] ReadError),
    /// Reading the sidecar or writing the tar failed.
    #[error("can't {operation} (at byte {offset} of the tar)")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// How much of the tar was out, in bytes.
        offset: u64,
        /// The error.
        source: io::Error,
    },
}

impl ExactError {
    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } => ErrorKind::Refused,
            Self::BadSplit { .. } | Self::Differs { .. } => ErrorKind::Corrupt,
            Self::SplitVersion { .. } => ErrorKind::Unsupported,
            Self::Disk(e) => match e.kind() {
                ReadErrorKind::Unsupported => ErrorKind::Unsupported,
                ReadErrorKind::Io => ErrorKind::Io,
                _ => ErrorKind::Corrupt,
            },
            Self::Io { .. } => ErrorKind::Io,
        }
    }
}

/// What was emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// The tar's digest.
    pub diff_id: Digest,
    /// Its size in bytes.
    pub size: u64,
}

const ANOTHER_SIZE: ExactError = ExactError::BadSplit {
    detail: "it is of a tar of another size",
};

/// What is known of a tar before it is emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Which one it must be.
    This(Exported),
    /// How large it may be, in bytes. Whoever wrote the sidecar says how large it is.
    AtMost(u64),
}

impl Expected {
    fn max(self) -> u64 {
        match self {
            Self::This(tar) => tar.size,
            Self::AtMost(max) => max,
        }
    }
}

/// Emits the tar that a layer was made from, byte for byte, from its disk (the file system alone, or with a VHD footer behind)
/// and its sidecar as stored (`diff.split.zst`).
///
/// Data is read in the tar's order, which is the order it lies on the disk, and written in pieces of 128 KiB. A thread
/// beside the caller's hashes them.
///
/// # Errors
/// [`ExactError::Differs`], after all of the tar was written, if its digest is not `expected` or not the one in the sidecar:
/// what was written must then be thrown away. A digest or size that is `expected` and that the sidecar does not name is found out before
/// anything is written. No more is ever written than the sidecar says at its beginning that the tar has, nor than is `expected`.
pub fn exact<R: ReadAt>(
    disk: R,
    split: impl Read,
    expected: Expected,
    out: &mut impl Write,
) -> Result<Exported, ExactError> {
    let failed = Cell::new(false);
    let mut split =
        SplitReader::open(split, expected.max(), &failed).map_err(|e| match (expected, e) {
            (Expected::This(_), SplitError::TooLarge { .. }) => ANOTHER_SIZE,
            (_, e) => split_error(e, 0),
        })?;
    let promised = split.diff_id();
    if let Expected::This(expected) = expected {
        if expected.diff_id != promised {
            return Err(ExactError::Differs {
                expected: expected.diff_id,
                found: promised,
            });
        }
        if expected.size != split.tar_size() {
            return Err(ANOTHER_SIZE);
        }
    }
    let (found, size) = std::thread::scope(|scope| {
        let (pieces, hashing) = bounded::<Bytes>(pool::DEPTH);
        let hasher = scope.spawn(move || {
            let mut hasher = Hasher::new();
            for piece in hashing {
                hasher.update(&piece);
            }
            hasher.finish()
        });
        let size = emit(disk, &mut split, Tar::new(out, Some(pieces)))?;
        let digest = hasher
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, ExactError>((digest, size))
    })?;
    if found != promised || size != split.tar_size() {
        return Err(ExactError::Differs {
            expected: promised,
            found,
        });
    }
    Ok(Exported {
        diff_id: found,
        size,
    })
}

/// Emits the tar as [`exact`] does, of at most `max` bytes, without hashing it: for who hashes it anyway. What the sidecar says of the tar is
/// returned, not what was found: a disk that changed gives another tar, and no error.
///
/// # Errors
/// As [`exact`], but for [`ExactError::Differs`].
pub fn unverified<R: ReadAt>(
    disk: R,
    split: impl Read,
    max: u64,
    out: &mut impl Write,
) -> Result<Exported, ExactError> {
    let failed = Cell::new(false);
    let mut split = SplitReader::open(split, max, &failed).map_err(|e| split_error(e, 0))?;
    let size = emit(disk, &mut split, Tar::new(out, None))?;
    Ok(Exported {
        diff_id: split.diff_id(),
        size,
    })
}

/// Writes the tar and gives its size.
fn emit<R: ReadAt, W: Write>(
    disk: R,
    split: &mut SplitReader<'_, impl Read>,
    mut tar: Tar<'_, W>,
) -> Result<u64, ExactError> {
    const MISSING: ExactError = ExactError::BadSplit {
        detail: "it refers to data that the disk does not have",
    };
    let fs = Filesystem::open(Ahead::new(disk))?;
    loop {
        let at = tar.size();
        match split.next_op().map_err(|e| split_error(e, at))? {
            Op::Header(block) => tar.write(&block[..])?,
            Op::Literal(bytes) => tar.write(bytes)?,
            Op::Zeros(len) => tar.zeros(len)?,
            Op::Data { inode, offset, len } => {
                let inode = fs.inode(InodeNumber(inode))?;
                if inode.file_type != FileType::Regular
                    || offset.checked_add(len).is_none_or(|end| end > inode.size)
                {
                    return Err(MISSING);
                }
                let file = fs.open_file(&inode)?;
                tar.fill(offset, len, |offset, place| {
                    match file.read_at(offset, place)? {
                        n if n == place.len() => Ok(()),
                        _ => Err(MISSING),
                    }
                })?;
            }
            Op::Saved { at, len } => {
                let written = tar.size();
                tar.fill(at, len, |at, place| {
                    split
                        .read_saved(at, place)
                        .map_err(|source| ExactError::Io {
                            operation: "read saved data of the split sidecar",
                            offset: written,
                            source,
                        })
                })?;
            }
            Op::End => break,
        }
    }
    tar.finish()
}

fn split_error(error: SplitError, offset: u64) -> ExactError {
    match error {
        SplitError::Damaged(detail) => ExactError::BadSplit { detail },
        SplitError::TooLarge { size, max } => ExactError::TooLarge { size, max },
        SplitError::Version(version) => ExactError::SplitVersion { version },
        SplitError::Io(source) => ExactError::Io {
            operation: "read the split sidecar",
            offset,
            source,
        },
    }
}

/// The tar on its way out, gathered to pieces.
struct Tar<'a, W> {
    out: &'a mut W,
    hash: Option<Sender<Bytes>>,
    pool: Pool,
    piece: Vec<u8>,
    /// Bytes of `piece` in use.
    used: usize,
    written: u64,
}

impl<'a, W: Write> Tar<'a, W> {
    fn new(out: &'a mut W, hash: Option<Sender<Bytes>>) -> Self {
        let pool = Pool::new(PIECE);
        Self {
            out,
            hash,
            piece: pool.take(),
            pool,
            used: 0,
            written: 0,
        }
    }

    /// Bytes so far.
    fn size(&self) -> u64 {
        self.written
            .saturating_add(u64::try_from(self.used).unwrap_or(0))
    }

    /// Appends `len` bytes that `read` gets, piece by piece, from `from` on.
    fn fill(
        &mut self,
        mut from: u64,
        len: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), ExactError>,
    ) -> Result<(), ExactError> {
        let mut left = len;
        while left > 0 {
            let room = self.piece.get_mut(self.used..).unwrap_or_default();
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            read(from, room.get_mut(..n).unwrap_or_default())?;
            self.used = self.used.saturating_add(n);
            let n = u64::try_from(n).unwrap_or(left);
            from = from.saturating_add(n);
            left = left.saturating_sub(n);
            if self.used == PIECE {
                self.send()?;
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ExactError> {
        let mut rest = bytes;
        self.fill(0, u64::try_from(bytes.len()).unwrap_or(0), |_, place| {
            let (now, later) = rest.split_at(place.len());
            place.copy_from_slice(now);
            rest = later;
            Ok(())
        })
    }

    fn zeros(&mut self, len: u64) -> Result<(), ExactError> {
        self.fill(0, len, |_, place| {
            place.fill(0);
            Ok(())
        })
    }

    fn send(&mut self) -> Result<(), ExactError> {
        let piece = std::mem::take(&mut self.piece);
        let piece = self.pool.share(piece, std::mem::take(&mut self.used));
        if let Some(hash) = &self.hash {
            // The hasher only ends when we do.
            let _ = hash.send(piece.clone());
        }
        let failed = |offset| {
            move |source| ExactError::Io {
                operation: "write the tar",
                offset,
                source,
            }
        };
        self.out.write_all(&piece).map_err(failed(self.written))?;
        let len = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        self.written = self.written.saturating_add(len);
        drop(piece);
        self.piece = self.pool.take();
        Ok(())
    }

    /// Writes the rest and gives the size of all.
    fn finish(mut self) -> Result<u64, ExactError> {
        self.send()?;
        self.out.flush().map_err(|source| ExactError::Io {
            operation: "write the tar",
            offset: self.written,
            source,
        })?;
        Ok(self.written)
    }
}

/// Reads small files, and their inodes, through windows: on the disk they lie one behind the other, and a read for each would be a
/// system call for each.
struct Ahead<R> {
    disk: R,
    /// One goes with the data, the other with the inodes.
    windows: Mutex<[Window; 2]>,
}

#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
    /// Where the last read ended: only a reader that goes on from about there is read ahead for.
    last_end: u64,
    /// When it was last of use.
    used: u64,
}

impl Window {
    /// The bytes of a range that it holds.
    fn get(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let skip = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.bytes.get(skip..)?.get(..len)
    }
}

impl<R> Ahead<R> {
    fn new(disk: R) -> Self {
        Self {
            disk,
            windows: Mutex::default(),
        }
    }
}

impl<R: ReadAt> ReadAt for Ahead<R> {
    fn size(&self) -> io::Result<u64> {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let end = offset.saturating_add(u64::try_from(buf.len()).unwrap_or(u64::MAX));
        let mut windows = self
            .windows
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = windows.iter().map(|w| w.used).max().unwrap_or(0);
        let now = now.saturating_add(1);
        let near = |w: &Window| offset.abs_diff(w.last_end) <= NEAR;
        let holds = |w: &Window| w.get(offset, buf.len()).is_some();
        let [first, second] = &mut *windows;
        let (window, ahead) = match (holds(first), holds(second), near(first), near(second)) {
            (true, ..) | (false, false, true, _) => (first, true),
            (_, true, ..) | (_, _, _, true) => (second, true),
            _ if first.used < second.used => (first, false),
            _ => (second, false),
        };
        window.last_end = end;
        window.used = now;
        if window.get(offset, buf.len()).is_none() {
            if !ahead || buf.len() >= WINDOW / 2 {
                drop(windows);
                return self.disk.read_at(offset, buf);
            }
            window.start = offset;
            let mut bytes = std::mem::take(&mut window.bytes);
            bytes.resize(WINDOW, 0);
            let n = self.disk.read_at(offset, &mut bytes)?;
            bytes.truncate(n);
            window.bytes = bytes;
        }
        match window.get(offset, buf.len()) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(buf.len())
            }
            // At the disk's end.
            None => self.disk.read_at(offset, buf),
        }
    }
}
