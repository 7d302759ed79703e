//! PID 1 of a process's own namespaces: a second copy of the agent's binary, started under the name [`ARGV0`].
//!
//! ```text
//!  agent ── unshare(NEWPID), spawn ──► init (this module, PID 1)
//!                                       │ unshare(NEWNS, NEWUTS, NEWIPC), mounts, pivot_root   [rootfs]
//!                                       │ user and groups looked up in the container           [users]
//!                                       └─ spawn ──► the process (own process group)
//! ```
//!
//! Init stays: it forwards signals to the process's group, reaps whatever is left to it, reports how the process ended, and
//! with its own end the kernel ends everything else in the namespace. Being PID 1 itself, it spares the process PID 1's
//! rules, so that signals have their usual effect.
//!
//! Nothing is written into the container's disks on the way: the mount points are in a layer of their own
//! ([`UnionMount::mount_points`](crate::UnionMount)), `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` are files of a tmpfs
//! mounted over what the union has there (and left out where it has nothing), and device nodes live on a tmpfs. The one
//! exception is the working directory, which is made if absent.

mod rootfs;
mod users;

use lcow_protocol::{
    ErrorKind, ExecSpec, ExitStatus, FrameDecoder, HEADER_LEN, RemoteError, decode_body,
    encode_frame, frame_len,
};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use users::User;

/// The name under which the binary is this module.
pub const ARGV0: &str = "lcow-init";

/// `PATH` of a process that has none, as containers have it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What init is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    pub(crate) exec: ExecSpec,
    /// Where the root directory is mounted in the agent's namespace.
    pub(crate) root: Option<PathBuf>,
}

/// Agent to init, once the process runs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToContainer {
    Signal(u8),
}

/// Init to agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromContainer {
    Started,
    Failed(RemoteError),
    Exited(ExitStatus),
}

/// Runs as init; the binary's `main` calls it when it goes by [`ARGV0`]. Standard input is the control socket.
#[must_use]
pub fn main() -> ExitCode {
    let control = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => UnixStream::from(fd),
        Err(_) => return ExitCode::FAILURE,
    };
    match serve(&control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If the agent can't hear it, it sees this process end without a word.
            let _ = tell(&control, &FromContainer::Failed(error));
            ExitCode::FAILURE
        }
    }
}

fn tell(mut control: &UnixStream, event: &FromContainer) -> std::io::Result<()> {
    control.write_all(&encode_frame(event).map_err(std::io::Error::other)?)
}

fn system(operation: &'static str) -> impl FnOnce(Errno) -> RemoteError {
    move |errno| RemoteError::system(operation, errno.raw_os_error())
}

fn broken(what: &'static str) -> RemoteError {
    RemoteError::new(ErrorKind::Internal, "start process").because(what)
}

fn serve(control: &UnixStream) -> Result<(), RemoteError> {
    let stdio = receive_descriptors(control)?;
    let spec = receive_spec(control)?;
    // SAFETY: no CLONE_FILES here, and this process has one thread.
    #[allow(unsafe_code)]
    unsafe {
        rustix::thread::unshare_unsafe(
            UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC,
        )
    }
    .map_err(system("new namespaces"))?;
    if !spec.exec.hostname.is_empty() {
        rustix::system::sethostname(spec.exec.hostname.as_bytes())
            .map_err(system("set host name"))?;
    }
    rootfs::enter(&spec)?;
    let user = users::resolve(&spec.exec.identity)?;
    enter_working_directory(&spec.exec.cwd)?;
    let child = start(&spec.exec, &user, stdio)?;
    tell(control, &FromContainer::Started).map_err(|_| broken("the agent is gone"))?;
    let status = mind(child, control);
    // Everything written inside reaches the agent's pipes before this; whatever else runs ends with this process.
    let _ = tell(control, &FromContainer::Exited(status));
    Ok(())
}

fn receive_descriptors(control: &UnixStream) -> Result<[OwnedFd; 3], RemoteError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    rustix::net::recvmsg(
        control,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(system("receive descriptors"))?;
    let received: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    received
        .try_into()
        .map_err(|_| broken("it was not given three descriptors"))
}

fn receive_spec(mut control: &UnixStream) -> Result<ContainerSpec, RemoteError> {
    let mut header = [0; HEADER_LEN];
    control
        .read_exact(&mut header)
        .map_err(|_| broken("the agent is gone"))?;
    let len = frame_len(header).map_err(|_| broken("it was told too much"))?;
    let mut body = vec![0; len];
    control
        .read_exact(&mut body)
        .map_err(|_| broken("the agent is gone"))?;
    decode_body(&body).map_err(|_| broken("it was told nonsense"))
}

fn enter_working_directory(cwd: &[u8]) -> Result<(), RemoteError> {
    let cwd = if cwd.is_empty() {
        OsStr::new("/")
    } else {
        OsStr::from_bytes(cwd)
    };
    if !std::path::Path::new(cwd).is_absolute() {
        return Err(
            RemoteError::new(ErrorKind::Refused, "enter working directory")
                .at(cwd.as_bytes())
                .because("it is not absolute"),
        );
    }
    let at = |error: std::io::Error| {
        RemoteError::system("enter working directory", error.raw_os_error().unwrap_or(0))
            .at(cwd.as_bytes())
    };
    if let Err(error) = rustix::process::chdir(cwd) {
        if error != Errno::NOENT {
            return Err(at(error.into()));
        }
        let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        std::fs::create_dir_all(cwd).map_err(at)?;
        rustix::process::umask(umask);
        rustix::process::chdir(cwd).map_err(|errno| at(errno.into()))?;
    }
    Ok(())
}

/// Splits `NAME=value`; an entry without a name or without `=` names nothing and is left out.
fn variable(entry: &[u8]) -> Option<(&OsStr, &OsStr)> {
    let at = entry.iter().position(|byte| *byte == b'=')?;
    (at > 0).then(|| {
        (
            OsStr::from_bytes(&entry[..at]),
            OsStr::from_bytes(&entry[at + 1..]),
        )
    })
}

fn start(exec: &ExecSpec, user: &User, stdio: [OwnedFd; 3]) -> Result<Pid, RemoteError> {
    let Some((name, arguments)) = exec.argv.split_first() else {
        return Err(RemoteError::new(ErrorKind::Refused, "exec").because("no command"));
    };
    if name.is_empty() {
        return Err(RemoteError::new(ErrorKind::CommandNotFound, "exec").at(b"".as_slice()));
    }
    let mut command = Command::new(OsStr::from_bytes(name));
    command.args(arguments.iter().map(|argument| OsStr::from_bytes(argument)));
    command
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .env("HOME", &user.home);
    command.envs(exec.env.iter().filter_map(|entry| variable(entry)));
    let [stdin, stdout, stderr] = stdio;
    command
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0);
    let (uid, gid, groups) = (user.uid, user.gid, user.groups.clone());
    let become_user = move || {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes only system calls, on memory prepared before; this process has one thread.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(become_user);
    }
    let child = command.spawn().map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(0);
        let kind = match errno {
            libc::ENOENT | libc::ENOTDIR => ErrorKind::CommandNotFound,
            libc::EACCES
            | libc::EPERM
            | libc::ENOEXEC
            | libc::EISDIR
            | libc::ELOOP
            | libc::ETXTBSY => ErrorKind::CommandNotExecutable,
            _ => ErrorKind::System,
        };
        RemoteError {
            errno,
            ..RemoteError::new(kind, "exec")
        }
        .at(name.as_slice())
    })?;
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| broken("its number is no process id"))
}

/// Forwards signals and reaps until the process has ended.
fn mind(child: Pid, control: &UnixStream) -> ExitStatus {
    // Held while signalling and while reaping the process: a number used again is never signalled.
    let alive = Arc::new(Mutex::new(true));
    if let Ok(control) = control.try_clone() {
        let alive = alive.clone();
        std::thread::spawn(move || forward_signals(child, control, &alive));
    }
    loop {
        let dead = match rustix::process::waitid(
            WaitId::All,
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        ) {
            Ok(Some(status)) => status,
            Ok(None) | Err(Errno::INTR) => continue,
            Err(_) => return ExitStatus::Signal(libc::SIGKILL),
        };
        let _ = dead;
        let mut alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) else {
            continue;
        };
        if pid == child {
            *alive = false;
            return match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Code(code),
                (None, signal) => ExitStatus::Signal(signal.unwrap_or(libc::SIGKILL)),
            };
        }
    }
}

fn forward_signals(child: Pid, mut control: UnixStream, alive: &Mutex<bool>) {
    let mut decoder = FrameDecoder::new();
    let mut bytes = [0; 64];
    loop {
        match control.read(&mut bytes) {
            Ok(0) => return,
            Ok(n) => decoder.push(&bytes[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        while let Ok(Some(ToContainer::Signal(number))) = decoder.next() {
            let alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
            if let (true, Some(signal)) = (*alive, signal_named(number)) {
                // ESRCH: the whole group is gone.
                let _ = rustix::process::kill_process_group(child, signal);
            }
        }
    }
}

fn signal_named(number: u8) -> Option<Signal> {
    let number = i32::from(number);
    Signal::from_named_raw(number).or_else(|| {
        // SAFETY: a real-time signal is only sent, to processes that are not this one; what must not be done with those that
        // the C library keeps for itself is to handle them here.
        #[allow(unsafe_code)]
        (32..=64)
            .contains(&number)
            .then(|| unsafe { Signal::from_raw_unchecked(number) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_needs_a_name_and_an_equals_sign() {
        assert_eq!(
            variable(b"A=b=c"),
            Some((OsStr::new("A"), OsStr::new("b=c")))
        );
        assert_eq!(variable(b"A="), Some((OsStr::new("A"), OsStr::new(""))));
        assert_eq!(variable(b"=x"), None);
        assert_eq!(variable(b"A"), None);
    }
}
