//! Container images: from the forms they travel in to layers in the store, and back.
//!
//! # Inputs
//! An OCI image layout (a directory), an OCI archive, a `docker save` archive (old, and new with an OCI layout inside), and
//! the tar of a root file system, which becomes an image of one layer. Archives may be gzip, zstd, xz or bzip2 as a whole,
//! and come from a file or from a stream. What an input is, is told by its first bytes.
//!
//! ```text
//!  file ───────► index of the archive ─┐                       ┌─► store: one disk for each layer
//!  directory ──────────────────────────┼─► plan ─► layer by ───┤
//!  stream ─► what comes early is kept ─┘           layer       └─► images/: manifests, configurations, names
//! ```
//!
//! In a stream, a layer is converted as it passes if all that says where it belongs came before it, as in the archives
//! that [`Images::save`] writes; other large blobs wait in the store's `tmp/`.
//!
//! # What is kept
//! `images/` in the data root is itself an OCI image layout: `index.json` gives each image's name and manifest, `blobs/`
//! holds manifests and configurations as they came. The layers' blobs are not there: a layer lives as a disk in the store,
//! under its chain ID, and its tar is made again from that, byte for byte.
//!
//! An image's id is the digest of its configuration: the same in whatever form the image came or goes.
//!
//! # Trust
//! Every document and every blob is held to its digest and its size, and every layer's tar to the diff ID in the
//! configuration, before anything becomes visible. Documents are read up to 4 MiB, images up to 500 layers; no name from an
//! input is ever used as a path.
//!
//! # Lifecycle, I/O, errors
//! [`Images`] is a view of an open [`Store`](lcow_driver::Store) and holds nothing itself; processes that work in the same
//! data root see each other's changes at once. Everything blocks. A failed or cancelled load leaves nothing behind. Errors
//! are [`ImageError`]: they name the input, the digest or the offset, and tell *not an image*, *corrupt*, *truncated*,
//! *unsupported* and *refused* apart.
//!
//! ```no_run
//! use lcow_driver::{Cancel, OpenOptions, Store};
//! use lcow_image::{Images, Input, LoadOptions};
//!
//! let store = Store::open("/var/lib/lcow".as_ref(), OpenOptions::default())?;
//! let images = Images::open(&store)?;
//! let loaded = images.load(Input::Path("demo.tar".into()), &LoadOptions::default(), &Cancel::new(), &|_| {})?;
//! println!("{}", loaded[0].image.id);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod archive;
mod commit;
mod compress;
mod documents;
mod error;
mod hashing;
mod load;
mod name;
mod plan;
mod platform;
mod records;
mod save;
mod source;
mod write;

use std::io::Read;
use std::path::PathBuf;

pub use commit::CommitOptions;
pub use documents::{
    Config, Descriptor, History, MAX_DOCUMENT, MAX_LAYERS, Manifest, RootFs, RunConfig,
};
pub use error::{ErrorKind, ImageError};
pub use load::{Event, LoadOptions, Loaded};
pub use name::{DEFAULT_TAG, Name};
pub use platform::Platform;
pub use records::{Image, Images, Removed, Size};
pub use save::Saved;

/// Where an image comes from.
pub enum Input<'a> {
    /// A file or a directory.
    Path(PathBuf),
    /// Bytes that can be read once.
    Stream {
        /// What people know it as, for errors.
        name: String,
        /// The bytes.
        reader: Box<dyn Read + Send + 'a>,
    },
}
