use std::cell::Cell;
use std::io::{self, Read, Write};
use std::sync::Mutex;

use lcow_blockio::ReadAt;
use lcow_ext4::reader::{Filesystem, ReadError, ReadErrorKind};
use lcow_ext4::{FileType, InodeNumber};

use crate::ErrorKind;
use crate::digest::{Digest, Hasher};
use crate::split::{Op, SplitError, SplitReader};

/// Data is read and written in pieces of at most this many bytes.
const PIECE: usize = 1 << 20;
/// How much is read at a time for small files, in bytes.
const WINDOW: usize = 512 << 10;
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

/// Emits the tar that a layer was made from, byte for byte, from its disk (the file system alone, or with a VHD footer behind)
/// and its sidecar as stored (`diff.split.zst`).
///
/// Data is read in the tar's order, which is the order it lies on the disk, in pieces of up to 1 MiB.
///
/// # Errors
/// [`ExactError::Differs`], after all of the tar was written, if its digest is not `expected` or not the one in the sidecar:
/// what was written must then be thrown away. An `expected` that the sidecar does not name is found out before anything is written.
pub fn exact<R: ReadAt>(
    disk: R,
    split: impl Read,
    expected: Option<&Digest>,
    out: &mut impl Write,
) -> Result<Exported, ExactError> {
    let failed = Cell::new(false);
    let mut split = SplitReader::open(split, &failed).map_err(|e| split_error(e, 0))?;
    let promised = split.diff_id();
    if let Some(&expected) = expected.filter(|&&expected| expected != promised) {
        return Err(ExactError::Differs {
            expected,
            found: promised,
        });
    }
    let fs = Filesystem::open(Ahead::new(disk))?;
    let mut tar = Tar {
        out,
        hasher: Hasher::new(),
        written: 0,
    };
    let mut buffer = Vec::new();
    loop {
        let at = tar.written;
        match split.next_op().map_err(|e| split_error(e, at))? {
            Op::Header(block) => tar.write(&block[..])?,
            Op::Literal(bytes) => tar.write(bytes)?,
            Op::Zeros(len) => tar.zeros(len)?,
            Op::Data { inode, offset, len } => {
                let inode = fs.inode(InodeNumber(inode))?;
                if inode.file_type != FileType::Regular
                    || offset.checked_add(len).is_none_or(|end| end > inode.size)
                {
                    return Err(ExactError::BadSplit {
                        detail: "it refers to data that the disk does not have",
                    });
                }
                let file = fs.open_file(&inode)?;
                for (offset, n) in pieces(offset, len) {
                    buffer.resize(n, 0);
                    let got = file.read_at(offset, &mut buffer)?;
                    if got != n {
                        return Err(ExactError::BadSplit {
                            detail: "it refers to data that the disk does not have",
                        });
                    }
                    tar.write(&buffer)?;
                }
            }
            Op::Saved { at, len } => {
                for (at, n) in pieces(at, len) {
                    buffer.resize(n, 0);
                    split
                        .read_saved(at, &mut buffer)
                        .map_err(|source| ExactError::Io {
                            operation: "read saved data of the split sidecar",
                            offset: tar.written,
                            source,
                        })?;
                    tar.write(&buffer)?;
                }
            }
            Op::End => break,
        }
    }
    tar.out.flush().map_err(|source| ExactError::Io {
        operation: "write the tar",
        offset: tar.written,
        source,
    })?;
    let found = tar.hasher.finish();
    if found != promised || tar.written != split.tar_size() {
        return Err(ExactError::Differs {
            expected: promised,
            found,
        });
    }
    Ok(Exported {
        diff_id: found,
        size: tar.written,
    })
}

fn split_error(error: SplitError, offset: u64) -> ExactError {
    match error {
        SplitError::Damaged(detail) => ExactError::BadSplit { detail },
        SplitError::Version(version) => ExactError::SplitVersion { version },
        SplitError::Io(source) => ExactError::Io {
            operation: "read the split sidecar",
            offset,
            source,
        },
    }
}

/// A range in pieces of at most [`PIECE`].
fn pieces(start: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut at = start;
    let mut left = len;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let n = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let piece = (at, n);
        let n = u64::try_from(n).unwrap_or(left);
        at = at.saturating_add(n);
        left = left.saturating_sub(n);
        Some(piece)
    })
}

/// The tar on its way out.
struct Tar<'a, W> {
    out: &'a mut W,
    hasher: Hasher,
    written: u64,
}

impl<W: Write> Tar<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ExactError> {
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(|source| ExactError::Io {
            operation: "write the tar",
            offset: self.written,
            source,
        })?;
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.written = self.written.saturating_add(len);
        Ok(())
    }

    fn zeros(&mut self, len: u64) -> Result<(), ExactError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut left = len;
        while left > 0 {
            let n = usize::try_from(left)
                .unwrap_or(ZEROS.len())
                .min(ZEROS.len());
            self.write(ZEROS.get(..n).unwrap_or_default())?;
            left = left.saturating_sub(u64::try_from(n).unwrap_or(left));
        }
        Ok(())
    }
}

/// Reads small files through a window: on the disk they lie one behind the other, and a read for each would be a system call for each.
struct Ahead<R> {
    disk: R,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
    /// Where the last read ended: only a reader that goes on from about there is read ahead for.
    last_end: u64,
}

impl<R> Ahead<R> {
    fn new(disk: R) -> Self {
        Self {
            disk,
            window: Mutex::default(),
        }
    }
}

impl<R: ReadAt> ReadAt for Ahead<R> {
    fn size(&self) -> io::Result<u64> {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let len = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        if buf.len() >= WINDOW / 2 {
            return self.disk.read_at(offset, buf);
        }
        let mut window = self
            .window
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let end = offset.saturating_add(len);
        let covered = |window: &Window| {
            let skip = usize::try_from(offset.checked_sub(window.start)?).ok()?;
            window.bytes.get(skip..)?.get(..buf.len()).map(|_| skip)
        };
        let mut found = covered(&window);
        if found.is_none() {
            let near = offset.abs_diff(window.last_end) <= NEAR;
            if !near {
                window.last_end = end;
                drop(window);
                return self.disk.read_at(offset, buf);
            }
            window.start = offset;
            window.bytes.resize(WINDOW, 0);
            let mut bytes = std::mem::take(&mut window.bytes);
            let n = self.disk.read_at(offset, &mut bytes)?;
            bytes.truncate(n);
            window.bytes = bytes;
            found = covered(&window);
        }
        window.last_end = end;
        match found.and_then(|skip| window.bytes.get(skip..)) {
            Some(bytes) => {
                for (to, from) in buf.iter_mut().zip(bytes) {
                    *to = *from;
                }
                Ok(buf.len())
            }
            // At the disk's end.
            None => self.disk.read_at(offset, buf),
        }
    }
}
