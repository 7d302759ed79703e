//! The superblock, the groups' descriptors, and where metadata lies.

use lcow_blockio::ReadAt;

use super::{Checker, Problem, Step, Stop};
use crate::InodeNumber;
use crate::format::group::{BLOCK_UNINIT, INODE_UNINIT};
use crate::format::superblock::{
    FIRST_INODE, REV_DYNAMIC, STATE_ERRORS, SUPERBLOCK_OFFSET, compat, incompat, ro_compat,
};
use crate::reader::Structure;
use crate::reader::internal::num::{div, le32};
use crate::reader::internal::{Owner, locate, table_blocks};

/// The inode that holds the blocks kept for growth (`EXT4_RESIZE_INO`).
pub(super) const RESIZE_INODE: u32 = 7;

impl<R: ReadAt> Checker<'_, R> {
    /// What a reader can live with, but e2fsck's `check_super_block` can't.
    pub(super) fn check_superblock(&mut self) -> Step {
        let sb = self.sb();
        let raw = self.raw_superblock()?;
        let mut wrong = Vec::new();
        let mut must = |right: bool, problem: Problem, detail: String| {
            if !right {
                wrong.push((problem, detail));
            }
        };
        must(
            raw.s_state.get() & STATE_ERRORS == 0,
            Problem::Noted,
            format!(
                "the kernel has noted errors, {} in all",
                raw.s_error_count.get()
            ),
        );
        let bigalloc = sb.has_ro_compat(ro_compat::BIGALLOC);
        let first = u64::from(sb.block_size == 1024 && !bigalloc);
        must(
            sb.first_data_block == first,
            Problem::Malformed,
            format!(
                "the first data block is {}, not {first}",
                sb.first_data_block
            ),
        );
        if !bigalloc {
            must(
                raw.s_log_cluster_size == raw.s_log_block_size
                    && raw.s_clusters_per_group == raw.s_blocks_per_group,
                Problem::Malformed,
                "clusters that are not blocks, without bigalloc".to_owned(),
            );
        }
        must(
            raw.s_blocks_per_group.get().is_multiple_of(8) && sb.inodes_per_group.is_multiple_of(8),
            Problem::Malformed,
            format!(
                "{} blocks and {} inodes in a group, no multiples of 8",
                raw.s_blocks_per_group.get(),
                sb.inodes_per_group
            ),
        );
        let reserved = crate::reader::internal::num::join32(
            if sb.has_incompat(incompat::BIT64) {
                raw.s_r_blocks_count_hi.get()
            } else {
                0
            },
            raw.s_r_blocks_count_lo.get(),
        );
        must(
            reserved <= sb.blocks / 2,
            Problem::Malformed,
            format!("{reserved} of {} blocks are reserved", sb.blocks),
        );
        let features = sb.compat | sb.incompat | sb.ro_compat;
        must(
            raw.s_rev_level.get() == REV_DYNAMIC || features == 0,
            Problem::Feature,
            "features, in a filesystem of revision 0".to_owned(),
        );
        let unknown = raw.unknown_features();
        must(
            unknown.is_empty(),
            Problem::Feature,
            format!(
                "features that nobody here knows the rules of: {}",
                unknown.join(", ")
            ),
        );
        must(
            sb.has_compat(compat::RESIZE_INODE) || sb.reserved_gdt_blocks == 0,
            Problem::Malformed,
            format!(
                "{} blocks are kept for descriptors, without resize_inode",
                sb.reserved_gdt_blocks
            ),
        );
        must(
            sb.reserved_gdt_blocks <= sb.block_size / 4,
            Problem::Malformed,
            format!("{} blocks are kept for descriptors", sb.reserved_gdt_blocks),
        );
        must(
            !(sb.has_compat(compat::RESIZE_INODE) && sb.has_incompat(incompat::META_BG)),
            Problem::Feature,
            "resize_inode and meta_bg exclude each other".to_owned(),
        );
        // Linux does not mount such a one (`ext4_group_desc_init`); e2fsck says so too (`PR_0_FIRST_META_BG_TOO_BIG`).
        let per_block = div(sb.block_size, sb.descriptor_size).max(1);
        let metagroups = u64::from(sb.groups).div_ceil(per_block);
        must(
            !sb.has_incompat(incompat::META_BG) || sb.first_meta_bg <= metagroups,
            Problem::Malformed,
            format!(
                "the first group of groups is {}, of {metagroups}",
                sb.first_meta_bg
            ),
        );
        must(
            sb.has_compat(compat::HAS_JOURNAL)
                || (raw.s_journal_inum.get() == 0
                    && raw.s_journal_dev.get() == 0
                    && raw.s_journal_uuid == [0; 16]),
            Problem::Feature,
            "it names a journal, without has_journal".to_owned(),
        );
        let size = raw.s_desc_size.get();
        must(
            size == 0 || size.is_power_of_two(),
            Problem::Malformed,
            format!("descriptors of {size} bytes"),
        );
        // To e2fsck a file of quotas is in use whether quotas are kept or not.
        let [_, quotas @ .., _] = sb.hidden_inodes;
        must(
            sb.has_ro_compat(ro_compat::QUOTA)
                || !quotas
                    .iter()
                    .any(|number| (sb.first_inode..=sb.inodes).contains(number)),
            Problem::Feature,
            format!("it names files of quotas, {quotas:?}, without quota"),
        );
        // e2fsck goes by the UUID (`e2fsck_get_journal`), the kernel by the inode.
        must(
            raw.s_journal_inum.get() == 0 || raw.s_journal_uuid == [0; 16],
            Problem::Reference,
            "it names two journals: an inode, and another disk's UUID".to_owned(),
        );
        let extra = [raw.s_min_extra_isize.get(), raw.s_want_extra_isize.get()];
        must(
            extra.iter().all(|size| {
                u64::from(*size) <= sb.inode_size.saturating_sub(128) && size.is_multiple_of(4)
            }),
            Problem::Malformed,
            format!("inodes should have {extra:?} bytes beyond 128"),
        );
        for (problem, detail) in wrong {
            self.found(Structure::Superblock, SUPERBLOCK_OFFSET, problem, detail)?;
        }
        Ok(())
    }

    /// Takes the blocks of metadata, each of which must have one use, and looks at the descriptors' flags.
    pub(super) fn check_layout(&mut self) -> Step {
        let sb = self.sb();
        let mut ranges: Vec<(u64, u64, u32, &str)> = Vec::new();
        let tables = table_blocks(sb);
        for (number, group) in (0_u32..).zip(&self.fs.groups) {
            let (start, len) = sb.base(number);
            if len > 0 {
                ranges.push((start, len, number, "the superblock and descriptors"));
            }
            ranges.push((group.block_bitmap, 1, number, "the block bitmap"));
            ranges.push((group.inode_bitmap, 1, number, "the inode bitmap"));
            ranges.push((group.inode_table, tables, number, "the inode table"));
        }
        ranges.sort_unstable();
        let mut clashes = Vec::new();
        let mut end = 0;
        let mut owner = (0, "nothing");
        for (start, len, group, what) in ranges {
            if start < end {
                clashes.push((group, what, start, owner));
            }
            let last = start.saturating_add(len);
            if last > end {
                (end, owner) = (last, (group, what));
            }
            if start >= sb.first_data_block {
                let from = self.cluster(start);
                // Descriptors may be said to reach far past the end.
                let to = self.cluster(last.min(sb.blocks).saturating_sub(1));
                // Under `bigalloc` pieces of metadata share clusters.
                self.usage
                    .claim(from, to.saturating_add(1).saturating_sub(from));
            }
            if clashes.len() > self.options.max_findings {
                break;
            }
        }
        for (group, what, start, (other, theirs)) in clashes {
            self.found(
                Structure::GroupDescriptor(group),
                locate(sb, group),
                Problem::Shared,
                format!("{what} at block {start} overlaps {theirs} of group {other}"),
            )?;
        }
        self.check_descriptors()?;
        if sb.has_incompat(incompat::MMP) {
            self.check_mount_protection()?;
        }
        self.check_resize_inode()
    }

    fn check_descriptors(&mut self) -> Step {
        let sb = self.sb();
        let last = sb.groups.saturating_sub(1);
        let flagged = sb.checked_descriptors();
        for (number, group) in (0_u32..).zip(&self.fs.groups) {
            let uninit = group.flags & (INODE_UNINIT | BLOCK_UNINIT);
            let detail = if !flagged && (uninit != 0 || group.unused_inodes != 0) {
                "the group is flagged uninitialised, without uninit_bg or metadata_csum".to_owned()
            } else if flagged && number == last && group.flags & BLOCK_UNINIT != 0 {
                "the last group's block bitmap must be there".to_owned()
            } else if flagged
                && (group.unused_inodes > group.free_inodes
                    || group.unused_inodes > sb.inodes_per_group)
            {
                format!(
                    "{} inodes never used, {} free",
                    group.unused_inodes, group.free_inodes
                )
            } else {
                continue;
            };
            self.found(
                Structure::GroupDescriptor(number),
                locate(sb, number),
                Problem::Malformed,
                detail,
            )?;
        }
        Ok(())
    }

    /// The inode that keeps the blocks for more descriptors: a double indirect block names those of the first group, and
    /// each of these names its copies (e2fsck: `check_resize_inode`).
    fn check_resize_inode(&mut self) -> Step {
        let sb = self.sb();
        let number = InodeNumber(RESIZE_INODE);
        let wanted = sb.has_compat(compat::RESIZE_INODE);
        let inode = match self.fs.inode_in_use(number) {
            Ok(inode) => inode,
            // It comes up again among the inodes.
            Err(error) if error.kind() == crate::reader::ReadErrorKind::Corrupt => return Ok(()),
            Err(error) => return Err(Stop::Error(error)),
        };
        if !wanted {
            let idle = inode.as_ref().is_none_or(|inode| inode.block == [0; 60]);
            return if idle {
                Ok(())
            } else {
                self.found(
                    Structure::Inode(number),
                    0,
                    Problem::Feature,
                    "it has blocks, without resize_inode",
                )
            };
        }
        let right = match &inode {
            Some(inode) => self.resize_inode_is_right(inode).map_err(Stop::Error)?,
            None => false,
        };
        if !right {
            self.found(
                Structure::Inode(number),
                inode.map_or(0, |inode| inode.offset),
                Problem::Malformed,
                "it does not hold the blocks kept for descriptors",
            )?;
        }
        Ok(())
    }

    fn resize_inode_is_right(
        &self,
        inode: &crate::reader::Inode,
    ) -> Result<bool, crate::reader::ReadError> {
        let sb = self.sb();
        let inside = |block: u64| block > sb.first_data_block && block < sb.blocks;
        let root = u64::from(le32(&inode.block, 52));
        let only = (0..15)
            .all(|word: usize| word == 13 || le32(&inode.block, word.saturating_mul(4)) == 0);
        if !only || !inside(root) || inode.file_type != crate::FileType::Regular {
            return Ok(false);
        }
        let per_block = sb.block_size / 4;
        let descriptors =
            u64::from(sb.groups).div_ceil(div(sb.block_size, sb.descriptor_size).max(1));
        let named = self.fs.block("read a block of pointers", root)?;
        let copies: Vec<u32> = (1..sb.groups).filter(|g| sb.has_super(*g)).collect();
        for number in 0..sb.reserved_gdt_blocks {
            let at =
                crate::reader::internal::num::rem(descriptors.saturating_add(number), per_block);
            let block = sb
                .first_data_block
                .saturating_add(1)
                .saturating_add(descriptors)
                .saturating_add(number)
                .saturating_add(u64::from(sb.block_size == 1024 && sb.first_data_block == 0));
            if pointer(&named, at) != block || !inside(block) {
                return Ok(false);
            }
            let names = self.fs.block("read a block of pointers", block)?;
            for (place, group) in (0_u64..).zip(&copies) {
                let copy = u64::from(*group)
                    .saturating_mul(sb.blocks_per_group)
                    .saturating_add(block);
                if pointer(&names, place) != copy {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether an inode is one of the filesystem's own, which no directory has a name for.
    pub(super) fn is_hidden(&self, number: u32) -> bool {
        let sb = self.sb();
        let [journal, user, group, project, orphans] = sb.hidden_inodes;
        let quota = sb.has_ro_compat(ro_compat::QUOTA);
        number != InodeNumber::ROOT.0
            && (number < sb.first_inode.max(FIRST_INODE)
                || (number == journal && sb.has_compat(compat::HAS_JOURNAL))
                || (number == user && quota)
                || (number == group && quota)
                || (number == project && quota)
                || (number == orphans && sb.has_compat(compat::ORPHAN_FILE)))
    }

    /// Whether an inode's blocks are known to be metadata, and may be where no file's may.
    pub(super) fn owner(&self, number: u32) -> Owner {
        let sb = self.sb();
        if number == RESIZE_INODE
            || number == 1
            || (number == sb.journal_inode && sb.has_compat(compat::HAS_JOURNAL))
        {
            Owner::Own
        } else {
            Owner::File
        }
    }
}

fn pointer(block: &[u8], number: u64) -> u64 {
    let at = crate::reader::internal::num::index(number.saturating_mul(4));
    u64::from(le32(block, at))
}
