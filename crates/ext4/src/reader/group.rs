//! Group descriptors, and the blocks that no file may own.

use lcow_blockio::ReadAt;

use zerocopy::FromBytes;

use super::error::{Objections, ReadError, Structure};
use super::num::{div, index, join16, join32, rem};
use super::source::Source;
use super::superblock::Superblock;
use crate::format::group::{GroupDescriptor, INODE_UNINIT};
use crate::format::superblock::{SUPERBLOCK_OFFSET, incompat};

/// Descriptors are read in pieces of at most this many bytes.
const PIECE: u64 = 1 << 20;

/// Where a group's metadata lies. Blocks are checked to be inside the filesystem.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// Whether all of it is where it may be; else only a verifier gets to see the group.
    pub(crate) in_place: bool,
    /// `bg_flags`.
    pub(crate) flags: u16,
    /// Clusters, as the descriptor has them.
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) directories: u32,
    pub(crate) unused_inodes: u32,
    pub(crate) block_bitmap_checksum: u32,
    pub(crate) inode_bitmap_checksum: u32,
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
    /// How many inodes of the table have ever been used, where the descriptor says so; else all.
    pub(crate) used_inodes: u32,
}

/// Reads the descriptors of all groups, or of the first only. With `objections`, checksums are checked.
pub(crate) fn read_groups<R: ReadAt>(
    source: &Source<R>,
    superblock: &Superblock,
    count: u32,
    mut objections: Option<&mut Objections>,
) -> Result<Vec<Group>, ReadError> {
    let size = superblock.descriptor_size;
    let per_block = div(superblock.block_size, size).max(1);
    let meta_bg = superblock.has_incompat(incompat::META_BG);
    let mut groups = Vec::new();
    let mut buf = Vec::new();
    let mut next = 0_u64;
    let count = u64::from(count);
    while next < count {
        // One block at a time where every block has its own place, else as much as a piece holds.
        let block = div(next, per_block);
        let spread = meta_bg && block >= superblock.first_meta_bg;
        let end = if spread {
            next.saturating_add(per_block)
        } else if meta_bg {
            superblock.first_meta_bg.saturating_mul(per_block)
        } else {
            count
        };
        let end = end
            .min(count)
            .min(next.saturating_add(div(PIECE, size).max(per_block)));
        let offset = descriptor_offset(superblock, next);
        let bytes = end.saturating_sub(next).saturating_mul(size);
        let disk = superblock.blocks.saturating_mul(superblock.block_size);
        if offset.saturating_add(bytes) > disk {
            let number = u32::try_from(next).unwrap_or(u32::MAX);
            let detail = "its descriptor lies past the last block";
            return Err(ReadError::corrupt(
                Structure::GroupDescriptor(number),
                offset,
                detail,
            ));
        }
        buf.resize(index(bytes), 0);
        source.read("read group descriptors", offset, &mut buf)?;
        for (raw, number) in buf.chunks_exact(index(size)).zip(next..end) {
            let at = offset.saturating_add(number.saturating_sub(next).saturating_mul(size));
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            groups.push(parse(
                superblock,
                number,
                raw,
                at,
                objections.as_deref_mut(),
            )?);
        }
        next = end;
    }
    Ok(groups)
}

/// Where the descriptor of `group` lies, in bytes (Linux `descriptor_loc`).
fn descriptor_offset(superblock: &Superblock, group: u64) -> u64 {
    let per_block = div(superblock.block_size, superblock.descriptor_size).max(1);
    let block = div(group, per_block);
    let super_block = div(SUPERBLOCK_OFFSET, superblock.block_size);
    let meta_bg = superblock.has_incompat(incompat::META_BG);
    let place = if !meta_bg || block < superblock.first_meta_bg {
        super_block.saturating_add(1).saturating_add(block)
    } else {
        let first = block.saturating_mul(per_block);
        let start = first
            .saturating_mul(superblock.blocks_per_group)
            .saturating_add(superblock.first_data_block);
        let number = u32::try_from(first).unwrap_or(u32::MAX);
        let mut skip = u64::from(superblock.has_super(number));
        if superblock.block_size == 1024 && block == 0 && superblock.first_data_block == 0 {
            skip = skip.saturating_add(1);
        }
        start.saturating_add(skip)
    };
    place
        .saturating_mul(superblock.block_size)
        .saturating_add(rem(group, per_block).saturating_mul(superblock.descriptor_size))
}

fn parse(
    superblock: &Superblock,
    number: u32,
    raw: &[u8],
    offset: u64,
    mut objections: Option<&mut Objections>,
) -> Result<Group, ReadError> {
    let corrupt =
        |detail: String| ReadError::corrupt(Structure::GroupDescriptor(number), offset, detail);
    let mut fields = [0; size_of::<GroupDescriptor>()];
    for (to, from) in fields.iter_mut().zip(raw) {
        *to = *from;
    }
    let Ok(fields) = GroupDescriptor::ref_from_bytes(&fields) else {
        return Err(corrupt("the descriptor is not whole".to_owned()));
    };
    let stored = fields.bg_checksum.get();
    // `tune2fs -O uninit_bg` leaves the checksums to the e2fsck that it asks for.
    let pending = !superblock.checksums() && !superblock.clean && stored == 0;
    let sum = superblock.descriptor_checksum(number, raw);
    if let Some(objections) = objections.as_deref_mut()
        && !pending
        && sum.is_some_and(|sum| sum != stored)
    {
        objections.object(corrupt("the checksum does not match".to_owned()))?;
    }
    let wide = |high: zerocopy::little_endian::U32, low: zerocopy::little_endian::U32| {
        join32(high.get(), low.get())
    };
    let mut group = Group {
        in_place: true,
        flags: fields.bg_flags.get(),
        free_blocks: join16(
            fields.bg_free_blocks_count_hi.get(),
            fields.bg_free_blocks_count_lo.get(),
        ),
        free_inodes: join16(
            fields.bg_free_inodes_count_hi.get(),
            fields.bg_free_inodes_count_lo.get(),
        ),
        directories: join16(
            fields.bg_used_dirs_count_hi.get(),
            fields.bg_used_dirs_count_lo.get(),
        ),
        unused_inodes: join16(
            fields.bg_itable_unused_hi.get(),
            fields.bg_itable_unused_lo.get(),
        ),
        block_bitmap_checksum: join16(
            fields.bg_block_bitmap_csum_hi.get(),
            fields.bg_block_bitmap_csum_lo.get(),
        ),
        inode_bitmap_checksum: join16(
            fields.bg_inode_bitmap_csum_hi.get(),
            fields.bg_inode_bitmap_csum_lo.get(),
        ),
        block_bitmap: wide(fields.bg_block_bitmap_hi, fields.bg_block_bitmap_lo),
        inode_bitmap: wide(fields.bg_inode_bitmap_hi, fields.bg_inode_bitmap_lo),
        inode_table: wide(fields.bg_inode_table_hi, fields.bg_inode_table_lo),
        used_inodes: if !superblock.checked_descriptors() {
            superblock.inodes_per_group
        } else if fields.bg_flags.get() & INODE_UNINIT != 0 {
            0
        } else {
            superblock.inodes_per_group.saturating_sub(join16(
                fields.bg_itable_unused_hi.get(),
                fields.bg_itable_unused_lo.get(),
            ))
        },
    };
    let (first, last) = if superblock.has_incompat(incompat::FLEX_BG) {
        (superblock.first_data_block, superblock.blocks)
    } else {
        let first = u64::from(number)
            .saturating_mul(superblock.blocks_per_group)
            .saturating_add(superblock.first_data_block);
        let last = first.saturating_add(superblock.blocks_per_group);
        (first, last.min(superblock.blocks))
    };
    for (what, start, len) in [
        ("block bitmap", group.block_bitmap, 1),
        ("inode bitmap", group.inode_bitmap, 1),
        ("inode table", group.inode_table, table_blocks(superblock)),
    ] {
        // Block 0 has the superblock: zeros where a descriptor should be must not pass for one.
        if start < first.max(1) || start.saturating_add(len) > last {
            let error = corrupt(format!(
                "the {what} at block {start} is not in blocks {first}..{last}"
            ));
            match objections.as_deref_mut() {
                Some(objections) => objections.object(error)?,
                None => return Err(error),
            }
            (group.in_place, group.used_inodes) = (false, 0);
        }
    }
    Ok(group)
}

/// Blocks of a group's inode table.
pub(crate) fn table_blocks(superblock: &Superblock) -> u64 {
    u64::from(superblock.inodes_per_group)
        .saturating_mul(superblock.inode_size)
        .div_ceil(superblock.block_size)
}

impl Superblock {
    /// The first block of a group, and how many from it on hold the superblock, descriptors, and room for more descriptors.
    pub(crate) fn base(&self, group: u32) -> (u64, u64) {
        let per_block = div(self.block_size, self.descriptor_size).max(1);
        let start = u64::from(group)
            .saturating_mul(self.blocks_per_group)
            .saturating_add(self.first_data_block);
        let backup = u64::from(self.has_super(group));
        let metagroup = div(u64::from(group), per_block);
        let meta_bg = self.has_incompat(incompat::META_BG);
        let len = if meta_bg && metagroup >= self.first_meta_bg {
            let place = rem(u64::from(group), per_block);
            let holds = place <= 1 || place.saturating_add(1) == per_block;
            backup.saturating_add(u64::from(holds))
        } else if backup == 1 {
            let old_style = if meta_bg {
                self.first_meta_bg
            } else {
                u64::from(self.groups).div_ceil(per_block)
            };
            old_style
                .saturating_add(1)
                .saturating_add(self.reserved_gdt_blocks)
        } else {
            0
        };
        // Of a first group that begins before the superblock, the block before it is not free either.
        let before = group == 0 && self.block_size == 1024 && self.first_data_block == 0;
        (start, len.saturating_add(u64::from(before)))
    }
}

/// The blocks that belong to the filesystem itself, as sorted, disjoint ranges (Linux `ext4_setup_system_zone`).
#[derive(Debug)]
pub(crate) struct SystemZone(Vec<(u64, u64)>);

impl SystemZone {
    /// `journal`: the journal's own blocks as (first, length).
    pub(crate) fn new(
        superblock: &Superblock,
        groups: &[Group],
        journal: impl Iterator<Item = (u64, u64)>,
    ) -> Self {
        // Up to the superblock nothing is a file's, whatever the first data block.
        let mut ranges: Vec<(u64, u64)> = vec![(
            0,
            div(SUPERBLOCK_OFFSET, superblock.block_size).saturating_add(1),
        )];
        let mut add = |start: u64, len: u64| {
            // An empty range would lie in the middle of a run that crosses it.
            if len > 0 {
                ranges.push((start, start.saturating_add(len)));
            }
        };
        for (group, number) in groups.iter().zip(0_u32..) {
            let (start, base) = superblock.base(number);
            add(start, base);
            add(group.block_bitmap, 1);
            add(group.inode_bitmap, 1);
            add(group.inode_table, table_blocks(superblock));
        }
        for (start, len) in journal {
            add(start, len);
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        merged.shrink_to_fit();
        Self(merged)
    }

    /// Whether any of `len` blocks from `start` is the filesystem's own.
    pub(crate) fn overlaps(&self, start: u64, len: u64) -> bool {
        let end = start.saturating_add(len);
        let after = self.0.partition_point(|range| range.1 <= start);
        self.0.get(after).is_some_and(|range| range.0 < end)
    }
}

/// The byte offset of a descriptor, for messages about it.
pub(crate) fn locate(superblock: &Superblock, group: u32) -> u64 {
    descriptor_offset(superblock, u64::from(group))
}
