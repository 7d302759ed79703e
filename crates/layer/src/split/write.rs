use std::io::{self, Read, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

use super::format::{
    MAGIC, MAX_SAVED, NO_INODE, OP_DATA, OP_END, OP_FILE, OP_HEADER, OP_LITERAL, OP_PAD, OP_ZEROS,
    VERSION,
};
use super::header::{self, History, put_varint, zigzag};
use crate::digest::Digest;
use crate::tar::{Block, Record};

/// What is kept in memory of each of the two streams before it goes to a temporary file, in bytes.
const SPOOL: usize = 8 << 20;
const LEVEL: i32 = 3;

type Spool = zstd::Encoder<'static, SpooledTempFile>;

/// Gathers a sidecar while the tar is applied. Everything is written at the end, since the preamble has the tar's digest.
pub(crate) struct SplitWriter {
    ops: Spool,
    saved: Spool,
    /// Key, offset and length of each saved piece, as they will be written.
    index: Vec<u8>,
    pieces: u64,
    history: History,
    /// The size field of the last header.
    size: u64,
    /// Zero bytes not yet written as an operation.
    zeros: u64,
    /// Bytes of the tar described so far, `zeros` left out.
    at: u64,
    key: u64,
    anonymous: u64,
    scratch: Vec<u8>,
}

fn spool() -> io::Result<Spool> {
    zstd::Encoder::new(SpooledTempFile::new(SPOOL), LEVEL)
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

impl SplitWriter {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            ops: spool()?,
            saved: spool()?,
            index: Vec::new(),
            pieces: 0,
            history: History::default(),
            size: 0,
            zeros: 0,
            at: 0,
            key: 0,
            anonymous: NO_INODE,
            scratch: Vec::new(),
        })
    }

    fn flush_zeros(&mut self) -> io::Result<()> {
        let zeros = std::mem::take(&mut self.zeros);
        if zeros == 0 {
            return Ok(());
        }
        self.scratch.clear();
        if zeros == self.at.wrapping_neg() % 512 {
            self.scratch.push(OP_PAD);
        } else {
            self.scratch.push(OP_ZEROS);
            put_varint(&mut self.scratch, zeros);
        }
        self.at = self.at.saturating_add(zeros);
        self.ops.write_all(&self.scratch)
    }

    /// `length` bytes of the tar are those at `offset` of the file with this key.
    pub(crate) fn data(&mut self, key: u64, offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.flush_zeros()?;
        let delta = zigzag(key.wrapping_sub(self.key).cast_signed());
        self.key = key;
        self.scratch.clear();
        if offset == 0 && length == self.size {
            self.scratch.push(OP_FILE);
            put_varint(&mut self.scratch, delta);
        } else {
            self.scratch.push(OP_DATA);
            put_varint(&mut self.scratch, delta);
            put_varint(&mut self.scratch, offset);
            put_varint(&mut self.scratch, length);
        }
        self.at = self.at.saturating_add(length);
        self.ops.write_all(&self.scratch)
    }

    /// A key for data that goes to no inode.
    pub(crate) fn anonymous_key(&mut self) -> u64 {
        let key = self.anonymous;
        self.anonymous = key.saturating_add(1);
        key
    }

    /// Announces a piece of data that will not be on the disk; its bytes follow through [`save_bytes`](Self::save_bytes).
    pub(crate) fn save(&mut self, key: u64, offset: u64, length: u64) -> io::Result<()> {
        if self.pieces >= MAX_SAVED {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "too many files are replaced within the layer for a sidecar",
            ));
        }
        self.pieces = self.pieces.saturating_add(1);
        for number in [key, offset, length] {
            put_varint(&mut self.index, number);
        }
        Ok(())
    }

    pub(crate) fn save_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.saved.write_all(bytes)
    }

    /// Writes the sidecar.
    pub(crate) fn finish(mut self, diff_id: &Digest, out: &mut dyn Write) -> io::Result<()> {
        self.flush_zeros()?;
        self.ops.write_all(&[OP_END])?;
        let mut start = zstd::Encoder::new(&mut *out, LEVEL)?;
        start.write_all(&MAGIC)?;
        start.write_all(&VERSION.to_le_bytes())?;
        start.write_all(&self.at.to_le_bytes())?;
        start.write_all(diff_id.as_bytes())?;
        start.write_all(&self.pieces.to_le_bytes())?;
        start.write_all(&self.index)?;
        start.finish()?;
        for spool in [self.saved, self.ops] {
            let mut file = spool.finish()?;
            file.seek(SeekFrom::Start(0))?;
            let mut buffer = vec![0; 128 << 10];
            loop {
                let n = file.read(&mut buffer)?;
                if n == 0 {
                    break;
                }
                out.write_all(buffer.get(..n).unwrap_or_default())?;
            }
        }
        out.flush()
    }
}

impl Record for SplitWriter {
    fn header(&mut self, block: &Block) -> io::Result<()> {
        self.flush_zeros()?;
        self.scratch.clear();
        self.scratch.push(OP_HEADER);
        header::encode(&mut self.history, block, &mut self.scratch);
        self.size = header::size(block);
        self.at = self.at.saturating_add(512);
        self.ops.write_all(&self.scratch)
    }

    fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.flush_zeros()?;
        self.scratch.clear();
        self.scratch.push(OP_LITERAL);
        put_varint(&mut self.scratch, len(bytes));
        self.at = self.at.saturating_add(len(bytes));
        self.ops.write_all(&self.scratch)?;
        self.ops.write_all(bytes)
    }

    fn zeros(&mut self, len: u64) -> io::Result<()> {
        self.zeros = self.zeros.saturating_add(len);
        Ok(())
    }
}
