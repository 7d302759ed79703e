//! Every row of the driver's contract has a test that is named after it, here or where there is a VM or a command line.

use std::collections::BTreeSet;
use std::fs;

/// What the contract has rows for, and in which crate's tests at least one is: data root, options, operations, reading.
const ROWS: &[(&str, &[&str])] = &[
    ("names", &["driver"]),
    ("root", &["driver"]),
    ("options", &["driver", "lcow"]),
    ("init", &["driver", "uvm"]),
    ("exists", &["driver"]),
    ("status", &["driver", "lcow"]),
    ("create", &["driver"]),
    ("create_read_write", &["driver"]),
    ("apply_diff", &["driver", "lcow"]),
    ("diff", &["driver", "uvm"]),
    ("changes", &["driver"]),
    ("diff_size", &["driver"]),
    ("diff_getter", &["driver"]),
    ("get", &["driver", "uvm"]),
    ("put", &["driver", "uvm"]),
    ("remove", &["driver", "uvm"]),
    ("metadata", &["driver"]),
    ("layer_path", &["driver"]),
    ("cleanup", &["driver"]),
    ("commit", &["driver"]),
    ("verify", &["driver"]),
    ("repair", &["driver"]),
    ("operations", &["lcow"]),
    ("disks", &["uvm"]),
    ("read_only_access", &["driver", "uvm"]),
];

/// The names of a crate's tests, without `spec_`, that begin with it.
fn named(krate: &str) -> BTreeSet<String> {
    let dir = lcow_testkit::workspace_root().join(format!("crates/{krate}/tests/it"));
    let mut names = BTreeSet::new();
    for file in fs::read_dir(dir).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for test in text.split("#[test]\n").skip(1) {
            let name = test
                .strip_prefix("fn spec_")
                .and_then(|t| t.split('(').next());
            names.extend(name.map(str::to_owned));
        }
    }
    names
}

#[test]
fn each_row_has_a_test_and_each_such_test_a_row() {
    for krate in ["driver", "uvm", "lcow"] {
        let names = named(krate);
        let is_of = |name: &str, row: &str| {
            // Two rows may share a test.
            name.strip_prefix(row)
                .is_some_and(|rest| rest.starts_with('_'))
                || name.contains(&format!("_and_{row}_"))
        };
        for (row, crates) in ROWS {
            if crates.contains(&krate) {
                let found = names.iter().any(|name| is_of(name, row));
                assert!(found, "{krate} has no test of {row}");
            }
        }
        for name in &names {
            let of_any = ROWS.iter().any(|(row, _)| is_of(name, row));
            assert!(of_any, "{krate}: spec_{name} is of no row");
        }
    }
}
