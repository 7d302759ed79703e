//! A second replay of fast commits, after the kernel's `fs/ext4/fast_commit.c`: which of them count is known exactly, and what those
//! that keep to plain files, links and directories come to. Of the rest there is no opinion.

use std::collections::BTreeMap;

use lcow_ext4::InodeNumber;
use lcow_ext4::format::Checksum;
use lcow_ext4::reader::Filesystem;

use crate::bytes::{Bytes, le16, le32, part, put};
use crate::image::Geometry;
use crate::naive;
use crate::replay::{Log, Refused, Replayed};

pub(crate) const ADD_RANGE: u16 = 1;
pub(crate) const DEL_RANGE: u16 = 2;
pub(crate) const CREAT: u16 = 3;
pub(crate) const LINK: u16 = 4;
pub(crate) const UNLINK: u16 = 5;
pub(crate) const INODE: u16 = 6;
pub(crate) const PAD: u16 = 7;
pub(crate) const TAIL: u16 = 8;
pub(crate) const HEAD: u16 = 9;

const EXTENTS: u32 = 0x8_0000;
const INDEX: u32 = 0x1000;
/// In the images of this target, blocks from here on are free.
const FREE: u64 = 1200;

/// A record that is to be done again: its tag and its value.
pub(crate) type Record = (u16, Vec<u8>);

/// `ext4_fc_value_len_isvalid`.
fn good_len(tag: u16, len: usize, inode_size: usize) -> bool {
    match tag {
        ADD_RANGE => len == 16,
        DEL_RANGE => len == 12,
        CREAT | LINK | UNLINK => (9..=263).contains(&len),
        INODE => (132..=inode_size + 4).contains(&len),
        PAD => true,
        TAIL => len >= 8,
        HEAD => len == 8,
        _ => false,
    }
}

/// `ext4_fc_replay_scan`: the records that count, and the number of fast commits.
pub(crate) fn scan(image: &[u8], log: &Log, next: u32) -> Result<(Vec<Record>, u32), Refused> {
    let inode_size = Geometry::of(image).map_or(0, |geometry| geometry.inode_size);
    let mut whole: Vec<Record> = Vec::new();
    // What the kernel counts: records of all kinds up to the last good tail.
    let mut commits = 0;
    let mut open = Vec::new();
    let mut summed: Vec<u8> = Vec::new();
    let stop = |commits: u32, why| {
        if commits == 0 {
            Err(Refused(why))
        } else {
            Ok(())
        }
    };
    for (n, block) in (log.end + 1..log.max).enumerate() {
        let bytes = log.read(image, block);
        if n == 0 && le16(bytes, 0) != HEAD {
            break;
        }
        let mut at = 0;
        while at + 4 < bytes.len() {
            let (tag, len) = (le16(bytes, at), usize::from(le16(bytes, at + 2)));
            if len > bytes.len() - at - 4 || !good_len(tag, len, inode_size) {
                stop(commits, "a fast commit with a bad record")?;
                return Ok((whole, commits));
            }
            let value = part(bytes, at + 4, len);
            match tag {
                TAIL => {
                    summed.extend_from_slice(part(bytes, at, 8));
                    let sum = Checksum::from_seed(0).bytes(&summed).value();
                    if le32(value, 0) != next || le32(value, 4) != sum {
                        stop(commits, "a fast commit with a bad tail")?;
                        return Ok((whole, commits));
                    }
                    summed.clear();
                    whole.append(&mut open);
                    commits += 1;
                }
                HEAD if le32(value, 0) != 0 => return Err(Refused("features of fast commits")),
                HEAD if le32(value, 4) != next => return Ok((whole, commits)),
                _ => {
                    if tag != HEAD && tag != PAD {
                        open.push((tag, value.to_vec()));
                    }
                    summed.extend_from_slice(part(bytes, at, 4 + len));
                }
            }
            at += 4 + len;
        }
    }
    Ok((whole, commits))
}

/// What records come to.
pub(crate) enum Outcome {
    Refused(&'static str),
    Files(Files),
    /// They do what there is no opinion on.
    Unclear,
}

/// Why there are no files.
enum Stop {
    Refused(&'static str),
    Unclear,
}

/// A block of a file: where it lies, and whether it was written to.
type Map = BTreeMap<u32, (u64, bool)>;
type Names = BTreeMap<Vec<u8>, u32>;

/// What is otherwise than before.
pub(crate) struct Files {
    inodes: BTreeMap<u32, Vec<u8>>,
    maps: BTreeMap<u32, Map>,
    directories: BTreeMap<u32, Names>,
}

struct Replay<'a> {
    plain: &'a Filesystem<Bytes<'a>>,
    image: &'a [u8],
    geometry: Geometry,
    inode_count: u32,
    files: Files,
}

fn kind(raw: &[u8]) -> u16 {
    le16(raw, 0) & 0xf000
}

fn links(raw: &[u8]) -> u16 {
    le16(raw, 0x1a)
}

const DIRECTORY: u16 = 0x4000;
const REGULAR: u16 = 0x8000;
const SYMLINK: u16 = 0xa000;

/// Does the records again, over what the transactions left, which `plain` reads.
pub(crate) fn replay(plain: &Filesystem<Bytes<'_>>, replayed: &Replayed) -> Outcome {
    let image = &replayed.after;
    let Some(geometry) = Geometry::of(image) else {
        return Outcome::Unclear;
    };
    if replayed.written.iter().any(|&block| block < FREE) {
        return Outcome::Unclear;
    }
    let mut replay = Replay {
        plain,
        image,
        inode_count: le32(image, 1024),
        geometry,
        files: Files {
            inodes: BTreeMap::new(),
            maps: BTreeMap::new(),
            directories: BTreeMap::new(),
        },
    };
    for (tag, value) in &replayed.records {
        match replay.record(*tag, value) {
            Ok(()) => {}
            Err(Stop::Refused(why)) => return Outcome::Refused(why),
            Err(Stop::Unclear) => return Outcome::Unclear,
        }
    }
    Outcome::Files(replay.files)
}

impl Replay<'_> {
    fn record(&mut self, tag: u16, value: &[u8]) -> Result<(), Stop> {
        let number = le32(value, 0);
        match tag {
            INODE => self.inode(number, &value[4..]),
            ADD_RANGE => {
                let Some(map) = self.map(number)? else {
                    return Ok(());
                };
                let (first, len) = (le32(value, 4), le16(value, 8));
                let physical = u64::from(le16(value, 10)) << 32 | u64::from(le32(value, 12));
                let written = len <= 32768;
                let len = if written { len } else { len - 32768 };
                if first.checked_add(len.into()).is_none() {
                    return Err(Stop::Unclear);
                }
                for i in 0..u32::from(len) {
                    map.insert(first + i, (physical + u64::from(i), written));
                }
                Ok(())
            }
            DEL_RANGE => {
                let (first, len) = (le32(value, 4), le32(value, 8));
                if let Some(map) = self.map(number)? {
                    map.retain(|&block, _| block < first || block - first >= len);
                }
                Ok(())
            }
            _ => self.name(tag, number, le32(value, 4), &value[8..]),
        }
    }

    /// An inode's bytes as they are now.
    fn raw(&self, number: u32) -> Result<Vec<u8>, Stop> {
        if number == 0 || number > self.inode_count {
            return Err(Stop::Refused("there is no such inode"));
        }
        Ok(match self.files.inodes.get(&number) {
            Some(raw) => raw.clone(),
            None => self.on_disk(number),
        })
    }

    fn on_disk(&self, number: u32) -> Vec<u8> {
        let number = usize::try_from(number).unwrap_or(0);
        let at = self.geometry.inode_at(self.image, number).unwrap_or(0);
        part(self.image, at, self.geometry.inode_size).to_vec()
    }

    fn inode(&mut self, number: u32, new: &[u8]) -> Result<(), Stop> {
        let mut raw = self.raw(number)?;
        let extents = le32(new, 0x20) & EXTENTS != 0;
        for (i, &byte) in new.iter().enumerate() {
            if !extents || !(0x28..0x64).contains(&i) {
                raw[i] = byte;
            }
        }
        if extents && le16(&raw, 0x28) != 0xf30a {
            put(&mut raw, 0x28, &[0x0a, 0xf3, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        }
        let flags = le32(&raw, 0x20);
        let is_plain = [DIRECTORY, REGULAR, SYMLINK].contains(&kind(&raw))
            && flags & !(EXTENTS | INDEX) == 0
            && (kind(&raw) == DIRECTORY || flags & INDEX == 0)
            && le32(&raw, 0x6c) == 0
            && (raw.len() == 128 || le16(&raw, 128) == 32);
        if number < 11 || !is_plain {
            return Err(Stop::Unclear);
        }
        self.files.inodes.insert(number, raw);
        Ok(())
    }

    /// A file's map, if there is such a file.
    fn map(&mut self, number: u32) -> Result<Option<&mut Map>, Stop> {
        let raw = self.raw(number)?;
        if number < 11 {
            return Err(Stop::Unclear);
        }
        if !self.files.maps.contains_key(&number) {
            if links(&raw) == 0 {
                return Ok(None);
            }
            if le32(&raw, 0x20) & EXTENTS == 0 {
                return Err(Stop::Refused("a range of a file without extents"));
            }
            let blocks = naive::blocks_of(self.image, &self.geometry, part(&raw, 0, 128));
            let blocks = blocks.ok_or(Stop::Unclear)?.into_iter();
            let map = blocks.map(|(logical, physical, written)| {
                let logical = u32::try_from(logical).unwrap_or(u32::MAX);
                (logical, (physical as u64, written))
            });
            let map = map.collect();
            self.files.maps.insert(number, map);
        }
        Ok(self.files.maps.get_mut(&number))
    }

    fn name(&mut self, tag: u16, parent: u32, number: u32, name: &[u8]) -> Result<(), Stop> {
        let mut raw = self.raw(number)?;
        if links(&raw) == 0 {
            return Ok(());
        }
        let dull = name.iter().all(u8::is_ascii_alphanumeric);
        if number < 11 || !dull {
            return Err(Stop::Unclear);
        }
        let is_dir = kind(&raw) == DIRECTORY;
        if tag == CREAT && is_dir && !self.files.directories.contains_key(&number) {
            if links(&self.on_disk(number)) != 0 {
                return Err(Stop::Unclear);
            }
            self.files.directories.insert(number, Names::new());
        }
        if !self.files.directories.contains_key(&parent) {
            let above = self.raw(parent)?;
            if links(&above) == 0 {
                return Ok(());
            }
            if kind(&above) != DIRECTORY {
                return Err(Stop::Refused("a name in what is no directory"));
            }
            if self.files.inodes.contains_key(&parent)
                || self.files.maps.contains_key(&parent)
                || (parent < 11 && parent != 2)
            {
                return Err(Stop::Unclear);
            }
            let names = self.plain.inode(InodeNumber(parent));
            let names = names.and_then(|dir| self.plain.read_dir(&dir));
            let names = names.map_err(|_| Stop::Unclear)?.into_iter();
            let names = names.map(|entry| (entry.name, entry.inode.0)).collect();
            self.files.directories.insert(parent, names);
        }
        let names = self.files.directories.get_mut(&parent);
        let names = names.ok_or(Stop::Unclear)?;
        let known = names.get(name).copied();
        let now = match tag {
            UNLINK => {
                if known == Some(number) {
                    names.remove(name);
                }
                links(&raw) - u16::from(known.is_some())
            }
            _ => {
                if known.is_none() {
                    names.insert(name.to_vec(), number);
                }
                if tag == CREAT {
                    1
                } else {
                    links(&raw).saturating_add(u16::from(known.is_none()))
                }
            }
        };
        if !is_dir {
            put(&mut raw, 0x1a, &now.to_le_bytes());
            self.files.inodes.insert(number, raw);
        }
        Ok(())
    }
}

impl Files {
    /// Holds what `fs` shows against this; `image` is what the transactions left.
    pub(crate) fn check(&self, fs: &Filesystem<Bytes<'_>>, image: &[u8]) {
        let geometry = Geometry::of(image).expect("it was replayed");
        for (&number, raw) in &self.inodes {
            let found = fs.inode(InodeNumber(number));
            if links(raw) == 0 {
                assert!(found.is_err(), "inode {number} has no links");
                continue;
            }
            let inode = found.unwrap_or_else(|e| panic!("inode {number}: {e:?}"));
            let size = u64::from(le32(raw, 4));
            assert_eq!(
                (inode.mode(), inode.links, inode.size),
                (le16(raw, 0), links(raw).into(), size),
                "inode {number}"
            );
            if kind(raw) == REGULAR && !self.maps.contains_key(&number) {
                let blocks = naive::blocks_of(image, &geometry, part(raw, 0, 128));
                let map = blocks.unwrap_or_default().into_iter();
                let map = map.map(|(logical, physical, written)| {
                    let logical = u32::try_from(logical).unwrap_or(u32::MAX);
                    (logical, (physical as u64, written))
                });
                check_data(fs, image, &geometry, number, &map.collect());
            }
        }
        for (&number, map) in &self.maps {
            check_data(fs, image, &geometry, number, map);
        }
        for (&number, names) in &self.directories {
            let Ok(dir) = fs.inode(InodeNumber(number)) else {
                continue;
            };
            if !dir.is_dir() {
                // It was made something else afterwards.
                continue;
            }
            let found = fs
                .read_dir(&dir)
                .unwrap_or_else(|e| panic!("{number}: {e:?}"));
            let found: Names = found.into_iter().map(|e| (e.name, e.inode.0)).collect();
            assert!(
                found == *names,
                "directory {number}: {found:?}, not {names:?}"
            );
            for (name, &inode) in names {
                let found = fs.lookup(&dir, name).expect("it was read");
                assert_eq!(found, Some(InodeNumber(inode)), "in {number}");
            }
        }
    }
}

/// The most of a file that is compared.
const MOST: u64 = 256 << 10;

fn check_data(
    fs: &Filesystem<Bytes<'_>>,
    image: &[u8],
    geometry: &Geometry,
    number: u32,
    map: &Map,
) {
    let Ok(inode) = fs.inode(InodeNumber(number)) else {
        return;
    };
    if inode.mode() & 0xf000 != REGULAR {
        return;
    }
    let blocks = u64::from(le32(image, 1024 + 4));
    let mut places: Vec<u64> = map.values().map(|&(physical, _)| physical).collect();
    places.sort_unstable();
    let bad = places.iter().any(|&place| place == 0 || place >= blocks)
        || places.windows(2).any(|two| two[0] == two[1]);
    let mut data = vec![1; usize::try_from(inode.size.min(MOST)).unwrap_or(0)];
    let read = fs.read_at(&inode, 0, &mut data);
    if bad {
        // Of an inode without extents, what lies behind the end is not looked at.
        let looked_at = inode.flags & EXTENTS != 0 && !data.is_empty();
        assert!(read.is_err() || !looked_at, "inode {number} has bad blocks");
        return;
    }
    if read.is_err() {
        // Others were not given to files.
        let unclear = places.iter().any(|&place| place < FREE);
        assert!(unclear, "inode {number}: {read:?}");
        return;
    }
    for (i, found) in data.chunks(geometry.block).enumerate() {
        let place = u32::try_from(i).ok().and_then(|i| map.get(&i));
        let right = match place {
            Some(&(physical, true)) => {
                let at = usize::try_from(physical).unwrap_or(0) * geometry.block;
                part(image, at, found.len()).to_vec()
            }
            _ => vec![0; found.len()],
        };
        assert!(
            found == right,
            "inode {number} has other bytes in block {i}"
        );
    }
}
