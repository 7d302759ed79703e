use std::fmt;
use std::sync::Arc;

use lcow_blockio::ReadAt;
use lcow_ext4::reader::{FileData, Filesystem};
use lcow_ext4::{FileType, InodeNumber, Xattr};

use super::{Entry, FileIdentity, LayerIndex, Node, Place, Tree, TreeError};

/// The only layer of a subtree.
const LAYER: LayerIndex = LayerIndex(0);

/// A directory of an ext4 filesystem and what is below it, shown raw: whiteouts are devices, `trusted.overlay.*` attributes
/// are attributes.
///
/// Cloning shares the filesystem. Two subtrees of the same shared filesystem are known to be the same files, which is what
/// lets [`changes`](crate::changes::changes) skip the layers that two unions share: open each disk once.
pub struct Subtree<R> {
    filesystem: Arc<Filesystem<R>>,
    root: Node,
}

impl<R> fmt::Debug for Subtree<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subtree").field("root", &self.root).finish()
    }
}

impl<R> Clone for Subtree<R> {
    fn clone(&self) -> Self {
        Self {
            filesystem: Arc::clone(&self.filesystem),
            root: self.root.clone(),
        }
    }
}

impl<R: ReadAt> Subtree<R> {
    /// The directory at `path` (no symbolic link is followed): empty for the whole filesystem, `upper` for what a sandbox holds.
    ///
    /// # Errors
    /// [`TreeError::BadRoot`] if it is no directory; [`TreeError::Disk`] if it is missing or unreadable.
    pub fn open(filesystem: Arc<Filesystem<R>>, path: &[u8]) -> Result<Self, TreeError> {
        let inode = filesystem.resolve(path).map_err(TreeError::on(LAYER))?;
        if inode.file_type != FileType::Directory {
            return Err(TreeError::BadRoot {
                path: path.to_vec(),
            });
        }
        Ok(Self {
            filesystem,
            root: Node::alone(LAYER, inode),
        })
    }

    /// Whether both show the same directory of the same opened filesystem.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.shares_filesystem(other) && self.root.identity() == other.root.identity()
    }

    pub(crate) fn shares_filesystem(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.filesystem, &other.filesystem)
    }

    pub(crate) fn ext4(&self) -> &Filesystem<R> {
        &self.filesystem
    }
}

impl<R: ReadAt> Tree for Subtree<R> {
    type Disk = R;

    fn root(&self) -> &Node {
        &self.root
    }

    fn shows_marks(&self) -> bool {
        true
    }

    fn node(&self, entry: &Entry) -> Result<Node, TreeError> {
        // An entry of this tree is never merged.
        let [at, ..] = entry.place.parts() else {
            return Err(TreeError::NotFound {
                path: entry.name.clone(),
            });
        };
        let inode = self.filesystem.inode(at.inode);
        inode
            .map(|inode| Node::alone(LAYER, inode))
            .map_err(TreeError::on(LAYER))
    }

    fn lookup(&self, dir: &Node, name: &[u8]) -> Result<Option<Node>, TreeError> {
        must_be_directory(dir)?;
        let found = self
            .filesystem
            .lookup(dir.inode(), name)
            .map_err(TreeError::on(LAYER))?;
        let Some(number) = found else {
            return Ok(None);
        };
        let inode = self.filesystem.inode(number);
        inode
            .map(|inode| Some(Node::alone(LAYER, inode)))
            .map_err(TreeError::on(LAYER))
    }

    fn read_dir(&self, dir: &Node) -> Result<Vec<Entry>, TreeError> {
        must_be_directory(dir)?;
        let listed = self.filesystem.read_dir(dir.inode());
        let mut entries = Vec::new();
        // Sorted as they come.
        for entry in listed.map_err(TreeError::on(LAYER))? {
            // Filesystems without the `filetype` feature leave the type to the inode.
            let file_type = match entry.file_type {
                Some(file_type) => file_type,
                None => {
                    self.filesystem
                        .inode(entry.inode)
                        .map_err(TreeError::on(LAYER))?
                        .file_type
                }
            };
            entries.push(Entry {
                name: entry.name,
                file_type,
                place: Place::One(FileIdentity {
                    layer: LAYER,
                    inode: entry.inode,
                }),
            });
        }
        Ok(entries)
    }

    fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>, TreeError> {
        self.filesystem
            .xattrs(node.inode())
            .map_err(TreeError::on(LAYER))
    }

    fn open_file(&self, node: &Node) -> Result<FileData<'_, R>, TreeError> {
        self.filesystem
            .open_file(node.inode())
            .map_err(TreeError::on(LAYER))
    }

    fn filesystem(&self, _: LayerIndex) -> &Filesystem<R> {
        &self.filesystem
    }

    fn whole_filesystem(&self) -> Option<&Filesystem<R>> {
        (self.root.identity().inode == InodeNumber::ROOT).then_some(&*self.filesystem)
    }
}

pub(crate) fn must_be_directory(node: &Node) -> Result<(), TreeError> {
    if node.file_type() == FileType::Directory {
        Ok(())
    } else {
        Err(TreeError::NotADirectory { path: Vec::new() })
    }
}
