//! What an inode holds: its blocks, their number, its size.

use lcow_blockio::ReadAt;

use super::layout::RESIZE_INODE;
use super::{Checker, Kind, Problem, Step, Stop};
use crate::format::Inode as Raw;
use crate::format::inode::{I_BLOCK_SIZE, flags};
use crate::format::superblock::ro_compat;
use crate::reader::internal::num::{div, index, join32, le16, len64, rem};
use crate::reader::internal::{Mapping, Owner};
use crate::reader::{Inode, Structure};
use crate::{FileType, InodeNumber};

impl<R: ReadAt> Checker<'_, R> {
    pub(super) fn check_content(&mut self, inode: &Inode) -> Step {
        let Some(mut clusters) = self.check_attributes(inode)? else {
            self.blocks_known = false;
            return Ok(());
        };
        let mapping = match inode.file_type {
            _ if inode.has(flags::INLINE_DATA) => {
                let data = self.fs.inline_data(inode);
                if let Some((head, rest)) = self.note(data)? {
                    let room = len64(head.len()).saturating_add(len64(rest.len()));
                    self.check_inline(inode, room)?;
                }
                Mapping::default()
            }
            FileType::Symlink if self.is_fast(inode) => Mapping::default(),
            FileType::Regular | FileType::Directory | FileType::Symlink => {
                let mapping = self.fs.mapping(inode, self.owner(inode.number.0));
                let Some(mapping) = self.note(mapping)? else {
                    self.blocks_known = false;
                    return Ok(());
                };
                mapping
            }
            _ => Mapping::default(),
        };
        clusters = clusters.saturating_add(self.claim(inode, &mapping)?);
        self.check_space(inode, clusters)?;
        match inode.file_type {
            FileType::Symlink => self.check_symlink(inode),
            _ if inode.has(flags::INLINE_DATA) => Ok(()),
            FileType::Regular => self.check_size(inode, &mapping),
            FileType::Directory => self.check_directory_size(inode, &mapping),
            _ => Ok(()),
        }
    }

    /// The kernel's rule for a target that lies in the inode: it owns no block but that of its attributes.
    fn is_fast(&self, inode: &Inode) -> bool {
        let attributes = if inode.xattr_block == 0 {
            0
        } else {
            self.sb().cluster_size >> 9
        };
        !inode.has(flags::EXTENTS) && inode.blocks_512 == attributes
    }

    /// Takes the blocks of a file; returns how many clusters they are.
    fn claim(&mut self, inode: &Inode, mapping: &Mapping) -> Step<u64> {
        let ratio = self.ratio();
        if inode.number.0 == RESIZE_INODE {
            // All but the root is the room kept behind the descriptors of each copy, and taken already.
            if let Some(root) = mapping.nodes.first() {
                let cluster = self.cluster(*root);
                self.take(inode, cluster, 1)?;
            }
            let blocks: u64 = mapping.extents.iter().map(|e| e.len).sum();
            return Ok(blocks.saturating_add(len64(mapping.nodes.len())));
        }
        let mut clusters = 0_u64;
        let mut last = None;
        for extent in &mapping.extents {
            let mut from = self.cluster(extent.physical);
            let to = self
                .cluster(extent.physical.saturating_add(extent.len.saturating_sub(1)))
                .saturating_add(1);
            if ratio > 1 {
                if rem(extent.physical, ratio) != rem(extent.logical, ratio) {
                    let detail = format!(
                        "block {} of the file is block {} of the disk, which is elsewhere in its cluster",
                        extent.logical, extent.physical
                    );
                    self.found(
                        Structure::Inode(inode.number),
                        inode.offset,
                        Problem::Malformed,
                        detail,
                    )?;
                }
                // The rest of a cluster that the extent before had a part of.
                let same = Some((div(extent.logical, ratio), from));
                if last == same {
                    from = from.saturating_add(1);
                }
                let end = extent.logical.saturating_add(extent.len.saturating_sub(1));
                last = Some((div(end, ratio), to.saturating_sub(1)));
            }
            let len = to.saturating_sub(from);
            clusters = clusters.saturating_add(len);
            self.take(inode, from, len)?;
        }
        for node in &mapping.nodes {
            let cluster = self.cluster(*node);
            self.take(inode, cluster, 1)?;
        }
        Ok(clusters.saturating_add(len64(mapping.nodes.len())))
    }

    fn take(&mut self, inode: &Inode, cluster: u64, len: u64) -> Step {
        let clash = self.usage.claim(cluster, len);
        if let Some(clash) = clash
            && !self.sb().shares_blocks()
        {
            let block = clash
                .saturating_mul(self.ratio())
                .saturating_add(self.sb().first_data_block);
            self.found(
                Structure::Inode(inode.number),
                inode.offset,
                Problem::Shared,
                format!("block {block} is in use already"),
            )?;
        }
        Ok(())
    }

    fn check_inline(&mut self, inode: &Inode, room: u64) -> Step {
        let right = if inode.is_dir() {
            inode.size == room
        } else {
            inode.size <= room
        };
        if !right {
            let detail = format!("a size of {} with {room} bytes of data", inode.size);
            self.found(
                Structure::Inode(inode.number),
                inode.offset,
                Problem::Malformed,
                detail,
            )?;
        }
        Ok(())
    }

    /// A regular file must not have data past its end, nor be larger than its map can be (e2fsck: `check_blocks`).
    fn check_size(&mut self, inode: &Inode, mapping: &Mapping) -> Step {
        let sb = self.sb();
        let last = mapping.extents.iter().rev().find(|e| e.written);
        let limit = if inode.has(flags::EXTENTS) {
            (1 << 32) - 1
        } else {
            let per_block = sb.block_size >> 2;
            let double = per_block.saturating_mul(per_block);
            let triple = double.saturating_mul(per_block);
            triple
                .saturating_add(double)
                .saturating_add(per_block)
                .saturating_add(12)
        };
        let past_end = last.is_some_and(|extent| {
            let last = extent.end().saturating_sub(1);
            inode.size < last.saturating_mul(sb.block_size)
        });
        let detail = if past_end && !inode.has(flags::VERITY) {
            format!("{} bytes, and data beyond them", inode.size)
        } else if inode.size > sb.block_size.saturating_mul(limit) {
            format!("a size of {} bytes, more than its map can hold", inode.size)
        } else {
            return Ok(());
        };
        self.found(
            Structure::Inode(inode.number),
            inode.offset,
            Problem::Malformed,
            detail,
        )
    }

    fn check_directory_size(&mut self, inode: &Inode, mapping: &Mapping) -> Step {
        let sb = self.sb();
        let blocks = div(inode.size, sb.block_size);
        let end = mapping
            .extents
            .last()
            .map_or(0, super::super::reader::Extent::end);
        let spare = u64::from(self.raw_superblock()?.s_prealloc_dir_blocks);
        let whole = inode.size > 0 && rem(inode.size, sb.block_size) == 0;
        if !whole || blocks > end || end.saturating_sub(blocks) > spare {
            let detail = format!("a directory of {} bytes in {end} blocks", inode.size);
            self.found(
                Structure::Inode(inode.number),
                inode.offset,
                Problem::Malformed,
                detail,
            )?;
        }
        Ok(())
    }

    /// A target is as long as the inode says, and ends with a zero.
    fn check_symlink(&mut self, inode: &Inode) -> Step {
        if inode.is_encrypted() {
            return Ok(());
        }
        let target = self.fs.read_link(inode);
        let Some(target) = self.note(target)? else {
            return Ok(());
        };
        let terminated = if inode.has(flags::INLINE_DATA) {
            true
        } else if self.is_fast(inode) {
            inode.block.get(target.len()) == Some(&0)
        } else {
            let mapping = self.fs.mapping(inode, Owner::File).map_err(Stop::Error)?;
            let [only] = mapping.extents.as_slice() else {
                return self.bad_symlink(inode, "its target is not in one block");
            };
            if only.len != 1 {
                return self.bad_symlink(inode, "its target is not in one block");
            }
            let block = self
                .fs
                .block("read a symbolic link", only.physical)
                .map_err(Stop::Error)?;
            block.get(target.len()) == Some(&0)
        };
        if !terminated {
            return self.bad_symlink(inode, "its target goes on past its size");
        }
        Ok(())
    }

    fn bad_symlink(&mut self, inode: &Inode, detail: &str) -> Step {
        self.found(
            Structure::Symlink(inode.number),
            inode.offset,
            Problem::Malformed,
            detail,
        )
    }

    /// The blocks that the list of bad blocks holds; they are in use, and by nobody else.
    pub(super) fn check_bad_blocks(&mut self, at: u64, fields: &Raw) -> Step {
        if fields.i_block == [0; I_BLOCK_SIZE] {
            return Ok(());
        }
        let inode = Inode {
            number: InodeNumber(1),
            file_type: FileType::Regular,
            permissions: 0,
            uid: 0,
            gid: 0,
            size: join32(fields.i_size_high.get(), fields.i_size_lo.get()),
            links: 0,
            atime: crate::Timestamp::default(),
            mtime: crate::Timestamp::default(),
            ctime: crate::Timestamp::default(),
            crtime: None,
            blocks_512: u64::from(fields.i_blocks_lo.get()),
            generation: fields.i_generation.get(),
            flags: fields.i_flags.get(),
            block: fields.i_block,
            xattr_block: 0,
            body: None,
            offset: at,
            body_offset: 0,
        };
        let mapping = self.fs.mapping(&inode, Owner::Own);
        let Some(mapping) = self.note(mapping)? else {
            self.blocks_known = false;
            return Ok(());
        };
        let clusters = self.claim(&inode, &mapping)?;
        self.check_space(&inode, clusters)
    }

    /// Adds an inode to what its owners have.
    pub(super) fn charge(&mut self, inode: &Inode, project: u32) {
        let sb = self.sb();
        if !sb.has_ro_compat(ro_compat::QUOTA) {
            return;
        }
        let counts = inode.number == InodeNumber::ROOT
            || (inode.number.0 >= sb.first_inode
                && self.state(inode.number.0).kind != Kind::Hidden
                && self.state(inode.number.0).kind != Kind::Value);
        if counts {
            self.quotas.charge(inode, project);
        }
    }
}

/// The 16-bit number at `at`, as an index.
pub(super) fn short(bytes: &[u8], at: usize) -> usize {
    index(u64::from(le16(bytes, at)))
}
