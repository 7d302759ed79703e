//! Starting: what is missing, who runs it, what it may do.

use crate::support::{config, missing, need_qemu, start};
use lcow_uvm::accel::{self, PROBE, Verdict};
use lcow_uvm::vmm::Accelerator;
use lcow_uvm::{Accel, Machine, MachineConfig};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

/// Set in the children of the tests below: a directory to start a machine in.
const CHILD: &str = "LCOW_TEST_START_IN";

/// Not a test of its own: what the others run as another user, or in another environment. It prints how it went.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    match Machine::start(&config(dir.as_ref())) {
        Ok(machine) => {
            println!("answered: {}", machine.info().kernel);
            machine.power_off().unwrap();
            println!("off");
        }
        Err(error) => println!("error: {error}; hint: {}", error.hint().unwrap_or("none")),
    }
}

fn in_child(command: &mut Command, dir: &std::path::Path) -> String {
    let output = command
        .args(["--exact", "boots::child", "--nocapture"])
        .env(CHILD, dir)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn what_is_missing_is_named_with_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    let me = std::env::current_exe().unwrap();
    let text = in_child(Command::new(&me).env("PATH", dir.path()), dir.path());
    for word in [
        "qemu-system-x86_64 is not installed",
        "apt install qemu-system-x86",
        "dnf install",
    ] {
        assert!(text.contains(word), "{text}");
    }
    if missing().is_some() {
        lcow_testkit::skip!("QEMU is not installed");
    }
    let text = in_child(
        Command::new(&me)
            .env("LCOW_BOOT_DIR", dir.path())
            .env("LCOW_MODULES_DIR", dir.path()),
        dir.path(),
    );
    for word in ["no kernel", "linux-image-cloud-amd64", "kernel-core"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn options_out_of_range_are_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    for change in [
        |config: &mut MachineConfig| config.memory_mib = 1,
        |config: &mut MachineConfig| config.cpus = 0,
        |config: &mut MachineConfig| config.timeout = std::time::Duration::ZERO,
    ] {
        let mut config = config(dir.path());
        change(&mut config);
        let error = Machine::start(&config).unwrap_err();
        assert!(
            matches!(error, lcow_uvm::UvmError::BadOption { .. }),
            "{error}"
        );
    }
    assert!(!dir.path().join("uvm").exists());
}

#[test]
fn an_ordinary_user_runs_one_too() {
    need_qemu!();
    if !lcow_testkit::is_root() {
        lcow_testkit::skip!(
            "not root: can't become another user, and the other tests run as one anyway"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    // The test's own binary may be where only root can go: the other user gets a copy.
    let program = dir.path().join("it");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(54321), Some(54321)).unwrap();
    std::fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=54321",
        "--regid=54321",
        "--clear-groups",
        "--no-new-privs",
        "--bounding-set=-all",
    ]);
    command.env("TMPDIR", &state).current_dir("/").arg(&program);
    let text = in_child(&mut command, &state);
    assert!(
        text.contains("answered: ") && text.contains("off"),
        "{text}"
    );
}

#[test]
fn the_monitor_can_do_little() {
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let machine = start(&dir);
    let pid = machine.process_id().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default();
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2", "the sandbox is not on");
    assert_eq!(field("CapEff"), "0000000000000000");
    assert_eq!(field("CapPrm"), "0000000000000000");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(
        limits
            .lines()
            .any(|line| line.starts_with("Max core file size") && line.contains(" 0 ")),
        "{limits}"
    );
    let state = std::fs::metadata(dir.path().join("uvm")).unwrap();
    assert_eq!(state.mode() & 0o777, 0o700);
    if lcow_testkit::is_root() {
        assert_eq!(field("CapBnd"), "0000000000000000");
        assert_eq!(field("Groups"), "");
        let uid: u32 = field("Uid")
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(uid >= 65534, "it runs as {uid}");
        let net = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net")).unwrap();
        assert_ne!(
            net(&pid.to_string()),
            net("self"),
            "it has the host's network"
        );
    }
    machine.power_off().unwrap();
    assert!(machine.ended().is_some());
}

#[test]
fn kvm_is_tried_once_and_the_verdict_is_kept() {
    need_qemu!();
    let opens = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    if opens.is_err() {
        lcow_testkit::skip!("/dev/kvm can't be opened");
    }
    let dir = tempfile::tempdir().unwrap();
    let config = MachineConfig {
        accel: Accel::Auto,
        ..config(dir.path())
    };
    let state = &config.state_dir;
    assert_eq!(accel::verdict(state), None);
    let machine = Machine::start(&config).unwrap();
    let verdict = accel::verdict(state).expect("a verdict is kept");
    let expected = match verdict {
        Verdict::Works => Accelerator::Kvm,
        Verdict::Hangs => Accelerator::Tcg,
    };
    assert_eq!(machine.accelerator(), expected);
    let reason = accel::reason(state).unwrap();
    if verdict == Verdict::Hangs {
        assert!(
            reason.contains("no guest runs under it (start the utility VM took longer than 4 s)")
                || reason.contains("the utility VM is gone"),
            "{reason}"
        );
    }
    machine.power_off().unwrap();

    // The next one does not try: nothing fails, so that no further bundle is written.
    let bundles = || std::fs::read_dir(state.join("failed")).map_or(0, Iterator::count);
    let before = bundles();
    let began = std::time::Instant::now();
    let machine = Machine::start(&config).unwrap();
    println!(
        "verdict {verdict:?}, probe {PROBE:?}, second start {:?}; {reason}",
        began.elapsed()
    );
    assert_eq!(machine.accelerator(), expected);
    assert_eq!(bundles(), before);
    machine.power_off().unwrap();
}
