//! Several layers seen as one tree, as overlayfs shows them.
//!
//! The rules are those of the kernel (`Documentation/filesystems/overlayfs.rst`, `fs/overlayfs/namei.c`, `readdir.c`), and tests hold
//! the two side by side:
//!
//! * A name is looked for from the nearest layer on. What is found first is what is seen; only directories are merged with the
//!   directories of the same path in farther layers, up to the first thing there that is not a directory.
//! * A whiteout, which is a character device 0:0 or an empty file with the attribute `trusted.overlay.whiteout`, ends the search: the
//!   name is not there.
//! * A directory with `trusted.overlay.opaque=y` is merged with nothing farther. On a layer's own root that attribute means nothing, as
//!   in the kernel.
//! * A merged directory has the metadata and attributes of the nearest one, and one link.
//! * `trusted.overlay.*` attributes are not seen, but `trusted.overlay.overlay.*` are, as `trusted.overlay.*`: so an overlay inside a
//!   container keeps its own.
//! * `redirect_dir` and `metacopy`, which need more than a name to find a file, are refused where they are met.
//!
//! In two corners a listing differs from the kernel's `readdir`, and agrees with its `stat`: a whiteout device in a directory that
//! exists in one layer only is listed by the kernel, though nothing of that name can be opened.
//! The listing finds whiteouts in attribute form where the kernel's does, which is in directories that say so with `trusted.overlay.opaque=x`; looking
//! a name up finds them everywhere, and so does whatever walks the whole tree ([`Tree::is_hidden`]).
//!
//! # Cost
//! A directory holds on to its inode in each layer that it is merged of, so a lookup asks those layers and no others: 500 layers
//! cost 500 lookups at the root, and one where only one layer has the directory.

mod merge;
pub(crate) mod overlay;

use lcow_blockio::ReadAt;
use lcow_ext4::reader::{FileData, Filesystem};
use lcow_ext4::{FileType, Xattr};

use crate::tree::{
    Entry, LayerIndex, Node, Place, Spot, Subtree, Tree, TreeError, must_be_directory,
};
use overlay::{Marks, may_be_xwhiteout};

/// Layers as one tree. Cloning shares the opened filesystems.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use lcow_blockio::FileDisk;
/// # use lcow_ext4::reader::Filesystem;
/// use lcow_layer::tree::{Follow, Subtree, Tree};
/// use lcow_layer::union::Union;
///
/// # fn open(name: &str) -> Result<Arc<Filesystem<FileDisk>>, Box<dyn std::error::Error>> {
/// #     Ok(Arc::new(Filesystem::open(FileDisk::open(name.as_ref())?)?))
/// # }
/// // A sandbox over two layers. The container's writes lie in `upper` of its disk.
/// let base = Subtree::open(open("base.vhd")?, b"")?;
/// let app = Subtree::open(open("app.vhd")?, b"")?;
/// let upper = Subtree::open(open("sandbox.vhd")?, b"upper")?;
/// let image = Union::new(vec![app, base]).ok_or("no layers")?;
/// let container = image.with_upper(upper);
/// let passwd = container.resolve(b"etc/passwd", Follow::Yes)?;
/// println!("{} bytes", passwd.node.stat().size);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Union<R> {
    layers: Vec<Subtree<R>>,
    root: Node,
}

impl<R> std::fmt::Debug for Union<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Union")
            .field("layers", &self.layers)
            .finish()
    }
}

impl<R> Clone for Union<R> {
    fn clone(&self) -> Self {
        Self {
            layers: self.layers.clone(),
            root: self.root.clone(),
        }
    }
}

impl<R: ReadAt> Union<R> {
    /// The union of these layers, nearest first; `None` if there are none.
    #[must_use]
    pub fn new(layers: Vec<Subtree<R>>) -> Option<Self> {
        let mut roots = layers.iter().zip(0..).map(|(layer, index)| Spot {
            layer: LayerIndex(index),
            inode: layer.root().inode().clone(),
        });
        let top = roots.next()?;
        let below = roots.collect();
        Some(Self {
            root: Node { top, below },
            layers,
        })
    }

    /// This union below one more layer: a container's own files over its image's.
    #[must_use]
    pub fn with_upper(&self, upper: Subtree<R>) -> Self {
        let top = Spot {
            layer: LayerIndex(0),
            inode: upper.root().inode().clone(),
        };
        let moved = self.root.spots().map(|spot| Spot {
            layer: LayerIndex(spot.layer.0.saturating_add(1)),
            inode: spot.inode.clone(),
        });
        let below = moved.collect();
        let layers = std::iter::once(upper).chain(self.layers.iter().cloned());
        Self {
            layers: layers.collect(),
            root: Node { top, below },
        }
    }

    /// The layers, nearest first.
    #[must_use]
    pub fn layers(&self) -> &[Subtree<R>] {
        &self.layers
    }

    fn fs(&self, layer: LayerIndex) -> &Filesystem<R> {
        // Every index was made from this list's own length.
        let index = usize::try_from(layer.0).unwrap_or(usize::MAX);
        self.layers[index].ext4()
    }

    /// What a directory or empty file carries for overlayfs.
    pub(crate) fn marks(&self, spot: &Spot) -> Result<Marks, TreeError> {
        let xattrs = self
            .fs(spot.layer)
            .xattrs(&spot.inode)
            .map_err(TreeError::on(spot.layer))?;
        Ok(Marks::of(&xattrs))
    }

    /// A file's attributes as a layer's disk has them, without what overlayfs keeps there for itself. Refuses what asks for more
    /// than a union by name.
    pub(crate) fn layer_xattrs(&self, node: &Node) -> Result<Vec<Xattr>, TreeError> {
        let layer = node.top.layer;
        let raw = self.fs(layer).xattrs(node.inode());
        let raw = raw.map_err(TreeError::on(layer))?;
        match Marks::of(&raw).unsupported(node.file_type()) {
            None => Ok(overlay::for_layer(raw, true)),
            Some(feature) => Err(TreeError::Overlay {
                at: node.identity(),
                feature,
            }),
        }
    }

    /// As [`marks`](Self::marks), refusing what asks for more than a union by name.
    fn checked_marks(&self, spot: &Spot) -> Result<Marks, TreeError> {
        let marks = self.marks(spot)?;
        match marks.unsupported(spot.inode.file_type) {
            None => Ok(marks),
            Some(feature) => Err(TreeError::Overlay {
                at: spot.identity(),
                feature,
            }),
        }
    }
}

impl<R: ReadAt> Tree for Union<R> {
    type Disk = R;

    fn root(&self) -> &Node {
        &self.root
    }

    fn shows_marks(&self) -> bool {
        false
    }

    fn node(&self, entry: &Entry) -> Result<Node, TreeError> {
        self.open_place(&entry.place)
    }

    fn lookup(&self, dir: &Node, name: &[u8]) -> Result<Option<Node>, TreeError> {
        must_be_directory(dir)?;
        self.lookup_merged(dir, name)
    }

    fn read_dir(&self, dir: &Node) -> Result<Vec<Entry>, TreeError> {
        must_be_directory(dir)?;
        self.read_merged(dir)
    }

    fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>, TreeError> {
        let layer = node.top.layer;
        let raw = self.fs(layer).xattrs(node.inode());
        Ok(overlay::seen(raw.map_err(TreeError::on(layer))?))
    }

    fn is_hidden(&self, node: &Node) -> Result<bool, TreeError> {
        Ok(may_be_xwhiteout(node.inode()) && self.marks(&node.top)?.whiteout)
    }

    fn open_file(&self, node: &Node) -> Result<FileData<'_, R>, TreeError> {
        self.checked_marks(&node.top)?;
        let layer = node.top.layer;
        self.fs(layer)
            .open_file(node.inode())
            .map_err(TreeError::on(layer))
    }

    fn filesystem(&self, layer: LayerIndex) -> &Filesystem<R> {
        self.fs(layer)
    }
}

impl<R: ReadAt> Union<R> {
    pub(crate) fn open_place(&self, place: &Place) -> Result<Node, TreeError> {
        let mut spots = Vec::new();
        for at in place.parts() {
            let inode = self.fs(at.layer).inode(at.inode);
            let inode = inode.map_err(TreeError::on(at.layer))?;
            let spot = Spot {
                layer: at.layer,
                inode,
            };
            let is_directory = spot.inode.file_type == FileType::Directory;
            if is_directory {
                self.checked_marks(&spot)?;
            }
            if !is_directory && !spots.is_empty() {
                // The listing said "directory": it lied, and the kernel, which asks the inode, stops here.
                break;
            }
            spots.push(spot);
            if !is_directory {
                break;
            }
        }
        let mut spots = spots.into_iter();
        let top = spots
            .next()
            .ok_or(TreeError::NotFound { path: Vec::new() })?;
        let below = spots.collect();
        Ok(Node { top, below })
    }
}
