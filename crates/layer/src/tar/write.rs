//! Writing tar archives in one fixed form: the same entries give the same bytes.
//!
//! The form is POSIX `ustar`, with a PAX header (POSIX.1-2001, pax, "pax Extended Header") before an entry only for what `ustar` can't hold:
//! names that don't fit its 100 + 155 bytes, ids past 2,097,151, sizes past 8 GiB, times before 1970, past 2242 or with a fraction,
//! extended attributes and sparse files. Records are sorted by key. Names are bytes and are written as they are, as GNU tar and Go do,
//! whether they are UTF-8 or not. User and group names, access and change times are left out: they differ from machine to
//! machine.
//!
//! * Extended attributes are `SCHILY.xattr.NAME`. A name with `=`, which would end the record's key, has it as `%3D`, as GNU tar does.
//! * Sparse files are of PAX format 1.0 (GNU tar manual, "PAX Format, Version 1.0"): the map of data comes first in the entry's data.
//! * A hard link has the metadata and attributes of its file: some readers set them again for each name.
//! * The archive ends with two blocks of zeros, and no more padding.

use std::io::{self, Write};
use std::ops::Range;

use lcow_ext4::{Device, Timestamp, Xattr};

/// The unit of tar, in bytes.
const BLOCK: usize = 512;
/// The longest PAX header that readers take (ours, and Go's `archive/tar`), in bytes.
const MAX_PAX: usize = 1 << 20;

const ZEROS: [u8; BLOCK] = [0; BLOCK];
/// The most that seven octal digits hold.
const MAX_OCTAL_7: u64 = 0o777_7777;
/// The most that eleven octal digits hold.
const MAX_OCTAL_11: u64 = 0o777_7777_7777;

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub enum EntryKind<'a> {
    /// A regular file. [`TarWriter::data`] calls for just `size` bytes follow.
    File {
        /// Its length, in bytes.
        size: u64,
    },
    /// A regular file with holes. [`TarWriter::data`] calls for the bytes of all `data` ranges follow.
    Sparse {
        /// Its length, in bytes.
        size: u64,
        /// What of it is not a hole, in order.
        data: &'a [Range<u64>],
    },
    /// Another name for an earlier entry, given by its path.
    HardLink(&'a [u8]),
    /// A symbolic link, with its target.
    Symlink(&'a [u8]),
    /// A directory.
    Directory,
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// An entry of an archive.
#[derive(Debug, Clone, Copy)]
pub struct EntryHeader<'a> {
    /// The path without a leading slash; a directory's without a trailing one. Empty: the root directory, written as `./`.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind<'a>,
    /// `0o7777`.
    pub permissions: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was last written.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: &'a [Xattr],
}

/// Why an entry could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarWriteError {
    /// The output failed.
    #[error("writing the tar: {0}")]
    Io(#[from] io::Error),
    /// The PAX header would be larger than readers take.
    #[error("a PAX header of {len} bytes: the most that readers take is {MAX_PAX}")]
    HeaderTooLarge {
        /// Its length, in bytes.
        len: usize,
    },
    /// The data given is not as long as its header said.
    #[error("the data of an entry is {} than its header says", if *.long {"longer"} else {"shorter"})]
    WrongLength {
        /// Whether it is longer.
        long: bool,
    },
}

/// Writes an archive, entry by entry. Nothing is buffered but headers.
#[derive(Debug)]
pub struct TarWriter<W> {
    out: W,
    written: u64,
    /// What is missing of the current entry's data, and of the padding behind it.
    missing: u64,
    padding: usize,
}

impl<W: Write> TarWriter<W> {
    /// An archive to go to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            missing: 0,
            padding: 0,
        }
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Starts an entry.
    ///
    /// # Errors
    /// [`TarWriteError::WrongLength`] if data of the last entry is missing.
    pub fn entry(&mut self, header: &EntryHeader<'_>) -> Result<(), TarWriteError> {
        self.end_entry()?;
        let mut pax = Pax::default();
        let mut raw = Raw::new();
        let mut name = header.path.to_vec();
        if name.is_empty() {
            name = b"./".to_vec();
        } else if matches!(header.kind, EntryKind::Directory) {
            name.push(b'/');
        }
        let mut size = 0;
        let mut map = Vec::new();
        match header.kind {
            EntryKind::File { size: bytes } => {
                size = bytes;
                raw.typeflag(b'0');
            }
            EntryKind::Sparse { size: real, data } => {
                map = sparse_map(real, data);
                size = data
                    .iter()
                    .map(|range| range.end.saturating_sub(range.start))
                    .fold(len64(map.len()), u64::saturating_add);
                raw.typeflag(b'0');
                pax.add(b"GNU.sparse.major", b"1");
                pax.add(b"GNU.sparse.minor", b"0");
                pax.add(b"GNU.sparse.name", &name);
                pax.add(b"GNU.sparse.realsize", real.to_string().as_bytes());
                // What a reader that knows nothing of sparse files makes of it.
                let base = name.rsplit(|&b| b == b'/').next().unwrap_or(b"");
                let dir = name.len().saturating_sub(base.len());
                name = [&name[..dir], b"GNUSparseFile.0/", base].concat();
            }
            EntryKind::HardLink(target) => {
                raw.typeflag(b'1');
                raw.link(target, &mut pax);
            }
            EntryKind::Symlink(target) => {
                raw.typeflag(b'2');
                raw.link(target, &mut pax);
            }
            EntryKind::CharDevice(device) => {
                raw.typeflag(b'3');
                raw.device(device);
            }
            EntryKind::BlockDevice(device) => {
                raw.typeflag(b'4');
                raw.device(device);
            }
            EntryKind::Directory => raw.typeflag(b'5'),
            EntryKind::Fifo => raw.typeflag(b'6'),
        }
        raw.name(&name, &mut pax);
        raw.octal(100..107, u64::from(header.permissions & 0o7777));
        raw.id(108..115, header.uid, b"uid", &mut pax);
        raw.id(116..123, header.gid, b"gid", &mut pax);
        if size > MAX_OCTAL_11 {
            pax.add(b"size", size.to_string().as_bytes());
            raw.octal(124..135, 0);
        } else {
            raw.octal(124..135, size);
        }
        raw.mtime(header.mtime, &mut pax);
        for xattr in header.xattrs {
            let key = [b"SCHILY.xattr.", &*escape_key(&xattr.name)].concat();
            pax.add(&key, &xattr.value);
        }
        if !pax.0.is_empty() {
            self.pax_header(header.path, pax)?;
        }
        self.put(&raw.finish())?;
        self.missing = size;
        let tail = size.checked_rem(len64(BLOCK)).unwrap_or(0);
        self.padding = padding(usize::try_from(tail).unwrap_or(0));
        self.data(&map)
    }

    /// Appends to the current entry's data.
    ///
    /// # Errors
    /// [`TarWriteError::WrongLength`] if that is more than its header said.
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), TarWriteError> {
        self.missing = self
            .missing
            .checked_sub(len64(bytes.len()))
            .ok_or(TarWriteError::WrongLength { long: true })?;
        self.put(bytes)
    }

    /// Ends the archive. Returns the output and its length in bytes.
    ///
    /// # Errors
    /// [`TarWriteError::WrongLength`] if data of the last entry is missing.
    pub fn finish(mut self) -> Result<(W, u64), TarWriteError> {
        self.end_entry()?;
        self.put(&ZEROS)?;
        self.put(&ZEROS)?;
        self.out.flush()?;
        Ok((self.out, self.written))
    }

    fn end_entry(&mut self) -> Result<(), TarWriteError> {
        if self.missing > 0 {
            return Err(TarWriteError::WrongLength { long: false });
        }
        let padding = std::mem::take(&mut self.padding);
        self.put(&ZEROS[..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), TarWriteError> {
        self.out.write_all(bytes)?;
        self.written = self.written.saturating_add(len64(bytes.len()));
        Ok(())
    }

    fn pax_header(&mut self, path: &[u8], pax: Pax) -> Result<(), TarWriteError> {
        let body = pax.finish();
        if body.len() > MAX_PAX {
            return Err(TarWriteError::HeaderTooLarge { len: body.len() });
        }
        let base = path.rsplit(|&b| b == b'/').next().unwrap_or(b"");
        let mut name = b"PaxHeaders.0/".to_vec();
        name.extend(base);
        name.truncate(100);
        let mut raw = Raw::new();
        raw.typeflag(b'x');
        raw.bytes(0, &name);
        raw.octal(100..107, 0o644);
        raw.octal(108..115, 0);
        raw.octal(116..123, 0);
        raw.octal(124..135, len64(body.len()));
        raw.octal(136..147, 0);
        self.put(&raw.finish())?;
        self.put(&body)?;
        self.put(&ZEROS[..padding(body.len())])
    }
}

/// How many bytes bring a length to a whole block.
fn padding(len: usize) -> usize {
    len.next_multiple_of(BLOCK).saturating_sub(len)
}

fn len64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// The map of a sparse file of PAX format 1.0, padded to a block: how many pieces, then offset and length of each, a number a
/// line. A hole at the end is told by an empty last piece there, as GNU tar writes it.
fn sparse_map(size: u64, data: &[Range<u64>]) -> Vec<u8> {
    let end = data.last().map_or(0, |range| range.end);
    let closing = (end < size).then_some(size..size);
    let pieces = data.iter().cloned().chain(closing);
    let mut map = format!("{}\n", pieces.clone().count()).into_bytes();
    for piece in pieces {
        let len = piece.end.saturating_sub(piece.start);
        map.extend(format!("{}\n{len}\n", piece.start).into_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// An attribute's name as part of a record's key. `%` is escaped only where it would be read as an escape.
fn escape_key(name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len());
    for (i, &byte) in name.iter().enumerate() {
        let rest = name.get(i..).unwrap_or_default();
        match byte {
            b'=' => key.extend(b"%3D"),
            b'%' if rest.starts_with(b"%3D") || rest.starts_with(b"%25") => key.extend(b"%25"),
            _ => key.push(byte),
        }
    }
    key
}

/// Seconds and, if there are any, the fraction's digits without trailing zeros; negative times count down from zero.
fn decimal(time: Timestamp) -> String {
    let nanos = time.nanos.min(999_999_999);
    let (sign, whole, fraction) = if time.secs < 0 && nanos > 0 {
        let whole = time.secs.saturating_add(1).unsigned_abs();
        ("-", whole, 1_000_000_000_u32.saturating_sub(nanos))
    } else {
        let sign = if time.secs < 0 { "-" } else { "" };
        (sign, time.secs.unsigned_abs(), nanos)
    };
    if fraction == 0 {
        format!("{sign}{whole}")
    } else {
        let fraction = format!("{fraction:09}");
        format!("{sign}{whole}.{}", fraction.trim_end_matches('0'))
    }
}

/// The records of a PAX header.
#[derive(Debug, Default)]
struct Pax(Vec<(Vec<u8>, Vec<u8>)>);

impl Pax {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0.push((key.to_vec(), value.to_vec()));
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.sort_unstable();
        let mut body = Vec::new();
        for (key, value) in &self.0 {
            // "LEN KEY=VALUE\n", where LEN counts its own digits too.
            let rest = key.len().saturating_add(value.len()).saturating_add(3);
            let mut len = rest.saturating_add(1);
            while len.to_string().len().saturating_add(rest) != len {
                len = len.to_string().len().saturating_add(rest);
            }
            body.extend(len.to_string().into_bytes());
            body.extend([b" ", &**key, b"=", value, b"\n"].concat());
        }
        body
    }
}

/// A header block.
struct Raw([u8; BLOCK]);

impl Raw {
    fn new() -> Self {
        let mut raw = Self([0; BLOCK]);
        raw.bytes(257, b"ustar\x0000");
        raw.octal(329..336, 0);
        raw.octal(337..344, 0);
        raw
    }

    fn bytes(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    /// Fills the field with digits; the byte behind it stays NUL.
    fn octal(&mut self, field: Range<usize>, value: u64) {
        let digits = format!("{value:0width$o}", width = field.len());
        self.bytes(field.start, digits.as_bytes());
    }

    fn typeflag(&mut self, flag: u8) {
        self.0[156] = flag;
    }

    fn device(&mut self, device: Device) {
        self.octal(329..336, u64::from(device.major));
        self.octal(337..344, u64::from(device.minor));
    }

    fn id(&mut self, field: Range<usize>, id: u32, key: &[u8], pax: &mut Pax) {
        let id = u64::from(id);
        if id > MAX_OCTAL_7 {
            pax.add(key, id.to_string().as_bytes());
            self.octal(field, 0);
        } else {
            self.octal(field, id);
        }
    }

    fn mtime(&mut self, time: Timestamp, pax: &mut Pax) {
        let whole = u64::try_from(time.secs).ok();
        let whole = whole.filter(|secs| *secs <= MAX_OCTAL_11);
        if whole.is_none() || time.nanos > 0 {
            pax.add(b"mtime", decimal(time).as_bytes());
        }
        self.octal(136..147, whole.unwrap_or(0));
    }

    fn link(&mut self, target: &[u8], pax: &mut Pax) {
        if target.len() > 100 {
            pax.add(b"linkpath", target);
        }
        self.bytes(157, target.get(..100).unwrap_or(target));
    }

    /// The name, in two fields at a slash if it does not fit one.
    fn name(&mut self, name: &[u8], pax: &mut Pax) {
        if name.len() <= 100 {
            self.bytes(0, name);
            return;
        }
        // The last slash that leaves a prefix of at most 155 bytes, and something behind it.
        let searched = name.get(..156).unwrap_or(name);
        let searched = searched
            .get(..name.len().saturating_sub(1))
            .unwrap_or(searched);
        let slash = searched.iter().rposition(|&b| b == b'/');
        if let Some(slash) = slash
            && let (prefix, [_, rest @ ..]) = name.split_at(slash)
            && !prefix.is_empty()
            && rest.len() <= 100
        {
            self.bytes(0, rest);
            self.bytes(345, prefix);
            return;
        }
        pax.add(b"path", name);
        self.bytes(0, name.get(..100).unwrap_or(name));
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.bytes(148, b"        ");
        let sum = self
            .0
            .iter()
            .map(|&b| u64::from(b))
            .fold(0, u64::saturating_add);
        self.bytes(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_decimal() {
        for (secs, nanos, expected) in [
            (0, 0, "0"),
            (5, 500_000_000, "5.5"),
            (5, 1, "5.000000001"),
            (-1, 0, "-1"),
            (-1, 500_000_000, "-0.5"),
            (-2, 750_000_000, "-1.25"),
        ] {
            assert_eq!(decimal(Timestamp { secs, nanos }), expected);
        }
    }

    #[test]
    fn record_lengths_count_themselves() {
        for len in [0, 1, 88, 89, 90, 986, 987, 988, 989, 9_978, 9_979, 9_980] {
            let mut pax = Pax::default();
            pax.add(b"k", &vec![b'v'; len]);
            let body = pax.finish();
            let digits: usize = body.iter().take_while(|b| b.is_ascii_digit()).count();
            let said: usize = std::str::from_utf8(&body[..digits])
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(said, body.len(), "{len}");
        }
    }

    #[test]
    fn names_are_split_only_where_they_fit() {
        // (directory's length, base's length, whether PAX is needed)
        for (dir, base, needs_pax) in [
            (0, 100, false),
            (0, 101, true),
            (155, 100, false),
            (156, 100, true),
            (155, 101, true),
            (1, 99, false),
        ] {
            let name = if dir == 0 {
                vec![b'b'; base]
            } else {
                [vec![b'd'; dir], vec![b'/'], vec![b'b'; base]].concat()
            };
            let mut pax = Pax::default();
            let mut raw = Raw::new();
            raw.name(&name, &mut pax);
            assert_eq!(!pax.0.is_empty(), needs_pax, "{dir}/{base}");
            if !needs_pax {
                let field = |at: usize, len: usize| -> Vec<u8> {
                    raw.0[at..at + len]
                        .iter()
                        .copied()
                        .take_while(|&b| b != 0)
                        .collect()
                };
                let joined = match field(345, 155) {
                    prefix if prefix.is_empty() => field(0, 100),
                    prefix => [prefix, b"/".to_vec(), field(0, 100)].concat(),
                };
                assert_eq!(joined, name);
            }
        }
    }

    #[test]
    fn attribute_names_survive_the_key() {
        assert_eq!(escape_key(b"user.a=b"), b"user.a%3Db");
        assert_eq!(escape_key(b"user.100%"), b"user.100%");
        assert_eq!(escape_key(b"user.%3D"), b"user.%253D");
        assert_eq!(escape_key(b"user.%25="), b"user.%2525%3D");
    }

    #[test]
    fn data_must_be_as_long_as_said() {
        let header = EntryHeader {
            path: b"f",
            kind: EntryKind::File { size: 3 },
            permissions: 0,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: &[],
        };
        let mut tar = TarWriter::new(Vec::new());
        tar.entry(&header).unwrap();
        assert!(matches!(
            tar.data(b"four"),
            Err(TarWriteError::WrongLength { long: true })
        ));
        let mut tar = TarWriter::new(Vec::new());
        tar.entry(&header).unwrap();
        tar.data(b"12").unwrap();
        assert!(matches!(
            tar.finish(),
            Err(TarWriteError::WrongLength { long: false })
        ));
    }
}
