//! Inline data: small files and directories in their inodes (kernel: `fs/ext4/inline.c`).
//!
//! The first 60 bytes lie in place of the block map, the rest is the value of the attribute `system.data`, which is there
//! even if empty. A directory has its parent's number in place of `.` and `..`, then entries, in each of the two parts to its end.

use lcow_blockio::WriteAt;
use zerocopy::{FromBytes, IntoBytes};

use super::node::Data;
use super::store::ArenaRef;
use super::xattrs::INODE_SPACE;
use super::{WriteError, Writer};
use crate::format::BLOCK_SIZE;
use crate::format::dir::entry_size;
use crate::format::inode::I_BLOCK_SIZE;
use crate::format::xattr::{ENTRY_SIZE, INDEX_SYSTEM, XattrEntry, value_size};

/// The attribute's name behind `INDEX_SYSTEM`.
const NAME: &[u8; 4] = b"data";
/// Bytes of its entry, and of the end of the list behind it.
const ENTRY: usize = ENTRY_SIZE + NAME.len();
const END: usize = 4;
/// The most data an inode holds.
pub(super) const INLINE_MAX: usize = I_BLOCK_SIZE + INODE_SPACE - ENTRY - END;
/// Where entries begin in a directory.
const PARENT_SIZE: usize = 4;

/// Where the entries end and the values begin in the attribute space of an inode.
fn bounds(area: &[u8]) -> (usize, usize) {
    let (mut front, mut back) = (0, area.len());
    while let Ok((entry, _)) = XattrEntry::ref_from_prefix(area.get(front..).unwrap_or_default()) {
        if entry.e_name_len == 0 && entry.e_name_index == 0 {
            break;
        }
        if entry.e_value_size.get() > 0 && entry.e_value_inum.get() == 0 {
            back = back.min(entry.e_value_offs.get().into());
        }
        front += crate::format::xattr::entry_size(entry.e_name_len.into());
    }
    (front, back)
}

/// The most data that fits beside the attributes `area` of an inode. `None`: not even the entry does.
fn room(area: Option<&[u8]>) -> Option<usize> {
    let (front, back) = area.map_or((0, INODE_SPACE), bounds);
    let value = back.checked_sub(front + ENTRY + END)?;
    Some(I_BLOCK_SIZE + value / 4 * 4)
}

/// Adds the attribute with the part of the data that `i_block` does not hold.
pub(super) fn add(area: Option<&[u8]>, data: &[u8]) -> [u8; INODE_SPACE] {
    let mut bytes = [0; INODE_SPACE];
    if let Some(area) = area {
        bytes.copy_from_slice(area);
    }
    let (front, back) = bounds(&bytes);
    let value = data.get(I_BLOCK_SIZE..).unwrap_or_default();
    let at = back - value_size(value.len());
    bytes[at..at + value.len()].copy_from_slice(value);
    let entry = XattrEntry {
        e_name_len: 4,
        e_name_index: INDEX_SYSTEM,
        e_value_offs: if value.is_empty() {
            0
        } else {
            u16::try_from(at).unwrap_or(0)
        }
        .into(),
        e_value_inum: 0.into(),
        e_value_size: u32::try_from(value.len()).unwrap_or(0).into(),
        e_hash: 0.into(),
    };
    bytes[front..front + ENTRY_SIZE].copy_from_slice(entry.as_bytes());
    bytes[front + ENTRY_SIZE..front + ENTRY].copy_from_slice(NAME);
    bytes
}

impl<D: WriteAt> Writer<D> {
    /// Gives files whose data does not fit beside their attributes blocks after all. Attributes may come after the data, so
    /// this is known at the end.
    pub(super) fn settle_inline(&mut self) -> Result<(), WriteError> {
        for slot in 0..self.nodes.len() {
            let node = self.nodes[slot];
            let Data::Inline(at) = node.data else {
                continue;
            };
            let len = usize::try_from(node.size).unwrap_or(INLINE_MAX);
            if room(self.placed(node.xattrs).in_inode).is_some_and(|room| len <= room) {
                continue;
            }
            let mut block = [0; BLOCK_SIZE];
            block[..len].copy_from_slice(self.inline.get(at, len));
            let block = self.sink.append_block(&block)?;
            let node = &mut self.nodes[slot];
            (node.blocks, node.data) = (1, Data::Run { block, len: 1 });
        }
        Ok(())
    }

    /// Lays a directory's entries into its inode, if they fit.
    pub(super) fn build_inline_directory(
        &mut self,
        slot: u32,
        parent: u32,
        entries: &[u32],
    ) -> bool {
        let area = self.placed(self.nodes[slot].xattrs).in_inode;
        let Some(room) = room(area) else {
            return false;
        };
        let sizes = entries.iter().map(|i| entry_size(self.dirent(*i).1.len()));
        // As many as fit go before the attribute, the rest into it.
        let mut used = PARENT_SIZE;
        let mut first = 0;
        for size in sizes.clone() {
            if used + size > I_BLOCK_SIZE {
                break;
            }
            (used, first) = (used + size, first + 1);
        }
        let rest: usize = sizes.skip(first).sum();
        if I_BLOCK_SIZE + rest > room {
            return false;
        }
        let mut bytes = vec![0; I_BLOCK_SIZE + rest];
        bytes[..PARENT_SIZE].copy_from_slice(&parent.to_le_bytes());
        let (head, tail) = entries.split_at(first);
        self.put_part(&mut bytes[PARENT_SIZE..I_BLOCK_SIZE], head);
        self.put_part(&mut bytes[I_BLOCK_SIZE..], tail);
        let at = self.inline.push(&bytes);
        let node = &mut self.nodes[slot];
        (node.size, node.blocks, node.data) = (bytes.len() as u64, 0, Data::Inline(at));
        true
    }

    /// Fills one part; its last entry, or an empty one, reaches to its end.
    fn put_part(&self, part: &mut [u8], entries: &[u32]) {
        let mut at = 0;
        for (i, index) in entries.iter().enumerate() {
            let (inode, name, file_type) = self.dirent(*index);
            let size = if i + 1 == entries.len() {
                part.len() - at
            } else {
                entry_size(name.len())
            };
            super::directory::put_entry(&mut part[at..at + size], inode, name, file_type, size);
            at += size;
        }
        if entries.is_empty() && !part.is_empty() {
            let size = part.len();
            super::directory::put_entry(part, 0, b"", 0, size);
        }
    }

    /// The data that an inode holds.
    pub(super) fn inline_data(&self, at: ArenaRef, size: u64) -> &[u8] {
        self.inline.get(at, usize::try_from(size).unwrap_or(0))
    }
}
