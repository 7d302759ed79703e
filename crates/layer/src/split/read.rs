use std::cell::Cell;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

use super::format::{
    MAGIC, MAX_SAVED, OP_DATA, OP_END, OP_FILE, OP_HEADER, OP_LITERAL, OP_PAD, OP_ZEROS, PREAMBLE,
    VERSION,
};
use super::header::{self, History, Source, unzigzag};
use crate::digest::Digest;
use crate::tar::Block;

/// Saved data kept in memory before it goes to a temporary file, in bytes.
const SPOOL: usize = 8 << 20;
/// The largest window of a zstd frame that is read, as a power of two: 8 MiB.
const WINDOW_LOG: u32 = 23;
/// Literals are handed on in pieces of this size, in bytes.
const PIECE: usize = 64 << 10;

/// Why a sidecar can't be read.
#[derive(Debug)]
pub(crate) enum SplitError {
    Damaged(&'static str),
    Version(u32),
    TooLarge { size: u64, max: u64 },
    Io(io::Error),
}

/// One step in making the tar again.
pub(crate) enum Op<'a> {
    Header(Box<Block>),
    Literal(&'a [u8]),
    Zeros(u64),
    /// Data of a file on the disk: its inode, offset and length.
    Data {
        inode: u32,
        offset: u64,
        len: u64,
    },
    /// Data that the sidecar has: to be had from [`SplitReader::read_saved`] at this place.
    Saved {
        at: u64,
        len: u64,
    },
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    key: u64,
    offset: u64,
    len: u64,
    /// Where it lies in the saved data.
    at: u64,
}

/// The input with a note of whether it was the one to fail.
struct Input<'a, R> {
    inner: R,
    failed: &'a Cell<bool>,
}

impl<R: Read> Read for Input<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(out);
        if let Err(e) = &result
            && e.kind() != io::ErrorKind::Interrupted
        {
            self.failed.set(true);
        }
        result
    }
}

/// Reads a sidecar's operations. Nothing it says is believed: lengths are bounded by the tar's size, memory by constants.
pub(crate) struct SplitReader<'a, R: Read> {
    input: BufReader<zstd::Decoder<'static, BufReader<Input<'a, R>>>>,
    failed: &'a Cell<bool>,
    tar_size: u64,
    diff_id: Digest,
    pieces: Vec<Piece>,
    saved: SpooledTempFile,
    history: History,
    size: u64,
    key: u64,
    /// Bytes of the tar described so far.
    at: u64,
    /// Bytes of the present literal still to come.
    literal: u64,
    piece: Vec<u8>,
}

impl<R: Read> Source for SplitReader<'_, R> {
    type Error = SplitError;

    fn byte(&mut self) -> Result<u8, SplitError> {
        let mut byte = [0];
        self.fill(&mut byte)?;
        Ok(byte[0])
    }

    fn damaged(&self, detail: &'static str) -> SplitError {
        SplitError::Damaged(detail)
    }
}

impl<'a, R: Read> SplitReader<'a, R> {
    /// Reads everything up to the operations, of a tar of at most `max` bytes. `failed` is set when it is `input` that fails.
    pub(crate) fn open(input: R, max: u64, failed: &'a Cell<bool>) -> Result<Self, SplitError> {
        let input = BufReader::with_capacity(
            128 << 10,
            Input {
                inner: input,
                failed,
            },
        );
        let mut decoder = zstd::Decoder::with_buffer(input).map_err(SplitError::Io)?;
        decoder.window_log_max(WINDOW_LOG).map_err(SplitError::Io)?;
        let mut reader = Self {
            input: BufReader::with_capacity(64 << 10, decoder),
            failed,
            tar_size: 0,
            diff_id: Digest::from_bytes([0; 32]),
            pieces: Vec::new(),
            saved: SpooledTempFile::new(SPOOL),
            history: History::default(),
            size: 0,
            key: 0,
            at: 0,
            literal: 0,
            piece: Vec::new(),
        };
        reader.preamble(max)?;
        Ok(reader)
    }

    pub(crate) fn diff_id(&self) -> Digest {
        self.diff_id
    }

    pub(crate) fn tar_size(&self) -> u64 {
        self.tar_size
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), SplitError> {
        self.input.read_exact(out).map_err(|e| self.input_error(e))
    }

    fn input_error(&self, error: io::Error) -> SplitError {
        if self.failed.get() {
            SplitError::Io(error)
        } else if error.kind() == io::ErrorKind::UnexpectedEof {
            SplitError::Damaged("it is cut short")
        } else {
            SplitError::Damaged("its compression is damaged")
        }
    }

    fn preamble(&mut self, max: u64) -> Result<(), SplitError> {
        let mut bytes = [0; PREAMBLE];
        let (head, tail) = bytes.split_at_mut(12);
        self.fill(head)?;
        let mut word = [0; 4];
        if head.get(..8) != Some(&MAGIC) {
            return Err(SplitError::Damaged("it does not start as a sidecar does"));
        }
        word.copy_from_slice(head.get(8..12).unwrap_or_default());
        let version = u32::from_le_bytes(word);
        if version != VERSION {
            return Err(SplitError::Version(version));
        }
        self.fill(tail)?;
        let long = |range: std::ops::Range<usize>| {
            let mut long = [0; 8];
            long.copy_from_slice(tail.get(range).unwrap_or_default());
            u64::from_le_bytes(long)
        };
        self.tar_size = long(0..8);
        if self.tar_size > max {
            let size = self.tar_size;
            return Err(SplitError::TooLarge { size, max });
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(tail.get(8..40).unwrap_or_default());
        self.diff_id = Digest::from_bytes(digest);
        let count = long(40..48);
        if count > MAX_SAVED {
            return Err(SplitError::Damaged("it has too many saved pieces"));
        }
        let mut total = 0_u64;
        for _ in 0..count {
            let (key, offset, len) = (self.varint()?, self.varint()?, self.varint()?);
            let at = total;
            total = total
                .checked_add(len)
                .filter(|&total| total <= self.tar_size)
                .ok_or(SplitError::Damaged("it has more saved data than the tar"))?;
            self.pieces.push(Piece {
                key,
                offset,
                len,
                at,
            });
        }
        self.pieces.sort_unstable();
        let mut left = total;
        let mut buffer = vec![0; PIECE];
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let buffer = buffer.get_mut(..n).unwrap_or_default();
            self.fill(buffer)?;
            self.saved.write_all(buffer).map_err(SplitError::Io)?;
            left = left.saturating_sub(u64::try_from(n).unwrap_or(left));
        }
        Ok(())
    }

    /// Counts bytes of the tar.
    fn advance(&mut self, len: u64) -> Result<(), SplitError> {
        self.at = self
            .at
            .checked_add(len)
            .filter(|&at| at <= self.tar_size)
            .ok_or(SplitError::Damaged("it describes more than the tar"))?;
        Ok(())
    }

    fn data(&mut self, offset: u64, len: u64) -> Result<Op<'static>, SplitError> {
        self.advance(len)?;
        let wanted = |p: &Piece| (p.key, p.offset, p.len).cmp(&(self.key, offset, len));
        if let Ok(found) = self.pieces.binary_search_by(wanted) {
            let at = self.pieces.get(found).map_or(0, |p| p.at);
            return Ok(Op::Saved { at, len });
        }
        let inode = u32::try_from(self.key)
            .map_err(|_| SplitError::Damaged("it refers to data that it does not have"))?;
        Ok(Op::Data { inode, offset, len })
    }

    fn take_key(&mut self) -> Result<(), SplitError> {
        let delta = unzigzag(self.varint()?);
        self.key = self.key.wrapping_add_signed(delta);
        Ok(())
    }

    pub(crate) fn next_op(&mut self) -> Result<Op<'_>, SplitError> {
        if self.literal > 0 {
            return self.next_literal();
        }
        match self.byte()? {
            OP_HEADER => {
                let mut history = std::mem::take(&mut self.history);
                let block = header::decode(&mut history, self)?;
                self.history = history;
                self.size = header::size(&block);
                self.advance(512)?;
                Ok(Op::Header(Box::new(block)))
            }
            OP_LITERAL => {
                let len = self.varint()?;
                self.advance(len)?;
                self.literal = len;
                self.next_literal()
            }
            OP_ZEROS => {
                let len = self.varint()?;
                self.advance(len)?;
                Ok(Op::Zeros(len))
            }
            OP_PAD => {
                let len = self.at.wrapping_neg() % 512;
                self.advance(len)?;
                Ok(Op::Zeros(len))
            }
            OP_DATA => {
                self.take_key()?;
                let (offset, len) = (self.varint()?, self.varint()?);
                self.data(offset, len)
            }
            OP_FILE => {
                self.take_key()?;
                self.data(0, self.size)
            }
            OP_END => {
                if self.at != self.tar_size {
                    return Err(SplitError::Damaged("it describes less than the tar"));
                }
                let mut byte = [0];
                match self.input.read(&mut byte) {
                    Ok(0) => Ok(Op::End),
                    Ok(_) => Err(SplitError::Damaged("something follows its end")),
                    Err(e) => Err(self.input_error(e)),
                }
            }
            _ => Err(SplitError::Damaged("an operation is unknown")),
        }
    }

    fn next_literal(&mut self) -> Result<Op<'_>, SplitError> {
        let n = usize::try_from(self.literal).unwrap_or(PIECE).min(PIECE);
        let mut piece = std::mem::take(&mut self.piece);
        piece.resize(n, 0);
        self.fill(&mut piece)?;
        self.piece = piece;
        self.literal = self
            .literal
            .saturating_sub(u64::try_from(n).unwrap_or(self.literal));
        Ok(Op::Literal(&self.piece))
    }

    /// Reads saved data, from byte `at` of all of it.
    pub(crate) fn read_saved(&mut self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.saved.seek(SeekFrom::Start(at))?;
        self.saved.read_exact(out)
    }
}
