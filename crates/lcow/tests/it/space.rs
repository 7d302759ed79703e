//! df, prune, and what `check --repair` puts aside.

use std::process::Command;

use crate::archive::{ImageSpec, noise, oci, tar};
use crate::support::{Lab, str};

fn image(lab: &Lab, name: &str, files: &[(&str, &[u8])]) -> std::path::PathBuf {
    let spec = ImageSpec::new(name, vec![tar(files)]);
    lab.image(&format!("{name}.tar"), &oci(&[spec]))
}

/// An image's layers, as a process leaves them that dies before it names the image.
fn orphans(lab: &Lab) -> usize {
    let archive = image(lab, "demo", &[("big", &noise(1 << 20, 9))]);
    lab.ok(&["load", str(&archive)]);
    let layers = lab.json(&["layer", "ls"]);
    let layers = layers.as_array().unwrap();
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(done.unwrap().success());
    };
    for layer in layers {
        let id = layer["id"].as_str().unwrap();
        copy(&lab.root().join(id), &lab.path(id));
    }
    lab.ok(&["rmi", "demo"]);
    for layer in layers {
        let id = layer["id"].as_str().unwrap();
        copy(&lab.path(id), &lab.root().join(id));
    }
    layers.len()
}

#[test]
fn prune_removes_what_nothing_needs_and_nothing_else() {
    let lab = Lab::new();
    let count = orphans(&lab);
    lab.ok(&["layer", "create", "mine"]);
    let other = image(&lab, "other", &[("small", b"1")]);
    lab.ok(&["load", str(&other)]);
    let all = lab.json(&["layer", "ls"]).as_array().unwrap().len();

    let df = lab.json(&["df"]);
    assert_eq!(df["unneeded"].as_array().unwrap().len(), count);
    assert!(df["reclaimable"].as_u64().unwrap() > 1 << 20, "{df}");
    assert_eq!(lab.ok(&["df"]).lines().count(), 8);
    assert_eq!(lab.ok(&["df", "--layers"]).lines().count(), all + 1);

    let plan = lab.json(&["prune", "--dry-run"]);
    assert_eq!(plan["layers"].as_array().unwrap().len(), count);
    assert_eq!(lab.json(&["layer", "ls"]).as_array().unwrap().len(), all);
    let text = lab.ok(&["prune"]);
    assert_eq!(text.matches("deleted layer").count(), count, "{text}");
    assert!(text.contains("freed 1."), "{text}");
    assert_eq!(
        lab.json(&["layer", "ls"]).as_array().unwrap().len(),
        all - count
    );
    lab.ok(&["layer", "inspect", "mine", "other"]);
    assert_eq!(lab.ok(&["prune", "--quiet", "--cache"]), "");
    assert_eq!(lab.json(&["df"])["reclaimable"], 0);
}

#[test]
fn check_repair_puts_a_damaged_layer_aside_and_loading_brings_it_back() {
    let lab = Lab::new();
    let archive = image(&lab, "demo", &[("f", b"some content here")]);
    lab.ok(&["load", str(&archive)]);
    lab.ok(&["check", "--repair"]);
    let layers = lab.json(&["layer", "ls"]);
    let base = layers[0]["id"].as_str().unwrap();
    let path = lab.root().join(base).join("layer.vhd");
    let mut disk = std::fs::read(&path).unwrap();
    let at = disk.windows(12).position(|w| w == b"some content").unwrap();
    disk[at] ^= 1;
    std::fs::write(&path, disk).unwrap();

    let error = lab.fails(1, &["check"]);
    assert!(error.contains("damaged"), "{error}");
    let run = lab.run(&["check", "--repair"]);
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(text.contains("quarantine"), "{text}");
    assert!(lab.root().join("quarantine").join(base).is_dir());
    lab.ok(&["load", str(&archive)]);
    lab.ok(&["check"]);
    assert!(lab.json(&["df"])["quarantine"].as_u64().unwrap() > 0);
}
