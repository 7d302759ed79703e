//! An operating system in memory, for tests of the server and of the host's side: no mount, no process, no privilege.

use crate::{Deadline, GuestOs, GuestProcess, Memory, Spawned, UnionMount};
use lcow_protocol::{AgentInfo, DiskMount, ErrorKind, ExecSpec, ExitStatus, RemoteError};
use rustix::pipe::PipeFlags;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What a [`FakeOs`] has, and what was done to it.
#[derive(Debug, Default)]
pub struct FakeState {
    /// Mount point → serial of the disk there.
    pub disks: BTreeMap<PathBuf, String>,
    /// Mount point → union there.
    pub unions: BTreeMap<PathBuf, UnionMount>,
    /// Every operation, in order, in a few words.
    pub history: Vec<String>,
    /// Whether the machine was powered off.
    pub off: bool,
}

/// The fake. Its "programs" are: `cat` (standard input to standard output), `exit N`, `echo WORDS…` (to standard error),
/// `sleep` (until a signal, which ends it) and `panic` (a fault in the agent). A disk whose serial is `bad` does not mount.
#[derive(Debug, Default, Clone)]
pub struct FakeOs {
    state: Arc<Mutex<FakeState>>,
}

impl FakeOs {
    /// An empty machine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What it has now.
    pub fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuestOs for FakeOs {
    fn info(&self) -> AgentInfo {
        AgentInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: "fake".into(),
            boot_ns: 0,
            lowerdir_plus: true,
        }
    }

    fn mount_disk(&self, mount: &DiskMount, at: &Path, _: Deadline) -> Result<(), RemoteError> {
        let mut state = self.state();
        if mount.serial == "bad" {
            state.history.push(format!("refused {}", mount.disk));
            return Err(RemoteError::new(ErrorKind::Corrupt, "check serial"));
        }
        state.history.push(format!("mount {}", mount.disk));
        state.disks.insert(at.to_owned(), mount.serial.clone());
        Ok(())
    }

    fn unmount_disk(&self, mount: &DiskMount, at: &Path, _: Deadline) -> Result<(), RemoteError> {
        let mut state = self.state();
        state.history.push(format!("unmount {}", mount.disk));
        state.disks.remove(at);
        Ok(())
    }

    fn mount_union(&self, union: &UnionMount, at: &Path) -> Result<(), RemoteError> {
        let mut state = self.state();
        state.history.push(format!("union {}", at.display()));
        state.unions.insert(at.to_owned(), union.clone());
        Ok(())
    }

    fn unmount_union(&self, at: &Path, _: Deadline) -> Result<(), RemoteError> {
        let mut state = self.state();
        state.history.push(format!("take apart {}", at.display()));
        state.unions.remove(at);
        Ok(())
    }

    fn spawn(&self, spec: &ExecSpec, _: Option<&Path>) -> Result<Spawned, RemoteError> {
        let words: Vec<String> = spec
            .argv
            .iter()
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let name = words.first().cloned().unwrap_or_default();
        if !["cat", "exit", "echo", "sleep", "panic"].contains(&name.as_str()) {
            return Err(RemoteError::new(ErrorKind::CommandNotFound, "exec").at(name));
        }
        assert_ne!(name, "panic", "the fault that was asked for");
        let pipe = || {
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                .map_err(|errno| RemoteError::system("make pipe", errno.raw_os_error()))
        };
        let (in_read, in_write) = pipe()?;
        let (out_read, out_write) = pipe()?;
        let (err_read, err_write) = pipe()?;
        let process = Arc::new(FakeProcess::default());
        let theirs = process.clone();
        std::thread::spawn(move || {
            let (mut input, mut output, mut errors) = (
                File::from(in_read),
                File::from(out_write),
                File::from(err_write),
            );
            let status = match name.as_str() {
                "cat" => match std::io::copy(&mut input, &mut output) {
                    Ok(_) => ExitStatus::Code(0),
                    Err(_) => ExitStatus::Signal(13),
                },
                "exit" => {
                    ExitStatus::Code(words.get(1).and_then(|code| code.parse().ok()).unwrap_or(0))
                }
                "echo" => match errors.write_all(words[1..].join(" ").as_bytes()) {
                    Ok(()) => ExitStatus::Code(0),
                    Err(_) => ExitStatus::Signal(13),
                },
                _ => return,
            };
            drop((input, output, errors));
            theirs.end(status);
        });
        Ok(Spawned {
            stdin: spec.stdin.then_some(in_write),
            stdout: out_read,
            stderr: err_read,
            process,
        })
    }

    fn sync(&self) {
        self.state().history.push("sync".into());
    }

    fn trim(&self, at: &Path) -> Result<u64, RemoteError> {
        self.state().history.push(format!("trim {}", at.display()));
        Ok(4096)
    }

    fn freeze(&self, at: &Path) -> Result<(), RemoteError> {
        self.state()
            .history
            .push(format!("freeze {}", at.display()));
        Ok(())
    }

    fn thaw(&self, at: &Path) -> Result<(), RemoteError> {
        self.state().history.push(format!("thaw {}", at.display()));
        Ok(())
    }

    fn kernel_log(&self, _: usize) -> Result<Vec<u8>, RemoteError> {
        Ok(b"6,0,0,-;fake kernel\n".to_vec())
    }

    fn memory(&self) -> Result<Memory, RemoteError> {
        Ok(Memory {
            uptime_s: 1,
            total: 256 << 20,
            available: 128 << 20,
        })
    }

    fn set_clock(&self, seconds: i64, _: u32) -> Result<(), RemoteError> {
        self.state().history.push(format!("clock {seconds}"));
        Ok(())
    }

    fn power_off(&self) {
        let mut state = self.state();
        state.history.push("off".into());
        state.off = true;
    }
}

#[derive(Default)]
struct FakeProcess {
    status: Mutex<Option<ExitStatus>>,
    ended: Condvar,
}

impl FakeProcess {
    fn end(&self, status: ExitStatus) {
        self.status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(status);
        self.ended.notify_all();
    }
}

impl GuestProcess for FakeProcess {
    fn signal(&self, signal: u8) -> Result<(), RemoteError> {
        self.end(ExitStatus::Signal(i32::from(signal)));
        Ok(())
    }

    fn kill(&self) {
        self.end(ExitStatus::Signal(9));
    }

    fn wait(&self) -> ExitStatus {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.ended.wait_while(status, |status| status.is_none());
        ended
            .unwrap_or_else(PoisonError::into_inner)
            .unwrap_or(ExitStatus::Signal(9))
    }
}
