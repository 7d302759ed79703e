//! Inodes, from the table on disk to checked fields.

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::error::{ReadError, Structure};
use super::num::{div, index, join16, join32, le32, rem, slice};
use super::{Filesystem, group};
use crate::format::Inode as Raw;
use crate::format::inode::{
    FIELDS_SIZE, I_BLOCK_SIZE, OLD_SIZE, decode_device, decode_time, flags,
};
use crate::format::superblock::{compat, incompat, ro_compat};
use crate::format::xattr;
use crate::{Device, FileType, InodeNumber, Timestamp};

/// An inode: everything about a file but its name and its content.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Its number.
    pub number: InodeNumber,
    /// What it is.
    pub file_type: FileType,
    /// Permission bits with setuid, setgid and sticky: 0 … 0o7777.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content; of a symbolic link the length of its target.
    pub size: u64,
    /// Links. A directory that has more than 65,000 shows 1.
    pub links: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation, in inodes that have room for it.
    pub crtime: Option<Timestamp>,
    /// Space in use, in units of 512 bytes (`st_blocks`).
    pub blocks_512: u64,
    /// The generation, which NFS and checksums use.
    pub generation: u32,
    /// `i_flags`, see [`crate::format::inode::flags`].
    pub flags: u32,
    pub(crate) block: [u8; I_BLOCK_SIZE],
    /// Block of extended attributes; 0: none.
    pub(crate) xattr_block: u64,
    /// In-inode extended attributes, the magic number not included; `None` if there are none.
    pub(crate) body: Option<Box<[u8]>>,
    /// Where the inode lies, in bytes.
    pub(crate) offset: u64,
    /// Where `body` lies, in bytes.
    pub(crate) body_offset: u64,
}

impl Inode {
    /// The device that a character or block device file stands for.
    #[must_use]
    pub fn device(&self) -> Option<Device> {
        matches!(self.file_type, FileType::CharDevice | FileType::BlockDevice)
            .then(|| decode_device([le32(&self.block, 0), le32(&self.block, 4)]))
    }

    /// Type and permissions as `st_mode` has them.
    #[must_use]
    pub fn mode(&self) -> u16 {
        self.file_type.mode_bits() | self.permissions
    }

    /// Whether this is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file_type == FileType::Directory
    }

    /// Whether the content (or, of a directory, its names) is encrypted, and so can't be read here.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.has(flags::ENCRYPT)
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn corrupt(&self, detail: impl Into<String>) -> ReadError {
        ReadError::corrupt(Structure::Inode(self.number), self.offset, detail)
    }
}

impl<R: ReadAt> Filesystem<R> {
    /// Reads an inode. Its checksum, where the filesystem has them, and its fields are checked.
    ///
    /// # Errors
    /// *corrupt* also if there is no such inode, or it is not in use.
    pub fn inode(&self, number: InodeNumber) -> Result<Inode, ReadError> {
        self.inode_in_use(number)?.ok_or_else(|| {
            let offset = self.inode_place(number).map_or(0, |(offset, _)| offset);
            ReadError::corrupt(Structure::Inode(number), offset, "the inode is not in use")
        })
    }

    /// As [`Filesystem::inode`]; `None` if it has no links.
    pub(crate) fn inode_in_use(&self, number: InodeNumber) -> Result<Option<Inode>, ReadError> {
        if let Some(raw) = self.changed.inode(number) {
            let (offset, _) = self.inode_place(number)?;
            return self.parse_inode(number, offset, raw, false, false);
        }
        let offset = self.inode_offset(number)?;
        let raw = self
            .source
            .meta("read an inode", offset, self.superblock.inode_size)?;
        self.parse_inode(number, offset, &raw, self.superblock.checksums(), false)
    }

    /// An inode's bytes on the disk; `None` where the group says that it was never used.
    pub(crate) fn raw_inode(&self, number: InodeNumber) -> Result<Option<Vec<u8>>, ReadError> {
        let (offset, used) = self.inode_place(number)?;
        if !used {
            return Ok(None);
        }
        let size = self.superblock.inode_size;
        let raw = self.source.meta("read an inode", offset, size)?;
        Ok(Some(raw.to_vec()))
    }

    /// Where an inode that may be in use lies, in bytes.
    pub(crate) fn inode_offset(&self, number: InodeNumber) -> Result<u64, ReadError> {
        match self.inode_place(number)? {
            (offset, true) => Ok(offset),
            _ => {
                let sb = &self.superblock;
                let place = u64::from(number.0.saturating_sub(1));
                let group = div(place, u64::from(sb.inodes_per_group));
                Err(ReadError::corrupt(
                    Structure::Inode(number),
                    group::locate(sb, u32::try_from(group).unwrap_or(u32::MAX)),
                    format!("group {group} says it was never used"),
                ))
            }
        }
    }

    /// Where an inode lies, in bytes, and whether its group says that it was ever used.
    fn inode_place(&self, number: InodeNumber) -> Result<(u64, bool), ReadError> {
        let sb = &self.superblock;
        let Some(place) = number.0.checked_sub(1).filter(|_| number.0 <= sb.inodes) else {
            return Err(ReadError::corrupt(
                Structure::Inode(number),
                0,
                format!("there are only {} inodes", sb.inodes),
            ));
        };
        let group_number = div(u64::from(place), u64::from(sb.inodes_per_group));
        let place = rem(u64::from(place), u64::from(sb.inodes_per_group));
        let Some(group) = self.groups.get(index(group_number)) else {
            return Err(ReadError::corrupt(
                Structure::Inode(number),
                0,
                format!("there is no group {group_number}"),
            ));
        };
        if !group.in_place {
            return Err(ReadError::corrupt(
                Structure::Inode(number),
                0,
                format!("group {group_number} has no inode table"),
            ));
        }
        let offset = group
            .inode_table
            .saturating_mul(sb.block_size)
            .saturating_add(place.saturating_mul(sb.inode_size));
        Ok((offset, place < u64::from(group.used_inodes)))
    }

    /// Checks an inode, its checksum too if it has one; `None` if it has no links, unless such (orphans) are wanted too.
    pub(crate) fn parse_inode(
        &self,
        number: InodeNumber,
        offset: u64,
        raw: &[u8],
        has_checksum: bool,
        unlinked: bool,
    ) -> Result<Option<Inode>, ReadError> {
        let sb = &self.superblock;
        let corrupt = |detail: String| ReadError::corrupt(Structure::Inode(number), offset, detail);
        // The fields past the first 128 bytes count only as far as `i_extra_isize` says.
        let mut fields = [0; FIELDS_SIZE];
        let extra = if raw.len() > OLD_SIZE {
            usize::from(u16::from_le_bytes([
                raw.get(OLD_SIZE).copied().unwrap_or(0),
                raw.get(OLD_SIZE.saturating_add(1)).copied().unwrap_or(0),
            ]))
        } else {
            0
        };
        let used = OLD_SIZE.saturating_add(extra);
        if used > raw.len() || extra % 4 != 0 {
            return Err(corrupt(format!("i_extra_isize is {extra}")));
        }
        for (to, from) in fields.iter_mut().zip(raw.iter().take(used)) {
            *to = *from;
        }
        let Ok(fields) = Raw::ref_from_bytes(&fields) else {
            return Err(corrupt("the inode is not whole".to_owned()));
        };
        let links = u32::from(fields.i_links_count.get());
        let mode = fields.i_mode.get();
        if has_checksum {
            let sum = Raw::checksum(sb.seed, number.0, fields.i_generation.get(), raw);
            let stored = fields.i_checksum_lo.get();
            let matches = if Raw::has_checksum_hi(raw) {
                join16(fields.i_checksum_hi.get(), stored) == sum.value()
            } else {
                stored == sum.low()
            };
            if !matches {
                return Err(corrupt("the checksum does not match".to_owned()));
            }
        }
        if links == 0 && !unlinked {
            return Ok(None);
        }
        let Some(file_type) = FileType::from_mode(mode) else {
            return Err(corrupt(format!("mode {mode:#o} has no file type")));
        };
        let flags = fields.i_flags.get();
        let high_size =
            if matches!(file_type, FileType::Regular) || sb.has_incompat(incompat::LARGEDIR) {
                fields.i_size_high.get()
            } else {
                0
            };
        let size = join32(high_size, fields.i_size_lo.get());
        if size > i64::MAX.cast_unsigned() {
            return Err(corrupt(format!("a size of {size} bytes")));
        }
        if flags & flags::INDEX != 0
            && file_type == FileType::Directory
            && !sb.has_compat(compat::DIR_INDEX)
        {
            return Err(corrupt(
                "a hash tree, which the superblock does not announce".to_owned(),
            ));
        }
        if flags & flags::INLINE_DATA != 0 && flags & flags::EXTENTS != 0 {
            return Err(corrupt("both inline data and extents".to_owned()));
        }
        if flags & flags::CASEFOLD != 0 && !sb.has_incompat(incompat::CASEFOLD) {
            return Err(corrupt(
                "case-folded, which the superblock does not announce".to_owned(),
            ));
        }
        let blocks = join32(
            u32::from(fields.i_blocks_high.get()),
            fields.i_blocks_lo.get(),
        );
        let blocks_512 = if flags & flags::HUGE_FILE != 0 && sb.has_ro_compat(ro_compat::HUGE_FILE)
        {
            blocks.saturating_mul(sb.block_size >> 9)
        } else {
            blocks
        };
        let time = |seconds: u32, extra_field: u32, end: usize| {
            decode_time(seconds, (extra >= end).then_some(extra_field))
        };
        let body_at = used.saturating_add(xattr::INODE_HEADER_SIZE);
        let body = if extra > 0 && le32(raw, used) == xattr::MAGIC {
            raw.get(body_at..).map(Box::from)
        } else {
            None
        };
        Ok(Some(Inode {
            number,
            file_type,
            permissions: mode & 0o7777,
            uid: join16(fields.i_uid_high.get(), fields.i_uid.get()),
            gid: join16(fields.i_gid_high.get(), fields.i_gid.get()),
            size,
            links,
            atime: time(fields.i_atime.get(), fields.i_atime_extra.get(), 16),
            mtime: time(fields.i_mtime.get(), fields.i_mtime_extra.get(), 12),
            ctime: time(fields.i_ctime.get(), fields.i_ctime_extra.get(), 8),
            crtime: (extra >= 20).then(|| {
                let more = (extra >= 24).then_some(fields.i_crtime_extra.get());
                decode_time(fields.i_crtime.get(), more)
            }),
            blocks_512,
            generation: fields.i_generation.get(),
            flags,
            block: fields.i_block,
            xattr_block: join32(
                // Linux `ext4_iget`.
                if sb.hurd {
                    0
                } else {
                    u32::from(fields.i_file_acl_high.get())
                },
                fields.i_file_acl_lo.get(),
            ),
            body,
            offset,
            body_offset: offset.saturating_add(super::num::len64(body_at)),
        }))
    }

    /// The data inside an inode that has [`flags::INLINE_DATA`]: first what lies in place of the block map, then what is
    /// kept as the attribute `system.data`.
    pub(crate) fn inline_data<'i>(
        &self,
        inode: &'i Inode,
    ) -> Result<(&'i [u8], &'i [u8]), ReadError> {
        let Some(body) = inode.body.as_deref() else {
            return Err(inode.corrupt("inline data without its attribute"));
        };
        let rest = super::xattr::find_inline(inode, body)?
            .ok_or_else(|| inode.corrupt("inline data without its attribute"))?;
        Ok((&inode.block, rest))
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// *unsupported* if it is encrypted; [`ReadError::NotASymlink`] for anything but a symbolic link.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        if inode.file_type != FileType::Symlink {
            return Err(ReadError::NotASymlink {
                inode: inode.number,
            });
        }
        if inode.is_encrypted() {
            return Err(ReadError::unsupported(format!(
                "encrypt (symbolic link, inode {})",
                inode.number
            )));
        }
        let corrupt = |detail: String| {
            ReadError::corrupt(Structure::Symlink(inode.number), inode.offset, detail)
        };
        let size = index(inode.size);
        // The kernel's rule for a target inside the inode: the inode owns no block but that of its attributes.
        let attribute_blocks = if inode.xattr_block == 0 {
            0
        } else {
            self.superblock.cluster_size >> 9
        };
        let target = if inode.has(flags::INLINE_DATA) {
            let (head, rest) = self.inline_data(inode)?;
            let all = [head, rest].concat();
            slice(&all, 0, size).map(<[u8]>::to_vec)
        } else if inode.blocks_512 == attribute_blocks && size < I_BLOCK_SIZE {
            slice(&inode.block, 0, size).map(<[u8]>::to_vec)
        } else if inode.size < self.superblock.block_size {
            let mut target = vec![0; size];
            let map = self.map_blocks(inode, 1)?;
            if !map
                .extents()
                .first()
                .is_some_and(|first| first.logical == 0 && first.written)
            {
                return Err(corrupt("no block holds the target".to_owned()));
            }
            self.read_mapped(&map, 0, &mut target)?;
            Some(target)
        } else {
            None
        };
        match target {
            Some(target) if !target.is_empty() && !target.contains(&0) => Ok(target),
            Some(_) => Err(corrupt("an empty target, or one with a NUL".to_owned())),
            None => Err(corrupt(format!("a target of {size} bytes"))),
        }
    }
}
