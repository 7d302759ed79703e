//! Layers with a dm-verity tree: `lcow.verity=true`.

use std::fs;
use std::process::Command;

use lcow_driver::{Against, Cancel, Isolation, OpenOptions, Options, Store};

use crate::common::{id, import, isolated, noise, tar};

fn open(path: &std::path::Path, isolation: Isolation) -> Store {
    let open = OpenOptions {
        options: Options::parse(["lcow.verity=true"]).unwrap(),
        isolation,
        ..OpenOptions::default()
    };
    Store::open(path, open).unwrap()
}

/// The first finding of a check of layer `l`.
fn finding(store: &Store) -> Option<(&'static str, String)> {
    let report = store.verify(&id("l"), &Cancel::new()).unwrap();
    assert!(report.checked.contains(&"verity"), "{report:?}");
    let finding = report.findings.into_iter().next()?;
    Some((finding.check, finding.problem))
}

#[test]
fn a_store_told_to_makes_trees_and_holds_layers_against_them() {
    let bytes = tar(&[("file", &noise(300_000, 5)), ("dir/", b"")]);
    let mut disks = Vec::new();
    for isolation in [isolated(), Isolation::InProcess] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), isolation);
        import(&store, "l", None, &bytes);
        assert_eq!(finding(&store), None);
        disks.push(fs::read(store.root().join("l/layer.vhd")).unwrap());
    }
    assert!(disks[0] == disks[1], "the same bytes wherever it is done");

    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Isolation::InProcess);
    import(&store, "l", None, &bytes);
    let applied = store.metadata(&id("l")).unwrap().applied.unwrap();
    let size = usize::try_from(applied.disk_size).unwrap();
    let disk = store.disk(&id("l")).unwrap().unwrap();
    assert!(
        disk.bytes > applied.disk_size + 4096,
        "a VM gets the tree too"
    );
    let good = fs::read(&disk.path).unwrap();
    let damage = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&disk.path, bad).unwrap();
        finding(&store).expect("it is found")
    };
    // A file's contents; the file system's own superblock; a leaf and the top of the tree.
    let needle = &noise(300_000, 5)[100_000..100_064];
    let file = good.windows(64).position(|w| w == needle).unwrap();
    let block = file / 4096;
    for (at, name) in [
        (
            file,
            format!("data block {block}, at byte {}", block * 4096),
        ),
        (1024 + 8, "data block 0, at byte 0".to_owned()),
        (
            size + 4096,
            format!("hash block 0 of level 0, at byte {}", size + 4096),
        ),
        (size, format!("superblock at byte {size}")),
    ] {
        let (check, problem) = damage(at);
        assert!(
            check == "verity" && problem.contains(&name),
            "{name}: {check}: {problem}"
        );
    }
    // A damaged tree keeps nobody from the file system.
    let mut out = Vec::new();
    let summary = store.diff(&id("l"), &Against::Parent, &mut out, &Cancel::new());
    assert!(summary.unwrap().exact && out == bytes);
    fs::write(&disk.path, &good).unwrap();

    // A root hash that is none.
    let record = store.root().join("l/layer.json");
    let text = fs::read_to_string(&record).unwrap();
    let root = applied.verity_root.unwrap();
    fs::write(&record, text.replace(&root, "beef")).unwrap();
    let (check, problem) = finding(&store).unwrap();
    assert!(
        check == "verity" && problem.contains("layer.json"),
        "{problem}"
    );
    fs::write(&record, text).unwrap();

    if !lcow_testkit::have("veritysetup") {
        lcow_testkit::skip!("no veritysetup");
    }
    let output = Command::new("/usr/sbin/veritysetup")
        .args(["verify", &format!("--hash-offset={size}")])
        .args([&disk.path, &disk.path])
        .arg(&root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
