//! Data roots of the original driver, and roots that were moved.

use std::fs;
use std::os::unix::fs::FileExt;

use lcow_driver::{Against, ErrorKind, Kind};

use crate::common::{id, import, kind, open, root, small_sandbox, tar};

#[test]
fn chains_of_absolute_paths_are_read_by_their_final_components() {
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
fn a_store_that_was_moved_works_as_before() {
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
