//! Data roots of the original driver, and roots that were moved.

use std::fs;
use std::os::unix::fs::FileExt;

use lcow_driver::{Against, Cancel, ChangeKind, DiskFormat, ErrorKind, Kind};

use crate::common::{id, import, kind, open, root, small_sandbox, tar};

#[test]
fn spec_names_keeps_chains_of_absolute_paths_are_read_by_their_final_components() {
    let table = [
        (
            r#"["C:\\ProgramData\\docker\\lcow\\top","C:\\ProgramData\\docker\\lcow\\base"]"#,
            &["top", "base"][..],
        ),
        (
            r#"["/var/lib/docker/lcow/top","/var/lib/docker/lcow/base"]"#,
            &["top", "base"],
        ),
        (
            r#"["\\\\?\\Volume{1-2}\\lcow\\top", "base"]"#,
            &["top", "base"],
        ),
        ("[]", &[]),
        ("null", &[]),
    ];
    for (json, chain) in table {
        let dir = tempfile::tempdir().unwrap();
        for name in ["base", "top", "layer"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("top/layerchain.json"), r#"["C:\\x\\base"]"#).unwrap();
        fs::write(dir.path().join("layer/layerchain.json"), json).unwrap();
        let store = open(dir.path()).unwrap();
        let expected: Vec<_> = chain.iter().map(|name| id(name)).collect();
        assert_eq!(store.chain(&id("layer")).unwrap(), expected, "{json}");
        assert_eq!(
            store.chain(&id("base")).unwrap(),
            [],
            "without a file there are no parents"
        );
        assert!(dir.path().join("store.json").exists());
        assert_eq!(kind(store.remove(&id("base"))), ErrorKind::HasChildren);
    }
}

#[test]
fn chains_that_make_no_sense_are_damaged_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("layer")).unwrap();
    let store = open(dir.path()).unwrap();
    for json in [
        "",
        "{}",
        "[1]",
        r#"[".."]"#,
        r#"["cache"]"#,
        r#"["layer"]"#,
        r#"["a"#,
    ] {
        fs::write(dir.path().join("layer/layerchain.json"), json).unwrap();
        assert_eq!(
            kind(store.chain(&id("layer"))),
            ErrorKind::Corrupt,
            "{json:?}"
        );
    }
}

#[test]
fn a_layer_without_a_record_and_with_a_bare_footer_is_read() {
    let store = root();
    import(&store, "new", None, &tar(&[("f", b"hello")]));
    let dir = store.root().join("old");
    fs::create_dir(&dir).unwrap();
    fs::copy(store.root().join("new/layer.vhd"), dir.join("layer.vhd")).unwrap();
    // The original wrote no geometry, and a creator that nobody else knows.
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(dir.join("layer.vhd"))
        .unwrap();
    let at = file.metadata().unwrap().len() - 512;
    let mut footer = [0; 512];
    file.read_exact_at(&mut footer, at).unwrap();
    footer[28..32].copy_from_slice(b"xyz\0");
    footer[56..60].fill(0);
    footer[64..68].fill(0);
    let sum = !footer.iter().map(|&b| u32::from(b)).sum::<u32>();
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
    file.write_all_at(&footer, at).unwrap();

    let m = store.metadata(&id("old")).unwrap();
    assert_eq!((m.kind, m.applied, m.created), (Kind::Layer, None, None));
    assert_eq!(m.disk_size, at);
    let mut text = String::new();
    std::io::Read::read_to_string(
        &mut store.diff_getter(&id("old")).unwrap().open(b"f").unwrap(),
        &mut text,
    )
    .unwrap();
    assert_eq!(text, "hello");
    // There is nothing to re-emit its tar from: it is made from the disk.
    let mut out = Vec::new();
    let summary = store
        .diff(&id("old"), &Against::Parent, &mut out, &Default::default())
        .unwrap();
    assert!(!summary.exact && summary.size == out.len() as u64);
    assert!(
        store
            .verify(&id("old"), &Default::default())
            .unwrap()
            .is_good()
    );
}

#[test]
fn spec_names_mends_a_store_that_was_moved_works_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let bytes = tar(&[("f", b"x")]);
    {
        let store = open(&old).unwrap();
        import(&store, "base", None, &bytes);
        store
            .create_read_write(&id("box"), Some(&id("base")), &small_sandbox())
            .unwrap();
    }
    fs::rename(&old, &new).unwrap();
    let store = open(&new).unwrap();
    assert_eq!(store.chain(&id("box")).unwrap(), [id("base")]);
    for disk in store.disks(&id("box")).unwrap() {
        assert!(disk.path.starts_with(fs::canonicalize(&new).unwrap()) && disk.path.exists());
    }
    let mut out = Vec::new();
    store
        .diff(&id("base"), &Against::Parent, &mut out, &Default::default())
        .unwrap();
    assert!(out == bytes);
    store
        .create_read_write(&id("box2"), Some(&id("base")), &small_sandbox())
        .unwrap();
}

/// Writes files below a directory.
fn tree(dir: &std::path::Path, files: &[(&str, &str)]) -> std::path::PathBuf {
    for (path, text) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir.to_owned()
}

#[test]
fn spec_names_a_data_root_of_the_original_driver_opens_and_its_sandbox_is_read() {
    use ChangeKind::{Added, Deleted, Modified};
    for program in ["mke2fs", "debugfs", "qemu-img"] {
        if !lcow_testkit::have(program) {
            lcow_testkit::skip!("{program} is not installed");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("lcow");
    for layer in ["base", "top", "box", "fresh"] {
        fs::create_dir_all(root.join(layer)).unwrap();
    }
    let chain = |layer: &str, parents: &[&str]| {
        let parents: Vec<_> = parents
            .iter()
            .map(|p| format!("C:\\\\ProgramData\\\\docker\\\\lcow\\\\{p}"))
            .collect();
        let json = format!("[\"{}\"]", parents.join("\",\""));
        fs::write(root.join(layer).join("layerchain.json"), json).unwrap();
    };
    chain("top", &["base"]);
    chain("box", &["top", "base"]);
    chain("fresh", &["top", "base"]);
    let base = [("etc/motd", "base"), ("etc/gone", "x"), ("keep", "k")];
    let base = tree(&dir.path().join("base"), &base);
    lcow_testkit::original_layer(&root.join("base/layer.vhd"), &base);
    let top = tree(&dir.path().join("top"), &[("top", "t")]);
    lcow_testkit::original_layer(&root.join("top/layer.vhd"), &top);
    let changed = [
        ("upper/etc/motd", "changed"),
        ("upper/new", "n"),
        ("work/work/x", ""),
    ];
    let changed = tree(&dir.path().join("box"), &changed);
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(changed.join("upper/etc"), private).unwrap();
    let sandbox = root.join("box/sandbox.vhdx");
    lcow_testkit::original_sandbox(&sandbox, &changed, &["/upper/etc/gone"]);
    // One that was made, and never mounted: its first mount would have made the directories.
    let nothing = tree(&dir.path().join("nothing"), &[("lost", "")]);
    fs::remove_file(nothing.join("lost")).unwrap();
    lcow_testkit::original_sandbox(&root.join("fresh/sandbox.vhdx"), &nothing, &[]);

    let store = open(&root).unwrap();
    let m = store.metadata(&id("box")).unwrap();
    assert_eq!(
        (m.kind, m.format, m.disk_size),
        (Kind::Sandbox, DiskFormat::Vhdx, 64 << 20)
    );
    assert_eq!((m.parents, m.sandbox), (vec![id("top"), id("base")], None));
    let changes = |layer: &str, against: &Against| -> Vec<(String, ChangeKind)> {
        let changes = store.changes(&id(layer), against).unwrap();
        let text = |path| String::from_utf8(path).unwrap();
        changes
            .into_iter()
            .map(|c| (text(c.path), c.kind))
            .collect()
    };
    let own = [
        ("etc", Modified),
        ("etc/gone", Deleted),
        ("etc/motd", Modified),
        ("new", Added),
    ];
    let own = own.map(|(path, kind)| (path.to_owned(), kind));
    assert_eq!(changes("box", &Against::Parent), own);
    assert_eq!(
        store.diff_size(&id("box"), &Against::Parent).unwrap(),
        7 + 1
    );
    assert_eq!(changes("fresh", &Against::Parent), []);
    assert_eq!(changes("fresh", &Against::Layer(id("box"))).len(), 4);
    let getter = store.diff_getter(&id("fresh")).unwrap();
    assert!(getter.tree().is_none());
    assert_eq!(getter.open(b"new").unwrap_err().kind(), ErrorKind::NotFound);
    for layer in ["box", "fresh", "top", "base"] {
        let report = store.verify(&id(layer), &Cancel::new()).unwrap();
        assert!(report.is_good(), "{report:?}");
    }

    // Committed, it is a layer like any other; and a new sandbox beside it has the store's own format.
    store
        .commit(&id("box"), &id("new"), &Cancel::new())
        .unwrap();
    assert_eq!(changes("new", &Against::Parent), own);
    assert_eq!(changes("new", &Against::Layer(id("box"))), []);
    store
        .create_read_write(&id("box2"), Some(&id("new")), &small_sandbox())
        .unwrap();
    // What is damaged in the container is told apart from what is damaged in it.
    let file = fs::File::options().write(true).open(&sandbox).unwrap();
    file.write_all_at(&[0xff; 8], 2 << 20).unwrap();
    file.write_all_at(&[0xff; 8], (64 << 10) + 4).unwrap();
    file.write_all_at(&[0xff; 8], (128 << 10) + 4).unwrap();
    assert_eq!(
        kind(store.changes(&id("box"), &Against::Parent)),
        ErrorKind::Corrupt
    );
    store.remove(&id("box")).unwrap();
}
