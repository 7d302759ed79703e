//! dm-verity: a tree of hashes behind a disk's data, of which one hash, the root, vouches for every byte.
//!
//! Version 1, SHA-256, data and hash blocks of 4 KiB, with the superblock of `veritysetup`. Rules from the kernel
//! (`Documentation/admin-guide/device-mapper/verity.rst`, `drivers/md/dm-verity-target.c`) and from cryptsetup
//! (`lib/verity/verity.c` for the superblock, `verity_hash.c` for the order of the levels); the page
//! `docs/format/verity.md` gives the layout.
//!
//! ```text
//!  0              data_size      + 4096                                       end(data_size)
//!  ├─ data ───────┼─ superblock ─┼─ top level (one block) ─┼─ … ─┼─ level 0 ───┤
//! ```
//!
//! Where the tree lies follows from the size of the data, or of the whole ([`data_size`]): nothing on the disk is believed.
//! The superblock gives salt and size, and a tree made with another salt or size has another root; so the caller's root hash
//! is all that has to be trusted.
//!
//! Building and verifying read the disk once, in pieces of 512 KiB, with a thread for each processor. Blocks of zeros are
//! compared, not hashed.
//!
//! ```
//! use lcow_blockio::{MemDisk, ReadAt, WriteAt};
//! use lcow_disk::verity::{self, Block, Tree, VerityError};
//!
//! let disk = MemDisk::new();
//! disk.write_all_at(0, &[7; 3 * 4096])?;
//! let built = verity::build(&disk, 3 * 4096, b"salt", [1; 16])?;
//! assert_eq!(verity::data_size(built.end), Some(3 * 4096));
//! Tree::open(&disk, 3 * 4096)?.verify(&built.root)?;
//!
//! disk.write_all_at(5000, &[8])?;
//! let error = Tree::open(&disk, 3 * 4096)?.verify(&built.root).unwrap_err();
//! assert!(matches!(error, VerityError::Mismatch { block: Block::Data { index: 1 }, offset: 4096, .. }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod format;
mod hash;
mod layout;
mod reader;

pub use format::{RawSuperblock, Superblock};
pub use layout::{data_size, end};
pub use reader::VerifiedReader;

use std::fmt;
use std::io;
use std::str::FromStr;

use lcow_blockio::{ReadAt, WriteAt};
use zerocopy::{FromZeros, IntoBytes};

use hash::BlockHasher;
use layout::{FAN_OUT, Layout};

/// The size of data and hash blocks, in bytes.
pub const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;
/// The longest salt, in bytes.
pub const MAX_SALT: usize = 256;
/// The length of a hash, in bytes.
const HASH_LEN: usize = 32;
/// As many blocks as a hash block has hashes: what a thread reads at a time, in bytes.
const PIECE: usize = 128 * BLOCK_LEN;

/// The salted SHA-256 of a block. That of the tree's top block is the root hash.
///
/// Shown and parsed as 64 hexadecimal digits, as `veritysetup` does.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; HASH_LEN]);

impl BlockHash {
    /// A hash from its 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; HASH_LEN]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; HASH_LEN] {
        &self.0
    }
}

impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no root hash: 64 hexadecimal digits are needed")]
pub struct NotAHash(String);

impl FromStr for BlockHash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        parse_hex(text)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| NotAHash(text.to_owned()))
    }
}

/// Bytes from hexadecimal digits.
fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let bytes = pairs
        .iter()
        .map(|&[high, low]| Some((digit(high)? << 4) | digit(low)?));
    rest.is_empty().then(|| bytes.collect()).flatten()
}

/// Which block of a disk with a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// A block of data.
    Data {
        /// Its number, from 0.
        index: u64,
    },
    /// A block of hashes.
    Hash {
        /// 0 for the hashes of data blocks; each level above has the hashes of the blocks below.
        level: usize,
        /// Its number in the level, from 0.
        index: u64,
    },
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data { index } => write!(f, "data block {index}"),
            Self::Hash { level, index } => write!(f, "hash block {index} of level {level}"),
        }
    }
}

/// What is wrong with a verity tree, or with what it covers.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// There is no good superblock where the tree should be.
    #[error("not a good verity superblock at byte {offset}: {detail}")]
    Corrupt {
        /// Where on the disk, in bytes.
        offset: u64,
        /// What was found, and what should have been.
        detail: String,
    },
    /// A tree of a kind that is not read here.
    #[error("a verity tree with {what} is not supported here")]
    Unsupported {
        /// What of it.
        what: String,
    },
    /// A block is not the one that was hashed.
    #[error("{block}, at byte {offset}, is not what was hashed: {found} instead of {expected}")]
    Mismatch {
        /// The block.
        block: Block,
        /// Where on the disk it lies, in bytes.
        offset: u64,
        /// The hash that the level above has, which was verified.
        expected: BlockHash,
        /// The block's own hash.
        found: BlockHash,
    },
    /// The top of the tree does not have the root hash that was asked for.
    #[error(
        "the root hash is {found} instead of {expected}: {block}, at byte {offset}, or the salt is damaged, or the \
         tree is another disk's"
    )]
    Root {
        /// The tree's top block.
        block: Block,
        /// Where on the disk it lies, in bytes.
        offset: u64,
        /// The root hash asked for.
        expected: BlockHash,
        /// What the top block hashes to.
        found: BlockHash,
    },
    /// Data that no tree can be made for.
    #[error(
        "{size} bytes of data can't have a verity tree: 1 or more whole blocks of 4096 bytes can"
    )]
    Size {
        /// The size asked for, in bytes.
        size: u64,
    },
    /// A salt over 256 bytes.
    #[error("a salt of {len} bytes is not possible: at most 256 are")]
    Salt {
        /// Its length in bytes.
        len: usize,
    },
    /// Reading or writing failed.
    #[error("{operation} at byte {offset}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// Where on the disk, in bytes.
        offset: u64,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

fn failed(operation: &'static str, offset: u64) -> impl FnOnce(io::Error) -> VerityError {
    move |source| VerityError::Io {
        operation,
        offset,
        source,
    }
}

/// A tree that was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// The root hash.
    pub root: BlockHash,
    /// Where the tree ends: how long the disk is, in bytes.
    pub end: u64,
}

/// Builds the tree of the disk's first `data_size` bytes behind them. The disk ends with the tree then; what was there
/// before is overwritten.
///
/// The same data, salt and UUID give the same bytes. Nothing is synced.
///
/// # Errors
/// [`VerityError::Size`] unless the size is a positive multiple of 4,096, [`VerityError::Salt`] for over 256 bytes,
/// [`VerityError::Io`].
pub fn build<D: WriteAt>(
    disk: &D,
    data_size: u64,
    salt: &[u8],
    uuid: [u8; 16],
) -> Result<Built, VerityError> {
    let layout = Layout::for_size(data_size)?;
    let superblock = RawSuperblock::new(&Superblock {
        uuid,
        data_blocks: layout.data_blocks,
        salt: salt.to_vec(),
    })
    .ok_or(VerityError::Salt { len: salt.len() })?;
    let end = layout::bytes(layout.end);
    let at = layout.superblock();
    disk.set_len(end)
        .map_err(failed("setting the disk's length", end))?;
    // The rest of its block is zeros, whatever was there.
    let mut block = [0; BLOCK_LEN];
    if let Some(start) = block.first_chunk_mut::<{ size_of::<RawSuperblock>() }>() {
        start.copy_from_slice(superblock.as_bytes());
    }
    disk.write_all_at(at, &block)
        .map_err(failed("writing the verity superblock", at))?;

    let hasher = BlockHasher::new(salt);
    let mut below = None;
    while let Some((level, place)) = layout.above(below) {
        hash::each(
            place.blocks,
            || vec![0; PIECE],
            |index, buffer| {
                let piece = read_piece(disk, &layout, below, index, buffer)?;
                let mut hashes = [0; BLOCK_LEN];
                let slots = hashes.as_chunks_mut::<HASH_LEN>().0;
                for (slot, block) in slots.iter_mut().zip(piece.chunks(BLOCK_LEN)) {
                    *slot = hasher.hash(block).0;
                }
                let (_, offset) = layout.block(Some(level), index);
                disk.write_all_at(offset, &hashes)
                    .map_err(failed("writing a verity hash block", offset))
            },
        )?;
        below = Some(level);
    }
    let root = top_hash(disk, &layout, &hasher)?;
    Ok(Built { root, end })
}

/// Reads the blocks of a level, or of the data for `None`, whose hashes are in hash block `index` above.
fn read_piece<'a>(
    disk: &impl ReadAt,
    layout: &Layout,
    level: Option<usize>,
    index: u64,
    buffer: &'a mut [u8],
) -> Result<&'a [u8], VerityError> {
    let first = index.saturating_mul(FAN_OUT);
    let blocks = layout.blocks(level).blocks.saturating_sub(first);
    let len = usize::try_from(layout::bytes(blocks))
        .unwrap_or(PIECE)
        .min(buffer.len());
    let (_, offset) = layout.block(level, first);
    let piece = buffer.get_mut(..len).unwrap_or_default();
    disk.read_exact_at(offset, piece)
        .map_err(failed("reading what is hashed", offset))?;
    Ok(piece)
}

/// The hash of the top block: the root hash that the tree has, whatever it should have.
fn top_hash(
    disk: &impl ReadAt,
    layout: &Layout,
    hasher: &BlockHasher,
) -> Result<BlockHash, VerityError> {
    let (_, offset) = layout.block(layout.top(), 0);
    let mut block = [0; BLOCK_LEN];
    disk.read_exact_at(offset, &mut block)
        .map_err(failed("reading the verity tree's top", offset))?;
    Ok(hasher.hash(&block))
}

/// A verity tree on a disk, and the data it covers.
pub struct Tree<R> {
    disk: R,
    superblock: Superblock,
    layout: Layout,
    hasher: BlockHasher,
}

impl<R> fmt::Debug for Tree<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("superblock", &self.superblock)
            .finish_non_exhaustive()
    }
}

impl<R: ReadAt> Tree<R> {
    /// Opens the tree behind `data_size` bytes of data. Nothing is verified yet.
    ///
    /// # Errors
    /// [`VerityError::Corrupt`] if there is no good superblock, or it is one for another size;
    /// [`VerityError::Unsupported`], [`VerityError::Size`], [`VerityError::Io`].
    pub fn open(disk: R, data_size: u64) -> Result<Self, VerityError> {
        let layout = Layout::for_size(data_size)?;
        let offset = layout.superblock();
        let size = disk.size().map_err(failed("reading the disk's size", 0))?;
        let end = layout::bytes(layout.end);
        if size < end {
            let detail = format!("the tree would end at byte {end}, and the disk has {size} bytes");
            return Err(VerityError::Corrupt { offset, detail });
        }
        let mut raw = RawSuperblock::new_zeroed();
        disk.read_exact_at(offset, raw.as_mut_bytes())
            .map_err(failed("reading the verity superblock", offset))?;
        let superblock = raw.validate(offset)?;
        if superblock.data_blocks != layout.data_blocks {
            let detail = format!(
                "it is for {} blocks of data, and {} lie before it",
                superblock.data_blocks, layout.data_blocks
            );
            return Err(VerityError::Corrupt { offset, detail });
        }
        Ok(Self {
            disk,
            hasher: BlockHasher::new(&superblock.salt),
            superblock,
            layout,
        })
    }

    /// The superblock. Its salt and size are vouched for once the root hash is verified; its UUID never is.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The root hash that the tree has, for display: only one that comes from elsewhere vouches for anything.
    ///
    /// # Errors
    /// [`VerityError::Io`].
    pub fn root(&self) -> Result<BlockHash, VerityError> {
        top_hash(&self.disk, &self.layout, &self.hasher)
    }

    /// Verifies all: from the root down, each level against the one above it, then the data.
    ///
    /// # Errors
    /// [`VerityError::Root`] or [`VerityError::Mismatch`] for the first block that is not what was hashed: the first of its
    /// level, all levels above being good. [`VerityError::Io`].
    pub fn verify(&self, root: &BlockHash) -> Result<(), VerityError> {
        self.check_root(self.root()?, root)?;
        for (level, _) in self.layout.levels.iter().enumerate().rev() {
            self.verify_below(level)?;
        }
        Ok(())
    }

    fn check_root(&self, found: BlockHash, expected: &BlockHash) -> Result<(), VerityError> {
        if found == *expected {
            return Ok(());
        }
        let (block, offset) = self.layout.block(self.layout.top(), 0);
        Err(VerityError::Root {
            block,
            offset,
            expected: *expected,
            found,
        })
    }

    /// Verifies what the hashes of a level are the hashes of.
    fn verify_below(&self, level: usize) -> Result<(), VerityError> {
        let below = level.checked_sub(1);
        let hash_blocks = self.layout.blocks(Some(level)).blocks;
        let buffers = || (vec![0; PIECE], [0; BLOCK_LEN]);
        hash::each(hash_blocks, buffers, |index, (buffer, hashes)| {
            let (_, offset) = self.layout.block(Some(level), index);
            self.disk
                .read_exact_at(offset, hashes)
                .map_err(failed("reading a verity hash block", offset))?;
            let piece = read_piece(&self.disk, &self.layout, below, index, buffer)?;
            let expected = hashes.as_chunks::<HASH_LEN>().0;
            let first = index.saturating_mul(FAN_OUT);
            for ((index, block), expected) in (first..).zip(piece.chunks(BLOCK_LEN)).zip(expected) {
                self.check(below, index, block, BlockHash(*expected))?;
            }
            Ok(())
        })
    }

    /// Holds a block against its hash.
    fn check(
        &self,
        level: Option<usize>,
        index: u64,
        block: &[u8],
        expected: BlockHash,
    ) -> Result<(), VerityError> {
        let found = self.hasher.hash(block);
        if found == expected {
            return Ok(());
        }
        let (block, offset) = self.layout.block(level, index);
        Err(VerityError::Mismatch {
            block,
            offset,
            expected,
            found,
        })
    }
}
