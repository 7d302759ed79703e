//! Reading data that is verified as it is read.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use lcow_blockio::ReadAt;

use super::layout::{self, FAN_OUT};
use super::{BLOCK, BLOCK_LEN, BlockHash, HASH_LEN, Tree, VerityError, failed};

/// How many verified hash blocks are kept, in blocks: 1 MiB, which covers 128 MiB of data.
const KEPT: usize = 256;

type HashBlock = Arc<[u8; BLOCK_LEN]>;

/// The data of a disk with a verity tree. Whatever is read was verified against the root hash; what does not verify is an
/// error of kind [`io::ErrorKind::InvalidData`] that holds a [`VerityError`].
///
/// Any number of threads may read. Hash blocks that were verified are kept, up to 1 MiB of them, and not read again.
pub struct VerifiedReader<R> {
    tree: Tree<R>,
    root: BlockHash,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    blocks: HashMap<(usize, u64), HashBlock>,
    /// In the order in which they came, which is that in which they go.
    order: VecDeque<(usize, u64)>,
}

impl<R: ReadAt> Tree<R> {
    /// The data, each block of which is verified when it is read.
    #[must_use]
    pub fn into_verified(self, root: BlockHash) -> VerifiedReader<R> {
        VerifiedReader {
            tree: self,
            root,
            kept: Mutex::default(),
        }
    }
}

impl<R> std::fmt::Debug for VerifiedReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifiedReader")
            .field("tree", &self.tree)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl<R: ReadAt> VerifiedReader<R> {
    /// The hash that block `index` of a level, or of the data for `None`, must have.
    fn expected(&self, level: Option<usize>, index: u64) -> Result<BlockHash, VerityError> {
        let Some((above, _)) = self.tree.layout.above(level) else {
            return Ok(self.root);
        };
        let block = self.hash_block(above, index / FAN_OUT)?;
        let slot = usize::try_from(index % FAN_OUT).unwrap_or_default();
        let hash = block.as_chunks::<HASH_LEN>().0.get(slot).copied();
        Ok(BlockHash(hash.unwrap_or_default()))
    }

    /// A hash block that was verified.
    fn hash_block(&self, level: usize, index: u64) -> Result<HashBlock, VerityError> {
        let key = (level, index);
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = kept().blocks.get(&key) {
            return Ok(Arc::clone(block));
        }
        let mut block = [0; BLOCK_LEN];
        self.read_checked(Some(level), index, &mut block)?;
        let block = Arc::new(block);
        let mut kept = kept();
        if kept.blocks.insert(key, Arc::clone(&block)).is_none() {
            kept.order.push_back(key);
        }
        if kept.order.len() > KEPT
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.blocks.remove(&oldest);
        }
        Ok(block)
    }

    /// Reads blocks that lie side by side, and verifies each.
    fn read_checked(
        &self,
        level: Option<usize>,
        first: u64,
        blocks: &mut [u8],
    ) -> Result<(), VerityError> {
        let layout = &self.tree.layout;
        let (_, offset) = layout.block(level, first);
        self.tree
            .disk
            .read_exact_at(offset, blocks)
            .map_err(failed("reading a block to be verified", offset))?;
        for (index, block) in (first..).zip(blocks.chunks(BLOCK_LEN)) {
            let expected = self.expected(level, index)?;
            if layout.top() == level {
                self.tree
                    .check_root(self.tree.hasher.hash(block), &expected)?;
            } else {
                self.tree.check(level, index, block, expected)?;
            }
        }
        Ok(())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize, VerityError> {
        let size = layout::bytes(self.tree.layout.data_blocks);
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        let mut rest = buf.get_mut(..len).unwrap_or_default();
        let mut index = offset / BLOCK;
        // Bytes of the first block before what was asked for.
        let mut skip = usize::try_from(offset % BLOCK).unwrap_or_default();
        while !rest.is_empty() {
            let whole = rest.len() / BLOCK_LEN;
            if skip == 0 && whole > 0 {
                let (blocks, more) = rest.split_at_mut(whole.saturating_mul(BLOCK_LEN));
                self.read_checked(None, index, blocks)?;
                index = index.saturating_add(whole.try_into().unwrap_or(u64::MAX));
                rest = more;
                continue;
            }
            let mut block = [0; BLOCK_LEN];
            self.read_checked(None, index, &mut block)?;
            let wanted = block.get(skip..).unwrap_or_default();
            let (part, more) = rest.split_at_mut(wanted.len().min(rest.len()));
            part.copy_from_slice(wanted.get(..part.len()).unwrap_or_default());
            rest = more;
            index = index.saturating_add(1);
            skip = 0;
        }
        Ok(len)
    }
}

impl<R: ReadAt> ReadAt for VerifiedReader<R> {
    fn size(&self) -> io::Result<u64> {
        Ok(layout::bytes(self.tree.layout.data_blocks))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read(offset, buf).map_err(|error| match error {
            VerityError::Io { source, .. } => source,
            error => io::Error::new(io::ErrorKind::InvalidData, error),
        })
    }
}
