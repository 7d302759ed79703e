//! Ids can't leave the data root.

use lcow_driver::{ErrorKind, LayerId, MAX_ID};

use crate::common::{id, kind, root};

#[test]
fn spec_names_mends_the_final_component_counts_in_both_kinds_of_path() {
    let table = [
        ("abc", "abc"),
        ("/var/lib/docker/lcow/abc", "abc"),
        (r"C:\ProgramData\docker\lcow\abc", "abc"),
        (r"\\?\C:\lcow\abc\", "abc"),
        (r"mixed/up\abc", "abc"),
        ("abc/", "abc"),
        ("../../etc", "etc"),
        ("sha256:00ff", "sha256:00ff"),
        ("x-removing-not", "x-removing-not"),
        ("ünï", "ünï"),
    ];
    for (given, taken) in table {
        assert_eq!(LayerId::new(given).unwrap().as_str(), taken, "{given}");
    }
}

#[test]
fn spec_names_mends_unusable_and_reserved_ids_are_refused() {
    let long = "x".repeat(MAX_ID + 1);
    let table = [
        "",
        "/",
        r"\",
        ".",
        "..",
        "a/..",
        "a/.",
        "nul\0",
        "cache",
        "scratch",
        "uvm",
        "lock",
        "store.json",
        "images",
        "containers",
        "tmp",
        "/x/cache",
        "abc-removing",
        "-removing",
        &long,
    ];
    for given in table {
        assert_eq!(kind(LayerId::new(given)), ErrorKind::Invalid, "{given}");
    }
    assert!(LayerId::new(&long[1..]).is_ok());
}

#[test]
fn spec_names_mends_an_empty_parent_is_no_parent() {
    assert_eq!(LayerId::parent("").unwrap(), None);
    assert_eq!(LayerId::parent("a").unwrap(), Some(id("a")));
    assert_eq!(kind(LayerId::parent("..")), ErrorKind::Invalid);
}

#[test]
fn spec_names_the_longest_ids_can_be_made_and_removed() {
    let store = root();
    // "-removing" does not fit behind these.
    for len in [MAX_ID, MAX_ID - 8, MAX_ID - 9] {
        let id = id(&"y".repeat(len));
        store.create(&id, None).unwrap();
        store.remove(&id).unwrap();
        assert!(!store.exists(&id).unwrap());
    }
    assert!(store.cleanup().unwrap().is_empty());
}
