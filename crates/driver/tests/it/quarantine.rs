//! Damaged layers are put aside; where the bytes are.

use std::fs;

use lcow_driver::{Cancel, ErrorKind, Kind, VerifyReport};

use crate::common::{Root, id, import, kind, noise, open, root, small_sandbox, tar};

fn damage(store: &Root, name: &str) {
    let path = store.metadata(&id(name)).unwrap().disk.unwrap();
    let mut disk = fs::read(&path).unwrap();
    let at = disk.windows(7).position(|w| w == b"content").unwrap();
    disk[at] ^= 1;
    fs::write(&path, disk).unwrap();
}

#[test]
fn spec_repair_a_damaged_layer_is_put_aside_whole_and_comes_back_with_its_tar() {
    let store = root();
    let bytes = tar(&[("f", b"content")]);
    import(&store, "base", None, &bytes);
    import(&store, "top", Some("base"), &tar(&[("g", b"1")]));
    store
        .create_read_write(&id("box"), Some(&id("top")), &small_sandbox())
        .unwrap();
    let cancel = Cancel::new();
    let fine = store.repair(None, &cancel).unwrap();
    assert!(fine.put_aside.is_empty() && fine.reports.iter().all(VerifyReport::is_good));
    damage(&store, "base");
    let files = fs::read_dir(store.root().join("base")).unwrap().count();

    let repair = store.repair(None, &cancel).unwrap();
    let [moved] = repair.put_aside.as_slice() else {
        panic!("{repair:?}")
    };
    assert_eq!(moved.id, id("base"));
    assert_eq!(moved.to, store.root().join("quarantine/base"));
    assert_eq!(fs::read_dir(&moved.to).unwrap().count(), files);
    assert!(!store.exists(&id("base")).unwrap());
    assert_eq!(store.layers().unwrap(), [id("box"), id("top")]);

    // What stands on it is whole itself, and stays.
    let again = store.repair(None, &cancel).unwrap();
    assert!(again.put_aside.is_empty());
    for report in &again.reports {
        assert!(!report.is_good() && !report.is_damaged(), "{report:?}");
        assert_eq!(report.findings[0].check, "parents");
    }
    import(&store, "base", None, &bytes);
    let whole = store.repair(None, &cancel).unwrap();
    assert!(whole.reports.iter().all(VerifyReport::is_good), "{whole:?}");

    // A second one of the same id gets a name of its own.
    damage(&store, "base");
    let repair = store.repair(Some(&[id("base")]), &cancel).unwrap();
    assert!(repair.put_aside[0].to.ends_with("quarantine/base.1"));
    assert!(open(store.root()).unwrap().recovery().is_empty());
    assert!(store.space().unwrap().quarantine > 0);
}

#[test]
fn what_is_in_use_is_not_moved() {
    let store = root();
    import(&store, "base", None, &tar(&[("f", b"content")]));
    damage(&store, "base");
    let reference = store.reference(&id("base")).unwrap();
    let repair = store.repair(None, &Cancel::new()).unwrap();
    assert_eq!(repair.in_use, [id("base")]);
    assert!(repair.put_aside.is_empty() && store.exists(&id("base")).unwrap());
    assert_eq!(kind(store.quarantine(&id("base"))), ErrorKind::InUse);
    drop(reference);
    store.quarantine(&id("base")).unwrap();
    assert_eq!(kind(store.quarantine(&id("base"))), ErrorKind::NotFound);
}

#[test]
fn records_that_cant_be_read_are_damage_too() {
    let store = root();
    for file in ["layer.json", "layerchain.json", "layer.vhd"] {
        import(&store, "layer", None, &tar(&[("f", file.as_bytes())]));
        let path = store.root().join("layer").join(file);
        // A new file: the disk may be shared.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "{").unwrap();
        let repair = store.repair(None, &Cancel::new()).unwrap();
        assert_eq!(repair.put_aside.len(), 1, "{file}: {repair:?}");
        assert!(store.layers().unwrap().is_empty());
    }
}

#[test]
fn space_counts_a_shared_disk_once_and_what_sharing_saves() {
    let store = root();
    let bytes = tar(&[("big", &noise(2 << 20, 3))]);
    import(&store, "one", None, &bytes);
    import(&store, "two", None, &bytes);
    import(&store, "own", None, &tar(&[("big", &noise(1 << 20, 4))]));
    store
        .create_read_write(&id("box"), Some(&id("own")), &small_sandbox())
        .unwrap();
    let space = store.space().unwrap();
    let of = |name: &str| space.layers.iter().find(|l| l.id == id(name)).unwrap();
    assert_eq!(of("one").kind, Some(Kind::Layer));
    assert!(of("one").shared > 2 << 20 && of("one").own() < 1 << 20);
    assert_eq!(of("own").shared, 0);
    assert_eq!(space.saved, of("two").shared);
    let sum: u64 = space.layers.iter().map(|l| l.allocated).sum();
    assert_eq!(sum - space.saved, space.allocated);
    assert!(of("box").apparent > 32 << 20 && of("box").allocated < 2 << 20);
    assert!(
        space.cache > 0,
        "the blank, and not the index of shared disks"
    );
    assert!(space.cache < 2 << 20);
    let status = store.status().unwrap();
    assert_eq!(
        (status.allocated, status.apparent),
        (space.allocated, space.apparent)
    );

    // Without its blank the next sandbox makes another.
    assert_eq!(store.drop_cache().unwrap().len(), 1);
    assert_eq!(store.space().unwrap().cache, 0);
    store
        .create_read_write(&id("box-2"), None, &small_sandbox())
        .unwrap();
}
