//! The superblock (kernel: `struct ext4_super_block`), its features and flags.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Checksum;

/// Where the superblock lies, in bytes from the start of the disk, whatever the block size.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// Its size in bytes.
pub const SUPERBLOCK_SIZE: usize = 1024;
/// `s_magic`.
pub const MAGIC: u16 = 0xef53;
/// `s_state`: unmounted cleanly.
pub const STATE_CLEAN: u16 = 1;
/// `s_state`: errors were found.
pub const STATE_ERRORS: u16 = 2;
/// `s_state`: orphans are being recovered.
pub const STATE_ORPHANS: u16 = 4;
/// `s_errors`: go on after an error.
pub const ERRORS_CONTINUE: u16 = 1;
/// `s_rev_level`: with features and inode sizes.
pub const REV_DYNAMIC: u32 = 1;
/// `s_flags`: directory hashes take bytes as signed.
pub const FLAG_SIGNED_HASH: u32 = 1;
/// `s_flags`: directory hashes take bytes as unsigned.
pub const FLAG_UNSIGNED_HASH: u32 = 2;
/// `s_def_hash_version`: half MD4, the kernel's default.
pub const HASH_HALF_MD4: u8 = 1;
/// `s_checksum_type`: crc32c, the only one.
pub const CHECKSUM_CRC32C: u8 = 1;
/// `s_jnl_backup_type`: `s_jnl_blocks` holds a copy of the journal inode's `i_block` and size.
pub const JOURNAL_BACKUP_BLOCKS: u8 = 1;
/// `s_def_hash_version` and friends aside, the first inode that is not reserved in what this crate makes.
pub const FIRST_INODE: u32 = 11;
/// The journal's inode in what this crate makes (`EXT4_JOURNAL_INO`).
pub const JOURNAL_INODE: u32 = 8;

/// `s_feature_compat`: a kernel that does not know a bit may still write.
#[allow(missing_docs)]
pub mod compat {
    pub const DIR_PREALLOC: u32 = 0x1;
    pub const IMAGIC_INODES: u32 = 0x2;
    pub const HAS_JOURNAL: u32 = 0x4;
    pub const EXT_ATTR: u32 = 0x8;
    pub const RESIZE_INODE: u32 = 0x10;
    pub const DIR_INDEX: u32 = 0x20;
    pub const SPARSE_SUPER2: u32 = 0x200;
    pub const FAST_COMMIT: u32 = 0x400;
    pub const STABLE_INODES: u32 = 0x800;
    pub const ORPHAN_FILE: u32 = 0x1000;
}

/// `s_feature_incompat`: who does not know a bit must not mount.
#[allow(missing_docs)]
pub mod incompat {
    pub const COMPRESSION: u32 = 0x1;
    pub const FILETYPE: u32 = 0x2;
    pub const RECOVER: u32 = 0x4;
    pub const JOURNAL_DEV: u32 = 0x8;
    pub const META_BG: u32 = 0x10;
    pub const EXTENTS: u32 = 0x40;
    pub const BIT64: u32 = 0x80;
    pub const MMP: u32 = 0x100;
    pub const FLEX_BG: u32 = 0x200;
    pub const EA_INODE: u32 = 0x400;
    pub const DIRDATA: u32 = 0x1000;
    pub const CSUM_SEED: u32 = 0x2000;
    pub const LARGEDIR: u32 = 0x4000;
    pub const INLINE_DATA: u32 = 0x8000;
    pub const ENCRYPT: u32 = 0x1_0000;
    pub const CASEFOLD: u32 = 0x2_0000;
}

/// `s_feature_ro_compat`: who does not know a bit may only read.
#[allow(missing_docs)]
pub mod ro_compat {
    pub const SPARSE_SUPER: u32 = 0x1;
    pub const LARGE_FILE: u32 = 0x2;
    pub const HUGE_FILE: u32 = 0x8;
    pub const GDT_CSUM: u32 = 0x10;
    pub const DIR_NLINK: u32 = 0x20;
    pub const EXTRA_ISIZE: u32 = 0x40;
    pub const QUOTA: u32 = 0x100;
    pub const BIGALLOC: u32 = 0x200;
    pub const METADATA_CSUM: u32 = 0x400;
    pub const REPLICA: u32 = 0x800;
    pub const READONLY: u32 = 0x1000;
    pub const PROJECT: u32 = 0x2000;
    /// Files may share blocks (Android's deduplicated images; Linux does not know it and mounts read-only).
    pub const SHARED_BLOCKS: u32 = 0x4000;
    pub const VERITY: u32 = 0x8000;
    pub const ORPHAN_PRESENT: u32 = 0x1_0000;
}

/// Each feature's set, bit and the name that `mke2fs` and `dumpe2fs` give it.
pub const FEATURE_NAMES: &[(FeatureSet, u32, &str)] = &[
    (FeatureSet::Compat, compat::DIR_PREALLOC, "dir_prealloc"),
    (FeatureSet::Compat, compat::IMAGIC_INODES, "imagic_inodes"),
    (FeatureSet::Compat, compat::HAS_JOURNAL, "has_journal"),
    (FeatureSet::Compat, compat::EXT_ATTR, "ext_attr"),
    (FeatureSet::Compat, compat::RESIZE_INODE, "resize_inode"),
    (FeatureSet::Compat, compat::DIR_INDEX, "dir_index"),
    (FeatureSet::Compat, compat::SPARSE_SUPER2, "sparse_super2"),
    (FeatureSet::Compat, compat::FAST_COMMIT, "fast_commit"),
    (FeatureSet::Compat, compat::STABLE_INODES, "stable_inodes"),
    (FeatureSet::Compat, compat::ORPHAN_FILE, "orphan_file"),
    (FeatureSet::Incompat, incompat::COMPRESSION, "compression"),
    (FeatureSet::Incompat, incompat::FILETYPE, "filetype"),
    (FeatureSet::Incompat, incompat::RECOVER, "needs_recovery"),
    (FeatureSet::Incompat, incompat::JOURNAL_DEV, "journal_dev"),
    (FeatureSet::Incompat, incompat::META_BG, "meta_bg"),
    (FeatureSet::Incompat, incompat::EXTENTS, "extent"),
    (FeatureSet::Incompat, incompat::BIT64, "64bit"),
    (FeatureSet::Incompat, incompat::MMP, "mmp"),
    (FeatureSet::Incompat, incompat::FLEX_BG, "flex_bg"),
    (FeatureSet::Incompat, incompat::EA_INODE, "ea_inode"),
    (FeatureSet::Incompat, incompat::DIRDATA, "dirdata"),
    (
        FeatureSet::Incompat,
        incompat::CSUM_SEED,
        "metadata_csum_seed",
    ),
    (FeatureSet::Incompat, incompat::LARGEDIR, "large_dir"),
    (FeatureSet::Incompat, incompat::INLINE_DATA, "inline_data"),
    (FeatureSet::Incompat, incompat::ENCRYPT, "encrypt"),
    (FeatureSet::Incompat, incompat::CASEFOLD, "casefold"),
    (
        FeatureSet::RoCompat,
        ro_compat::SPARSE_SUPER,
        "sparse_super",
    ),
    (FeatureSet::RoCompat, ro_compat::LARGE_FILE, "large_file"),
    (FeatureSet::RoCompat, ro_compat::HUGE_FILE, "huge_file"),
    (FeatureSet::RoCompat, ro_compat::GDT_CSUM, "uninit_bg"),
    (FeatureSet::RoCompat, ro_compat::DIR_NLINK, "dir_nlink"),
    (FeatureSet::RoCompat, ro_compat::EXTRA_ISIZE, "extra_isize"),
    (FeatureSet::RoCompat, ro_compat::QUOTA, "quota"),
    (FeatureSet::RoCompat, ro_compat::BIGALLOC, "bigalloc"),
    (
        FeatureSet::RoCompat,
        ro_compat::METADATA_CSUM,
        "metadata_csum",
    ),
    (FeatureSet::RoCompat, ro_compat::REPLICA, "replica"),
    (FeatureSet::RoCompat, ro_compat::READONLY, "read-only"),
    (FeatureSet::RoCompat, ro_compat::PROJECT, "project"),
    (
        FeatureSet::RoCompat,
        ro_compat::SHARED_BLOCKS,
        "shared_blocks",
    ),
    (FeatureSet::RoCompat, ro_compat::VERITY, "verity"),
    (
        FeatureSet::RoCompat,
        ro_compat::ORPHAN_PRESENT,
        "orphan_present",
    ),
];

/// The three feature words of a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureSet {
    /// `s_feature_compat`.
    Compat,
    /// `s_feature_incompat`.
    Incompat,
    /// `s_feature_ro_compat`.
    RoCompat,
}

/// The superblock, 1,024 bytes at byte 1,024. "Block" is a filesystem block, "hi" the upper half under `64bit`.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Superblock {
    /// Inodes in all (groups × inodes per group).
    pub s_inodes_count: U32,
    /// Blocks in all.
    pub s_blocks_count_lo: U32,
    /// Blocks only root may use.
    pub s_r_blocks_count_lo: U32,
    /// Free blocks; blocks under `bigalloc` too.
    pub s_free_blocks_count_lo: U32,
    /// Free inodes.
    pub s_free_inodes_count: U32,
    /// The block of the first group's start: 1 for 1 KiB blocks, else 0.
    pub s_first_data_block: U32,
    /// Block size = 1,024 << this.
    pub s_log_block_size: U32,
    /// Cluster size = 1,024 << this.
    pub s_log_cluster_size: U32,
    /// Blocks per group.
    pub s_blocks_per_group: U32,
    /// Clusters per group; equals the blocks without `bigalloc`.
    pub s_clusters_per_group: U32,
    /// Inodes per group, a multiple of 8.
    pub s_inodes_per_group: U32,
    /// Last mount, seconds since 1970.
    pub s_mtime: U32,
    /// Last write, seconds since 1970.
    pub s_wtime: U32,
    /// Mounts since the last check.
    pub s_mnt_count: U16,
    /// Mounts after which to check; −1 never.
    pub s_max_mnt_count: U16,
    /// [`MAGIC`].
    pub s_magic: U16,
    /// `STATE_*`.
    pub s_state: U16,
    /// What the kernel does on errors.
    pub s_errors: U16,
    /// Minor revision.
    pub s_minor_rev_level: U16,
    /// Last check, seconds since 1970.
    pub s_lastcheck: U32,
    /// Seconds between checks; 0 never.
    pub s_checkinterval: U32,
    /// 0: Linux.
    pub s_creator_os: U32,
    /// 0: original, 1: dynamic.
    pub s_rev_level: U32,
    /// Who may use reserved blocks.
    pub s_def_resuid: U16,
    /// Which group may use reserved blocks.
    pub s_def_resgid: U16,
    /// First inode that is not reserved (revision 1; 11 before).
    pub s_first_ino: U32,
    /// Inode size in bytes (revision 1; 128 before).
    pub s_inode_size: U16,
    /// The group this copy lies in.
    pub s_block_group_nr: U16,
    /// [`compat`].
    pub s_feature_compat: U32,
    /// [`incompat`].
    pub s_feature_incompat: U32,
    /// [`ro_compat`].
    pub s_feature_ro_compat: U32,
    /// The filesystem's UUID.
    pub s_uuid: [u8; 16],
    /// The label, padded with zeros.
    pub s_volume_name: [u8; 16],
    /// Where it was last mounted.
    pub s_last_mounted: [u8; 64],
    /// For compression; unused.
    pub s_algorithm_usage_bitmap: U32,
    /// Blocks to preallocate for files; unused.
    pub s_prealloc_blocks: u8,
    /// Blocks to preallocate for directories; unused.
    pub s_prealloc_dir_blocks: u8,
    /// Blocks kept behind the descriptors for growth (`resize_inode`).
    pub s_reserved_gdt_blocks: U16,
    /// UUID of an external journal.
    pub s_journal_uuid: [u8; 16],
    /// The journal's inode.
    pub s_journal_inum: U32,
    /// Device number of an external journal.
    pub s_journal_dev: U32,
    /// First of the list of orphaned inodes.
    pub s_last_orphan: U32,
    /// Seed of the directory hashes.
    pub s_hash_seed: [u8; 16],
    /// Default hash of directories.
    pub s_def_hash_version: u8,
    /// What `s_jnl_blocks` holds.
    pub s_jnl_backup_type: u8,
    /// Size of group descriptors in bytes under `64bit` (32 otherwise).
    pub s_desc_size: U16,
    /// Default mount options.
    pub s_default_mount_opts: U32,
    /// First metadata block group (`meta_bg`).
    pub s_first_meta_bg: U32,
    /// When the filesystem was made, seconds since 1970.
    pub s_mkfs_time: U32,
    /// Copy of the journal inode's `i_block` (15 words), then the upper and lower words of its size.
    pub s_jnl_blocks: [U32; 17],
    /// Blocks in all, hi.
    pub s_blocks_count_hi: U32,
    /// Reserved blocks, hi.
    pub s_r_blocks_count_hi: U32,
    /// Free blocks, hi.
    pub s_free_blocks_count_hi: U32,
    /// Bytes beyond 128 that all inodes have.
    pub s_min_extra_isize: U16,
    /// Bytes beyond 128 that new inodes should have.
    pub s_want_extra_isize: U16,
    /// `FLAG_*`.
    pub s_flags: U32,
    /// RAID stride in blocks.
    pub s_raid_stride: U16,
    /// Seconds between multi-mount checks.
    pub s_mmp_interval: U16,
    /// Block of multi-mount protection.
    pub s_mmp_block: U64,
    /// RAID stripe width in blocks.
    pub s_raid_stripe_width: U32,
    /// Groups per flexible group = 1 << this.
    pub s_log_groups_per_flex: u8,
    /// [`CHECKSUM_CRC32C`].
    pub s_checksum_type: u8,
    /// Version of encryption.
    pub s_encryption_level: u8,
    /// Padding.
    pub s_reserved_pad: u8,
    /// KiB written over its life.
    pub s_kbytes_written: U64,
    /// Snapshot fields of an out-of-tree patch; unused.
    pub s_snapshot_inum: U32,
    /// Unused.
    pub s_snapshot_id: U32,
    /// Unused.
    pub s_snapshot_r_blocks_count: U64,
    /// Unused.
    pub s_snapshot_list: U32,
    /// Errors seen.
    pub s_error_count: U32,
    /// Time, inode, block, function and line of the first error.
    pub s_first_error: [u8; 52],
    /// Time, inode, line, block and function of the last error.
    pub s_last_error: [u8; 52],
    /// Mount options as text.
    pub s_mount_opts: [u8; 64],
    /// Inode of the user quota.
    pub s_usr_quota_inum: U32,
    /// Inode of the group quota.
    pub s_grp_quota_inum: U32,
    /// Clusters that are metadata by layout; 0: the kernel counts.
    pub s_overhead_clusters: U32,
    /// The two groups with backups under `sparse_super2`; 0: none.
    pub s_backup_bgs: [U32; 2],
    /// Encryption algorithms.
    pub s_encrypt_algos: [u8; 4],
    /// Salt of encryption.
    pub s_encrypt_pw_salt: [u8; 16],
    /// Inode of `lost+found`; unused.
    pub s_lpf_ino: U32,
    /// Inode of the project quota.
    pub s_prj_quota_inum: U32,
    /// Seed of all checksums under `metadata_csum_seed`.
    pub s_checksum_seed: U32,
    /// Upper bytes of the times above, error codes, padding.
    pub s_times_hi: [u8; 8],
    /// Encoding of names under `casefold`.
    pub s_encoding: U16,
    /// Flags of that encoding.
    pub s_encoding_flags: U16,
    /// Inode of the orphan file.
    pub s_orphan_file_inum: U32,
    /// Padding.
    pub s_reserved: [U32; 94],
    /// crc32c of all before it.
    pub s_checksum: U32,
}

const _: () = assert!(size_of::<Superblock>() == SUPERBLOCK_SIZE);
const _: () = assert!(std::mem::offset_of!(Superblock, s_volume_name) == 0x78);
const _: () = assert!(std::mem::offset_of!(Superblock, s_hash_seed) == 0xec);
const _: () = assert!(std::mem::offset_of!(Superblock, s_jnl_blocks) == 0x10c);
const _: () = assert!(std::mem::offset_of!(Superblock, s_log_groups_per_flex) == 0x174);
const _: () = assert!(std::mem::offset_of!(Superblock, s_error_count) == 0x194);
const _: () = assert!(std::mem::offset_of!(Superblock, s_mount_opts) == 0x200);
const _: () = assert!(std::mem::offset_of!(Superblock, s_checksum_seed) == 0x270);
const _: () = assert!(std::mem::offset_of!(Superblock, s_encoding) == 0x27c);
const _: () = assert!(std::mem::offset_of!(Superblock, s_checksum) == 0x3fc);

impl Superblock {
    /// A superblock of zeros.
    #[must_use]
    pub fn zeroed() -> Self {
        Self::read_from_bytes(&[0; SUPERBLOCK_SIZE]).unwrap_or_else(|_| unreachable!("sizes agree"))
    }

    /// The checksum its bytes should carry. The filesystem's seed plays no part.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        let bytes = self.as_bytes();
        Checksum::START
            .bytes(&bytes[..std::mem::offset_of!(Self, s_checksum)])
            .value()
    }

    /// The names, as of [`Superblock::feature_names`], of those features that this crate has no name for.
    #[must_use]
    pub fn unknown_features(&self) -> Vec<String> {
        let mut rest = self.clone();
        // `replica` has a name, and neither Linux nor e2fsck know more of it.
        let known = FEATURE_NAMES
            .iter()
            .filter(|(set, mask, _)| (*set, *mask) != (FeatureSet::RoCompat, ro_compat::REPLICA));
        for (set, mask, _) in known {
            let word = match set {
                FeatureSet::Compat => &mut rest.s_feature_compat,
                FeatureSet::Incompat => &mut rest.s_feature_incompat,
                FeatureSet::RoCompat => &mut rest.s_feature_ro_compat,
            };
            word.set(word.get() & !mask);
        }
        rest.feature_names()
    }

    /// The names of its features as `dumpe2fs` prints them; bits without a name as `FEATURE_I31` and the like.
    #[must_use]
    pub fn feature_names(&self) -> Vec<String> {
        let sets = [
            (FeatureSet::Compat, 'C', self.s_feature_compat.get()),
            (FeatureSet::Incompat, 'I', self.s_feature_incompat.get()),
            (FeatureSet::RoCompat, 'R', self.s_feature_ro_compat.get()),
        ];
        let mut names = Vec::new();
        for (set, letter, word) in sets {
            for bit in 0..32u32 {
                let mask = 1u32 << bit;
                if word & mask != 0 {
                    let known = FEATURE_NAMES
                        .iter()
                        .find(|(s, m, _)| *s == set && *m == mask);
                    names.push(known.map_or_else(
                        || format!("FEATURE_{letter}{bit}"),
                        |(_, _, name)| (*name).to_owned(),
                    ));
                }
            }
        }
        names
    }
}
