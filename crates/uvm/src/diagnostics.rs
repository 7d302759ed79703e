//! What is kept when something fails.

use crate::UvmError;
use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes kept of each log: a guest may write without end.
pub(crate) const RING: usize = 256 * 1024;
/// Bundles kept; the oldest go.
const BUNDLES: usize = 16;

/// The end of a log.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    bytes: Mutex<VecDeque<u8>>,
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn append(&self, bytes: &[u8]) {
        let mut ring = self.lock();
        ring.extend(bytes);
        let excess = ring.len().saturating_sub(RING);
        ring.drain(..excess);
    }

    pub(crate) fn contents(&self) -> Vec<u8> {
        self.lock().iter().copied().collect()
    }

    /// Appends all that `source` gives, until it ends.
    pub(crate) fn follow(&self, mut source: impl Read) {
        let mut buffer = [0; 4096];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => self.append(&buffer[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// Writes a bundle to `<state_dir>/failed/<name>`, and removes the oldest ones.
pub(crate) fn write_bundle(
    state_dir: &Path,
    name: &str,
    error: &UvmError,
    files: &[(&'static str, Vec<u8>)],
) -> Result<PathBuf, UvmError> {
    let failed = state_dir.join("failed");
    crate::boot::private_dir(&failed)?;
    let mut dir = failed.join(name);
    let mut attempt = 1;
    while let Err(source) = std::fs::create_dir(&dir) {
        if source.kind() != std::io::ErrorKind::AlreadyExists || attempt == 1000 {
            return Err(UvmError::io("make directory", &dir)(source));
        }
        attempt += 1;
        dir = failed.join(format!("{name}-{attempt}"));
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text.push_str(&format!("\ncaused by: {inner}"));
        source = inner.source();
    }
    text.push('\n');
    let error_file = ("error.txt", text.into_bytes());
    for (file, bytes) in files.iter().chain([&error_file]) {
        let path = dir.join(file);
        std::fs::write(&path, bytes).map_err(UvmError::io("write", &path))?;
    }
    prune(&failed);
    Ok(dir)
}

fn prune(failed: &Path) {
    let mut bundles: Vec<_> = std::fs::read_dir(failed)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    bundles.sort();
    let excess = bundles.len().saturating_sub(BUNDLES);
    for (_, path) in &bundles[..excess] {
        // Another process may be removing the same one.
        let _ = std::fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_keeps_the_end() {
        let ring = Ring::default();
        ring.follow(std::io::repeat(b'x').take(3 * RING as u64));
        ring.append(b"end");
        let contents = ring.contents();
        assert_eq!(contents.len(), RING);
        assert!(contents.ends_with(b"xxend"));
    }

    #[test]
    fn bundles_do_not_pile_up_nor_overwrite() {
        let dir = tempfile::tempdir().unwrap();
        let error = UvmError::Gone {
            status: "killed".into(),
        };
        let first = write_bundle(
            dir.path(),
            "vm",
            &error,
            &[("console.log", b"hello".to_vec())],
        )
        .unwrap();
        assert_eq!(std::fs::read(first.join("console.log")).unwrap(), b"hello");
        assert!(
            std::fs::read_to_string(first.join("error.txt"))
                .unwrap()
                .contains("killed")
        );
        assert_ne!(write_bundle(dir.path(), "vm", &error, &[]).unwrap(), first);
        assert!(first.join("console.log").is_file());
        for number in 0..BUNDLES + 3 {
            write_bundle(dir.path(), &format!("vm{number}"), &error, &[]).unwrap();
        }
        assert_eq!(
            std::fs::read_dir(dir.path().join("failed"))
                .unwrap()
                .count(),
            BUNDLES
        );
    }
}
