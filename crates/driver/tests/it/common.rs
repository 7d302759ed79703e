//! What all themes use.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lcow_driver::{
    ApplyRequest, Cancel, DriverError, ErrorKind, Input, Isolation, LayerId, OpenOptions, Placed,
    SandboxOptions, Store,
};
use tempfile::TempDir;

pub(crate) struct Root {
    pub(crate) store: Store,
    // After the store: its lock is released before its directory goes.
    _dir: TempDir,
}

impl std::ops::Deref for Root {
    type Target = Store;
    fn deref(&self) -> &Store {
        &self.store
    }
}

/// A new store in its own directory.
pub(crate) fn root() -> Root {
    let dir = tempfile::tempdir().unwrap();
    Root {
        store: open(dir.path()).unwrap(),
        _dir: dir,
    }
}

pub(crate) fn open(path: &Path) -> Result<Store, DriverError> {
    Store::open(path, OpenOptions::default())
}

pub(crate) fn id(name: &str) -> LayerId {
    LayerId::new(name).unwrap()
}

/// A tar of regular files; a name that ends in a slash is a directory.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        let directory = name.ends_with('/');
        header.set_entry_type(if directory {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        header.set_mode(if directory { 0o755 } else { 0o644 });
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn import(store: &Store, name: &str, parent: Option<&str>, tar: &[u8]) -> Placed {
    let parent = parent.map(id);
    store
        .import(
            &id(name),
            parent.as_ref(),
            Input::Reader(&mut &*tar),
            &ApplyRequest::default(),
            &Cancel::new(),
        )
        .unwrap()
}

pub(crate) fn small_sandbox() -> SandboxOptions {
    SandboxOptions {
        size: Some(32 << 20),
        ..SandboxOptions::default()
    }
}

/// The kind of the error that must have happened.
pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T, DriverError>) -> ErrorKind {
    result.expect_err("it must fail").kind()
}

/// Every file of a data root with its length, but what opening it makes: to see that a failure leaves nothing.
pub(crate) fn snapshot(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if entry.file_name() == ".commit" {
                continue;
            }
            let path = entry.path();
            if metadata.is_dir() {
                todo.push(path.clone());
            }
            let len = if metadata.is_dir() { 0 } else { metadata.len() };
            files.insert(path.strip_prefix(root).unwrap().to_owned(), len);
        }
    }
    files
}

/// This test program as the conversion process: see `helper`.
pub(crate) fn isolated() -> Isolation {
    Isolation::Command {
        program: std::env::current_exe().unwrap(),
        arguments: ["--exact", "helper::process", "--nocapture"]
            .map(Into::into)
            .to_vec(),
    }
}

/// Bytes that don't compress and are the same each time.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 24).to_le_bytes()[..4]);
    }
    bytes.truncate(len);
    bytes
}
