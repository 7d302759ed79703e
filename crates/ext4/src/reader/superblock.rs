//! The superblock, from the fields on disk to checked numbers.

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::error::{Objections, ReadError, ReadErrorKind, Structure};
use super::num::{div, join32, len64};
use super::source::Source;
use crate::format::superblock::{
    CHECKSUM_CRC32C, FLAG_UNSIGNED_HASH, MAGIC, REV_DYNAMIC, STATE_CLEAN, SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE, compat, incompat, ro_compat,
};
use crate::format::{Checksum, GroupDescriptor, Superblock as Raw};

/// `s_feature_incompat` bits that this reader reads. Encrypted names and contents are refused file by file.
const KNOWN: u32 = incompat::FILETYPE
    | incompat::RECOVER
    | incompat::META_BG
    | incompat::EXTENTS
    | incompat::BIT64
    | incompat::MMP
    | incompat::FLEX_BG
    | incompat::EA_INODE
    | incompat::CSUM_SEED
    | incompat::LARGEDIR
    | incompat::INLINE_DATA
    | incompat::ENCRYPT
    | incompat::CASEFOLD;

/// `s_creator_os`.
const OS_HURD: u32 = 1;

/// What the superblock says, checked.
#[derive(Debug, Clone)]
pub(crate) struct Superblock {
    pub(crate) compat: u32,
    pub(crate) incompat: u32,
    pub(crate) ro_compat: u32,
    pub(crate) features: Vec<String>,
    /// Bytes; a power of two, 1 KiB to 64 KiB.
    pub(crate) block_size: u64,
    /// Bytes; a multiple of the block size, equal to it without `bigalloc`.
    pub(crate) cluster_size: u64,
    /// Number of blocks, the ones before `first_data_block` included.
    pub(crate) blocks: u64,
    /// In blocks, also under `bigalloc` (kernel: `ext4_statfs`).
    pub(crate) free_blocks: u64,
    pub(crate) first_data_block: u64,
    pub(crate) blocks_per_group: u64,
    pub(crate) inodes_per_group: u32,
    pub(crate) inodes: u32,
    pub(crate) free_inodes: u32,
    /// The first inode that is not reserved.
    pub(crate) first_inode: u32,
    /// Bytes; a power of two, 128 to the block size.
    pub(crate) inode_size: u64,
    pub(crate) groups: u32,
    /// Bytes of a group descriptor.
    pub(crate) descriptor_size: u64,
    pub(crate) first_meta_bg: u64,
    /// Groups that hold copies of the superblock, with `sparse_super2`.
    backup_groups: [u32; 2],
    pub(crate) reserved_gdt_blocks: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) label: Vec<u8>,
    pub(crate) last_mounted: Vec<u8>,
    pub(crate) hash_seed: [u8; 16],
    pub(crate) hash_unsigned: bool,
    /// Made by the Hurd, whose inodes have something else where others have the upper bits of the attributes' block.
    pub(crate) hurd: bool,
    /// 0: the journal, if any, is on another device.
    pub(crate) journal_inode: u32,
    /// Inodes that have no name though they may not be reserved: journal, quotas, orphan file.
    pub(crate) hidden_inodes: [u32; 5],
    /// The start of every checksum under `metadata_csum`.
    pub(crate) seed: Checksum,
    /// Whether the filesystem was unmounted cleanly, or never mounted.
    pub(crate) clean: bool,
}

fn corrupt(field: u64, detail: impl Into<String>) -> ReadError {
    ReadError::corrupt(
        Structure::Superblock,
        SUPERBLOCK_OFFSET.saturating_add(field),
        detail,
    )
}

fn read_raw<R: ReadAt>(source: &Source<R>, at: u64) -> Result<[u8; SUPERBLOCK_SIZE], ReadError> {
    let mut raw = [0; SUPERBLOCK_SIZE];
    if source.size() < at.saturating_add(len64(raw.len())) {
        return Err(ReadError::corrupt(
            Structure::Superblock,
            at,
            format!("a disk of {} bytes has no room for one", source.size()),
        ));
    }
    source.read("read the superblock", at, &mut raw)?;
    Ok(raw)
}

macro_rules! field {
    ($name:ident) => {
        std::mem::offset_of!(Raw, $name) as u64
    };
}

impl Superblock {
    /// Reads the superblock. Where its fields make no sense (short of a checksum that says so), the copy in the second group
    /// stands in for it, as for e2fsck. Such copies know nothing of an unclean journal: that is looked up in the journal.
    pub(crate) fn read<R: ReadAt>(
        source: &Source<R>,
        objections: &mut Objections,
    ) -> Result<Self, ReadError> {
        let raw = read_raw(source, SUPERBLOCK_OFFSET)?;
        let error = match Self::parse(&raw, source.size()) {
            Err(error) if error.kind() == ReadErrorKind::Corrupt => error,
            other => return other,
        };
        let Ok(primary) = Raw::ref_from_bytes(&raw) else {
            return Err(error);
        };
        if primary.s_magic.get() != MAGIC
            || primary.s_feature_ro_compat.get() & ro_compat::METADATA_CSUM != 0
        {
            return Err(error);
        }
        let block_size = 1024_u64 << primary.s_log_block_size.get().min(6);
        let copy_at = u64::from(primary.s_blocks_per_group.get())
            .saturating_add(u64::from(primary.s_first_data_block.get()))
            .saturating_mul(block_size);
        let Ok(raw) = read_raw(source, copy_at) else {
            return Err(error);
        };
        let same = Raw::ref_from_bytes(&raw)
            .is_ok_and(|copy| copy.s_uuid == primary.s_uuid && copy.s_block_group_nr.get() == 1);
        match Self::parse(&raw, source.size()) {
            Ok(copy) if same && copy.block_size == block_size => {
                objections.note(error);
                Ok(copy)
            }
            _ => Err(error),
        }
    }

    /// Checks a superblock. `disk_size` is in bytes. The rules are those of Linux `ext4_fill_super`.
    pub(crate) fn parse(bytes: &[u8; SUPERBLOCK_SIZE], disk_size: u64) -> Result<Self, ReadError> {
        let raw =
            Raw::ref_from_bytes(bytes).map_err(|_| corrupt(0, "the superblock is not whole"))?;
        if raw.s_magic.get() != MAGIC {
            return Err(corrupt(field!(s_magic), "no ext2/3/4 magic number"));
        }
        let revision = raw.s_rev_level.get();
        if revision > REV_DYNAMIC {
            return Err(ReadError::unsupported(format!("revision {revision}")));
        }
        let incompat = raw.s_feature_incompat.get();
        let ro_compat = raw.s_feature_ro_compat.get();
        let features = raw.feature_names();
        if incompat & !KNOWN != 0 {
            let mut unknown = Raw::zeroed();
            unknown.s_feature_incompat.set(incompat & !KNOWN);
            return Err(ReadError::unsupported(unknown.feature_names().join(", ")));
        }
        if ro_compat & ro_compat::METADATA_CSUM != 0 {
            let kind = raw.s_checksum_type;
            if kind != CHECKSUM_CRC32C {
                return Err(ReadError::unsupported(format!(
                    "metadata_csum of type {kind}"
                )));
            }
            if raw.checksum() != raw.s_checksum.get() {
                return Err(corrupt(field!(s_checksum), "the checksum does not match"));
            }
        }

        let (block_size, cluster_size) = block_sizes(raw, ro_compat)?;
        let bit64 = incompat & incompat::BIT64 != 0;
        let wide = |high: u32, low: u32| join32(if bit64 { high } else { 0 }, low);
        let blocks = wide(raw.s_blocks_count_hi.get(), raw.s_blocks_count_lo.get());
        let free = wide(
            raw.s_free_blocks_count_hi.get(),
            raw.s_free_blocks_count_lo.get(),
        );
        let ratio = div(cluster_size, block_size);
        let first_data_block = u64::from(raw.s_first_data_block.get());
        if first_data_block >= blocks || (first_data_block == 0 && block_size == 1024 && ratio == 1)
        {
            return Err(corrupt(
                field!(s_first_data_block),
                format!("first data block {first_data_block} of {blocks}"),
            ));
        }
        // Linux never mounts a filesystem that its device cuts short; what is missing can't be known.
        if blocks
            .checked_mul(block_size)
            .is_none_or(|bytes| bytes > disk_size)
        {
            return Err(corrupt(
                field!(s_blocks_count_lo),
                format!("{blocks} blocks of {block_size} bytes on a disk of {disk_size} bytes"),
            ));
        }

        let (inode_size, first_inode) = if revision == REV_DYNAMIC {
            (u64::from(raw.s_inode_size.get()), raw.s_first_ino.get())
        } else {
            (128, 11)
        };
        if inode_size < 128 || !inode_size.is_power_of_two() || inode_size > block_size {
            return Err(corrupt(
                field!(s_inode_size),
                format!("inode size {inode_size}"),
            ));
        }
        if first_inode < 11 {
            return Err(corrupt(
                field!(s_first_ino),
                format!("first inode {first_inode}"),
            ));
        }

        let blocks_per_group = u64::from(raw.s_blocks_per_group.get());
        let clusters_per_group = if ratio == 1 {
            blocks_per_group
        } else {
            u64::from(raw.s_clusters_per_group.get())
        };
        let bits = block_size.saturating_mul(8);
        if !(1..=bits).contains(&clusters_per_group)
            || clusters_per_group.checked_mul(ratio) != Some(blocks_per_group)
        {
            return Err(corrupt(
                field!(s_blocks_per_group),
                format!("{blocks_per_group} blocks, {clusters_per_group} clusters per group"),
            ));
        }
        let groups = blocks
            .saturating_sub(first_data_block)
            .div_ceil(blocks_per_group);
        let groups = u32::try_from(groups)
            .map_err(|_| corrupt(field!(s_blocks_count_lo), format!("{groups} block groups")))?;
        let inodes_per_group = raw.s_inodes_per_group.get();
        if !(div(block_size, inode_size)..=bits).contains(&u64::from(inodes_per_group)) {
            return Err(corrupt(
                field!(s_inodes_per_group),
                format!("{inodes_per_group} inodes per group"),
            ));
        }
        let inodes = raw.s_inodes_count.get();
        if inodes_per_group.checked_mul(groups) != Some(inodes) {
            return Err(corrupt(
                field!(s_inodes_count),
                format!("{inodes} inodes in {groups} groups of {inodes_per_group}"),
            ));
        }

        let descriptor_size = if bit64 {
            u64::from(raw.s_desc_size.get())
        } else {
            32
        };
        if bit64 && (!(64..=1024).contains(&descriptor_size) || !descriptor_size.is_power_of_two())
        {
            return Err(corrupt(
                field!(s_desc_size),
                format!("group descriptors of {descriptor_size} bytes"),
            ));
        }
        // One past the last means that there are no meta groups; Linux refuses more than that, e2fsck takes it for the same.
        let first_meta_bg = u64::from(raw.s_first_meta_bg.get());

        let seed = if incompat & incompat::CSUM_SEED != 0 {
            Checksum::from_seed(raw.s_checksum_seed.get())
        } else {
            Checksum::from_uuid(&raw.s_uuid)
        };
        Ok(Self {
            compat: raw.s_feature_compat.get(),
            incompat,
            ro_compat,
            features,
            block_size,
            cluster_size,
            blocks,
            free_blocks: free,
            first_data_block,
            blocks_per_group,
            inodes_per_group,
            inodes,
            free_inodes: raw.s_free_inodes_count.get(),
            first_inode,
            inode_size,
            groups,
            descriptor_size,
            first_meta_bg,
            backup_groups: raw.s_backup_bgs.map(zerocopy::U32::get),
            reserved_gdt_blocks: u64::from(raw.s_reserved_gdt_blocks.get()),
            uuid: raw.s_uuid,
            label: text(&raw.s_volume_name),
            last_mounted: text(&raw.s_last_mounted),
            hash_seed: raw.s_hash_seed,
            // Neither flag set: Linux on x86 takes signed, as the kernels of old did.
            hash_unsigned: raw.s_flags.get() & FLAG_UNSIGNED_HASH != 0,
            hurd: raw.s_creator_os.get() == OS_HURD,
            journal_inode: raw.s_journal_inum.get(),
            hidden_inodes: [
                raw.s_journal_inum.get(),
                raw.s_usr_quota_inum.get(),
                raw.s_grp_quota_inum.get(),
                raw.s_prj_quota_inum.get(),
                raw.s_orphan_file_inum.get(),
            ],
            seed,
            clean: raw.s_state.get() & STATE_CLEAN != 0,
        })
    }

    pub(crate) fn has_compat(&self, bit: u32) -> bool {
        self.compat & bit != 0
    }

    pub(crate) fn has_incompat(&self, bit: u32) -> bool {
        self.incompat & bit != 0
    }

    pub(crate) fn has_ro_compat(&self, bit: u32) -> bool {
        self.ro_compat & bit != 0
    }

    /// Whether metadata carries CRC-32C checksums.
    pub(crate) fn checksums(&self) -> bool {
        self.has_ro_compat(ro_compat::METADATA_CSUM)
    }

    /// Whether two places in files may hold the same block.
    pub(crate) fn shares_blocks(&self) -> bool {
        self.has_ro_compat(ro_compat::SHARED_BLOCKS)
    }

    /// Whether group descriptors have flags and checksums.
    pub(crate) fn checked_descriptors(&self) -> bool {
        self.checksums() || self.has_ro_compat(ro_compat::GDT_CSUM)
    }

    /// The checksum that the descriptor of `group` should have; `None`: this filesystem has none.
    pub(crate) fn descriptor_checksum(&self, group: u32, raw: &[u8]) -> Option<u16> {
        if self.checksums() {
            Some(GroupDescriptor::checksum_crc32c(self.seed, group, raw))
        } else if self.has_ro_compat(ro_compat::GDT_CSUM) {
            Some(GroupDescriptor::checksum_crc16(&self.uuid, group, raw))
        } else {
            None
        }
    }

    /// Whether `group` begins with a copy of the superblock (Linux `ext4_bg_has_super`).
    pub(crate) fn has_super(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.has_compat(compat::SPARSE_SUPER2) {
            return self.backup_groups.contains(&group);
        }
        if group == 1 || !self.has_ro_compat(ro_compat::SPARSE_SUPER) {
            return true;
        }
        [3_u32, 5, 7].iter().any(|&base| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        })
    }
}

fn block_sizes(raw: &Raw, ro_compat: u32) -> Result<(u64, u64), ReadError> {
    let log_block_size = raw.s_log_block_size.get();
    if log_block_size > 6 {
        return Err(corrupt(
            field!(s_log_block_size),
            format!("blocks of 2^(10+{log_block_size}) bytes"),
        ));
    }
    let block_size = 1024_u64 << log_block_size;
    if ro_compat & ro_compat::BIGALLOC == 0 {
        return Ok((block_size, block_size));
    }
    // EXT4_MAX_CLUSTER_LOG_SIZE is 30.
    let log_cluster_size = raw.s_log_cluster_size.get();
    if !(log_block_size..=20).contains(&log_cluster_size) {
        return Err(corrupt(
            field!(s_log_cluster_size),
            format!("clusters of 2^(10+{log_cluster_size}) bytes"),
        ));
    }
    Ok((block_size, 1024_u64 << log_cluster_size))
}

/// A field's text, cut at its first NUL.
fn text(field: &[u8]) -> Vec<u8> {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    field.get(..end).unwrap_or_default().to_vec()
}
