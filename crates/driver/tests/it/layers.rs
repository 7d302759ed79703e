//! create, remove, exists, metadata, chains.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use lcow_driver::{DriverError, ErrorKind, Kind, Removed};

use crate::common::{id, import, kind, root, snapshot, tar};

#[test]
fn spec_init_keeps_making_the_data_root_with_mode_0700() {
    let store = root();
    for name in ["", "cache", "scratch", "tmp", "images", "containers"] {
        let mode = fs::metadata(store.root().join(name))
            .unwrap()
            .permissions()
            .mode();
        let expected = if name.is_empty() { mode & 0o777 } else { 0o700 };
        assert_eq!(mode & 0o777, expected, "{name}");
    }
    let inner = store.root().join("made/by/open");
    drop(crate::common::open(&inner).unwrap());
    assert_eq!(
        fs::metadata(&inner).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn spec_create_keeps_the_chain_of_parent_and_its_parents() {
    let store = root();
    store.create(&id("a"), None).unwrap();
    store.create(&id("b"), Some(&id("a"))).unwrap();
    let made = store.create(&id("c"), Some(&id("b"))).unwrap();
    assert_eq!(store.chain(&id("a")).unwrap(), []);
    assert_eq!(store.chain(&id("c")).unwrap(), [id("b"), id("a")]);
    assert_eq!(store.children(&id("a")).unwrap(), [id("b")]);
    assert_eq!(store.layer_path(&id("c")).unwrap(), made.path);
    assert_eq!(store.layers().unwrap(), [id("a"), id("b"), id("c")]);
    // Ids, not paths: the root can be moved.
    let chain: Vec<String> = serde_json(&made.path.join("layerchain.json"));
    assert_eq!(chain, ["b", "a"]);
    assert_eq!(
        fs::metadata(&made.path).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

fn serde_json(path: &std::path::Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    text.split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn spec_create_mends_existing_ids_and_missing_parents_are_refused_and_nothing_left() {
    let store = root();
    store.create(&id("a"), None).unwrap();
    let before = snapshot(store.root());
    assert_eq!(kind(store.create(&id("a"), None)), ErrorKind::AlreadyExists);
    assert_eq!(
        kind(store.create(&id("b"), Some(&id("no")))),
        ErrorKind::NotFound
    );
    match store.create(&id("b"), Some(&id("no"))) {
        Err(DriverError::NoParent { id: b, parent }) => {
            assert_eq!((b, parent), (id("b"), id("no")));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(snapshot(store.root()), before);
}

#[test]
fn spec_exists_is_about_directories_only() {
    let store = root();
    fs::write(store.root().join("file"), "").unwrap();
    std::os::unix::fs::symlink("/etc", store.root().join("link")).unwrap();
    store.create(&id("a"), None).unwrap();
    for (name, there) in [
        ("a", true),
        ("file", false),
        ("link", false),
        ("none", false),
    ] {
        assert_eq!(store.exists(&id(name)).unwrap(), there, "{name}");
    }
    assert_eq!(store.layers().unwrap(), [id("a")]);
}

#[test]
fn spec_remove_keeps_deleting_and_mends_idempotent() {
    let store = root();
    store.create(&id("a"), None).unwrap();
    assert_eq!(store.remove(&id("a")).unwrap(), Removed::Removed);
    assert_eq!(store.remove(&id("a")).unwrap(), Removed::AlreadyGone);
    assert!(!store.exists(&id("a")).unwrap());
    assert!(!store.root().join("a-removing").exists());
    assert_eq!(kind(store.metadata(&id("a"))), ErrorKind::NotFound);
    assert_eq!(kind(store.chain(&id("a"))), ErrorKind::NotFound);
    // The id is free again, and on another parent.
    store.create(&id("p"), None).unwrap();
    store.create(&id("a"), Some(&id("p"))).unwrap();
    assert_eq!(store.chain(&id("a")).unwrap(), [id("p")]);
}

#[test]
fn spec_remove_mends_parents_are_refused_and_their_children_listed() {
    let store = root();
    store.create(&id("a"), None).unwrap();
    for child in ["c", "b"] {
        store.create(&id(child), Some(&id("a"))).unwrap();
    }
    store.create(&id("grandchild"), Some(&id("b"))).unwrap();
    match store.remove(&id("a")) {
        Err(e @ DriverError::HasChildren { .. }) => {
            assert_eq!(e.to_string(), "layer a has 2 layers built on it: b, c");
            assert!(e.hint().is_some());
        }
        other => panic!("{other:?}"),
    }
    for name in ["grandchild", "b", "c", "a"] {
        store.remove(&id(name)).unwrap();
    }
    assert_eq!(store.layers().unwrap(), []);
}

#[test]
fn spec_remove_mends_a_referenced_layer_is_refused_and_the_process_named() {
    let store = root();
    store.create(&id("a"), None).unwrap();
    let (one, two) = (
        store.reference(&id("a")).unwrap(),
        store.reference(&id("a")).unwrap(),
    );
    for reference in [one, two] {
        match store.remove(&id("a")) {
            Err(DriverError::InUse { by, .. }) => assert_eq!(by[0].pid, std::process::id()),
            other => panic!("{other:?}"),
        }
        drop(reference);
    }
    assert_eq!(store.remove(&id("a")).unwrap(), Removed::Removed);
    assert_eq!(kind(store.reference(&id("a"))), ErrorKind::NotFound);
}

#[test]
fn spec_names_mends_only_not_found_makes_the_other_disk_be_looked_for() {
    let store = root();
    store.create(&id("a"), None).unwrap();
    assert_eq!(store.metadata(&id("a")).unwrap().kind, Kind::Empty);
    // A link could name any file on the host: it is an error, not "no layer.vhd".
    std::os::unix::fs::symlink("/dev/null", store.root().join("a/layer.vhd")).unwrap();
    assert_eq!(kind(store.metadata(&id("a"))), ErrorKind::Corrupt);
    fs::remove_file(store.root().join("a/layer.vhd")).unwrap();
    fs::write(store.root().join("a/layer.vhd"), "short").unwrap();
    assert_eq!(kind(store.metadata(&id("a"))), ErrorKind::Corrupt);
    fs::remove_file(store.root().join("a/layer.vhd")).unwrap();
    fs::write(store.root().join("a/sandbox.vhdx"), "").unwrap();
    assert_eq!(kind(store.disks(&id("a"))), ErrorKind::Corrupt);
}

#[test]
fn spec_metadata_completes_chain_kind_format_sizes_and_digests() {
    let store = root();
    let (base, top) = (tar(&[("a", b"1")]), tar(&[("b", b"2")]));
    import(&store, "base", None, &base);
    import(&store, "top", Some("base"), &top);
    let m = store.metadata(&id("top")).unwrap();
    assert_eq!(m.dir, store.root().join("top"));
    assert_eq!((m.kind, m.parents), (Kind::Layer, vec![id("base")]));
    assert_eq!(m.file_size, m.disk_size + 512);
    assert!(m.allocated > 0 && m.created.unwrap().ends_with('Z'));
    let (applied, below) = (
        m.applied.unwrap(),
        store.metadata(&id("base")).unwrap().applied.unwrap(),
    );
    assert_eq!(applied.tar_size, top.len() as u64);
    assert_eq!(applied.diff_id, lcow_layer::digest::Digest::of(&top));
    assert_eq!(below.chain_id, Some(below.diff_id));
    assert_eq!(
        applied.chain_id,
        Some(lcow_layer::digest::chain_id(
            Some(&below.diff_id),
            &applied.diff_id
        ))
    );
    let text = fs::read_to_string(store.root().join("top/layer.json")).unwrap();
    assert!(text.contains(&applied.diff_id.to_string()), "{text}");
}

#[test]
fn a_layer_record_of_a_newer_version_keeps_what_this_one_does_not_know() {
    let store = root();
    store.create(&id("a"), None).unwrap();
    let path = store.root().join("a/layer.json");
    let text = fs::read_to_string(&path)
        .unwrap()
        .replacen('{', "{ \"color\": \"blue\",", 1);
    fs::write(&path, text).unwrap();
    let bytes = tar(&[("f", b"x")]);
    store
        .apply_diff(
            &id("a"),
            None,
            lcow_driver::Input::Reader(&mut &bytes[..]),
            &Default::default(),
            &Default::default(),
        )
        .unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("blue") && text.contains("diff_id"), "{text}");
}

#[test]
fn a_chain_500_deep() {
    let store = root();
    for n in 0..500_u32 {
        let parent = n.checked_sub(1).map(|p| id(&format!("l{p}")));
        store
            .create(&id(&format!("l{n}")), parent.as_ref())
            .unwrap();
    }
    assert_eq!(store.chain(&id("l499")).unwrap().len(), 499);
    assert_eq!(store.children(&id("l250")).unwrap(), [id("l251")]);
    assert_eq!(kind(store.remove(&id("l0"))), ErrorKind::HasChildren);
    for n in (0..500).rev() {
        store.remove(&id(&format!("l{n}"))).unwrap();
    }
}

#[test]
fn spec_status_completes_layers_and_bytes() {
    let store = root();
    import(&store, "a", None, &tar(&[("f", &[1; 100_000])]));
    store.create(&id("b"), None).unwrap();
    store
        .create_read_write(&id("c"), Some(&id("a")), &crate::common::small_sandbox())
        .unwrap();
    let status = store.status().unwrap();
    assert_eq!((status.layers, status.empty, status.sandboxes), (1, 1, 1));
    assert!(status.allocated >= 100_000 && status.apparent > 32 << 20);
    assert_eq!(status.cache.len(), 1);
    assert!(!status.exclusive && status.damaged.is_empty());
}

#[test]
fn spec_verify_finds_damage_and_calls_a_good_layer_good() {
    let store = root();
    let cancel = lcow_driver::Cancel::new();
    import(
        &store,
        "good",
        None,
        &tar(&[("f", &crate::common::noise(50_000, 1))]),
    );
    import(
        &store,
        "bad",
        Some("good"),
        &tar(&[("f", &crate::common::noise(50_000, 2))]),
    );
    assert!(store.verify(&id("good"), &cancel).unwrap().is_good());
    let report = store.verify(&id("bad"), &cancel).unwrap();
    assert!(report.is_good(), "{report:?}");
    assert!(report.checked.contains(&"digest"));
    // One changed byte of a file's content.
    let path = store.root().join("bad/layer.vhd");
    let mut disk = fs::read(&path).unwrap();
    let wanted = &crate::common::noise(50_000, 2)[..64];
    let at = disk.windows(64).position(|w| w == wanted).unwrap();
    disk[at] ^= 1;
    fs::write(&path, &disk).unwrap();
    let report = store.verify(&id("bad"), &cancel).unwrap();
    assert_eq!(report.findings[0].check, "digest", "{report:?}");
    // A directory's link count, with the inode's checksum wrong: the digest is not even looked at.
    disk[at] ^= 1;
    let root_inode = disk.len() - 512 - 4096 + 256;
    let mut damaged = disk.clone();
    damaged[root_inode + 0x1a] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let report = store.verify(&id("bad"), &cancel).unwrap();
    assert_eq!(report.findings[0].check, "file system", "{report:?}");
    assert!(
        report.findings[0].problem.starts_with("inode 2 "),
        "{report:?}"
    );
    // No footer.
    fs::write(&path, &disk[..disk.len() - 512]).unwrap();
    let report = store.verify(&id("bad"), &cancel).unwrap();
    assert_eq!(report.findings[0].check, "footer", "{report:?}");
    // No parent.
    fs::remove_dir_all(store.root().join("good")).unwrap();
    let report = store.verify(&id("bad"), &cancel).unwrap();
    assert_eq!(report.findings[0].check, "parents", "{report:?}");
}

#[test]
fn spec_layer_path_keeps_the_layers_directory() {
    let store = root();
    store.create(&id("a"), None).unwrap();
    assert_eq!(store.layer_path(&id("a")).unwrap(), store.root().join("a"));
    assert_eq!(kind(store.layer_path(&id("b"))), ErrorKind::NotFound);
}
