//! The journal's superblock, and the block of multi-mount protection.

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::{Checker, Problem, Step};
use crate::InodeNumber;
use crate::format::journal::{BLOCK_SUPERBLOCK_V1, JournalSuperblock};
use crate::format::superblock::{SUPERBLOCK_OFFSET, compat};
use crate::reader::Structure;
use crate::reader::internal::Owner;
use crate::reader::internal::num::le32;

/// The block of multi-mount protection, 1,024 bytes (kernel: `struct mmp_struct`): its magic number, and where its checksum lies.
const MMP_MAGIC: u32 = 0x004d_4d50;
const MMP_CHECKSUM: usize = 1020;
/// `mmp_seq` while nobody has the filesystem mounted.
const MMP_CLEAN: u32 = 0xff4d_4d50;

impl<R: ReadAt> Checker<'_, R> {
    /// What a reader that only replays the journal can do without (e2fsck: `e2fsck_journal_load`).
    pub(super) fn check_journal(&mut self) -> Step {
        let sb = self.sb();
        if !sb.has_compat(compat::HAS_JOURNAL) || sb.journal_inode == 0 {
            return Ok(());
        }
        // A journal that could not be read is a finding by now.
        let Ok(inode) = self.fs.inode(InodeNumber(sb.journal_inode)) else {
            return Ok(());
        };
        let Ok(mapping) = self.fs.mapping(&inode, Owner::Own) else {
            return Ok(());
        };
        let Some(first) = mapping.extents.first().filter(|e| e.logical == 0) else {
            return Ok(());
        };
        let block = self.fs.block("read the journal", first.physical)?;
        let Ok((journal, _)) = JournalSuperblock::ref_from_prefix(&block) else {
            return Ok(());
        };
        // Version 1 ends behind the error number.
        const V1_END: usize = std::mem::offset_of!(JournalSuperblock, s_feature_compat);
        let v1 = journal.s_header.h_blocktype.get() == BLOCK_SUPERBLOCK_V1;
        let more = block.get(V1_END..1024).unwrap_or_default();
        let (problem, detail) = if journal.s_errno.get() != 0 {
            (
                Problem::Noted,
                "the kernel has noted an error in it".to_owned(),
            )
        } else if v1 && more.iter().any(|byte| *byte != 0) {
            (
                Problem::Malformed,
                "its superblock is of version 1, with fields of version 2".to_owned(),
            )
        } else if !v1 && journal.s_nr_users.get() > 1 {
            let users = journal.s_nr_users.get();
            (
                Problem::Malformed,
                format!("it is shared by {users} filesystems"),
            )
        } else {
            return Ok(());
        };
        let at = first.physical.saturating_mul(sb.block_size);
        self.found(Structure::Journal, at, problem, detail)
    }

    /// The block of multi-mount protection is one, and says that nobody has the filesystem mounted.
    pub(super) fn check_mount_protection(&mut self) -> Step {
        let sb = self.sb();
        let block = self.raw_superblock()?.s_mmp_block.get();
        if block <= sb.first_data_block || block >= sb.blocks {
            let detail = format!("multi-mount protection in block {block}");
            return self.found(
                Structure::Superblock,
                SUPERBLOCK_OFFSET,
                Problem::Malformed,
                detail,
            );
        }
        let cluster = self.cluster(block);
        self.usage.claim(cluster, 1);
        let bytes = self.fs.block("read multi-mount protection", block)?;
        let sum = sb.seed.bytes(bytes.get(..MMP_CHECKSUM).unwrap_or_default());
        let detail = if le32(&bytes, 0) != MMP_MAGIC {
            "multi-mount protection has no magic number"
        } else if sb.checksums() && le32(&bytes, MMP_CHECKSUM) != sum.value() {
            "the checksum of multi-mount protection does not match"
        } else if le32(&bytes, 4) != MMP_CLEAN {
            "multi-mount protection says that it is mounted"
        } else {
            return Ok(());
        };
        let at = block.saturating_mul(sb.block_size);
        self.found(Structure::Superblock, at, Problem::Malformed, detail)
    }
}
