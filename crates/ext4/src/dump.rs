//! A filesystem as text, for eyes and for tests that hold an image against a golden file.
//!
//! One line a structure, everything that a kernel acts on and nothing that follows from something else (checksums):
//!
//! ```text
//! superblock: 40 blocks of 4096 bytes, 3 free; 32 inodes of 256 bytes, 20 free
//! group 0: block bitmap 30, inode bitmap 31, inode table 32+2; free 3 blocks, 20 inodes; 1 directories, 20 unused; inode_zeroed
//! inode 2: directory 0755 0:0, 3 links, 4096 bytes, 8 sectors; extents
//!   m 1700000000.123456789, a and c the same, cr 1700000000.123456789
//!   blocks 0+1 at 29
//!   "name" 11 regular
//! ```
//! Names and values are shown with Rust's escapes. Files that have no name (the journal, values of attributes) are shown too.

use std::io::{self, Write};

use lcow_blockio::ReadAt;

use crate::format::group::{BLOCK_UNINIT, INODE_UNINIT, INODE_ZEROED};
use crate::format::inode::flags;
use crate::reader::internal::table_blocks;
use crate::reader::{Filesystem, Inode, Journal, ReadError};
use crate::{FileType, InodeNumber, Timestamp};

/// Values longer than this many bytes are shown by their beginning.
const SHOWN: usize = 64;

/// Why a dump ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The image could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The text could not be written.
    #[error("writing the dump")]
    Output(#[from] io::Error),
}

/// The names of the flags that are set, or `none`.
fn names(word: u32, known: &[(u32, &str)]) -> String {
    let mut list: Vec<String> = known
        .iter()
        .filter(|(flag, _)| word & flag != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    let rest = known.iter().fold(word, |rest, (flag, _)| rest & !flag);
    if rest != 0 {
        list.push(format!("{rest:#x}"));
    }
    if list.is_empty() {
        "none".to_owned()
    } else {
        list.join(" ")
    }
}

fn text(bytes: &[u8]) -> String {
    let shown = bytes.get(..SHOWN).unwrap_or(bytes).escape_ascii();
    if bytes.len() > SHOWN {
        format!("\"{shown}\"… ({} bytes)", bytes.len())
    } else {
        format!("\"{shown}\"")
    }
}

fn time(time: Timestamp) -> String {
    format!("{}.{:09}", time.secs, time.nanos)
}

fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Regular => "regular",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::CharDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
    }
}

/// Writes a whole filesystem as text.
///
/// # Errors
/// As reading it all; what `out` says.
pub fn dump<R: ReadAt>(fs: &Filesystem<R>, out: &mut dyn Write) -> Result<(), DumpError> {
    let info = fs.info();
    writeln!(
        out,
        "superblock: {} blocks of {} bytes, {} free; {} inodes of {} bytes, {} free",
        info.blocks,
        info.block_size,
        info.free_blocks,
        info.inodes,
        info.inode_size,
        info.free_inodes
    )?;
    writeln!(out, "features: {}", info.features.join(" "))?;
    let uuid: String = info.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let state = if info.clean { "clean" } else { "not clean" };
    writeln!(out, "uuid {uuid}, label {}, {state}", text(&info.label))?;
    match info.journal {
        Journal::None => {}
        Journal::External => writeln!(out, "journal on another device")?,
        Journal::Clean => writeln!(out, "journal clean")?,
        Journal::Replayed {
            transactions,
            blocks,
            ..
        } => writeln!(
            out,
            "journal replayed: {transactions} transactions, {blocks} blocks"
        )?,
    }
    let tables = table_blocks(&fs.superblock);
    for (number, group) in (0_u32..).zip(&fs.groups) {
        writeln!(
            out,
            "group {number}: block bitmap {}, inode bitmap {}, inode table {}+{tables}; free {} blocks, {} inodes; {} directories, {} unused; {}",
            group.block_bitmap,
            group.inode_bitmap,
            group.inode_table,
            group.free_blocks,
            group.free_inodes,
            group.directories,
            group.unused_inodes,
            names(
                u32::from(group.flags),
                &[
                    (u32::from(INODE_UNINIT), "inode_uninit"),
                    (u32::from(BLOCK_UNINIT), "block_uninit"),
                    (u32::from(INODE_ZEROED), "inode_zeroed"),
                ]
            )
        )?;
    }
    let per_group = fs.superblock.inodes_per_group;
    let mut first = 1_u32;
    for group in &fs.groups {
        let last = first.saturating_add(group.used_inodes);
        for number in first..last {
            let number = InodeNumber(number);
            // One that was never used has no checksum either.
            let unused = fs
                .raw_inode(number)?
                .is_none_or(|raw| raw.iter().all(|byte| *byte == 0));
            if unused {
                continue;
            }
            if let Some(inode) = fs.inode_in_use(number)? {
                dump_inode(fs, &inode, out)?;
            }
        }
        first = first.saturating_add(per_group);
    }
    Ok(())
}

const FLAGS: &[(u32, &str)] = &[
    (flags::SYNC, "sync"),
    (flags::IMMUTABLE, "immutable"),
    (flags::APPEND, "append"),
    (flags::ENCRYPT, "encrypt"),
    (flags::INDEX, "index"),
    (flags::HUGE_FILE, "huge_file"),
    (flags::EXTENTS, "extents"),
    (flags::VERITY, "verity"),
    (flags::EA_INODE, "ea_inode"),
    (flags::INLINE_DATA, "inline_data"),
    (flags::CASEFOLD, "casefold"),
];

fn dump_inode<R: ReadAt>(
    fs: &Filesystem<R>,
    inode: &Inode,
    out: &mut dyn Write,
) -> Result<(), DumpError> {
    writeln!(
        out,
        "inode {}: {} {:04o} {}:{}, {} links, {} bytes, {} sectors; {}",
        inode.number,
        type_name(inode.file_type),
        inode.permissions,
        inode.uid,
        inode.gid,
        inode.links,
        inode.size,
        inode.blocks_512,
        names(inode.flags, FLAGS)
    )?;
    let others = if inode.atime == inode.mtime && inode.ctime == inode.mtime {
        "a and c the same".to_owned()
    } else {
        format!("a {}, c {}", time(inode.atime), time(inode.ctime))
    };
    let made = inode
        .crtime
        .map_or_else(String::new, |made| format!(", cr {}", time(made)));
    writeln!(out, "  m {}, {others}{made}", time(inode.mtime))?;
    if let Some(device) = inode.device() {
        writeln!(out, "  device {}:{}", device.major, device.minor)?;
    }
    if inode.is_encrypted() {
        return Ok(());
    }
    // The journal lies where no file may.
    let own = Some(inode.number.0).filter(|number| *number == fs.superblock.journal_inode);
    let extents = match own {
        Some(_) => {
            fs.mapping(inode, crate::reader::internal::Owner::Own)?
                .extents
        }
        None => fs.extents(inode)?,
    };
    for extent in extents {
        let how = if extent.written { "" } else { " unwritten" };
        writeln!(
            out,
            "  blocks {}+{} at {}{how}",
            extent.logical, extent.len, extent.physical
        )?;
    }
    if inode.has(flags::INLINE_DATA) && !inode.is_dir() {
        let (head, rest) = fs.inline_data(inode)?;
        let all = [head, rest].concat();
        let size = usize::try_from(inode.size).unwrap_or(usize::MAX);
        writeln!(out, "  inline {}", text(all.get(..size).unwrap_or(&all)))?;
    }
    for xattr in fs.xattrs(inode)? {
        writeln!(
            out,
            "  xattr {} = {}",
            xattr.name.escape_ascii(),
            text(&xattr.value)
        )?;
    }
    if inode.xattr_block != 0 {
        writeln!(out, "  xattrs in block {}", inode.xattr_block)?;
    }
    match inode.file_type {
        FileType::Symlink => writeln!(out, "  target {}", text(&fs.read_link(inode)?))?,
        FileType::Directory => {
            writeln!(out, "  \"..\" {}", fs.parent(inode)?)?;
            for entry in fs.read_dir(inode)? {
                let kind = entry.file_type.map_or("untyped", type_name);
                writeln!(
                    out,
                    "  \"{}\" {} {kind}",
                    entry.name.escape_ascii(),
                    entry.inode
                )?;
            }
        }
        _ => {}
    }
    Ok(())
}
