//! `docs/format/store.md` against a store with one of everything.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lcow_driver::{
    ApplyRequest, Cancel, DiskFormat, Input, Isolation, LayerId, OpenOptions, Options,
    SandboxOptions, Store,
};

use crate::common::{id, tar};

/// The names in a directory.
fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The first column of a table.
fn column(table: &[Vec<String>]) -> BTreeSet<String> {
    table.iter().map(|row| row[0].clone()).collect()
}

/// All fields of a record; those of a record in it behind its name and a dot.
fn fields(value: &serde_json::Value, before: &str, into: &mut BTreeSet<String>) {
    for (name, value) in value.as_object().unwrap() {
        let name = format!("{before}{name}");
        if value.is_object() {
            fields(value, &format!("{name}."), into);
        }
        into.insert(name);
    }
}

fn record(path: &Path, into: &mut BTreeSet<String>) {
    let value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    fields(&value, "", into);
}

#[test]
fn spec_root_the_page_names_what_is_there_and_nothing_else() {
    let tables = lcow_testkit::page_tables("format/store.md");
    let [paths, store_fields, layer_fields] = tables.as_slice() else {
        panic!("{} tables", tables.len())
    };
    let dir = tempfile::tempdir().unwrap();
    let open = OpenOptions {
        options: Options::parse(["lcow.verity=true"]).unwrap(),
        isolation: Isolation::InProcess,
        ..OpenOptions::default()
    };
    let store = Store::open(dir.path(), open).unwrap();
    store.uvm_dir().unwrap();
    let compressed = zstd::encode_all(&tar(&[("f", b"x")])[..], 1).unwrap();
    store
        .import(
            &id("base"),
            None,
            Input::Reader(&mut &compressed[..]),
            &ApplyRequest::default(),
            &Cancel::new(),
        )
        .unwrap();
    for (name, format) in [("box", DiskFormat::Vhd), ("boxx", DiskFormat::Vhdx)] {
        let options = SandboxOptions {
            size: Some(16 << 20),
            format: Some(format),
            ..SandboxOptions::default()
        };
        store
            .create_read_write(&id(name), Some(&id("base")), &options)
            .unwrap();
    }

    store.create(&id("aside"), None).unwrap();
    store.quarantine(&id("aside")).unwrap();

    let page = column(paths);
    let (inside, root): (BTreeSet<_>, BTreeSet<_>) = page
        .iter()
        .map(|path| path.trim_end_matches('/'))
        .partition(|path| path.starts_with("<layer id>/"));
    let root: BTreeSet<&str> = root
        .into_iter()
        .filter(|path| !path.starts_with("<layer id>"))
        .map(|path| path.split('/').next().unwrap_or(path))
        .collect();
    let found = names(store.root());
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    let layers = BTreeSet::from(["base", "box", "boxx"]);
    assert_eq!(&found - &layers, root);
    let inside: BTreeSet<&str> = inside
        .iter()
        .map(|path| path.trim_start_matches("<layer id>/"))
        .collect();
    let found = ["base", "box", "boxx"].map(|layer| names(&store.root().join(layer)));
    let found: BTreeSet<_> = found.into_iter().flatten().collect();
    assert_eq!(
        found.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        inside
    );

    // Those names are no layer's, and the ending that the page gives is not either.
    for name in &root {
        assert!(LayerId::new(name).is_err(), "{name}");
    }
    let removing = page
        .iter()
        .find(|path| path.starts_with("<layer id>-"))
        .unwrap();
    let removing = removing.trim_end_matches('/').replace("<layer id>", "x");
    assert!(LayerId::new(&removing).is_err());
    fs::create_dir(store.root().join(&removing)).unwrap();
    let root = store.root().to_owned();
    drop(store);
    drop(crate::common::open(&root).unwrap());
    assert!(!root.join(&removing).exists(), "a removal is finished");

    let mut found = BTreeSet::new();
    record(&root.join("store.json"), &mut found);
    assert_eq!(found, column(store_fields));
    let mut found = BTreeSet::new();
    record(&root.join("base/layer.json"), &mut found);
    record(&root.join("box/layer.json"), &mut found);
    assert_eq!(found, column(layer_fields));
}
