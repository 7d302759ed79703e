use std::io::{self, BufRead};

use lcow_ext4::Timestamp;

use super::field::{self, BLOCK, Block, Fields, Layout};
use super::pax::{self, Records};
use super::sparse::{self, MapInData, PaxSparse, Version};
use super::{Entry, Kind, MAX_SPECIAL, Malformed, Segment, TarError};
use crate::EntryName;

/// Sees all of an archive but the data of files, in order.
pub trait Record {
    /// A header block, extended headers' too.
    fn header(&mut self, block: &Block) -> io::Result<()>;
    /// Any other bytes.
    fn literal(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// This many zero bytes.
    fn zeros(&mut self, len: u64) -> io::Result<()>;
}

/// Records nothing.
impl Record for () {
    fn header(&mut self, _: &Block) -> io::Result<()> {
        Ok(())
    }
    fn literal(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn zeros(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a tar, entry by entry.
///
/// ```
/// use lcow_layer::tar::Reader;
///
/// let mut reader = Reader::new(&[0_u8; 1024][..], ());
/// assert_eq!(reader.next_entry()?, None);
/// # Ok::<(), lcow_layer::tar::TarError>(())
/// ```
#[derive(Debug)]
pub struct Reader<R, T> {
    input: R,
    record: T,
    /// Bytes taken from the input.
    offset: u64,
    /// Data of the current entry not yet taken, in bytes.
    data: u64,
    /// Bytes between the current entry's data and the next block.
    padding: u64,
    entries: u64,
    fields: Fields,
    entry: Entry,
    global: Vec<(Vec<u8>, Vec<u8>)>,
    global_len: usize,
    /// Records of the `x` header before the entry.
    local: Option<Vec<u8>>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    ended: bool,
}

impl<R: BufRead, T: Record> Reader<R, T> {
    /// Reads `input` from its present place, telling `record` what it passes.
    pub fn new(input: R, record: T) -> Self {
        Self {
            input,
            record,
            offset: 0,
            data: 0,
            padding: 0,
            entries: 0,
            fields: Fields::default(),
            entry: Entry::default(),
            global: Vec::new(),
            global_len: 0,
            local: None,
            long_name: None,
            long_link: None,
            ended: false,
        }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Entries seen so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The recorder.
    pub fn record(&mut self) -> &mut T {
        &mut self.record
    }

    /// Gives the input and the recorder back.
    pub fn into_inner(self) -> (R, T) {
        (self.input, self.record)
    }

    /// The next entry. Data of the one before that was not taken is passed over (and recorded). After the last entry the input is read to its end.
    ///
    /// # Errors
    /// See [`TarError`]; the reader is of no use afterwards.
    pub fn next_entry(&mut self) -> Result<Option<&Entry>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_data()?;
        let mut block = [0; BLOCK];
        loop {
            let start = self.offset;
            if !self.read_block(&mut block)? {
                if self.local.is_some() || self.long_name.is_some() || self.long_link.is_some() {
                    return Err(TarError::Truncated {
                        entry: None,
                        offset: self.offset,
                    });
                }
                if start == 0 {
                    return Err(TarError::NotATar {
                        reason: "it is empty",
                    });
                }
                self.ended = true;
                return Ok(None);
            }
            if field::is_zero(&block) {
                self.end()?;
                return Ok(None);
            }
            if !field::checksum_matches(&block) {
                return Err(if start == 0 {
                    TarError::NotATar {
                        reason: "its first block has no tar header's checksum",
                    }
                } else {
                    self.malformed(start, Malformed::Checksum)
                });
            }
            let layout = self
                .fields
                .read(&block)
                .map_err(|reason| malformed_at(start, reason))?;
            self.recording("record a header", |r| r.header(&block))?;
            match self.fields.flag {
                b'x' => {
                    let body = self.special(start, "a PAX header")?;
                    // Of two in a row the second counts, and the first must be in order all the same, as in Go.
                    let before = self.local.replace(body);
                    for record in Records(before.as_deref().unwrap_or_default()) {
                        record.map_err(|reason| malformed_at(start, reason))?;
                    }
                }
                b'g' => {
                    let body = self.special(start, "a PAX header")?;
                    self.take_global(start, &body)?;
                }
                b'L' => self.long_name = Some(self.special_name(start)?),
                b'K' => self.long_link = Some(self.special_name(start)?),
                _ => {
                    self.make_entry(start, &block, layout)?;
                    self.entries = self.entries.saturating_add(1);
                    return Ok(Some(&self.entry));
                }
            }
        }
    }

    /// The entry last read.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Swaps the entry last read with one whose allocations can be used again.
    pub fn swap_entry(&mut self, other: &mut Entry) {
        std::mem::swap(&mut self.entry, other);
    }

    /// Data of the current entry at hand, as stored; empty once all is taken.
    ///
    /// # Errors
    /// [`TarError::Truncated`] if the input ends before the data does.
    pub fn data(&mut self) -> Result<&[u8], TarError> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let offset = self.offset;
        let buffer = self
            .input
            .fill_buf()
            .map_err(|source| input_error(offset, source))?;
        if buffer.is_empty() {
            return Err(TarError::Truncated {
                entry: Some(EntryName(self.entry.path.clone())),
                offset,
            });
        }
        let n = usize::try_from(self.data)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        Ok(buffer.get(..n).unwrap_or_default())
    }

    /// Marks `n` bytes of what [`data`](Self::data) gave as taken.
    pub fn consume(&mut self, n: usize) {
        let taken = u64::try_from(n).unwrap_or(u64::MAX).min(self.data);
        self.input.consume(n);
        self.offset = self.offset.saturating_add(taken);
        self.data = self.data.saturating_sub(taken);
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        while self.data > 0 {
            let offset = self.offset;
            self.data()?;
            // Taken again, so that input and recorder can be borrowed side by side.
            let buffer = self
                .input
                .fill_buf()
                .map_err(|source| input_error(offset, source))?;
            let n = usize::try_from(self.data)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            self.record
                .literal(buffer.get(..n).unwrap_or_default())
                .map_err(|source| TarError::Io {
                    operation: "record data",
                    offset,
                    source,
                })?;
            self.consume(n);
        }
        let mut padding = [0; BLOCK];
        let len = usize::try_from(self.padding).unwrap_or(0).min(BLOCK);
        self.padding = 0;
        let padding = padding.get_mut(..len).unwrap_or_default();
        let got = self.read_up_to(padding)?;
        // The last entry's padding may be missing altogether or in part: nothing is lost by it, and GNU tar and Go take it.
        self.passed(padding.get(..got).unwrap_or_default())
    }

    /// Records bytes that are zeros more often than not.
    fn passed(&mut self, bytes: &[u8]) -> Result<(), TarError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.iter().all(|&b| b == 0) {
            let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            self.recording("record padding", |r| r.zeros(len))
        } else {
            self.recording("record padding", |r| r.literal(bytes))
        }
    }

    fn recording(
        &mut self,
        operation: &'static str,
        what: impl FnOnce(&mut T) -> io::Result<()>,
    ) -> Result<(), TarError> {
        let offset = self.offset;
        what(&mut self.record).map_err(|source| TarError::Io {
            operation,
            offset,
            source,
        })
    }

    /// Fills as much of `out` as the input has.
    fn read_up_to(&mut self, out: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0_usize;
        while filled < out.len() {
            let offset = self.offset;
            let buffer = self
                .input
                .fill_buf()
                .map_err(|source| input_error(offset, source))?;
            let rest = out.get_mut(filled..).unwrap_or_default();
            let n = buffer.len().min(rest.len());
            if n == 0 {
                break;
            }
            if let (Some(to), Some(from)) = (rest.get_mut(..n), buffer.get(..n)) {
                to.copy_from_slice(from);
            }
            self.input.consume(n);
            filled = filled.saturating_add(n);
            self.offset = self.offset.saturating_add(u64::try_from(n).unwrap_or(0));
        }
        Ok(filled)
    }

    /// A whole block, or false at the input's end.
    fn read_block(&mut self, block: &mut Block) -> Result<bool, TarError> {
        let start = self.offset;
        match self.read_up_to(block)? {
            0 => Ok(false),
            BLOCK => Ok(true),
            _ if start == 0 => Err(TarError::NotATar {
                reason: "it is shorter than a block",
            }),
            _ => Err(TarError::Truncated {
                entry: None,
                offset: self.offset,
            }),
        }
    }

    /// A block that must be there.
    fn need_block(&mut self, block: &mut Block) -> Result<(), TarError> {
        if self.read_block(block)? {
            return Ok(());
        }
        Err(TarError::Truncated {
            entry: None,
            offset: self.offset,
        })
    }

    /// After a block of zeros: a second one, and nothing but zeros to the input's end.
    fn end(&mut self) -> Result<(), TarError> {
        self.ended = true;
        let first = self
            .offset
            .saturating_sub(u64::try_from(BLOCK).unwrap_or(0));
        if self.local.is_some() || self.long_name.is_some() || self.long_link.is_some() {
            return Err(TarError::Truncated {
                entry: None,
                offset: first,
            });
        }
        loop {
            let offset = self.offset;
            let buffer = self
                .input
                .fill_buf()
                .map_err(|source| input_error(offset, source))?;
            let len = buffer.len();
            if len == 0 {
                break;
            }
            if let Some(stray) = buffer.iter().position(|&b| b != 0) {
                if self.entries == 0 {
                    return Err(TarError::NotATar {
                        reason: "it starts with zeros, and more than padding follows",
                    });
                }
                let stray = offset.saturating_add(u64::try_from(stray).unwrap_or(0));
                let second = first.saturating_add(1024);
                return Err(if stray < second {
                    malformed_at(first, Malformed::LoneZeroBlock)
                } else {
                    malformed_at(stray, Malformed::TrailingGarbage)
                });
            }
            self.input.consume(len);
            self.offset = offset.saturating_add(u64::try_from(len).unwrap_or(0));
        }
        let len = self.offset.saturating_sub(first);
        self.recording("record the end", |r| r.zeros(len))
    }

    fn malformed(&self, offset: u64, reason: Malformed) -> TarError {
        TarError::Malformed {
            entry: self.long_name.clone().map(EntryName),
            offset,
            reason,
        }
    }

    /// The body of an extended header.
    fn special(&mut self, start: u64, what: &'static str) -> Result<Vec<u8>, TarError> {
        let size = usize::try_from(self.fields.size)
            .map_err(|_| malformed_at(start, Malformed::NegativeSize))?;
        if size > MAX_SPECIAL {
            return Err(malformed_at(start, Malformed::TooLong(what)));
        }
        let mut body = vec![0; size.next_multiple_of(BLOCK)];
        let got = self.read_up_to(&mut body)?;
        if got < size {
            return Err(TarError::Truncated {
                entry: None,
                offset: self.offset,
            });
        }
        self.recording("record an extended header", |r| {
            r.literal(body.get(..size).unwrap_or_default())
        })?;
        self.passed(body.get(size..got).unwrap_or_default())?;
        body.truncate(size);
        Ok(body)
    }

    fn special_name(&mut self, start: u64) -> Result<Vec<u8>, TarError> {
        let mut body = self.special(start, "a GNU long name")?;
        body.truncate(field::text(&body).len());
        Ok(body)
    }

    /// Global records hold for all entries that follow, until replaced. Those that could make sense for one entry alone are an error.
    fn take_global(&mut self, start: u64, body: &[u8]) -> Result<(), TarError> {
        for record in Records(body) {
            let (key, value) = record.map_err(|reason| malformed_at(start, reason))?;
            if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
                let reason = Malformed::Pax("a global header sets one entry's name or size");
                return Err(malformed_at(start, reason));
            }
            if matches!(key, b"comment" | b"hdrcharset" | b"charset") {
                continue;
            }
            if let Some(known) = self.global.iter().position(|(k, _)| k == key) {
                self.global.remove(known);
            }
            self.global_len = self
                .global_len
                .saturating_add(key.len())
                .saturating_add(value.len());
            if self.global_len > MAX_SPECIAL {
                let reason = Malformed::TooLong("all global PAX headers together");
                return Err(malformed_at(start, reason));
            }
            self.global.push((key.to_vec(), value.to_vec()));
        }
        Ok(())
    }

    fn make_entry(&mut self, start: u64, block: &Block, layout: Layout) -> Result<(), TarError> {
        let local = self.local.take();
        let long_name = self.long_name.take();
        let long_link = self.long_link.take();
        let fields = &mut self.fields;
        let entry = &mut self.entry;
        entry.offset = start;
        entry.xattrs.clear();
        entry.sparse = None;
        std::mem::swap(&mut entry.path, &mut fields.path);
        std::mem::swap(&mut entry.link, &mut fields.link);
        entry.mode = fields.mode;
        entry.uid = fields.uid;
        entry.gid = fields.gid;
        entry.major = fields.major;
        entry.minor = fields.minor;
        entry.mtime = Timestamp::from_secs(fields.mtime);
        entry.atime = fields.atime.map(Timestamp::from_secs);
        entry.ctime = fields.ctime.map(Timestamp::from_secs);

        let mut size = fields.size;
        let mut pax_sparse = PaxSparse::default();
        if local.is_some() || !self.global.is_empty() {
            let mut merged = Merged::default();
            for (key, value) in &self.global {
                merged
                    .take(key, value)
                    .map_err(|e| malformed_at(start, e))?;
            }
            for record in Records(local.as_deref().unwrap_or_default()) {
                let (key, value) = record.map_err(|e| malformed_at(start, e))?;
                merged
                    .take(key, value)
                    .map_err(|e| malformed_at(start, e))?;
            }
            size = merged.size.unwrap_or(size);
            pax_sparse = merged.into_entry(entry);
        }
        if let Some(name) = long_name.filter(|n| !n.is_empty()) {
            entry.path = name;
        }
        if let Some(link) = long_link.filter(|n| !n.is_empty()) {
            entry.link = link;
        }

        entry.kind = match fields.flag {
            0 if entry.path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::Regular,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        };
        let is_old_gnu = fields.flag == b'S';
        (entry.size, entry.stored) = (0, 0);
        if entry.kind != Kind::Regular {
            if pax_sparse.version().is_some() {
                let reason = Malformed::Sparse("the entry is not a regular file");
                return Err(self.malformed_entry(reason));
            }
            return Ok(());
        }
        let Ok(size) = u64::try_from(size) else {
            return Err(self.malformed_entry(Malformed::NegativeSize));
        };
        (entry.size, entry.stored) = (size, size);
        self.padding = size.wrapping_neg() % 512;
        if is_old_gnu {
            if layout != Layout::Gnu {
                let reason = Malformed::Sparse("a sparse entry in a header that is not GNU's");
                return Err(self.malformed_entry(reason));
            }
            self.old_gnu_map(block)?;
        } else if let Some(version) = pax_sparse.version() {
            self.pax_map(version, pax_sparse)?;
        }
        if let Some(segments) = &self.entry.sparse {
            sparse::check(segments, self.entry.size, self.entry.stored)
                .map_err(|reason| self.malformed_entry(reason))?;
        }
        self.data = self.entry.stored;
        Ok(())
    }

    fn old_gnu_map(&mut self, header: &Block) -> Result<(), TarError> {
        let real = field::number(&header[field::GNU_REAL_SIZE])
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| self.malformed_entry(Malformed::Number("realsize")))?;
        let mut segments: Vec<Segment> = Vec::new();
        sparse::old_gnu(&header[field::GNU_SPARSE], &mut segments)
            .map_err(|reason| self.malformed_entry(reason))?;
        let mut more = header[field::GNU_EXTENDED] != 0;
        let mut block = [0; BLOCK];
        let mut blocks = 0_usize;
        while more {
            blocks = blocks.saturating_add(1);
            if blocks > MAX_SPECIAL / BLOCK {
                return Err(self.malformed_entry(Malformed::TooLong("the sparse map")));
            }
            self.need_block(&mut block)?;
            self.recording("record a sparse map", |r| r.literal(&block))?;
            sparse::old_gnu(&block[field::GNU_MORE_SPARSE], &mut segments)
                .map_err(|reason| self.malformed_entry(reason))?;
            more = block[field::GNU_MORE_EXTENDED] != 0;
        }
        self.entry.size = real;
        self.entry.sparse = Some(segments);
        Ok(())
    }

    fn pax_map(&mut self, version: Version, records: PaxSparse) -> Result<(), TarError> {
        let size = records.size.or(records.real_size);
        let segments = match version {
            Version::InHeader => records
                .map()
                .map_err(|reason| self.malformed_entry(reason))?,
            Version::InData => {
                let mut map = MapInData::default();
                let mut block = [0; BLOCK];
                loop {
                    if self.entry.stored < 512 {
                        let reason = Malformed::Sparse("the map is longer than the data");
                        return Err(self.malformed_entry(reason));
                    }
                    self.need_block(&mut block)?;
                    self.recording("record a sparse map", |r| r.literal(&block))?;
                    self.entry.stored = self.entry.stored.saturating_sub(512);
                    if map
                        .take(&block)
                        .map_err(|reason| self.malformed_entry(reason))?
                    {
                        break map.segments;
                    }
                }
            }
        };
        if let Some(name) = records.name.filter(|n| !n.is_empty()) {
            self.entry.path = name;
        }
        if let Some(size) = size {
            self.entry.size =
                u64::try_from(size).map_err(|_| self.malformed_entry(Malformed::NegativeSize))?;
        }
        self.entry.sparse = Some(segments);
        Ok(())
    }

    fn malformed_entry(&self, reason: Malformed) -> TarError {
        TarError::Malformed {
            entry: Some(EntryName(self.entry.path.clone())),
            offset: self.entry.offset,
            reason,
        }
    }
}

fn malformed_at(offset: u64, reason: Malformed) -> TarError {
    TarError::Malformed {
        entry: None,
        offset,
        reason,
    }
}

fn input_error(offset: u64, source: io::Error) -> TarError {
    TarError::Io {
        operation: "read the input",
        offset,
        source,
    }
}

/// What global and local records come to. An empty value takes a record back: the header's own field holds again.
#[derive(Debug, Default)]
struct Merged {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<i64>,
    uid: Option<i64>,
    gid: Option<i64>,
    major: Option<i64>,
    minor: Option<i64>,
    mtime: Option<Timestamp>,
    atime: Option<Timestamp>,
    ctime: Option<Timestamp>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// libarchive writes each attribute twice; its own form counts only where the other is missing.
    libarchive: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: PaxSparse,
}

impl Merged {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        let number = || match value {
            b"" => Ok(None),
            value => pax::decimal(value)
                .map(Some)
                .ok_or(Malformed::Pax("a value is not a number")),
        };
        let time = || match value {
            b"" => Ok(None),
            value => pax::time(value)
                .map(Some)
                .ok_or(Malformed::Pax("a value is not a time")),
        };
        let text = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = time()?,
            b"atime" => self.atime = time()?,
            b"ctime" => self.ctime = time()?,
            b"SCHILY.devmajor" => self.major = number()?,
            b"SCHILY.devminor" => self.minor = number()?,
            b"GNU.sparse.major" => self.sparse.major = text(),
            b"GNU.sparse.minor" => self.sparse.minor = text(),
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.size" => self.sparse.size = number()?,
            b"GNU.sparse.realsize" => self.sparse.real_size = number()?,
            b"GNU.sparse.numblocks" => self.sparse.blocks = number()?,
            b"GNU.sparse.map" => self.sparse.map = text(),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let is_offset = key.ends_with(b"offset");
                let number = number()?.ok_or(Malformed::Sparse("the map holds no numbers"))?;
                if self.sparse.pairs.len().is_multiple_of(2) != is_offset {
                    return Err(Malformed::Sparse("offsets and lengths do not alternate"));
                }
                self.sparse.pairs.push(number);
            }
            b"SCHILY.acl.access" => self.acl(b"system.posix_acl_access", value),
            b"SCHILY.acl.default" => self.acl(b"system.posix_acl_default", value),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    set(&mut self.xattrs, pax::gnu_unescape(name), value.to_vec());
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value = pax::base64_decode(value)
                        .ok_or(Malformed::Pax("an attribute's value is not base 64"))?;
                    set(&mut self.libarchive, pax::url_decode(name), value);
                }
            }
        }
        Ok(())
    }

    /// An ACL that can't be read (one with names instead of numbers, or not a POSIX one) is left out, as by Go and bsdtar.
    fn acl(&mut self, name: &[u8], text: &[u8]) {
        if let Some(Some(acl)) = super::acl::parse(text, name.ends_with(b"default")) {
            set(&mut self.xattrs, name.to_vec(), acl);
        }
    }

    /// Moves everything into the entry but the sparse file's records.
    fn into_entry(self, entry: &mut Entry) -> PaxSparse {
        if let Some(path) = self.path {
            entry.path = path;
        }
        if let Some(link) = self.link {
            entry.link = link;
        }
        entry.uid = self.uid.unwrap_or(entry.uid);
        entry.gid = self.gid.unwrap_or(entry.gid);
        entry.major = self.major.unwrap_or(entry.major);
        entry.minor = self.minor.unwrap_or(entry.minor);
        entry.mtime = self.mtime.unwrap_or(entry.mtime);
        entry.atime = self.atime.or(entry.atime);
        entry.ctime = self.ctime.or(entry.ctime);
        entry.xattrs = self.xattrs;
        for (name, value) in self.libarchive {
            if entry.xattrs.iter().all(|(known, _)| *known != name) {
                entry.xattrs.push((name, value));
            }
        }
        self.sparse
    }
}

fn set(list: &mut Vec<(Vec<u8>, Vec<u8>)>, name: Vec<u8>, value: Vec<u8>) {
    if let Some((_, known)) = list.iter_mut().find(|(known, _)| *known == name) {
        *known = value;
    } else {
        list.push((name, value));
    }
}
