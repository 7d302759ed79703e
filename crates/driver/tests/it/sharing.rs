//! The same tar under several ids is one disk.

use std::fs;
use std::os::unix::fs::MetadataExt;

use lcow_driver::{Against, ApplyRequest, Cancel, Input, OpenOptions, Options, Store};

use crate::common::{Root, id, import, noise, open, root, tar};

fn inode(store: &Root, name: &str) -> u64 {
    let disk = store.metadata(&id(name)).unwrap().disk.unwrap();
    fs::metadata(disk).unwrap().ino()
}

fn shared(store: &Root) -> usize {
    fs::read_dir(store.root().join("cache/disks"))
        .unwrap()
        .count()
}

#[test]
fn the_same_tar_under_two_ids_is_one_disk_until_the_last_is_removed() {
    let store = root();
    let bytes = tar(&[("big", &noise(3 << 20, 1)), ("f", b"x")]);
    import(&store, "one", None, &bytes);
    let alone = store.status().unwrap().allocated;
    import(&store, "two", None, &bytes);
    import(&store, "other", None, &tar(&[("g", b"y")]));
    store.create(&id("three"), Some(&id("other"))).unwrap();
    let input = Input::Reader(&mut &bytes[..]);
    let (request, cancel) = (ApplyRequest::default(), Cancel::new());
    store
        .apply_diff(&id("three"), None, input, &request, &cancel)
        .unwrap();
    assert_eq!(inode(&store, "one"), inode(&store, "two"));
    assert_eq!(inode(&store, "one"), inode(&store, "three"));
    assert_ne!(inode(&store, "one"), inode(&store, "other"));
    let together = store.status().unwrap().allocated;
    assert!(together < alone + (1 << 20), "{together} after {alone}");
    for name in ["one", "two", "three"] {
        let mut out = Vec::new();
        let summary = store
            .diff(&id(name), &Against::Parent, &mut out, &cancel)
            .unwrap();
        assert!(summary.exact && out == bytes, "{name}");
        assert!(store.verify(&id(name), &cancel).unwrap().is_good());
    }
    store.remove(&id("one")).unwrap();
    store.remove(&id("three")).unwrap();
    assert_eq!(shared(&store), 2);
    assert!(store.verify(&id("two"), &cancel).unwrap().is_good());
    store.remove(&id("two")).unwrap();
    assert_eq!(
        shared(&store),
        1,
        "the last one takes the index's entry along"
    );
    store.remove(&id("other")).unwrap();
    assert_eq!(shared(&store), 0);
}

#[test]
fn what_makes_other_bytes_is_not_shared() {
    let store = root();
    let bytes = tar(&[(".wh.gone", b""), ("f", b"x")]);
    import(&store, "whiteouts", None, &bytes);
    let plain = ApplyRequest {
        overlay: false,
        ..ApplyRequest::default()
    };
    let input = || Input::Reader(Box::leak(Box::new(std::io::Cursor::new(bytes.clone()))));
    store
        .import(&id("plain"), None, input(), &plain, &Cancel::new())
        .unwrap();
    assert_ne!(inode(&store, "whiteouts"), inode(&store, "plain"));
    let options = OpenOptions {
        options: Options::parse(["lcow.verity=true"]).unwrap(),
        ..OpenOptions::default()
    };
    let verity = Store::open(store.root(), options).unwrap();
    let request = ApplyRequest::default();
    verity
        .import(&id("verity"), None, input(), &request, &Cancel::new())
        .unwrap();
    assert_ne!(inode(&store, "whiteouts"), inode(&store, "verity"));
    assert_eq!(shared(&store), 3);
}

#[test]
fn a_damaged_disk_is_not_spread() {
    let store = root();
    let bytes = tar(&[("f", b"content")]);
    import(&store, "old", None, &bytes);
    let path = store.metadata(&id("old")).unwrap().disk.unwrap();
    let mut disk = fs::read(&path).unwrap();
    let at = disk.windows(7).position(|w| w == b"content").unwrap();
    disk[at] = b'C';
    fs::write(&path, disk).unwrap();
    import(&store, "new", None, &bytes);
    let cancel = Cancel::new();
    assert!(store.verify(&id("new"), &cancel).unwrap().is_good());
    assert!(!store.verify(&id("old"), &cancel).unwrap().is_good());
    // From now on the good one is offered.
    import(&store, "newer", None, &bytes);
    assert_eq!(inode(&store, "new"), inode(&store, "newer"));
}

#[test]
fn entries_of_no_layer_are_swept_when_the_store_is_opened() {
    let store = root();
    let path = store.root().to_owned();
    import(&store, "layer", None, &tar(&[("f", b"x")]));
    // A removal that died before the index's entry went.
    fs::remove_dir_all(path.join("layer")).unwrap();
    let again = open(&path).unwrap();
    assert_eq!(again.recovery().deleted.len(), 1, "{:?}", again.recovery());
    assert!(again.recovery().deleted[0].starts_with("cache/disks/"));
    assert_eq!(shared(&store), 0);
    assert!(again.cleanup().unwrap().is_empty());
}
