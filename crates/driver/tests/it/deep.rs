//! Chains of 500 layers, and stores of many.

use lcow_driver::{Against, Cancel, ChangeKind, ErrorKind, Removed};
use lcow_layer::tree::{Follow, Tree};

use crate::common::{id, import, kind, open, root, small_sandbox, tar};

const DEPTH: usize = 500;

#[test]
fn five_hundred_layers_are_made_seen_compared_and_removed() {
    let store = root();
    let name = |n: usize| format!("layer-{n:03}");
    for n in 0..DEPTH {
        let own = format!("own-{n}");
        let number = n.to_string();
        let whiteout = format!(".wh.own-{}", n.wrapping_sub(2));
        let mut files = vec![(own.as_str(), &b"x"[..]), ("all", number.as_bytes())];
        // Every tenth layer takes away what the last but one brought.
        if n % 10 == 9 {
            files.push((&whiteout, b""));
        }
        let parent = n.checked_sub(1).map(name);
        import(&store, &name(n), parent.as_deref(), &tar(&files));
    }
    let top = id(&name(DEPTH - 1));
    store
        .create_read_write(&id("box"), Some(&top), &small_sandbox())
        .unwrap();
    assert_eq!(store.chain(&id("box")).unwrap().len(), DEPTH);
    assert_eq!(store.disks(&id("box")).unwrap().len(), DEPTH + 1);

    let chain = store.open_chain(&id("box")).unwrap();
    let union = chain.union().unwrap();
    let names = union.read_dir(union.root()).unwrap();
    assert_eq!(names.len(), 1 + DEPTH - DEPTH / 10);
    let all = union.resolve(b"all", Follow::No).unwrap();
    let mut bytes = [0; 8];
    let n = union.open_file(&all.node).unwrap().read_at(0, &mut bytes);
    assert_eq!(&bytes[..n.unwrap()], b"499");
    drop(chain);

    let changes = store.changes(&top, &Against::Parent).unwrap();
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert_eq!(store.changes(&id("box"), &Against::Parent).unwrap(), []);
    // Against the lowest: its file and the common one stand, all others are new, but for those that went again.
    let all = store.changes(&top, &Against::Layer(id(&name(0)))).unwrap();
    let added = all.iter().filter(|c| c.kind == ChangeKind::Added).count();
    assert_eq!(added, DEPTH - 1 - DEPTH / 10);
    let mut out = Vec::new();
    let cancel = Cancel::new();
    let own = store
        .diff(&top, &Against::Parent, &mut out, &cancel)
        .unwrap();
    assert!(own.exact);
    store
        .diff(&top, &Against::Nothing, &mut std::io::sink(), &cancel)
        .unwrap();
    store.commit(&id("box"), &id("committed"), &cancel).unwrap();

    assert_eq!(kind(store.remove(&id(&name(250)))), ErrorKind::HasChildren);
    drop(open(store.root()).unwrap());
    for name in ["committed".into(), "box".into()]
        .into_iter()
        .chain((0..DEPTH).rev().map(name))
    {
        assert_eq!(store.remove(&id(&name)).unwrap(), Removed::Removed);
    }
    assert_eq!(store.layers().unwrap(), []);
    assert!(store.cleanup().unwrap().is_empty());
}
