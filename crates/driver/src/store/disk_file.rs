//! The files that disks lie in: a fixed VHD, or a VHDX.

use std::io;
use std::ops::Range;
use std::path::Path;

use lcow_blockio::{MemDisk, ReadAt, SubRange, WriteAt};
use lcow_disk::vhd::{self, VhdError};
use lcow_disk::vhdx::{self, CreateOptions, Guid, SessionGuids, VhdxError};
use lcow_ext4::mkfs::{self, FormatOptions};
use lcow_layer::apply::{ApplyError, ApplyOptions, apply};

use crate::files::{Files, random_bytes};
use crate::record::DiskFormat;
use crate::vfs::{Handle, OpenMode, VfsFile};
use crate::{DriverError, ErrorKind};

/// The disk in a layer's file, for reading: without what it is wrapped in.
#[derive(Debug)]
pub struct LayerDisk(Contents);

#[derive(Debug)]
enum Contents {
    Vhd(SubRange<Handle>),
    /// A log that was left behind is replayed in memory.
    Vhdx(Box<vhdx::Image<Handle>>),
    /// No file at all.
    Memory(MemDisk),
}

impl LayerDisk {
    pub(super) fn open(
        files: &Files,
        path: &Path,
        format: DiskFormat,
    ) -> Result<Self, DriverError> {
        let file = files.open(path, OpenMode::Read)?;
        Ok(Self(match format {
            DiskFormat::Vhd => Contents::Vhd(vhd::open(file).map_err(|e| vhd_error(path, e))?.1),
            DiskFormat::Vhdx => {
                let image = vhdx::open(file).map_err(|e| vhdx_error(path, e))?;
                Contents::Vhdx(Box::new(image))
            }
        }))
    }

    /// A file system without files, in memory.
    pub(super) fn empty() -> Result<Self, ApplyError> {
        let disk = MemDisk::new();
        // The end of an archive.
        apply(&[0; 1024][..], &disk, None, &ApplyOptions::default())?;
        Ok(Self(Contents::Memory(disk)))
    }

    /// Whether the file has changes that are only in its log yet.
    pub(super) fn has_log(&self) -> bool {
        matches!(&self.0, Contents::Vhdx(image) if image.info().replayed > 0)
    }

    fn inner(&self) -> &dyn ReadAt {
        match &self.0 {
            Contents::Vhd(disk) => disk,
            Contents::Vhdx(disk) => disk.as_ref(),
            Contents::Memory(disk) => disk,
        }
    }
}

impl ReadAt for LayerDisk {
    fn size(&self) -> io::Result<u64> {
        self.inner().size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner().read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner().next_data(offset)
    }
}

/// The size of the disk in a file, in bytes.
pub(super) fn disk_size(
    files: &Files,
    path: &Path,
    format: DiskFormat,
) -> Result<u64, DriverError> {
    LayerDisk::open(files, path, format)?
        .size()
        .map_err(DriverError::io("reading", path))
}

/// What is wrong with the structure of a VHDX.
pub(super) fn vhdx_problems(files: &Files, path: &Path) -> Result<Vec<String>, DriverError> {
    let file = files.open(path, OpenMode::Read)?;
    let report = vhdx::check(file).map_err(|e| vhdx_error(path, e))?;
    Ok(report
        .problems
        .iter()
        .map(|p| format!("{} at byte {}: {}", p.structure, p.offset, p.detail))
        .collect())
}

/// Writes what is only in a VHDX's log to its places. The caller keeps everybody else from the file.
pub(super) fn settle(path: &Path, file: &Handle) -> Result<(), DriverError> {
    vhdx::open_writable(file, session()?)
        .and_then(vhdx::Disk::close)
        .map_err(|e| vhdx_error(path, e))?;
    Ok(())
}

/// Makes a new file a blank disk of `options.size` bytes, and syncs it. The same options give the same bytes.
pub(super) fn make_blank(
    path: &Path,
    file: &Handle,
    format: DiskFormat,
    options: &FormatOptions<'_>,
) -> Result<(), DriverError> {
    let format_error = |e| format_error(path, e);
    match format {
        DiskFormat::Vhd => {
            mkfs::format(file, options).map_err(format_error)?;
            vhd::write_footer(file, options.size, [0; 16]).map_err(|e| vhd_error(path, e))?;
        }
        DiskFormat::Vhdx => {
            let half = Unsynced(&**file);
            let id = Guid([0; 16]);
            let made = vhdx::create(&half, &CreateOptions::new(options.size, id))
                .and_then(|()| vhdx::open_writable(&half, BLANK_SESSION.into()));
            let vhdx = made.map_err(|e| vhdx_error(path, e))?;
            mkfs::format(&vhdx, options).map_err(format_error)?;
            vhdx.close().map_err(|e| vhdx_error(path, e))?;
        }
    }
    file.sync().map_err(DriverError::io("syncing", path))
}

/// A blank's VHDX needs GUIDs that are not zero, and need not be anybody's own: every clone gets new ones.
const BLANK_SESSION: [[u8; 16]; 3] = [
    *b"lcow blank file ",
    *b"lcow blank data ",
    *b"lcow blank log  ",
];

/// Whether a file is a whole blank of that size. It was synced before it got its name; this finds out what was done to it since.
pub(super) fn is_blank(
    files: &Files,
    path: &Path,
    format: DiskFormat,
    size: u64,
) -> Result<bool, DriverError> {
    let Some(found) = files.look(path)?.filter(crate::vfs::Metadata::is_file) else {
        return Ok(false);
    };
    if format == DiskFormat::Vhd {
        return Ok(found.len == size + vhd::FOOTER_LEN);
    }
    match vhdx::check(files.open(path, OpenMode::Read)?) {
        Ok(report) => Ok(report.is_clean() && report.info.virtual_size == size),
        Err(VhdxError::Io { source, .. }) => Err(DriverError::io("reading", path)(source)),
        Err(_) => Ok(false),
    }
}

/// Gives a clone of a blank an identity of its own, that of its container included, and syncs it.
pub(super) fn identify(
    path: &Path,
    file: &Handle,
    format: DiskFormat,
    size: u64,
    uuid: [u8; 16],
) -> Result<(), DriverError> {
    let format_error = |e| format_error(path, e);
    match format {
        DiskFormat::Vhd => {
            mkfs::set_uuid(&SubRange::new(file, 0, size), uuid).map_err(format_error)?;
            vhd::write_footer(file, size, uuid).map_err(|e| vhd_error(path, e))?;
        }
        DiskFormat::Vhdx => {
            let vhdx = vhdx::open_writable(Unsynced(&**file), session()?);
            let vhdx = vhdx.map_err(|e| vhdx_error(path, e))?;
            mkfs::set_uuid(&vhdx, uuid).map_err(format_error)?;
            vhdx.set_id(Guid(uuid))
                .and_then(|()| vhdx.close())
                .map_err(|e| vhdx_error(path, e))?;
        }
    }
    file.sync().map_err(DriverError::io("syncing", path))
}

fn session() -> Result<SessionGuids, DriverError> {
    let bytes = [random_bytes()?, random_bytes()?, random_bytes()?];
    Ok(bytes.into())
}

/// A file that nobody else sees yet: it is synced once, when all of it is there.
struct Unsynced<'a>(&'a dyn VfsFile);

impl ReadAt for Unsynced<'_> {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
}

impl WriteAt for Unsynced<'_> {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_all_at(offset, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.zero_range(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn format_error(path: &Path, error: mkfs::FormatError) -> DriverError {
    match error {
        mkfs::FormatError::Io {
            operation, source, ..
        } => DriverError::io(operation, path)(source),
        error => DriverError::Format {
            path: path.to_owned(),
            kind: ErrorKind::Invalid,
            source: Box::new(error),
        },
    }
}

pub(super) fn vhd_error(path: &Path, error: VhdError) -> DriverError {
    match error {
        VhdError::Io {
            operation, source, ..
        } => DriverError::io(operation, path)(source),
        VhdError::Unsupported { .. } | VhdError::Differencing => unsupported(path, &error),
        error => DriverError::corrupt(path, error),
    }
}

pub(super) fn vhdx_error(path: &Path, error: VhdxError) -> DriverError {
    match error {
        VhdxError::Io {
            operation, source, ..
        } => DriverError::io(operation, path)(source),
        VhdxError::Unsupported { .. } | VhdxError::Differencing => unsupported(path, &error),
        error => DriverError::corrupt(path, error),
    }
}

fn unsupported(path: &Path, error: &dyn std::error::Error) -> DriverError {
    DriverError::Unsupported {
        what: error.to_string(),
        path: Some(path.to_owned()),
    }
}
