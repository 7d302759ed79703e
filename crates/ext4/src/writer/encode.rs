//! What the writer and `mkfs` write alike: superblock, descriptors, inodes.

use zerocopy::IntoBytes;

use super::CHECKSUM_SEED;
use super::node::DiskTime;
use crate::format::group::GroupDescriptor;
use crate::format::inode::{EXTRA_ISIZE, FIELDS_SIZE, I_BLOCK_SIZE, INODE_SIZE, Inode};
use crate::format::superblock::{
    CHECKSUM_CRC32C, ERRORS_CONTINUE, FIRST_INODE, FLAG_SIGNED_HASH, HASH_HALF_MD4, MAGIC,
    REV_DYNAMIC, STATE_CLEAN, Superblock, compat, incompat, ro_compat,
};
use crate::format::xattr::{self, INODE_HEADER_SIZE};
use crate::format::{BLOCK_SIZE, Checksum};

/// Size of a group descriptor.
pub(crate) const DESCRIPTOR_SIZE: usize = 64;
/// Blocks of a group at most: what a bitmap of one block holds. Also its inodes at most.
pub(crate) const GROUP_MAX: u32 = 32_768;
/// Inodes in a block of an inode table.
pub(crate) const INODES_PER_BLOCK: u32 = 16;
/// Group descriptors in a block.
const DESCRIPTORS_PER_BLOCK: u32 = 64;
const _: () = assert!(GROUP_MAX as usize == 8 * BLOCK_SIZE);
const _: () = assert!(INODES_PER_BLOCK as usize * INODE_SIZE == BLOCK_SIZE);
const _: () = assert!(DESCRIPTORS_PER_BLOCK as usize * DESCRIPTOR_SIZE == BLOCK_SIZE);
/// Groups of a flexible group = 1 << this, as `mke2fs` has it.
pub(crate) const LOG_GROUPS_PER_FLEX: u8 = 4;

/// The lower and upper half of a 64-bit number that two fields hold.
pub(crate) fn halves(n: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = n.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

/// The lower and upper half of a 32-bit number that two fields hold.
pub(crate) fn halves16(n: u32) -> (u16, u16) {
    let [a, b, c, d] = n.to_le_bytes();
    (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
}

/// The start value of all checksums.
pub(crate) fn seed() -> Checksum {
    Checksum::from_seed(CHECKSUM_SEED)
}

/// How a filesystem is divided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) blocks: u64,
    pub(crate) groups: u32,
    pub(crate) blocks_per_group: u32,
    pub(crate) inodes_per_group: u32,
}

impl Geometry {
    /// Blocks of the descriptors.
    pub(crate) fn descriptor_blocks(&self) -> u32 {
        self.groups.div_ceil(DESCRIPTORS_PER_BLOCK)
    }

    /// Blocks of a group's inode table.
    pub(crate) fn table_blocks(&self) -> u32 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// Blocks in a group: fewer in the last.
    pub(crate) fn group_len(&self, group: u32) -> u32 {
        let left = self.blocks - u64::from(group) * u64::from(self.blocks_per_group);
        u32::try_from(left).map_or(self.blocks_per_group, |left| {
            left.min(self.blocks_per_group)
        })
    }
}

/// A superblock with all that is common; its checksum is still to be set.
pub(crate) fn superblock(
    geometry: &Geometry,
    free_blocks: u64,
    free_inodes: u32,
    uuid: [u8; 16],
    hash_seed: [u8; 16],
) -> Superblock {
    let mut sb = Superblock::zeroed();
    sb.s_inodes_count = (geometry.groups * geometry.inodes_per_group).into();
    let (lo, hi) = halves(geometry.blocks);
    (sb.s_blocks_count_lo, sb.s_blocks_count_hi) = (lo.into(), hi.into());
    let (lo, hi) = halves(free_blocks);
    (sb.s_free_blocks_count_lo, sb.s_free_blocks_count_hi) = (lo.into(), hi.into());
    sb.s_free_inodes_count = free_inodes.into();
    sb.s_log_block_size = 2.into();
    sb.s_log_cluster_size = 2.into();
    sb.s_blocks_per_group = geometry.blocks_per_group.into();
    sb.s_clusters_per_group = geometry.blocks_per_group.into();
    sb.s_inodes_per_group = geometry.inodes_per_group.into();
    sb.s_max_mnt_count = u16::MAX.into();
    sb.s_magic = MAGIC.into();
    sb.s_state = STATE_CLEAN.into();
    sb.s_errors = ERRORS_CONTINUE.into();
    sb.s_rev_level = REV_DYNAMIC.into();
    sb.s_first_ino = FIRST_INODE.into();
    sb.s_inode_size = 256.into();
    sb.s_feature_compat = (compat::EXT_ATTR | compat::DIR_INDEX).into();
    sb.s_feature_incompat = (incompat::FILETYPE
        | incompat::EXTENTS
        | incompat::BIT64
        | incompat::FLEX_BG
        | incompat::CSUM_SEED)
        .into();
    sb.s_feature_ro_compat = (ro_compat::LARGE_FILE
        | ro_compat::HUGE_FILE
        | ro_compat::DIR_NLINK
        | ro_compat::EXTRA_ISIZE
        | ro_compat::METADATA_CSUM)
        .into();
    sb.s_uuid = uuid;
    sb.s_hash_seed = hash_seed;
    sb.s_def_hash_version = HASH_HALF_MD4;
    sb.s_desc_size = 64.into();
    sb.s_min_extra_isize = EXTRA_ISIZE.into();
    sb.s_want_extra_isize = EXTRA_ISIZE.into();
    sb.s_flags = FLAG_SIGNED_HASH.into();
    sb.s_log_groups_per_flex = LOG_GROUPS_PER_FLEX;
    sb.s_checksum_type = CHECKSUM_CRC32C;
    sb.s_checksum_seed = CHECKSUM_SEED.into();
    sb
}

/// What a group's descriptor says.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Group {
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) directories: u32,
    /// Inodes at the end of the table that were never used.
    pub(crate) unused_inodes: u32,
    pub(crate) flags: u16,
    /// crc32c of the bitmaps; 0 for one that isn't on the disk.
    pub(crate) block_bitmap_checksum: u32,
    pub(crate) inode_bitmap_checksum: u32,
}

impl Group {
    pub(crate) fn descriptor(&self, number: u32) -> GroupDescriptor {
        let mut d = GroupDescriptor::zeroed();
        let (lo, hi) = halves(self.block_bitmap);
        (d.bg_block_bitmap_lo, d.bg_block_bitmap_hi) = (lo.into(), hi.into());
        let (lo, hi) = halves(self.inode_bitmap);
        (d.bg_inode_bitmap_lo, d.bg_inode_bitmap_hi) = (lo.into(), hi.into());
        let (lo, hi) = halves(self.inode_table);
        (d.bg_inode_table_lo, d.bg_inode_table_hi) = (lo.into(), hi.into());
        let (lo, hi) = halves16(self.free_blocks);
        (d.bg_free_blocks_count_lo, d.bg_free_blocks_count_hi) = (lo.into(), hi.into());
        let (lo, hi) = halves16(self.free_inodes);
        (d.bg_free_inodes_count_lo, d.bg_free_inodes_count_hi) = (lo.into(), hi.into());
        let (lo, hi) = halves16(self.directories);
        (d.bg_used_dirs_count_lo, d.bg_used_dirs_count_hi) = (lo.into(), hi.into());
        let (lo, hi) = halves16(self.unused_inodes);
        (d.bg_itable_unused_lo, d.bg_itable_unused_hi) = (lo.into(), hi.into());
        d.bg_flags = self.flags.into();
        let (lo, hi) = halves16(self.block_bitmap_checksum);
        (d.bg_block_bitmap_csum_lo, d.bg_block_bitmap_csum_hi) = (lo.into(), hi.into());
        let (lo, hi) = halves16(self.inode_bitmap_checksum);
        (d.bg_inode_bitmap_csum_lo, d.bg_inode_bitmap_csum_hi) = (lo.into(), hi.into());
        d.bg_checksum = GroupDescriptor::checksum_crc32c(seed(), number, d.as_bytes()).into();
        d
    }
}

/// The checksum of a bitmap that stands for `bits` blocks or inodes: the padding behind them is not covered.
pub(crate) fn bitmap_checksum(bitmap: &[u8], bits: u32) -> u32 {
    seed().bytes(&bitmap[..bits as usize / 8]).value()
}

/// Sets bits `from..to`.
pub(crate) fn set_bits(bitmap: &mut [u8], from: u32, to: u32) {
    let (from, to) = (from as usize, to as usize);
    if from >= to {
        return;
    }
    let (first, last) = (from / 8, to / 8);
    let low = 0xffu8 << (from % 8);
    let high = !(0xffu8 << (to % 8));
    if first == last {
        bitmap[first] |= low & high;
        return;
    }
    bitmap[first] |= low;
    bitmap[first + 1..last].fill(0xff);
    if high != 0 {
        bitmap[last] |= high;
    }
}

/// An inode about to be written.
#[derive(Debug, Clone)]
pub(crate) struct InodeFields<'a> {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    /// In units of 512 bytes.
    pub(crate) sectors: u64,
    pub(crate) links: u16,
    pub(crate) flags: u32,
    pub(crate) version: u32,
    pub(crate) atime: DiskTime,
    pub(crate) mtime: DiskTime,
    pub(crate) ctime: DiskTime,
    pub(crate) crtime: DiskTime,
    pub(crate) content: [u8; I_BLOCK_SIZE],
    pub(crate) xattr_block: u32,
    /// Entries and values behind the fields.
    pub(crate) xattrs: Option<&'a [u8]>,
}

impl InodeFields<'_> {
    /// The inode as it lies in the table.
    pub(crate) fn encode(&self, number: u32) -> [u8; INODE_SIZE] {
        let mut raw = Inode::zeroed();
        raw.i_mode = self.mode.into();
        let (lo, hi) = halves16(self.uid);
        (raw.i_uid, raw.i_uid_high) = (lo.into(), hi.into());
        let (lo, hi) = halves16(self.gid);
        (raw.i_gid, raw.i_gid_high) = (lo.into(), hi.into());
        let (lo, hi) = halves(self.size);
        (raw.i_size_lo, raw.i_size_high) = (lo.into(), hi.into());
        let (lo, hi) = halves(self.sectors);
        (raw.i_blocks_lo, raw.i_blocks_high) = (lo.into(), halves16(hi).0.into());
        raw.i_links_count = self.links.into();
        raw.i_flags = self.flags.into();
        raw.i_version_lo = self.version.into();
        raw.i_block = self.content;
        raw.i_file_acl_lo = self.xattr_block.into();
        raw.i_extra_isize = EXTRA_ISIZE.into();
        (raw.i_atime, raw.i_atime_extra) = (self.atime.seconds.into(), self.atime.extra.into());
        (raw.i_mtime, raw.i_mtime_extra) = (self.mtime.seconds.into(), self.mtime.extra.into());
        (raw.i_ctime, raw.i_ctime_extra) = (self.ctime.seconds.into(), self.ctime.extra.into());
        (raw.i_crtime, raw.i_crtime_extra) = (self.crtime.seconds.into(), self.crtime.extra.into());
        let mut bytes = [0; INODE_SIZE];
        bytes[..FIELDS_SIZE].copy_from_slice(raw.as_bytes());
        if let Some(xattrs) = self.xattrs {
            let (magic, space) = bytes[FIELDS_SIZE..].split_at_mut(INODE_HEADER_SIZE);
            magic.copy_from_slice(&xattr::MAGIC.to_le_bytes());
            space.copy_from_slice(xattrs);
        }
        // The checksum's two fields are still zero, as it wants them.
        let (lo, hi) = halves16(seed().inode(number, 0).bytes(&bytes).value());
        raw.i_checksum_lo = lo.into();
        raw.i_checksum_hi = hi.into();
        bytes[..FIELDS_SIZE].copy_from_slice(raw.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_from_to() {
        for from in 0..64 {
            for to in from..=64 {
                let mut bitmap = [0; 8];
                set_bits(&mut bitmap, from, to);
                let set = u64::from_le_bytes(bitmap);
                for bit in 0..64 {
                    assert_eq!(
                        set >> bit & 1 == 1,
                        (from..to).contains(&bit),
                        "{from} {to} {bit}"
                    );
                }
            }
        }
    }
}
