//! What happens when something dies.

use crate::support::{config, descriptors, need_qemu, processes_with, start};
use lcow_uvm::{Machine, ProcessSpec, UvmError};
use std::process::Command;
use std::time::{Duration, Instant};

/// Set in the child of [`spec_init_mends_a_machine_dies_with_the_process_that_started_it`].
const CHILD: &str = "LCOW_TEST_HOLD_A_MACHINE";

#[test]
fn a_killed_machine_is_noticed_at_once_and_leaves_nothing() {
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let before = descriptors();
    let machine = start(&dir);
    let pid = machine.process_id().unwrap();
    rustix_kill(pid);
    let began = Instant::now();
    let error = machine.exec(&ProcessSpec::new(None, ["x"])).unwrap_err();
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    assert!(
        matches!(error.cause(), UvmError::Gone { status } if status.contains("signal: 9")),
        "{error}"
    );
    let bundle = error.bundle().unwrap();
    assert!(
        std::fs::read_to_string(bundle.join("status.txt"))
            .unwrap()
            .contains("signal: 9")
    );
    assert!(
        std::fs::read_to_string(bundle.join("command.txt"))
            .unwrap()
            .contains("-sandbox")
    );
    assert!(
        std::fs::read_to_string(bundle.join("agent.log"))
            .unwrap()
            .contains("is up")
    );
    let name = machine.name().to_owned();
    drop(machine);
    assert!(processes_with(&name).is_empty());
    let deadline = Instant::now() + Duration::from_secs(10);
    while descriptors() > before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Other tests open and close theirs meanwhile; what one machine would leak is what is looked for.
    let left: Vec<_> = std::fs::read_dir(dir.path().join("uvm"))
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| ["boot", "failed"].iter().any(|known| name == known)),
        "{left:?}"
    );
}

fn rustix_kill(pid: u32) {
    assert!(
        Command::new("kill")
            .arg("-KILL")
            .arg(pid.to_string())
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn spec_init_mends_a_machine_dies_with_the_process_that_started_it() {
    if let Some(dir) = std::env::var_os(CHILD) {
        // The child: hold a machine until killed.
        let machine = Machine::start(&config(dir.as_ref())).unwrap();
        std::fs::write(std::path::Path::new(&dir).join("name"), machine.name()).unwrap();
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    }
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "faults::spec_init_mends_a_machine_dies_with_the_process_that_started_it",
            "--nocapture",
        ])
        .env(CHILD, dir.path())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let name = loop {
        match std::fs::read_to_string(dir.path().join("name")) {
            Ok(name) if !name.is_empty() => break name,
            _ => assert!(
                Instant::now() < deadline && child.try_wait().unwrap().is_none(),
                "no machine came up"
            ),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(processes_with(&format!("-name\0{name}\0")).len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !processes_with(&format!("-name\0{name}\0")).is_empty() {
        assert!(Instant::now() < deadline, "the machine outlives its owner");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_kernel_that_panics_is_an_error_with_its_last_words() {
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.boot_parameters = "rdinit=/no/such/init root=/dev/none".into();
    let error = Machine::start(&config).unwrap_err();
    assert!(matches!(error.cause(), UvmError::Gone { .. }), "{error}");
    let console = std::fs::read_to_string(error.bundle().unwrap().join("console.log")).unwrap();
    assert!(console.contains("Kernel panic"), "{console}");
}
