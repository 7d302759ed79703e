//! Locks between processes, and who holds them.
//!
//! All are `flock(2)` locks, which the kernel drops when their holder dies, however it dies; no decision rests on a
//! process id. They belong to open file descriptions, so threads of one process exclude each other as processes do.
//! Process ids are used only to say who holds a lock: `/proc/locks` knows.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::DriverError;
use crate::files::Files;
use crate::vfs::{Handle, LockMode, OpenMode, Sequential};

/// A process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its command line, shortened; `None` if it can't be seen.
    pub command: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if let Some(command) = &self.command {
            write!(f, " ({command})")?;
        }
        Ok(())
    }
}

pub(crate) fn list(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "another process".into();
    }
    holders
        .iter()
        .map(Holder::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// A held lock on a file or a directory. Dropping it releases it at once, even while a process being started still has
/// a copy of the descriptor.
#[derive(Debug)]
pub(crate) struct Locked(Handle);

impl Drop for Locked {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

impl Locked {
    /// Takes the lock if it is free; gives the file back if not.
    pub(crate) fn try_new(file: Handle, mode: LockMode) -> io::Result<Result<Self, Handle>> {
        Ok(if file.try_lock(mode)? {
            Ok(Self(file))
        } else {
            Err(file)
        })
    }

    pub(crate) fn file(&self) -> &Handle {
        &self.0
    }
}

/// Who holds a lock on the file, as `/proc/locks` says. Empty where it doesn't say.
pub(crate) fn holders(file: &File) -> Vec<Holder> {
    let Ok(metadata) = file.metadata() else {
        return Vec::new();
    };
    let Ok(table) = fs::read_to_string("/proc/locks") else {
        return Vec::new();
    };
    let device = (
        u64::from(rustix::fs::major(metadata.dev())),
        u64::from(rustix::fs::minor(metadata.dev())),
    );
    let mut exact = Vec::new();
    let mut same_inode = Vec::new();
    for line in table.lines() {
        let Some((pid, lock_device, inode)) = parse_lock(line) else {
            continue;
        };
        if inode == metadata.ino() {
            if lock_device == device {
                exact.push(pid);
            } else {
                same_inode.push(pid);
            }
        }
    }
    // Some file systems (btrfs, overlayfs) show another device number in stat(2) than in the lock table.
    let mut pids = if exact.is_empty() { same_inode } else { exact };
    pids.sort_unstable();
    pids.dedup();
    pids.into_iter()
        .map(|pid| Holder {
            pid,
            command: command_of(pid),
        })
        .collect()
}

/// Reads a line as `3: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF` (proc_locks(5)); waiting ones, with `->`, are not
/// holders.
fn parse_lock(line: &str) -> Option<(u32, (u64, u64), u64)> {
    let mut words = line.split_whitespace().skip(1);
    if words.next()? != "FLOCK" {
        return None;
    }
    let pid = words.nth(2)?.parse().ok().filter(|&pid| pid > 0)?;
    let mut place = words.next()?.split(':');
    let major = u64::from_str_radix(place.next()?, 16).ok()?;
    let minor = u64::from_str_radix(place.next()?, 16).ok()?;
    Some((pid, (major, minor), place.next()?.parse().ok()?))
}

/// A process's command line, at most 80 characters of it.
pub(crate) fn command_of(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = bytes
        .split(|&b| b == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let text: String = words
        .join(" ")
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(80)
        .collect();
    if !text.is_empty() {
        return Some(text);
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim().to_owned())
}

/// The lock on the data root: exclusive for a daemon, shared by commands.
#[derive(Debug)]
pub(crate) struct RootLock {
    _locked: Locked,
}

impl RootLock {
    pub(crate) fn take(files: &Files, root: &Path, mode: LockMode) -> Result<Self, DriverError> {
        let path = root.join("lock");
        match files.try_lock(&path, OpenMode::Create, mode)? {
            Ok(locked) => {
                if mode == LockMode::Exclusive {
                    write_holder(locked.file()).map_err(DriverError::io("writing", &path))?;
                }
                Ok(Self { _locked: locked })
            }
            Err(file) => {
                let mut by = file.holders();
                if by.is_empty() {
                    by.extend(read_holder(file));
                }
                Err(DriverError::Busy {
                    root: root.to_owned(),
                    by,
                })
            }
        }
    }
}

/// The file says who holds it for people, and for where `/proc/locks` does not tell (another pid namespace).
fn write_holder(file: &Handle) -> io::Result<()> {
    let pid = std::process::id();
    let command = command_of(pid).unwrap_or_default();
    file.set_len(0)?;
    file.write_all_at(0, format!("{pid}\n{command}\n").as_bytes())
}

fn read_holder(file: Handle) -> Option<Holder> {
    let mut text = String::new();
    let mut file = Sequential::new(file).take(4096);
    file.read_to_string(&mut text).ok()?;
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok()?;
    let command = lines.next().filter(|c| !c.is_empty()).map(str::to_owned);
    Some(Holder { pid, command })
}

/// Serialises the short moments in which something becomes visible or vanishes, between threads and processes.
#[derive(Debug)]
pub struct CommitGuard<'a> {
    _locked: Locked,
    _thread: std::sync::MutexGuard<'a, ()>,
}

/// How long a commit waits for another one. They take milliseconds; only a stopped process holds one longer.
const COMMIT_PATIENCE: Duration = Duration::from_secs(60);

impl<'a> CommitGuard<'a> {
    pub(crate) fn take(
        files: &Files,
        tmp: &Path,
        threads: &'a std::sync::Mutex<()>,
    ) -> Result<Self, DriverError> {
        let path: PathBuf = tmp.join(".commit");
        let thread = threads
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(Self {
            _locked: wait(files, &path, COMMIT_PATIENCE)?,
            _thread: thread,
        })
    }
}

/// A lock on a file of the data root, until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct FileLock {
    _locked: Locked,
}

impl FileLock {
    pub(crate) fn take(
        files: &Files,
        path: &Path,
        patience: Duration,
    ) -> Result<Self, DriverError> {
        wait(files, path, patience).map(|locked| Self { _locked: locked })
    }
}

/// Locks a file, made if it is not there, alone.
fn wait(files: &Files, path: &Path, patience: Duration) -> Result<Locked, DriverError> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    let mut file = files.open(path, OpenMode::Create)?;
    loop {
        match Locked::try_new(file, LockMode::Exclusive)
            .map_err(DriverError::io("locking", path))?
        {
            Ok(locked) => return Ok(locked),
            Err(back) => file = back,
        }
        if start.elapsed() > patience {
            return Err(DriverError::Timeout {
                path: path.to_owned(),
                waited: patience,
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_table_lines() {
        let line = "12: FLOCK  ADVISORY  WRITE 4242 fe:00:131137 0 EOF";
        assert_eq!(parse_lock(line), Some((4242, (0xfe, 0), 131_137)));
        assert_eq!(
            parse_lock("12: -> FLOCK  ADVISORY  WRITE 4242 fe:00:131137 0 EOF"),
            None
        );
        assert_eq!(parse_lock("1: POSIX  ADVISORY  READ 7 fe:00:9 0 EOF"), None);
        assert_eq!(
            parse_lock("1: FLOCK  ADVISORY  READ 0 fe:00:9 0 EOF"),
            None,
            "a pid of another namespace"
        );
        assert_eq!(parse_lock("nonsense"), None);
    }
}
