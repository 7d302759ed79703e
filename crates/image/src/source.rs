//! The forms that an image comes in, and finding a blob in each of them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lcow_layer::digest::Digest;

use crate::archive::{Entry, EntryKind, Stream, Walker};
use crate::compress::{Compression, describe};
use crate::documents::MAX_DOCUMENT;
use crate::{ImageError, Input};

/// How much of a stream is looked at to tell what it is, in bytes: names come first in a tar.
const PEEK: usize = 128 << 10;
/// How many links may lead from one name to another.
const MAX_LINKS: usize = 8;

/// An input, and what it turned out to be.
pub(crate) enum Source<'a> {
    /// Blobs that can be read in any order.
    Blobs(Blobs),
    /// An archive that can only be read once, from start to end.
    Stream(Walker<Stream<Box<dyn Read + Send + 'a>>>),
    /// A root file system's tar, as it came.
    RootFs(RootFs<'a>),
}

/// A root file system's tar.
pub(crate) enum RootFs<'a> {
    File(File),
    Stream(Box<dyn Read + Send + 'a>),
}

/// Tells what an input is. Only its start is read.
pub(crate) fn open<'a>(input: Input<'a>) -> Result<Source<'a>, ImageError> {
    match input {
        Input::Path(path) => open_path(&path),
        Input::Stream { name, reader } => open_stream(&name, reader),
    }
}

fn open_path(path: &Path) -> Result<Source<'static>, ImageError> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(ImageError::io("opening", path))?;
    let metadata = file.metadata().map_err(ImageError::io("reading", path))?;
    if metadata.is_dir() {
        let found = ["index.json", "manifest.json"]
            .iter()
            .any(|f| path.join(f).is_file());
        if !found {
            let why = if path.join("bin").exists() || path.join("etc").exists() {
                "it is a directory without index.json (a root file system? make a tar of it: tar -C DIR -c .)"
            } else {
                "it is a directory without index.json"
            };
            return Err(ImageError::NotAnImage {
                input: name,
                why: why.to_owned(),
            });
        }
        return Ok(Source::Blobs(Blobs {
            input: name,
            from: Kept::Directory(path.to_owned()),
        }));
    }
    if !metadata.is_file() {
        // A pipe or a device by name.
        return open_stream(&name, Box::new(file));
    }
    let mut start = vec![0; PEEK];
    let n = read_start(&mut |buf, at| file.read_at(buf, at), &mut start)
        .map_err(ImageError::io("reading", path))?;
    start.truncate(n);
    match sniff(&name, &start)? {
        (_, Sniffed::RootFs) => Ok(Source::RootFs(RootFs::File(file))),
        (Compression::None, Sniffed::Archive) => {
            let index = index(&name, &file)?;
            Ok(Source::Blobs(Blobs {
                input: name,
                from: Kept::Archive(Arc::new(file), index),
            }))
        }
        (compression, Sniffed::Archive) => walk(&name, compression, Box::new(file)),
    }
}

fn open_stream<'a>(
    name: &str,
    mut reader: Box<dyn Read + Send + 'a>,
) -> Result<Source<'a>, ImageError> {
    let mut start = vec![0; PEEK];
    let n = read_start(&mut |buf, _| reader.read(buf), &mut start).map_err(|source| {
        source
            .downcast::<ImageError>()
            .unwrap_or_else(|source| ImageError::Input {
                input: name.to_owned(),
                offset: 0,
                source,
            })
    })?;
    start.truncate(n);
    let (compression, sniffed) = sniff(name, &start)?;
    let whole = Box::new(Cursor::new(start).chain(reader));
    match sniffed {
        Sniffed::RootFs => Ok(Source::RootFs(RootFs::Stream(whole))),
        Sniffed::Archive => walk(name, compression, whole),
    }
}

fn walk<'a>(
    name: &str,
    compression: Compression,
    reader: Box<dyn Read + Send + 'a>,
) -> Result<Source<'a>, ImageError> {
    let failed = |source| ImageError::Input {
        input: name.to_owned(),
        offset: 0,
        source,
    };
    let buffered = io::BufReader::with_capacity(256 << 10, reader);
    let plain = compression.reader(buffered).map_err(failed)?;
    Ok(Source::Stream(Walker::new(name, Stream(plain))))
}

fn read_start(
    read: &mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>,
    buf: &mut [u8],
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match read(&mut buf[filled..], filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sniffed {
    /// An OCI archive or a `docker save` archive.
    Archive,
    RootFs,
}

/// Tells by the first name in the tar whether it is an archive of blobs or a file system.
fn sniff(input: &str, start: &[u8]) -> Result<(Compression, Sniffed), ImageError> {
    let not = |why: String| ImageError::NotAnImage {
        input: input.to_owned(),
        why,
    };
    let compression = Compression::of(start);
    let mut plain = Vec::new();
    if compression == Compression::None {
        plain.extend_from_slice(start);
    } else if let Ok(reader) = compression.reader(start) {
        // It ends in an error where the peek does; what came before is what counts.
        let _ = reader.take(PEEK as u64).read_to_end(&mut plain);
        if plain.is_empty() {
            return Err(not(format!(
                "its {} data is damaged from the start",
                compression.name()
            )));
        }
    }
    let what = || match compression {
        Compression::None => describe(&plain).to_owned(),
        c => format!("inside its {} compression, {}", c.name(), describe(&plain)),
    };
    if plain.len() < tar_core::HEADER_SIZE {
        return Err(not(what()));
    }
    let cut = start.len() == PEEK || plain.len() == PEEK;
    let mut walker = Walker::new(input, Stream(plain.as_slice()));
    loop {
        match walker.next() {
            Ok(Some(entry)) => match classify(&entry.path) {
                Some(sniffed) => return Ok((compression, sniffed)),
                None => continue,
            },
            Ok(None) if describe(&plain).contains("zeros") => return Err(not(what())),
            Ok(None) => return Err(not("it is a tar archive with nothing in it".to_owned())),
            Err(ImageError::Truncated { .. }) if cut => return Ok((compression, Sniffed::RootFs)),
            Err(ImageError::Corrupt { .. }) if walker.offset() == 0 => return Err(not(what())),
            Err(error) => return Err(error),
        }
    }
}

fn classify(path: &str) -> Option<Sniffed> {
    let first = path.split('/').next().unwrap_or_default();
    let hex = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
    let stem = first
        .strip_suffix(".json")
        .or_else(|| first.strip_suffix(".tar"))
        .unwrap_or(first);
    match first {
        "" => None,
        "oci-layout" | "index.json" | "manifest.json" | "repositories" | "blobs" => {
            Some(Sniffed::Archive)
        }
        _ if hex(stem) => Some(Sniffed::Archive),
        _ => Some(Sniffed::RootFs),
    }
}

/// Lists an archive in a file; the data itself is not read.
fn index(input: &str, file: &File) -> Result<HashMap<String, Entry>, ImageError> {
    let failed = |source| ImageError::Input {
        input: input.to_owned(),
        offset: 0,
        source,
    };
    // A cursor of its own: the walk seeks.
    let cursor = file.try_clone().map_err(failed)?;
    io::Seek::rewind(&mut &cursor).map_err(failed)?;
    let mut walker = Walker::new(input, cursor);
    let mut index = HashMap::new();
    while let Some(entry) = walker.next()? {
        if entry.kind != EntryKind::Other {
            index.insert(entry.path.clone(), entry);
        }
    }
    Ok(index)
}

/// Blobs by their path in the layout or the archive.
pub(crate) struct Blobs {
    input: String,
    from: Kept,
}

enum Kept {
    Directory(PathBuf),
    Archive(Arc<File>, HashMap<String, Entry>),
    Held(HashMap<String, Held>),
}

/// What was kept of a stream.
pub(crate) enum Held {
    Memory(Vec<u8>),
    File(PathBuf, u64),
    Link(String),
}

impl Blobs {
    /// Nothing yet, of a stream.
    pub(crate) fn held(input: &str) -> Self {
        Self {
            input: input.to_owned(),
            from: Kept::Held(HashMap::new()),
        }
    }

    pub(crate) fn hold(&mut self, path: String, what: Held) {
        if let Kept::Held(map) = &mut self.from {
            map.insert(path, what);
        }
    }

    pub(crate) fn input(&self) -> &str {
        &self.input
    }

    /// The path of a blob in an OCI layout.
    pub(crate) fn path_of(digest: &Digest) -> String {
        format!("blobs/sha256/{}", digest.hex())
    }

    /// The length of a blob, in bytes; `None` if it is not there.
    pub(crate) fn size(&self, path: &str) -> Result<Option<u64>, ImageError> {
        Ok(match self.find(path)? {
            Some(Found::File(_, size) | Found::Range(_, _, size)) => Some(size),
            Some(Found::Memory(bytes)) => Some(bytes.len() as u64),
            None => None,
        })
    }

    /// Opens a blob; `None` if it is not there.
    pub(crate) fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send + '_>>, ImageError> {
        Ok(Some(match self.find(path)? {
            None => return Ok(None),
            Some(Found::File(file, _)) => {
                Box::new(File::open(&file).map_err(ImageError::io("opening", &file))?)
            }
            Some(Found::Range(file, offset, size)) => {
                let input = self.input.clone();
                Box::new(Range {
                    input,
                    path: path.to_owned(),
                    file: file.clone(),
                    offset,
                    left: size,
                })
            }
            Some(Found::Memory(bytes)) => Box::new(bytes),
        }))
    }

    /// The bytes of a short document; `None` if it is not there.
    pub(crate) fn document(&self, path: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(reader) = self.open(path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        reader
            .take(MAX_DOCUMENT + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| {
                source
                    .downcast::<ImageError>()
                    .unwrap_or_else(|source| ImageError::Input {
                        input: format!("{}: {path}", self.input),
                        offset: 0,
                        source,
                    })
            })?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(ImageError::Refused {
                input: self.input.clone(),
                what: format!("{path} has over {MAX_DOCUMENT} bytes"),
            });
        }
        Ok(Some(bytes))
    }

    fn find(&self, path: &str) -> Result<Option<Found<'_>>, ImageError> {
        let mut path = crate::archive::normalise(path);
        for _ in 0..MAX_LINKS {
            let target = match &self.from {
                Kept::Directory(directory) => {
                    let file = directory.join(&path);
                    return match std::fs::metadata(&file) {
                        Ok(m) if m.is_file() => Ok(Some(Found::File(file, m.len()))),
                        Ok(_) => Ok(None),
                        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                        Err(e) => Err(ImageError::io("reading", file)(e)),
                    };
                }
                Kept::Archive(file, index) => match index.get(&path) {
                    None => return Ok(None),
                    Some(Entry {
                        kind: EntryKind::Link(target),
                        ..
                    }) => target,
                    Some(entry) => return Ok(Some(Found::Range(file, entry.offset, entry.size))),
                },
                Kept::Held(map) => match map.get(&path) {
                    None => return Ok(None),
                    Some(Held::Link(target)) => target,
                    Some(Held::Memory(bytes)) => return Ok(Some(Found::Memory(bytes))),
                    Some(Held::File(file, size)) => {
                        return Ok(Some(Found::File(file.clone(), *size)));
                    }
                },
            };
            path.clone_from(target);
        }
        Err(ImageError::Corrupt {
            input: self.input.clone(),
            what: path,
            detail: format!("more than {MAX_LINKS} links lead to it"),
        })
    }
}

enum Found<'a> {
    File(PathBuf, u64),
    Range(&'a Arc<File>, u64, u64),
    Memory(&'a [u8]),
}

/// A part of an archive in a file.
struct Range {
    input: String,
    path: String,
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Range {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if limit == 0 {
            return Ok(0);
        }
        let n = self.file.read_at(&mut buf[..limit], self.offset)?;
        if n == 0 {
            return Err(io::Error::other(ImageError::Truncated {
                input: self.input.clone(),
                offset: self.offset,
                inside: self.path.clone(),
            }));
        }
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_told_from_file_systems() {
        let hex = "0".repeat(64);
        for path in [
            "oci-layout",
            "blobs/sha256/x",
            "index.json",
            &format!("{hex}.json"),
            &format!("{hex}/layer.tar"),
        ] {
            assert_eq!(classify(path), Some(Sniffed::Archive), "{path}");
        }
        for path in ["bin", "etc/passwd", "blob", "a.json"] {
            assert_eq!(classify(path), Some(Sniffed::RootFs), "{path}");
        }
        assert_eq!(classify(""), None);
    }

    #[test]
    fn what_is_no_image_is_named() {
        for (bytes, expected) in [
            (&b""[..], "empty"),
            (&[0; 4096][..], "zeros"),
            (&[b'x'; 4096][..], "not a tar"),
            (b"PK\x03\x04aaaa", "zip"),
            (b"\x7fELFxxxx", "ELF"),
            (b"{\"a\": 1}", "JSON"),
        ] {
            let error = sniff("in", bytes).unwrap_err();
            assert!(matches!(error, ImageError::NotAnImage { .. }));
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
