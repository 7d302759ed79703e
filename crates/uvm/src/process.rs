//! A process in the guest, with its streams.

use crate::UvmError;
use crate::machine::Inner;
use crate::session::{
    Failure, FrameFailure, block_on, read_chunk, read_frame, within, write_frame,
};
use futures::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use lcow_protocol::{
    Call, ExecSpec, ExitStatus, Identity, ProcessControl, ProcessEvent, ProcessId, Reply, Stdio,
    UnionId, chunk,
};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A process to start. Begin with [`ProcessSpec::new`] and change what differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Its root directory; none: the agent's own, which holds nothing.
    pub root: Option<UnionId>,
    /// Command and arguments; the command is looked up in the environment's `PATH` if it has no slash.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value`; `PATH` and `HOME` are added if absent.
    pub env: Vec<Vec<u8>>,
    /// Working directory, absolute, made if absent; empty: `/`.
    pub cwd: Vec<u8>,
    /// `user[:group]`, names or numbers, as an image's configuration has it; empty: root.
    pub user: String,
    /// Host name; empty: the machine's.
    pub hostname: String,
    /// Contents of `/etc/resolv.conf`.
    pub resolv_conf: Vec<u8>,
    /// Whether standard input is a stream; else it is empty.
    pub stdin: bool,
}

impl ProcessSpec {
    /// `argv` in `root` as root, without input.
    pub fn new<T: Into<Vec<u8>>>(root: Option<UnionId>, argv: impl IntoIterator<Item = T>) -> Self {
        Self {
            root,
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: Vec::new(),
            user: String::new(),
            hostname: String::new(),
            resolv_conf: Vec::new(),
            stdin: false,
        }
    }
}

struct Control {
    reader: Mutex<(ReadHalf<yamux::Stream>, Option<ExitStatus>)>,
    writer: Mutex<WriteHalf<yamux::Stream>>,
}

/// A running process. Dropping it kills the process and all it started.
pub struct Process {
    id: ProcessId,
    control: Control,
    machine: Arc<Inner>,
    stdin: Option<ProcessStdin>,
    stdout: Option<ProcessOutput>,
    stderr: Option<ProcessOutput>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Process {
    pub(crate) fn start(machine: &Arc<Inner>, spec: &ProcessSpec) -> Result<Self, UvmError> {
        let exec = ExecSpec {
            root: spec.root,
            argv: spec.argv.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            identity: Identity::Named(spec.user.clone()),
            hostname: spec.hostname.clone(),
            resolv_conf: spec.resolv_conf.clone(),
            stdin: spec.stdin,
        };
        let (reply, control) = machine.ask("start a process", Call::Exec(exec))?;
        let Reply::Started(id) = reply else {
            return Err(
                machine.diagnose(UvmError::protocol("exec was not answered with a process"))
            );
        };
        let attach = |stdio| {
            machine
                .ask(
                    "attach to a process",
                    Call::AttachStdio { process: id, stdio },
                )
                .map(|(_, stream)| stream)
        };
        let stdin = if spec.stdin {
            Some(attach(Stdio::In)?)
        } else {
            None
        };
        let stdout = attach(Stdio::Out)?;
        let stderr = attach(Stdio::Err)?;
        let (reader, writer) = control.split();
        let output = |stream| {
            Some(ProcessOutput {
                stream,
                buffer: Box::new([0; chunk::MAX_CHUNK]),
                start: 0,
                end: 0,
                done: false,
                machine: machine.clone(),
            })
        };
        Ok(Self {
            id,
            control: Control {
                reader: Mutex::new((reader, None)),
                writer: Mutex::new(writer),
            },
            machine: machine.clone(),
            stdin: stdin.map(|stream| ProcessStdin {
                stream,
                framed: Vec::with_capacity(chunk::CHUNK_HEADER + chunk::MAX_CHUNK),
                closed: false,
            }),
            stdout: output(stdout),
            stderr: output(stderr),
        })
    }

    /// The agent's number for it.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// The writing end of its standard input, once, if it was asked for. Dropping it ends the input.
    pub fn take_stdin(&mut self) -> Option<ProcessStdin> {
        self.stdin.take()
    }

    /// The reading end of its standard output, once. Dropping it makes the process's next write fail.
    pub fn take_stdout(&mut self) -> Option<ProcessOutput> {
        self.stdout.take()
    }

    /// The reading end of its standard error, once.
    pub fn take_stderr(&mut self) -> Option<ProcessOutput> {
        self.stderr.take()
    }

    fn send(&self, control: ProcessControl) -> Result<(), UvmError> {
        let mut writer = self
            .control
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match block_on(write_frame(&mut *writer, &control)) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.machine.failed("signal a process", Failure::Closed)),
        }
    }

    /// Sends a signal (1–64) to the process's group. One that has ended takes it silently.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn signal(&self, signal: u8) -> Result<(), UvmError> {
        self.send(ProcessControl::Signal(signal))
    }

    /// Kills it and all it started.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn kill(&self) -> Result<(), UvmError> {
        self.send(ProcessControl::Kill)
    }

    /// Waits for its end, however long that takes; the machine's end ends the wait with an error. What it wrote can be read
    /// before, at the same time, or after.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn wait(&self) -> Result<ExitStatus, UvmError> {
        let mut reader = self
            .control
            .reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(status) = reader.1 {
            return Ok(status);
        }
        let event = block_on(read_frame(&mut reader.0));
        self.ended(&mut reader.1, event)
    }

    /// As [`wait`](Self::wait), for at most so long; none if it still runs then.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>, UvmError> {
        let mut reader = self
            .control
            .reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if reader.1.is_some() {
            return Ok(reader.1);
        }
        let (stream, status) = &mut *reader;
        // An event is a handful of bytes and comes in one piece, so that giving up in between loses none.
        match self
            .machine
            .with_session(|session| within(session, timeout, read_frame(stream)))
        {
            Some(Some(event)) => self.ended(status, event).map(Some),
            Some(None) => Ok(None),
            None => Err(self.machine.failed("wait for a process", Failure::Closed)),
        }
    }

    fn ended(
        &self,
        status: &mut Option<ExitStatus>,
        event: Result<Option<ProcessEvent>, FrameFailure>,
    ) -> Result<ExitStatus, UvmError> {
        match event {
            Ok(Some(ProcessEvent::Exited(exit))) => {
                *status = Some(exit);
                Ok(exit)
            }
            Err(FrameFailure::Frame(source)) => Err(self.machine.diagnose(UvmError::Protocol {
                detail: source.to_string(),
                source: Some(source),
            })),
            _ => Err(self.machine.failed("wait for a process", Failure::Closed)),
        }
    }
}

/// A process's standard input. What is written waits until the process reads.
pub struct ProcessStdin {
    stream: yamux::Stream,
    framed: Vec<u8>,
    closed: bool,
}

impl ProcessStdin {
    /// Ends the input, telling whether all of it was taken in by the machine. Dropping does the same without a word.
    ///
    /// # Errors
    /// The process closed its input, or the machine is gone.
    pub fn finish(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        self.closed = true;
        block_on(async {
            self.stream.write_all(&chunk::END).await?;
            self.stream.close().await
        })
    }
}

impl Write for ProcessStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(chunk::MAX_CHUNK)];
        if piece.is_empty() {
            return Ok(0);
        }
        let header = chunk::header(piece.len())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.framed.clear();
        self.framed.extend_from_slice(&header);
        self.framed.extend_from_slice(piece);
        // yamux calls a stream that the other end has dropped "write closed".
        block_on(self.stream.write_all(&self.framed))
            .map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        block_on(self.stream.flush())
    }
}

impl Drop for ProcessStdin {
    fn drop(&mut self) {
        // The end itself is what matters; that the process no longer listens is no news.
        let _ = self.end();
    }
}

/// A process's standard output or error. The end is the process's own: a machine that dies gives an error instead.
pub struct ProcessOutput {
    stream: yamux::Stream,
    buffer: Box<[u8; chunk::MAX_CHUNK]>,
    start: usize,
    end: usize,
    done: bool,
    /// Keeps the connection alive for as long as something may be read.
    machine: Arc<Inner>,
}

impl Read for ProcessOutput {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && !self.done && !out.is_empty() {
            self.start = 0;
            self.end = 0;
            self.end = block_on(read_chunk(&mut self.stream, &mut self.buffer)).map_err(
                |error| match self.machine.ended() {
                    Some(status) => io::Error::new(error.kind(), UvmError::Gone { status }),
                    None => error,
                },
            )?;
            self.done = self.end == 0;
        }
        let n = out.len().min(self.end - self.start);
        out[..n].copy_from_slice(&self.buffer[self.start..self.start + n]);
        self.start += n;
        Ok(n)
    }
}
