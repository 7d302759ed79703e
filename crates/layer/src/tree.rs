//! One read-only view of a tree of files, whatever it is made of.
//!
//! [`Tree`] has two implementations: a [`Subtree`] of one ext4 filesystem, shown raw, and the
//! [`Union`](crate::union::Union) of several, shown as overlayfs shows it. What walks, resolves, exports and compares
//! trees is written once, against the trait.
//!
//! Names and paths are bytes. Paths are relative to the tree's root and carry no leading slash; the root itself is the empty
//! path. Everything is lazy: a [`Node`] is an inode that was read, an [`Entry`] only a name and where it leads, so that a
//! directory of a million names stays cheap to hold.

mod resolve;
mod subtree;
pub(crate) use subtree::must_be_directory;
pub(crate) mod walk;

use lcow_blockio::ReadAt;
use lcow_ext4::reader::{FileData, Filesystem, Inode, ReadError, ReadErrorKind};
use lcow_ext4::{Device, FileType, InodeNumber, Timestamp, Xattr};

use crate::{EntryName, ErrorKind};

pub use resolve::{Follow, Resolved};
pub use subtree::Subtree;

/// A read-only tree of files.
pub trait Tree {
    /// What the filesystems below lie on.
    type Disk: ReadAt;

    /// The root directory.
    fn root(&self) -> &Node;

    /// Whether overlayfs's whiteouts and attributes are seen, rather than what they mean.
    fn shows_marks(&self) -> bool;

    /// The file that an entry of [`read_dir`](Self::read_dir) leads to.
    fn node(&self, entry: &Entry) -> Result<Node, TreeError>;

    /// The file of that name in a directory. Names are taken literally: `.` and `..` are not special here.
    ///
    /// # Errors
    /// [`TreeError::NotADirectory`] if `dir` is none.
    fn lookup(&self, dir: &Node, name: &[u8]) -> Result<Option<Node>, TreeError>;

    /// The whole directory, sorted by the names' bytes, without `.` and `..`.
    ///
    /// # Errors
    /// [`TreeError::NotADirectory`] if `dir` is none.
    fn read_dir(&self, dir: &Node) -> Result<Vec<Entry>, TreeError>;

    /// Whether a file that was listed is not there for whoever looks its name up. Walking a tree, such a file is to be left out.
    ///
    /// # Errors
    /// [`TreeError::Disk`].
    fn is_hidden(&self, _node: &Node) -> Result<bool, TreeError> {
        Ok(false)
    }

    /// The extended attributes, sorted by name.
    fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>, TreeError>;

    /// Opens a regular file.
    ///
    /// # Errors
    /// [`TreeError::Disk`] for anything but a regular file.
    fn open_file(&self, node: &Node) -> Result<FileData<'_, Self::Disk>, TreeError>;

    /// The filesystem that a layer index of this tree stands for.
    fn filesystem(&self, layer: LayerIndex) -> &Filesystem<Self::Disk>;

    /// The filesystem that this tree is all of, if it is: a walk through it then has to come by every file in use.
    fn whole_filesystem(&self) -> Option<&Filesystem<Self::Disk>> {
        None
    }

    /// The target of a symbolic link, as stored.
    ///
    /// # Errors
    /// [`TreeError::Disk`] for anything but a symbolic link.
    fn read_link(&self, node: &Node) -> Result<Vec<u8>, TreeError> {
        let layer = node.identity().layer;
        self.filesystem(layer)
            .read_link(node.inode())
            .map_err(TreeError::on(layer))
    }

    /// Finds a path *inside* the root, as `openat2(RESOLVE_IN_ROOT)` does: `..` stops at the root, and absolute link targets
    /// start there. A leading slash changes nothing; the empty path is the root.
    ///
    /// # Errors
    /// [`TreeError::NotFound`], [`TreeError::NotADirectory`], [`TreeError::NameTooLong`] (a component over 255 bytes) and
    /// [`TreeError::Loop`] (more than 40 symbolic links), as the kernel's `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`, `ELOOP`.
    fn resolve(&self, path: &[u8], follow: Follow) -> Result<Resolved, TreeError> {
        resolve::resolve(self, path, follow)
    }
}

/// Which of a tree's layers something lies in: 0 is the nearest. A [`Subtree`] has only layer 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerIndex(pub u32);

/// What two names of one file have in common, within one tree: hard links share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIdentity {
    /// The layer that holds the file.
    pub layer: LayerIndex,
    /// Its inode there.
    pub inode: InodeNumber,
}

/// A file of a tree, its inode read.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) top: Spot,
    /// The directories merged below a directory, nearest first; empty for everything else.
    pub(crate) below: Vec<Spot>,
}

/// An inode of one layer.
#[derive(Debug, Clone)]
pub(crate) struct Spot {
    pub(crate) layer: LayerIndex,
    pub(crate) inode: Inode,
}

impl Spot {
    pub(crate) fn identity(&self) -> FileIdentity {
        FileIdentity {
            layer: self.layer,
            inode: self.inode.number,
        }
    }
}

impl Node {
    pub(crate) fn alone(layer: LayerIndex, inode: Inode) -> Self {
        Self {
            top: Spot { layer, inode },
            below: Vec::new(),
        }
    }

    /// Directly or merged, all that makes up the file: itself, and for a directory what lies below it.
    pub(crate) fn spots(&self) -> impl DoubleEndedIterator<Item = &Spot> {
        std::iter::once(&self.top).chain(&self.below)
    }

    pub(crate) fn inode(&self) -> &Inode {
        &self.top.inode
    }

    pub(crate) fn place(&self) -> Place {
        if self.below.is_empty() {
            Place::One(self.identity())
        } else {
            Place::Merged(self.spots().map(Spot::identity).collect())
        }
    }

    /// What the file is.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        self.inode().file_type
    }

    /// Equal for two names of the same file.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        self.top.identity()
    }

    /// All that `stat` gives. A merged directory has one link, as overlayfs shows it (`ovl_getattr`).
    #[must_use]
    pub fn stat(&self) -> Stat {
        let inode = self.inode();
        Stat {
            file_type: inode.file_type,
            permissions: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            size: match inode.file_type {
                FileType::Regular | FileType::Directory | FileType::Symlink => inode.size,
                _ => 0,
            },
            links: if self.below.is_empty() {
                inode.links
            } else {
                1
            },
            device: inode.device().unwrap_or_default(),
            inode: inode.number,
            blocks: inode.blocks_512,
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
        }
    }
}

/// A name in a directory and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name, 1 to 255 bytes without `/` and NUL.
    pub name: Vec<u8>,
    /// What it names.
    pub file_type: FileType,
    pub(crate) place: Place,
}

/// Where a file lies, without having been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    One(FileIdentity),
    /// A directory merged of several, nearest first.
    Merged(Box<[FileIdentity]>),
}

impl Place {
    pub(crate) fn parts(&self) -> &[FileIdentity] {
        match self {
            Self::One(identity) => std::slice::from_ref(identity),
            Self::Merged(parts) => parts,
        }
    }
}

/// All that `stat` gives of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The type.
    pub file_type: FileType,
    /// Permissions with setuid, setgid and sticky: `0o7777`.
    pub permissions: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Bytes of a file, of a symbolic link's target, of a directory's blocks; 0 otherwise.
    pub size: u64,
    /// The number of names.
    pub links: u32,
    /// The device of a device file; 0:0 otherwise.
    pub device: Device,
    /// The inode's number in its own layer.
    pub inode: InodeNumber,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Last read.
    pub atime: Timestamp,
    /// Last written.
    pub mtime: Timestamp,
    /// Last changed in content or metadata.
    pub ctime: Timestamp,
}

impl Stat {
    /// `st_mode`: type and permissions.
    #[must_use]
    pub fn mode(&self) -> u16 {
        self.file_type.mode_bits() | self.permissions
    }
}

/// Why a tree could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A filesystem could not be read.
    #[error("layer {}: {source}", layer.0)]
    Disk {
        /// Which one; 0 is the nearest.
        layer: LayerIndex,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// No such file.
    #[error("{}: no such file or directory", show(path))]
    NotFound {
        /// The path up to and including the name that is missing.
        path: Vec<u8>,
    },
    /// Something other than a directory was used as one.
    #[error("{}: not a directory", show(path))]
    NotADirectory {
        /// The path so far; empty if only the file is known.
        path: Vec<u8>,
    },
    /// More than 40 symbolic links on the way.
    #[error("{}: too many levels of symbolic links", show(path))]
    Loop {
        /// The link that was one too many.
        path: Vec<u8>,
    },
    /// A name over 255 bytes.
    #[error("{}: file name too long", show(name))]
    NameTooLong {
        /// The name.
        name: Vec<u8>,
    },
    /// A layer was written by an overlay with a feature that this union does not follow.
    #[error("layer {}: inode {} uses overlayfs's {feature}, which is not supported", at.layer.0, at.inode)]
    Overlay {
        /// Where.
        at: FileIdentity,
        /// `redirect_dir` or `metacopy`.
        feature: &'static str,
    },
    /// A directory is reached by two names, or holds itself.
    #[error("layer {}: corrupt filesystem: directory inode {} has two names, the second is {}", at.layer.0, at.inode, show(path))]
    DirectoryTwice {
        /// Which directory.
        at: FileIdentity,
        /// Its second name.
        path: Vec<u8>,
    },
    /// A path over [`MAX_PATH`] bytes.
    #[error("a path of {len} bytes (the most is {MAX_PATH}): {}…", show(start))]
    PathTooLong {
        /// Its length, in bytes.
        len: usize,
        /// How it starts.
        start: Vec<u8>,
    },
    /// A subtree's path names something that can't be the root of a tree.
    #[error("{}: not a directory, so not the root of a tree", show(path))]
    BadRoot {
        /// The path.
        path: Vec<u8>,
    },
}

/// The longest path that is walked, in bytes. The kernel takes 4,095 in one call but lets trees grow deeper; no tar that this
/// project takes can name more (a PAX header is at most 1 MiB), and without a bound the names of a hostile disk's deep tree
/// would grow with its square.
pub const MAX_PATH: usize = 64 << 10;

impl TreeError {
    pub(crate) fn on(layer: LayerIndex) -> impl Fn(ReadError) -> Self {
        move |source| Self::Disk { layer, source }
    }

    /// The class of this error. A question that does not fit the tree (no such path, not a directory, …) is *refused*.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Disk { source, .. } => match source.kind() {
                ReadErrorKind::Corrupt => ErrorKind::Corrupt,
                ReadErrorKind::Unsupported => ErrorKind::Unsupported,
                ReadErrorKind::Usage => ErrorKind::Refused,
                _ => ErrorKind::Io,
            },
            Self::DirectoryTwice { .. } => ErrorKind::Corrupt,
            Self::Overlay { .. } | Self::PathTooLong { .. } => ErrorKind::Unsupported,
            Self::NotFound { .. }
            | Self::NotADirectory { .. }
            | Self::Loop { .. }
            | Self::NameTooLong { .. }
            | Self::BadRoot { .. } => ErrorKind::Refused,
        }
    }
}

/// A path for people: the root as `/`.
fn show(path: &[u8]) -> EntryName {
    EntryName::from(if path.is_empty() { b"/" } else { path })
}

/// `dir/name`.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}
