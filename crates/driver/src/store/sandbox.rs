//! Sandboxes: the writable disk of a container, cloned from a blank one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use lcow_ext4::mkfs;
use lcow_ext4::reader::{Filesystem, Journal};

use super::disk_file::{self, is_blank, make_blank};
use super::layers::Reference;
use super::{Created, Inner, Store};
use crate::files::{self, Files};
use crate::lock::Locked;
use crate::options::{MAX_SANDBOX_BYTES, MIN_SANDBOX_BYTES};
use crate::record::{DiskFormat, Kind, LayerRecord, SandboxRecord};
use crate::vfs::{Handle, LockMode, OpenMode};
use crate::{DriverError, LayerId, SandboxOptions};

/// The seed of directory hashes in blank sandboxes. It need not be secret: who can fill a directory with names that collide can
/// only slow down their own container.
const HASH_SEED: [u8; 16] = *b"lcow sandbox dir";

/// A sandbox that only its holder may write to, until this is dropped or the process ends, however it ends.
///
/// The lock belongs to [`file`](SandboxGuard::file)'s open file description: a virtual machine that is given a duplicate of
/// that descriptor keeps the sandbox locked for as long as it runs, even when the process that started it is killed.
#[derive(Debug)]
pub struct SandboxGuard {
    reference: Reference,
    path: PathBuf,
    file: File,
    _locked: Locked,
}

impl SandboxGuard {
    /// The sandbox.
    #[must_use]
    pub fn id(&self) -> &LayerId {
        self.reference.id()
    }

    /// The disk's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk, open for reading and writing.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// A sandbox that nobody writes to while this is held. Any number may read at the same time.
#[derive(Debug)]
pub(crate) struct QuietSandbox {
    _reference: Reference,
    _locked: Locked,
}

impl Store {
    /// Makes a sandbox on top of `parent`: a blank file system of the size asked for, with `upper/` and `work/`.
    ///
    /// # Errors
    /// As [`Store::create`]; [`DriverError::InvalidOption`] for a size out of range. Nothing is left behind.
    pub fn create_read_write(
        &self,
        id: &LayerId,
        parent: Option<&LayerId>,
        options: &SandboxOptions,
    ) -> Result<Created, DriverError> {
        let size = options.size.unwrap_or(self.0.options.sandbox_size);
        let format = options.format.unwrap_or(self.0.options.sandbox_format);
        if !(MIN_SANDBOX_BYTES..=MAX_SANDBOX_BYTES).contains(&size) || !size.is_multiple_of(4096) {
            return Err(DriverError::InvalidOption {
                key: "size".into(),
                value: size.to_string(),
                origin: crate::Origin::Call,
                allowed: "16 MiB to 16 TiB, in whole 4 KiB blocks".into(),
            });
        }
        let half = self.0.half_layer(self, id, parent)?;
        let blank = self.blank(format, size, options.journal)?;
        let path = half.dir.join(format!("sandbox.{}", format.as_str()));
        let uuid = identify(files::random_bytes()?);
        clone_blank(&self.0.files, &blank, &path, format, size, uuid)?;
        let mut record = LayerRecord::new();
        record.format = format;
        record.sandbox = Some(SandboxRecord {
            size,
            uuid: hyphenated(&uuid),
            journal: options.journal,
        });
        half.write_record(&record)?;
        if half.place(&self.0, id)? {
            Ok(Created {
                path: self.0.path(id),
            })
        } else {
            Err(DriverError::AlreadyExists { id: id.clone() })
        }
    }

    /// Takes a sandbox for writing: to run a container on it.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::WrongKind`], [`DriverError::InUse`] if a live process (or a virtual machine
    /// that it left) writes to it or reads it, [`DriverError::Io`].
    pub fn lock_sandbox(&self, id: &LayerId) -> Result<SandboxGuard, DriverError> {
        self.writable()?;
        let reference = self.reference(id)?;
        let path = self.0.sandbox_path(id)?;
        match self
            .0
            .files
            .try_lock(&path, OpenMode::Write, LockMode::Exclusive)?
        {
            Ok(locked) => {
                // A duplicate shares the lock.
                let file = match locked.file().as_file() {
                    Some(file) => file
                        .try_clone()
                        .map_err(DriverError::io("opening", &path))?,
                    None => {
                        return Err(DriverError::Unsupported {
                            what: "a sandbox that is no file of the host".into(),
                            path: Some(path),
                        });
                    }
                };
                Ok(SandboxGuard {
                    reference,
                    path,
                    file,
                    _locked: locked,
                })
            }
            Err(file) => Err(DriverError::InUse {
                id: id.clone(),
                by: file.holders(),
            }),
        }
    }

    /// Makes a sandbox fit to be mounted below another: read-only, and without the means to replay anything. Writes what a crash
    /// left in the log of its file to its places.
    ///
    /// # Errors
    /// [`DriverError::InUse`], [`DriverError::Unsupported`] if the file system's journal is to be replayed, which only mounting
    /// the sandbox itself does.
    pub(crate) fn settle(&self, disk: &crate::Disk) -> Result<(), DriverError> {
        let files = &self.0.files;
        let _reference = self.reference(&disk.id)?;
        if disk_file::LayerDisk::open(files, &disk.path, disk.format)?.has_log() {
            self.writable()?;
            match files.try_lock(&disk.path, OpenMode::Write, LockMode::Exclusive)? {
                Ok(locked) => disk_file::settle(&disk.path, locked.file())?,
                Err(file) => {
                    return Err(DriverError::InUse {
                        id: disk.id.clone(),
                        by: file.holders(),
                    });
                }
            }
        }
        let fs = Filesystem::open(self.open_disk(disk)?);
        let fs = fs.map_err(|e| super::read::read_error("reading", &disk.id, e))?;
        match fs.info().journal {
            Journal::Replayed { .. } => Err(DriverError::Unsupported {
                what: format!(
                    "mounting something on sandbox {}, which was not stopped cleanly and has to be mounted itself first,",
                    disk.id
                ),
                path: None,
            }),
            _ => Ok(()),
        }
    }

    /// Keeps writers from a sandbox while it is read.
    pub(crate) fn quiet_sandbox(&self, id: &LayerId) -> Result<QuietSandbox, DriverError> {
        let reference = self.reference(id)?;
        let path = self.0.sandbox_path(id)?;
        match self
            .0
            .files
            .try_lock(&path, OpenMode::Read, LockMode::Shared)?
        {
            Ok(locked) => Ok(QuietSandbox {
                _reference: reference,
                _locked: locked,
            }),
            Err(file) => Err(DriverError::InUse {
                id: id.clone(),
                by: file.holders(),
            }),
        }
    }

    /// Deletes all cached blank sandboxes, and gives their names. They are made again when they are needed.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    pub fn drop_cache(&self) -> Result<Vec<String>, DriverError> {
        self.writable()?;
        let directory = self.0.root.join("cache");
        let mut names = Vec::new();
        for entry in self.0.files.list(&directory)? {
            if entry.kind == crate::vfs::FileKind::File {
                self.0.files.unlink(&directory.join(&entry.name))?;
                names.push(entry.name.to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The cached blank sandbox of a format and size, made now if it is missing.
    fn blank(&self, format: DiskFormat, size: u64, journal: bool) -> Result<Handle, DriverError> {
        let plain = if journal { "" } else { "-nojournal" };
        let path = self
            .0
            .root
            .join("cache")
            .join(format!("sandbox-{size}{plain}.{}", format.as_str()));
        // Opened here: whoever drops the cache meanwhile takes nothing from who has it open.
        let there = || match is_blank(&self.0.files, &path, format, size)? {
            true => self.0.files.open_if_there(&path),
            false => Ok(None),
        };
        if let Some(blank) = there()? {
            return Ok(blank);
        }
        let _one = self.0.blanks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blank) = there()? {
            return Ok(blank);
        }
        let temp = self.temp_dir("blank")?;
        let half = temp.path().join("blank");
        let options = mkfs::FormatOptions {
            size,
            journal,
            // Each clone gets its own identity; the blank is never mounted.
            uuid: [0; 16],
            hash_seed: HASH_SEED,
            label: "",
            root_dirs: &[("upper", directory()), ("work", directory())],
        };
        let blank = self.0.files.create_new(&half)?;
        make_blank(&half, &blank, format, &options)?;
        // Two processes that make the same blank make the same bytes: the later one's takes the earlier one's place.
        self.0.files.rename(&half, &path)?;
        self.0.files.sync_dir(&self.0.root.join("cache"))?;
        Ok(blank)
    }
}

impl Inner {
    fn sandbox_path(&self, id: &LayerId) -> Result<PathBuf, DriverError> {
        match self.kind(id)? {
            (Kind::Sandbox, Some((path, _))) => Ok(path),
            (kind, _) => Err(DriverError::WrongKind {
                id: id.clone(),
                is: kind.describe(),
                needs: "a sandbox",
            }),
        }
    }

    /// [`DriverError::InUse`] if somebody holds the layer's sandbox, if it has one.
    pub(super) fn sandbox_is_free(&self, id: &LayerId) -> Result<(), DriverError> {
        let (Kind::Sandbox, Some((path, _))) = self.kind(id)? else {
            return Ok(());
        };
        match self
            .files
            .try_lock(&path, OpenMode::Read, LockMode::Exclusive)?
        {
            Ok(_) => Ok(()),
            Err(file) => Err(DriverError::InUse {
                id: id.clone(),
                by: file.holders(),
            }),
        }
    }
}

/// Clones a blank into a new file and gives the clone its own identity.
fn clone_blank(
    files: &Files,
    from: &Handle,
    path: &Path,
    format: DiskFormat,
    size: u64,
    uuid: [u8; 16],
) -> Result<(), DriverError> {
    let to = files.create_new(path)?;
    let how = to
        .become_clone_of(&**from)
        .map_err(DriverError::io("cloning to", path))?;
    tracing::debug!(path = %path.display(), ?how, "cloned a blank sandbox");
    disk_file::identify(path, &to, format, size, uuid)
}

fn directory() -> lcow_ext4::writer::Metadata {
    lcow_ext4::writer::Metadata {
        permissions: 0o755,
        ..Default::default()
    }
}

/// Makes random bytes a version 4 UUID (RFC 9562 §5.4).
fn identify(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

fn hyphenated(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in uuid.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
