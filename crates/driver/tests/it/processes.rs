//! Several processes, and many threads, on one data root.

use lcow_driver::{Access, DriverError, ErrorKind, OpenOptions, Placed, Removed, Store};

use crate::common::{id, import, kind, open, root, small_sandbox, tar};
use crate::helper::Peer;

fn exclusive() -> OpenOptions {
    OpenOptions {
        access: Access::Exclusive,
        ..OpenOptions::default()
    }
}

/// The error must name the peer, by pid and by command.
fn names(error: &DriverError, peer: &Peer) {
    assert!(matches!(error, DriverError::Busy { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains(&format!("pid {} (", peer.pid())) && text.contains("helper::process"),
        "{text}"
    );
    assert!(error.hint().is_some());
}

#[test]
fn spec_root_a_daemon_has_it_for_itself_and_commands_share_it() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Peer::start("exclusive", dir.path());
    names(&open(dir.path()).unwrap_err(), &daemon);
    names(&Store::open(dir.path(), exclusive()).unwrap_err(), &daemon);
    assert_eq!(daemon.finish().matches("panicked").count(), 0);

    let command = Peer::start("shared", dir.path());
    drop(open(dir.path()).unwrap());
    names(&Store::open(dir.path(), exclusive()).unwrap_err(), &command);
    command.kill();
    drop(Store::open(dir.path(), exclusive()).unwrap());
}

#[test]
fn the_lock_goes_with_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Peer::start("exclusive", dir.path());
    daemon.kill();
    // Its pid is still in the file; that decides nothing.
    assert!(
        std::fs::read_to_string(dir.path().join("lock"))
            .unwrap()
            .contains("helper")
    );
    drop(open(dir.path()).unwrap());
    // Within one process as well.
    let store = Store::open(dir.path(), exclusive()).unwrap();
    assert_eq!(kind(open(dir.path())), ErrorKind::InUse);
    let other = store.clone();
    drop(store);
    assert_eq!(kind(open(dir.path())), ErrorKind::InUse);
    drop(other);
    open(dir.path()).unwrap();
}

#[test]
fn a_reference_of_a_live_process_blocks_removal_and_one_of_a_dead_does_not() {
    let store = root();
    store.create(&id("layer"), None).unwrap();
    let peer = Peer::start("reference", store.root());
    match store.remove(&id("layer")) {
        Err(DriverError::InUse { by, .. }) => assert_eq!(by[0].pid, peer.pid()),
        other => panic!("{other:?}"),
    }
    peer.kill();
    assert_eq!(store.remove(&id("layer")).unwrap(), Removed::Removed);
}

#[test]
fn a_running_sandbox_blocks_removal_reading_and_a_second_run() {
    let store = root();
    store
        .create_read_write(&id("sandbox"), None, &small_sandbox())
        .unwrap();
    let peer = Peer::start("sandbox", store.root());
    for error in [
        store.remove(&id("sandbox")).unwrap_err(),
        store.lock_sandbox(&id("sandbox")).unwrap_err(),
        store.diff_getter(&id("sandbox")).unwrap_err(),
    ] {
        assert!(
            error.to_string().contains(&format!("pid {}", peer.pid())),
            "{error}"
        );
    }
    peer.kill();
    drop(store.lock_sandbox(&id("sandbox")).unwrap());
    store.remove(&id("sandbox")).unwrap();
}

#[test]
fn two_processes_that_create_the_same_layers_make_each_once() {
    let store = root();
    let peers = [
        Peer::start("create", store.root()),
        Peer::start("create", store.root()),
    ];
    let own = (0..100)
        .filter(|n| store.create(&id(&format!("layer-{n}")), None).is_ok())
        .count();
    let theirs: usize = peers
        .into_iter()
        .map(|p| {
            p.finish()
                .split("made ")
                .nth(1)
                .unwrap()
                .split_whitespace()
                .next()
                .unwrap()
                .parse::<usize>()
                .unwrap()
        })
        .sum();
    assert_eq!(own + theirs, 100);
    assert_eq!(store.layers().unwrap().len(), 100);
}

#[test]
fn sixty_four_threads_make_the_same_layer_once_and_their_own_each() {
    let store = root();
    import(&store, "base", None, &tar(&[("f", b"x")]));
    let shared = tar(&[("shared", b"y")]);
    let created: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..64)
            .map(|n| {
                let (store, shared) = (&store, &shared);
                scope.spawn(move || {
                    let own = format!("own-{n}");
                    store.create(&id(&own), Some(&id("base"))).unwrap();
                    let created = import(store, "shared", Some("base"), shared) == Placed::Created;
                    if n % 4 == 0 {
                        let box_id = id(&format!("box-{n}"));
                        store
                            .create_read_write(&box_id, Some(&id("base")), &small_sandbox())
                            .unwrap();
                        store.remove(&box_id).unwrap();
                    }
                    assert_eq!(kind(store.remove(&id("base"))), ErrorKind::HasChildren);
                    store.remove(&id(&own)).unwrap();
                    usize::from(created)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(created, 1);
    assert_eq!(store.layers().unwrap(), [id("base"), id("shared")]);
    assert!(store.cleanup().unwrap().is_empty());
}

#[test]
fn creating_children_and_removing_their_parent_never_leaves_an_orphan() {
    let store = root();
    for round in 0..20 {
        store.create(&id("parent"), None).unwrap();
        let child = id(&format!("child-{round}"));
        let (made, removed) = std::thread::scope(|scope| {
            let made = scope.spawn(|| store.create(&child, Some(&id("parent"))));
            let removed = scope.spawn(|| store.remove(&id("parent")));
            (made.join().unwrap(), removed.join().unwrap())
        });
        match (made, removed) {
            (Ok(_), Err(DriverError::HasChildren { .. })) => {
                store.remove(&child).unwrap();
                store.remove(&id("parent")).unwrap();
            }
            (Err(DriverError::NoParent { .. }), Ok(Removed::Removed)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nobody_waits_for_an_apply_that_goes_on_elsewhere() {
    let store = root();
    import(&store, "base", None, &tar(&[("f", b"x")]));
    let peers = [
        Peer::start("half-import", store.root()),
        Peer::start("half-apply", store.root()),
    ];
    // Both are in the middle of a tar, and stay there.
    import(&store, "top", Some("base"), &tar(&[("g", b"y")]));
    store
        .create_read_write(&id("box"), Some(&id("top")), &small_sandbox())
        .unwrap();
    let cancel = Default::default();
    store.commit(&id("box"), &id("committed"), &cancel).unwrap();
    for name in ["base", "top", "box", "committed"] {
        assert!(store.verify(&id(name), &cancel).unwrap().is_good());
        store.changes(&id(name), &Default::default()).unwrap();
        store
            .diff(
                &id(name),
                &Default::default(),
                &mut std::io::sink(),
                &cancel,
            )
            .unwrap();
        store.metadata(&id(name)).unwrap();
    }
    store.remove(&id("box")).unwrap();
    assert_eq!(store.layers().unwrap().len(), 4, "the one half applied too");
    store.space().unwrap();
    assert!(open(store.root()).unwrap().recovery().is_empty());
    // What is applied is what stays out of reach.
    assert_eq!(kind(store.remove(&id("layer"))), ErrorKind::InUse);
    peers.into_iter().for_each(Peer::kill);
}
