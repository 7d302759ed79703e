//! What a tar means, written a second time and as plainly as can be: the tree that `tar_to_ext4` must make.
//!
//! It knows the common parts of the formats. A tar with any other part is [`Verdict::Unknown`], and not compared.

use std::collections::BTreeMap;

use lcow_ext4::Timestamp;

use crate::bytes::part;
use crate::pax_model::{
    ACL_ACCESS, ACL_DEFAULT, Extended, Records, decimal, extended, is_acl, records,
};
use crate::tree::{GRAIN, Kind, Node, Tree, grains};

/// What a tar comes to.
pub(crate) enum Verdict {
    Tree(Tree),
    /// It must not be accepted.
    Refuse(&'static str),
    /// It has something in it that this model does not know.
    Unknown,
}

pub(crate) enum Stop {
    Refuse(&'static str),
    Unknown,
}

pub(crate) type Result<T> = std::result::Result<T, Stop>;

pub(crate) fn refuse<T>(why: &'static str) -> Result<T> {
    Err(Stop::Refuse(why))
}

/// A file's data: its size, and what of it is stored.
#[derive(Default)]
struct Data<'a> {
    size: u64,
    pieces: Vec<(u64, &'a [u8])>,
}

struct Entry<'a> {
    flag: u8,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: i64,
    uid: i64,
    gid: i64,
    mtime: Timestamp,
    device: (i64, i64),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    data: Data<'a>,
}

/// A file of the tree being made: what it is, and for directories what is in it.
struct File {
    node: Node,
    names: BTreeMap<Vec<u8>, usize>,
    /// A device that stands for a whiteout, and not for one the archive has as a device.
    whiteout: bool,
    opaque: bool,
}

struct Model {
    files: Vec<File>,
    overlay: bool,
}

const ROOT: usize = 0;

/// What `tar` (not compressed) must become.
pub(crate) fn model(tar: &[u8], overlay: bool) -> Verdict {
    match run(tar, overlay) {
        Ok(tree) => Verdict::Tree(tree),
        Err(Stop::Refuse(why)) => Verdict::Refuse(why),
        Err(Stop::Unknown) => Verdict::Unknown,
    }
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// A numeric field: octal digits, maybe with spaces or zeros before and behind.
fn number(field: &[u8]) -> Result<i64> {
    if field[0] & 0x80 != 0 {
        // Base 256, of positive numbers that fit.
        let (first, rest) = (field[0], &field[1..]);
        let (high, low) = rest.split_at(rest.len() - 7);
        if first != 0x80 || high.iter().any(|&b| b != 0) {
            return Err(Stop::Unknown);
        }
        return Ok(low.iter().fold(0, |n, &b| (n << 8) | i64::from(b)));
    }
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let digits: Vec<u8> = field.iter().copied().skip_while(blank).collect();
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    if digits[end..].iter().any(|b| !blank(b)) {
        return Err(Stop::Unknown);
    }
    digits[..end].iter().try_fold(0, |n: i64, &b| match b {
        b'0'..=b'7' => Ok(n * 8 + i64::from(b - b'0')),
        _ => refuse("a number that is none"),
    })
}

fn run(tar: &[u8], overlay: bool) -> Result<Tree> {
    let mut model = Model::new(overlay);
    if tar.is_empty() {
        return refuse("there is nothing");
    }
    let mut rest = tar;
    let mut global: Records = Vec::new();
    let mut local: Records = Vec::new();
    // From GNU's headers, which count before all others.
    let (mut long_path, mut long_link) = (None, None);
    let mut pending = false;
    loop {
        if rest.is_empty() && !pending {
            break;
        }
        if rest.len() < 512 {
            return refuse("cut short");
        }
        let (block, behind) = rest.split_at(512);
        if block.iter().all(|&b| b == 0) {
            if pending || behind.iter().any(|&b| b != 0) {
                return refuse("something behind the end");
            }
            break;
        }
        let spaces = |i: &usize| (148..156).contains(i);
        let bytes = block.iter().enumerate();
        let sum = bytes.map(|(i, &b)| if spaces(&i) { 32 } else { i64::from(b) });
        if number(&block[148..156])? != sum.sum::<i64>() {
            // Sums of signed bytes are taken too.
            return Err(Stop::Unknown);
        }
        let flag = block[156];
        for field in [100..108, 108..116, 116..124, 136..148] {
            number(&block[field])?;
        }
        let (_, device) = prefix_and_device(block)?;
        let size = number(&block[124..136])?;
        let has_data = matches!(flag, 0 | b'0' | b'7' | b'S' | b'g' | b'x' | b'L' | b'K');
        let special = matches!(flag, b'g' | b'x' | b'L' | b'K');
        let mut next = Extended::default();
        let mut size = size;
        if !special {
            let all = [&global[..], &local].concat();
            next = extended(&all)?;
            size = next.size.unwrap_or(size);
        }
        let mut map = Vec::new();
        let mut behind = behind;
        if flag == b'S' {
            if &block[257..265] != b"ustar  \0" {
                return refuse("a sparse file in a header that is not GNU's");
            }
            (map, behind) = gnu_map(block, behind)?;
        }
        if flag == 0 && size > 0 {
            // It has no data if its name, which may lie anywhere before, ends in a slash.
            return Err(Stop::Unknown);
        }
        let len = if has_data {
            usize::try_from(size).unwrap_or(usize::MAX)
        } else {
            0
        };
        if len > behind.len() {
            return refuse("cut short inside an entry");
        }
        let data = &behind[..len];
        rest = &behind[len.next_multiple_of(512).min(behind.len())..];
        match flag {
            b'x' => {
                // Of two the second counts.
                local = records(data)?;
                pending = true;
            }
            b'g' => {
                for (key, value) in records(data)? {
                    if matches!(&key[..], b"path" | b"linkpath" | b"size")
                        || key.starts_with(b"GNU.sparse.")
                    {
                        return refuse("a global header for one entry alone");
                    }
                    global.retain(|(known, _)| *known != key);
                    global.push((key, value));
                }
            }
            b'L' | b'K' => {
                let name = Some(text(data).to_vec()).filter(|name| !name.is_empty());
                if flag == b'L' {
                    long_path = name;
                } else {
                    long_link = name;
                }
                pending = true;
            }
            b'0'..=b'7' | 0 | b'S' => {
                local = Vec::new();
                pending = false;
                next.path = long_path.take().or(next.path);
                next.link = long_link.take().or(next.link);
                let data = if flag == b'S' {
                    // Only one form of sparse files at a time.
                    (next.sparse, next.pairs) = (BTreeMap::new(), Vec::new());
                    spread(map, number(&block[483..495])?, data)?
                } else {
                    pax_sparse(&mut next, data, has_data)?
                };
                let device = (
                    next.major.unwrap_or(device.0),
                    next.minor.unwrap_or(device.1),
                );
                for (name, value) in std::mem::take(&mut next.libarchive) {
                    next.xattrs.entry(name).or_insert(value);
                }
                let entry = entry(block, next, device, data)?;
                model.apply(entry)?;
            }
            _ => return Err(Stop::Unknown),
        }
    }
    Ok(model.finish())
}

/// Offsets and lengths of what is stored of a sparse file.
type Map = Vec<(i64, i64)>;

/// The map of an old GNU sparse file, and what follows the blocks that it goes on in.
fn gnu_map<'a>(block: &[u8], behind: &'a [u8]) -> Result<(Map, &'a [u8])> {
    let mut map = Vec::new();
    let mut take = |pairs: &[u8]| {
        for pair in pairs.chunks_exact(24) {
            if pair[0] == 0 {
                break;
            }
            map.push((number(&pair[..12])?, number(&pair[12..])?));
        }
        Ok(())
    };
    take(&block[386..482])?;
    let mut more = block[482] != 0;
    let mut behind = behind;
    while more {
        let Some((next, rest)) = behind.split_at_checked(512) else {
            return refuse("cut short inside a sparse map");
        };
        take(&next[..504])?;
        more = next[504] != 0;
        behind = rest;
    }
    Ok((map, behind))
}

/// Data as a map of offsets and lengths puts it into a file.
fn spread(map: Map, size: i64, data: &[u8]) -> Result<Data<'_>> {
    let (mut end, mut rest) = (0, data);
    let mut pieces = Vec::new();
    for (offset, len) in map {
        let stored = usize::try_from(len)
            .ok()
            .and_then(|len| rest.split_at_checked(len));
        let Some((bytes, behind)) = stored else {
            return refuse("a sparse map with more than the data");
        };
        if offset < end || offset.checked_add(len).is_none_or(|end| end > size) {
            return refuse("a sparse map out of order, or past the end");
        }
        end = offset + len;
        pieces.push((offset.cast_unsigned(), bytes));
        rest = behind;
    }
    if !rest.is_empty() || size < 0 {
        return refuse("a sparse map with less than the data");
    }
    Ok(Data {
        size: size.cast_unsigned(),
        pieces,
    })
}

/// The data of an entry as PAX's records say: as it is, or that of a sparse file of versions 0.0, 0.1 and 1.0. The name of one that is none
/// is taken away.
fn pax_sparse<'a>(records: &mut Extended, data: &'a [u8], has_data: bool) -> Result<Data<'a>> {
    let get = |key: &str| {
        let key = format!("GNU.sparse.{key}").into_bytes();
        records.sparse.get(&key).map(Vec::as_slice)
    };
    let list = |numbers: &[i64]| numbers.chunks(2).map(|p| (p[0], p[1])).collect::<Map>();
    let in_header = match (get("major"), get("minor")) {
        (Some(b"0"), Some(b"0" | b"1")) => true,
        (Some(b"1"), Some(b"0")) => false,
        (None, None) if get("map").is_some() || !records.pairs.is_empty() => true,
        _ => {
            for number in ["size", "realsize", "numblocks"] {
                get(number).map(decimal).transpose()?;
            }
            records.sparse.clear();
            return Ok(Data {
                size: data.len() as u64,
                pieces: vec![(0, data)],
            });
        }
    };
    if !has_data {
        return refuse("a sparse file that is no file");
    }
    let number = |key: &str| get(key).map(decimal).transpose();
    let (size, real) = (number("size")?, number("realsize")?);
    let size = size
        .or(real)
        .unwrap_or(i64::try_from(data.len()).unwrap_or(i64::MAX));
    let blocks = number("numblocks")?;
    if in_header {
        let mut numbers = records.pairs.clone();
        if numbers.is_empty()
            && let Some(map) = get("map")
        {
            let map = map.split(|&b| b == b',').map(decimal);
            numbers = map.collect::<Result<Vec<i64>>>()?;
        }
        let pairs = i64::try_from(numbers.len() / 2).unwrap_or(0);
        if !numbers.len().is_multiple_of(2) || blocks != Some(pairs) {
            return refuse("a sparse map of another length");
        }
        return spread(list(&numbers), size, data);
    }
    let mut lines = data.split_inclusive(|&b| b == b'\n');
    let mut used = 0;
    let mut number = || {
        let line = lines.next().and_then(|line| {
            used += line.len();
            line.strip_suffix(b"\n")
        });
        decimal(line.unwrap_or_default())
    };
    let count = number()?;
    let mut numbers = Vec::new();
    for _ in 0..count.saturating_mul(2) {
        numbers.push(number()?);
    }
    let Some(stored) = data.get(used.next_multiple_of(512)..) else {
        return Err(Stop::Unknown);
    };
    spread(list(&numbers), size, stored)
}

/// What a header has behind the fields of all: the start of a long name, and the device.
fn prefix_and_device(block: &[u8]) -> Result<(&[u8], (i64, i64))> {
    let magic = &block[257..265];
    let ustar = magic.starts_with(b"ustar\0");
    let gnu = magic == b"ustar  \0";
    if ustar && &block[508..] == b"tar\0" || gnu && block[345..369].iter().any(|&b| b != 0) {
        return Err(Stop::Unknown);
    }
    if !ustar && !gnu {
        return Ok((&[], (0, 0)));
    }
    let prefix = if ustar { text(&block[345..500]) } else { &[] };
    let device = (number(&block[329..337])?, number(&block[337..345])?);
    Ok((prefix, device))
}

fn entry<'a>(
    block: &[u8],
    extended: Extended,
    device: (i64, i64),
    data: Data<'a>,
) -> Result<Entry<'a>> {
    let (prefix, _) = prefix_and_device(block)?;
    let mut path = prefix.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(text(&block[..100]));
    let mtime = Timestamp::from_secs(number(&block[136..148])?);
    let path = extended.path.unwrap_or(path);
    let is_old_dir = path.ends_with(b"/");
    let name = extended.sparse.get(&b"GNU.sparse.name"[..]);
    let path = name.cloned().unwrap_or(path);
    Ok(Entry {
        flag: match block[156] {
            0 if is_old_dir => b'5',
            0 | b'7' | b'S' => b'0',
            flag => flag,
        },
        path,
        link: (extended.link).unwrap_or_else(|| text(&block[157..257]).to_vec()),
        mode: number(&block[100..108])?,
        uid: extended.uid.unwrap_or(number(&block[108..116])?),
        gid: extended.gid.unwrap_or(number(&block[116..124])?),
        mtime: extended.mtime.unwrap_or(mtime),
        device,
        xattrs: extended.xattrs,
        data,
    })
}

/// A path's components from the root.
fn components(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    for component in path.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if out.pop().is_none() {
                    return refuse("the path climbs out of the root");
                }
            }
            name => out.push(name.to_vec()),
        }
    }
    if out.iter().any(|name| name.len() > 255 || name.contains(&0)) {
        return refuse("a name that no file can have");
    }
    Ok(out)
}

const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

fn node(kind: Kind, permissions: u16) -> Node {
    Node {
        identity: 0,
        kind,
        permissions,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        xattrs: BTreeMap::new(),
    }
}

fn owner_and_time(entry: &Entry<'_>, node: &mut Node) -> Result<()> {
    let owner = |n: i64| u32::try_from(n).map_err(|_| Stop::Refuse("an owner out of range"));
    (node.uid, node.gid) = (owner(entry.uid)?, owner(entry.gid)?);
    node.mtime = entry.mtime.clamp(Timestamp::MIN, Timestamp::MAX);
    Ok(())
}

impl Model {
    fn new(overlay: bool) -> Self {
        let mut model = Self {
            files: Vec::new(),
            overlay,
        };
        model.add(node(Kind::Directory, 0o755));
        model
    }

    fn add(&mut self, mut node: Node) -> usize {
        let id = self.files.len();
        node.identity = id;
        self.files.push(File {
            node,
            names: BTreeMap::new(),
            whiteout: false,
            opaque: false,
        });
        id
    }

    fn is_dir(&self, id: usize) -> bool {
        self.files[id].node.kind == Kind::Directory
    }

    /// A directory in place of a whiteout hides the one that the whiteout deletes.
    fn add_dir(&mut self, parent: usize, name: &[u8], mut node: Node) -> usize {
        let old = self.files[parent].names.get(name).copied();
        let opaque = old.is_some_and(|old| self.files[old].whiteout);
        if opaque {
            node.xattrs.insert(OPAQUE.0.to_vec(), OPAQUE.1.to_vec());
        }
        let id = self.add(node);
        self.files[id].opaque = opaque;
        self.files[parent].names.insert(name.to_vec(), id);
        id
    }

    fn parents(&mut self, dirs: &[Vec<u8>]) -> Result<usize> {
        let mut at = ROOT;
        for name in dirs {
            at = match self.files[at].names.get(name).copied() {
                Some(id) if self.is_dir(id) => id,
                Some(id) if !self.files[id].whiteout => {
                    return refuse("a path through something other than a directory");
                }
                _ => self.add_dir(at, name, node(Kind::Directory, 0o755)),
            };
        }
        Ok(at)
    }

    fn apply(&mut self, entry: Entry<'_>) -> Result<()> {
        let path = components(&entry.path)?;
        if self.overlay && path.iter().any(|name| name.starts_with(b".wh.")) {
            return self.whiteout(&entry, &path);
        }
        let metadata = self.metadata(&entry)?;
        let Some((name, dirs)) = path.split_last() else {
            if entry.flag != b'5' || entry.path.is_empty() {
                return refuse("a file in place of the root");
            }
            self.update(ROOT, metadata);
            return Ok(());
        };
        if entry.flag == b'1' {
            // The target is looked for first, as it was before this entry makes its parents.
            let target = self.target(&entry.link)?;
            let parent = self.parents(dirs)?;
            if !self.reachable(target, parent, name) {
                return refuse("a link to what its own name replaces");
            }
            self.files[parent].names.insert(name.clone(), target);
            return Ok(());
        }
        let parent = self.parents(dirs)?;
        let old = self.files[parent].names.get(name).copied();
        if entry.flag == b'5' {
            match old.filter(|&old| self.is_dir(old)) {
                Some(dir) => self.update(dir, metadata),
                None => {
                    self.add_dir(parent, name, metadata);
                }
            }
        } else {
            let id = self.add(metadata);
            self.files[parent].names.insert(name.clone(), id);
        }
        Ok(())
    }

    fn update(&mut self, dir: usize, mut metadata: Node) {
        let file = &mut self.files[dir];
        let mut xattrs = std::mem::take(&mut file.node.xattrs);
        xattrs.append(&mut metadata.xattrs);
        if file.opaque {
            xattrs.insert(OPAQUE.0.to_vec(), OPAQUE.1.to_vec());
        }
        metadata.xattrs = xattrs;
        metadata.identity = dir;
        file.node = metadata;
    }

    fn set_opaque(&mut self, dir: usize) {
        let file = &mut self.files[dir];
        file.opaque = true;
        let xattrs = &mut file.node.xattrs;
        xattrs.insert(OPAQUE.0.to_vec(), OPAQUE.1.to_vec());
    }

    fn whiteout(&mut self, entry: &Entry<'_>, path: &[Vec<u8>]) -> Result<()> {
        let Some((last, dirs)) = path.split_last() else {
            return Ok(());
        };
        for dir in dirs {
            if dir.starts_with(b".wh..wh.") {
                return Ok(());
            }
            if dir.starts_with(b".wh.") {
                return refuse("a path below a whiteout");
            }
        }
        if last == b".wh..wh..opq" {
            let dir = self.parents(dirs)?;
            self.set_opaque(dir);
            return Ok(());
        }
        if last.starts_with(b".wh..wh.") {
            return Ok(());
        }
        let name = &last[4..];
        if matches!(name, b"" | b"." | b"..") {
            return refuse("a whiteout of nothing");
        }
        if entry.flag == b'5' {
            return refuse("a directory as a whiteout");
        }
        let parent = self.parents(dirs)?;
        let mut device = node(Kind::Char(0, 0), 0);
        owner_and_time(entry, &mut device)?;
        match self.files[parent].names.get(name).copied() {
            None => {
                let id = self.add(device);
                self.files[id].whiteout = true;
                self.files[parent].names.insert(name.to_vec(), id);
            }
            Some(old) if self.files[old].whiteout => {
                device.identity = old;
                self.files[old].node = device;
            }
            Some(old) if self.is_dir(old) => self.set_opaque(old),
            Some(_) => {}
        }
        Ok(())
    }

    fn target(&self, link: &[u8]) -> Result<usize> {
        let mut at = ROOT;
        for name in components(link)? {
            match self.files[at].names.get(&name) {
                Some(&id) if !self.files[id].whiteout => at = id,
                _ => return refuse("a link to nothing"),
            }
        }
        if self.is_dir(at) {
            return refuse("a link to a directory");
        }
        Ok(at)
    }

    /// Whether a file has a name that stays when `name` in `parent` is taken away with all below it, or is that very name.
    fn reachable(&self, target: usize, parent: usize, name: &[u8]) -> bool {
        if self.files[parent].names.get(name) == Some(&target) {
            return true;
        }
        let mut pending = vec![ROOT];
        while let Some(dir) = pending.pop() {
            for (child, &id) in &self.files[dir].names {
                if dir == parent && child == name {
                    continue;
                }
                if id == target {
                    return true;
                }
                pending.push(id);
            }
        }
        false
    }

    fn metadata(&self, entry: &Entry<'_>) -> Result<Node> {
        let kind = match entry.flag {
            b'0' => {
                let grain = GRAIN as u64;
                let mut filled: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
                for (offset, bytes) in &entry.data.pieces {
                    for (at, &byte) in (*offset..).zip(*bytes) {
                        let left = entry.data.size - at / grain * grain;
                        let len = usize::try_from(left).unwrap_or(GRAIN).min(GRAIN);
                        let piece = filled.entry(at / grain).or_insert_with(|| vec![0; len]);
                        piece[usize::try_from(at % grain).unwrap_or(0)] = byte;
                    }
                }
                let mut pieces = Vec::new();
                for (number, bytes) in filled {
                    grains(number * grain, &bytes, &mut pieces);
                }
                Kind::File(entry.data.size, pieces)
            }
            b'2' if entry.link.is_empty() || entry.link.len() > 4095 => {
                return refuse("a symlink to nothing, or too far");
            }
            b'2' if entry.link.contains(&0) => return refuse("a symlink with a zero"),
            b'2' => Kind::Symlink(entry.link.clone()),
            b'3' | b'4' => {
                let device = |n: i64, end: i64| match u32::try_from(n) {
                    Ok(n) if i64::from(n) < end => Ok(n),
                    _ => refuse("a device number out of range"),
                };
                let (major, minor) = entry.device;
                let (major, minor) = (device(major, 1 << 12)?, device(minor, 1 << 20)?);
                if entry.flag == b'3' {
                    Kind::Char(major, minor)
                } else {
                    Kind::Block(major, minor)
                }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => Kind::Socket,
        };
        let permissions = if entry.flag == b'2' {
            0o777
        } else {
            u16::try_from(entry.mode & 0o7777).unwrap_or(0)
        };
        let mut node = node(kind, permissions);
        // A hard link's own metadata does not count.
        if entry.flag != b'1' {
            owner_and_time(entry, &mut node)?;
        }
        for (name, value) in &entry.xattrs {
            let dir_or_file = matches!(entry.flag, b'0' | b'5');
            let kept = name.starts_with(b"trusted.") && name.len() > 8
                || name.starts_with(b"security.") && name.len() > 9
                || name.starts_with(b"user.") && name.len() > 5 && dir_or_file;
            let acl = name == ACL_ACCESS && entry.flag != b'2'
                || name == ACL_DEFAULT && entry.flag == b'5';
            // What is wrong with an attribute, or too much for ext4, is not this model's business.
            let odd = part(name, 0, 5).is_empty() || name.len() > 255 || name.contains(&0);
            if odd || acl && !is_acl(value) {
                return Err(Stop::Unknown);
            }
            if kept || acl {
                node.xattrs.insert(name.clone(), value.clone());
            } else if name.ends_with(b".") {
                return Err(Stop::Unknown);
            }
        }
        Ok(node)
    }

    fn finish(self) -> Tree {
        let mut tree = Tree::new();
        let mut pending = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = pending.pop() {
            for (name, &child) in &self.files[id].names {
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(name);
                pending.push((below, child));
            }
            tree.insert(path, self.files[id].node.clone());
        }
        tree
    }
}

/// Where two trees differ first; identities need only pair off.
pub(crate) fn difference(expected: &Tree, found: &Tree) -> Option<String> {
    let mut pairs: BTreeMap<usize, usize> = BTreeMap::new();
    let mut back: BTreeMap<usize, usize> = BTreeMap::new();
    for (path, want) in expected {
        let shown = path.escape_ascii();
        let Some(have) = found.get(path) else {
            return Some(format!("{shown} is missing"));
        };
        if *pairs.entry(want.identity).or_insert(have.identity) != have.identity
            || *back.entry(have.identity).or_insert(want.identity) != want.identity
        {
            return Some(format!("{shown} is linked otherwise"));
        }
        let mut same = have.clone();
        same.identity = want.identity;
        if same != *want {
            return Some(format!("{shown} should be {want:?}, and is {same:?}"));
        }
    }
    let extra = found.keys().find(|path| !expected.contains_key(*path));
    extra.map(|path| format!("{} should not be there", path.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gnu_tar_writes_is_known() {
        for tar in [
            &include_bytes!("../layers/gnu.tar")[..],
            include_bytes!("../layers/pax.tar"),
            include_bytes!("../layers/sparse.tar"),
            include_bytes!("../layers/replaced.tar"),
        ] {
            let Verdict::Tree(tree) = model(tar, true) else {
                panic!("a tar of the common kind is not known");
            };
            let Kind::File(size, pieces) = &tree[&b"d/sparse"[..]].kind else {
                panic!("no file");
            };
            let found: Vec<_> = pieces.iter().map(|p| (p.0, p.1.len())).collect();
            assert_eq!(*size, 20001);
            assert_eq!(found, [(8704, 512), (19968, 33)]);
        }
    }

    #[test]
    fn records_of_every_kind_are_known() {
        let seed = |bytes: &'static [u8]| model(&bytes[1..], true);
        let trees = [
            &include_bytes!("../seeds/tar_to_ext4/made-global")[..],
            include_bytes!("../seeds/tar_to_ext4/made-libarchive"),
            include_bytes!("../seeds/tar_to_ext4/made-acl"),
            include_bytes!("../seeds/tar_to_ext4/made-sparse-0.0"),
        ]
        .map(|bytes| match seed(bytes) {
            Verdict::Tree(tree) => tree,
            _ => panic!("not known"),
        });
        let [global, libarchive, acl, sparse] = &trees;
        let owners: Vec<_> = global.values().map(|node| (node.uid, node.gid)).collect();
        assert_eq!(owners, [(0, 0), (7, 0), (0, 9), (0, 0), (8, 0)]);
        let xattrs = &libarchive[&b"f"[..]].xattrs;
        assert_eq!(xattrs[&b"user.a=b"[..]], [0, 1, 2, 255]);
        assert_eq!(xattrs[&b"user.both"[..]], b"this");
        assert_eq!(xattrs.len(), 3);
        assert_eq!(acl[&b"d"[..]].xattrs.len(), 2);
        assert_eq!(acl[&b"f"[..]].xattrs[ACL_ACCESS].len(), 4 + 5 * 8);
        assert!(acl[&b"left-out"[..]].xattrs.is_empty());
        assert!(matches!(sparse[&b"s"[..]].kind, Kind::File(40_000, _)));
        let odd = seed(include_bytes!("../seeds/tar_to_ext4/made-sparse-0.0-odd"));
        assert!(matches!(odd, Verdict::Refuse(_)));
    }
}
