//! Appending to the disk: small pieces gather in a buffer, large ones go straight through.

use lcow_blockio::WriteAt;

use super::error::WriteError;
use crate::format::BLOCK_SIZE;

/// Bytes gathered before they are written: few enough to stay in a core's cache between the two copies.
const STAGE: usize = 1 << 17;
/// From here on a piece is written as it is.
const DIRECT: usize = 1 << 15;
/// The space that the disk is told to expect writes in, in bytes: as much again as was written so far, within these limits.
const EXPECT_MIN: u64 = 1 << 20;
const EXPECT_MAX: u64 = 1 << 26;

/// The end of the disk, where everything but the superblock and the group descriptors is written.
#[derive(Debug)]
pub(super) struct Sink<D> {
    disk: D,
    stage: Vec<u8>,
    /// Where the stage goes, in bytes; whole blocks.
    start: u64,
    /// How far the disk expects writes.
    expected: u64,
    max_size: u64,
}

impl<D: WriteAt> Sink<D> {
    pub(super) fn new(disk: D, start: u64, max_size: u64) -> Self {
        Self {
            disk,
            stage: Vec::with_capacity(STAGE),
            start,
            expected: start,
            max_size,
        }
    }

    pub(super) fn disk(&self) -> &D {
        &self.disk
    }

    /// The next byte's offset.
    pub(super) fn position(&self) -> u64 {
        self.start + self.stage.len() as u64
    }

    /// The block that the next byte belongs to.
    pub(super) fn block(&self) -> u32 {
        u32::try_from(self.position() / BLOCK_SIZE as u64)
            .expect("the size was checked against a maximum below 2^32 blocks")
    }

    pub(super) fn too_large(&self) -> WriteError {
        WriteError::TooLarge {
            max_size: self.max_size,
        }
    }

    /// Appends bytes.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        if self.position() + bytes.len() as u64 > self.max_size {
            return Err(self.too_large());
        }
        if bytes.len() >= DIRECT && self.stage.len().is_multiple_of(BLOCK_SIZE) {
            let (whole, rest) = bytes.split_at(bytes.len() / BLOCK_SIZE * BLOCK_SIZE);
            self.write(whole)?;
            bytes = rest;
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(STAGE - self.stage.len()));
            self.stage.extend_from_slice(now);
            bytes = later;
            if self.stage.len() == STAGE {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Fills the current block with zeros.
    pub(super) fn pad(&mut self) -> Result<(), WriteError> {
        let used = self.stage.len() % BLOCK_SIZE;
        if used != 0 {
            self.append(&[0; BLOCK_SIZE][used..])?;
        }
        Ok(())
    }

    /// Appends one block and returns its number.
    pub(super) fn append_block(&mut self, bytes: &[u8; BLOCK_SIZE]) -> Result<u32, WriteError> {
        let block = self.block();
        self.append(bytes)?;
        Ok(block)
    }

    /// Adds to the block at the end of the stage, which holds `used` bytes; gives back how many were taken.
    pub(super) fn append_part(&mut self, used: usize, bytes: &[u8]) -> Result<usize, WriteError> {
        if used == 0 && self.position() + BLOCK_SIZE as u64 > self.max_size {
            return Err(self.too_large());
        }
        let taken = bytes.len().min(BLOCK_SIZE - used);
        self.stage.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    /// Takes the block just completed with [`append_part`](Self::append_part) back if it is all zeros, or keeps it and
    /// gives its number.
    pub(super) fn complete_block(&mut self) -> Result<Option<u32>, WriteError> {
        let at = self.stage.len() - BLOCK_SIZE;
        if is_zero(&self.stage[at..]) {
            self.stage.truncate(at);
            return Ok(None);
        }
        let block = self.block() - 1;
        if self.stage.len() == STAGE {
            self.flush()?;
        }
        Ok(Some(block))
    }

    /// Takes the bytes back that were appended to the block at the end of the stage, `used` of them; `None` if all are zeros,
    /// which then stay.
    pub(super) fn take_part(&mut self, used: usize) -> Option<Vec<u8>> {
        let at = self.stage.len() - used;
        if is_zero(&self.stage[at..]) {
            return None;
        }
        Some(self.stage.split_off(at))
    }

    /// Writes the stage out. It must hold whole blocks.
    pub(super) fn flush(&mut self) -> Result<(), WriteError> {
        self.write(&[])
    }

    /// Writes the stage, and bytes behind it, at the end of what is written.
    fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let end = self.position() + bytes.len() as u64;
        if end > self.expected {
            let more = self.start.clamp(EXPECT_MIN, EXPECT_MAX);
            let len = more.max(end - self.expected);
            self.disk.expect(self.expected, len);
            self.expected += len;
        }
        match (self.stage.as_slice(), bytes) {
            ([], []) => Ok(()),
            (bytes, []) | ([], bytes) => self.disk.write_all_at(self.start, bytes),
            (stage, bytes) => self.disk.write_both_at(self.start, stage, bytes),
        }
        .map_err(WriteError::io("write", self.start))?;
        self.stage.clear();
        self.start = end;
        Ok(())
    }

    /// Writes the stage out and gives back the space that was expected to be written and wasn't.
    pub(super) fn finish(&mut self) -> Result<(), WriteError> {
        self.flush()?;
        if self.expected > self.start {
            self.disk
                .set_len(self.start)
                .map_err(WriteError::io("set the length", self.start))?;
        }
        Ok(())
    }

    /// Reads what was appended, be it written out or not. Past the end come zeros.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let staged = usize::try_from(self.start.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (on_disk, in_stage) = buf.split_at_mut(staged.min(buf.len()));
        if !on_disk.is_empty() {
            let n = self.disk.read_at(offset, on_disk)?;
            on_disk[n..].fill(0);
        }
        if !in_stage.is_empty() {
            let at = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX);
            let have = self.stage.get(at..).unwrap_or_default();
            let n = have.len().min(in_stage.len());
            in_stage[..n].copy_from_slice(&have[..n]);
            in_stage[n..].fill(0);
        }
        Ok(())
    }

    /// Reads a block of metadata that was appended.
    pub(super) fn read_block(&self, block: u32) -> Result<[u8; BLOCK_SIZE], WriteError> {
        let mut bytes = [0; BLOCK_SIZE];
        let offset = u64::from(block) * BLOCK_SIZE as u64;
        self.read(offset, &mut bytes)
            .map_err(WriteError::io("read back", offset))?;
        Ok(bytes)
    }

    /// Writes over a block that was appended.
    pub(super) fn rewrite_block(
        &mut self,
        block: u32,
        bytes: &[u8; BLOCK_SIZE],
    ) -> Result<(), WriteError> {
        let offset = u64::from(block) * BLOCK_SIZE as u64;
        if let Some(at) = offset.checked_sub(self.start) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if let Some(staged) = self
                .stage
                .get_mut(at..)
                .and_then(|s| s.get_mut(..BLOCK_SIZE))
            {
                staged.copy_from_slice(bytes);
                return Ok(());
            }
        }
        self.disk
            .write_all_at(offset, bytes)
            .map_err(WriteError::io("write", offset))
    }

    /// Makes blocks that were appended holes.
    pub(super) fn discard(&mut self, first: u32, len: u32) -> Result<(), WriteError> {
        self.flush()?;
        let offset = u64::from(first) * BLOCK_SIZE as u64;
        self.disk
            .zero_range(offset, u64::from(len) * BLOCK_SIZE as u64)
            .map_err(WriteError::io("zero", offset))
    }
}

/// Whether bytes are all zeros. Data mostly shows in the first bytes that it isn't.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && *rest == bytes[..rest.len()],
    }
}
