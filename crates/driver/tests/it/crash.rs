//! What a process leaves that dies, and what the next one makes of it.

use std::fs;

use lcow_driver::{Kind, Recovery};

use crate::common::{id, import, open, root, small_sandbox, snapshot, tar};
use crate::helper::Peer;

#[test]
fn kill_9_in_the_middle_of_an_import_leaves_nothing() {
    for role in ["half-import", "half-import-isolated"] {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()).unwrap());
        let before = snapshot(dir.path());
        let peer = Peer::start(role, dir.path());
        assert!(
            snapshot(dir.path())
                .keys()
                .any(|p| p.ends_with("layer/layer.vhd")),
            "it is in the middle"
        );
        // A store that opens meanwhile leaves the live one's half-made things alone.
        let store = open(dir.path()).unwrap();
        assert!(store.recovery().is_empty());
        assert!(!store.exists(&id("layer")).unwrap());
        drop(store);
        peer.kill();
        let store = open(dir.path()).unwrap();
        assert_eq!(store.recovery().deleted.len(), 1, "{role}");
        assert_eq!(snapshot(dir.path()), before, "{role}");
        import(&store, "layer", None, &tar(&[("f", b"x")]));
        drop(store);
        assert!(
            open(dir.path()).unwrap().recovery().is_empty(),
            "recovery twice is recovery once"
        );
    }
}

#[test]
fn kill_9_in_the_middle_of_an_apply_leaves_a_layer_without_contents() {
    let dir = tempfile::tempdir().unwrap();
    let peer = Peer::start("half-apply", dir.path());
    peer.kill();
    let store = open(dir.path()).unwrap();
    assert_eq!(store.recovery().deleted.len(), 1);
    assert_eq!(store.metadata(&id("layer")).unwrap().kind, Kind::Empty);
    assert_eq!(
        fs::read_dir(dir.path().join("layer")).unwrap().count(),
        2,
        "chain and record"
    );
    let bytes = tar(&[("f", b"x")]);
    store
        .apply_diff(
            &id("layer"),
            None,
            lcow_driver::Input::Reader(&mut &bytes[..]),
            &Default::default(),
            &Default::default(),
        )
        .unwrap();
}

#[test]
fn an_apply_that_died_between_its_renames_counts_as_none() {
    let store = root();
    let root = store.root().to_owned();
    import(&store, "whole", None, &tar(&[("f", b"x")]));
    store.create(&id("half"), None).unwrap();
    // Re-emission data and record are in place, the disk is not.
    for name in ["diff.split.zst", "layer.json"] {
        fs::copy(root.join("whole").join(name), root.join("half").join(name)).unwrap();
    }
    let again = open(&root).unwrap();
    assert_eq!(again.recovery().deleted, ["half/diff.split.zst"]);
    let m = again.metadata(&id("half")).unwrap();
    assert_eq!((m.kind, m.applied), (Kind::Empty, None));
    assert!(root.join("whole/diff.split.zst").exists());
    let bytes = tar(&[("g", b"y")]);
    again
        .apply_diff(
            &id("half"),
            None,
            lcow_driver::Input::Reader(&mut &bytes[..]),
            &Default::default(),
            &Default::default(),
        )
        .unwrap();
    assert!(
        again
            .verify(&id("half"), &Default::default())
            .unwrap()
            .is_good()
    );
}

#[test]
fn spec_init_mends_removals_are_finished_and_stale_scratch_and_temporary_files_deleted() {
    let store = root();
    let path = store.root().to_owned();
    import(&store, "a", None, &tar(&[("f", b"x")]));
    store
        .create_read_write(&id("box"), Some(&id("a")), &small_sandbox())
        .unwrap();
    drop(store.reference(&id("box")).unwrap());
    let before = snapshot(&path);
    fs::rename(path.join("box"), path.join("box-removing")).unwrap();
    fs::create_dir_all(path.join("tmp/layer-1234/layer")).unwrap();
    fs::write(path.join("tmp/layer-1234/layer/layer.vhd"), "half").unwrap();
    fs::write(path.join("tmp/file"), "half").unwrap();
    fs::create_dir(path.join("tmp/removing-5")).unwrap();
    std::os::unix::fs::symlink("/etc", path.join("tmp/link")).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        path.join("tmp/fifo"),
        rustix::fs::Mode::RUSR,
    )
    .unwrap();
    fs::write(path.join("scratch/dead.vhd"), "").unwrap();
    let live = fs::File::create(path.join("scratch/live.vhd")).unwrap();
    rustix::fs::flock(&live, rustix::fs::FlockOperation::LockExclusive).unwrap();

    let again = open(&path).unwrap();
    let expected = Recovery {
        removals_finished: vec!["box".into()],
        deleted: [
            "scratch/dead.vhd",
            "tmp/fifo",
            "tmp/file",
            "tmp/layer-1234",
            "tmp/link",
            "tmp/removing-5",
        ]
        .map(String::from)
        .to_vec(),
        failed: Vec::new(),
    };
    assert_eq!(*again.recovery(), expected);
    assert!(fs::metadata("/etc").is_ok());
    let mut after = snapshot(&path);
    assert!(
        after
            .remove(std::path::Path::new("scratch/live.vhd"))
            .is_some()
    );
    let without_box: std::collections::BTreeMap<_, _> = before
        .into_iter()
        .filter(|(p, _)| !p.starts_with("box"))
        .collect();
    assert_eq!(after, without_box);
    assert!(again.cleanup().unwrap().is_empty());
}

#[test]
fn a_removal_whose_directory_name_is_taken_still_works() {
    let store = root();
    store.create(&id("a"), None).unwrap();
    // A removal by a live process that is not through.
    let removing = store.root().join("a-removing");
    fs::create_dir(&removing).unwrap();
    let held = fs::File::open(&removing).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    store.remove(&id("a")).unwrap();
    assert!(!store.exists(&id("a")).unwrap());
    assert!(removing.exists() && store.cleanup().unwrap().is_empty());
    drop(held);
    assert_eq!(store.cleanup().unwrap().removals_finished, ["a"]);
}
