//! Blank filesystems for a kernel to write on.
//!
//! [`format()`] lays out what `mke2fs` would, in milliseconds: groups and inode tables stay uninitialised and are holes of a sparse
//! disk, and only the superblock, the descriptors, the few bitmaps that hold something, the root's directories and the
//! journal's superblock are written. Every kernel from 5.10 mounts and writes it, and can discard and grow it.
//!
//! ```text
//! superblock │ descriptors │ bitmaps and inode tables of 16 groups │ directories │ journal │ …
//! ```
//! Superblock and descriptors have copies in groups 1 and the powers of 3, 5 and 7 (`sparse_super`); above 256 GiB only in group 1
//! and the last (`sparse_super2`). All checksums start from a constant seed (`metadata_csum_seed`), so that a copy of a disk
//! gets an identity of its own by rewriting superblocks: [`set_uuid`].
//!
//! The same options give the same bytes: no clock is read, and times are those given or 1970.

// Sizes are bounded by 16 TiB, the largest filesystem made here; what `set_uuid` reads from a disk goes through checked arithmetic.
#![allow(clippy::arithmetic_side_effects)]

mod layout;

use std::io;

use lcow_blockio::WriteAt;
use zerocopy::{FromBytes, IntoBytes};

use crate::format::extent::MAX_LEN;
use crate::format::group::{BLOCK_UNINIT, GroupDescriptor, INODE_UNINIT, INODE_ZEROED};
use crate::format::inode::flags;
use crate::format::journal::{
    BLOCK_SUPERBLOCK_V2, JOURNAL_MAGIC, JournalHeader, JournalSuperblock,
};
use crate::format::superblock::{
    FIRST_INODE, JOURNAL_BACKUP_BLOCKS, JOURNAL_INODE, MAGIC, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE,
    Superblock, compat, incompat, ro_compat,
};
use crate::format::{BLOCK_SIZE, NAME_MAX, dir};
use crate::writer::Metadata;
use crate::writer::internal::{
    DiskTime, GROUP_MAX, Group, INODES_PER_BLOCK, InodeFields, Run, bitmap_checksum, empty_block,
    halves, leaf_node, linear_block, root_of_leaf, root_of_runs, seed, set_bits, superblock,
};
use crate::{FileType, InodeNumber};
use layout::Layout;

/// The smallest filesystem made here, in bytes.
pub const SIZE_MIN: u64 = 16 << 20;
/// The largest filesystem made here, in bytes.
pub const SIZE_MAX: u64 = 16 << 40;
/// Blocks of `lost+found`, so that e2fsck need not allocate when it is needed.
const LOST_AND_FOUND_BLOCKS: u32 = 4;

/// What to make.
#[derive(Debug, Clone)]
pub struct FormatOptions<'a> {
    /// Size of the disk in bytes, [`SIZE_MIN`] … [`SIZE_MAX`]. The filesystem has whole blocks of 4 KiB, and leaves a last group unused
    /// that has hardly room for its own metadata.
    pub size: u64,
    /// With a journal (inode 8), of the size `mke2fs` chooses: 4 MiB … 1 GiB.
    pub journal: bool,
    /// The filesystem's UUID.
    pub uuid: [u8; 16],
    /// Seed of directory hashes.
    pub hash_seed: [u8; 16],
    /// Up to 16 bytes.
    pub label: &'a str,
    /// Directories to make in the root, which also has `lost+found`. Together their names must fit a block.
    pub root_dirs: &'a [(&'a str, Metadata)],
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formatted {
    /// Blocks of 4 KiB.
    pub blocks: u64,
    /// Blocks for use.
    pub free_blocks: u64,
    /// Inodes.
    pub inodes: u32,
    /// Blocks of the journal; 0 without one.
    pub journal_blocks: u32,
}

/// Why a filesystem could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The size is out of range.
    #[error("a size of {size} bytes is not between 16 MiB and 16 TiB")]
    Size {
        /// The size asked for, in bytes.
        size: u64,
    },
    /// The label is too long.
    #[error("the label {label:?} is longer than 16 bytes")]
    Label {
        /// The label.
        label: String,
    },
    /// A root directory's name is invalid, given twice, or one too many for a block.
    #[error("{name:?} can't be the name of a directory in the root")]
    RootDir {
        /// The name.
        name: String,
    },
    /// There is no superblock, it is damaged, or its checksums depend on the UUID.
    #[error("the disk holds no ext4 filesystem whose UUID can be changed: {reason}")]
    NotOurs {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The disk failed.
    #[error("can't {operation} at byte {offset} of the disk")]
    Io {
        /// What was being done: "read", "write", "set the length".
        operation: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// The error.
        source: io::Error,
    },
}

fn io_error(operation: &'static str, offset: u64) -> impl FnOnce(io::Error) -> FormatError {
    move |source| FormatError::Io {
        operation,
        offset,
        source,
    }
}

/// Writes blocks by their numbers.
struct Blocks<'a, D>(&'a D);

impl<D: WriteAt> Blocks<'_, D> {
    fn write(&self, block: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let offset = block * BLOCK_SIZE as u64;
        self.0
            .write_all_at(offset, bytes)
            .map_err(io_error("write", offset))
    }
}

/// Makes a blank filesystem on an empty disk (of zeros, or of no length yet). Does not sync.
pub fn format<D: WriteAt>(disk: &D, options: &FormatOptions<'_>) -> Result<Formatted, FormatError> {
    let size = options.size;
    if !(SIZE_MIN..=SIZE_MAX).contains(&size) {
        return Err(FormatError::Size { size });
    }
    let mut label = [0; 16];
    let text = options.label.as_bytes();
    label
        .get_mut(..text.len())
        .ok_or_else(|| FormatError::Label {
            label: options.label.to_owned(),
        })?
        .copy_from_slice(text);
    check_root_dirs(options.root_dirs)?;

    let mut layout = Layout::new(size);
    let out = Blocks(disk);
    disk.set_len(size)
        .map_err(io_error("set the length", size))?;

    // Directories and their inodes: the root, lost+found, those asked for.
    let dir_count = u32::try_from(options.root_dirs.len()).unwrap_or(u32::MAX);
    let root_metadata = Metadata {
        permissions: 0o755,
        ..Metadata::default()
    };
    let lost_metadata = Metadata {
        permissions: 0o700,
        ..Metadata::default()
    };
    let dirs = std::iter::once(("lost+found", lost_metadata, LOST_AND_FOUND_BLOCKS)).chain(
        options
            .root_dirs
            .iter()
            .map(|(name, metadata)| (*name, *metadata, 1)),
    );
    let root = InodeNumber::ROOT.0;
    let names = (FIRST_INODE..).zip(dirs.clone());
    let names = names
        .map(|(inode, (name, ..))| (inode, name.as_bytes(), FileType::Directory.dirent_code()));
    let inode_seed = |inode: u32| seed().inode(inode, 0);
    let block = layout.allocate(1);
    out.write(block, &linear_block(root, root, names, inode_seed(root)))?;
    let mut table = vec![directory(root, &root_metadata, 3 + dir_count, block, 1)];
    for (inode, (_, metadata, blocks)) in (FIRST_INODE..).zip(dirs) {
        let block = layout.allocate(blocks);
        let own = inode_seed(inode);
        out.write(block, &linear_block(inode, root, std::iter::empty(), own))?;
        for more in 1..u64::from(blocks) {
            out.write(block + more, &empty_block(own))?;
        }
        table.push(directory(inode, &metadata, 2, block, blocks));
    }
    let mut sb_journal = None;
    let mut journal_blocks = 0;
    if options.journal {
        journal_blocks = layout.journal_blocks();
        let fields = make_journal(&out, &mut layout, journal_blocks)?;
        sb_journal = Some((fields.content, fields.size));
        table.push((JOURNAL_INODE, fields));
    }
    write_inodes(&out, &layout, &table)?;

    let used_inodes = FIRST_INODE + dir_count;
    let groups = finish_groups(&out, &layout, used_inodes)?;
    let geometry = layout.geometry;
    let free_blocks = groups
        .iter()
        .map(|group| u64::from(group.free_blocks))
        .sum();
    let free_inodes = groups.iter().map(|group| group.free_inodes).sum();
    let mut sb = superblock(
        &geometry,
        free_blocks,
        free_inodes,
        options.uuid,
        options.hash_seed,
    );
    sb.s_volume_name = label;
    match layout.two_backups {
        Some([first, last]) => {
            sb.s_feature_compat |= compat::SPARSE_SUPER2;
            sb.s_backup_bgs = [first.into(), last.into()];
        }
        None => sb.s_feature_ro_compat |= ro_compat::SPARSE_SUPER,
    }
    if let Some((content, size)) = sb_journal {
        sb.s_feature_compat |= compat::HAS_JOURNAL;
        sb.s_journal_inum = JOURNAL_INODE.into();
        sb.s_jnl_backup_type = JOURNAL_BACKUP_BLOCKS;
        for (word, bytes) in sb.s_jnl_blocks.iter_mut().zip(content.as_chunks::<4>().0) {
            word.set(u32::from_le_bytes(*bytes));
        }
        let (lo, hi) = halves(size);
        sb.s_jnl_blocks[15].set(hi);
        sb.s_jnl_blocks[16].set(lo);
    }
    let descriptors: Vec<GroupDescriptor> = (0..)
        .zip(&groups)
        .map(|(number, group)| group.descriptor(number))
        .collect();
    for group in layout.copies() {
        let start = u64::from(group) * u64::from(geometry.blocks_per_group);
        write_superblock(disk, &mut sb, group, start)?;
        out.write(start + 1, descriptors.as_bytes())?;
    }
    Ok(Formatted {
        blocks: geometry.blocks,
        free_blocks,
        inodes: geometry.groups * geometry.inodes_per_group,
        journal_blocks,
    })
}

/// Gives a copy of a filesystem that was not mounted since it was formatted a UUID of its own, by rewriting its superblocks.
/// Does not sync.
///
/// # Errors
/// [`FormatError::NotOurs`], with nothing written, for file systems that [`format()`] does not make: among them those whose
/// checksums start from the UUID (no `metadata_csum_seed`), where all metadata would have to be written anew.
pub fn set_uuid<D: WriteAt>(disk: &D, uuid: [u8; 16]) -> Result<(), FormatError> {
    let not_ours = |reason| FormatError::NotOurs { reason };
    let mut sb = read_superblock(disk, SUPERBLOCK_OFFSET)?;
    if sb.s_magic.get() != MAGIC {
        return Err(not_ours("no superblock"));
    }
    if sb.s_feature_ro_compat.get() & ro_compat::METADATA_CSUM != 0 {
        if sb.s_checksum.get() != sb.checksum() {
            return Err(not_ours("the superblock's checksum is wrong"));
        }
        if sb.s_feature_incompat.get() & incompat::CSUM_SEED == 0 {
            return Err(not_ours("its checksums start from the UUID"));
        }
    }
    if sb.s_log_block_size.get() != 2 || sb.s_blocks_per_group.get() == 0 {
        return Err(not_ours("its blocks are not of 4 KiB"));
    }
    let per_group = u64::from(sb.s_blocks_per_group.get());
    let blocks =
        u64::from(sb.s_blocks_count_hi.get()) << 32 | u64::from(sb.s_blocks_count_lo.get());
    if blocks > SIZE_MAX / BLOCK_SIZE as u64 {
        return Err(not_ours("it is larger than 16 TiB"));
    }
    let groups = u32::try_from(blocks.div_ceil(per_group))
        .map_err(|_| not_ours("it has more groups than can be"))?;
    let two = (sb.s_feature_compat.get() & compat::SPARSE_SUPER2 != 0)
        .then(|| sb.s_backup_bgs.map(zerocopy::little_endian::U32::get));
    sb.s_uuid = uuid;
    for group in layout::copies(groups, two) {
        let start = u64::from(group) * per_group;
        if group != 0 {
            let copy = read_superblock(disk, start * BLOCK_SIZE as u64)?;
            // A copy that is none (an old one, say) is none of ours to mend.
            if copy.s_magic.get() != MAGIC {
                continue;
            }
        }
        write_superblock(disk, &mut sb, group, start)?;
    }
    Ok(())
}

fn read_superblock<D: WriteAt>(disk: &D, offset: u64) -> Result<Superblock, FormatError> {
    let mut sb = Superblock::zeroed();
    disk.read_exact_at(offset, sb.as_mut_bytes())
        .map_err(io_error("read", offset))?;
    Ok(sb)
}

/// Writes a group's copy of the superblock: at byte 1,024 of the disk, or at the start of the group.
fn write_superblock<D: WriteAt>(
    disk: &D,
    sb: &mut Superblock,
    group: u32,
    start: u64,
) -> Result<(), FormatError> {
    let [low, high, ..] = group.to_le_bytes();
    sb.s_block_group_nr = u16::from_le_bytes([low, high]).into();
    sb.s_checksum = sb.checksum().into();
    let offset = match group {
        0 => SUPERBLOCK_OFFSET,
        _ => start * BLOCK_SIZE as u64,
    };
    const _: () = assert!(size_of::<Superblock>() == SUPERBLOCK_SIZE);
    disk.write_all_at(offset, sb.as_bytes())
        .map_err(io_error("write", offset))
}

fn check_root_dirs(dirs: &[(&str, Metadata)]) -> Result<(), FormatError> {
    let mut space = BLOCK_SIZE - dir::TAIL_SIZE - 2 * dir::entry_size(1) - dir::entry_size(10);
    for (i, (name, _)) in dirs.iter().enumerate() {
        let bad = name.is_empty()
            || name.len() > NAME_MAX
            || name.bytes().any(|b| matches!(b, 0 | b'/'))
            || matches!(*name, "." | ".." | "lost+found")
            || dirs[..i].iter().any(|(before, _)| before == name);
        match space.checked_sub(dir::entry_size(name.len())) {
            Some(left) if !bad => space = left,
            _ => {
                return Err(FormatError::RootDir {
                    name: (*name).to_owned(),
                });
            }
        }
    }
    Ok(())
}

fn directory<'a>(
    inode: u32,
    metadata: &Metadata,
    links: u32,
    block: u64,
    blocks: u32,
) -> (u32, InodeFields<'a>) {
    let time = |time: crate::Timestamp| DiskTime::from(time);
    let fields = InodeFields {
        mode: FileType::Directory.mode_bits() | metadata.permissions & 0o7777,
        uid: metadata.uid,
        gid: metadata.gid,
        size: u64::from(blocks) * BLOCK_SIZE as u64,
        sectors: u64::from(blocks) * (BLOCK_SIZE as u64 / 512),
        links: u16::try_from(links).unwrap_or(1),
        flags: flags::EXTENTS,
        version: 0,
        atime: time(metadata.atime),
        mtime: time(metadata.mtime),
        ctime: time(metadata.ctime),
        crtime: time(metadata.mtime),
        content: root_of_runs(&[Run {
            logical: 0,
            block: halves(block).0,
            len: blocks,
        }]),
        xattr_block: 0,
        xattrs: None,
    };
    (inode, fields)
}

/// Writes the journal's superblock (an empty version 2 journal; the kernel turns its checksums on) and gives its inode.
fn make_journal<D: WriteAt>(
    out: &Blocks<'_, D>,
    layout: &mut Layout,
    len: u32,
) -> Result<InodeFields<'static>, FormatError> {
    let mut runs = Vec::new();
    let mut logical = 0;
    while logical < len {
        let (block, got) = layout.allocate_some((len - logical).min(MAX_LEN.into()));
        runs.push(Run {
            logical,
            block: halves(block).0,
            len: got,
        });
        logical += got;
    }
    let mut blocks = len;
    let content = if runs.len() <= 4 {
        root_of_runs(&runs)
    } else {
        let leaf = layout.allocate(1);
        out.write(leaf, &leaf_node(&runs, seed().inode(JOURNAL_INODE, 0)))?;
        blocks += 1;
        root_of_leaf(halves(leaf).0)
    };
    let mut sb = JournalSuperblock::read_from_bytes(&[0; 1024])
        .unwrap_or_else(|_| unreachable!("sizes agree"));
    sb.s_header = JournalHeader {
        h_magic: JOURNAL_MAGIC.into(),
        h_blocktype: BLOCK_SUPERBLOCK_V2.into(),
        h_sequence: 0.into(),
    };
    sb.s_blocksize = 4096.into();
    sb.s_maxlen = len.into();
    sb.s_first = 1.into();
    sb.s_sequence = 1.into();
    sb.s_nr_users = 1.into();
    let mut first = [0; BLOCK_SIZE];
    first[..1024].copy_from_slice(sb.as_bytes());
    out.write(runs[0].block.into(), &first)?;
    let epoch = DiskTime {
        seconds: 0,
        extra: 0,
    };
    Ok(InodeFields {
        mode: FileType::Regular.mode_bits() | 0o600,
        uid: 0,
        gid: 0,
        size: u64::from(len) * BLOCK_SIZE as u64,
        sectors: u64::from(blocks) * (BLOCK_SIZE as u64 / 512),
        links: 1,
        flags: flags::EXTENTS,
        version: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        content,
        xattr_block: 0,
        xattrs: None,
    })
}

/// Writes the part of the first group's inode table that is in use.
fn write_inodes<D: WriteAt>(
    out: &Blocks<'_, D>,
    layout: &Layout,
    table: &[(u32, InodeFields<'_>)],
) -> Result<(), FormatError> {
    let last = table.iter().map(|(inode, _)| *inode).max().unwrap_or(0);
    let blocks = last.div_ceil(INODES_PER_BLOCK) as usize;
    let mut bytes = vec![0; blocks * BLOCK_SIZE];
    for (inode, fields) in table {
        let at = (*inode as usize - 1) * 256;
        bytes[at..at + 256].copy_from_slice(&fields.encode(*inode));
    }
    out.write(layout.groups[0].inode_table, &bytes)
}

/// Writes the bitmaps that say anything, and completes the descriptors. All directories are in the first group.
fn finish_groups<D: WriteAt>(
    out: &Blocks<'_, D>,
    layout: &Layout,
    used_inodes: u32,
) -> Result<Vec<Group>, FormatError> {
    let geometry = &layout.geometry;
    let per_group = geometry.inodes_per_group;
    let mut groups = layout.groups.clone();
    let mut used = layout.used().iter().copied().peekable();
    for (number, group) in (0..).zip(&mut groups) {
        let start = u64::from(number) * u64::from(geometry.blocks_per_group);
        let len = geometry.group_len(number);
        let end = start + u64::from(len);
        let within = |block: u64| u32::try_from(block.clamp(start, end) - start).unwrap_or(len);
        let mut bitmap = [0; BLOCK_SIZE];
        let mut taken = 0;
        while let Some((from, to)) = used.peek().copied()
            && from < end
        {
            set_bits(&mut bitmap, within(from), within(to));
            taken += within(to) - within(from);
            if to > end {
                break;
            }
            used.next();
        }
        group.free_blocks = len - taken;
        group.free_inodes = per_group;
        group.unused_inodes = per_group;
        group.flags = INODE_ZEROED;
        if taken == layout.own_blocks(number) && number + 1 < geometry.groups {
            group.flags |= BLOCK_UNINIT;
        } else {
            set_bits(&mut bitmap, len, GROUP_MAX);
            group.block_bitmap_checksum = bitmap_checksum(&bitmap, geometry.blocks_per_group);
            out.write(group.block_bitmap, &bitmap)?;
        }
        if number == 0 {
            let mut bitmap = [0; BLOCK_SIZE];
            set_bits(&mut bitmap, 0, used_inodes);
            set_bits(&mut bitmap, per_group, GROUP_MAX);
            group.free_inodes -= used_inodes;
            group.unused_inodes -= used_inodes;
            group.directories = used_inodes - FIRST_INODE + 2;
            group.inode_bitmap_checksum = bitmap_checksum(&bitmap, per_group);
            out.write(group.inode_bitmap, &bitmap)?;
        } else {
            group.flags |= INODE_UNINIT;
        }
    }
    Ok(groups)
}
