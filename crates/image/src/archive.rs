//! Walking through the tar archive around an image's blobs.
//!
//! This is the outer archive only: a handful of plain files, found by name. A layer's tar is the `layer` crate's business.
//! Nothing is ever extracted under a name from the archive; names are keys to look things up by.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use tar_core::parse::{Limits, ParseEvent, Parser};
use tar_core::{EntryType, HEADER_SIZE};

use crate::ImageError;

/// The longest name in an archive of an image, in bytes. Real ones have under a hundred.
const MAX_PATH: u32 = 4096;
/// The longest extension headers, in bytes.
const MAX_METADATA: u32 = 64 << 10;
/// The most entries, so that the list of them stays small.
const MAX_ENTRIES: u64 = 200_000;
/// How much is read at once, in bytes.
const CHUNK: usize = 256 << 10;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    /// A hard or symbolic link, with the normalised path of what it names.
    Link(String),
    Other,
}

/// An entry of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Without `./` or `/` before it, or `/` after.
    pub path: String,
    pub kind: EntryKind,
    /// Length of its data in bytes; 0 for all but files.
    pub size: u64,
    /// Where its data begins, in bytes from the archive's start.
    pub offset: u64,
}

/// Going forward without looking.
pub(crate) trait Skip: Read {
    fn skip(&mut self, bytes: u64) -> io::Result<u64>;
}

impl Skip for File {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let at = self.stream_position()?;
        let end = self.metadata()?.len();
        let to = at.saturating_add(bytes).min(end.max(at));
        self.seek(SeekFrom::Start(to))?;
        Ok(to - at)
    }
}

/// A stream is skipped by reading it.
pub(crate) struct Stream<R>(pub R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read> Skip for Stream<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut self.0.by_ref().take(bytes), &mut io::sink())
    }
}

/// Reads an archive from start to end, entry by entry.
pub(crate) struct Walker<R> {
    input: String,
    reader: R,
    parser: Parser,
    /// Bytes read ahead: `buffer[start..]`.
    buffer: Vec<u8>,
    start: usize,
    eof: bool,
    /// Of the next byte of `buffer[start..]`, from the archive's start.
    offset: u64,
    /// Data of the current entry not yet read, and the padding behind it.
    data: u64,
    padding: u64,
    current: String,
    entries: u64,
}

impl<R: Skip> Walker<R> {
    /// `input` is what people know the archive as.
    pub(crate) fn new(input: &str, reader: R) -> Self {
        let limits = Limits {
            max_metadata_size: MAX_METADATA,
            max_path_len: Some(MAX_PATH),
            ..Limits::default()
        };
        Self {
            input: input.to_owned(),
            reader,
            parser: Parser::new(limits),
            buffer: Vec::new(),
            start: 0,
            eof: false,
            offset: 0,
            data: 0,
            padding: 0,
            current: String::new(),
            entries: 0,
        }
    }

    /// How far the walk came, in bytes of the archive.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry; what is left of the current one is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ImageError> {
        self.skip_rest()?;
        loop {
            let mut want = HEADER_SIZE;
            let (consumed, entry) = match self.parser.parse(&self.buffer[self.start..]) {
                Ok(ParseEvent::NeedData { min_bytes }) => {
                    want = min_bytes;
                    (0, None)
                }
                Ok(ParseEvent::GlobalExtensions { consumed, .. }) => {
                    self.advance(consumed);
                    continue;
                }
                Ok(ParseEvent::End { .. }) => return Ok(None),
                Ok(ParseEvent::Entry { consumed, entry }) => {
                    let kind = match entry.entry_type {
                        EntryType::Regular | EntryType::Continuous => EntryKind::File,
                        EntryType::Link => EntryKind::Link(normalise(
                            &entry.link_target.as_deref().map(lossy).unwrap_or_default(),
                        )),
                        EntryType::Symlink => {
                            let target =
                                entry.link_target.as_deref().map(lossy).unwrap_or_default();
                            EntryKind::Link(relative_to(&lossy(&entry.path), &target))
                        }
                        _ => EntryKind::Other,
                    };
                    let size = if kind == EntryKind::File {
                        entry.size
                    } else {
                        0
                    };
                    let path = normalise(&lossy(&entry.path));
                    (
                        consumed,
                        Some(Entry {
                            path,
                            kind,
                            size,
                            offset: 0,
                        }),
                    )
                }
                Ok(ParseEvent::SparseEntry { .. }) => {
                    return Err(self.corrupt("it holds a sparse file, and blobs are never sparse"));
                }
                Err(error) => return Err(self.corrupt(error)),
            };
            if let Some(mut entry) = entry {
                self.advance(consumed);
                entry.offset = self.offset;
                self.entries += 1;
                if self.entries > MAX_ENTRIES {
                    return Err(ImageError::Refused {
                        input: self.input.clone(),
                        what: format!("the archive has more than {MAX_ENTRIES} entries"),
                    });
                }
                self.data = entry.size;
                self.padding = entry.size.wrapping_neg() % HEADER_SIZE as u64;
                self.current.clone_from(&entry.path);
                return Ok(Some(entry));
            }
            if self.eof {
                if self.buffer.len() == self.start {
                    // Without the zero blocks at the end, but at the end of an entry: what is missing shows in what
                    // the image refers to.
                    return Ok(None);
                }
                return Err(self.truncated("a header"));
            }
            self.fill(want)?;
        }
    }

    /// The current entry's data.
    pub(crate) fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// Reads all of the current entry's data, which the caller knows to be short.
    pub(crate) fn read_all(&mut self) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.data).unwrap_or(0).min(CHUNK));
        let mut piece = vec![
            0;
            CHUNK
                .min(usize::try_from(self.data).unwrap_or(CHUNK))
                .max(1)
        ];
        loop {
            match self.read_data(&mut piece)? {
                0 => return Ok(bytes),
                n => bytes.extend_from_slice(&piece[..n]),
            }
        }
    }

    /// Reads from the current entry; 0 at its end.
    fn read_data(&mut self, buf: &mut [u8]) -> Result<usize, ImageError> {
        let limit = usize::try_from(self.data)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if limit == 0 {
            return Ok(0);
        }
        let ahead = self.buffer.len() - self.start;
        let n = if ahead > 0 {
            let n = ahead.min(limit);
            buf[..n].copy_from_slice(&self.buffer[self.start..self.start + n]);
            self.advance(n);
            n
        } else {
            let n = self.read_some(&mut buf[..limit])?;
            if n == 0 {
                let inside = self.current.clone();
                return Err(self.truncated(&inside));
            }
            self.offset += n as u64;
            n
        };
        self.data -= n as u64;
        Ok(n)
    }

    fn skip_rest(&mut self) -> Result<(), ImageError> {
        let mut left = self.data.saturating_add(self.padding);
        let ahead = self.buffer.len() - self.start;
        let from_buffer = usize::try_from(left).unwrap_or(usize::MAX).min(ahead);
        self.advance(from_buffer);
        left -= from_buffer as u64;
        if left > 0 {
            let skipped = self.reader.skip(left).map_err(|e| self.input_error(e))?;
            self.offset += skipped;
            if skipped < left {
                let inside = self.current.clone();
                return Err(self.truncated(&inside));
            }
        }
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    fn fill(&mut self, want: usize) -> Result<(), ImageError> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let mut filled = self.buffer.len();
        // Headers are bounded by the parser's limits, so this is too.
        self.buffer.resize(want.max(filled + HEADER_SIZE), 0);
        while filled < want {
            let mut piece = std::mem::take(&mut self.buffer);
            let result = self.read_some(&mut piece[filled..]);
            self.buffer = piece;
            match result {
                Ok(0) => {
                    self.eof = true;
                    break;
                }
                Ok(n) => filled += n,
                Err(e) => {
                    self.buffer.truncate(filled);
                    return Err(e);
                }
            }
        }
        self.buffer.truncate(filled);
        Ok(())
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize, ImageError> {
        loop {
            match self.reader.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.input_error(e)),
                Ok(n) => return Ok(n),
            }
        }
    }

    fn advance(&mut self, n: usize) {
        self.start += n;
        self.offset += n as u64;
    }

    fn input_error(&self, source: io::Error) -> ImageError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            // A compressed archive that stops short.
            let inside = if self.current.is_empty() {
                "its start"
            } else {
                &self.current
            };
            return self.truncated(inside);
        }
        match source.downcast::<ImageError>() {
            Ok(error) => error,
            Err(source) => ImageError::Input {
                input: self.input.clone(),
                offset: self.offset,
                source,
            },
        }
    }

    fn truncated(&self, inside: &str) -> ImageError {
        ImageError::Truncated {
            input: self.input.clone(),
            offset: self.offset + (self.buffer.len() - self.start) as u64,
            inside: inside.to_owned(),
        }
    }

    fn corrupt(&self, detail: impl ToString) -> ImageError {
        ImageError::Corrupt {
            input: self.input.clone(),
            what: format!("the tar header at offset {}", self.offset),
            detail: detail.to_string(),
        }
    }
}

/// The data of the current entry. An error carries an [`ImageError`].
pub(crate) struct Data<'a, R>(&'a mut Walker<R>);

impl<R: Skip> Read for Data<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_data(buf).map_err(io::Error::other)
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A path as a key: components only, `.` and empty ones dropped, `..` taken as far as it goes.
pub(crate) fn normalise(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What a symbolic link at `path` names.
fn relative_to(path: &str, target: &str) -> String {
    if target.starts_with('/') {
        return normalise(target);
    }
    let directory = path
        .trim_end_matches('/')
        .rsplit_once('/')
        .map_or("", |(directory, _)| directory);
    normalise(&format!("{directory}/{target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn names(bytes: &[u8]) -> Result<Vec<(String, u64, u64)>, ImageError> {
        let mut walker = Walker::new("t", Stream(bytes));
        let mut all = Vec::new();
        while let Some(entry) = walker.next()? {
            all.push((entry.path, entry.size, entry.offset));
        }
        Ok(all)
    }

    #[test]
    fn walks_and_reads() {
        let long = "d/".repeat(80) + "end";
        let bytes = archive(&[("./a", b"12345"), (&long, &[7; 1000]), ("c", b"")]);
        let all = names(&bytes).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all[0], ("a".to_owned(), 5, 512));
        assert_eq!((all[1].0.as_str(), all[1].1), (long.as_str(), 1000));
        assert_eq!(&bytes[usize::try_from(all[1].2).unwrap()..][..3], [7, 7, 7]);

        let mut walker = Walker::new("t", Stream(&bytes[..]));
        walker.next().unwrap();
        assert_eq!(walker.read_all().unwrap(), b"12345");
        walker.next().unwrap();
        let mut some = [0; 10];
        walker.data().read_exact(&mut some).unwrap();
        assert_eq!(
            walker.next().unwrap().unwrap().path,
            "c",
            "the rest of an entry is skipped"
        );
    }

    #[test]
    fn truncation_names_the_offset() {
        let bytes = archive(&[("a", &[1; 5000])]);
        match names(&bytes[..3000]).unwrap_err() {
            ImageError::Truncated {
                offset: 3000,
                inside,
                ..
            } => assert_eq!(inside, "a"),
            other => panic!("{other}"),
        }
        match names(&bytes[..300]).unwrap_err() {
            ImageError::Truncated { offset: 300, .. } => {}
            other => panic!("{other}"),
        }
    }

    #[test]
    fn paths_are_keys() {
        for (path, key) in [
            ("./a/b", "a/b"),
            ("/a//b/", "a/b"),
            ("../../a", "a"),
            ("a/../b", "b"),
            ("./", ""),
        ] {
            assert_eq!(normalise(path), key);
        }
        assert_eq!(relative_to("x/layer.tar", "../y/layer.tar"), "y/layer.tar");
        assert_eq!(relative_to("layer.tar", "/y.tar"), "y.tar");
    }
}
