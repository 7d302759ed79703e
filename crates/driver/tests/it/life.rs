//! A store's life in steps, each of which does one thing: run on simulated file systems.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lcow_driver::vfs::Vfs;
use lcow_driver::vfs::sim::{Sim, World};
use lcow_driver::{
    ApplyRequest, Cancel, DiskFormat, DriverError, Input, OpenOptions, SandboxOptions, Store,
};

use crate::common::{id, tar};

pub(crate) const ROOT: &str = "/data/root";

pub(crate) fn open_on(vfs: Arc<dyn Vfs>) -> Result<Store, DriverError> {
    let options = OpenOptions {
        vfs,
        ..OpenOptions::default()
    };
    Store::open(Path::new(ROOT), options)
}

/// An empty file system.
pub(crate) fn blank() -> World {
    let sim = Sim::new(World::default());
    sim.create_dir(Path::new("/data")).unwrap();
    sim.world()
}

/// Says whether what it did, or found done, was acknowledged.
pub(crate) type Step = (&'static str, fn(&Store) -> Result<bool, DriverError>);

fn import(store: &Store, name: &str, parent: Option<&str>) -> Result<bool, DriverError> {
    let content = [name.as_bytes(), &[7; 3000]].concat();
    let bytes = tar(&[
        ("file", &content),
        ("etc/", b""),
        ("etc/name", name.as_bytes()),
    ]);
    let parent = parent.map(id);
    let (request, cancel) = (ApplyRequest::default(), Cancel::new());
    let input = Input::Reader(&mut &*bytes);
    store
        .import(&id(name), parent.as_ref(), input, &request, &cancel)
        .map(|_| true)
}

/// A store's life. Each step does one thing, and may find it done.
pub(crate) const STEPS: &[Step] = &[
    ("open", |_| Ok(true)),
    ("create", |store| done(store.create(&id("empty"), None))),
    ("create a child", |store| {
        done(store.create(&id("child"), Some(&id("empty"))))
    }),
    ("apply", |store| {
        let bytes = tar(&[("applied", &[3; 5000])]);
        let input = Input::Reader(&mut &*bytes);
        let (request, cancel) = (ApplyRequest::default(), Cancel::new());
        done(store.apply_diff(&id("child"), None, input, &request, &cancel))
    }),
    ("import", |store| import(store, "base", None)),
    ("import on top", |store| import(store, "top", Some("base"))),
    ("create a sandbox", |store| {
        let options = SandboxOptions {
            size: Some(16 << 20),
            ..SandboxOptions::default()
        };
        done(store.create_read_write(&id("box"), Some(&id("top")), &options))
    }),
    ("create a VHDX sandbox", |store| {
        let options = SandboxOptions {
            size: Some(16 << 20),
            format: Some(DiskFormat::Vhdx),
            ..SandboxOptions::default()
        };
        done(store.create_read_write(&id("boxx"), Some(&id("top")), &options))
    }),
    ("commit", |store| {
        done(store.commit(&id("box"), &id("committed"), &Cancel::new()))
    }),
    ("write a record", |store| {
        done(store.replace_file(&store.containers_dir().join("c.json"), b"first"))
    }),
    ("replace a record", |store| {
        done(store.replace_file(&store.containers_dir().join("c.json"), &[b'x'; 9000]))
    }),
    ("delete a record", |store| {
        done(store.remove_file(&store.containers_dir().join("c.json")))
    }),
    ("remove a sandbox", |store| done(store.remove(&id("box")))),
    ("remove a layer", |store| done(store.remove(&id("child")))),
    ("put a layer aside", |store| {
        match store.quarantine(&id("committed")) {
            Err(DriverError::NotFound { .. }) => Ok(false),
            result => result.map(|_| true),
        }
    }),
    ("make it anew", |store| import(store, "child", Some("base"))),
];

/// An error because it is done already acknowledges nothing.
fn done<T>(result: Result<T, DriverError>) -> Result<bool, DriverError> {
    match result {
        Ok(_) => Ok(true),
        Err(DriverError::AlreadyExists { .. } | DriverError::AlreadyApplied { .. }) => Ok(false),
        Err(e) => Err(e),
    }
}

/// What is to be seen of a store: by path, what tells bytes from other ones. Of a layer without contents only the chain counts:
/// its record may say what is about to be applied.
pub(crate) type View = BTreeMap<PathBuf, Option<u64>>;

pub(crate) fn view(world: &World) -> View {
    seen(world.tree(Path::new(ROOT)))
}

/// As [`view`], on the host's file system.
pub(crate) fn host_view(root: &Path) -> std::io::Result<View> {
    let mut tree = View::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let content = if fs::symlink_metadata(&path)?.is_dir() {
            for entry in fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
            None
        } else {
            let mut hasher = DefaultHasher::new();
            fs::read(&path)?.hash(&mut hasher);
            Some(hasher.finish())
        };
        let path = path.strip_prefix(root).unwrap_or(&path);
        tree.insert(path.to_owned(), content);
    }
    Ok(seen(tree))
}

fn seen(mut tree: View) -> View {
    let empty: Vec<PathBuf> = tree
        .keys()
        .filter(|p| p.ends_with("layer.json"))
        .filter_map(|p| Some(p.parent()?.to_owned()))
        .filter(|dir| {
            !["layer.vhd", "sandbox.vhd", "sandbox.vhdx"]
                .iter()
                .any(|d| tree.contains_key(&dir.join(d)))
        })
        .collect();
    for dir in empty {
        tree.insert(dir.join("layer.json"), None);
    }
    // Made when it is first needed.
    tree.remove(Path::new("quarantine"));
    tree.retain(|path, _| {
        !path.starts_with("tmp") && !path.starts_with("cache") && path != Path::new("lock")
    });
    tree
}
