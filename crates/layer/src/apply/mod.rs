//! tar → disk, in one pass.
//!
//! # What a tar's entries come to
//! The tree is what GNU tar leaves when root extracts the archive into an empty directory, with these differences:
//!
//! * Nothing outside is ever touched: there is no outside. A name that climbs above the root, a path through a symlink, a hard link to what the
//!   archive did not bring are errors ([`Refusal`]), and so is all that [`crate::tar::Malformed`] lists.
//! * A name in use is taken over whatever is there: a file replaces a directory with all below it. A directory over a directory
//!   only updates metadata.
//! * Directories that no entry made are 0755, root's, with all times 0. Access and change times that the archive does not give are the
//!   modification time's; the kernel would take the clock's. Times that ext4 can't hold are brought to its nearest.
//! * A hard link's own metadata does not count: that of the file does.
//! * Attributes in namespaces that Linux does not have, `user.*` on what is neither file nor directory, and ACLs where there can be none, are left out,
//!   as the kernel would refuse them.
//!
//! # Whiteouts
//! With [`ApplyOptions::overlay`], `.wh.NAME` becomes a character device 0:0 called NAME (permissions 0, the entry's owner and times), `.wh..wh..opq` makes its
//! directory opaque, other `.wh..wh.` names are dropped. If NAME itself is in the layer too, before or after, it stays;
//! a directory is then opaque, since the lower one was deleted.
//!
//! # Identity
//! The file system's UUID and hash seed, the VHD's id, and a verity tree's salt and UUID follow from the diff ID, each by its own
//! purpose string ([`crate::digest::Digest::derive`]). No clock is read, nothing is random. [`convert`] does without the diff ID.
//!
//! # Threads
//! Decompression and hashing run beside the caller's thread, which reads plain inputs and writes the disk. They end before [`apply`] returns; if the input's `read` blocks, that is
//! waited for.

mod error;
mod layer;
mod path;
mod pipeline;
mod record;

use std::io::{Read, Write};

use lcow_blockio::WriteAt;
use lcow_disk::verity::{self, BlockHash};
use lcow_disk::vhd;
use lcow_ext4::writer::{Identity, Writer, WriterOptions};

use crate::digest::Digest;
use crate::split::SplitWriter;
use crate::tar::Reader;

pub use error::{ApplyError, Refusal};
use layer::Layer;
use pipeline::Pipeline;
use record::Recorder;

/// What a verity tree's hashes are salted with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Salt {
    /// 16 bytes that follow from the diff ID.
    #[default]
    Derived,
    /// These, at most 256.
    Given(Vec<u8>),
}

/// How a tar is to be applied.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// Turns OCI whiteouts into overlayfs's; off, `.wh.` names are names like any other. On by default.
    pub overlay: bool,
    /// Keeps small files and directories in their inodes ([`WriterOptions::inline_data`]). Off by default.
    pub inline: bool,
    /// The largest disk to make, in bytes: up to 16 TiB, 128 GiB by default. Part of what the disk's bytes follow from.
    pub max_size: u64,
    /// Puts a fixed VHD's footer behind the file system. Off by default.
    pub vhd: bool,
    /// Puts a dm-verity tree behind the file system, before the footer. Off by default. The file system is read back for it.
    pub verity: Option<Salt>,
    /// How many times larger than the compressed input the tar may be, once it is over [`ratio_floor`](Self::ratio_floor).
    pub max_ratio: u32,
    /// Up to this many bytes of tar no ratio is too high; 1 GiB by default.
    pub ratio_floor: u64,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self {
            overlay: true,
            inline: false,
            max_size: 128 << 30,
            vhd: false,
            verity: None,
            // Deflate's own limit is 1,032.
            max_ratio: 1100,
            ratio_floor: 1 << 30,
        }
    }
}

/// A compressed input, as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressedInput {
    /// The compression.
    pub format: crate::compress::Compression,
    /// The digest of all compressed bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// What was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the plain tar, all of it.
    pub diff_id: Digest,
    /// The plain tar's size in bytes.
    pub tar_size: u64,
    /// Entries in the tar, extended headers not counted, whiteouts and later replaced ones included.
    pub entries: u64,
    /// The file system's size in bytes; a verity tree and a VHD footer come on top.
    pub disk_size: u64,
    /// The root hash of the verity tree, if one was asked for.
    pub verity_root: Option<BlockHash>,
    /// For a compressed input, what was read.
    pub compressed: Option<CompressedInput>,
}

/// What was converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Converted {
    /// The plain tar's size in bytes.
    pub tar_size: u64,
    /// As [`Applied::entries`].
    pub entries: u64,
    /// As [`Applied::disk_size`].
    pub disk_size: u64,
    /// As [`Applied::verity_root`].
    pub verity_root: Option<BlockHash>,
    /// How the input was compressed.
    pub compression: crate::compress::Compression,
}

/// Makes a disk of a layer's tar, plain or compressed, and (with `split`) the sidecar that [`crate::export::exact`] needs.
///
/// `disk` must be empty. The same tar and options give the same bytes of disk and sidecar. Nothing is synced.
///
/// # Errors
/// See [`ApplyError`]. What was written by then is of no use; removing it is the caller's, who knows where it is.
pub fn apply<D: WriteAt>(
    input: impl Read + Send,
    disk: D,
    split: Option<&mut dyn Write>,
    options: &ApplyOptions,
) -> Result<Applied, ApplyError> {
    let record = match split {
        Some(_) => Recorder::Split(Box::new(SplitWriter::new().map_err(|e| sidecar(0, e))?)),
        None => Recorder::Nothing,
    };
    let made = make(input, disk, record, true, options)?;
    let totals = made.totals;
    if let (Recorder::Split(record), Some(out)) = (made.record, split) {
        record
            .finish(&made.identity, out)
            .map_err(|e| sidecar(totals.tar_size, e))?;
    }
    Ok(Applied {
        diff_id: made.identity,
        tar_size: totals.tar_size,
        entries: made.entries,
        disk_size: made.disk_size,
        verity_root: made.verity_root,
        compressed: totals.compressed,
    })
}

/// Makes a disk of a tar as [`apply`] does, without hashing it: half the work where nobody asks for the diff ID.
///
/// The disk's identity follows from the tar's size and a checksum of its headers instead, so the same tar and options
/// still give the same bytes, and other ones than `apply`'s: those of UUID, hash seed, and all that depends on them.
///
/// # Errors
/// As [`apply`].
pub fn convert<D: WriteAt>(
    input: impl Read + Send,
    disk: D,
    options: &ApplyOptions,
) -> Result<Converted, ApplyError> {
    let made = make(input, disk, Recorder::Sum(0), false, options)?;
    Ok(Converted {
        tar_size: made.totals.tar_size,
        entries: made.entries,
        disk_size: made.disk_size,
        verity_root: made.verity_root,
        compression: made.totals.format,
    })
}

/// A finished disk.
struct Made {
    totals: pipeline::Totals,
    /// The diff ID, or what stands in for it.
    identity: Digest,
    entries: u64,
    disk_size: u64,
    verity_root: Option<BlockHash>,
    record: Recorder,
}

fn make<D: WriteAt>(
    input: impl Read + Send,
    disk: D,
    record: Recorder,
    hashed: bool,
    options: &ApplyOptions,
) -> Result<Made, ApplyError> {
    let mut writer_options = WriterOptions::default();
    writer_options.max_size = options.max_size;
    writer_options.inline_data = options.inline;
    let writer = Writer::new(&disk, &writer_options)?;
    std::thread::scope(|scope| {
        let pipeline = Pipeline::start(scope, input, options, hashed)?;
        let mut layer = Layer::new(Reader::new(pipeline, record), writer, options);
        layer.run()?;
        let (reader, writer) = layer.into_parts();
        let entries = reader.entries();
        let (pipeline, record) = reader.into_inner();
        let totals = pipeline.finish();
        let identity = totals
            .diff_id
            .unwrap_or_else(|| record.stand_in(totals.tar_size));
        let summary = writer.finish(&Identity {
            uuid: identity.derive_uuid("lcow layer: file system UUID"),
            hash_seed: identity.derive("lcow layer: directory hash seed"),
        })?;
        let tree = match &options.verity {
            Some(salt) => {
                let derived = identity.derive("lcow layer: verity salt");
                let salt = match salt {
                    Salt::Derived => &derived,
                    Salt::Given(salt) => salt.as_slice(),
                };
                let uuid = identity.derive_uuid("lcow layer: verity UUID");
                Some(verity::build(&disk, summary.size_bytes, salt, uuid)?)
            }
            None => None,
        };
        if options.vhd {
            let id = identity.derive_uuid("lcow layer: VHD unique id");
            let end = tree.map_or(summary.size_bytes, |tree| tree.end);
            vhd::write_footer(&disk, end, id)?;
        }
        Ok(Made {
            totals,
            identity,
            entries,
            disk_size: summary.size_bytes,
            verity_root: tree.map(|tree| tree.root),
            record,
        })
    })
}

fn sidecar(offset: u64, source: std::io::Error) -> ApplyError {
    ApplyError::Io {
        operation: "write the split sidecar",
        offset,
        source,
    }
}
