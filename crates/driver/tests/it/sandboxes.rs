//! Writable layers.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lcow_driver::{DiskFormat, ErrorKind, Kind, SandboxOptions};
use lcow_layer::tree::Tree as _;

use crate::common::{id, import, kind, root, small_sandbox, snapshot, tar};

fn options(size: u64) -> SandboxOptions {
    SandboxOptions {
        size: Some(size),
        ..SandboxOptions::default()
    }
}

/// The file system of a sandbox, without the footer.
fn raw(store: &crate::common::Root, name: &str, to: &Path) {
    let disk = store.disk(&id(name)).unwrap().unwrap();
    let from = fs::File::open(&disk.path).unwrap();
    let copy = fs::File::create(to).unwrap();
    std::io::copy(&mut std::io::Read::take(from, disk.bytes), &mut &copy).unwrap();
}

#[test]
fn spec_create_read_write_completes_a_sandbox_of_any_size_is_blank_whole_and_sparse() {
    let store = root();
    import(&store, "base", None, &tar(&[("f", b"x")]));
    for (name, size) in [
        ("small", 16 << 20),
        ("odd", (17 << 20) + 4096),
        ("large", 1 << 40),
    ] {
        store
            .create_read_write(&id(name), Some(&id("base")), &options(size))
            .unwrap();
        let m = store.metadata(&id(name)).unwrap();
        assert_eq!(
            (m.kind, m.format, m.disk_size),
            (Kind::Sandbox, DiskFormat::Vhd, size)
        );
        assert_eq!((m.file_size, m.parents), (size + 512, vec![id("base")]));
        let record = m.sandbox.unwrap();
        assert_eq!((record.size, record.journal), (size, true));
        let getter = store.diff_getter(&id(name)).unwrap();
        let tree = getter.tree().unwrap();
        assert!(tree.read_dir(tree.root()).unwrap().is_empty());
        if size < 1 << 30 {
            let path = store.root().join("tmp").join(name);
            raw(&store, name, &path);
            lcow_testkit::e2fsck(&path);
            fs::remove_file(path).unwrap();
        }
        assert!(
            m.allocated < 200 << 20,
            "{name} takes {} bytes",
            m.allocated
        );
    }
}

#[test]
fn spec_create_read_write_keeps_the_default_size_is_the_stores() {
    let store = root();
    store
        .create_read_write(&id("s"), None, &SandboxOptions::default())
        .unwrap();
    assert_eq!(store.metadata(&id("s")).unwrap().disk_size, 20 << 30);
}

#[test]
fn spec_create_read_write_completes_clones_come_from_one_cached_blank_and_have_their_own_uuids() {
    let store = root();
    for name in ["a", "b"] {
        store
            .create_read_write(&id(name), None, &small_sandbox())
            .unwrap();
    }
    let cached: Vec<_> = fs::read_dir(store.root().join("cache"))
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(cached.len(), 1);
    let uuid = |name: &str| store.metadata(&id(name)).unwrap().sandbox.unwrap().uuid;
    assert_ne!(uuid("a"), uuid("b"));
    for name in ["a", "b"] {
        let fs = store.open_layer(&id(name)).unwrap().unwrap();
        let hex: String = fs.info().uuid.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, uuid(name).replace('-', ""));
    }
    // Writing to one touches neither the other nor the blank.
    let blank = fs::read(cached[0].path()).unwrap();
    let file = fs::File::options()
        .write(true)
        .open(store.root().join("a/sandbox.vhd"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 4096], 8192).unwrap();
    assert!(fs::read(cached[0].path()).unwrap() == blank);
    let plain = SandboxOptions {
        journal: false,
        ..small_sandbox()
    };
    store.create_read_write(&id("c"), None, &plain).unwrap();
    assert_eq!(fs::read_dir(store.root().join("cache")).unwrap().count(), 2);
    assert!(
        fs::metadata(store.root().join("c/sandbox.vhd"))
            .unwrap()
            .blocks()
            * 512
            < 4 << 20
    );
}

#[test]
fn a_blank_that_is_not_whole_is_made_anew() {
    let store = root();
    store
        .create_read_write(&id("a"), None, &small_sandbox())
        .unwrap();
    let cached = fs::read_dir(store.root().join("cache"))
        .unwrap()
        .flatten()
        .next()
        .unwrap()
        .path();
    fs::File::options()
        .write(true)
        .open(&cached)
        .unwrap()
        .set_len(4096)
        .unwrap();
    store
        .create_read_write(&id("b"), None, &small_sandbox())
        .unwrap();
    assert!(
        store
            .verify(&id("b"), &Default::default())
            .unwrap()
            .is_good()
    );
}

#[test]
fn spec_create_read_write_mends_failures_remove_the_layer() {
    let store = root();
    store.create(&id("there"), None).unwrap();
    let before = snapshot(store.root());
    for size in [
        0,
        4096,
        (16 << 20) - 4096,
        (16 << 20) + 1,
        (16 << 40) + 4096,
    ] {
        let made = store.create_read_write(&id("s"), None, &options(size));
        assert_eq!(kind(made), ErrorKind::Invalid, "{size}");
    }
    let no_parent = store.create_read_write(&id("s"), Some(&id("no")), &small_sandbox());
    assert_eq!(kind(no_parent), ErrorKind::NotFound);
    let there = store.create_read_write(&id("there"), None, &small_sandbox());
    assert_eq!(kind(there), ErrorKind::AlreadyExists);
    // A file where the cache should be: nothing is left then either.
    assert_eq!(snapshot(store.root()), before);
    fs::remove_dir(store.root().join("cache")).unwrap();
    fs::write(store.root().join("cache"), "").unwrap();
    assert_eq!(
        kind(store.create_read_write(&id("s"), None, &small_sandbox())),
        ErrorKind::Io
    );
    assert!(!store.exists(&id("s")).unwrap());
    assert_eq!(
        fs::read_dir(store.root().join("tmp")).unwrap().count(),
        1,
        "only .commit"
    );
}

#[test]
fn one_writer_and_no_reader_beside_it() {
    let store = root();
    store
        .create_read_write(&id("s"), None, &small_sandbox())
        .unwrap();
    let guard = store.lock_sandbox(&id("s")).unwrap();
    assert_eq!(guard.id(), &id("s"));
    assert_eq!(kind(store.lock_sandbox(&id("s"))), ErrorKind::InUse);
    assert_eq!(kind(store.diff_getter(&id("s"))), ErrorKind::InUse);
    assert_eq!(
        kind(store.commit(&id("s"), &id("new"), &Default::default())),
        ErrorKind::InUse
    );
    assert_eq!(kind(store.remove(&id("s"))), ErrorKind::InUse);
    drop(guard);
    let readers = (
        store.diff_getter(&id("s")).unwrap(),
        store.diff_getter(&id("s")).unwrap(),
    );
    assert_eq!(kind(store.lock_sandbox(&id("s"))), ErrorKind::InUse);
    drop(readers);
    drop(store.lock_sandbox(&id("s")).unwrap());
    store.create(&id("empty"), None).unwrap();
    assert_eq!(kind(store.lock_sandbox(&id("empty"))), ErrorKind::Invalid);
    store.remove(&id("s")).unwrap();
}

fn vhdx(size: u64) -> SandboxOptions {
    SandboxOptions {
        format: Some(DiskFormat::Vhdx),
        ..options(size)
    }
}

#[test]
fn spec_create_read_write_makes_vhdx_sandboxes_that_qemu_takes() {
    use lcow_disk::vhdx::check;
    let store = root();
    import(&store, "base", None, &tar(&[("f", b"x")]));
    for (name, size) in [("a", 40 << 20), ("b", 40 << 20), ("large", 2 << 40)] {
        store
            .create_read_write(&id(name), Some(&id("base")), &vhdx(size))
            .unwrap();
        let m = store.metadata(&id(name)).unwrap();
        assert_eq!(
            (m.kind, m.format, m.disk_size),
            (Kind::Sandbox, DiskFormat::Vhdx, size)
        );
        assert!(
            m.allocated < 200 << 20,
            "{name} takes {} bytes",
            m.allocated
        );
        assert!(m.disk.unwrap().ends_with(format!("{name}/sandbox.vhdx")));
        let getter = store.diff_getter(&id(name)).unwrap();
        let tree = getter.tree().unwrap();
        assert!(tree.read_dir(tree.root()).unwrap().is_empty());
        drop(getter);
        let report = store.verify(&id(name), &Default::default()).unwrap();
        assert!(
            report.is_good() && report.checked.contains(&"structure"),
            "{report:?}"
        );
    }
    // One blank a size; and of the clones each is its own file system in its own disk.
    assert_eq!(store.status().unwrap().cache.len(), 2);
    let infos = ["a", "b"].map(|name| {
        let path = store.root().join(name).join("sandbox.vhdx");
        let uuid = store.open_layer(&id(name)).unwrap().unwrap().info().uuid;
        let report = check(lcow_blockio::FileDisk::open(&path).unwrap()).unwrap();
        assert!(report.notes.is_empty(), "{report:?}");
        (uuid, report.info.id, report.info.data_write_guid)
    });
    let ((uuid, id_a, data), (other_uuid, id_b, other_data)) = (infos[0], infos[1]);
    assert!(uuid != other_uuid && id_a != id_b && data != other_data);
    assert_eq!(uuid, id_a.0);
    // A blank that was cut short meanwhile is made anew.
    let cached = store.root().join("cache/sandbox-41943040.vhdx");
    fs::File::options()
        .write(true)
        .open(&cached)
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    store
        .create_read_write(&id("c"), None, &vhdx(40 << 20))
        .unwrap();
    assert!(
        store
            .verify(&id("c"), &Default::default())
            .unwrap()
            .is_good()
    );

    if !lcow_testkit::have("qemu-img") {
        lcow_testkit::skip!("qemu-img is not installed");
    }
    let (path, raw) = (
        store.root().join("a/sandbox.vhdx"),
        store.root().join("tmp/raw"),
    );
    lcow_testkit::run(
        "qemu-img",
        [std::ffi::OsStr::new("check"), path.as_os_str()],
    );
    let words = ["convert", "-f", "vhdx", "-O", "raw"].map(std::ffi::OsStr::new);
    lcow_testkit::run(
        "qemu-img",
        words.into_iter().chain([path.as_os_str(), raw.as_os_str()]),
    );
    lcow_testkit::e2fsck(&raw);
    fs::remove_file(raw).unwrap();
}
