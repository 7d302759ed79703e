use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Lab, busybox, eventually, large, str};

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// Whether a conversion has begun: something half-made is there.
fn converting(lab: &Lab) -> bool {
    std::fs::read_dir(lab.root().join("tmp")).is_ok_and(|mut entries| {
        entries.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("layer-")))
    })
}

#[test]
fn a_load_that_is_interrupted_leaves_nothing() {
    let lab = Lab::new();
    let path = lab.image("large.tar", &large());
    let mut caught = 0;
    for (delay, name, number) in [
        (0, "INT", 2),
        (20, "TERM", 15),
        (60, "INT", 2),
        (120, "HUP", 1),
    ] {
        let mut child = lab
            .command(&["load", str(&path)])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the conversion", 20, || {
            converting(&lab) || child.try_wait().unwrap().is_some()
        });
        std::thread::sleep(Duration::from_millis(delay));
        signal(&child, name);
        let status = child.wait().unwrap();
        if status.success() {
            // It was faster than the signal.
            lab.ok(&["rmi", "large"]);
        } else {
            caught += 1;
            assert_eq!(
                status.signal(),
                Some(number),
                "it dies of the signal once it has cleaned up"
            );
        }
        lab.assert_clean();
        assert_eq!(lab.ok(&["layer", "ls", "-q"]), "");
    }
    assert!(caught > 0, "no signal came in time");
}

#[test]
fn a_load_that_waits_for_its_input_can_be_interrupted() {
    let lab = Lab::new();
    let mut child = lab
        .command(&["load", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the store", 10, || {
        lab.root().join("images/oci-layout").exists()
    });
    let _open = child.stdin.take();
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().signal(), Some(2));
    lab.assert_clean();
}

#[test]
fn a_conversion_that_is_interrupted_leaves_no_file() {
    let lab = Lab::new();
    let mut command = lab.command(&["disk", "from-tar", "-i", "-", "-o", "x.ext4"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let half_made = || {
        let mut entries = std::fs::read_dir(lab.directory.path()).unwrap();
        entries.any(|e| e.unwrap().file_name().to_string_lossy().ends_with(".part"))
    };
    eventually("the conversion", 10, half_made);
    // Waiting would close it, and the end of the input could come before the signal.
    let _open = child.stdin.take();
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    assert!(!half_made() && !lab.path("x.ext4").exists());
}

#[test]
fn a_copy_to_another_container_that_is_interrupted_leaves_no_file() {
    let lab = Lab::new();
    lab.write("large.img", &vec![7; 256 << 20]);
    let half_made = || {
        let mut entries = std::fs::read_dir(lab.directory.path()).unwrap();
        entries.any(|e| e.unwrap().file_name().to_string_lossy().ends_with(".part"))
    };
    // A signal may come after the end: then it is tried again.
    for _ in 0..10 {
        let mut command = lab.command(&["disk", "convert", "large.img", "large.vhdx"]);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        eventually("the conversion", 20, || {
            half_made() || child.try_wait().unwrap().is_some()
        });
        signal(&child, "INT");
        let status = child.wait().unwrap();
        assert!(!half_made());
        if status.signal() == Some(2) {
            assert!(!lab.path("large.vhdx").exists());
            return;
        }
        assert!(status.success());
        std::fs::remove_file(lab.path("large.vhdx")).unwrap();
    }
    panic!("no signal came in time");
}

#[test]
fn a_run_that_is_interrupted_leaves_nothing() {
    if !lcow_testkit::have("qemu-system-x86_64") {
        lcow_testkit::skip!("QEMU is not installed");
    }
    let Some(spec) = busybox() else {
        lcow_testkit::skip!("busybox-static is not installed")
    };
    let lab = Lab::new();
    let path = lab.image("busybox.tar", &crate::archive::oci(&[spec]));
    lab.ok(&["load", str(&path)]);

    // While the machine starts.
    let mut child = lab
        .command(&["run", "busybox", "sleep 100"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the container", 10, || !lab.ok(&["ps", "-q"]).is_empty());
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().signal(), Some(2));
    assert_eq!(
        lab.json(&["ps", "-a"]),
        serde_json::json!([]),
        "a container that never ran is gone"
    );
    lab.assert_clean();

    // While the command runs: it gets the first signal, and the second kills it.
    let script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done";
    let mut command = lab.command(&["run", "--rm", "--name", "stubborn", "busybox", script]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let running = lab.json(&["ps"]);
    assert_eq!(
        (&running[0]["name"], &running[0]["state"]),
        (&"stubborn".into(), &"running".into())
    );
    let error = lab.fails(1, &["diff", "stubborn"]);
    assert!(error.contains("is running"), "{error}");
    let error = lab.fails(1, &["rm", "stubborn"]);
    assert!(error.contains("is running"), "{error}");
    signal(&child, "INT");
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(137));
    assert_eq!(lab.json(&["ps", "-a"]), serde_json::json!([]));
    lab.assert_clean();
}
