//! Directories: their entries, and finding a name.

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::error::{ReadError, Structure};
use super::map::{Extent, Owner};
use super::num::{div, index, le32, len64, slice};
use super::{Filesystem, Inode};
use crate::format::dir::{HEADER_SIZE, TAIL_FILE_TYPE, TAIL_SIZE, entry_size};
use crate::format::inode::flags;
use crate::format::superblock::incompat;
use crate::format::{DirEntryHeader, DirTail};
use crate::{FileType, InodeNumber};

/// Directories are read in pieces of at most this many bytes (or one block).
const PIECE: u64 = 256 << 10;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name: any bytes but NUL and `/`, 1 to 255 of them.
    pub name: Vec<u8>,
    /// The file.
    pub inode: InodeNumber,
    /// What the file is, if the filesystem keeps that in directories.
    pub file_type: Option<FileType>,
}

/// An entry in a block; entries not in use are never made into one.
pub(crate) struct RawEntry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) inode: InodeNumber,
    pub(crate) file_type: u8,
}

/// Which entries a piece of a directory has to begin with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dots {
    /// `.` and `..`: the first block.
    Expected,
    /// Neither.
    None,
}

impl<R: ReadAt> Filesystem<R> {
    /// The entries of a directory without `.` and `..`, sorted by the names' bytes.
    ///
    /// # Errors
    /// *corrupt*, also if a name is there twice; *unsupported* if its names are encrypted; [`ReadError::NotADirectory`].
    pub fn read_dir(&self, dir: &Inode) -> Result<Vec<DirEntry>, ReadError> {
        let mut list = Vec::new();
        self.each_entry(dir, &mut |entry| {
            list.push(DirEntry {
                name: entry.name.to_vec(),
                inode: entry.inode,
                file_type: FileType::from_dirent_code(entry.file_type),
            });
            Ok(true)
        })?;
        list.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        // Which of two was meant can't be known.
        let twice = list.windows(2).any(|pair| match pair {
            [one, next] => one.name == next.name,
            _ => false,
        });
        if twice {
            return Err(dir_corrupt(dir, dir.offset, "a name is there twice"));
        }
        Ok(list)
    }

    /// The inode of a name in a directory; `None` if it has no such name. `.` and `..` are found too. Where the directory has a
    /// hash tree, it alone decides: a damaged one is an error.
    ///
    /// # Errors
    /// As [`Filesystem::read_dir`].
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<InodeNumber>, ReadError> {
        self.check_dir(dir)?;
        match name {
            b"." => return Ok(Some(dir.number)),
            b".." => return self.parent(dir).map(Some),
            _ => {}
        }
        if let Some(changed) = self.changed.directory(dir.number) {
            return Ok(changed
                .names
                .get(name)
                .map(|(inode, _)| InodeNumber(*inode)));
        }
        // In case-folded directories the hashes are of folded names. Names are compared as they are stored.
        if dir.has(flags::INDEX) && !dir.has(flags::INLINE_DATA) && !dir.has(flags::CASEFOLD) {
            return self.lookup_hashed(dir, name);
        }
        let mut found = None;
        self.each_entry(dir, &mut |entry| {
            if entry.name == name {
                found = Some(entry.inode);
            }
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// The directory that holds `dir`, as `dir`'s own `..` has it. The root is its own.
    ///
    /// # Errors
    /// As [`Filesystem::read_dir`].
    pub fn parent(&self, dir: &Inode) -> Result<InodeNumber, ReadError> {
        self.check_dir(dir)?;
        let parent = if let Some(changed) = self.changed.directory(dir.number) {
            changed.parent
        } else if dir.has(flags::INLINE_DATA) {
            le32(self.inline_data(dir)?.0, 0)
        } else {
            let extents = self.extents_until(dir, 1, Owner::File)?;
            let first = extents.first().filter(|e| e.logical == 0 && e.written);
            let first = first.ok_or_else(|| dir_corrupt(dir, dir.offset, "no first block"))?;
            let at = first.physical.saturating_mul(self.superblock.block_size);
            let block = self.block("read a directory", first.physical)?;
            self.check_block(dir, &block, at, 0)?;
            let mut dots = Vec::new();
            self.parse(dir, &block, at, Dots::Expected, &mut |entry| {
                dots.push(entry.inode);
                Ok(dots.len() < 2)
            })?;
            dots.get(1).map_or(0, |inode| inode.0)
        };
        if parent == 0 || parent > self.superblock.inodes {
            return Err(dir_corrupt(dir, dir.offset, "`..` names no inode"));
        }
        Ok(InodeNumber(parent))
    }

    fn check_dir(&self, dir: &Inode) -> Result<(), ReadError> {
        if !dir.is_dir() {
            return Err(ReadError::NotADirectory { inode: dir.number });
        }
        if dir.is_encrypted() {
            return Err(ReadError::unsupported(format!(
                "encrypt (directory, inode {})",
                dir.number
            )));
        }
        Ok(())
    }

    /// Calls `visit` with each entry but `.` and `..` until it returns `false`.
    pub(super) fn each_entry(
        &self,
        dir: &Inode,
        visit: &mut dyn FnMut(&RawEntry<'_>) -> Result<bool, ReadError>,
    ) -> Result<(), ReadError> {
        self.check_dir(dir)?;
        if let Some(changed) = self.changed.directory(dir.number) {
            for (name, (inode, file_type)) in &changed.names {
                let entry = RawEntry {
                    name,
                    inode: InodeNumber(*inode),
                    file_type: *file_type,
                };
                self.check_entry(dir, &entry)?;
                if !visit(&entry)? {
                    break;
                }
            }
            return Ok(());
        }
        if dir.has(flags::INLINE_DATA) {
            return self.each_inline(dir, visit);
        }
        let block_size = self.superblock.block_size;
        let extents = self.dir_extents(dir)?;
        let mut skip_dots = |dots: Dots, seen: &mut u8, entry: &RawEntry<'_>| {
            if dots == Dots::Expected && *seen < 2 {
                *seen = seen.saturating_add(1);
                return Ok(true);
            }
            self.check_entry(dir, entry)?;
            visit(entry)
        };
        let mut buf = Vec::new();
        for extent in extents {
            let mut done = 0;
            while done < extent.len {
                let step = extent
                    .len
                    .saturating_sub(done)
                    .min(div(PIECE, block_size).max(1));
                let first = extent.physical.saturating_add(done);
                let at = first.saturating_mul(block_size);
                buf.resize(index(step.saturating_mul(block_size)), 0);
                self.source.read("read a directory", at, &mut buf)?;
                for (block, number) in buf.chunks_exact(index(block_size)).zip(0_u64..) {
                    let logical = extent.logical.saturating_add(done).saturating_add(number);
                    let at = at.saturating_add(number.saturating_mul(block_size));
                    self.check_block(dir, block, at, logical)?;
                    let dots = if logical == 0 {
                        Dots::Expected
                    } else {
                        Dots::None
                    };
                    let mut seen = 0;
                    let more = self.parse(dir, block, at, dots, &mut |entry| {
                        skip_dots(dots, &mut seen, entry)
                    })?;
                    if !more {
                        return Ok(());
                    }
                }
                done = done.saturating_add(step);
            }
        }
        Ok(())
    }

    fn each_inline(
        &self,
        dir: &Inode,
        visit: &mut dyn FnMut(&RawEntry<'_>) -> Result<bool, ReadError>,
    ) -> Result<(), ReadError> {
        let (head, rest) = self.inline_data(dir)?;
        // The first four bytes are the parent's number, in place of `.` and `..`.
        let head = head.get(4..).unwrap_or_default();
        let place = dir.offset.saturating_add(0x2C);
        for (part, at) in [(head, place), (rest, dir.body_offset)] {
            let more = self.parse(dir, part, at, Dots::None, &mut |entry| {
                self.check_entry(dir, entry)?;
                visit(entry)
            })?;
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// The blocks of a directory: all of its size, without holes, or it is corrupt.
    pub(crate) fn dir_extents(&self, dir: &Inode) -> Result<Vec<Extent>, ReadError> {
        let block_size = self.superblock.block_size;
        let blocks = dir.size.div_ceil(block_size);
        if dir.size == 0 || !dir.size.is_multiple_of(block_size) {
            return Err(dir_corrupt(
                dir,
                dir.offset,
                format!("a directory of {} bytes", dir.size),
            ));
        }
        let extents = self.extents_until(dir, u64::MAX, Owner::File)?;
        let mut next = 0_u64;
        for extent in &extents {
            if extent.logical != next || !extent.written {
                break;
            }
            next = extent.end();
        }
        // More blocks than its size tells of hold names that nobody would see.
        if next != blocks || extents.last().is_some_and(|last| last.end() > blocks) {
            return Err(dir_corrupt(
                dir,
                dir.offset,
                format!("{next} of a directory's {blocks} blocks without a hole"),
            ));
        }
        Ok(extents)
    }

    /// Checks a directory block's checksum, be it a leaf or a part of the hash tree.
    pub(crate) fn check_block(
        &self,
        dir: &Inode,
        block: &[u8],
        at: u64,
        logical: u64,
    ) -> Result<(), ReadError> {
        if !self.superblock.checksums() {
            return Ok(());
        }
        if dir.has(flags::INDEX) {
            let whole = DirEntryHeader::ref_from_prefix(block).is_ok_and(|(first, _)| {
                first.inode.get() == 0 && self.rec_len(first.rec_len.get()) == block.len()
            });
            if logical == 0 {
                return self.check_dx_block(dir, block, at, true);
            }
            if whole {
                return self.check_dx_block(dir, block, at, false);
            }
        }
        let tail_at = block.len().saturating_sub(TAIL_SIZE);
        let (data, tail) = block.split_at(tail_at);
        let stored = match DirTail::ref_from_bytes(tail) {
            Ok(tail)
                if tail.det_reserved_zero1.get() == 0
                    && tail.det_rec_len.get() == 12
                    && tail.det_reserved_zero2 == 0
                    && tail.det_reserved_ft == TAIL_FILE_TYPE =>
            {
                tail.det_checksum.get()
            }
            _ => return Err(dir_corrupt(dir, at, "a block has no checksum")),
        };
        if self.inode_seed(dir).bytes(data).value() != stored {
            return Err(dir_corrupt(dir, at, "the checksum does not match"));
        }
        Ok(())
    }

    /// The length of an entry (Linux `ext4_rec_len_from_disk`).
    pub(crate) fn rec_len(&self, stored: u16) -> usize {
        let len = usize::from(stored);
        if self.superblock.block_size < 1 << 16 {
            len
        } else if len == 0xFFFF || len == 0 {
            index(self.superblock.block_size)
        } else {
            // The two low bits, always 0 otherwise, are bits 16 and 17.
            (len & 0xFFFC) | ((len & 3) << 16)
        }
    }

    /// Calls `visit` with each entry in use of `part`, a block or a piece of inline data that lies at `at`, until it returns
    /// `false`; returns whether it never did.
    pub(crate) fn parse(
        &self,
        dir: &Inode,
        part: &[u8],
        at: u64,
        dots: Dots,
        visit: &mut dyn FnMut(&RawEntry<'_>) -> Result<bool, ReadError>,
    ) -> Result<bool, ReadError> {
        let has_types = self.superblock.has_incompat(incompat::FILETYPE);
        let mut place = 0_usize;
        let mut number = 0_u32;
        while place < part.len() {
            let here = at.saturating_add(len64(place));
            let Some(Ok((header, _))) = part.get(place..).map(DirEntryHeader::ref_from_prefix)
            else {
                return Err(dir_corrupt(dir, here, "an entry is cut off"));
            };
            let rec_len = self.rec_len(header.rec_len.get());
            let name_len = usize::from(header.name_len);
            let inode = header.inode.get();
            if rec_len < entry_size(1)
                || !rec_len.is_multiple_of(4)
                || rec_len < entry_size(name_len)
                || place.saturating_add(rec_len) > part.len()
            {
                return Err(dir_corrupt(
                    dir,
                    here,
                    format!("an entry of {rec_len} bytes with a name of {name_len}"),
                ));
            }
            let name = slice(part, place.saturating_add(HEADER_SIZE), name_len).unwrap_or_default();
            if dots == Dots::Expected && number < 2 {
                let right = if number == 0 {
                    name == b"." && inode == dir.number.0
                } else {
                    name == b".." && inode != 0
                };
                if !right {
                    return Err(dir_corrupt(dir, here, "`.` or `..` is missing or wrong"));
                }
            }
            if inode != 0 {
                if !has_types && header.file_type != 0 {
                    return Err(dir_corrupt(dir, here, "a name of more than 255 bytes"));
                }
                if inode > self.superblock.inodes {
                    return Err(dir_corrupt(
                        dir,
                        here,
                        format!("an entry for inode {inode}"),
                    ));
                }
                let entry = RawEntry {
                    name,
                    inode: InodeNumber(inode),
                    file_type: header.file_type,
                };
                if !visit(&entry)? {
                    return Ok(false);
                }
            }
            number = number.saturating_add(1);
            place = place.saturating_add(rec_len);
        }
        Ok(true)
    }

    /// What must hold of every entry but `.` and `..`.
    pub(crate) fn check_entry(&self, dir: &Inode, entry: &RawEntry<'_>) -> Result<(), ReadError> {
        let name = entry.name;
        if name.is_empty() || name == b"." || name == b".." {
            return Err(dir_corrupt(
                dir,
                dir.offset,
                format!("an entry named {:?}", String::from_utf8_lossy(name)),
            ));
        }
        if name.iter().any(|&byte| byte == 0 || byte == b'/') {
            return Err(dir_corrupt(dir, dir.offset, "a name with a NUL or a slash"));
        }
        // Reserved inodes (the journal, quotas) have no names, nor has the root another.
        if entry.inode.0 < self.superblock.first_inode {
            return Err(dir_corrupt(
                dir,
                dir.offset,
                format!("a name for reserved inode {}", entry.inode),
            ));
        }
        Ok(())
    }
}

pub(crate) fn dir_corrupt(dir: &Inode, at: u64, detail: impl Into<String>) -> ReadError {
    ReadError::corrupt(Structure::Directory(dir.number), at, detail)
}
