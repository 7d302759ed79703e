//! The child's side: giving up everything, then converting.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};

use lcow_blockio::FileDisk;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{DISK_FD, REPORT_FD, Report, SPLIT_FD, Task, convert_here};
use crate::error::{ConvertError, ErrorKind};

/// Who the child is when the parent is root: nobody.
const UNPRIVILEGED: u32 = 65534;
/// Address space, in bytes: far above what a conversion takes, far below what would hurt the host.
const MAX_MEMORY: u64 = 8 << 30;
const MAX_FILES: u64 = 64;
/// How far files may grow past the largest disk: footer, re-emission data. A verity tree comes on top.
const FILE_SLACK: u64 = 4 << 30;

/// Converts as the task says and gives the exit status.
pub(super) fn main(task: &OsStr) -> i32 {
    let Ok((disk, split, report)) =
        adopt(DISK_FD).and_then(|disk| Ok((disk, adopt(SPLIT_FD)?, adopt(REPORT_FD)?)))
    else {
        return 3;
    };
    let result = work(task, FileDisk::from(disk), split);
    let written =
        serde_json::to_vec(&result).is_ok_and(|bytes| (&report).write_all(&bytes).is_ok());
    match result {
        Ok(_) if written => 0,
        _ => 1,
    }
}

fn work(task: &OsStr, disk: FileDisk, split: File) -> Report {
    let failed = |message: String| ConvertError {
        kind: ErrorKind::Isolation,
        message,
    };
    let task: Task = task
        .to_str()
        .and_then(|t| serde_json::from_str(t).ok())
        .ok_or_else(|| failed("the conversion's task can't be understood".into()))?;
    give_up(&task).map_err(failed)?;
    let input = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|e| failed(format!("duplicating the tar's descriptor: {e}")))?;
    convert_here(&task, File::from(input), disk, split)
}

/// A duplicate of a descriptor that the parent passed, as a file. The original stays open until the process exits.
fn adopt(fd: i32) -> std::io::Result<File> {
    // SAFETY: the descriptor is only borrowed to be duplicated; if it is not open, that fails with EBADF.
    #[allow(unsafe_code)]
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map(File::from)
}

fn give_up(task: &Task) -> Result<(), String> {
    let step = |name: &'static str| move |e: nix::Error| format!("{name}: {e}");
    let limit =
        |resource, value| setrlimit(resource, value, value).map_err(step("limiting resources"));
    limit(Resource::RLIMIT_CORE, 0)?;
    limit(Resource::RLIMIT_NOFILE, MAX_FILES)?;
    limit(Resource::RLIMIT_AS, MAX_MEMORY)?;
    let tree = if task.verity { task.max_size / 64 } else { 0 };
    limit(
        Resource::RLIMIT_FSIZE,
        task.max_size
            .saturating_add(tree)
            .saturating_add(FILE_SLACK),
    )?;
    if Uid::effective().is_root() {
        become_nobody()?;
    }
    prctl::set_no_new_privs().map_err(step("forbidding new privileges"))?;
    // Not to be looked into, nor traced, by others of the same user.
    prctl::set_dumpable(false).map_err(step("forbidding traces"))?;
    // After the change of user, which clears it. A parent that died before it was set has left a pipe that ends.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("tying itself to its parent"))?;
    Ok(())
}

fn become_nobody() -> Result<(), String> {
    let changed = setgroups(&[])
        .and_then(|()| setgid(Gid::from_raw(UNPRIVILEGED)))
        .and_then(|()| setuid(Uid::from_raw(UNPRIVILEGED)));
    match changed {
        Ok(()) => {}
        // Root of a user namespace in which there is no nobody, or that may not change groups: such a root is somebody
        // ordinary outside, and gives up its capabilities.
        Err(nix::Error::EINVAL | nix::Error::EPERM) => {}
        Err(e) => return Err(format!("changing to an unprivileged user: {e}")),
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(|e| format!("giving up capabilities: {e}"))
}
