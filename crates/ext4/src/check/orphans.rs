//! Inodes that were deleted or cut while open: in use until the next mount clears them away.

use lcow_blockio::ReadAt;

use super::{Checker, Problem, Step};
use crate::format::inode::Inode as Raw;
use crate::format::superblock::{SUPERBLOCK_OFFSET, compat, ro_compat};
use crate::reader::Structure;
use crate::reader::internal::num::{index, le32, len64};
use crate::{FileType, InodeNumber};

/// Behind the entries of a block of the orphan file (kernel: `struct ext4_orphan_block_tail`).
const MAGIC: u32 = 0x0b10_ca04;
const TAIL: usize = 8;

impl<R: ReadAt> Checker<'_, R> {
    /// Reads the list that begins in the superblock, and the orphan file.
    pub(super) fn find_orphans(&mut self) -> Step {
        let sb = self.sb();
        let raw = self.raw_superblock()?;
        // As e2fsck has it.
        let times = [raw.s_wtime.get(), raw.s_mtime.get(), raw.s_mkfs_time.get()];
        self.dated = !times.iter().any(|time| (1..sb.inodes).contains(time));
        let mut next = raw.s_last_orphan.get();
        while next != 0 {
            let known = next >= sb.first_inode && next <= sb.inodes;
            if !known || !self.orphans.insert(next) {
                let detail = format!("it leads to inode {next}");
                return self.found(
                    Structure::Orphans,
                    SUPERBLOCK_OFFSET,
                    Problem::Reference,
                    detail,
                );
            }
            let offset = self.fs.inode_offset(InodeNumber(next));
            let Some(offset) = self.note(offset)? else {
                return Ok(());
            };
            self.spend(sb.inode_size)?;
            let table = self
                .fs
                .source
                .meta("read an inode", offset, sb.inode_size)?;
            // The time of deletion is the next one's number.
            next = le32(&table, std::mem::offset_of!(Raw, i_dtime));
        }
        if sb.has_compat(compat::ORPHAN_FILE) {
            self.read_orphan_file()?;
        }
        Ok(())
    }

    fn read_orphan_file(&mut self) -> Step {
        let sb = self.sb();
        let [.., number] = sb.hidden_inodes;
        let inode = self.fs.inode(InodeNumber(number));
        let Some(inode) = self.note(inode)? else {
            return Ok(());
        };
        if inode.file_type != FileType::Regular {
            let detail = "the orphan file is no regular file";
            return self.found(Structure::Orphans, inode.offset, Problem::Malformed, detail);
        }
        let map = self.fs.map_file(&inode);
        let Some(map) = self.note(map)? else {
            return Ok(());
        };
        let present = sb.has_ro_compat(ro_compat::ORPHAN_PRESENT);
        let seed = self.fs.inode_seed(&inode);
        let entries = index(sb.block_size).saturating_sub(TAIL);
        for extent in map.extents() {
            for block in (0..extent.len).map(|n| extent.physical.saturating_add(n)) {
                self.spend(sb.block_size)?;
                let bytes = self.fs.block("read the orphan file", block)?;
                let at = block.saturating_mul(sb.block_size);
                let list = bytes.get(..entries).unwrap_or_default();
                let sum = seed.u64(block).bytes(list).value();
                let damaged = le32(&bytes, entries) != MAGIC
                    || (sb.checksums() && le32(&bytes, entries.saturating_add(4)) != sum);
                if damaged {
                    let detail =
                        "a block of the orphan file has no magic number, or a wrong checksum";
                    self.found(Structure::Orphans, at, Problem::Malformed, detail)?;
                    continue;
                }
                for place in (0..entries).step_by(4) {
                    let number = le32(list, place);
                    if number == 0 {
                        continue;
                    }
                    let at = at.saturating_add(len64(place));
                    if !present || number < sb.first_inode || number > sb.inodes {
                        let detail = format!("an entry for inode {number}");
                        self.found(Structure::Orphans, at, Problem::Reference, detail)?;
                    } else {
                        self.orphans.insert(number);
                    }
                }
            }
        }
        Ok(())
    }
}
