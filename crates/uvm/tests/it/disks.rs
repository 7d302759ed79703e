//! Disks and unions.

use crate::support::{disk, need_qemu, sh, spec, start, userland};
use lcow_uvm::{DiskId, ErrorKind, ExitStatus, UvmError};

fn tree(dir: &std::path::Path, name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
    let tree = dir.join(name);
    for (path, text) in files {
        let path = tree.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    tree
}

#[test]
fn three_layers_and_a_sandbox_unite_and_keep_what_is_written() {
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let bottom = tree(
        dir.path(),
        "t1",
        &[("a", "one"), ("b", "one"), ("d/x", "one")],
    );
    userland(&bottom, &["dash", "cat", "rm", "mv", "date"]);
    let middle = tree(dir.path(), "t2", &[("b", "two"), ("d/y", "two")]);
    let top = tree(dir.path(), "t3", &[("c", "three")]);
    let layers = [(&bottom, "l1"), (&middle, "l2"), (&top, "l3")]
        .map(|(tree, name)| disk(dir.path(), name, 64, Some(tree)));
    let sandbox = disk(dir.path(), "sandbox", 64, None);

    let machine = start(&dir);
    let specs = layers
        .iter()
        .map(|path| spec(path, true))
        .chain([spec(&sandbox, false)])
        .collect();
    let disks = machine.attach(specs).unwrap();
    let lowers = [disks[2], disks[1], disks[0]];
    let root = machine.container_root(&lowers, Some(disks[3])).unwrap();
    let script = "cat /a /b /c /d/x /d/y; echo new > /new; rm /a; echo more >> /b; mv /d/x /d/z";
    assert_eq!(
        sh(&machine, root, script),
        ("onetwothreeonetwo".into(), ExitStatus::Code(0))
    );

    // The guest's clock is the host's: nothing is written in the host's future.
    let guest: u128 = sh(&machine, root, "date +%s%N").0.trim().parse().unwrap();
    let host = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    assert!(guest <= host + 100_000_000, "{guest} at {host}");
    assert!(guest + 60_000_000_000 > host, "{guest} at {host}");

    // What is in use stays: a disk of a union, and a writable disk of a second one.
    let busy = machine.detach(&disks[..1]).unwrap_err();
    assert_eq!(busy.remote().unwrap().kind, ErrorKind::Busy, "{busy}");
    assert!(busy.bundle().is_some_and(std::path::Path::is_dir));
    let busy = machine.container_root(&lowers, Some(disks[3])).unwrap_err();
    assert_eq!(busy.remote().unwrap().kind, ErrorKind::Busy, "{busy}");
    assert!(matches!(
        machine.detach(&[DiskId(999)]),
        Err(UvmError::Unknown { .. })
    ));
    // A read-only union of one disk, and of several.
    for lowers in [&lowers[2..], &lowers[..]] {
        let union = machine.container_root(lowers, None).unwrap();
        assert_eq!(
            sh(&machine, union, "cat /a; echo x > /a")
                .0
                .split("/bin/dash")
                .next(),
            Some("one")
        );
        machine.remove_union(union).unwrap();
        let union = machine.union(lowers, None).unwrap();
        machine.remove_union(union).unwrap();
    }

    machine.remove_union(root).unwrap();
    machine.detach(&disks).unwrap();
    let statistics = machine.statistics().unwrap();
    assert_eq!(
        (statistics.disks, statistics.unions, statistics.processes),
        (0, 0, 0)
    );

    // The same addresses again, with other disks behind them: the sandbox's changes are there.
    let disks = machine
        .attach(vec![spec(&sandbox, false), spec(&layers[0], true)])
        .unwrap();
    let root = machine.container_root(&disks[1..], Some(disks[0])).unwrap();
    assert_eq!(
        sh(&machine, root, "cat /new /b /d/z").0,
        "new\ntwomore\none"
    );
    machine.power_off().unwrap();

    lcow_testkit::e2fsck_aged(&sandbox);
    let features = std::process::Command::new("dumpe2fs")
        .arg("-h")
        .arg(&sandbox)
        .output()
        .unwrap();
    let features = String::from_utf8_lossy(&features.stdout).into_owned();
    assert!(
        features.contains("has_journal") && !features.contains("needs_recovery"),
        "{features}"
    );
}

#[test]
fn sixty_disks_in_one_machine() {
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let base = tree(dir.path(), "base", &[("n", "base")]);
    userland(&base, &["dash", "cat"]);
    let base = disk(dir.path(), "base.img", 64, Some(&base));
    let layers: Vec<_> = (0..60)
        .map(|i| {
            let files = [(format!("only{i}"), format!("{i} "))];
            let files: Vec<_> = files
                .iter()
                .map(|(path, text)| (path.as_str(), text.as_str()))
                .collect();
            disk(
                dir.path(),
                &format!("d{i}"),
                2,
                Some(&tree(dir.path(), &format!("t{i}"), &files)),
            )
        })
        .collect();
    let machine = start(&dir);
    let specs = layers
        .iter()
        .chain([&base])
        .map(|path| spec(path, true))
        .collect();
    let disks = machine.attach(specs).unwrap();
    let root = machine.container_root(&disks, None).unwrap();
    let script = "i=0; while [ $i -lt 60 ]; do cat /only$i; i=$((i+1)); done; cat /n";
    let expected: String = (0..60)
        .map(|i| format!("{i} "))
        .chain(["base".to_owned()])
        .collect();
    assert_eq!(sh(&machine, root, script).0, expected);
    machine.remove_union(root).unwrap();
    machine.detach(&disks).unwrap();
    machine.power_off().unwrap();
}

#[test]
fn a_disk_that_is_not_ext4_is_refused_and_taken_back() {
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garbage");
    std::fs::write(&garbage, vec![0xa5; 1 << 20]).unwrap();
    let good = disk(dir.path(), "good", 16, None);
    let machine = start(&dir);
    let error = machine
        .attach(vec![spec(&good, false), spec(&garbage, true)])
        .unwrap_err();
    assert_eq!(error.remote().unwrap().kind, ErrorKind::Corrupt, "{error}");
    let bundle = error.bundle().unwrap();
    for file in [
        "console.log",
        "agent.log",
        "kernel.log",
        "qmp.log",
        "command.txt",
        "status.txt",
        "error.txt",
    ] {
        assert!(
            bundle.join(file).is_file(),
            "{file} is not in {}",
            bundle.display()
        );
    }
    assert!(
        std::fs::read_to_string(bundle.join("kernel.log"))
            .unwrap()
            .contains("EXT4-fs")
    );
    assert_eq!(machine.statistics().unwrap().disks, 0);
    // Nothing stays of the failed batch: both can be added again.
    let ids = machine.attach(vec![spec(&good, false)]).unwrap();
    machine.trim(ids[0]).unwrap();
    machine.power_off().unwrap();
    lcow_testkit::e2fsck_aged(&good);
    assert!(matches!(machine.sync(), Err(UvmError::Gone { .. })));
}
