//! Any tree as a tar in one fixed form.
//!
//! # The form
//! The root comes first, as `./`; all else is sorted by the bytes of the names in the tar, directories with a slash at the end; each is written as [`crate::tar`]'s writer says. Further:
//!
//! * Of a file's names the first is the file, the others are hard links to it.
//! * A file is sparse if it has a run of at least 64 KiB of zeros, in whole 4 KiB blocks of the file, whether the disk has a hole there or
//!   zeros were written: the same content gives the same bytes. Shorter runs save less than a sparse entry costs in being understood.
//! * Of the times only the modification time is kept. Given a `SOURCE_DATE_EPOCH`, later times become that time.
//! * An empty `lost+found` directory at the root, owned by root with mode 0700, is `mke2fs`'s and is left out. One that holds something is
//!   somebody's data.
//! * Sockets are left out: no tar can hold them. Symbolic links are 0777, as Linux makes them, whatever a disk says.
//!
//! # Overlay layers
//! With [`ExportOptions::overlay_whiteouts`] a raw layer is written as an image layer's tar: deleted names as `.wh.NAME`, opaque directories with a
//! `.wh..wh..opq` behind them, and no attribute of overlayfs's own (a nested overlay's, which a
//! union shows as `trusted.overlay.*`, stay as `trusted.overlay.overlay.*`). A union has no whiteouts to turn; of it the option makes a layer's tar that
//! holds all of it. A file that is itself called `.wh.…` is refused, since its name would mean
//! something else there.
//!
//! # Cost
//! Memory is a listing for each directory on the way down, a path for each file that has several names, and a megabyte. Files over that
//! megabyte are read twice: where a file's zeros are must be known before its header is written.

use std::collections::{HashMap, hash_map};
use std::io::{self, Write};
use std::ops::Range;

use lcow_ext4::reader::FileData;
use lcow_ext4::{FileType, Timestamp, Xattr};

use crate::tar::{EntryHeader, EntryKind, TarWriteError, TarWriter};
use crate::tree::{FileIdentity, Node, Tree, TreeError, join, walk};
use crate::union::overlay::{Marks, for_layer, is_whiteout_device, may_be_xwhiteout};
use crate::whiteout::{OPAQUE, PREFIX};
use crate::{EntryName, ErrorKind};

/// How a tree becomes a tar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// Turn overlayfs's whiteouts and opaque directories into those of image layers, and drop overlayfs's attributes. For layers' disks.
    pub overlay_whiteouts: bool,
    /// The latest time to write, in seconds since 1970 (<https://reproducible-builds.org/specs/source-date-epoch/>).
    pub source_date_epoch: Option<i64>,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExportSummary {
    /// Entries, the root's included.
    pub entries: u64,
    /// The tar's length, in bytes.
    pub tar_size: u64,
    /// Sockets that were left out.
    pub sockets: u64,
}

/// Why a tree could not be exported. The tar is then cut short, without the blocks that end one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The tree could not be read.
    #[error("reading {path}: {source}")]
    Tree {
        /// What was being read.
        path: EntryName,
        /// Why it failed.
        #[source]
        source: TreeError,
    },
    /// An entry could not be written.
    #[error("{path}: {source}")]
    Tar {
        /// The entry.
        path: EntryName,
        /// Why it failed.
        #[source]
        source: TarWriteError,
    },
    /// The path means something else in an image layer.
    #[error("{path}: image layers can't hold a file of this name, it would delete another")]
    ReservedName {
        /// The path.
        path: EntryName,
    },
    /// The tree could not be walked.
    #[error(transparent)]
    Walk(#[from] TreeError),
}

impl ExportError {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Tree { source, .. } | Self::Walk(source) => source.kind(),
            Self::Tar { source, .. } => match source {
                TarWriteError::Io(_) => ErrorKind::Io,
                TarWriteError::HeaderTooLarge { .. } => ErrorKind::Refused,
                // The file is shorter or longer than its inode says.
                TarWriteError::WrongLength { .. } => ErrorKind::Corrupt,
            },
            Self::ReservedName { .. } => ErrorKind::Refused,
        }
    }

    /// The output's own error, if that is what failed.
    #[must_use]
    pub fn output_error(&self) -> Option<&io::Error> {
        match self {
            Self::Tar {
                source: TarWriteError::Io(e),
                ..
            } => Some(e),
            _ => None,
        }
    }
}

/// Writes a whole tree as a tar.
///
/// # Errors
/// See [`ExportError`]; `out` then holds a part of the tar.
pub fn canonical<T: Tree + ?Sized>(
    tree: &T,
    options: &ExportOptions,
    out: impl Write,
) -> Result<ExportSummary, ExportError> {
    let mut emitter = Emitter::new(tree, options, out);
    walk::walk(tree, |path, node| {
        if is_lost_and_found(tree, path, node)? {
            return Ok(());
        }
        emitter.file(path, node)
    })?;
    emitter.finish()
}

/// Whether this is the directory that `mke2fs` makes for `e2fsck`, with nothing in it.
pub(crate) fn is_lost_and_found<T: Tree + ?Sized>(
    tree: &T,
    path: &[u8],
    node: &Node,
) -> Result<bool, TreeError> {
    let inode = node.inode();
    Ok(path == b"lost+found"
        && inode.is_dir()
        && (inode.permissions, inode.uid, inode.gid) == (0o700, 0, 0)
        && tree.read_dir(node)?.is_empty())
}

/// A run of zeros of at least this many bytes is a hole.
const MIN_HOLE: u64 = 64 << 10;
/// What zeros are looked for in, in bytes.
const GRAIN: usize = 4 << 10;
/// Most pieces of data in a sparse entry. In a file with more, shorter holes are filled up.
const MAX_PIECES: usize = 1 << 20;
/// How much is read at once, in bytes.
const BUFFER: usize = 1 << 20;

/// Writes the files of a tree into a tar, in the order that it is given them.
pub(crate) struct Emitter<'t, T: ?Sized, W> {
    tree: &'t T,
    options: ExportOptions,
    tar: TarWriter<W>,
    /// Where the first name of each file with several names went.
    first_names: HashMap<FileIdentity, Vec<u8>>,
    buffer: Vec<u8>,
    entries: u64,
    sockets: u64,
}

impl<'t, T: Tree + ?Sized, W: Write> Emitter<'t, T, W> {
    pub(crate) fn new(tree: &'t T, options: &ExportOptions, out: W) -> Self {
        Self {
            tree,
            options: *options,
            tar: TarWriter::new(out),
            first_names: HashMap::new(),
            buffer: vec![0; BUFFER],
            entries: 0,
            sockets: 0,
        }
    }

    pub(crate) fn finish(self) -> Result<ExportSummary, ExportError> {
        let finished = self.tar.finish();
        let (_, tar_size) = finished.map_err(|source| ExportError::Tar {
            path: EntryName::from(&b"the end of the archive"[..]),
            source,
        })?;
        Ok(ExportSummary {
            entries: self.entries,
            tar_size,
            sockets: self.sockets,
        })
    }

    /// Writes one file.
    pub(crate) fn file(&mut self, path: &[u8], node: &Node) -> Result<(), ExportError> {
        let reading = |source| reading(path, source);
        if node.file_type() == FileType::Socket {
            self.sockets = self.sockets.saturating_add(1);
            return Ok(());
        }
        let mut opaque = false;
        let mut xattrs = self.tree.xattrs(node).map_err(reading)?;
        if self.options.overlay_whiteouts {
            if self.tree.shows_marks() {
                let marks = Marks::of(&xattrs);
                let inode = node.inode();
                if is_whiteout_device(inode) || may_be_xwhiteout(inode) && marks.whiteout {
                    return self.whiteout(path);
                }
                if let Some(feature) = marks.unsupported(node.file_type()) {
                    let at = node.identity();
                    return Err(reading(TreeError::Overlay { at, feature }));
                }
                opaque = marks.opaque && node.file_type() == FileType::Directory;
            }
            reserved(path)?;
            xattrs = for_layer(xattrs, self.tree.shows_marks());
        }
        self.ordinary(path, node, &xattrs)?;
        if opaque {
            self.opaque(path)?;
        }
        Ok(())
    }

    fn ordinary(&mut self, path: &[u8], node: &Node, xattrs: &[Xattr]) -> Result<(), ExportError> {
        let inode = node.inode();
        let device = inode.device().unwrap_or_default();
        let target;
        let mtime = self.clamp(inode.mtime);
        let permissions = match node.file_type() {
            FileType::Symlink => 0o777,
            _ => inode.permissions,
        };
        let header = |kind| EntryHeader {
            path,
            kind,
            permissions,
            uid: inode.uid,
            gid: inode.gid,
            mtime,
            xattrs,
        };
        if node.file_type() != FileType::Directory && inode.links > 1 {
            let identity = node.identity();
            match self.first_names.entry(identity) {
                hash_map::Entry::Occupied(first) => {
                    let header = header(EntryKind::HardLink(first.get()));
                    self.entries = self.entries.saturating_add(1);
                    return self.tar.entry(&header).map_err(|e| writing(path, e));
                }
                hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(path.to_vec());
                }
            }
        }
        let kind = match node.file_type() {
            FileType::Regular => return self.content(path, node, xattrs),
            FileType::Symlink => {
                target = self.tree.read_link(node).map_err(|e| reading(path, e))?;
                EntryKind::Symlink(&target)
            }
            FileType::Directory => EntryKind::Directory,
            FileType::CharDevice => EntryKind::CharDevice(device),
            FileType::BlockDevice => EntryKind::BlockDevice(device),
            FileType::Fifo | FileType::Socket => EntryKind::Fifo,
        };
        self.entries = self.entries.saturating_add(1);
        let header = header(kind);
        self.tar.entry(&header).map_err(|e| writing(path, e))
    }

    fn clamp(&self, time: Timestamp) -> Timestamp {
        match self.options.source_date_epoch {
            Some(secs) => time.min(Timestamp::from_secs(secs)),
            None => time,
        }
    }

    /// Writes a regular file with its data.
    fn content(&mut self, path: &[u8], node: &Node, xattrs: &[Xattr]) -> Result<(), ExportError> {
        let inode = node.inode();
        let file = self.tree.open_file(node).map_err(|e| reading(path, e))?;
        let layer = node.identity().layer;
        let disk = |e| reading(path, TreeError::on(layer)(e));
        let size = inode.size;
        // What fits the buffer is read once; the rest is looked through first.
        let mut whole = None;
        let mut pieces = Pieces::new(size);
        if size <= len64(self.buffer.len()) {
            let len = file.read_at(0, &mut self.buffer).map_err(disk)?;
            pieces.scan(0, &self.buffer[..len]);
            whole = Some(len);
        } else {
            look_through(&file, &mut self.buffer, &mut pieces).map_err(disk)?;
        }
        let data = pieces.finish();
        let is_whole = data.first() == Some(&(0..size));
        let kind = if size == 0 || is_whole {
            EntryKind::File { size }
        } else {
            EntryKind::Sparse { size, data: &data }
        };
        let header = EntryHeader {
            path,
            kind,
            permissions: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            mtime: self.clamp(inode.mtime),
            xattrs,
        };
        self.entries = self.entries.saturating_add(1);
        let tar = |e| writing(path, e);
        self.tar.entry(&header).map_err(tar)?;
        for piece in &data {
            let mut at = piece.start;
            while at < piece.end {
                let want = index(piece.end.saturating_sub(at)).min(self.buffer.len());
                let bytes = if let Some(len) = whole {
                    let from = index(at).min(len);
                    &self.buffer[from..from.saturating_add(want).min(len)]
                } else {
                    let len = file.read_at(at, &mut self.buffer[..want]).map_err(disk)?;
                    &self.buffer[..len]
                };
                if bytes.is_empty() {
                    return Err(tar(TarWriteError::WrongLength { long: false }));
                }
                self.tar.data(bytes).map_err(tar)?;
                at = at.saturating_add(len64(bytes.len()));
            }
        }
        Ok(())
    }

    /// Writes the deletion of a path.
    pub(crate) fn whiteout(&mut self, path: &[u8]) -> Result<(), ExportError> {
        let (dir, name) = split(path);
        let marker = join(dir, &[PREFIX, name].concat());
        self.marker(&marker)
    }

    /// Writes that a directory, just written, hides what was in it before.
    pub(crate) fn opaque(&mut self, dir: &[u8]) -> Result<(), ExportError> {
        let marker = join(dir, OPAQUE);
        self.marker(&marker)
    }

    fn marker(&mut self, path: &[u8]) -> Result<(), ExportError> {
        self.entries = self.entries.saturating_add(1);
        let header = EntryHeader {
            path,
            kind: EntryKind::File { size: 0 },
            permissions: 0,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: &[],
        };
        self.tar.entry(&header).map_err(|e| writing(path, e))
    }
}

/// Refuses a name that means something else in an image layer.
fn reserved(path: &[u8]) -> Result<(), ExportError> {
    if split(path).1.starts_with(PREFIX) {
        return Err(ExportError::ReservedName { path: path.into() });
    }
    Ok(())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash.saturating_add(1)..]),
        None => (b"", path),
    }
}

fn reading(path: &[u8], source: TreeError) -> ExportError {
    let path = path.into();
    ExportError::Tree { path, source }
}

fn writing(path: &[u8], source: TarWriteError) -> ExportError {
    let path = path.into();
    ExportError::Tar { path, source }
}

fn len64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Finds out what of a file is not zeros. Only what the disk holds data for is read.
fn look_through<R: lcow_blockio::ReadAt>(
    file: &FileData<'_, R>,
    buffer: &mut [u8],
    pieces: &mut Pieces,
) -> Result<(), lcow_ext4::reader::ReadError> {
    let grain = len64(GRAIN);
    let mut at = 0;
    while let Some(data) = file.next_data(at) {
        // Whole grains of the file, so that the answer does not hang on where the disk's data begins.
        at = data
            .start
            .checked_rem(grain)
            .map_or(0, |over| data.start.saturating_sub(over));
        let end = data.end.checked_next_multiple_of(grain).unwrap_or(u64::MAX);
        while at < end {
            let want = index(end.saturating_sub(at)).min(buffer.len());
            let len = file.read_at(at, &mut buffer[..want])?;
            if len == 0 {
                return Ok(());
            }
            pieces.scan(at, &buffer[..len]);
            at = at.saturating_add(len64(len));
        }
    }
    Ok(())
}

/// What of a file is not a hole.
struct Pieces {
    size: u64,
    min_hole: u64,
    pieces: Vec<Range<u64>>,
}

impl Pieces {
    fn new(size: u64) -> Self {
        Self {
            size,
            min_hole: MIN_HOLE,
            pieces: Vec::new(),
        }
    }

    /// Looks at bytes of the file, from `at` (in whole grains) on.
    fn scan(&mut self, at: u64, bytes: &[u8]) {
        let mut start = at;
        for grain in bytes.chunks(GRAIN) {
            let end = start.saturating_add(len64(grain.len()));
            if !is_zero(grain) {
                self.push(start..end);
            }
            start = end;
        }
    }

    fn push(&mut self, data: Range<u64>) {
        let end = self.pieces.last().map_or(0, |last| last.end);
        if data.start.saturating_sub(end) >= self.min_hole {
            if self.pieces.len() == MAX_PIECES {
                self.coarsen();
                return self.push(data);
            }
            self.pieces.push(data);
        } else if let Some(last) = self.pieces.last_mut() {
            last.end = last.end.max(data.end);
        } else {
            self.pieces.push(0..data.end);
        }
    }

    /// Fills up holes, doubling the shortest kept, until half of the room is free.
    fn coarsen(&mut self) {
        while self.pieces.len() > MAX_PIECES / 2 {
            self.min_hole = self.min_hole.saturating_mul(2);
            let min_hole = self.min_hole;
            if let Some(first) = self.pieces.first_mut().filter(|p| p.start < min_hole) {
                first.start = 0;
            }
            self.pieces.dedup_by(|next, kept| {
                let joins = next.start.saturating_sub(kept.end) < min_hole;
                if joins {
                    kept.end = next.end;
                }
                joins
            });
        }
    }

    fn finish(mut self) -> Vec<Range<u64>> {
        let end = self.pieces.last().map_or(0, |last| last.end);
        if self.size.saturating_sub(end) < self.min_hole && self.size > 0 {
            match self.pieces.last_mut() {
                Some(last) => last.end = self.size,
                None => self.pieces.push(0..self.size),
            }
        }
        self.pieces
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(64)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    fn pieces(len: usize, data: &[Range<usize>]) -> Vec<Range<u64>> {
        let mut bytes = vec![0; len];
        for range in data {
            bytes[range.clone()].fill(1);
        }
        let mut pieces = Pieces::new(len as u64);
        pieces.scan(0, &bytes);
        pieces.finish()
    }

    const K: usize = 1024;

    #[test]
    fn only_long_runs_of_zeros_are_holes() {
        for (len, data, expected) in [
            (0, vec![], vec![]),
            (64 * K - 1, vec![], vec![0..64 * K - 1]),
            (64 * K, vec![], vec![]),
            (100 * K, vec![0..1], vec![0..4 * K]),
            (67 * K, vec![0..1], vec![0..67 * K]),
            (68 * K, vec![0..1], vec![0..4 * K]),
            (100 * K, vec![70 * K..70 * K + 1], vec![68 * K..100 * K]),
            (100 * K, vec![60 * K..60 * K + 1], vec![0..100 * K]),
            (
                200 * K,
                vec![0..1, 68 * K..69 * K],
                vec![0..4 * K, 68 * K..72 * K],
            ),
            (132 * K, vec![0..1, 67 * K..68 * K], vec![0..68 * K]),
        ] {
            let expected: Vec<_> = expected
                .iter()
                .map(|r| r.start as u64..r.end as u64)
                .collect();
            assert_eq!(pieces(len, &data), expected, "{len} {data:?}");
        }
    }

    #[test]
    fn the_number_of_pieces_is_bounded() {
        let mut pieces = Pieces::new(u64::MAX / 2);
        let step = 2 * MIN_HOLE;
        for i in 0..3 * MAX_PIECES as u64 {
            pieces.push(i * step..i * step + 4096);
        }
        let end = 3 * MAX_PIECES as u64 * step;
        let pieces = pieces.finish();
        assert!(pieces.len() <= MAX_PIECES, "{}", pieces.len());
        assert!(pieces.is_sorted_by(|a, b| a.end < b.start));
        assert!(pieces.last().unwrap().end + step >= end);
    }
}
