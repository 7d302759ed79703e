//! Every inode: whether it is in use, and whether what it says of itself holds together.

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::layout::RESIZE_INODE;
use super::{Checker, Dir, Kind, Problem, State, Step, Stop};
use crate::format::Inode as Raw;
use crate::format::inode::{FIELDS_SIZE, OLD_SIZE, flags};
use crate::format::superblock::{compat, incompat, ro_compat};
use crate::reader::Inode;
use crate::reader::internal::num::{div, index, join16, join32, le32, len64};
use crate::reader::internal::table_blocks;
use crate::{FileType, InodeNumber};

/// Inode tables are read in pieces of at most this many bytes.
const PIECE: u64 = 1 << 18;
/// `i_flags`: an AFS server's inode.
const IMAGIC: u32 = 0x2000;
/// The inodes with fixed uses.
const BAD_BLOCKS: u32 = 1;
const BOOT_LOADER: u32 = 5;

/// The fields of an inode as they lie there, without regard to how many of them count.
fn fields(raw: &[u8]) -> Raw {
    let mut bytes = [0; FIELDS_SIZE];
    for (to, from) in bytes.iter_mut().zip(raw) {
        *to = *from;
    }
    Raw::read_from_bytes(&bytes).unwrap_or_else(|_| Raw::zeroed())
}

impl<R: ReadAt> Checker<'_, R> {
    /// Goes through all inode tables, as far as they were ever used.
    pub(super) fn check_inodes(&mut self) -> Step {
        let sb = self.sb();
        let piece = PIECE.max(sb.inode_size);
        let mut buf = Vec::new();
        let mut first = 1_u32;
        for group in &self.fs.groups {
            let table = group.inode_table.saturating_mul(sb.block_size);
            let limit = table_blocks(sb).saturating_mul(sb.block_size);
            let end = u64::from(group.used_inodes)
                .saturating_mul(sb.inode_size)
                .min(limit);
            let mut done = 0;
            while done < end {
                let len = end.saturating_sub(done).min(piece);
                let at = table.saturating_add(done);
                self.spend(len)?;
                buf.resize(index(len), 0);
                self.fs
                    .source
                    .read("read an inode table", at, &mut buf)
                    .map_err(Stop::Error)?;
                let skipped = u32::try_from(div(done, sb.inode_size)).unwrap_or(u32::MAX);
                let numbers = first.saturating_add(skipped)..;
                let places = (at..).step_by(index(sb.inode_size));
                for ((raw, number), at) in buf
                    .chunks_exact(index(sb.inode_size))
                    .zip(numbers)
                    .zip(places)
                {
                    if raw.iter().all(|byte| *byte == 0) {
                        self.check_absent(number)?;
                    } else {
                        self.check_inode(number, at, raw)?;
                    }
                }
                done = done.saturating_add(len);
            }
            first = first.saturating_add(sb.inodes_per_group);
        }
        Ok(())
    }

    /// An inode of zeros: not every one may be.
    fn check_absent(&mut self, number: u32) -> Step {
        let sb = self.sb();
        let needed = number == InodeNumber::ROOT.0
            || (number == sb.journal_inode && sb.has_compat(compat::HAS_JOURNAL));
        if needed {
            let structure = Self::inode_structure(number);
            self.found(structure, 0, Problem::Malformed, "the inode is not in use")?;
        }
        Ok(())
    }

    fn check_inode(&mut self, number: u32, at: u64, raw: &[u8]) -> Step {
        let sb = self.sb();
        let structure = Self::inode_structure(number);
        let fields = fields(raw);
        let links = fields.i_links_count.get();
        let mode = fields.i_mode.get();
        let orphan = self.orphans.contains(&number);
        let hidden = self.is_hidden(number);
        if links == 0 && !orphan {
            if !self.checksum_is_right(number, &fields, raw) {
                let detail = "the checksum does not match";
                self.found(structure, at, Problem::Malformed, detail)?;
            }
            if number == InodeNumber::ROOT.0 {
                return self.check_absent(number);
            }
            // An orphan's time of deletion is the number of the next.
            if self.dated && (1..sb.inodes).contains(&fields.i_dtime.get()) {
                let detail = "it is of an orphan list that does not begin in the superblock";
                self.found(structure, at, Problem::Reference, detail)?;
            }
            if !hidden {
                if mode != 0 && fields.i_dtime.get() == 0 {
                    let detail = "it has no links, but was not deleted";
                    self.found(structure, at, Problem::Malformed, detail)?;
                }
                return Ok(());
            }
        } else if fields.i_dtime.get() != 0 && !orphan {
            let detail = "it is in use, but has a time of deletion";
            self.found(structure, at, Problem::Malformed, detail)?;
        }
        if hidden && !self.check_hidden(number, at, &fields)? {
            return Ok(());
        }
        let unlinked = orphan || hidden;
        let parsed = self
            .fs
            .parse_inode(InodeNumber(number), at, raw, sb.checksums(), unlinked);
        let Some(Some(inode)) = self.note(parsed)? else {
            let kind = if hidden { Kind::Hidden } else { Kind::Broken };
            self.set_state(
                number,
                State {
                    kind,
                    links,
                    ..State::default()
                },
            );
            // What a damaged inode holds is not known.
            (self.blocks_known, self.names_known) = (false, false);
            return Ok(());
        };
        self.check_flags(&inode, &fields, raw)?;
        let value = inode.has(flags::EA_INODE);
        let kind = if hidden {
            Kind::Hidden
        } else if links == 0 {
            Kind::Orphan
        } else if value {
            Kind::Value
        } else {
            Kind::File(inode.file_type)
        };
        self.set_state(
            number,
            State {
                kind,
                encrypted: inode.is_encrypted(),
                indexed: inode.has(flags::INDEX),
                links,
                names: 0,
            },
        );
        if kind == Kind::File(FileType::Directory) {
            self.directories.push(Dir {
                number,
                parent: 0,
                above: 0,
            });
        }
        // Inodes too small for a project belong to project 0.
        let project = if fields.i_extra_isize.get() >= 32 && raw.len() > OLD_SIZE {
            fields.i_projid.get()
        } else {
            0
        };
        self.charge(&inode, project);
        self.check_content(&inode)
    }

    fn checksum_is_right(&self, number: u32, fields: &Raw, raw: &[u8]) -> bool {
        let sb = self.sb();
        if !sb.checksums() {
            return true;
        }
        let sum = Raw::checksum(sb.seed, number, fields.i_generation.get(), raw);
        let stored = fields.i_checksum_lo.get();
        if raw.len() > OLD_SIZE && Raw::has_checksum_hi(raw) {
            join16(fields.i_checksum_hi.get(), stored) == sum.value()
        } else {
            stored == sum.low()
        }
    }

    /// One of the filesystem's own inodes. Returns whether it is in use.
    fn check_hidden(&mut self, number: u32, at: u64, fields: &Raw) -> Step<bool> {
        let sb = self.sb();
        let structure = Self::inode_structure(number);
        let mode = fields.i_mode.get();
        let idle = fields.i_links_count.get() == 0
            && fields.i_blocks_lo.get() == 0
            && fields.i_blocks_high.get() == 0
            && fields.i_file_acl_lo.get() == 0
            && fields.i_size_lo.get() == 0
            && fields.i_size_high.get() == 0
            && le32(&fields.i_block, 0) == 0;
        let [journal, user, group, project, orphans] = sb.hidden_inodes;
        let quota = sb.has_ro_compat(ro_compat::QUOTA);
        let is_journal = number == journal && sb.has_compat(compat::HAS_JOURNAL);
        let is_quota = quota && [user, group, project].contains(&number);
        let is_orphans = number == orphans && sb.has_compat(compat::ORPHAN_FILE);
        let regular = FileType::from_mode(mode) == Some(FileType::Regular);
        let (right, detail) = if is_journal || is_quota || is_orphans {
            (
                regular,
                "a file of the filesystem's own is not a regular file",
            )
        } else {
            match number {
                BAD_BLOCKS => (
                    mode == 0
                        && fields.i_links_count.get() == 0
                        && fields.i_uid.get() == 0
                        && fields.i_gid.get() == 0
                        && fields.i_flags.get() & !flags::EXTENTS == 0
                        && fields.i_file_acl_lo.get() == 0,
                    "the list of bad blocks is more than a list of blocks",
                ),
                3 | 4 => (idle, "quotas are kept, without the feature quota"),
                8 => (idle, "a journal, which the superblock does not name"),
                BOOT_LOADER => (
                    FileType::from_mode(mode) != Some(FileType::Directory),
                    "the boot loader is a directory",
                ),
                RESIZE_INODE => (mode == 0 || regular, "a reserved inode of the wrong type"),
                _ => (mode == 0, "a reserved inode is in use"),
            }
        };
        let right = right && (mode != 0 || idle || number == BAD_BLOCKS);
        if !right {
            self.found(structure, at, Problem::Malformed, detail)?;
        }
        if number == BAD_BLOCKS && mode == 0 {
            // It has blocks, but no type: they are mapped as a regular file's.
            self.check_bad_blocks(at, fields)?;
            return Ok(false);
        }
        // An unused one has no type that could be parsed.
        Ok(mode != 0)
    }

    /// Flags and fields against the features of the filesystem and the type of the file.
    fn check_flags(&mut self, inode: &Inode, fields: &Raw, raw: &[u8]) -> Step {
        let sb = self.sb();
        let dir = inode.is_dir();
        let mut wrong = Vec::new();
        let mut must = |right: bool, problem: Problem, detail: &str| {
            if !right {
                wrong.push((problem, detail.to_owned()));
            }
        };
        let announced = [
            (
                flags::EXTENTS,
                sb.has_incompat(incompat::EXTENTS),
                "extents",
            ),
            (
                flags::INLINE_DATA,
                sb.has_incompat(incompat::INLINE_DATA),
                "inline data",
            ),
            (
                flags::EA_INODE,
                sb.has_incompat(incompat::EA_INODE),
                "an attribute's value",
            ),
            (
                flags::ENCRYPT,
                sb.has_incompat(incompat::ENCRYPT),
                "encryption",
            ),
            (flags::VERITY, sb.has_ro_compat(ro_compat::VERITY), "verity"),
            (IMAGIC, sb.has_compat(compat::IMAGIC_INODES), "an AFS inode"),
            (
                flags::INDEX,
                sb.has_compat(compat::DIR_INDEX),
                "a hash tree",
            ),
        ];
        for (flag, known, what) in announced {
            must(
                !inode.has(flag) || known,
                Problem::Feature,
                &format!("{what}, which the superblock does not announce"),
            );
        }
        must(
            !inode.has(flags::INDEX) || dir,
            Problem::Malformed,
            "a hash tree, but it is not a directory",
        );
        must(
            !inode.has(flags::CASEFOLD) || dir,
            Problem::Malformed,
            "case-folded, but it is not a directory",
        );
        if let FileType::CharDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket =
            inode.file_type
        {
            must(
                inode.size == 0 && fields.i_size_high.get() == 0,
                Problem::Malformed,
                "a device, socket or FIFO with a size",
            );
            must(
                !inode.has(flags::EXTENTS) && !inode.has(flags::INLINE_DATA),
                Problem::Malformed,
                "a device, socket or FIFO with contents",
            );
        }
        if !matches!(inode.file_type, FileType::Regular | FileType::Directory) {
            must(
                !inode.has(flags::IMMUTABLE) && !inode.has(flags::APPEND),
                Problem::Malformed,
                "immutable or append-only, but it is neither a file nor a directory",
            );
        }
        // A directory's or link's upper half counts under `large_dir` alone.
        must(
            inode.file_type == FileType::Regular
                || fields.i_size_high.get() == 0
                || (dir && sb.has_incompat(incompat::LARGEDIR)),
            Problem::Malformed,
            "a size beyond 4 GiB",
        );
        must(
            fields.i_obso_faddr.get() == 0,
            Problem::Malformed,
            "the address of a fragment",
        );
        must(
            fields.i_blocks_high.get() == 0 || sb.has_ro_compat(ro_compat::HUGE_FILE),
            Problem::Malformed,
            "the upper half of its blocks, without huge_file",
        );
        must(
            fields.i_file_acl_high.get() == 0 || sb.has_incompat(incompat::BIT64),
            Problem::Malformed,
            "the upper half of its attributes' block, without 64bit",
        );
        must(
            (inode.xattr_block == 0 && inode.body.is_none()) || sb.has_compat(compat::EXT_ATTR),
            Problem::Feature,
            "extended attributes, which the superblock does not announce",
        );
        let extra = fields.i_extra_isize.get();
        must(
            raw.len() <= OLD_SIZE || extra == 0 || (extra >= 4 && extra.is_multiple_of(4)),
            Problem::Malformed,
            &format!("i_extra_isize is {extra}"),
        );
        for (problem, detail) in wrong {
            self.found(
                crate::reader::Structure::Inode(inode.number),
                inode.offset,
                problem,
                detail,
            )?;
        }
        Ok(())
    }

    /// The inode's own count of its space, in units of 512 bytes.
    pub(super) fn check_space(&mut self, inode: &Inode, clusters: u64) -> Step {
        let sb = self.sb();
        let counted = clusters
            .saturating_mul(sb.cluster_size)
            .checked_shr(9)
            .unwrap_or(0);
        if inode.blocks_512 != counted {
            let detail = format!(
                "it says that it takes {} units of 512 bytes, and takes {counted}",
                inode.blocks_512
            );
            self.found(
                crate::reader::Structure::Inode(inode.number),
                inode.offset,
                Problem::Count,
                detail,
            )?;
        }
        Ok(())
    }

    /// The references that a value's inode says it has (kernel: `ext4_xattr_inode_get_ref`).
    pub(super) fn value_references(&self, inode: &Inode) -> Step<(u64, bool)> {
        let raw = self
            .fs
            .source
            .meta("read an inode", inode.offset, len64(OLD_SIZE))
            .map_err(Stop::Error)?;
        let fields = fields(&raw);
        let count = join32(fields.i_ctime.get(), fields.i_version_lo.get());
        // Lustre's have no count, and the same time twice.
        Ok((count, fields.i_ctime == fields.i_atime))
    }
}
