//! What a machine boots: a kernel of the host's, and an initrd made of the agent and that kernel's modules.
//!
//! Both are made once and cached under `<state_dir>/boot`, named by a hash of their inputs; a cached file is whole, since it is
//! renamed into place.

mod initrd;
mod kernel;
mod modules;

use crate::{MachineConfig, UvmError};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The agent, built by this crate's build script.
static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lcow-agent"));

/// What to boot, open for reading.
#[derive(Debug)]
pub(crate) struct BootFiles {
    pub(crate) kernel: File,
    pub(crate) initrd: File,
    /// The kernel's file, for people.
    pub(crate) kernel_path: PathBuf,
}

/// Finds or makes the boot files for `config`.
pub(crate) fn prepare(config: &MachineConfig) -> Result<BootFiles, UvmError> {
    let cache = config.state_dir.join("boot");
    private_dir(&config.state_dir)?;
    private_dir(&cache)?;
    let (kernel, modules) = match (&config.kernel, &config.initrd) {
        // With an initrd of one's own, modules are its maker's concern.
        (Some(kernel), Some(_)) => (kernel::open_kernel(kernel)?, Vec::new()),
        (None, Some(_)) => (kernel::newest(config)?.0, Vec::new()),
        (Some(kernel), None) => kernel::with_modules(kernel, config)?,
        (None, None) => kernel::newest(config)?,
    };
    let initrd = match &config.initrd {
        Some(path) => File::open(path).map_err(UvmError::io("open initrd", path))?,
        None => {
            let mut key = Key::new(b"initrd");
            key.add(AGENT);
            for module in &modules {
                key.add_file(module)?;
            }
            cached(&cache, "initrd", &key, |out| {
                initrd::write(out, AGENT, &modules)
            })?
        }
    };
    let kernel_path = kernel.path.clone();
    let kernel = kernel::bootable(kernel, &cache)?;
    Ok(BootFiles {
        kernel,
        initrd,
        kernel_path,
    })
}

/// The kernel that [`prepare`] would take.
pub(crate) fn kernel_path(config: &MachineConfig) -> Result<PathBuf, UvmError> {
    let kernel = match (&config.kernel, &config.initrd) {
        (Some(kernel), Some(_)) => kernel::open_kernel(kernel)?,
        (Some(kernel), None) => kernel::with_modules(kernel, config)?.0,
        (None, _) => kernel::newest(config)?.0,
    };
    Ok(kernel.path)
}

/// Makes a directory that only its owner may enter, and what leads to it.
pub(crate) fn private_dir(path: &Path) -> Result<(), UvmError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(UvmError::io("make directory", path))
}

/// The name of a cached file: a hash of all that it is made of.
struct Key(Sha256);

impl Key {
    fn new(what: &[u8]) -> Self {
        let mut key = Self(Sha256::new());
        key.add(what);
        // A new way of making the files makes new files.
        key.add(env!("CARGO_PKG_VERSION").as_bytes());
        key
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// A file of a package, by what changes when it is replaced: reading it each time would cost more than all the rest.
    fn add_file(&mut self, path: &Path) -> Result<(), UvmError> {
        let metadata = std::fs::metadata(path).map_err(UvmError::io("look at", path))?;
        self.add(path.as_os_str().as_encoded_bytes());
        let facts = [
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime().cast_unsigned(),
            metadata.mtime_nsec().cast_unsigned(),
        ];
        for fact in facts {
            self.0.update(fact.to_le_bytes());
        }
        Ok(())
    }

    fn name(&self, prefix: &str) -> String {
        let hash = self.0.clone().finalize();
        let hex: String = hash
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{prefix}-{hex}")
    }
}

/// Opens the cached file named by `key`, making it first if it is not there.
fn cached(
    cache: &Path,
    prefix: &str,
    key: &Key,
    make: impl FnOnce(&mut dyn Write) -> Result<(), UvmError>,
) -> Result<File, UvmError> {
    let path = cache.join(key.name(prefix));
    match File::open(&path) {
        Ok(file) => return Ok(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(UvmError::io("open", path)(error)),
    }
    let temporary = tempfile::Builder::new()
        .prefix(".making-")
        .tempfile_in(cache)
        .map_err(UvmError::io("make temporary file in", cache))?;
    let mut out = std::io::BufWriter::new(temporary.as_file());
    make(&mut out)?;
    out.flush().map_err(UvmError::io("write", &path))?;
    drop(out);
    // The monitor runs as another user and opens the file anew through its descriptor; the directory keeps others out.
    temporary
        .as_file()
        .set_permissions(std::fs::Permissions::from_mode(0o444))
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(UvmError::io("finish", &path))?;
    temporary
        .persist(&path)
        .map_err(|error| UvmError::io("rename", &path)(error.error))?;
    File::open(&path).map_err(UvmError::io("open", &path))
}
