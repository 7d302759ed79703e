//! One whole process: how it ended, how long it took, how much memory it had.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// The argument that makes this program the helper of [`Lab::lcow`].
pub(crate) const HELPER: &str = "measure-one";
/// The most one process may take.
const TIME: Duration = Duration::from_secs(10);
/// What a process may hold beside four times the file's size, in bytes.
const MEMORY: u64 = 64 << 20;

/// What the helper reports.
#[derive(Serialize, Deserialize)]
struct Usage {
    code: Option<i32>,
    signal: Option<i32>,
    seconds: f64,
    peak_bytes: u64,
}

/// The helper: runs one command in a process whose account of its children is that command's alone, and which is small, since a
/// child's peak starts with what its parent held. Prints a [`Usage`].
pub(crate) fn helper(mut args: impl Iterator<Item = OsString>) -> io::Result<()> {
    let mut next = || {
        args.next()
            .ok_or_else(|| io::Error::other("an argument is missing"))
    };
    let (stdout, stderr, program) = (next()?, next()?, next()?);
    let started = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(File::create(stdout)?)
        .stderr(File::create(stderr)?)
        .spawn()?;
    let pid = child.id().to_string();
    let (ended, end) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if end.recv_timeout(2 * TIME) == Err(mpsc::RecvTimeoutError::Timeout) {
            // The child is not waited for before this thread is told, so the number is still its own.
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        }
    });
    let status = child.wait()?;
    let seconds = started.elapsed().as_secs_f64();
    drop(ended);
    let _ = watchdog.join();
    let usage = Usage {
        code: status.code(),
        signal: status.signal(),
        seconds,
        // Linux counts kibibytes.
        peak_bytes: u64::try_from(getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss()).unwrap_or(0)
            * 1024,
    };
    println!("{}", serde_json::to_string(&usage)?);
    Ok(())
}

/// An error as `lcow --json` reports it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: String,
    pub(crate) message: String,
}

/// Where one file of the corpora is tried, and what was noticed on the way.
pub(crate) struct Lab {
    lcow: PathBuf,
    dir: tempfile::TempDir,
    /// The most memory that is right, in bytes.
    bound: u64,
    pub(crate) slowest: f64,
    pub(crate) peak: u64,
    pub(crate) wrong: Vec<String>,
}

impl Lab {
    /// A place to try a file of so many bytes.
    pub(crate) fn new(lcow: &Path, bytes: u64) -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        Ok(Self {
            lcow: lcow.to_owned(),
            dir: if memory.is_dir() {
                tempfile::tempdir_in(memory)?
            } else {
                tempfile::tempdir()?
            },
            bound: MEMORY + 4 * bytes,
            slowest: 0.0,
            peak: 0,
            wrong: Vec::new(),
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("work").join(name)
    }

    pub(crate) fn complain(&mut self, what: impl Into<String>) {
        self.wrong.push(what.into());
    }

    /// Runs `lcow --json` with `args`; what it wrote, or its error. `leaves`: the files that may be there afterwards if it
    /// succeeds; beyond `before` none may be if it fails.
    pub(crate) fn lcow<A: AsRef<OsStr>>(
        &mut self,
        args: &[A],
        before: &[&str],
        leaves: &[&str],
    ) -> io::Result<Result<Vec<u8>, Failure>> {
        let work = self.path("");
        std::fs::create_dir_all(&work)?;
        let (stdout, stderr) = (self.dir.path().join("out"), self.dir.path().join("err"));
        let report = Command::new(std::env::current_exe()?)
            .arg(HELPER)
            .args([&stdout, &stderr, &self.lcow])
            .arg("--json")
            .args(args)
            .current_dir(&work)
            .env("TMPDIR", &work)
            .env("LC_ALL", "C")
            .stderr(Stdio::inherit())
            .output()?;
        let usage: Usage = serde_json::from_slice(&report.stdout)?;
        self.slowest = self.slowest.max(usage.seconds);
        self.peak = self.peak.max(usage.peak_bytes);
        let words: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        let command = words.join(" ");
        if usage.seconds > TIME.as_secs_f64() {
            self.complain(format!("{command}: took {:.1} s", usage.seconds));
        }
        if usage.peak_bytes > self.bound {
            let (peak, bound) = (usage.peak_bytes, self.bound);
            self.complain(format!("{command}: {peak} bytes of memory, over {bound}"));
        }
        let succeeded = usage.code == Some(0);
        let mut may: Vec<&str> = before.to_vec();
        may.extend(leaves.iter().filter(|_| succeeded));
        for file in std::fs::read_dir(&work)? {
            let name = file?.file_name();
            if !may.iter().any(|known| name == *known) {
                self.complain(format!("{command}: leaves {}", name.display()));
            }
        }
        if succeeded {
            return Ok(Ok(std::fs::read(&stdout)?));
        }
        let said = std::fs::read(&stderr)?;
        let said = String::from_utf8_lossy(&said);
        #[derive(Deserialize)]
        struct Said {
            error: Failure,
        }
        let failure = match serde_json::from_str::<Said>(&said) {
            Ok(said) if usage.code == Some(1) => said.error,
            _ => {
                let how = match (usage.code, usage.signal) {
                    (Some(code), _) => format!("code {code}"),
                    (_, signal) => format!("signal {}", signal.unwrap_or(0)),
                };
                Failure {
                    kind: "crash".to_owned(),
                    message: format!("ends with {how} and says {said:?}"),
                }
            }
        };
        if !["corrupt", "unsupported", "refused", "not-a-tar"].contains(&&*failure.kind) {
            self.complain(format!("{command}: {}: {}", failure.kind, failure.message));
        }
        Ok(Err(failure))
    }
}
