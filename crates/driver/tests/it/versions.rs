//! Stores of other versions.

use std::fs;

use lcow_driver::{DriverError, ErrorKind};

use crate::common::{id, kind, open};

fn with_record(json: &str) -> (tempfile::TempDir, Result<lcow_driver::Store, DriverError>) {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    fs::write(dir.path().join("store.json"), json).unwrap();
    let store = open(dir.path());
    (dir, store)
}

#[test]
fn spec_root_a_newer_store_is_not_opened_and_the_error_says_what_is_new() {
    let table = [
        (r#"{"layout": 2, "who": "knows"}"#, "layout 2"),
        (
            r#"{"layout": 1, "incompat": ["sharded", "x"]}"#,
            "sharded, x",
        ),
    ];
    for (json, word) in table {
        let (dir, store) = with_record(json);
        let error = store.unwrap_err();
        assert!(matches!(error, DriverError::NewerStore { .. }), "{error:?}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.hint().unwrap().contains("newer version"));
        assert_eq!(
            fs::read_to_string(dir.path().join("store.json")).unwrap(),
            json,
            "untouched"
        );
    }
}

#[test]
fn spec_root_unknown_ro_compat_features_allow_reading_only() {
    let (dir, store) = with_record(r#"{"layout": 1, "ro_compat": ["quota"]}"#);
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::create_dir(dir.path().join("b-removing")).unwrap();
    let store = store.unwrap();
    assert!(store.exists(&id("a")).unwrap());
    for error in [
        store.create(&id("n"), None).unwrap_err(),
        store.remove(&id("a")).unwrap_err(),
        store.cleanup().unwrap_err(),
        store
            .create_read_write(&id("n"), None, &Default::default())
            .unwrap_err(),
    ] {
        assert!(
            matches!(error, DriverError::ReadOnlyStore { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("quota"), "{error}");
    }
    assert!(dir.path().join("b-removing").exists());
}

#[test]
fn spec_root_unknown_compat_features_are_nobodys_business() {
    let (_dir, store) = with_record(r#"{"layout": 1, "compat": ["colors"], "more": 1}"#);
    store.unwrap().create(&id("n"), None).unwrap();
}

#[test]
fn a_damaged_record_is_damage() {
    for json in [
        "",
        "[]",
        "{}",
        r#"{"layout": "1"}"#,
        r#"{"layout": 1, "incompat": 7}"#,
    ] {
        let (_dir, store) = with_record(json);
        assert_eq!(kind(store), ErrorKind::Corrupt, "{json:?}");
    }
}
