use std::io::Write;
use std::process::Stdio;

use crate::archive::{ImageSpec, docker, gzip, oci, sorted, tar, two_layers, write_directory};
use crate::support::{Lab, stderr, stdout, str};

#[test]
fn load_list_save_load() {
    let lab = Lab::new();
    let spec = ImageSpec::new("demo", two_layers());
    let path = lab.image("in.tar", &sorted(oci(std::slice::from_ref(&spec))));
    let output = lab.run(&["load", str(&path)]);
    assert_eq!(
        stdout(&output),
        "demo:latest\n",
        "the name alone on standard output: {}",
        stderr(&output)
    );

    let images = lab.json(&["images"]);
    assert_eq!(images[0]["id"], spec.id());
    assert_eq!(images[0]["name"], "demo:latest");
    assert_eq!(images[0]["created"], "2024-05-06T07:08:09Z");
    let tars: usize = spec.layers.iter().map(Vec::len).sum();
    assert_eq!(images[0]["size"], tars);
    assert!(images[0]["disk_size"].as_u64().unwrap() > 0);
    assert!(lab.ok(&["images"]).contains("demo:latest"));
    assert_eq!(lab.ok(&["images", "-q"]).trim(), spec.id());

    lab.ok(&["save", "demo", "-o", "out.tar"]);
    let piped = lab.run(&["save", "demo"]);
    assert_eq!(piped.stdout, std::fs::read(lab.path("out.tar")).unwrap());

    let other = Lab::new();
    let mut load = other.command(&["load", "-"]);
    let mut child = load
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&gzip(&piped.stdout))
        .unwrap();
    assert_eq!(stdout(&child.wait_with_output().unwrap()), "demo:latest\n");
    let saved_diff_ids: Vec<_> = other
        .json(&["layer", "ls"])
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["diff_id"].clone())
        .collect();
    for id in spec.diff_ids() {
        assert!(saved_diff_ids.contains(&id.into()), "the diff IDs survive");
    }
    for lab in [lab, other] {
        lab.ok(&["layer", "verify", "--all"]);
        lab.ok(&["rmi", "demo"]);
        assert_eq!(lab.ok(&["layer", "ls", "-q"]), "");
        assert_eq!(lab.json(&["images"]), serde_json::json!([]));
        lab.assert_clean();
    }
}

#[test]
fn root_before_and_after_the_command() {
    let lab = Lab::new();
    let (a, b) = (lab.path("a"), lab.path("b"));
    lab.ok(&["--root", str(&a), "status"]);
    lab.ok(&["status", "--root", str(&b)]);
    assert!(a.join("store.json").exists() && b.join("store.json").exists());
    assert!(!lab.root().exists(), "the option wins over LCOW_ROOT");
    assert_eq!(lab.json(&["status"])["root"], str(&lab.root()));
}

#[test]
fn skopeo_takes_what_is_saved_and_gives_what_is_loaded() {
    if !lcow_testkit::have("skopeo") {
        lcow_testkit::skip!("skopeo is not installed");
    }
    let lab = Lab::new();
    let spec = lab.demo();
    lab.ok(&["save", "demo", "-o", "out.tar"]);
    let skopeo = |args: &[&str]| {
        let mut command = std::process::Command::new("skopeo");
        let output = command
            .args(["--insecure-policy"])
            .args(args)
            .current_dir(lab.directory.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "skopeo {args:?}: {}",
            stderr(&output)
        );
        stdout(&output)
    };
    let seen: serde_json::Value =
        serde_json::from_str(&skopeo(&["inspect", "oci-archive:out.tar"])).unwrap();
    assert_eq!(seen["Layers"].as_array().unwrap().len(), 2);
    assert_eq!(
        seen["Layers"][0],
        spec.diff_ids()[0],
        "layers are saved uncompressed"
    );
    let config: serde_json::Value =
        serde_json::from_str(&skopeo(&["inspect", "--config", "oci-archive:out.tar"])).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][1], spec.diff_ids()[1]);

    for target in [
        "oci:layout:demo",
        "oci-archive:again.tar:demo",
        "docker-archive:docker.tar:demo:latest",
    ] {
        skopeo(&["copy", "oci-archive:out.tar", target]);
        let path = target.split(':').nth(1).unwrap();
        let other = Lab::new();
        let from = lab.path(path);
        assert_eq!(other.ok(&["load", str(&from)]), "demo:latest\n", "{target}");
        let layers = other.json(&["layer", "ls"]);
        let ids: Vec<_> = layers
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|l| l["diff_id"].as_str())
            .collect();
        assert!(
            spec.diff_ids().iter().all(|id| ids.contains(&id.as_str())),
            "{target}: {ids:?}"
        );
    }
    // Docker's form, which is in the archive too.
    let seen = skopeo(&["inspect", "docker-archive:out.tar"]);
    assert!(seen.contains("\"Architecture\": \"amd64\""), "{seen}");
}

#[test]
fn docker_archives_and_root_file_systems() {
    let lab = Lab::new();
    let spec = ImageSpec::new("old:1", two_layers());
    let path = lab.image("docker.tar", &docker(&spec));
    assert_eq!(lab.ok(&["load", str(&path)]), "old:1\n");
    assert_eq!(
        lab.ok(&["load", str(&path), "--name", "new"]),
        "new:latest\n"
    );
    assert_eq!(
        lab.json(&["images"]).as_array().unwrap().len(),
        1,
        "one image of two names"
    );

    let layout = lab.path("layout");
    let tagged = ImageSpec {
        name: Some("3.1".to_owned()),
        ..spec
    };
    write_directory(&oci(&[tagged]), &layout);
    assert_eq!(
        lab.ok(&["load", str(&layout)]),
        "layout:3.1\n",
        "a bare tag takes the directory's name"
    );

    let rootfs = lab.write(
        "rootfs.tar.gz",
        &gzip(&tar(&[("etc/", b""), ("etc/x", b"x")])),
    );
    let id = lab.ok(&["load", str(&rootfs)]);
    assert!(
        id.starts_with("sha256:") && id.trim().len() == 71,
        "the id where there is no name: {id}"
    );
    assert_eq!(
        lab.ok(&["load", str(&rootfs), "--name", "bare:2"]),
        "bare:2\n"
    );
    assert_eq!(lab.json(&["images", "bare"])[0]["id"], id.trim());
}

#[test]
fn two_loads_at_once() {
    let lab = Lab::new();
    let path = lab.image("demo.tar", &oci(&[ImageSpec::new("demo", two_layers())]));
    let mut children: Vec<_> = (0..2)
        .map(|_| {
            lab.command(&["load", str(&path)])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children.drain(..) {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(lab.json(&["images"]).as_array().unwrap().len(), 1);
    lab.assert_clean();
}

#[test]
fn help_shows_examples() {
    let lab = Lab::new();
    for command in [
        "load",
        "images",
        "save",
        "rmi",
        "run",
        "ps",
        "rm",
        "diff",
        "commit",
        "layer diff",
        "disk from-tar",
    ] {
        let words: Vec<_> = command.split(' ').chain(["--help"]).collect();
        assert!(lab.ok(&words).contains("Example"), "{command}");
    }
    lab.fails(2, &["load"]);
    lab.fails(2, &["no-such-command"]);
}

#[test]
fn a_closed_pipe_is_a_quiet_end() {
    let lab = Lab::new();
    lab.demo();
    for args in [&["save", "demo"][..], &["layer", "export", "demo"]] {
        let mut child = lab
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(
            output.status.signal(),
            Some(13),
            "{args:?}: {}",
            stderr(&output)
        );
        assert_eq!(stderr(&output), "", "{args:?}");
    }
    lab.assert_clean();
}

#[test]
fn a_stream_with_everything_in_it_twice() {
    let lab = Lab::new();
    let files = oci(&[
        ImageSpec::new("one", two_layers()),
        ImageSpec::new("two", two_layers()),
    ]);
    let path = lab.image("both.tar", &files);
    assert_eq!(lab.ok(&["load", str(&path)]), "one:latest\ntwo:latest\n");
    assert_eq!(
        lab.json(&["images"])[0]["names"],
        serde_json::json!(["one:latest", "two:latest"])
    );
}
