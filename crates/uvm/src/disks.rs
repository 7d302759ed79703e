//! Disks as they are handed to a machine, and looked at before and after.

use std::fs::File;
use std::path::PathBuf;

use lcow_blockio::FileDisk;
use lcow_disk::vhdx;
use lcow_protocol::DiskId;

use crate::UvmError;
use crate::vmm::NewDisk;

/// How a disk lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskFormat {
    /// As the first bytes of it.
    #[default]
    Raw,
    /// As a dynamic VHDX. The monitor reads and writes it, and its structure is checked by us before the disk is attached and
    /// after it was detached: what the monitor makes of a damaged one is not left to find out.
    Vhdx,
}

/// A disk to attach.
#[derive(Debug)]
pub struct DiskSpec {
    /// Open for reading, and for writing unless `read_only`; on a file system that takes positioned reads.
    pub file: File,
    /// How the disk lies in it.
    pub format: DiskFormat,
    /// Size of the disk in bytes, a footer excluded; a multiple of 512.
    pub bytes: u64,
    /// Mounted `ro,noload`, and nothing can write it.
    pub read_only: bool,
    /// The serial number by which the guest makes sure that it found the right disk: 1–20 ASCII letters and digits, different
    /// for every disk. Empty: one is made up.
    pub serial: String,
}

impl DiskSpec {
    /// A layer's disk, in the file that the caller opened.
    #[must_use]
    pub fn of(disk: &lcow_driver::Disk, file: File) -> Self {
        Self {
            file,
            format: match disk.format {
                lcow_driver::DiskFormat::Vhd => DiskFormat::Raw,
                lcow_driver::DiskFormat::Vhdx => DiskFormat::Vhdx,
            },
            bytes: disk.bytes,
            read_only: disk.read_only,
            serial: String::new(),
        }
    }

    /// The disk as the monitor takes it, and what to look at when it is back, if there is anything.
    pub(crate) fn prepare(self, id: DiskId) -> Result<(NewDisk, Option<Written>), UvmError> {
        let bad = |option, detail: String| UvmError::BadOption { option, detail };
        if self.bytes == 0 || !self.bytes.is_multiple_of(512) {
            return Err(bad(
                "disk size",
                format!("{} is not a multiple of 512 bytes", self.bytes),
            ));
        }
        let size = match self.format {
            DiskFormat::Raw => {
                let metadata = self.file.metadata();
                metadata
                    .map_err(UvmError::io("look at", PathBuf::from("disk")))?
                    .len()
            }
            DiskFormat::Vhdx => check(&self.file, "before it is attached", self.read_only)?,
        };
        let fits = match self.format {
            DiskFormat::Raw => size >= self.bytes,
            DiskFormat::Vhdx => size == self.bytes,
        };
        if !fits {
            return Err(bad(
                "disk size",
                format!(
                    "the file has {size} bytes, the disk should have {}",
                    self.bytes
                ),
            ));
        }
        let serial = if self.serial.is_empty() {
            format!("lcow{id}")
        } else {
            self.serial
        };
        if serial.len() > 20 || !serial.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(bad(
                "disk serial",
                format!("{serial:?} is not 1 to 20 letters and digits"),
            ));
        }
        let written = if self.format == DiskFormat::Vhdx && !self.read_only {
            let file = self.file.try_clone();
            Some(Written(
                file.map_err(UvmError::io("open", PathBuf::from("disk")))?,
            ))
        } else {
            None
        };
        let disk = NewDisk {
            file: self.file,
            format: self.format,
            bytes: self.bytes,
            read_only: self.read_only,
            serial,
        };
        Ok((disk, written))
    }
}

/// The file of a disk that the monitor changes the structure of.
#[derive(Debug)]
pub(crate) struct Written(File);

impl Written {
    /// Checks what became of it.
    pub(crate) fn check(&self) -> Result<(), UvmError> {
        check(&self.0, "after it was detached", false).map(drop)
    }
}

/// Checks a VHDX; the size of the disk in it.
fn check(file: &File, when: &'static str, read_only: bool) -> Result<u64, UvmError> {
    let damaged = |detail: String| UvmError::DamagedDisk { when, detail };
    let file = file
        .try_clone()
        .map_err(UvmError::io("open", PathBuf::from("disk")))?;
    let report = vhdx::check(FileDisk::from(file)).map_err(|error| match error {
        vhdx::VhdxError::Io {
            operation, source, ..
        } => UvmError::io(operation, PathBuf::from("disk"))(source),
        other => damaged(other.to_string()),
    })?;
    if let Some(first) = report.problems.first() {
        let more = match report.problem_count {
            1 => String::new(),
            n => format!(", and {} more problems", n - 1),
        };
        return Err(damaged(format!(
            "{} at byte {}: {}{more}",
            first.structure, first.offset, first.detail
        )));
    }
    if read_only && report.info.replayed > 0 {
        // It would have to be written to its places first, which only a writable file allows.
        return Err(damaged("its log was not replayed since a crash".to_owned()));
    }
    Ok(report.info.virtual_size)
}
