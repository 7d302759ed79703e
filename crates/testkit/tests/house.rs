//! The house's rules that a compiler doesn't hold: which crate may know which.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Each crate, and the crates of the house that it may use. `ARCHITECTURE.md` draws this.
const ARROW: &[(&str, &[&str])] = &[
    ("blockio", &[]),
    ("isal", &[]),
    ("protocol", &[]),
    ("ext4", &["blockio"]),
    ("disk", &["blockio"]),
    ("layer", &["blockio", "ext4", "disk", "isal"]),
    ("driver", &["blockio", "ext4", "disk", "layer"]),
    ("agent", &["protocol"]),
    (
        "uvm",
        &["blockio", "ext4", "disk", "layer", "driver", "protocol"],
    ),
    ("image", &["blockio", "ext4", "disk", "layer", "driver"]),
    (
        "lcow",
        &["blockio", "ext4", "disk", "layer", "driver", "uvm", "image"],
    ),
    ("testkit", &["blockio"]),
    ("benches", &["blockio", "layer", "driver"]),
    ("fuzz", &["blockio", "ext4", "disk", "layer"]),
];

/// Crates whose every line is safe Rust with checked arithmetic, since they read what strangers wrote.
const STRICT: &[&str] = &["ext4", "disk", "layer", "protocol"];

fn short(name: &str) -> &str {
    name.strip_prefix("lcow-").unwrap_or(name)
}

/// Crate → (dependency, kind) as cargo sees it.
fn edges() -> BTreeMap<String, BTreeSet<(String, String)>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .current_dir(lcow_testkit::workspace_root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |v: &serde_json::Value| v.as_array().cloned().unwrap_or_default();
    let text = |v: &serde_json::Value| v.as_str().unwrap_or("normal").to_owned();
    list(&metadata["packages"])
        .iter()
        .map(|package| {
            let own = list(&package["dependencies"])
                .iter()
                .map(|d| (text(&d["name"]), text(&d["kind"])))
                .filter(|(name, _)| name.starts_with("lcow"))
                .collect();
            (text(&package["name"]), own)
        })
        .collect()
}

#[test]
fn dependencies_follow_the_arrow() {
    let arrow: BTreeMap<_, _> = ARROW.iter().copied().collect();
    for (krate, dependencies) in edges() {
        let allowed = arrow
            .get(short(&krate))
            .unwrap_or_else(|| panic!("{krate} is not in the arrow: draw it first"));
        for (dependency, kind) in dependencies {
            let dependency = short(&dependency);
            let fine = match kind.as_str() {
                // The test kit serves everyone's tests, and only tests. The VM's host side is tested against the real
                // agent, run in the same process; the product has no such edge, since it embeds a built agent.
                "dev" => {
                    dependency == "testkit"
                        // Its own doubles.
                        || dependency == short(&krate)
                        || allowed.contains(&dependency)
                        || (short(&krate), dependency) == ("uvm", "agent")
                }
                _ => allowed.contains(&dependency),
            };
            assert!(fine, "{krate} may not depend on {dependency} ({kind})");
        }
    }
}

#[test]
fn crates_that_read_strangers_bytes_are_strict() {
    for krate in STRICT {
        let path = lcow_testkit::workspace_root()
            .join("crates")
            .join(krate)
            .join("src/lib.rs");
        let front = std::fs::read_to_string(path).unwrap();
        for line in [
            "#![forbid(unsafe_code)]",
            "clippy::arithmetic_side_effects",
            "clippy::cast_possible_truncation",
            "clippy::cast_possible_wrap",
            "clippy::cast_sign_loss",
        ] {
            assert!(
                front.contains(line),
                "crates/{krate}/src/lib.rs lacks {line}"
            );
        }
    }
}
