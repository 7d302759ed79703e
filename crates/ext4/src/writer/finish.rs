//! The end: directories, bitmaps, inode tables, group descriptors, superblock.

use lcow_blockio::WriteAt;
use zerocopy::IntoBytes;

use super::encode::{
    DESCRIPTOR_SIZE, GROUP_MAX, Geometry, Group, INODES_PER_BLOCK, InodeFields, bitmap_checksum,
    set_bits, superblock,
};
use super::extents::{Run, root_of_runs};
use super::node::{Data, DiskTime, Kind, Node};
use super::options::{Identity, Summary};
use super::{BLOCKS_MAX, WriteError, Writer, inline, inode_of};
use crate::FileType;
use crate::format::group::{BLOCK_UNINIT, GroupDescriptor, INODE_UNINIT, INODE_ZEROED};
use crate::format::inode::{I_BLOCK_SIZE, flags};
use crate::format::superblock::{
    FIRST_INODE, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, compat, incompat, ro_compat,
};
use crate::format::{BLOCK_SIZE, LINK_MAX};

/// What the maximum size decides.
pub(super) struct Limits {
    /// Where data may begin, in bytes: behind the superblock and the descriptors of all groups there could be.
    pub(super) data_start: u64,
    pub(super) max_inodes: u32,
}

impl Limits {
    pub(super) fn new(max_blocks: u64) -> Self {
        let groups = Self::groups(max_blocks);
        let descriptors = (groups * DESCRIPTOR_SIZE as u64).next_multiple_of(BLOCK_SIZE as u64);
        let max_inodes = groups * u64::from(GROUP_MAX);
        Self {
            data_start: BLOCK_SIZE as u64 + descriptors,
            max_inodes: u32::try_from(max_inodes).unwrap_or(u32::MAX - GROUP_MAX),
        }
    }

    /// As many groups as the blocks need; and of a small maximum, as many as could be full of inodes (a table takes 2,048 blocks),
    /// up to 2,048 groups, which is 67 million inodes.
    fn groups(max_blocks: u64) -> u64 {
        let for_blocks = max_blocks.div_ceil(u64::from(GROUP_MAX));
        let for_inodes = max_blocks.div_ceil(u64::from(GROUP_MAX / INODES_PER_BLOCK));
        for_blocks.max(for_inodes.min(2048))
    }
}

impl<D: WriteAt> Writer<D> {
    /// Writes directories, bitmaps, inodes and the superblock, and sets the disk's length. Does not sync.
    pub fn finish(mut self, identity: &Identity) -> Result<Summary, WriteError> {
        self.refuse_open()?;
        self.finish_sets()?;
        self.settle_inline()?;
        let mut large_dir = false;
        for slot in 0..self.nodes.len() {
            large_dir |= self.build_directory(slot, &identity.hash_seed)?;
        }
        let metadata_start = u64::from(self.sink.block());
        let geometry = self.geometry(metadata_start)?;
        let free = self.free_ranges(&geometry);
        let mut groups = self.lay_out_groups(&geometry, metadata_start);
        let free_blocks = self.write_block_bitmaps(&geometry, &free, &mut groups)?;
        let free_inodes = self.write_inode_bitmaps(&geometry, &mut groups)?;
        self.write_inodes()?;
        self.sink.finish()?;

        let descriptors: Vec<GroupDescriptor> = (0..)
            .zip(&groups)
            .map(|(number, group)| group.descriptor(number))
            .collect();
        let disk = self.sink.disk();
        let place = BLOCK_SIZE as u64;
        disk.write_all_at(place, descriptors.as_bytes())
            .map_err(WriteError::io("write", place))?;
        let mut sb = superblock(
            &geometry,
            free_blocks,
            free_inodes,
            identity.uuid,
            identity.hash_seed,
        );
        sb.s_feature_compat |= compat::SPARSE_SUPER2;
        if self
            .nodes
            .iter()
            .any(|node| node.kind == Kind::Value && node.mode != 0)
        {
            sb.s_feature_incompat |= incompat::EA_INODE;
        }
        let is_inline = |node: &Node| matches!(node.data, Data::Inline(_));
        if self.nodes.iter().any(is_inline) {
            sb.s_feature_incompat |= incompat::INLINE_DATA;
        }
        if large_dir {
            sb.s_feature_incompat |= incompat::LARGEDIR;
        }
        if self.read_only {
            sb.s_feature_ro_compat |= ro_compat::READONLY;
        }
        sb.s_checksum = sb.checksum().into();
        let mut first_block = [0; BLOCK_SIZE];
        let at = usize::try_from(SUPERBLOCK_OFFSET).unwrap_or(0);
        first_block[at..at + SUPERBLOCK_SIZE].copy_from_slice(sb.as_bytes());
        disk.write_all_at(0, &first_block)
            .map_err(WriteError::io("write", 0))?;
        let size_bytes = geometry.blocks * BLOCK_SIZE as u64;
        disk.set_len(size_bytes)
            .map_err(WriteError::io("set the length", size_bytes))?;
        Ok(Summary {
            size_bytes,
            blocks: geometry.blocks,
            free_blocks,
            inodes: geometry.groups * geometry.inodes_per_group,
            free_inodes,
        })
    }

    /// Divides the filesystem: groups of the usual size, or more and smaller ones where the inodes need them.
    fn geometry(&self, metadata_start: u64) -> Result<Geometry, WriteError> {
        let inodes = self.next_inode() - 1;
        let mut groups = inodes.div_ceil(GROUP_MAX).max(1);
        loop {
            let inodes_per_group = inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
            let per_group = 2 + inodes_per_group / INODES_PER_BLOCK;
            let blocks = metadata_start + u64::from(groups) * u64::from(per_group);
            let needed = u32::try_from(blocks.div_ceil(u64::from(GROUP_MAX)))
                .map_err(|_| self.sink.too_large())?;
            if needed > groups {
                groups = needed;
                continue;
            }
            let mut geometry = Geometry {
                blocks,
                groups,
                blocks_per_group: GROUP_MAX,
                inodes_per_group,
            };
            if needed < groups {
                // A group has a multiple of 8 blocks; the last few may then be beyond what is needed, and free.
                let even = blocks.div_ceil(u64::from(groups)).next_multiple_of(8);
                geometry.blocks_per_group = u32::try_from(even).unwrap_or(GROUP_MAX).min(GROUP_MAX);
                geometry.blocks = u64::from(groups) * u64::from(geometry.blocks_per_group);
            }
            if geometry.blocks > BLOCKS_MAX || geometry.blocks * BLOCK_SIZE as u64 > self.max_size {
                return Err(self.sink.too_large());
            }
            return Ok(geometry);
        }
    }

    /// What holds nothing, as ascending ranges of blocks: the descriptors' reserve, what was deleted, and the end.
    fn free_ranges(&mut self, geometry: &Geometry) -> Vec<(u64, u64)> {
        let reserve = 1 + u64::from(geometry.descriptor_blocks());
        let data_start =
            Limits::new(self.max_size / BLOCK_SIZE as u64).data_start / BLOCK_SIZE as u64;
        let mut free = vec![(reserve, data_start)];
        self.freed.sort_unstable();
        for (first, len) in &self.freed {
            let first = u64::from(*first);
            free.push((first, first + u64::from(*len)));
        }
        let per_group = u64::from(2 + geometry.table_blocks());
        let used = u64::from(self.sink.block()) + u64::from(geometry.groups) * per_group;
        free.push((used, geometry.blocks));
        free
    }

    /// Bitmaps and tables of all groups, kind by kind, from `start` on.
    fn lay_out_groups(&self, geometry: &Geometry, start: u64) -> Vec<Group> {
        let count = u64::from(geometry.groups);
        (0..count)
            .map(|number| Group {
                block_bitmap: start + number,
                inode_bitmap: start + count + number,
                inode_table: start + 2 * count + number * u64::from(geometry.table_blocks()),
                flags: INODE_ZEROED,
                ..Group::default()
            })
            .collect()
    }

    fn write_block_bitmaps(
        &mut self,
        geometry: &Geometry,
        free: &[(u64, u64)],
        groups: &mut [Group],
    ) -> Result<u64, WriteError> {
        let mut total = 0;
        let mut ranges = free.iter().copied().filter(|(a, b)| a < b).peekable();
        for (number, group) in (0..).zip(groups) {
            let start = u64::from(number) * u64::from(geometry.blocks_per_group);
            let len = geometry.group_len(number);
            let end = start + u64::from(len);
            // Blocks of this group within it: less than 2^15.
            let within = |block: u64| u32::try_from(block.clamp(start, end) - start).unwrap_or(len);
            let mut bitmap = [0; BLOCK_SIZE];
            let mut used_from = 0;
            while let Some((from, to)) = ranges.peek().copied()
                && from < end
            {
                set_bits(&mut bitmap, used_from, within(from));
                group.free_blocks += within(to) - within(from);
                used_from = within(to);
                if to > end {
                    break;
                }
                ranges.next();
            }
            set_bits(&mut bitmap, used_from, len);
            total += u64::from(group.free_blocks);
            if group.free_blocks == len {
                // Nothing of the group is in use, and the kernel can tell without a bitmap.
                group.flags |= BLOCK_UNINIT;
                self.sink.append(&[0; BLOCK_SIZE])?;
                continue;
            }
            set_bits(&mut bitmap, len, GROUP_MAX);
            group.block_bitmap_checksum = bitmap_checksum(&bitmap, geometry.blocks_per_group);
            self.sink.append(&bitmap)?;
        }
        Ok(total)
    }

    fn write_inode_bitmaps(
        &mut self,
        geometry: &Geometry,
        groups: &mut [Group],
    ) -> Result<u32, WriteError> {
        let per_group = geometry.inodes_per_group;
        let mut total = 0;
        // Reserved inodes but the root count as used, as everywhere; the root's node comes first, then inode 11's.
        let mut nodes = self.nodes.iter();
        let root_is_directory = u32::from(nodes.next().is_some());
        let mut number = 1;
        let mut written = Vec::new();
        for (index, group) in groups.iter_mut().enumerate() {
            let mut bitmap = [0; BLOCK_SIZE];
            let (mut used, mut last_used) = (0, 0);
            for bit in 0..per_group {
                let (in_use, directory) = if number < FIRST_INODE {
                    (true, number == 2 && root_is_directory == 1)
                } else {
                    nodes.next().map_or((false, false), |node| {
                        let directory = node.file_type() == Some(FileType::Directory);
                        (node.mode != 0, directory)
                    })
                };
                number += 1;
                if in_use {
                    bitmap[bit as usize / 8] |= 1 << (bit % 8);
                    used += 1;
                    last_used = bit + 1;
                    group.directories += u32::from(directory);
                }
            }
            group.free_inodes = per_group - used;
            group.unused_inodes = per_group - last_used;
            total += group.free_inodes;
            if used == 0 {
                group.flags |= INODE_UNINIT;
                bitmap = [0; BLOCK_SIZE];
            } else {
                set_bits(&mut bitmap, per_group, GROUP_MAX);
                group.inode_bitmap_checksum = bitmap_checksum(&bitmap, per_group);
            }
            written.extend_from_slice(&bitmap);
            if written.len() >= 1 << 18 || index + 1 == geometry.groups as usize {
                self.sink.append(&written)?;
                written.clear();
            }
        }
        Ok(total)
    }

    /// Writes the inode tables, which lie one after another, up to the last inode in use.
    fn write_inodes(&mut self) -> Result<(), WriteError> {
        let mut block = [0; BLOCK_SIZE];
        let mut filled = 0;
        let mut next = 1;
        for slot in 0..self.nodes.len() {
            let number = inode_of(slot).0;
            while next <= number {
                let bytes = if next == number && self.nodes[slot].mode != 0 {
                    self.encode_inode(slot, number)
                } else {
                    [0; 256]
                };
                block[filled..filled + 256].copy_from_slice(&bytes);
                filled += 256;
                next += 1;
                if filled == BLOCK_SIZE {
                    self.sink.append(&block)?;
                    block = [0; BLOCK_SIZE];
                    filled = 0;
                }
            }
        }
        if filled > 0 {
            self.sink.append(&block)?;
        }
        Ok(())
    }

    fn encode_inode(&self, slot: u32, number: u32) -> [u8; 256] {
        let node = &self.nodes[slot];
        let [mut atime, mut mtime, mut ctime] = node.times(&self.times);
        let placed = self.placed(node.xattrs);
        let mut crtime = mtime;
        let mut version = 0;
        if let Data::Value { checksum, .. } = node.data {
            // Kernel: ext4_xattr_inode_set_hash, ext4_xattr_inode_set_ref.
            let plain = |seconds| DiskTime { seconds, extra: 0 };
            (atime, mtime, ctime, crtime) = (plain(checksum), plain(0), plain(0), plain(0));
            version = 1;
        }
        let with_data;
        let mut in_inode = placed.in_inode;
        if let Data::Inline(at) = node.data {
            with_data = inline::add(in_inode, self.inline_data(at, node.size));
            in_inode = Some(&with_data);
        }
        let directory = node.file_type() == Some(FileType::Directory);
        // `dir_nlink`: one link stands for more than can be counted.
        let links = if directory && node.links > LINK_MAX {
            1
        } else {
            node.links
        };
        InodeFields {
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            size: node.size,
            sectors: (u64::from(node.blocks) + placed.blocks) * (BLOCK_SIZE as u64 / 512),
            links: u16::try_from(links).unwrap_or(u16::MAX),
            flags: inode_flags(node),
            version,
            atime,
            mtime,
            ctime,
            crtime,
            content: self.content(node),
            xattr_block: placed.block,
            xattrs: in_inode,
        }
        .encode(number)
    }

    /// `i_block`.
    fn content(&self, node: &Node) -> [u8; I_BLOCK_SIZE] {
        let mut bytes = [0; I_BLOCK_SIZE];
        match node.data {
            Data::Run { block, len } => {
                let (logical, len) = (0, len.into());
                return root_of_runs(&[Run {
                    logical,
                    block,
                    len,
                }]);
            }
            Data::Value { block, .. } => {
                let (logical, len) = (0, node.blocks);
                return root_of_runs(&[Run {
                    logical,
                    block,
                    len,
                }]);
            }
            Data::Tree(index) => return self.trees[index],
            Data::Target(at) => {
                let len = usize::try_from(node.size).unwrap_or(0);
                bytes[..len].copy_from_slice(self.targets.get(at, len));
            }
            Data::Inline(at) => {
                let data = self.inline_data(at, node.size);
                let len = data.len().min(I_BLOCK_SIZE);
                bytes[..len].copy_from_slice(&data[..len]);
            }
            Data::Device([first, second]) => {
                bytes[..4].copy_from_slice(&first.to_le_bytes());
                bytes[4..8].copy_from_slice(&second.to_le_bytes());
            }
            Data::None if inode_flags(node) & flags::EXTENTS != 0 => return root_of_runs(&[]),
            Data::None | Data::Directory { .. } => {}
        }
        bytes
    }
}

fn inode_flags(node: &Node) -> u32 {
    let extents = match (node.file_type(), node.data) {
        (_, Data::Inline(_)) => flags::INLINE_DATA,
        (Some(FileType::Regular | FileType::Directory), _) | (_, Data::Run { .. }) => {
            flags::EXTENTS
        }
        _ => 0,
    };
    extents
        | match node.kind {
            Kind::Plain => 0,
            Kind::Indexed => flags::INDEX,
            Kind::Value => flags::EA_INODE,
        }
}
