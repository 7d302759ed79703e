//! This test program as another process: the conversion child, and peers that hold or do things until they are killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use lcow_driver::{Access, ApplyRequest, Cancel, Input, OpenOptions, Store};

use crate::common::{id, isolated, tar};

const ROLE: &str = "LCOW_TEST_ROLE";
const ROOT: &str = "LCOW_TEST_ROOT";
pub(crate) const READY: &str = "the helper is ready";

/// Does nothing in an ordinary run of the tests.
#[test]
fn process() {
    if std::env::var_os("LCOW_CONVERT_TASK").is_some() {
        lcow_driver::isolate::child_main_if_asked();
    }
    if let Ok(role) = std::env::var(ROLE) {
        let root = std::env::var_os(ROOT).unwrap();
        play(&role, Path::new(&root));
        std::process::exit(0);
    }
}

fn ready_and_wait() {
    println!("{READY}");
    std::io::stdout().flush().unwrap();
    // The parent closes it, or kills.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn play(role: &str, root: &Path) {
    let open = |access, isolation| {
        Store::open(
            root,
            OpenOptions {
                access,
                isolation,
                ..OpenOptions::default()
            },
        )
        .unwrap()
    };
    match role {
        "exclusive" => {
            let _store = open(Access::Exclusive, Default::default());
            ready_and_wait();
        }
        "shared" => {
            let _store = open(Access::Shared, Default::default());
            ready_and_wait();
        }
        "reference" => {
            let store = open(Access::Shared, Default::default());
            let _reference = store.reference(&id("layer")).unwrap();
            ready_and_wait();
        }
        "sandbox" => {
            let store = open(Access::Shared, Default::default());
            let _guard = store.lock_sandbox(&id("sandbox")).unwrap();
            ready_and_wait();
        }
        "half-import" | "half-import-isolated" | "half-apply" => {
            let isolation = if role.ends_with("isolated") {
                isolated()
            } else {
                Default::default()
            };
            let store = open(Access::Shared, isolation);
            let mut input = Stuck(tar(&[("file", &[7; 1 << 20])]), 0);
            let (request, cancel) = (ApplyRequest::default(), Cancel::new());
            if role == "half-apply" {
                store.create(&id("layer"), None).unwrap();
                drop(store.apply_diff(
                    &id("layer"),
                    None,
                    Input::Reader(&mut input),
                    &request,
                    &cancel,
                ));
            } else {
                drop(store.import(
                    &id("layer"),
                    None,
                    Input::Reader(&mut input),
                    &request,
                    &cancel,
                ));
            }
        }
        "model" => crate::model::play(root),
        "step" => crate::kills::play(root),
        "create" => {
            let store = open(Access::Shared, Default::default());
            println!("{READY}");
            std::io::stdout().flush().unwrap();
            let mut made = 0;
            for n in 0..100 {
                made += usize::from(store.create(&id(&format!("layer-{n}")), None).is_ok());
            }
            println!("made {made}");
        }
        other => panic!("no role {other}"),
    }
}

/// Gives all but the end of a tar, says so, and blocks.
struct Stuck(Vec<u8>, usize);

impl Read for Stuck {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = &self.0[self.1..self.0.len() - 1024];
        if left.is_empty() {
            ready_and_wait();
            return Ok(0);
        }
        let n = left.len().min(buf.len()).min(64 << 10);
        buf[..n].copy_from_slice(&left[..n]);
        self.1 += n;
        Ok(n)
    }
}

/// This program, to play a role on a data root.
pub(crate) fn command(role: &str, root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "helper::process", "--nocapture"])
        .env(ROLE, role)
        .env(ROOT, root);
    command
}

/// A peer that is as far as its role goes. Killed when dropped.
pub(crate) struct Peer {
    pub(crate) child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Peer {
    pub(crate) fn start(role: &str, root: &Path) -> Self {
        let mut child = command(role, root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains(READY) {
            line.clear();
            assert_ne!(
                output.read_line(&mut line).unwrap(),
                0,
                "the helper {role} ended early"
            );
        }
        Self { child, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it come to its end, and gives what it printed.
    pub(crate) fn finish(mut self) -> String {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success());
        rest
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
