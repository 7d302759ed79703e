//! Extended attributes: sets of them, each kept once for all inodes that have the same.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use lcow_blockio::WriteAt;
use zerocopy::{FromBytes, IntoBytes};

use super::node::{Data, Kind, Node};
use super::store::{Arena, ArenaRef};
use super::{CHECKSUM_SEED, Metadata, WriteError, Writer, slot_of};
use crate::format::inode::{EXTRA_ISIZE, INODE_SIZE, OLD_SIZE};
use crate::format::xattr::{
    BLOCK_HEADER_SIZE, ENTRY_SIZE, INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT, INODE_HEADER_SIZE, MAGIC,
    REFCOUNT_MAX, VALUE_MAX, XattrBlockHeader, XattrEntry, block_hash, entry_hash,
    entry_hash_of_inode, entry_size, join_name, split_name, value_size,
};
use crate::format::{BLOCK_SIZE, Checksum, NAME_MAX, acl};
use crate::{FileType, InodeNumber, Xattr};

/// Where attributes begin in an inode, their magic included.
pub(super) const INODE_START: usize = OLD_SIZE + EXTRA_ISIZE as usize;
/// Bytes for entries and values in an inode.
pub(super) const INODE_SPACE: usize = INODE_SIZE - INODE_START - INODE_HEADER_SIZE;
/// Bytes for entries and values in a block.
const BLOCK_SPACE: usize = BLOCK_SIZE - BLOCK_HEADER_SIZE;

/// All sets of attributes.
#[derive(Debug, Default)]
pub(super) struct Pool {
    sets: Vec<Set>,
    /// The set with a given content. Its key is a hash of 128 bits, keyed at random: nobody can make two alike.
    by_content: HashMap<(u64, u64), u32>,
    hasher: RandomState,
    arena: Arena,
}

#[derive(Debug)]
struct Set {
    content: (u64, u64),
    /// Inodes that have it; 0: it is gone.
    users: u32,
    place: Place,
    /// The inodes that hold its large values.
    values: Box<[u32]>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// In every inode: entries and values as they will lie there.
    Inode(ArenaRef),
    Block(u32),
}

/// What an inode must say about its set.
#[derive(Debug)]
pub(super) struct Placed<'a> {
    /// Behind its fields.
    pub(super) in_inode: Option<&'a [u8]>,
    /// `i_file_acl`; 0: none.
    pub(super) block: u32,
    /// Blocks that count as the inode's.
    pub(super) blocks: u64,
}

/// An attribute as it goes to the disk.
struct Item<'a> {
    index: u8,
    name: &'a [u8],
    value: Cow<'a, [u8]>,
    /// The inode that holds the value and the value's checksum.
    inode: Option<(u32, u32)>,
}

impl<D: WriteAt> Writer<D> {
    /// The number + 1 of the set with these attributes, with one user more; 0: there are none.
    pub(super) fn intern(
        &mut self,
        inode: InodeNumber,
        xattrs: &[Xattr],
    ) -> Result<u32, WriteError> {
        let mut items = items(xattrs)?;
        if items.is_empty() {
            return Ok(0);
        }
        let content = self.pool.content(&items);
        if let Some(&number) = self.pool.by_content.get(&content) {
            let set = &mut self.pool.sets[number as usize];
            if set.users < REFCOUNT_MAX || matches!(set.place, Place::Inode(_)) {
                set.users += 1;
                return Ok(number + 1);
            }
        }
        let space = space(&items);
        let mut values = Vec::new();
        let place = if space <= INODE_SPACE {
            let mut bytes = [0; INODE_SPACE];
            lay_out(&items, &mut bytes, 0, false);
            Place::Inode(self.pool.arena.push(&bytes))
        } else {
            if space > BLOCK_SPACE {
                values = self.move_values(inode, &mut items, space)?;
            }
            let mut bytes = [0; BLOCK_SIZE];
            let hashes = lay_out(
                &items,
                &mut bytes[BLOCK_HEADER_SIZE..],
                BLOCK_HEADER_SIZE,
                true,
            );
            let block = self.sink.block();
            seal(&mut bytes, block, 1, block_hash(hashes));
            Place::Block(self.sink.append_block(&bytes)?)
        };
        let number = u32::try_from(self.pool.sets.len()).map_err(|_| WriteError::TooManyInodes)?;
        self.pool.sets.push(Set {
            content,
            users: 1,
            place,
            values: values.into(),
        });
        self.pool.by_content.insert(content, number);
        Ok(number + 1)
    }

    /// Moves the largest values to inodes of their own until the rest fits a block.
    fn move_values(
        &mut self,
        inode: InodeNumber,
        items: &mut [Item<'_>],
        mut space: usize,
    ) -> Result<Vec<u32>, WriteError> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(items[*i].value.len()));
        let mut moved = Vec::new();
        for i in order {
            if space <= BLOCK_SPACE || items[i].value.is_empty() {
                break;
            }
            space -= value_size(items[i].value.len());
            moved.push(i);
        }
        if space > BLOCK_SPACE {
            return Err(WriteError::TooManyXattrs { inode, len: space });
        }
        let mut values = Vec::new();
        for i in moved {
            let value = &items[i].value;
            let checksum = Checksum::from_seed(CHECKSUM_SEED).bytes(value).value();
            let block = self.sink.block();
            self.sink.append(value)?;
            self.sink.pad()?;
            let data = Data::Value { checksum, block };
            let metadata = Metadata {
                permissions: 0o600,
                ..Metadata::default()
            };
            let mut node = Node::new(FileType::Regular, data, &metadata, &mut self.times);
            node.size = value.len() as u64;
            node.blocks = value_blocks(node.size);
            node.links = 1;
            node.kind = Kind::Value;
            let number = self.add_node(node)?.0;
            items[i].inode = Some((number, checksum));
            values.push(number);
        }
        Ok(values)
    }

    /// Takes one user from a set; with the last it goes, and its blocks are listed.
    pub(super) fn release_set(
        &mut self,
        number: u32,
        freed: &mut Vec<(u32, u32)>,
    ) -> Result<(), WriteError> {
        let set = &mut self.pool.sets[number as usize];
        set.users -= 1;
        if set.users > 0 {
            return Ok(());
        }
        if let Place::Block(block) = set.place {
            freed.push((block, 1));
        }
        for value in std::mem::take(&mut set.values) {
            let slot = slot_of(InodeNumber(value)).ok_or(WriteError::NoSuchInode {
                inode: InodeNumber(value),
            })?;
            let node = &mut self.nodes[slot];
            if let Data::Value { block, .. } = node.data {
                freed.push((block, node.blocks));
            }
            (node.mode, node.data) = (0, Data::None);
        }
        let content = set.content;
        if self.pool.by_content.get(&content) == Some(&number) {
            self.pool.by_content.remove(&content);
        }
        Ok(())
    }

    /// Reads a set again.
    pub(super) fn read_set(&self, number: u32) -> Result<Vec<Xattr>, WriteError> {
        let (bytes, base) = match self.pool.sets[number as usize].place {
            Place::Inode(at) => (self.pool.arena.get(at, INODE_SPACE).to_vec(), 0),
            Place::Block(block) => (self.sink.read_block(block)?.to_vec(), BLOCK_HEADER_SIZE),
        };
        let mut xattrs = Vec::new();
        let mut rest = &bytes[base..];
        while let Ok((entry, names)) = XattrEntry::read_from_prefix(rest) {
            let len = usize::from(entry.e_name_len);
            if len == 0 && entry.e_name_index == 0 {
                break;
            }
            let size = entry.e_value_size.get() as usize;
            let value = match entry.e_value_inum.get() {
                0 => {
                    let at = usize::from(entry.e_value_offs.get());
                    bytes.get(at..at + size).unwrap_or_default().to_vec()
                }
                inode => self.read_value(inode, size)?,
            };
            let value = match entry.e_name_index {
                INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT => acl::from_disk(&value).unwrap_or(value),
                _ => value,
            };
            let name = join_name(entry.e_name_index, names.get(..len).unwrap_or_default());
            xattrs.push(Xattr {
                name: name.unwrap_or_default(),
                value,
            });
            rest = rest.get(entry_size(len)..).unwrap_or_default();
        }
        Ok(xattrs)
    }

    fn read_value(&self, inode: u32, size: usize) -> Result<Vec<u8>, WriteError> {
        let mut value = vec![0; size];
        let slot = slot_of(InodeNumber(inode)).unwrap_or(0);
        if let Data::Value { block, .. } = self.nodes[slot].data {
            let offset = u64::from(block) * BLOCK_SIZE as u64;
            self.sink
                .read(offset, &mut value)
                .map_err(WriteError::io("read back", offset))?;
        }
        Ok(value)
    }

    /// Puts the number of users into the blocks that more than one inode has.
    pub(super) fn finish_sets(&mut self) -> Result<(), WriteError> {
        for set in &self.pool.sets {
            if let Place::Block(block) = set.place
                && set.users > 1
            {
                let mut bytes = self.sink.read_block(block)?;
                if let Ok((header, _)) = XattrBlockHeader::read_from_prefix(&bytes) {
                    seal(&mut bytes, block, set.users, header.h_hash.get());
                    self.sink.rewrite_block(block, &bytes)?;
                }
            }
        }
        Ok(())
    }

    /// How an inode with this set (number + 1) is written.
    pub(super) fn placed(&self, set: u32) -> Placed<'_> {
        let mut placed = Placed {
            in_inode: None,
            block: 0,
            blocks: 0,
        };
        if let Some(number) = set.checked_sub(1) {
            let set = &self.pool.sets[number as usize];
            match set.place {
                Place::Inode(at) => placed.in_inode = Some(self.pool.arena.get(at, INODE_SPACE)),
                Place::Block(block) => (placed.block, placed.blocks) = (block, 1),
            }
            for value in &set.values {
                let slot = slot_of(InodeNumber(*value)).unwrap_or(0);
                placed.blocks += u64::from(self.nodes[slot].blocks);
            }
        }
        placed
    }
}

impl Pool {
    fn content(&self, items: &[Item<'_>]) -> (u64, u64) {
        let half = |which: u8| {
            let mut hasher = self.hasher.build_hasher();
            hasher.write_u8(which);
            for item in items {
                hasher.write_u8(item.index);
                hasher.write_usize(item.name.len());
                hasher.write(item.name);
                hasher.write_usize(item.value.len());
                hasher.write(&item.value);
            }
            hasher.finish()
        };
        (half(0), half(1))
    }
}

/// Blocks a value takes in an inode of its own.
fn value_blocks(size: u64) -> u32 {
    u32::try_from(size.div_ceil(BLOCK_SIZE as u64)).unwrap_or(u32::MAX)
}

/// Checks attributes and brings them into ext4's order and form.
fn items(xattrs: &[Xattr]) -> Result<Vec<Item<'_>>, WriteError> {
    let mut items = Vec::with_capacity(xattrs.len());
    for Xattr { name, value } in xattrs {
        let name_error = || WriteError::XattrName { name: name.clone() };
        let (index, rest) = split_name(name)
            .filter(|(index, rest)| {
                // The namespaces that the kernel gives access to.
                matches!(index, 1..=4 | 6) && rest.len() <= NAME_MAX && !rest.contains(&0)
            })
            .ok_or_else(name_error)?;
        if value.len() > VALUE_MAX {
            return Err(WriteError::XattrTooLarge {
                name: name.clone(),
                len: value.len(),
            });
        }
        let mut item = Item {
            index,
            name: rest,
            value: Cow::Borrowed(value),
            inode: None,
        };
        if matches!(index, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT) {
            let value =
                acl::to_disk(value).ok_or_else(|| WriteError::InvalidAcl { name: name.clone() })?;
            // An ACL without entries is none.
            if value.len() <= 4 {
                continue;
            }
            item.value = Cow::Owned(value);
        }
        items.push(item);
    }
    items.sort_by(|a, b| a.order().cmp(&b.order()));
    for pair in items.windows(2) {
        if pair[0].order() == pair[1].order() {
            return Err(WriteError::XattrTwice {
                name: join_name(pair[0].index, pair[0].name).unwrap_or_default(),
            });
        }
    }
    Ok(items)
}

impl Item<'_> {
    /// The order of entries in a block, by which the kernel searches.
    fn order(&self) -> (u8, usize, &[u8]) {
        (self.index, self.name.len(), self.name)
    }
}

/// Bytes that entries, their end and values take together.
fn space(items: &[Item<'_>]) -> usize {
    let each = |item: &Item<'_>| entry_size(item.name.len()) + value_size(item.value.len());
    items.iter().map(each).sum::<usize>() + 4
}

/// Writes entries from the front and values from the back of `bytes`, whose offsets count from `base` before it. Gives the
/// entries' hashes.
fn lay_out(items: &[Item<'_>], bytes: &mut [u8], base: usize, hashed: bool) -> Vec<u32> {
    let mut front = 0;
    let mut back = bytes.len();
    let mut hashes = Vec::with_capacity(items.len());
    for item in items {
        let len = item.value.len();
        let mut offset = 0;
        if item.inode.is_none() && len > 0 {
            back -= value_size(len);
            bytes[back..back + len].copy_from_slice(&item.value);
            offset = base + back;
        }
        let hash = match item.inode {
            Some((_, checksum)) => entry_hash_of_inode(item.name, checksum),
            None if hashed => entry_hash(item.name, &item.value),
            None => 0,
        };
        hashes.push(hash);
        let entry = XattrEntry {
            e_name_len: u8::try_from(item.name.len()).unwrap_or(u8::MAX),
            e_name_index: item.index,
            e_value_offs: u16::try_from(offset).unwrap_or(0).into(),
            e_value_inum: item.inode.map_or(0, |(number, _)| number).into(),
            e_value_size: u32::try_from(len).unwrap_or(u32::MAX).into(),
            e_hash: hash.into(),
        };
        let (head, rest) = bytes[front..].split_at_mut(ENTRY_SIZE);
        head.copy_from_slice(entry.as_bytes());
        rest[..item.name.len()].copy_from_slice(item.name);
        front += entry_size(item.name.len());
    }
    hashes
}

/// Writes an attribute block's header.
fn seal(bytes: &mut [u8; BLOCK_SIZE], block: u32, users: u32, hash: u32) {
    let mut header = XattrBlockHeader {
        h_magic: MAGIC.into(),
        h_refcount: users.into(),
        h_blocks: 1.into(),
        h_hash: hash.into(),
        h_checksum: 0.into(),
        h_reserved: [0.into(); 3],
    };
    bytes[..BLOCK_HEADER_SIZE].copy_from_slice(header.as_bytes());
    let sum = Checksum::from_seed(CHECKSUM_SEED)
        .u64(block.into())
        .bytes(bytes);
    header.h_checksum = sum.value().into();
    bytes[..BLOCK_HEADER_SIZE].copy_from_slice(header.as_bytes());
}
