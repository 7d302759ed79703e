//! Layers of a store, through a driver, in real machines.

use crate::support::{config, need_qemu, sh, userland};
use lcow_driver::{
    Against, ApplyRequest, Cancel, ChangeKind, DiskFormat, GraphDriver, Input, Isolation, LayerId,
    OpenOptions, Options, SandboxOptions, Store,
};
use lcow_uvm::{ExitStatus, UtilityVms};
use std::path::Path;
use std::time::{Duration, Instant};

fn id(text: &str) -> LayerId {
    text.parse().unwrap()
}

/// A store whose layer `base` has a shell, with an empty layer and two sandboxes on it, one on the other.
fn driver(dir: &Path) -> GraphDriver<UtilityVms> {
    let tree = dir.join("tree");
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    userland(&tree, &["dash", "cat", "rm", "sleep"]);
    std::fs::write(tree.join("etc/motd"), "base\n").unwrap();
    std::fs::write(tree.join("etc/gone"), "").unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all("", &tree).unwrap();
    let tar = tar.into_inner().unwrap();

    let open = OpenOptions {
        isolation: Isolation::InProcess,
        // The disks that machines get end in a hash tree here, which must not be in the kernel's way.
        options: Options::parse(["lcow.verity=true"]).unwrap(),
        ..OpenOptions::default()
    };
    let store = Store::open(&dir.join("store"), open).unwrap();
    store
        .import(
            &id("base"),
            None,
            Input::Reader(&mut tar.as_slice()),
            &ApplyRequest::default(),
            &Cancel::new(),
        )
        .unwrap();
    store.create(&id("empty"), Some(&id("base"))).unwrap();
    let size = SandboxOptions {
        size: Some(32 << 20),
        ..SandboxOptions::default()
    };
    for (sandbox, parent) in [("init", "empty"), ("work", "init")] {
        store
            .create_read_write(&id(sandbox), Some(&id(parent)), &size)
            .unwrap();
    }
    GraphDriver::new(store, UtilityVms::new(config(dir)))
}

fn changes(driver: &GraphDriver<UtilityVms>, layer: &str) -> Vec<(ChangeKind, String)> {
    let changes = driver
        .store()
        .changes(&id(layer), &Against::Parent)
        .unwrap();
    changes
        .into_iter()
        .map(|change| {
            (
                change.kind,
                String::from_utf8_lossy(&change.path).into_owned(),
            )
        })
        .collect()
}

#[test]
fn spec_get_keeps_what_a_mounted_sandbox_is_told_shows_in_the_store() {
    use ChangeKind::{Added, Deleted, Modified};
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let driver = driver(dir.path());

    let handle = driver.get(&id("init"), Some("a test")).unwrap();
    let mounted = handle.mounted().unwrap();
    let script = "echo init > /etc/motd; echo new > /etc/new; rm /etc/gone; cat /etc/motd";
    assert_eq!(
        sh(mounted.machine(), mounted.root(), script),
        ("init\n".into(), ExitStatus::Code(0))
    );
    let pid = mounted.machine().process_id().unwrap();
    driver.put(handle).unwrap();
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "the last handle ends the machine"
    );
    let expected = [
        (Modified, "etc"),
        (Deleted, "etc/gone"),
        (Modified, "etc/motd"),
        (Added, "etc/new"),
    ];
    assert_eq!(
        changes(&driver, "init"),
        expected.map(|(kind, path)| (kind, path.to_owned()))
    );
    drop(mounted);

    // A sandbox below another: its files are under its disk's `upper`, and stay as they are.
    let handle = driver.get(&id("work"), None).unwrap();
    let mounted = handle.mounted().unwrap();
    let script =
        "cat /etc/motd /etc/new; cat /etc/gone 2>/dev/null; echo work > /etc/motd; rm /etc/new";
    assert_eq!(
        sh(mounted.machine(), mounted.root(), script),
        ("init\nnew\n".into(), ExitStatus::Code(0))
    );
    driver.put(handle).unwrap();
    let expected_above = [
        (Modified, "etc"),
        (Modified, "etc/motd"),
        (Deleted, "etc/new"),
    ];
    assert_eq!(
        changes(&driver, "work"),
        expected_above.map(|(kind, path)| (kind, path.to_owned()))
    );
    assert_eq!(
        changes(&driver, "init"),
        expected.map(|(kind, path)| (kind, path.to_owned()))
    );
}

#[test]
fn spec_remove_mends_force_stops_the_machine_first() {
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let driver = driver(dir.path());
    let handle = driver.get(&id("init"), None).unwrap();
    let mounted = handle.mounted().unwrap();
    let busy = lcow_uvm::ProcessSpec::new(Some(mounted.root()), ["sleep", "1000"]);
    let process = mounted.machine().exec(&busy).unwrap();
    let began = Instant::now();
    // The handle keeps the layer, but what ran on it is gone.
    driver.remove(&id("init"), true).unwrap_err();
    assert!(mounted.machine().ended().is_some());
    process.wait().unwrap_err();
    drop(process);
    driver.put(handle).unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    drop(driver.store().lock_sandbox(&id("init")).unwrap());
    // Stopping what does not run is no error.
    driver.remove(&id("work"), true).unwrap();
    assert!(driver.cleanup().unwrap().failed.is_none());
}

#[test]
fn spec_disks_vhdx_sandboxes_go_through_the_monitors_own_driver() {
    use ChangeKind::{Added, Deleted, Modified};
    need_qemu!();
    for program in ["debugfs", "qemu-img"] {
        if !lcow_testkit::have(program) {
            lcow_testkit::skip!("{program} is not installed");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let driver = driver(dir.path());
    let size = SandboxOptions {
        size: Some(48 << 20),
        format: Some(DiskFormat::Vhdx),
        ..SandboxOptions::default()
    };
    driver
        .store()
        .create_read_write(&id("ours"), Some(&id("base")), &size)
        .unwrap();
    // As the original driver left it: no journal, an absolute path, and no directories before the first mount.
    let theirs = driver.store().root().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(
        theirs.join("layerchain.json"),
        r#"["C:\\lcow\\ours", "C:\\lcow\\base"]"#,
    )
    .unwrap();
    let nothing = dir.path().join("nothing");
    std::fs::create_dir(&nothing).unwrap();
    lcow_testkit::original_sandbox(&theirs.join("sandbox.vhdx"), &nothing, &[]);

    let run = |layer: &str, script: &str| {
        let handle = driver.get(&id(layer), None).unwrap();
        let mounted = handle.mounted().unwrap();
        let result = sh(mounted.machine(), mounted.root(), script);
        driver.put(handle).unwrap();
        result
    };
    let ok = |text: &str| (text.to_owned(), ExitStatus::Code(0));
    let script =
        "echo ours > /etc/motd; rm /etc/gone; cat /bin/dash /bin/dash > /big; cat /etc/motd";
    assert_eq!(run("ours", script), ok("ours\n"));
    let own = [
        (Added, "big"),
        (Modified, "etc"),
        (Deleted, "etc/gone"),
        (Modified, "etc/motd"),
    ];
    let own = own.map(|(kind, path)| (kind, path.to_owned()));
    assert_eq!(changes(&driver, "ours"), own);
    let report = driver.store().verify(&id("ours"), &Cancel::new()).unwrap();
    assert!(report.is_good(), "{report:?}");

    // The one below is attached read-only, as a VHDX too.
    let script = "cat /etc/motd; echo theirs > /etc/motd; rm /big; cat /etc/motd";
    assert_eq!(run("theirs", script), ok("ours\ntheirs\n"));
    let above = [(Deleted, "big"), (Modified, "etc/motd")];
    let above = above.map(|(kind, path)| (kind, path.to_owned()));
    assert_eq!(changes(&driver, "theirs"), above);
    driver
        .store()
        .commit(&id("theirs"), &id("new"), &Cancel::new())
        .unwrap();
    assert_eq!(changes(&driver, "new"), above);
}

#[test]
fn spec_diff_of_a_running_sandbox_is_of_one_moment_and_the_sandbox_goes_on() {
    use std::io::Read;
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let driver = driver(dir.path());
    let handle = driver.get(&id("init"), None).unwrap();
    let mounted = handle.mounted().unwrap();
    // One file after the other, and nothing is synced.
    let script = "i=0; while :; do echo $i > /f$i; i=$((i+1)); [ $i = 20 ] && echo many; done";
    let mut process = mounted
        .machine()
        .exec(&lcow_uvm::ProcessSpec::new(
            Some(mounted.root()),
            ["/bin/dash", "-c", script],
        ))
        .unwrap();
    let mut word = [0; 5];
    process
        .take_stdout()
        .unwrap()
        .read_exact(&mut word)
        .unwrap();
    assert_eq!(&word, b"many\n");

    let count = |changes: Vec<lcow_driver::Change>| {
        for n in 0..changes.len() {
            let name = format!("f{n}").into_bytes();
            assert!(changes.iter().any(|c| c.path == name), "{n} of {changes:?}");
        }
        changes.len()
    };
    let first = count(driver.changes(&id("init"), &Against::Parent).unwrap());
    assert!(first >= 20, "{first}");
    let getter = driver.diff_getter(&id("init")).unwrap();
    let mut text = String::new();
    getter
        .open(b"f19")
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "19\n");
    drop(getter);
    let mut tar = Vec::new();
    let summary = driver
        .diff(&id("init"), &Against::Parent, &mut tar, &Cancel::new())
        .unwrap();
    assert_eq!(summary.size, tar.len() as u64);
    driver
        .commit(&id("init"), &id("new"), &Cancel::new())
        .unwrap();
    let second = count(
        driver
            .store()
            .changes(&id("new"), &Against::Parent)
            .unwrap(),
    );
    assert!(second > first, "it goes on: {first}, then {second}");
    process.kill().unwrap();
    process.wait().unwrap();

    // A freeze ends by itself, and whoever relied on it is told.
    let machine = mounted.machine();
    let upper = mounted.upper().unwrap();
    let frozen = machine.freeze(upper, Duration::from_millis(300)).unwrap();
    let busy = machine.freeze(upper, Duration::from_secs(1)).unwrap_err();
    assert_eq!(busy.remote().unwrap().kind, lcow_uvm::ErrorKind::Busy);
    let busy = machine.trim(upper).unwrap_err();
    assert_eq!(busy.remote().unwrap().kind, lcow_uvm::ErrorKind::Busy);
    assert_eq!(
        sh(machine, mounted.root(), "echo late > /late; cat /late").0,
        "late\n"
    );
    let late = frozen.thaw().unwrap_err();
    assert_eq!(
        late.remote().unwrap().kind,
        lcow_uvm::ErrorKind::TimedOut,
        "{late}"
    );
    // So does one that is let go of, and one that is in force when the machine goes down.
    drop(machine.freeze(upper, Duration::from_secs(60)).unwrap());
    assert_eq!(
        sh(machine, mounted.root(), "echo soon > /soon; cat /soon").0,
        "soon\n"
    );
    let frozen = machine.freeze(upper, Duration::from_secs(60)).unwrap();
    machine.power_off().unwrap();
    frozen.thaw().unwrap_err();
    driver.put(handle).unwrap();
    assert!(
        changes(&driver, "init")
            .iter()
            .any(|(_, path)| path == "soon")
    );
}

#[test]
fn spec_put_mends_every_step_is_tried_and_every_failure_told() {
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let driver = driver(dir.path());
    let handle = driver.get(&id("init"), None).unwrap();
    let mounted = handle.mounted().unwrap();
    let pid = mounted.machine().process_id().unwrap();
    // The machine goes by itself, so that neither the union nor the disks can be let go of in order.
    let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    let error = driver.put(handle).unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    match source.downcast_ref::<lcow_uvm::UvmError>().unwrap() {
        lcow_uvm::UvmError::Several { first, rest } => {
            assert!(
                matches!(first.cause(), lcow_uvm::UvmError::Gone { .. }),
                "{first}"
            );
            assert!(!rest.is_empty() && first.bundle().is_some());
        }
        other => panic!("{other}"),
    }
    assert!(source.to_string().contains("; and then: "), "{source}");
    // Nothing of it stays: neither a process, nor a reference, nor the sandbox's lock.
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(driver.references(), []);
    drop(mounted);
    drop(driver.store().lock_sandbox(&id("init")).unwrap());
}
