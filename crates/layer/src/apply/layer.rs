//! Entries, one after another, onto the disk.

use std::collections::{HashMap, HashSet};
use std::io::BufRead;

use lcow_blockio::WriteAt;
use lcow_ext4::writer::{Content, Metadata, WriteError, WriteErrorKind, Writer};
use lcow_ext4::{Device, FileType, InodeNumber, Timestamp, Xattr};

use super::path::{self, Climbs};
use super::record::Recorder;
use super::{ApplyError, ApplyOptions, Refusal};
use crate::EntryName;
use crate::tar::{Entry, Kind, Reader, Segment, TarError};
use crate::whiteout::{self, Meaning};

/// How much of a file about to be replaced is read back at a time, in bytes.
const READ_BACK: usize = 256 << 10;

type Tar<R> = Reader<R, Recorder>;

/// A tree being made from a tar.
pub(super) struct Layer<R, D: WriteAt> {
    reader: Tar<R>,
    writer: Writer<D>,
    overlay: bool,
    max_size: u64,
    /// The directory part of the last name, as written, and what it led to: most entries lie beside the one before.
    last_dir: Vec<u8>,
    last_inode: Option<InodeNumber>,
    /// Devices that stand for whiteouts of the tar (not those that the tar has as devices).
    whiteouts: HashSet<InodeNumber>,
    opaque: HashSet<InodeNumber>,
    /// Which pieces of sparse files the tar had, should they have to be saved.
    sparse: HashMap<InodeNumber, Vec<Segment>>,
}

/// What went wrong with an entry, before its name and place are added.
enum Fault {
    Refused(Refusal),
    Write(WriteError),
    Tar(TarError),
    Split(std::io::Error),
    ReadBack(std::io::Error),
}

impl From<Refusal> for Fault {
    fn from(reason: Refusal) -> Self {
        Self::Refused(reason)
    }
}

impl From<WriteError> for Fault {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}

impl From<TarError> for Fault {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl<R: BufRead, D: WriteAt> Layer<R, D> {
    pub(super) fn new(reader: Tar<R>, writer: Writer<D>, options: &ApplyOptions) -> Self {
        Self {
            reader,
            writer,
            overlay: options.overlay,
            max_size: options.max_size,
            last_dir: Vec::new(),
            last_inode: None,
            whiteouts: HashSet::new(),
            opaque: HashSet::new(),
            sparse: HashMap::new(),
        }
    }

    pub(super) fn into_parts(self) -> (Tar<R>, Writer<D>) {
        (self.reader, self.writer)
    }

    /// Applies all entries, and reads the input to its end.
    pub(super) fn run(&mut self) -> Result<(), ApplyError> {
        self.writer
            .set_metadata(InodeNumber::ROOT, &implied_directory())?;
        let mut entry = Entry::default();
        while self.reader.next_entry()?.is_some() {
            self.reader.swap_entry(&mut entry);
            self.apply(&entry)
                .map_err(|fault| self.explain(fault, &entry))?;
        }
        Ok(())
    }

    fn explain(&self, fault: Fault, entry: &Entry) -> ApplyError {
        let reason = match fault {
            Fault::Refused(reason) => reason,
            Fault::Tar(TarError::Truncated { offset, .. }) => {
                return ApplyError::Truncated {
                    entry: Some(EntryName(entry.path.clone())),
                    offset,
                };
            }
            Fault::Tar(error) => return error.into(),
            Fault::Write(WriteError::TooManyLinks { .. }) => Refusal::TooManyLinks,
            Fault::Write(WriteError::TooLarge { .. }) => Refusal::TooLarge(self.max_size),
            Fault::Write(error) if error.kind() == WriteErrorKind::Refused => {
                Refusal::Disk(error.to_string())
            }
            Fault::Write(error) => return error.into(),
            Fault::Split(source) => {
                return ApplyError::Io {
                    operation: "write the split sidecar",
                    offset: entry.offset,
                    source,
                };
            }
            Fault::ReadBack(source) => {
                return ApplyError::Io {
                    operation: "read back a file that is replaced",
                    offset: entry.offset,
                    source,
                };
            }
        };
        ApplyError::Refused {
            entry: EntryName(entry.path.clone()),
            offset: entry.offset,
            reason,
        }
    }

    fn apply(&mut self, entry: &Entry) -> Result<(), Fault> {
        if let Kind::Other(flag) = entry.kind {
            return Err(Refusal::Type(char::from(flag)).into());
        }
        if self.overlay && entry.path.windows(4).any(|w| w == whiteout::PREFIX) {
            let components = components(&entry.path)?;
            match self.meaning(&components)? {
                Meaning::Ordinary => {}
                Meaning::Dropped => return self.discard(entry),
                Meaning::Opaque => {
                    let (parent, _) = self.place(&entry.path)?;
                    self.make_opaque(parent)?;
                    return self.discard(entry);
                }
                Meaning::Whiteout(name) => {
                    self.whiteout(entry, name)?;
                    return self.discard(entry);
                }
            }
        }
        match entry.kind {
            Kind::Directory => self.directory(entry),
            Kind::Regular => {
                let (parent, name) = self.place(&entry.path)?;
                let metadata = metadata(entry)?;
                let inode = self.create(parent, name, Content::Regular, &metadata)?;
                self.set_xattrs(inode, FileType::Regular, entry)?;
                self.content(inode, entry)
            }
            Kind::HardLink => self.hard_link(entry),
            Kind::Symlink => {
                let target = &entry.link;
                if target.is_empty() || target.len() > 4095 {
                    return Err(Refusal::SymlinkTarget(target.len()).into());
                }
                if target.contains(&0) {
                    return Err(Refusal::ZeroByte.into());
                }
                // Linux gives every symlink the same permissions.
                self.special(
                    entry,
                    Content::Symlink(target),
                    FileType::Symlink,
                    Some(0o777),
                )
            }
            Kind::CharDevice => {
                let device = device(entry)?;
                self.special(
                    entry,
                    Content::CharDevice(device),
                    FileType::CharDevice,
                    None,
                )
            }
            Kind::BlockDevice => {
                let device = device(entry)?;
                self.special(
                    entry,
                    Content::BlockDevice(device),
                    FileType::BlockDevice,
                    None,
                )
            }
            Kind::Fifo => self.special(entry, Content::Fifo, FileType::Fifo, None),
            Kind::Other(flag) => Err(Refusal::Type(char::from(flag)).into()),
        }
    }

    /// What whiteout names in a path make of the entry.
    fn meaning<'a>(&self, components: &[&'a [u8]]) -> Result<Meaning<'a>, Refusal> {
        let Some((last, dirs)) = components.split_last() else {
            return Ok(Meaning::Ordinary);
        };
        for (depth, dir) in dirs.iter().enumerate() {
            match whiteout::meaning(dir) {
                Meaning::Ordinary => {}
                Meaning::Whiteout(_) => {
                    return Err(Refusal::BelowWhiteout(path::join(components, depth)));
                }
                Meaning::Dropped | Meaning::Opaque => return Ok(Meaning::Dropped),
            }
        }
        Ok(whiteout::meaning(last))
    }

    fn whiteout(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Fault> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(Refusal::EmptyWhiteout.into());
        }
        if entry.kind == Kind::Directory {
            return Err(Refusal::WhiteoutType.into());
        }
        let (parent, _) = self.place(&entry.path)?;
        let mut metadata = metadata(entry)?;
        metadata.permissions = 0;
        match self.writer.lookup(parent, name) {
            None => {
                let nothing = Content::CharDevice(Device::default());
                let inode = self.writer.create(parent, name, nothing, &metadata)?;
                self.whiteouts.insert(inode);
            }
            Some(inode) if self.whiteouts.contains(&inode) => {
                self.writer.set_metadata(inode, &metadata)?;
            }
            Some(inode) if self.writer.file_type(inode) == Some(FileType::Directory) => {
                self.make_opaque(inode)?;
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn make_opaque(&mut self, dir: InodeNumber) -> Result<(), Fault> {
        if self.opaque.insert(dir) {
            let mut xattrs = self.writer.xattrs(dir)?;
            xattrs.retain(|x| x.name != whiteout::OPAQUE_XATTR);
            xattrs.push(opaque_xattr());
            self.writer.set_xattrs(dir, &xattrs)?;
        }
        Ok(())
    }

    fn directory(&mut self, entry: &Entry) -> Result<(), Fault> {
        let metadata = metadata(entry)?;
        let existing = if path::split_plain(&entry.path).is_none()
            && components(&entry.path)?.is_empty()
        {
            if entry.path.is_empty() {
                return Err(Refusal::NoName.into());
            }
            InodeNumber::ROOT
        } else {
            let (parent, name) = self.place(&entry.path)?;
            match self.writer.lookup(parent, name) {
                Some(inode) if self.writer.file_type(inode) == Some(FileType::Directory) => inode,
                other => {
                    let inode = self.new_directory(parent, name, other, &metadata)?;
                    return self.set_xattrs(inode, FileType::Directory, entry);
                }
            }
        };
        self.writer.set_metadata(existing, &metadata)?;
        self.set_xattrs(existing, FileType::Directory, entry)
    }

    /// Makes a directory where there is none; in place of a whiteout it is opaque, for the lower one was deleted.
    fn new_directory(
        &mut self,
        parent: InodeNumber,
        name: &[u8],
        existing: Option<InodeNumber>,
        metadata: &Metadata,
    ) -> Result<InodeNumber, Fault> {
        let deleted = existing.is_some_and(|inode| self.whiteouts.contains(&inode));
        if existing.is_some() {
            self.make_room(parent, name)?;
        }
        let inode = self
            .writer
            .create(parent, name, Content::Directory, metadata)?;
        if deleted {
            self.make_opaque(inode)?;
        }
        Ok(inode)
    }

    fn special(
        &mut self,
        entry: &Entry,
        content: Content<'_>,
        file_type: FileType,
        permissions: Option<u16>,
    ) -> Result<(), Fault> {
        let (parent, name) = self.place(&entry.path)?;
        let mut metadata = metadata(entry)?;
        metadata.permissions = permissions.unwrap_or(metadata.permissions);
        let inode = self.create(parent, name, content, &metadata)?;
        self.set_xattrs(inode, file_type, entry)
    }

    /// Makes a file, in place of what has its name. Nearly all names are new, and looked up only once.
    fn create(
        &mut self,
        parent: InodeNumber,
        name: &[u8],
        content: Content<'_>,
        metadata: &Metadata,
    ) -> Result<InodeNumber, Fault> {
        match self.writer.create(parent, name, content, metadata) {
            Err(WriteError::Exists { .. }) => {
                self.make_room(parent, name)?;
                Ok(self.writer.create(parent, name, content, metadata)?)
            }
            made => Ok(made?),
        }
    }

    fn hard_link(&mut self, entry: &Entry) -> Result<(), Fault> {
        let target = self.target(&entry.link)?;
        let (parent, name) = self.place(&entry.path)?;
        if self.writer.lookup(parent, name) == Some(target) {
            return Ok(());
        }
        self.make_room(parent, name)?;
        if self.writer.file_type(target).is_none() {
            // It lay in a directory that this name just replaced.
            return Err(Refusal::MissingTarget(EntryName(entry.link.clone())).into());
        }
        Ok(self.writer.link(parent, name, target)?)
    }

    /// Finds what a hard link names.
    fn target(&self, link: &[u8]) -> Result<InodeNumber, Refusal> {
        let shown = || EntryName(link.to_vec());
        if link.contains(&0) {
            return Err(Refusal::ZeroByte);
        }
        let components =
            path::components(link).map_err(|Climbs| Refusal::TargetLeavesRoot(shown()))?;
        let mut at = InodeNumber::ROOT;
        for (depth, component) in components.iter().enumerate() {
            match self.writer.file_type(at) {
                Some(FileType::Directory) => {}
                Some(FileType::Symlink) => {
                    let link = path::join(&components, depth.saturating_sub(1));
                    return Err(Refusal::SymlinkInTarget(link));
                }
                _ => return Err(Refusal::MissingTarget(shown())),
            }
            at = self
                .writer
                .lookup(at, component)
                .filter(|inode| !self.whiteouts.contains(inode))
                .ok_or_else(|| Refusal::MissingTarget(shown()))?;
        }
        if self.writer.file_type(at) == Some(FileType::Directory) {
            return Err(if link.is_empty() {
                Refusal::MissingTarget(shown())
            } else {
                Refusal::LinkToDirectory(shown())
            });
        }
        Ok(at)
    }

    /// The directory that an entry belongs into (made if need be) and its name there.
    fn place<'a>(&mut self, name: &'a [u8]) -> Result<(InodeNumber, &'a [u8]), Fault> {
        if let Some((dir, last)) = path::split_plain(name) {
            path::check_component(last)?;
            if let Some(inode) = self.last_inode
                && dir == self.last_dir
            {
                return Ok((inode, last));
            }
            let inode = self.parents(&components(dir)?)?;
            self.last_dir.clear();
            self.last_dir.extend_from_slice(dir);
            self.last_inode = Some(inode);
            return Ok((inode, last));
        }
        let components = components(name)?;
        let (last, dirs) = components.split_last().ok_or(Refusal::NoName)?;
        path::check_component(last)?;
        Ok((self.parents(dirs)?, last))
    }

    fn parents(&mut self, dirs: &[&[u8]]) -> Result<InodeNumber, Fault> {
        let mut at = InodeNumber::ROOT;
        for (depth, name) in dirs.iter().enumerate() {
            path::check_component(name)?;
            let existing = self.writer.lookup(at, name);
            at = match existing.and_then(|inode| Some((inode, self.writer.file_type(inode)?))) {
                Some((inode, FileType::Directory)) => inode,
                Some((_, FileType::Symlink)) => {
                    return Err(Refusal::SymlinkInPath(path::join(dirs, depth)).into());
                }
                Some((inode, _)) if !self.whiteouts.contains(&inode) => {
                    return Err(Refusal::NotADirectory(path::join(dirs, depth)).into());
                }
                _ => self.new_directory(at, name, existing, &implied_directory())?,
            };
        }
        Ok(at)
    }

    /// Takes a name away, if it is in use, and saves data that the sidecar refers to.
    fn make_room(&mut self, parent: InodeNumber, name: &[u8]) -> Result<(), Fault> {
        let Some(existing) = self.writer.lookup(parent, name) else {
            return Ok(());
        };
        if self.reader.record().split().is_some() {
            self.save(existing)?;
        }
        for gone in self.writer.unlink(parent, name)? {
            self.whiteouts.remove(&gone);
            self.opaque.remove(&gone);
            self.sparse.remove(&gone);
        }
        self.last_inode = None;
        Ok(())
    }

    /// Saves the data of all files that go when this one's name does.
    fn save(&mut self, top: InodeNumber) -> Result<(), Fault> {
        // Names below `top` of each file with data: those that have no other name go.
        let mut names: HashMap<InodeNumber, u32> = HashMap::new();
        let mut pending = vec![top];
        while let Some(inode) = pending.pop() {
            match self.writer.file_type(inode) {
                Some(FileType::Directory) => {
                    pending.extend(self.writer.children(inode).map(|(_, child)| child));
                }
                Some(FileType::Regular) => {
                    let count = names.entry(inode).or_default();
                    *count = count.saturating_add(1);
                }
                _ => {}
            }
        }
        let mut going: Vec<InodeNumber> = names
            .into_iter()
            .filter(|&(inode, count)| self.writer.links(inode) == Some(count))
            .map(|(inode, _)| inode)
            .collect();
        going.sort_unstable();
        let mut buffer = Vec::new();
        for inode in going {
            let whole = [Segment {
                offset: 0,
                len: self.writer.size(inode).unwrap_or(0),
            }];
            let segments = self.sparse.get(&inode).map_or(&whole[..], Vec::as_slice);
            let Some(split) = self.reader.record().split() else {
                continue;
            };
            for segment in segments.iter().filter(|s| s.len > 0) {
                split
                    .save(u64::from(inode.0), segment.offset, segment.len)
                    .map_err(Fault::Split)?;
                let mut done = 0_u64;
                while done < segment.len {
                    let left = segment.len.saturating_sub(done);
                    let n = usize::try_from(left).unwrap_or(READ_BACK).min(READ_BACK);
                    buffer.resize(n, 0);
                    let offset = segment.offset.saturating_add(done);
                    let got = self
                        .writer
                        .read_back(inode, offset, &mut buffer)
                        .map_err(Fault::ReadBack)?;
                    if got == 0 {
                        let short = std::io::ErrorKind::UnexpectedEof.into();
                        return Err(Fault::ReadBack(short));
                    }
                    split
                        .save_bytes(buffer.get(..got).unwrap_or_default())
                        .map_err(Fault::Split)?;
                    done = done.saturating_add(u64::try_from(got).unwrap_or(left));
                }
            }
        }
        Ok(())
    }

    /// Writes a regular file's data.
    fn content(&mut self, inode: InodeNumber, entry: &Entry) -> Result<(), Fault> {
        if entry.size == 0 {
            return Ok(());
        }
        self.writer.begin_data(inode)?;
        let whole = [Segment {
            offset: 0,
            len: entry.size,
        }];
        let mut at = 0_u64;
        for segment in entry.sparse.as_deref().unwrap_or(&whole) {
            self.writer.skip_data(segment.offset.saturating_sub(at))?;
            let mut left = segment.len;
            while left > 0 {
                let piece = self.reader.data()?;
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                self.writer.write_data(piece.get(..n).unwrap_or_default())?;
                self.reader.consume(n);
                left = left.saturating_sub(u64::try_from(n).unwrap_or(left));
            }
            at = segment.offset.saturating_add(segment.len);
            if let Some(split) = self.reader.record().split() {
                split
                    .data(u64::from(inode.0), segment.offset, segment.len)
                    .map_err(Fault::Split)?;
            }
        }
        self.writer.skip_data(entry.size.saturating_sub(at))?;
        self.writer.end_data()?;
        if let Some(segments) = &entry.sparse
            && self.reader.record().split().is_some()
        {
            self.sparse.insert(inode, segments.clone());
        }
        Ok(())
    }

    /// Passes over an entry's data, which goes nowhere but into the sidecar.
    fn discard(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.stored == 0 {
            return Ok(());
        }
        if let Some(split) = self.reader.record().split() {
            let key = split.anonymous_key();
            split
                .save(key, 0, entry.stored)
                .and_then(|()| split.data(key, 0, entry.stored))
                .map_err(Fault::Split)?;
        }
        let mut buffer = Vec::new();
        loop {
            let piece = self.reader.data()?;
            if piece.is_empty() {
                return Ok(());
            }
            buffer.clear();
            buffer.extend_from_slice(piece);
            self.reader.consume(buffer.len());
            if let Some(split) = self.reader.record().split() {
                split.save_bytes(&buffer).map_err(Fault::Split)?;
            }
        }
    }

    fn set_xattrs(
        &mut self,
        inode: InodeNumber,
        file_type: FileType,
        entry: &Entry,
    ) -> Result<(), Fault> {
        if entry.xattrs.is_empty() {
            // A directory that comes again keeps what it has.
            return Ok(());
        }
        let mut xattrs = if file_type == FileType::Directory {
            self.writer.xattrs(inode)?
        } else {
            Vec::new()
        };
        for (name, value) in &entry.xattrs {
            if !is_possible(name, file_type) {
                continue;
            }
            xattrs.retain(|known| known.name != *name);
            xattrs.push(Xattr {
                name: name.clone(),
                value: value.clone(),
            });
        }
        if self.opaque.contains(&inode) {
            xattrs.retain(|known| known.name != whiteout::OPAQUE_XATTR);
            xattrs.push(opaque_xattr());
        }
        Ok(self.writer.set_xattrs(inode, &xattrs)?)
    }
}

fn components(name: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    path::components(name).map_err(|Climbs| Refusal::LeavesRoot)
}

fn opaque_xattr() -> Xattr {
    Xattr {
        name: whiteout::OPAQUE_XATTR.to_vec(),
        value: whiteout::OPAQUE_VALUE.to_vec(),
    }
}

/// Whether Linux would take the attribute on a file of this type (kernel, `fs/xattr.c`, `xattr_permission`; `fs/posix_acl.c`).
fn is_possible(name: &[u8], file_type: FileType) -> bool {
    let is_directory = file_type == FileType::Directory;
    if name == b"system.posix_acl_default" {
        return is_directory;
    }
    if name == b"system.posix_acl_access" {
        return file_type != FileType::Symlink;
    }
    if name.starts_with(b"user.") {
        return is_directory || file_type == FileType::Regular;
    }
    name.starts_with(b"trusted.") || name.starts_with(b"security.")
}

/// What a directory has that no entry describes.
fn implied_directory() -> Metadata {
    Metadata {
        permissions: 0o755,
        ..Metadata::default()
    }
}

fn fits(field: &'static str, value: i64) -> Result<u32, Refusal> {
    u32::try_from(value).map_err(|_| Refusal::OutOfRange { field, value })
}

fn metadata(entry: &Entry) -> Result<Metadata, Refusal> {
    let clamp = |time: Timestamp| time.clamp(Timestamp::MIN, Timestamp::MAX);
    let mtime = clamp(entry.mtime);
    Ok(Metadata {
        permissions: u16::try_from(entry.mode & 0o7777).unwrap_or(0),
        uid: fits("the owner's number", entry.uid)?,
        gid: fits("the group's number", entry.gid)?,
        atime: entry.atime.map_or(mtime, clamp),
        mtime,
        ctime: entry.ctime.map_or(mtime, clamp),
    })
}

fn device(entry: &Entry) -> Result<Device, Refusal> {
    let check = |field, value: i64, max| match u32::try_from(value) {
        Ok(number) if number <= max => Ok(number),
        _ => Err(Refusal::OutOfRange { field, value }),
    };
    Ok(Device {
        major: check("the device's major number", entry.major, 0xfff)?,
        minor: check("the device's minor number", entry.minor, 0xf_ffff)?,
    })
}
