//! Many layers as one disk.
//!
//! A VM takes a bounded number of disks, and chains may be deeper (`docs/format/overlay.md`). [`flatten`] writes what a
//! [`Union`] shows into one filesystem that is a layer itself: overlayfs shows over it what it shows over the layers, and below
//! further layers it behaves as they do.
//!
//! * Whiteouts and what they hide are gone, and so are overlayfs's own attributes. Those of an overlay inside a container
//!   stay escaped (`trusted.overlay.overlay.*`), as they were in the layers.
//! * Types, permissions, owners, all times, devices, link targets, attributes, hard links within a layer and holes are kept. Blocks of zeros
//!   become holes.
//! * The root directory has the metadata that the union shows, which is the nearest layer's.
//! * What a union by name can't follow (`redirect_dir`, `metacopy`) is refused.
//!
//! # Name
//! The disk's identity follows from a [`name`]: a digest over the layers' names in their order. The same layers under the same names give the
//! same bytes, so a finished disk can be kept under it, as long as each layer's name says what is in it: a diff ID does, and the UUID of a disk that
//! `lcow` made of a tar; that of a container's disk stays while its contents change, so what it is part of must not be kept. No clock is read.
//!
//! # Cost
//! Two passes: names and metadata in the order of paths, then data, layer by layer in the order it lies there, the farthest layer first. Data goes through a
//! buffer of 1 MiB. Memory is the writer's 100 bytes a file, 24 bytes for each file with data, and 20 for each that has several names.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;

use lcow_blockio::{ReadAt, WriteAt};
use lcow_disk::vhd::{self, VhdError};
use lcow_ext4::reader::FileData;
use lcow_ext4::writer::{
    Content, Identity, Metadata, WriteError, WriteErrorKind, Writer, WriterOptions,
};
use lcow_ext4::{FileType, InodeNumber};

use crate::digest::Digest;
use crate::tree::{FileIdentity, LayerIndex, Node, Tree, TreeError, walk};
use crate::union::Union;
use crate::{EntryName, ErrorKind};

/// The version of what a flattened disk is like. It counts up whenever the same layers would give other bytes, and is part of the [`name`].
pub const VERSION: u32 = 1;
/// How much data is read at once, in bytes.
const BUFFER: usize = 1 << 20;

/// How layers become one disk.
#[derive(Debug, Clone)]
pub struct FlattenOptions {
    /// The largest disk to make, in bytes: up to 16 TiB, 128 GiB by default. Part of what the disk's bytes follow from, and of its name.
    pub max_size: u64,
    /// Puts a fixed VHD's footer behind the file system. Off by default.
    pub vhd: bool,
}

impl Default for FlattenOptions {
    fn default() -> Self {
        Self {
            max_size: 128 << 30,
            vhd: false,
        }
    }
}

/// What a layer is known by in the [`name`] of a flattened disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerName {
    /// The digest of the tar that it was made from.
    DiffId(Digest),
    /// The UUID of its filesystem ([`Info::uuid`](lcow_ext4::reader::Info)), where there is no tar. A layer that `lcow` made has one that follows
    /// from its diff ID.
    FileSystem([u8; 16]),
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DiffId(digest) => write!(f, "{digest}"),
            Self::FileSystem(uuid) => {
                f.write_str("uuid:")?;
                uuid.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// The name that a flattened disk of these layers, nearest first, has in a cache: the SHA-256 of
///
/// ```text
/// lcow flattened layers 1
/// max-size 137438953472
/// sha256:… (or uuid:…), one line for each layer
/// ```
///
/// ```
/// use lcow_layer::digest::Digest;
/// use lcow_layer::flatten::{FlattenOptions, LayerName, name};
///
/// let (top, base) = (LayerName::DiffId(Digest::of(b"top")), LayerName::DiffId(Digest::of(b"base")));
/// let options = FlattenOptions::default();
/// assert_ne!(name(&[top, base], &options), name(&[base, top], &options));
/// ```
#[must_use]
pub fn name(layers: &[LayerName], options: &FlattenOptions) -> Digest {
    let mut text = format!(
        "lcow flattened layers {VERSION}\nmax-size {}\n",
        options.max_size
    );
    for layer in layers {
        text.push_str(&layer.to_string());
        text.push('\n');
    }
    Digest::of(text.as_bytes())
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flattened {
    /// Names in the tree; the root counts as one.
    pub names: u64,
    /// Bytes of data copied, holes left out.
    pub data: u64,
    /// The file system's size in bytes; a VHD footer comes on top.
    pub disk_size: u64,
}

/// Why layers could not be flattened. What was written by then is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlattenError {
    /// A file of the union could not be read.
    #[error("reading {path}: {source}")]
    Tree {
        /// The file.
        path: EntryName,
        /// Why it failed.
        #[source]
        source: TreeError,
    },
    /// A file could not be written.
    #[error("writing {path}: {source}")]
    Write {
        /// The file.
        path: EntryName,
        /// Why it failed.
        #[source]
        source: WriteError,
    },
    /// The union could not be walked, or a file's data could not be read.
    #[error(transparent)]
    Read(#[from] TreeError),
    /// A file has less data than its inode says.
    #[error("layer {}: inode {} ends before its size", at.layer.0, at.inode)]
    Short {
        /// The file.
        at: FileIdentity,
    },
    /// The disk could not be written.
    #[error("can't write the disk")]
    Disk(#[from] WriteError),
    /// The VHD footer could not be written.
    #[error("can't write the VHD footer")]
    Vhd(#[from] VhdError),
}

impl FlattenError {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Tree { source, .. } | Self::Read(source) => source.kind(),
            Self::Write { source, .. } | Self::Disk(source) => match source.kind() {
                WriteErrorKind::Refused => ErrorKind::Refused,
                WriteErrorKind::Io | WriteErrorKind::Misuse => ErrorKind::Io,
            },
            Self::Short { .. } => ErrorKind::Corrupt,
            Self::Vhd(_) => ErrorKind::Io,
        }
    }
}

/// Writes what a union shows as one disk under a [`name`].
///
/// `disk` must be empty. Nothing is synced. To cancel, let a read of the layers fail.
///
/// # Errors
/// See [`FlattenError`].
pub fn flatten<R: ReadAt, D: WriteAt>(
    union: &Union<R>,
    name: &Digest,
    disk: D,
    options: &FlattenOptions,
) -> Result<Flattened, FlattenError> {
    let mut writer_options = WriterOptions::default();
    writer_options.max_size = options.max_size;
    let mut flattener = Flattener {
        union,
        writer: Writer::new(&disk, &writer_options)?,
        above: Vec::new(),
        several_names: HashMap::new(),
        files: Vec::new(),
        names: 0,
    };
    walk::walk(union, |path, node| flattener.file(path, node))?;
    let data = flattener.copy()?;
    let summary = flattener.writer.finish(&Identity {
        uuid: name.derive_uuid("lcow flattened layers: file system UUID"),
        hash_seed: name.derive("lcow flattened layers: directory hash seed"),
    })?;
    if options.vhd {
        let id = name.derive_uuid("lcow flattened layers: VHD unique id");
        vhd::write_footer(&disk, summary.size_bytes, id)?;
    }
    Ok(Flattened {
        names: flattener.names,
        data,
        disk_size: summary.size_bytes,
    })
}

/// A regular file whose data is still to be copied. Their order is that of copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pending {
    layer: Reverse<LayerIndex>,
    /// The first block of its data in the layer; 0 if it is all a hole.
    block: u64,
    inode: InodeNumber,
    /// The inode it gets.
    target: InodeNumber,
}

struct Flattener<'u, R, D: WriteAt> {
    union: &'u Union<R>,
    writer: Writer<D>,
    /// The directories on the way down to the present one, below the root: length of the path, inode.
    above: Vec<(usize, InodeNumber)>,
    several_names: HashMap<FileIdentity, InodeNumber>,
    files: Vec<Pending>,
    names: u64,
}

impl<R: ReadAt, D: WriteAt> Flattener<'_, R, D> {
    /// Makes a file, without its data.
    fn file(&mut self, path: &[u8], node: &Node) -> Result<(), FlattenError> {
        let reading = |source| FlattenError::Tree {
            path: path.into(),
            source,
        };
        let writing = |source| FlattenError::Write {
            path: path.into(),
            source,
        };
        self.names = self.names.saturating_add(1);
        let inode = node.inode();
        let metadata = Metadata {
            permissions: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
        };
        let xattrs = self.union.layer_xattrs(node).map_err(reading)?;
        if path.is_empty() {
            self.writer
                .set_metadata(InodeNumber::ROOT, &metadata)
                .and_then(|()| self.writer.set_xattrs(InodeNumber::ROOT, &xattrs))
                .map_err(writing)?;
            return Ok(());
        }
        let (parent, name) = self.place(path);
        let file_type = node.file_type();
        let has_several = file_type != FileType::Directory && inode.links > 1;
        if has_several && let Some(&first) = self.several_names.get(&node.identity()) {
            return self.writer.link(parent, name, first).map_err(writing);
        }
        let device = inode.device().unwrap_or_default();
        let target;
        let content = match file_type {
            FileType::Regular => Content::Regular,
            FileType::Directory => Content::Directory,
            FileType::Symlink => {
                target = self.union.read_link(node).map_err(reading)?;
                Content::Symlink(&target)
            }
            FileType::CharDevice => Content::CharDevice(device),
            FileType::BlockDevice => Content::BlockDevice(device),
            FileType::Fifo => Content::Fifo,
            FileType::Socket => Content::Socket,
        };
        let made = self
            .writer
            .create(parent, name, content, &metadata)
            .map_err(writing)?;
        if !xattrs.is_empty() {
            self.writer.set_xattrs(made, &xattrs).map_err(writing)?;
        }
        if has_several {
            self.several_names.insert(node.identity(), made);
        }
        match file_type {
            FileType::Directory => self.above.push((path.len(), made)),
            FileType::Regular if inode.size > 0 => {
                let at = node.identity();
                let map = self.union.filesystem(at.layer).map_file(inode);
                let map = map.map_err(|e| reading(TreeError::on(at.layer)(e)))?;
                let first = map.extents().iter().find(|e| e.written);
                self.files.push(Pending {
                    layer: Reverse(at.layer),
                    block: first.map_or(0, |extent| extent.physical),
                    inode: at.inode,
                    target: made,
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// The directory that a path is in, which came before it, and its name there.
    fn place<'p>(&mut self, path: &'p [u8]) -> (InodeNumber, &'p [u8]) {
        let slash = path.iter().rposition(|&b| b == b'/');
        // All that is below a directory follows it at once: what is deeper than this path's directory is done.
        let depth = slash.unwrap_or(0);
        while self.above.last().is_some_and(|&(len, _)| len > depth) {
            self.above.pop();
        }
        let parent = self.above.last().map_or(InodeNumber::ROOT, |dir| dir.1);
        let name = match slash {
            Some(slash) => path.get(slash.saturating_add(1)..).unwrap_or_default(),
            None => path,
        };
        (parent, name)
    }

    /// Copies the data of all files. Returns its length in bytes.
    fn copy(&mut self) -> Result<u64, FlattenError> {
        let mut files = std::mem::take(&mut self.files);
        files.sort_unstable();
        let mut buffer = vec![0; BUFFER];
        let mut copied = 0_u64;
        for pending in files {
            let layer = pending.layer.0;
            let fs = self.union.filesystem(layer);
            let inode = fs.inode(pending.inode).map_err(TreeError::on(layer))?;
            let file = fs.open_file(&inode).map_err(TreeError::on(layer))?;
            self.writer.begin_data(pending.target)?;
            let at = FileIdentity {
                layer,
                inode: pending.inode,
            };
            let len = self.copy_file(at, &file, &mut buffer)?;
            self.writer.end_data()?;
            copied = copied.saturating_add(len);
        }
        Ok(copied)
    }

    fn copy_file(
        &mut self,
        at: FileIdentity,
        file: &FileData<'_, R>,
        buffer: &mut [u8],
    ) -> Result<u64, FlattenError> {
        let mut done = 0_u64;
        let mut copied = 0_u64;
        while let Some(data) = file.next_data(done) {
            self.writer.skip_data(data.start.saturating_sub(done))?;
            done = data.start;
            while done < data.end {
                let left = usize::try_from(data.end.saturating_sub(done)).unwrap_or(usize::MAX);
                let want = left.min(buffer.len());
                let piece = buffer.get_mut(..want).unwrap_or_default();
                let got = file.read_at(done, piece).map_err(TreeError::on(at.layer))?;
                if got == 0 {
                    return Err(FlattenError::Short { at });
                }
                self.writer
                    .write_data(piece.get(..got).unwrap_or_default())?;
                let got = u64::try_from(got).unwrap_or(u64::MAX);
                done = done.saturating_add(got);
                copied = copied.saturating_add(got);
            }
        }
        self.writer.skip_data(file.size().saturating_sub(done))?;
        Ok(copied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_follows_from_the_layers_their_order_and_the_size() {
        let options = FlattenOptions::default();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let uuid = LayerName::FileSystem([0xab; 16]);
        let layers = [LayerName::DiffId(a), uuid, LayerName::DiffId(b)];
        let text = format!(
            "lcow flattened layers 1\nmax-size 137438953472\n{a}\nuuid:{}\n{b}\n",
            "ab".repeat(16)
        );
        assert_eq!(name(&layers, &options), Digest::of(text.as_bytes()));
        let mut turned = layers;
        turned.reverse();
        let smaller = FlattenOptions {
            max_size: 64 << 30,
            vhd: false,
        };
        let vhd = FlattenOptions {
            vhd: true,
            ..FlattenOptions::default()
        };
        let all = [
            name(&layers, &options),
            name(&turned, &options),
            name(&layers[..2], &options),
            name(&layers, &smaller),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|other| other != one), "{i}");
        }
        assert_eq!(name(&layers, &vhd), all[0], "the footer is not part of it");
    }
}
