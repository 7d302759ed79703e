//! A chain's files by path, as a container would see them, without a VM.

use std::io::{self, Read, Seek, SeekFrom, Write};

use lcow_blockio::ReadAt;
use lcow_ext4::reader::{FileData, Filesystem};
use lcow_ext4::{FileType, Xattr};
use lcow_layer::export::{ExportOptions, ExportSummary, canonical};
use lcow_layer::tree::{Entry, Follow, LayerIndex, Node, Stat, Tree, TreeError};
use lcow_layer::union::Union;

use super::Chain;
use super::compare::export_error;
use super::disk_file::LayerDisk;
use super::read::tree_error;
use crate::DriverError;

/// Paths are bytes, with or without a leading slash, and found as the kernel does inside a root directory: `..` stops there,
/// and links that are absolute start there.
impl Chain {
    /// What a path leads to, through a symbolic link at its end too.
    ///
    /// # Errors
    /// [`DriverError::NoSuchFile`], [`DriverError::Layer`].
    pub fn stat(&self, path: &[u8]) -> Result<Stat, DriverError> {
        Ok(self.find(path, Follow::Yes)?.1.stat())
    }

    /// What is at a path: of a symbolic link at its end, the link.
    ///
    /// # Errors
    /// As [`stat`](Self::stat).
    pub fn lstat(&self, path: &[u8]) -> Result<Stat, DriverError> {
        Ok(self.find(path, Follow::No)?.1.stat())
    }

    /// A symbolic link's target, as stored.
    ///
    /// # Errors
    /// As [`stat`](Self::stat); [`DriverError::Layer`] if it is none.
    pub fn readlink(&self, path: &[u8]) -> Result<Vec<u8>, DriverError> {
        let (union, node) = self.find(path, Follow::No)?;
        union.read_link(&node).map_err(|e| self.failed(e))
    }

    /// What a directory holds, sorted by name, without `.` and `..`.
    ///
    /// # Errors
    /// As [`stat`](Self::stat), also if it is none.
    pub fn readdir(&self, path: &[u8]) -> Result<Vec<Entry>, DriverError> {
        let (union, node) = self.find(path, Follow::Yes)?;
        if node.file_type() != FileType::Directory {
            return Err(self.no_such(path));
        }
        union.read_dir(&node).map_err(|e| self.failed(e))
    }

    /// Opens a regular file. It is read piece by piece, never as a whole.
    ///
    /// # Errors
    /// As [`stat`](Self::stat), also if it is none.
    pub fn open(&self, path: &[u8]) -> Result<ChainFile<'_>, DriverError> {
        let (union, node) = self.find(path, Follow::Yes)?;
        if node.file_type() != FileType::Regular {
            return Err(self.no_such(path));
        }
        let data = union.open_file(&node).map_err(|e| self.failed(e))?;
        Ok(ChainFile { data, at: 0 })
    }

    /// Writes what a directory holds as a tar in the canonical form of the layer format: names from that directory on, no
    /// whiteouts.
    ///
    /// # Errors
    /// As [`readdir`](Self::readdir); [`DriverError::Output`].
    pub fn archive(
        &self,
        path: &[u8],
        options: &ExportOptions,
        out: impl Write,
    ) -> Result<ExportSummary, DriverError> {
        let (union, root) = self.find(path, Follow::Yes)?;
        if root.file_type() != FileType::Directory {
            return Err(self.no_such(path));
        }
        let tree = Below { union, root };
        canonical(&tree, options, out).map_err(|e| export_error("archiving", self.id(), e))
    }

    fn find(&self, path: &[u8], follow: Follow) -> Result<(&Union<LayerDisk>, Node), DriverError> {
        let union = self.union().ok_or_else(|| self.no_such(path))?;
        match union.resolve(path, follow) {
            Ok(found) => Ok((union, found.node)),
            Err(
                TreeError::NotFound { .. }
                | TreeError::NotADirectory { .. }
                | TreeError::Loop { .. }
                | TreeError::NameTooLong { .. },
            ) => Err(self.no_such(path)),
            Err(e) => Err(self.failed(e)),
        }
    }

    fn no_such(&self, path: &[u8]) -> DriverError {
        DriverError::NoSuchFile {
            id: self.id().clone(),
            path: path.to_owned(),
        }
    }

    fn failed(&self, error: TreeError) -> DriverError {
        tree_error("reading", self.id(), error)
    }
}

/// An open file of a chain: seekable and streaming.
#[derive(Debug)]
pub struct ChainFile<'a> {
    data: FileData<'a, LayerDisk>,
    at: u64,
}

impl ReadAt for ChainFile<'_> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.data.size())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.data.read_at(offset, buf).map_err(io::Error::other)
    }
}

impl Read for ChainFile<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.read_at(self.at, buf)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for ChainFile<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::Current(offset) => (self.at, offset),
            SeekFrom::End(offset) => (self.data.size(), offset),
        };
        self.at = base
            .checked_add_signed(offset)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// A directory of a union and what is below it.
struct Below<'a> {
    union: &'a Union<LayerDisk>,
    root: Node,
}

impl Tree for Below<'_> {
    type Disk = LayerDisk;

    fn root(&self) -> &Node {
        &self.root
    }

    fn shows_marks(&self) -> bool {
        self.union.shows_marks()
    }

    fn node(&self, entry: &Entry) -> Result<Node, TreeError> {
        self.union.node(entry)
    }

    fn lookup(&self, dir: &Node, name: &[u8]) -> Result<Option<Node>, TreeError> {
        self.union.lookup(dir, name)
    }

    fn read_dir(&self, dir: &Node) -> Result<Vec<Entry>, TreeError> {
        self.union.read_dir(dir)
    }

    fn is_hidden(&self, node: &Node) -> Result<bool, TreeError> {
        self.union.is_hidden(node)
    }

    fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>, TreeError> {
        self.union.xattrs(node)
    }

    fn open_file(&self, node: &Node) -> Result<FileData<'_, LayerDisk>, TreeError> {
        self.union.open_file(node)
    }

    fn filesystem(&self, layer: LayerIndex) -> &Filesystem<LayerDisk> {
        self.union.filesystem(layer)
    }
}
