//! Replaying fast commits in memory (Linux `fs/ext4/fast_commit.c`, `fast_commit.h`).
//!
//! Between two transactions a kernel with `fast_commit` writes records of what was done to inodes, maps and names, instead of the
//! blocks that it changed, behind the journal's ring. They hold for the transaction that would have come next, up to
//! the last tail whose checksum is right. What they touch is kept here as a whole: the inode's bytes, the file's map, the
//! directory's names; the rest is read from the disk as ever.
//!
//! As the kernel's, this replay knows no new times or link counts of directories, which no record has.

use std::collections::{BTreeMap, HashMap};

use lcow_blockio::ReadAt;
use zerocopy::{FromBytes, IntoBytes};

use super::error::{ReadError, Structure};
use super::map::{Extent, Owner};
use super::num::{index, join32, le32, len64, slice};
use super::{Filesystem, Inode};
use crate::InodeNumber;
use crate::format::extent::{MAGIC, MAX_LEN};
use crate::format::inode::{I_BLOCK_SIZE, OLD_SIZE, flags};
use crate::format::journal::FAST_COMMIT_HEAD;
use crate::format::{Checksum, Extent as RawExtent, ExtentHeader};

/// Tags (`EXT4_FC_TAG_*`).
const ADD_RANGE: u16 = 1;
const DEL_RANGE: u16 = 2;
const CREAT: u16 = 3;
const LINK: u16 = 4;
const UNLINK: u16 = 5;
const INODE: u16 = 6;
const PAD: u16 = 7;
const TAIL: u16 = 8;
/// Bytes of a record's tag and length.
const TAG_LEN: usize = 4;
/// Where an inode's block map begins, and what follows it, in bytes.
const I_BLOCK: usize = 0x28;
const BEHIND_I_BLOCK: usize = I_BLOCK + I_BLOCK_SIZE;
/// Where an inode's flags and its count of links are, in bytes.
const I_FLAGS: usize = 0x20;
const I_LINKS: usize = 0x1A;

/// A record that is to be replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    tag: u16,
    value: Vec<u8>,
    /// Where it lies on the disk, in bytes.
    at: u64,
}

/// Reads records block by block.
#[derive(Debug)]
pub(super) struct Scan {
    /// Those of commits found whole.
    whole: Vec<Record>,
    /// Those since, and their checksum.
    open: Vec<Record>,
    sum: Checksum,
    started: bool,
    commits: u32,
    /// Size of an inode on the disk, in bytes.
    inode_size: usize,
}

fn corrupt(at: u64, detail: impl Into<String>) -> ReadError {
    ReadError::corrupt(Structure::Journal, at, detail)
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    let pair = slice(bytes, at, 2).and_then(|pair| pair.first_chunk());
    pair.map_or(0, |pair| u16::from_le_bytes(*pair))
}

impl Scan {
    pub(super) fn new(inode_size: usize) -> Self {
        Self {
            inode_size,
            whole: Vec::new(),
            open: Vec::new(),
            sum: Checksum::from_seed(0),
            started: false,
            commits: 0,
        }
    }

    /// The records of all commits found whole, and how many of those there are.
    pub(super) fn finish(self) -> (Vec<Record>, u32) {
        (self.whole, self.commits)
    }

    /// Takes the next block of the area, which lies at `at`. Only records for transaction `next` are of interest. Returns whether
    /// more blocks may hold some.
    pub(super) fn block(&mut self, block: &[u8], at: u64, next: u32) -> Result<bool, ReadError> {
        if !self.started && le16(block, 0) != FAST_COMMIT_HEAD {
            return Ok(false);
        }
        self.started = true;
        let mut place = 0_usize;
        while place.saturating_add(TAG_LEN) < block.len() {
            let here = at.saturating_add(len64(place));
            let tag = le16(block, place);
            let len = usize::from(le16(block, place.saturating_add(2)));
            let Some(record) = slice(block, place, TAG_LEN.saturating_add(len)) else {
                return self.broken(here, "a record is longer than its block");
            };
            let value = record.get(TAG_LEN..).unwrap_or_default();
            if !self.has_good_len(tag, len) {
                let what = format!("a record {tag} of {len} bytes");
                return self.broken(here, &what);
            }
            place = place.saturating_add(record.len());
            match tag {
                FAST_COMMIT_HEAD if le32(value, 0) != 0 => {
                    let features = format!("fast_commit features {:#x}", le32(value, 0));
                    return Err(ReadError::unsupported(features));
                }
                FAST_COMMIT_HEAD if le32(value, 4) != next => return Ok(false),
                FAST_COMMIT_HEAD | PAD => {}
                TAIL => {
                    // The checksum, last in the tail, is of all that comes before it.
                    let before = record.get(..TAG_LEN.saturating_add(4)).unwrap_or_default();
                    let sum = self.sum.bytes(before);
                    if le32(value, 0) != next || le32(value, 4) != sum.value() {
                        return self.broken(here, "the checksum does not match");
                    }
                    self.whole.append(&mut self.open);
                    self.commits = self.commits.saturating_add(1);
                    self.sum = Checksum::from_seed(0);
                    continue;
                }
                _ => self.open.push(Record {
                    tag,
                    value: value.to_vec(),
                    at: here,
                }),
            }
            self.sum = self.sum.bytes(record);
        }
        Ok(true)
    }

    /// Whether a record may have a value so long, or at all (`ext4_fc_value_len_isvalid`).
    fn has_good_len(&self, tag: u16, len: usize) -> bool {
        match tag {
            ADD_RANGE => len == 16,
            DEL_RANGE => len == 12,
            CREAT | LINK | UNLINK => (9..=8 + 255).contains(&len),
            INODE => len
                .checked_sub(4)
                .is_some_and(|len| (OLD_SIZE..=self.inode_size).contains(&len)),
            PAD => true,
            TAIL => len >= 8,
            FAST_COMMIT_HEAD => len == 8,
            _ => false,
        }
    }

    /// What breaks off the log ends it, if anything whole came before; else the kernel would not mount.
    fn broken(&self, at: u64, what: &str) -> Result<bool, ReadError> {
        if self.commits == 0 {
            Err(corrupt(at, format!("in a fast commit: {what}")))
        } else {
            Ok(false)
        }
    }
}

/// What fast commits leave changed.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// Inodes' bytes, without a valid checksum.
    inodes: HashMap<u32, Vec<u8>>,
    /// Where files' blocks lie, by the first block of each run.
    maps: HashMap<u32, BTreeMap<u64, Extent>>,
    directories: HashMap<u32, Directory>,
}

/// A directory as it is now.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) parent: u32,
    /// Names, and what they lead to: an inode, and its type as directories have it.
    pub(super) names: BTreeMap<Vec<u8>, (u32, u8)>,
}

impl Changed {
    pub(super) fn inode(&self, number: InodeNumber) -> Option<&[u8]> {
        self.inodes.get(&number.0).map(Vec::as_slice)
    }

    pub(super) fn map(&self, number: InodeNumber) -> Option<&BTreeMap<u64, Extent>> {
        self.maps.get(&number.0)
    }

    pub(super) fn directory(&self, number: InodeNumber) -> Option<&Directory> {
        self.directories.get(&number.0)
    }
}

impl<R: ReadAt> Filesystem<R> {
    /// Does again what the records say.
    pub(super) fn replay_fast_commits(&mut self, records: &[Record]) -> Result<(), ReadError> {
        for record in records {
            let number = InodeNumber(le32(&record.value, 0));
            match record.tag {
                INODE => self.redo_inode(number, record)?,
                ADD_RANGE => self.redo_add_range(number, record)?,
                DEL_RANGE => {
                    let from = u64::from(le32(&record.value, 4));
                    let len = u64::from(le32(&record.value, 8));
                    if let Some(map) = self.changed_map(number, record)? {
                        cut(map, from, len);
                    }
                }
                _ => self.redo_name(record)?,
            }
        }
        Ok(())
    }

    /// An inode as its record has it, but for what the record does not reach and for its block map: that is changed by ranges.
    fn redo_inode(&mut self, number: InodeNumber, record: &Record) -> Result<(), ReadError> {
        let new = record.value.get(4..).unwrap_or_default();
        let size = index(self.superblock.inode_size);
        let mut raw = match self.changed.inode(number) {
            Some(raw) => raw.to_vec(),
            None => self.raw_inode(number)?.unwrap_or_else(|| vec![0; size]),
        };
        let extents = le32(new, I_FLAGS) & flags::EXTENTS != 0;
        for (place, (to, from)) in raw.iter_mut().zip(new).enumerate() {
            if !extents || !(I_BLOCK..BEHIND_I_BLOCK).contains(&place) {
                *to = *from;
            }
        }
        if extents && le16(&raw, I_BLOCK) != MAGIC {
            let root = ExtentHeader {
                eh_magic: MAGIC.into(),
                eh_entries: 0.into(),
                eh_max: 4.into(),
                eh_depth: 0.into(),
                eh_generation: 0.into(),
            };
            for (to, from) in raw.iter_mut().skip(I_BLOCK).zip(root.as_bytes()) {
                *to = *from;
            }
        }
        self.changed.inodes.insert(number.0, raw);
        Ok(())
    }

    fn redo_add_range(&mut self, number: InodeNumber, record: &Record) -> Result<(), ReadError> {
        let raw = record.value.get(4..).map(RawExtent::ref_from_prefix);
        let Some(Ok((raw, _))) = raw else {
            return Err(corrupt(record.at, "in a fast commit: no range"));
        };
        let len = raw.ee_len.get();
        let (len, written) = match len.checked_sub(MAX_LEN) {
            None | Some(0) => (len, true),
            Some(unwritten) => (unwritten, false),
        };
        let extent = Extent {
            logical: u64::from(raw.ee_block.get()),
            physical: join32(u32::from(raw.ee_start_hi.get()), raw.ee_start_lo.get()),
            len: u64::from(len),
            written,
        };
        if let Some(map) = self.changed_map(number, record)?
            && extent.len > 0
        {
            cut(map, extent.logical, extent.len);
            map.insert(extent.logical, extent);
        }
        Ok(())
    }

    /// The map of a file, to be changed; nothing if there is no such file, as when it was deleted later on.
    fn changed_map(
        &mut self,
        number: InodeNumber,
        record: &Record,
    ) -> Result<Option<&mut BTreeMap<u64, Extent>>, ReadError> {
        if !self.changed.maps.contains_key(&number.0) {
            let Some(inode) = self.existing(number)? else {
                return Ok(None);
            };
            if !inode.has(flags::EXTENTS) {
                let what = "fast_commit (ranges of a file without extents)";
                return Err(ReadError::unsupported(what));
            }
            let extents = self.extents_until(&inode, u64::MAX, Owner::File)?;
            let map = extents.into_iter().map(|e| (e.logical, e)).collect();
            self.changed.maps.insert(number.0, map);
        }
        let none = || corrupt(record.at, "in a fast commit: no map");
        self.changed
            .maps
            .get_mut(&number.0)
            .map(Some)
            .ok_or_else(none)
    }

    fn redo_name(&mut self, record: &Record) -> Result<(), ReadError> {
        let parent = InodeNumber(le32(&record.value, 0));
        let number = InodeNumber(le32(&record.value, 4));
        let name = record.value.get(8..).unwrap_or_default();
        let Some(inode) = self.existing(number)? else {
            return Ok(());
        };
        if record.tag == CREAT
            && inode.is_dir()
            && !self.changed.directories.contains_key(&number.0)
        {
            let directory = Directory {
                parent: parent.0,
                names: BTreeMap::new(),
            };
            self.changed.directories.insert(number.0, directory);
        }
        if !self.changed.directories.contains_key(&parent.0) {
            let Some(dir) = self.existing(parent)? else {
                return Ok(());
            };
            if !dir.is_dir() {
                let what = format!("in a fast commit: a name in {parent}, which is no directory");
                return Err(corrupt(record.at, what));
            }
            let mut directory = Directory {
                parent: self.parent(&dir)?.0,
                names: BTreeMap::new(),
            };
            self.each_entry(&dir, &mut |entry| {
                let file = (entry.inode.0, entry.file_type);
                directory.names.insert(entry.name.to_vec(), file);
                Ok(true)
            })?;
            self.changed.directories.insert(parent.0, directory);
        }
        let Some(directory) = self.changed.directories.get_mut(&parent.0) else {
            return Ok(());
        };
        let known = directory.names.get(name).copied();
        let mut links = i32::from(record.tag != UNLINK);
        if record.tag == UNLINK {
            // The name may stand for another file by now.
            if known.is_some_and(|(inode, _)| inode == number.0) {
                directory.names.remove(name);
            }
            if known.is_some() {
                links = -1;
            }
        } else if known.is_none() {
            let code = inode.file_type.dirent_code();
            directory.names.insert(name.to_vec(), (number.0, code));
        } else {
            links = 0;
        }
        if !inode.is_dir() {
            let links = if record.tag == CREAT {
                1
            } else {
                inode.links.saturating_add_signed(links)
            };
            self.set_links(number, links)?;
        }
        Ok(())
    }

    fn set_links(&mut self, number: InodeNumber, links: u32) -> Result<(), ReadError> {
        let mut raw = match self.changed.inode(number) {
            Some(raw) => raw.to_vec(),
            None => self.raw_inode(number)?.unwrap_or_default(),
        };
        let links = u16::try_from(links).unwrap_or(u16::MAX).to_le_bytes();
        for (to, from) in raw.iter_mut().skip(I_LINKS).zip(links) {
            *to = from;
        }
        self.changed.inodes.insert(number.0, raw);
        Ok(())
    }

    /// An inode, if it is in use.
    fn existing(&self, number: InodeNumber) -> Result<Option<Inode>, ReadError> {
        if self.changed.inode(number).is_none() && self.raw_inode(number)?.is_none() {
            return Ok(None);
        }
        self.inode_in_use(number)
    }
}

/// Takes blocks out of a map.
fn cut(map: &mut BTreeMap<u64, Extent>, from: u64, len: u64) {
    let to = from.saturating_add(len);
    let before = map.range(..from).next_back().map(|(_, e)| *e);
    if let Some(extent) = before
        && extent.end() > from
    {
        let head = from.saturating_sub(extent.logical);
        map.insert(
            extent.logical,
            Extent {
                len: head,
                ..extent
            },
        );
        if extent.end() > to {
            keep_tail(map, extent, to);
        }
    }
    while let Some((&logical, &extent)) = map.range(from..to).next() {
        map.remove(&logical);
        if extent.end() > to {
            keep_tail(map, extent, to);
        }
    }
}

fn keep_tail(map: &mut BTreeMap<u64, Extent>, extent: Extent, from: u64) {
    let skip = from.saturating_sub(extent.logical);
    let tail = Extent {
        logical: from,
        physical: extent.physical.saturating_add(skip),
        len: extent.len.saturating_sub(skip),
        written: extent.written,
    };
    map.insert(from, tail);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_cut() {
        let run = |logical, physical, len| Extent {
            logical,
            physical,
            len,
            written: true,
        };
        let whole = [run(0, 100, 10), run(20, 200, 10)];
        let cut_of = |from, len| {
            let mut map = whole.iter().map(|e| (e.logical, *e)).collect();
            cut(&mut map, from, len);
            map.into_values().collect::<Vec<_>>()
        };
        assert_eq!(cut_of(10, 10), whole);
        assert_eq!(cut_of(3, 2), [run(0, 100, 3), run(5, 105, 5), whole[1]]);
        assert_eq!(cut_of(5, 20), [run(0, 100, 5), run(25, 205, 5)]);
        assert_eq!(cut_of(0, u64::MAX), []);
        assert_eq!(cut_of(20, 10), [whole[0]]);
    }
}
