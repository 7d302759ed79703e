//! Machines and disks for the tests.

use lcow_uvm::{Accel, DiskSpec, Machine, MachineConfig, Process, ProcessSpec, UnionId};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Why no machine can be started here, if so.
pub(crate) fn missing() -> Option<&'static str> {
    if !lcow_testkit::have("qemu-system-x86_64") {
        return Some("qemu-system-x86_64 is not installed");
    }
    let kernels = std::fs::read_dir("/boot").into_iter().flatten().flatten();
    if !kernels
        .into_iter()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"))
    {
        return Some("there is no kernel in /boot");
    }
    (!lcow_testkit::have("mke2fs")).then_some("mke2fs is not installed")
}

macro_rules! need_qemu {
    () => {
        if let Some(why) = crate::support::missing() {
            lcow_testkit::skip!("{why}");
        }
    };
}
pub(crate) use need_qemu;

pub(crate) fn config(dir: &Path) -> MachineConfig {
    MachineConfig {
        accel: Accel::Tcg,
        timeout: std::time::Duration::from_secs(120),
        ..MachineConfig::new(dir.join("uvm"))
    }
}

pub(crate) fn start(dir: &TempDir) -> Machine {
    Machine::start(&config(dir.path())).unwrap()
}

/// An ext4 disk of `mib` MiB with what is in `tree`.
pub(crate) fn disk(dir: &Path, name: &str, mib: u64, tree: Option<&Path>) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(mib << 20).unwrap();
    let mut command = Command::new("mke2fs");
    command.args([
        "-q",
        "-t",
        "ext4",
        "-O",
        "^resize_inode",
        "-E",
        "lazy_itable_init=1",
    ]);
    if let Some(tree) = tree {
        command.arg("-d").arg(tree);
    }
    let output = command.arg(&path).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    path
}

pub(crate) fn spec(path: &Path, read_only: bool) -> DiskSpec {
    let file = File::options()
        .read(true)
        .write(!read_only)
        .open(path)
        .unwrap();
    let bytes = file.metadata().unwrap().len();
    DiskSpec {
        file,
        format: lcow_uvm::DiskFormat::Raw,
        bytes,
        read_only,
        serial: String::new(),
    }
}

/// A tree with a static busybox-like helper is not at hand everywhere; the programs of the tests come from this machine, with
/// the libraries they name.
pub(crate) fn userland(dir: &Path, programs: &[&str]) {
    let mut files = Vec::new();
    for program in programs {
        let path =
            String::from_utf8(Command::new("which").arg(program).output().unwrap().stdout).unwrap();
        let path = std::fs::canonicalize(path.trim()).unwrap();
        let ldd = Command::new("ldd").arg(&path).output().unwrap();
        for word in String::from_utf8_lossy(&ldd.stdout)
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            files.push((
                PathBuf::from(word),
                PathBuf::from(word.trim_start_matches('/')),
            ));
        }
        files.push((path, Path::new("bin").join(program)));
    }
    for (from, to) in files {
        let to = dir.join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(&from, &to).unwrap();
    }
}

/// Runs `script` with the shell in `root`: what it wrote, and its exit status.
pub(crate) fn sh(machine: &Machine, root: UnionId, script: &str) -> (String, lcow_uvm::ExitStatus) {
    run(
        machine,
        &ProcessSpec::new(Some(root), ["/bin/dash", "-c", script]),
    )
}

pub(crate) fn run(machine: &Machine, spec: &ProcessSpec) -> (String, lcow_uvm::ExitStatus) {
    let process = machine.exec(spec).unwrap();
    output(process)
}

/// Reads both streams to their ends; standard error follows standard output.
pub(crate) fn output(mut process: Process) -> (String, lcow_uvm::ExitStatus) {
    let (mut out, mut err) = (
        process.take_stdout().unwrap(),
        process.take_stderr().unwrap(),
    );
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        err.read_to_end(&mut text).unwrap();
        text
    });
    let mut text = Vec::new();
    out.read_to_end(&mut text).unwrap();
    text.write_all(&errors.join().unwrap()).unwrap();
    (
        String::from_utf8_lossy(&text).into_owned(),
        process.wait().unwrap(),
    )
}

/// Live processes whose command line holds `text`, but this one.
pub(crate) fn processes_with(text: &str) -> Vec<u32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            (pid != std::process::id() && String::from_utf8_lossy(&line).contains(text))
                .then_some(pid)
        })
        .collect()
}

/// This process's descriptors.
pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
