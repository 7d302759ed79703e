//! The data root and the graph driver: where layers live, how they come and go, and who uses them.
//!
//! ```text
//!   <data root>/  store.json  lock  cache/  scratch/  images/  containers/  tmp/  uvm/
//!                 <layer id>/  layer.vhd | sandbox.vhd   layerchain.json  layer.json  diff.split.zst
//!                 <layer id>-removing/
//!
//!   Store ─────────── everything that needs no VM: create, apply, diff, changes, commit, remove, …
//!     ▲
//!   GraphDriver<M> ── get and put on top, through a Mounter (a utility VM, the host, a fake)
//! ```
//!
//! # Lifecycle
//! [`Store::open`] makes the data root if need be, locks it (alone for a daemon, together for commands), holds `store.json`
//! against what this version knows, and finishes what dead processes left. A store is closed by dropping all its clones.
//!
//! # I/O
//! Plain blocking files. Everything is made under `tmp/` or a temporary name, fsynced, renamed, and its directory fsynced, so
//! that after a crash at any point each layer is there whole or not at all. Locks are `flock`s: a process that dies holds
//! none. Long operations look at a [`Cancel`] and leave nothing behind when it is set.
//!
//! Tars are converted in a child process without privileges, if the program calls [`isolate::child_main_if_asked`] first
//! thing in `main`.
//!
//! # Errors
//! One enum, [`DriverError`], with [`kind`](DriverError::kind) for programs and [`hint`](DriverError::hint) for people.
//!
//! # Example
//! ```
//! use lcow_driver::{ApplyRequest, Cancel, Input, LayerId, OpenOptions, SandboxOptions, Store};
//!
//! let root = tempfile::tempdir()?;
//! let store = Store::open(root.path(), OpenOptions::default())?;
//! let base = LayerId::new("base")?;
//! let tar = [0; 1024]; // the end of an archive: an empty layer
//! store.import(&base, None, Input::Reader(&mut &tar[..]), &ApplyRequest::default(), &Cancel::new())?;
//!
//! let sandbox = LayerId::new("sandbox")?;
//! let options = SandboxOptions { size: Some(64 << 20), ..SandboxOptions::default() };
//! store.create_read_write(&sandbox, Some(&base), &options)?;
//! assert_eq!(store.children(&base)?, [sandbox]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cancel;
mod clone;
mod driver;
mod error;
mod files;
mod id;
pub mod isolate;
mod lock;
mod mounter;
mod options;
mod record;
mod store;
pub mod vfs;

pub use cancel::Cancel;
pub use driver::{Cleanup, GraphDriver, Handle, NAME, Status};
pub use error::{ConvertError, DriverError, ErrorKind};
pub use files::TempDir;
pub use id::{LayerId, MAX_ID, REMOVING, RESERVED};
pub use isolate::Isolation;
pub use lcow_layer::changes::{Change, ChangeKind};
pub use lcow_layer::digest::Digest;
pub use lock::{CommitGuard, FileLock, Holder};
pub use mounter::{Disk, Frozen, MachineStatus, MountError, MountRequest, Mounter, MounterStatus};
pub use options::{
    Accel, DEFAULT_TIMEOUT, MAX_SANDBOX_BYTES, MIN_SANDBOX_BYTES, MounterKind, OPTION_VARIABLES,
    Options, Origin, SandboxOptions, Setting, TIMEOUT_VARIABLE, parse_size,
};
pub use record::{
    AppliedRecord, CompressedRecord, DiskFormat, Kind, LayerRecord, SandboxRecord, StoreRecord,
};
pub use store::{
    Access, Against, Applied, ApplyRequest, CacheEntry, Chain, ChainFile, Created, DiffSummary,
    FileGetter, Finding, Input, LayerDisk, LayerFile, LayerFs, LayerSpace, Metadata, OpenOptions,
    Placed, PutAside, Recovery, Reference, Removed, Repair, SandboxGuard, Space, Staged, Store,
    StoreStatus, VerifyReport,
};
