use std::process::{Command, Stdio};

use crate::archive::{ImageSpec, archive, noise, oci, tar, two_layers};
use crate::support::{Lab, eventually, str};

/// What every error is: one line of what failed, and a hint of what to do.
fn check(error: &str, parts: &[&str]) {
    let first = error
        .lines()
        .find(|l| l.starts_with("lcow: "))
        .unwrap_or_default();
    for part in parts {
        assert!(first.contains(part), "{part:?} is not in: {error}");
    }
    assert!(
        error.lines().any(|l| l.starts_with("hint: ")),
        "no hint in: {error}"
    );
}

#[test]
fn unknown_and_ambiguous_images() {
    let lab = Lab::new();
    for (args, code) in [
        (&["rmi", "nothing"][..], 1),
        (&["save", "nothing", "-o", "x"], 1),
        (&["run", "nothing"], 125),
    ] {
        check(&lab.fails(code, args), &["there is no image nothing"]);
    }
    assert!(!lab.path("x").exists());
    let specs = [
        ImageSpec::new("twin:1", two_layers()),
        ImageSpec::new("twin:2", vec![two_layers()[0].clone()]),
    ];
    let path = lab.image("twins.tar", &oci(&specs));
    lab.ok(&["load", str(&path)]);
    check(
        &lab.fails(125, &["run", "twin", "true"]),
        &["twin:1 (", "twin:2 ("],
    );
    check(
        &lab.fails(1, &["diff", "nothing"]),
        &["there is no container nothing"],
    );
}

#[test]
fn corrupt_archives_name_the_digest() {
    let lab = Lab::new();
    let mut files = oci(&[ImageSpec::new("demo", two_layers())]);
    let (path, bytes) = files.last_mut().unwrap();
    let digest = format!("sha256:{}", path.rsplit('/').next().unwrap());
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    let bad = lab.image("bad.tar", &files);
    check(&lab.fails(1, &["load", str(&bad)]), &["bad.tar", &digest]);
    assert_eq!(
        lab.ok(&["layer", "ls", "-q"]),
        "",
        "the sound layer below goes too"
    );
    lab.assert_clean();
}

#[test]
fn truncated_tars_name_the_offset() {
    let lab = Lab::new();
    let whole = archive(&oci(&[ImageSpec::new("demo", two_layers())]));
    let cut = lab.write("cut.tar", &whole[..whole.len() - 3000]);
    let offset = (whole.len() - 3000).to_string();
    check(
        &lab.fails(1, &["load", str(&cut)]),
        &["cut.tar", "truncated", &offset],
    );
    let rootfs = tar(&[("etc/", b""), ("file", &noise(50_000, 1))]);
    let cut = lab.write("rootfs.tar", &rootfs[..20_000]);
    let error = lab.fails(1, &["load", str(&cut)]);
    assert!(
        error.contains("rootfs.tar") && error.contains("20000"),
        "{error}"
    );
    lab.assert_clean();
}

#[test]
fn what_is_no_image() {
    let lab = Lab::new();
    let program = lab.write(
        "program",
        &std::fs::read(env!("CARGO_BIN_EXE_lcow")).unwrap(),
    );
    check(
        &lab.fails(1, &["load", str(&program)]),
        &["is not a container image", "ELF"],
    );
    check(
        &lab.fails(1, &["load", "."]),
        &["is not a container image", "directory"],
    );
    let error = lab.fails(1, &["load", "nowhere.tar"]);
    assert!(
        error.contains("nowhere.tar") && error.contains("No such file"),
        "{error}"
    );
}

#[test]
fn a_data_root_in_use_names_who() {
    let lab = Lab::new();
    lab.ok(&["status"]);
    // A daemon's lock, held by a process of another name.
    let lock = lab.root().join("lock");
    let mut holder = Command::new("flock")
        .args(["--exclusive", "--no-fork", str(&lock), "sleep", "60"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the lock", 10, || {
        !Command::new("flock")
            .args(["--nonblock", "--shared", str(&lock), "true"])
            .status()
            .unwrap()
            .success()
    });
    let error = lab.fails(1, &["images"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    check(
        &error,
        &["in use by", &holder.id().to_string(), str(&lab.root())],
    );
    lab.ok(&["images"]);
}

#[test]
fn a_store_of_a_newer_version() {
    let lab = Lab::new();
    lab.ok(&["status"]);
    std::fs::write(lab.root().join("store.json"), r#"{"layout": 99}"#).unwrap();
    check(&lab.fails(1, &["images"]), &["newer version", "99"]);
}

#[test]
fn a_full_disk() {
    if !lcow_testkit::is_root() {
        lcow_testkit::skip!("not root: can't mount a small tmpfs");
    }
    let lab = Lab::new();
    let small = lab.path("small");
    std::fs::create_dir(&small).unwrap();
    lcow_testkit::run(
        "mount",
        ["-t", "tmpfs", "-o", "size=8m", "tmpfs", str(&small)],
    );
    let root = small.join("root");
    let rootfs = lab.write("large.tar", &tar(&[("file", &noise(16 << 20, 1))]));
    let outcome = lab.run(&["--root", str(&root), "load", str(&rootfs)]);
    let left: Vec<_> = std::fs::read_dir(root.join("tmp"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| n != ".commit")
        .collect();
    let disk = small.join("x.ext4");
    let direct = lab.run(&["disk", "from-tar", "-i", str(&rootfs), "-o", str(&disk)]);
    let exists = disk.exists();
    lcow_testkit::run("umount", [str(&small)]);
    assert_eq!(left, [""; 0]);
    assert!(!exists);
    for output in [outcome, direct] {
        let error = crate::support::stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        check(&error, &["No space left on device"]);
        assert!(error.contains("hint: free some space"), "{error}");
    }
}

#[test]
fn no_qemu_and_no_kernel() {
    let lab = Lab::new();
    lab.demo();
    let empty = lab.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let run = |variable: &str| {
        let output = lab
            .command(&["run", "demo", "true"])
            .env(variable, &empty)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(125));
        crate::support::stderr(&output)
    };
    let error = run("PATH");
    check(&error, &["qemu-system-x86_64"]);
    assert!(error.contains("apt install"), "{error}");
    if lcow_testkit::have("qemu-system-x86_64") {
        let error = run("LCOW_BOOT_DIR");
        check(&error, &["no kernel"]);
        assert!(error.contains("linux-image"), "{error}");
    } else {
        lcow_testkit::report_skip(
            module_path!(),
            "QEMU is not installed: a missing kernel is not noticed",
        );
    }
    assert_eq!(
        lab.json(&["ps", "-a"]),
        serde_json::json!([]),
        "no container is left"
    );
    lab.assert_clean();
}

#[test]
fn bad_arguments() {
    let lab = Lab::new();
    lab.demo();
    check(
        &lab.fails(125, &["run", "--memory", "12", "demo"]),
        &["\"12\" is not a size of memory"],
    );
    check(
        &lab.fails(125, &["run", "--name", "x/y", "demo"]),
        &["\"x/y\" can't be a container's name"],
    );
    let error = lab.fails(1, &["images", "--opt", "lcow.nothing=1"]);
    assert!(error.contains("lcow.nothing"), "{error}");
    let error = lab.fails(2, &["load", "x", "--name", "Not A Name"]);
    assert!(error.contains("lower-case"), "{error}");
}
