use std::io::Write;
use std::process::Stdio;

use crate::archive::{gzip, noise, tar};
use crate::support::{Lab, stderr, str};

#[test]
fn tar_to_disk_and_back() {
    let lab = Lab::new();
    let original = tar(&[
        ("etc/", b""),
        ("etc/motd", b"hello\n"),
        ("big", &noise(500_000, 3)),
    ]);
    let input = lab.write("in.tar", &original);
    let zipped = lab.write("in.tar.gz", &gzip(&original));
    lab.ok(&[
        "disk",
        "from-tar",
        "-i",
        str(&input),
        "-o",
        "a.vhd",
        "--vhd",
        "--split",
        "a.split",
    ]);
    lab.ok(&[
        "disk",
        "from-tar",
        "-i",
        str(&zipped),
        "-o",
        "b.vhd",
        "--vhd",
    ]);
    let (a, b) = (
        std::fs::read(lab.path("a.vhd")).unwrap(),
        std::fs::read(lab.path("b.vhd")).unwrap(),
    );
    assert!(a == b, "the same tar gives the same disk");
    assert_eq!(&a[a.len() - 512..][..8], b"conectix");
    assert_eq!(
        lab.run(&["disk", "to-tar", "a.vhd", "--split", "a.split"])
            .stdout,
        original
    );
    // A sidecar may be anybody's: it doesn't decide how much is written.
    lab.write("large.tar", &tar(&[("big", &noise(17 << 20, 3))]));
    lab.ok(&[
        "disk",
        "from-tar",
        "-i",
        "large.tar",
        "-o",
        "l.ext4",
        "--split",
        "l.split",
    ]);
    let split = ["disk", "to-tar", "l.ext4", "--split", "l.split"];
    for more in [&[][..], &["--no-verify"]] {
        let error = lab.fails(
            1,
            &[&split, more, &["--max-size", "16M", "-o", "no.tar"]].concat(),
        );
        assert!(
            error.contains("more than the 16777216") && error.contains("hint: "),
            "{error}"
        );
        assert!(!lab.path("no.tar").exists());
    }

    lab.ok(&["disk", "from-tar", "-i", str(&input), "-o", "c.ext4"]);
    lcow_testkit::e2fsck(&lab.path("c.ext4"));
    let canonical = lab.run(&["disk", "to-tar", "c.ext4"]).stdout;
    lab.ok(&["disk", "to-tar", "c.ext4", "-o", "out.tar"]);
    assert_eq!(std::fs::read(lab.path("out.tar")).unwrap(), canonical);

    assert_eq!(lab.ok(&["disk", "cat", "c.ext4", "/etc/motd"]), "hello\n");
    assert_eq!(lab.ok(&["disk", "ls", "c.ext4"]), "big\netc/\n");
    assert_eq!(
        lab.ok(&["disk", "ls", "c.ext4", "-R"]),
        "big\netc/\netc/motd\n"
    );
    assert!(
        lab.ok(&["disk", "ls", "c.ext4", "-l", "/etc"])
            .starts_with("-rwxr-xr-x    1     0     0            6 2023-11-14T22:13:20Z motd")
    );
    let lines = lab.json(&["disk", "ls", "c.ext4", "/big"]);
    assert_eq!(lines[0]["size"], 500_000);
    let info = lab.json(&["disk", "inspect", "a.vhd"]);
    assert_eq!(info[0]["size"], a.len());
    assert_eq!(info[0]["vhd"]["size"], a.len() - 512);
    lab.ok(&["disk", "verify", "a.vhd", "--data"]);
    let shown = lab.ok(&["disk", "inspect", "c.ext4", "--dump"]);
    assert!(
        shown.starts_with("superblock: ") && shown.contains("\"motd\""),
        "{shown}"
    );
    // The root's inode, with one link more.
    let mut damaged = std::fs::read(lab.path("c.ext4")).unwrap();
    let at = damaged.len() - 4096 + 256 + 0x1a;
    damaged[at] ^= 1;
    lab.write("damaged.ext4", &damaged);
    let error = lab.fails(1, &["disk", "verify", "damaged.ext4"]);
    assert!(error.contains("damaged.ext4 is damaged ("), "{error}");

    // As a partition of a larger disk.
    let mut disk = vec![0; 1 << 20];
    disk.extend_from_slice(&std::fs::read(lab.path("c.ext4")).unwrap());
    lab.write("disk.img", &disk);
    let error = lab.fails(1, &["disk", "ls", "disk.img"]);
    assert!(error.contains("--offset"), "{error}");
    assert_eq!(
        lab.run(&["disk", "to-tar", "disk.img", "--offset", "1048576"])
            .stdout,
        canonical
    );
}

#[test]
fn layers_become_one_disk() {
    let lab = Lab::new();
    let base = lab.write(
        "base.tar",
        &tar(&[("etc/", b""), ("etc/a", b"old"), ("etc/b", b"b")]),
    );
    let top = lab.write(
        "top.tar",
        &tar(&[
            ("etc/", b""),
            ("etc/a", b"new"),
            ("etc/.wh.b", b""),
            ("c", b"c"),
        ]),
    );
    for (tar, disk) in [(&base, "base.vhd"), (&top, "top.vhd")] {
        let args = [
            "disk",
            "from-tar",
            "-i",
            str(tar),
            "-o",
            disk,
            "--vhd",
            "--overlay",
        ];
        lab.ok(&args);
    }
    let first = lab.ok(&[
        "disk", "flatten", "top.vhd", "base.vhd", "-o", "flat.vhd", "--vhd",
    ]);
    assert!(first.starts_with("sha256:"), "{first}");
    assert_eq!(
        lab.ok(&["disk", "ls", "flat.vhd", "-R"]),
        "c\netc/\netc/a\n"
    );
    assert_eq!(lab.ok(&["disk", "cat", "flat.vhd", "etc/a"]), "new");
    lab.ok(&["disk", "verify", "flat.vhd", "--data"]);
    lcow_testkit::e2fsck(&lab.path("flat.vhd"));
    let again = lab.json(&[
        "disk",
        "flatten",
        "top.vhd",
        "base.vhd",
        "-o",
        "again.vhd",
        "--vhd",
        "--no-sync",
    ]);
    assert_eq!(again["name"], first.trim());
    assert_eq!((&again["names"], &again["data"]), (&4.into(), &4.into()));
    let bytes = |name| std::fs::read(lab.path(name)).unwrap();
    assert!(
        bytes("flat.vhd") == bytes("again.vhd"),
        "the same layers, another disk"
    );
    let turned = lab.ok(&[
        "disk",
        "flatten",
        "base.vhd",
        "top.vhd",
        "-o",
        "turned.ext4",
    ]);
    assert_ne!(turned, first);
    assert_eq!(lab.ok(&["disk", "cat", "turned.ext4", "etc/a"]), "old");

    // A container's own disk over them, whose files are in its directory `upper`.
    let upper = lab.write(
        "upper.tar",
        &tar(&[
            ("upper/", b""),
            ("upper/.wh.c", b""),
            ("upper/d", b"d"),
            ("work/", b""),
        ]),
    );
    let args = [
        "disk",
        "from-tar",
        "-i",
        str(&upper),
        "-o",
        "upper.ext4",
        "--overlay",
    ];
    lab.ok(&args);
    let args = [
        "disk",
        "flatten",
        "--upper",
        "upper.ext4",
        "flat.vhd",
        "-o",
        "all.ext4",
    ];
    lab.ok(&args);
    assert_eq!(
        lab.ok(&["disk", "ls", "all.ext4", "-R"]),
        "d\netc/\netc/a\n"
    );

    let error = lab.fails(
        1,
        &[
            "disk", "flatten", "--upper", "flat.vhd", "base.vhd", "-o", "no.ext4",
        ],
    );
    assert!(error.contains("flat.vhd"), "{error}");
    lab.fails(
        1,
        &["disk", "flatten", "top.vhd", str(&base), "-o", "no.ext4"],
    );
    lab.fails(1, &["disk", "flatten", "top.vhd", "-o", "-"]);
    assert!(!lab.path("no.ext4").exists());
}

#[test]
fn a_tar_through_pipes() {
    let lab = Lab::new();
    let mut command = lab.command(&["disk", "from-tar", "-o", "x.ext4"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&tar(&[("a", b"1")]))
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(lab.ok(&["disk", "cat", "x.ext4", "a"]), "1");
}

#[test]
fn disks_with_a_verity_tree() {
    let lab = Lab::new();
    let original = tar(&[("etc/", b""), ("big", &noise(700_000, 4))]);
    let input = lab.write("in.tar", &original);
    let make = |disk: &str, more: &[&str]| {
        let from = &[
            "disk",
            "from-tar",
            "-i",
            str(&input),
            "-o",
            disk,
            "--verity",
        ];
        let out = lab.ok(&[from, more].concat());
        let lines: Vec<_> = out.lines().collect();
        assert!(lines[0].starts_with("sha256:") && lines.len() == 2, "{out}");
        lines[1].to_owned()
    };
    let root = make("a.vhd", &["--vhd", "--split", "a.split"]);
    let raw = make("a.ext4", &[]);
    assert_eq!(raw, root, "the footer is not covered");
    let salted = make("b.ext4", &["--verity-salt", "0Aff"]);
    assert_ne!(salted, root);
    for (disk, root, salt) in [
        ("a.vhd", &root, 32),
        ("a.ext4", &root, 32),
        ("b.ext4", &salted, 4),
    ] {
        let ok = lab.ok(&["disk", "verify", disk, "--data", "--root-hash", root]);
        assert!(ok.contains("root hash"), "{ok}");
        let verity = &lab.json(&["disk", "inspect", disk])[0]["verity"];
        assert_eq!(verity["root_hash"], root.as_str());
        assert_eq!(verity["salt"].as_str().unwrap().len(), salt);
    }
    lcow_testkit::e2fsck(&lab.path("a.ext4"));
    let to_tar = ["disk", "to-tar", "a.vhd", "--split", "a.split"];
    assert_eq!(lab.run(&to_tar).stdout, original);
    assert_eq!(lab.ok(&["disk", "ls", "a.vhd"]), "big\netc/\n");
    assert!(lab.run(&["disk", "cat", "a.ext4", "big"]).stdout == noise(700_000, 4));

    // Damage of a block that no check of the file system's structures looks at, and of the first.
    let good = std::fs::read(lab.path("a.vhd")).unwrap();
    let needle = &noise(700_000, 4)[500_000..500_032];
    let file = good.windows(32).position(|w| w == needle).unwrap();
    for at in [file, 1024 + 4] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        lab.write("bad.vhd", &bad);
        let verify = ["disk", "verify", "bad.vhd", "--root-hash", &root];
        let error = lab.fails(1, &verify);
        let (block, offset) = (at / 4096, at / 4096 * 4096);
        assert!(
            error.contains(&format!("data block {block}, at byte {offset},")),
            "{error}"
        );
        let output = lab.run(&[&verify[..], &["--json"]].concat());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["block"], format!("data block {block}"));
        assert_eq!(report["offset"], offset);
    }
    let error = lab.fails(1, &["disk", "verify", "a.vhd", "--root-hash", &salted]);
    assert!(error.contains(&root) && error.contains(&salted), "{error}");
    lab.fails(2, &["disk", "verify", "a.vhd", "--root-hash", "12"]);
    lab.ok(&["disk", "from-tar", "-i", str(&input), "-o", "c.ext4"]);
    let error = lab.fails(1, &["disk", "verify", "c.ext4", "--root-hash", &root]);
    assert!(
        error.contains("verity") && error.contains("leave --root-hash away"),
        "{error}"
    );
    assert!(lab.json(&["disk", "inspect", "c.ext4"])[0]["verity"].is_null());
    for salt in ["1", "xy", &"00".repeat(257)] {
        let from = ["disk", "from-tar", "-i", str(&input), "-o", "d.ext4"];
        let more = ["--verity", "--verity-salt", salt];
        lab.fails(2, &[&from[..], &more].concat());
    }
}

#[test]
fn blank_disks() {
    let lab = Lab::new();
    lab.ok(&[
        "disk", "mkfs", "x.ext4", "--size", "64M", "--label", "blank",
    ]);
    lcow_testkit::e2fsck(&lab.path("x.ext4"));
    assert_eq!(
        lab.json(&["disk", "inspect", "x.ext4"])[0]["label"],
        "blank"
    );
    let error = lab.fails(1, &["disk", "mkfs", "x.ext4", "--size", "64M"]);
    assert!(error.contains("--force"), "{error}");
    lab.fails(2, &["disk", "mkfs", "y.ext4", "--size", "1M"]);
    assert!(!lab.path("y.ext4").exists());
}

#[test]
fn failures_leave_no_file() {
    let lab = Lab::new();
    let original = tar(&[("a", &noise(100_000, 1))]);
    let cut = lab.write("cut.tar", &original[..50_000]);
    let hostile = lab.write("hostile.tar", &{
        let mut bytes = tar(&[("aaaa", b"")]);
        bytes[..4].copy_from_slice(b"../x");
        let sum: u32 = bytes[..512]
            .iter()
            .enumerate()
            .map(|(i, b)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    u32::from(*b)
                }
            })
            .sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    });
    for (input, expected) in [(&cut, "50000"), (&hostile, "leaves the root")] {
        for extra in [&[][..], &["--split", "x.split"]] {
            let args = [
                &["disk", "from-tar", "-i", str(input), "-o", "x.ext4"],
                extra,
            ]
            .concat();
            let error = lab.fails(1, &args);
            assert!(error.contains(expected), "{error}");
        }
    }
    let left: Vec<_> = std::fs::read_dir(lab.directory.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "only the inputs are there: {left:?}");
    let output = lab.run(&["disk", "cat", "cut.tar", "x"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

/// A disk of 40 MiB with a few files in it.
fn small_disk(lab: &Lab) {
    let files = tar(&[("etc/motd", b"hello\n"), ("big", &noise(3_000_000, 5))]);
    let input = lab.write("in.tar", &files);
    lab.ok(&["disk", "from-tar", "-i", str(&input), "-o", "a.ext4"]);
}

#[test]
fn a_disk_in_every_container() {
    let lab = Lab::new();
    small_disk(&lab);
    let original = std::fs::read(lab.path("a.ext4")).unwrap();
    lab.ok(&["disk", "convert", "a.ext4", "a.vhdx"]);
    lab.ok(&["disk", "convert", "a.vhdx", "b.vhd"]);
    lab.ok(&[
        "disk",
        "convert",
        "b.vhd",
        "c.disk",
        "--to",
        "vhdx",
        "--block-size",
        "2M",
    ]);
    lab.ok(&["disk", "convert", "c.disk", "d.img", "--from", "vhdx"]);
    assert!(std::fs::read(lab.path("d.img")).unwrap() == original);
    let vhd = std::fs::read(lab.path("b.vhd")).unwrap();
    assert!(vhd[..original.len()] == original && vhd[original.len()..].starts_with(b"conectix"));

    // The id goes along.
    let [a, b, c] = [&["a.vhdx"][..], &["b.vhd"], &["c.disk", "--format", "vhdx"]]
        .map(|args| lab.json(&[&["disk", "inspect"], args].concat()));
    assert_eq!(a[0]["vhdx"]["id"], c[0]["vhdx"]["id"]);
    assert_eq!(b[0]["vhd"]["size"], original.len());
    assert_eq!(c[0]["vhdx"]["block_size"], 2 << 20);
    assert_eq!(a[0]["size"], original.len());

    // The other commands look into it.
    for disk in [
        &["a.vhdx"][..],
        &["b.vhd"],
        &["b.vhd", "--format", "vhd"],
        &["c.disk", "--format", "vhdx"],
    ] {
        let args = |command| [&["disk", command], disk].concat();
        assert_eq!(lab.ok(&args("ls")), "big\netc/\n", "{disk:?}");
        assert_eq!(
            lab.ok(&[args("cat"), vec!["/etc/motd"]].concat()),
            "hello\n"
        );
        assert!(lab.ok(&args("verify")).starts_with("ok"));
    }
    let tars =
        [&["a.vhdx"][..], &["a.ext4"]].map(|d| lab.run(&[&["disk", "to-tar"], d].concat()).stdout);
    assert!(tars[0] == tars[1] && !tars[0].is_empty());
    if lcow_testkit::have("qemu-img") {
        for (name, format) in [("a.vhdx", "vhdx"), ("b.vhd", "vpc"), ("c.disk", "vhdx")] {
            let compare = ["compare", "-f", "raw", "-F", format, "a.ext4", name];
            let output = std::process::Command::new("qemu-img")
                .args(compare)
                .current_dir(lab.directory.path())
                .output()
                .unwrap();
            assert!(output.status.success(), "{name}: {output:?}");
        }
        lcow_testkit::run(
            "qemu-img",
            ["check", "-f", "vhdx", str(&lab.path("a.vhdx"))],
        );
        // A dynamic VHD is read, and only when it is said to be one.
        let (from, to) = (lab.path("a.ext4"), lab.path("q.vhd"));
        let options = "subformat=dynamic,force_size=on";
        lcow_testkit::run(
            "qemu-img",
            [
                "convert",
                "-f",
                "raw",
                "-O",
                "vpc",
                "-o",
                options,
                str(&from),
                str(&to),
            ],
        );
        let error = lab.fails(1, &["disk", "ls", "q.vhd"]);
        assert!(error.contains("--format"), "{error}");
        lab.ok(&["disk", "verify", "q.vhd", "--format", "vhd"]);
        lab.ok(&["disk", "convert", "q.vhd", "e.img"]);
        assert!(std::fs::read(lab.path("e.img")).unwrap() == original);
    }
}

#[test]
fn only_data_is_copied() {
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::new();
    let file = std::fs::File::create(lab.path("a.img")).unwrap();
    // An odd length, and zeros that are there next to data.
    file.set_len((3 << 30) + 100).unwrap();
    let mut data = vec![0; 2 << 20];
    data[..9000].fill(7);
    std::os::unix::fs::FileExt::write_all_at(&file, &data, (1 << 30) - 4096).unwrap();
    lab.ok(&["disk", "convert", "a.img", "a.vhdx"]);
    lab.ok(&["disk", "convert", "a.vhdx", "a.vhd"]);
    lab.ok(&["disk", "convert", "a.vhd", "b.img"]);
    for name in ["a.vhdx", "a.vhd", "b.img"] {
        let allocated = std::fs::metadata(lab.path(name)).unwrap().blocks() * 512;
        assert!(allocated < 300 << 10, "{name}: {allocated}");
    }
    // Filled up to a sector.
    assert_eq!(
        std::fs::metadata(lab.path("b.img")).unwrap().len(),
        (3 << 30) + 512
    );
    assert!(std::fs::metadata(lab.path("a.vhdx")).unwrap().len() < 8 << 20);
    let back = std::fs::File::open(lab.path("b.img")).unwrap();
    let mut found = vec![1; data.len()];
    std::os::unix::fs::FileExt::read_exact_at(&back, &mut found, (1 << 30) - 4096).unwrap();
    assert!(found == data);
}

#[test]
fn a_container_that_can_not_be_read_leaves_nothing() {
    let lab = Lab::new();
    small_disk(&lab);
    lab.ok(&["disk", "convert", "a.ext4", "good.vhdx"]);
    let good = std::fs::read(lab.path("good.vhdx")).unwrap();
    // A place of a block that is behind the end: found when it is read, and by verify.
    let mut late = good.clone();
    late[(3 << 20) + 16..][..8].copy_from_slice(&(6_u64 | 900 << 20).to_le_bytes());
    lab.write("late.vhdx", &late);
    lab.write("cut.vhdx", &good[..good.len() / 2]);
    lab.write("headers.vhdx", &good[..1 << 20]);
    let mut parent = good.clone();
    parent[(2 << 20) + 65540] = 2;
    lab.write("parent.vhdx", &parent);
    let files = || std::fs::read_dir(lab.directory.path()).unwrap().count();
    let before = files();
    for (name, expected) in [
        ("late.vhdx", "block allocation table"),
        ("cut.vhdx", "the file has"),
        ("headers.vhdx", "region"),
        ("parent.vhdx", "differencing"),
    ] {
        let error = lab.fails(1, &["disk", "convert", name, "out.img"]);
        assert!(error.contains(expected), "{name}: {error}");
        let error = lab.fails(1, &["disk", "verify", name]);
        assert!(error.contains(expected), "{name}: {error}");
    }
    let error = lab.fails(
        1,
        &["disk", "convert", "a.ext4", "out.img", "--from", "vhdx"],
    );
    assert!(error.contains("say which"), "{error}");
    let error = lab.fails(
        2,
        &["disk", "convert", "a.ext4", "x.vhdx", "--block-size", "3M"],
    );
    assert!(error.contains("powers of two"), "{error}");
    let error = lab.fails(
        1,
        &["disk", "convert", "a.ext4", "x.vhd", "--block-size", "2M"],
    );
    assert!(error.contains("--to vhdx"), "{error}");
    assert_eq!(files(), before);
}
