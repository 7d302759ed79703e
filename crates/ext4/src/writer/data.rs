//! The data of regular files.

use std::io;

use lcow_blockio::WriteAt;

use super::extents::{ExtentBuilder, Root, Run, walk};
use super::inline::INLINE_MAX;
use super::node::Data;
use super::sink::is_zero;
use super::{WriteError, Writer, inode_seed};
use crate::format::{BLOCK_SIZE, Checksum};
use crate::{FileType, InodeNumber};

/// The largest file: extents address 2³² − 1 blocks (kernel: `ext4_max_size`).
const FILE_MAX: u64 = ((1 << 32) - 1) * BLOCK_SIZE as u64;

/// The file whose data is being written.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) inode: InodeNumber,
    /// Bytes so far.
    size: u64,
    extents: ExtentBuilder,
    seed: Checksum,
}

impl Open {
    /// Bytes in the block that is not complete; they are at the end of the sink.
    fn partial(&self) -> usize {
        usize::try_from(self.size % BLOCK_SIZE as u64).unwrap_or(0)
    }

    /// The block of the file that the next byte goes to.
    fn logical(&self) -> u32 {
        u32::try_from(self.size / BLOCK_SIZE as u64).expect("the size was checked against FILE_MAX")
    }

    fn grow(&mut self, len: u64) -> Result<(), WriteError> {
        match self.size.checked_add(len) {
            Some(size) if size <= FILE_MAX => {
                self.size = size;
                Ok(())
            }
            size => Err(WriteError::FileTooLarge {
                inode: self.inode,
                size: size.unwrap_or(u64::MAX),
            }),
        }
    }
}

impl<D: WriteAt> Writer<D> {
    /// Opens a regular file that has no data yet. Data must be ended before anything but metadata is changed.
    pub fn begin_data(&mut self, inode: InodeNumber) -> Result<(), WriteError> {
        self.refuse_open()?;
        let node = self.node(inode)?;
        if node.file_type() != Some(FileType::Regular) {
            return Err(WriteError::NotARegularFile { inode });
        }
        if node.size != 0 {
            return Err(WriteError::HasData { inode });
        }
        self.open = Some(Open {
            inode,
            size: 0,
            extents: ExtentBuilder::default(),
            seed: inode_seed(inode),
        });
        Ok(())
    }

    /// Appends data. Blocks of zeros become holes. Fastest with large pieces that start at whole blocks of the file.
    pub fn write_data(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        let open = self.open.as_mut().ok_or(WriteError::NoDataOpen)?;
        while !bytes.is_empty() {
            let partial = open.partial();
            if partial > 0 || bytes.len() < BLOCK_SIZE {
                let logical = open.logical();
                let taken = bytes.len().min(BLOCK_SIZE - partial);
                open.grow(taken as u64)?;
                self.sink.append_part(partial, &bytes[..taken])?;
                bytes = &bytes[taken..];
                if open.partial() == 0
                    && let Some(block) = self.sink.complete_block()?
                {
                    let run = Run {
                        logical,
                        block,
                        len: 1,
                    };
                    open.extents.push(run, open.seed, &mut self.sink)?;
                }
                continue;
            }
            let (blocks, _) = bytes.as_chunks::<BLOCK_SIZE>();
            let zero = is_zero(&blocks[0]);
            let same = blocks.iter().take_while(|b| is_zero(*b) == zero).count();
            let (piece, rest) = bytes.split_at(same * BLOCK_SIZE);
            let logical = open.logical();
            open.grow(piece.len() as u64)?;
            if !zero {
                let block = self.sink.block();
                self.sink.append(piece)?;
                let run = Run {
                    logical,
                    block,
                    len: u32::try_from(same).unwrap_or(u32::MAX),
                };
                open.extents.push(run, open.seed, &mut self.sink)?;
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Appends zeros without writing any.
    pub fn skip_data(&mut self, len: u64) -> Result<(), WriteError> {
        let open = self.open.as_mut().ok_or(WriteError::NoDataOpen)?;
        let block = BLOCK_SIZE as u64;
        // Zeros that share a block with data are data.
        let first = (open.size.next_multiple_of(block) - open.size).min(len);
        let middle = (len - first) / block * block;
        let last = len - first - middle;
        let zeros = [0; BLOCK_SIZE];
        self.write_data(&zeros[..usize::try_from(first).unwrap_or(0)])?;
        self.open
            .as_mut()
            .ok_or(WriteError::NoDataOpen)?
            .grow(middle)?;
        self.write_data(&zeros[..usize::try_from(last).unwrap_or(0)])
    }

    /// Ends the file's data.
    pub fn end_data(&mut self) -> Result<(), WriteError> {
        let mut open = self.open.take().ok_or(WriteError::NoDataOpen)?;
        let partial = open.partial();
        if self.inline_data
            && partial as u64 == open.size
            && (1..=INLINE_MAX).contains(&partial)
            && let Some(bytes) = self.sink.take_part(partial)
        {
            let node_data = Data::Inline(self.inline.push(&bytes));
            let node = self.node_mut(open.inode)?;
            (node.size, node.blocks, node.data) = (open.size, 0, node_data);
            return Ok(());
        }
        if partial > 0 {
            self.sink
                .append_part(partial, &[0; BLOCK_SIZE][partial..])?;
            if let Some(block) = self.sink.complete_block()? {
                let run = Run {
                    logical: open.logical(),
                    block,
                    len: 1,
                };
                open.extents.push(run, open.seed, &mut self.sink)?;
            }
        }
        let (root, blocks) = open.extents.finish(open.seed, &mut self.sink)?;
        let data = match root {
            Root::Empty => Data::None,
            Root::Single { block, len } => Data::Run { block, len },
            Root::Tree(root) => Data::Tree(self.trees.push(root)),
        };
        let node = self.node_mut(open.inode)?;
        (node.size, node.blocks, node.data) = (open.size, blocks, data);
        Ok(())
    }

    /// Reads the data of a regular file that was ended: up to `buf.len()` bytes at `offset`, fewer only at its end.
    pub fn read_back(&self, inode: InodeNumber, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let node = self.node(inode).map_err(io::Error::other)?;
        if node.file_type() != Some(FileType::Regular) {
            return Err(io::Error::other(WriteError::NotARegularFile { inode }));
        }
        let left = node.size.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..len];
        if let Data::Inline(at) = node.data {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let data = self.inline_data(at, node.size).get(from..);
            buf.copy_from_slice(&data.unwrap_or_default()[..len]);
            return Ok(len);
        }
        buf.fill(0);
        let mut result = Ok(());
        self.each_run(node.data, &mut |run| {
            let block = BLOCK_SIZE as u64;
            if run.logical == u32::MAX || result.is_err() {
                return;
            }
            let start = u64::from(run.logical) * block;
            let from = start.max(offset);
            let to = (start + u64::from(run.len) * block).min(offset + len as u64);
            if from < to {
                let at = usize::try_from(from - offset).unwrap_or(usize::MAX);
                let end = usize::try_from(to - offset).unwrap_or(usize::MAX);
                let place = u64::from(run.block) * block + (from - start);
                result = self.sink.read(place, &mut buf[at..end]);
            }
        })
        .map_err(io::Error::other)?;
        result?;
        Ok(len)
    }

    /// Gives each run of blocks that holds data, then those of the extent tree (at logical block `u32::MAX`).
    pub(super) fn each_run(&self, data: Data, each: &mut dyn FnMut(Run)) -> Result<(), WriteError> {
        match data {
            Data::Run { block, len } => each(Run {
                logical: 0,
                block,
                len: len.into(),
            }),
            Data::Tree(index) => walk(&self.trees[index], &self.sink, each)?,
            Data::None | Data::Directory { .. } | Data::Target(_) | Data::Device(_) => {}
            Data::Inline(_) | Data::Value { .. } => {}
        }
        Ok(())
    }
}
