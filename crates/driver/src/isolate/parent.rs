//! The parent's side: starting the child, feeding it, believing nothing but its whole report.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};

use super::{DISK_FD, Done, REPORT_FD, Report, SPLIT_FD, TASK_VARIABLE, Task};
use crate::DriverError;
use crate::cancel::Cancel;
use crate::store::Input;

/// How much of a report, and of the error stream, is read. A child that was taken over can write what it wants.
const REPORT_LIMIT: u64 = 64 << 10;
/// How soon a cancellation reaches the child.
const TICK: Duration = Duration::from_millis(20);

pub(super) fn run(
    program: &Path,
    arguments: &[OsString],
    task: &Task,
    input: Input<'_>,
    disk: &File,
    split: &File,
    cancel: &Cancel,
) -> Result<Done, DriverError> {
    let failed = |detail: &'static str| {
        move |source| DriverError::Isolation {
            detail: detail.into(),
            source: Some(source),
        }
    };
    let (mut report, report_in) = io::pipe().map_err(failed("making its report's pipe"))?;
    let own = |file: &File| {
        file.try_clone()
            .map(OwnedFd::from)
            .map_err(failed("duplicating a descriptor"))
    };
    let mut command = Command::new(program);
    let text = serde_json::to_string(task).map_err(|e| DriverError::Isolation {
        detail: e.to_string(),
        source: None,
    })?;
    command
        .args(arguments)
        .arg0("lcow-convert")
        .env_clear()
        .env(TASK_VARIABLE, text)
        .current_dir("/");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let reader = match input {
        Input::File(file) => {
            command.stdin(file);
            None
        }
        Input::Reader(reader) => {
            command.stdin(Stdio::piped());
            Some(reader)
        }
    };
    command
        .fd_mappings(vec![
            FdMapping {
                parent_fd: own(disk)?,
                child_fd: DISK_FD,
            },
            FdMapping {
                parent_fd: own(split)?,
                child_fd: SPLIT_FD,
            },
            FdMapping {
                parent_fd: report_in.into(),
                child_fd: REPORT_FD,
            },
        ])
        .map_err(|e| DriverError::Isolation {
            detail: e.to_string(),
            source: None,
        })?;
    let mut child = command.spawn().map_err(failed("starting it"))?;
    // The command holds this side's copies of the child's descriptors: with them open, no pipe would ever end.
    drop(command);
    let stdin = child.stdin.take();
    let stderr = child.stderr.take();
    let child = Running::new(child);

    let (fed, report, noise) = std::thread::scope(|scope| {
        // Dropped when there is nothing left to watch, which ends the watch at once.
        let (watched, end) = channel();
        scope.spawn(|| child.watch(cancel, end));
        let noise = scope.spawn(move || stderr.map(read_some).unwrap_or_default());
        let fed = match (reader, stdin) {
            (Some(reader), Some(stdin)) => feed(reader, stdin, cancel),
            _ => Ok(()),
        };
        if fed.is_err() {
            child.kill();
        }
        let report = read_some(&mut report);
        let noise = noise.join().unwrap_or_default();
        drop(watched);
        (fed, report, noise)
    });
    let status = child.wait();
    // Looked at first: a killed child's report says nothing.
    cancel.check()?;
    fed.map_err(DriverError::Input)?;
    let status = status.map_err(failed("waiting for it"))?;
    judge(&report, status, &noise)
}

fn judge(report: &[u8], status: ExitStatus, noise: &[u8]) -> Result<Done, DriverError> {
    match serde_json::from_slice::<Report>(report) {
        Ok(Err(e)) => Err(DriverError::Convert(e)),
        Ok(Ok(done)) if status.success() => Ok(done),
        _ => {
            let noise = String::from_utf8_lossy(noise);
            let noise = noise.trim();
            let mut detail = status.to_string();
            if !noise.is_empty() {
                detail.push_str("; it said: ");
                detail.push_str(noise);
            }
            Err(DriverError::Isolation {
                detail,
                source: None,
            })
        }
    }
}

/// Gives the child its tar. A child that stops reading has its reasons, and its report tells them.
fn feed(reader: &mut (dyn Read + Send), mut stdin: ChildStdin, cancel: &Cancel) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while !cancel.is_cancelled() {
        let n = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        match stdin.write_all(&buffer[..n]) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn read_some(from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut from = from.take(REPORT_LIMIT);
    // A report cut off by an error is no report.
    let _ = from.read_to_end(&mut bytes);
    bytes
}

/// The child, from its start until it was waited for.
struct Running(Mutex<Child>);

impl Running {
    fn new(child: Child) -> Self {
        Self(Mutex::new(child))
    }

    fn kill(&self) {
        // Fails only if it is gone already.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).kill();
    }

    fn watch(&self, cancel: &Cancel, end: Receiver<()>) {
        while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(TICK) {
            if cancel.is_cancelled() {
                self.kill();
                return;
            }
        }
    }

    fn wait(&self) -> io::Result<ExitStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After a panic in the reader: no child is left running, and none a zombie.
        self.kill();
        let _ = self.wait();
    }
}
