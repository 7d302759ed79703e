//! Starting processes, and reaping them.
//!
//! Each process gets a second copy of the agent as PID 1 of a new PID namespace; the rest is [`crate::container`]'s. The two
//! talk over a socket: first three descriptors (the process's standard streams), then frames.

use super::{failed, failed_io};
use crate::container::{self, ContainerSpec, FromContainer, ToContainer};
use crate::{GuestProcess, Spawned, log};
use lcow_protocol::{ErrorKind, ExecSpec, ExitStatus, FrameDecoder, RemoteError, encode_frame};
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use rustix::thread::UnshareFlags;
use std::collections::HashMap;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};

/// This very binary, wherever the root directory is by now.
const SELF: &str = "/proc/self/exe";

type Waiting = HashMap<Pid, mpsc::Sender<WaitStatus>>;

/// All children of PID 1: those it started, and orphans it inherits. One thread reaps them all.
pub(super) struct Children {
    shared: Arc<(Mutex<Waiting>, Condvar)>,
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reap(shared: &(Mutex<Waiting>, Condvar)) {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                if let Some(waiter) = lock(&shared.0).remove(&pid) {
                    // Nobody waits any more: then nobody is told.
                    let _ = waiter.send(status);
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => {
                // No children at all: wait until one is started. An orphan can only come from one of those.
                let waiting = lock(&shared.0);
                let _unlocked = shared
                    .1
                    .wait_while(waiting, |waiting| waiting.is_empty())
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Children {
    pub(super) fn new() -> Self {
        let shared = Arc::new((Mutex::new(Waiting::new()), Condvar::new()));
        let theirs = shared.clone();
        std::thread::spawn(move || reap(&theirs));
        Self { shared }
    }

    /// Starts the second copy in a PID namespace of its own; a descriptor of it, and where its end will be told.
    fn start_init(
        &self,
        control: OwnedFd,
    ) -> Result<(OwnedFd, mpsc::Receiver<WaitStatus>), RemoteError> {
        let (tell, told) = mpsc::channel();
        // Held until the child is known: the reaper waits for it before it looks a child up.
        let mut waiting = lock(&self.shared.0);
        let child = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // Only this thread's future children are in the new namespace; the thread itself ends here.
                    // SAFETY: CLONE_NEWPID alone shares no descriptor table and changes nothing else of the thread.
                    #[allow(unsafe_code)]
                    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }.map_err(
                        |errno| RemoteError::system("new pid namespace", errno.raw_os_error()),
                    )?;
                    Command::new(SELF)
                        .arg0(container::ARGV0)
                        .env_clear()
                        .stdin(Stdio::from(control))
                        .stdout(Stdio::null())
                        .stderr(Stdio::null())
                        .spawn()
                        .map_err(failed_io("start", SELF))
                })
                .join()
                .unwrap_or_else(|_| Err(RemoteError::new(ErrorKind::Internal, "start process")))
        })?;
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| RemoteError::new(ErrorKind::Internal, "start process"))?;
        let init = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| RemoteError::system("open process", errno.raw_os_error()));
        waiting.insert(pid, tell);
        self.shared.1.notify_all();
        Ok((init?, told))
    }

    pub(super) fn spawn(
        &self,
        spec: &ExecSpec,
        root: Option<&Path>,
    ) -> Result<Spawned, RemoteError> {
        let pipe = || {
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                .map_err(|errno| RemoteError::system("make pipe", errno.raw_os_error()))
        };
        let (out_read, out_write) = pipe()?;
        let (err_read, err_write) = pipe()?;
        let (in_read, in_write) = if spec.stdin {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            let null =
                rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(failed("open", "/dev/null"))?;
            (null, None)
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed_io("make socket", "control"))?;
        let (init, ended) = self.start_init(theirs.into())?;
        let process = Arc::new(LinuxProcess {
            init,
            control: Mutex::new(ours),
            ended: Mutex::new(Some(ended)),
        });
        let started = {
            let mut control = process.control();
            send_descriptors(&control, [&in_read, &out_write, &err_write])
                .and_then(|()| {
                    let spec = ContainerSpec {
                        exec: spec.clone(),
                        root: root.map(Path::to_path_buf),
                    };
                    let frame = encode_frame(&spec).map_err(std::io::Error::other)?;
                    control.write_all(&frame)
                })
                .map_err(failed_io("talk to", container::ARGV0))
                .and_then(|()| match read_event(&mut *control) {
                    Some(FromContainer::Started) => Ok(()),
                    Some(FromContainer::Failed(error)) => Err(error),
                    _ => Err(RemoteError::new(ErrorKind::Internal, "start process")
                        .because("the process's init died before it could start it")),
                })
        };
        if let Err(error) = started {
            process.kill();
            process.wait();
            return Err(error);
        }
        Ok(Spawned {
            stdin: in_write,
            stdout: out_read,
            stderr: err_read,
            process,
        })
    }
}

fn send_descriptors(socket: &UnixStream, descriptors: [&OwnedFd; 3]) -> std::io::Result<()> {
    let descriptors = descriptors.map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(std::io::ErrorKind::OutOfMemory.into());
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn read_event(socket: &mut impl Read) -> Option<FromContainer> {
    let mut decoder = FrameDecoder::new();
    let mut byte = [0; 1];
    loop {
        // One at a time: the next frame is not this call's to read. They are few and short.
        match socket.read(&mut byte) {
            Ok(1) => decoder.push(&byte),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            _ => return None,
        }
        match decoder.next() {
            Ok(None) => {}
            Ok(event) => return event,
            Err(error) => {
                log::fault(format_args!("a process's init said nonsense: {error}"));
                return None;
            }
        }
    }
}

struct LinuxProcess {
    /// The init of its namespace; a descriptor, so that a PID used again is never hit.
    init: OwnedFd,
    control: Mutex<UnixStream>,
    ended: Mutex<Option<mpsc::Receiver<WaitStatus>>>,
}

impl LinuxProcess {
    fn control(&self) -> MutexGuard<'_, UnixStream> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuestProcess for LinuxProcess {
    fn signal(&self, signal: u8) -> Result<(), RemoteError> {
        if !(1..=64).contains(&signal) {
            return Err(
                RemoteError::system("signal", libc::EINVAL).because(format!("no signal {signal}"))
            );
        }
        let frame = encode_frame(&ToContainer::Signal(signal)).map_err(|error| {
            RemoteError::new(ErrorKind::Internal, "signal").because(error.to_string())
        })?;
        // A process that is gone can't be signalled, and that is no error.
        let _ = self.control().write_all(&frame);
        Ok(())
    }

    fn kill(&self) {
        // ESRCH: it is gone already.
        let _ = rustix::process::pidfd_send_signal(&self.init, Signal::KILL);
    }

    fn wait(&self) -> ExitStatus {
        // Its own handle, taken in a statement of its own: the lock's guard would otherwise live until the event has come, and
        // a signal sent meanwhile would wait for it, and with it the thread that serves the host.
        let control = self.control().try_clone();
        let reported = control
            .ok()
            .and_then(|mut control| read_event(&mut control));
        let ended = self
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let status = ended.and_then(|ended| ended.recv().ok());
        match (reported, status) {
            (Some(FromContainer::Exited(status)), _) => status,
            (_, Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Code(code),
                (None, signal) => ExitStatus::Signal(signal.unwrap_or(libc::SIGKILL)),
            },
            (_, None) => ExitStatus::Signal(libc::SIGKILL),
        }
    }
}
