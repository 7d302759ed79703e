//! kill -9 at system calls, by strace: each that changes something, of each operation, recovery among them. And the same calls
//! interrupted, and failing.
//!
//! `LCOW_KILLS=all` takes every call; an ordinary run one in many.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lcow_driver::{Cancel, Isolation, OpenOptions, Store};

use crate::life::{STEPS, View, host_view};

const STEP: &str = "LCOW_TEST_STEP";
const ACKNOWLEDGED: &str = "acknowledged";
/// After the steps of a life: what opening the store does with what the dead left.
const RECOVERY: &str = "recovery";
const CALLS: &str = "openat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,write,pwrite64,pwritev,\
                     copy_file_range,ftruncate,fallocate,fsync,fdatasync,ioctl,flock";

/// The helper's side: one step on a store.
pub(crate) fn play(root: &Path) {
    let name = std::env::var(STEP).unwrap();
    match open(root).and_then(|store| step(&name)(&store)) {
        Ok(true) => println!("{ACKNOWLEDGED}"),
        Ok(false) => {}
        Err(e) => {
            println!("error {:?}", e.kind());
            std::process::exit(1);
        }
    }
}

fn open(root: &Path) -> Result<Store, lcow_driver::DriverError> {
    let options = OpenOptions {
        isolation: Isolation::InProcess,
        ..OpenOptions::default()
    };
    Store::open(root, options)
}

fn step(name: &str) -> fn(&Store) -> Result<bool, lcow_driver::DriverError> {
    let found = STEPS.iter().find(|(n, _)| *n == name);
    found.map_or(|_: &Store| Ok(true), |(_, step)| *step)
}

/// Runs a step in a process under strace.
fn trace(root: &Path, name: &str, options: &[&str], log: &Path) -> Output {
    Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(log)
        .args(options)
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "helper::process",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("LCOW_TEST_ROLE", "step")
        .env("LCOW_TEST_ROOT", root)
        .env(STEP, name)
        .output()
        .unwrap()
}

fn copy(from: &Path, to: &Path) {
    lcow_testkit::run(
        "cp",
        [
            "-a".as_ref(),
            "--sparse=always".as_ref(),
            from.as_os_str(),
            to.as_os_str(),
        ],
    );
}

/// What a step looks like from outside.
struct Case {
    name: &'static str,
    start: PathBuf,
    before: View,
    after: View,
    /// Call and number, of those calls that are made once the data root is touched.
    points: Vec<(String, usize)>,
}

impl Case {
    fn new(name: &'static str, start: PathBuf, scratch: &Path) -> Self {
        let root = scratch.join("root");
        copy(&start, &root);
        let log = scratch.join("log");
        let output = trace(&root, name, &["-e", &format!("trace={CALLS}")], &log);
        assert!(output.status.success(), "{name}: {output:?}");
        let text = fs::read_to_string(log).unwrap();
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let mut points = Vec::new();
        let mut begun = None;
        for line in text.lines() {
            let Some((pid, rest)) = line.split_once(char::is_whitespace) else {
                continue;
            };
            let Some((call, arguments)) = rest.trim_start().split_once('(') else {
                continue;
            };
            let count = counts.entry((pid, call)).or_default();
            *count += 1;
            if begun.is_none() && arguments.contains(root.to_str().unwrap()) {
                begun = Some(pid);
            }
            // The harness's own output is no store's.
            if begun == Some(pid) && !(call == "write" && arguments.starts_with("1,")) {
                points.push((call.to_owned(), *count));
            }
        }
        let case = Self {
            name,
            before: host_view(&start).unwrap(),
            after: host_view(&root).unwrap(),
            start,
            points,
        };
        fs::remove_dir_all(root).unwrap();
        case
    }

    /// Runs the step with something done to one call.
    fn inject(
        &self,
        (call, number): &(String, usize),
        what: &str,
        scratch: &Path,
    ) -> Result<bool, String> {
        let root = scratch.join("root");
        copy(&self.start, &root);
        let (traced, injected) = (
            format!("trace={call}"),
            format!("inject={call}:{what}:when={number}"),
        );
        let log = scratch.join("log");
        let output = trace(&root, self.name, &["-e", &traced, "-e", &injected], &log);
        let judged = self.judge(&root, what, &output);
        fs::remove_dir_all(root).unwrap();
        judged.map_err(|e| format!("{}: {call} number {number}, {what}: {e}", self.name))?;
        let log = fs::read_to_string(log).unwrap();
        Ok(log.contains("(INJECTED)") || log.contains("killed by SIGKILL"))
    }

    fn judge(&self, root: &Path, what: &str, output: &Output) -> Result<(), String> {
        let text = String::from_utf8_lossy(&output.stdout);
        let acknowledged = text.contains(ACKNOWLEDGED);
        let problem = match what {
            "signal=KILL" => output.status.code().is_some() && !acknowledged,
            "error=EINTR" => !acknowledged,
            _ => !acknowledged && !text.contains("error DiskFull") && !text.contains("error Io"),
        };
        if problem {
            return Err(format!(
                "it ended with {}: {text}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        let store = open(root).map_err(|e| format!("it does not open: {e:?}"))?;
        if !store.recovery().failed.is_empty() {
            return Err(format!("{:?}", store.recovery()));
        }
        for id in store.layers().unwrap() {
            let report = store
                .verify(&id, &Cancel::new())
                .map_err(|e| format!("{e:?}"))?;
            if !report.is_good() {
                return Err(format!("{report:?}"));
            }
        }
        drop(store);
        let left: Vec<_> = fs::read_dir(root.join("tmp"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .filter(|n| n != ".commit")
            .collect();
        if !left.is_empty() {
            return Err(format!("{left:?} is left"));
        }
        let seen = host_view(root).unwrap();
        // The same operation done again gives other times and random numbers, so what it makes is known by its path.
        let is_after = seen.keys().eq(self.after.keys())
            && self.before.iter().all(|(path, content)| {
                self.after.get(path) != Some(content) || seen.get(path) == Some(content)
            });
        if !is_after && (acknowledged || seen != self.before) {
            return Err(format!("neither before nor after: {seen:#?}"));
        }
        if !open(root).unwrap().recovery().is_empty() {
            return Err("recovered twice".into());
        }
        Ok(())
    }
}

/// What processes leave that die.
fn leave(root: &Path) {
    for dir in ["gone-removing", "tmp/layer-1/layer", "tmp/removing-2"] {
        fs::create_dir_all(root.join(dir)).unwrap();
        fs::write(root.join(dir).join("layer.json"), "{}").unwrap();
        fs::write(root.join(dir).join("layer.vhd"), "half").unwrap();
    }
    fs::write(root.join("scratch/dead.vhd"), "").unwrap();
    fs::write(root.join("empty/diff.split.zst"), "half").unwrap();
}

#[test]
fn a_kill_at_any_system_call_leaves_each_layer_whole_or_absent() {
    if !lcow_testkit::have("strace") {
        lcow_testkit::skip!("no strace");
    }
    let all = std::env::var_os("LCOW_KILLS").is_some_and(|v| v == "all");
    let dir = tempfile::tempdir().unwrap();
    let now = dir.path().join("now");
    fs::create_dir(&now).unwrap();
    let store = open(&now).unwrap();
    let mut cases = Vec::new();
    for (n, &(name, step)) in STEPS.iter().enumerate() {
        if n > 0 {
            let start = dir.path().join(n.to_string());
            copy(&now, &start);
            cases.push(Case::new(name, start, dir.path()));
        }
        step(&store).unwrap();
    }
    let start = dir.path().join("recovery");
    copy(&now, &start);
    leave(&start);
    let mut recovery = Case::new(RECOVERY, start, dir.path());
    recovery.before = recovery.after.clone();
    cases.push(recovery);

    let whats: &[&str] = if all {
        &[
            "signal=KILL",
            "error=EINTR",
            "error=ENOSPC",
            "error=EIO",
            "error=EMFILE",
        ]
    } else {
        &["signal=KILL", "error=EINTR"]
    };
    let (mut done, mut hits, mut failures, mut of) = (0, 0, Vec::new(), 0);
    for case in &cases {
        for what in whats {
            // In an ordinary run, other calls of each operation and each kind.
            let stride = if all { 1 } else { 19 };
            of += case.points.len();
            for point in case.points.iter().skip(of % stride).step_by(stride) {
                done += 1;
                match case.inject(point, what, dir.path()) {
                    Ok(hit) => hits += usize::from(hit),
                    Err(e) => failures.push(e),
                }
            }
        }
    }
    println!("kills and interruptions: {done} of {of} points, {hits} hit");
    assert!(
        hits + failures.len() > done * 9 / 10,
        "the injections hit nothing"
    );
    assert!(
        failures.is_empty(),
        "{} failures, as\n{}",
        failures.len(),
        failures[..failures.len().min(8)].join("\n")
    );
}
