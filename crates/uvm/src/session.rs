//! The host's end of the connection: a private asynchronous runtime inside, blocking calls with deadlines outside.

use crate::UvmError;
use crate::diagnostics::Ring;
use crate::vmm::VirtualMachine;
use futures::future::{Either, poll_fn, select};
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use lcow_protocol::{
    Call, HELLO_LEN, Hello, MAX_STREAMS, NONCE_LEN, Reply, Request, RequestId, Response, Role,
    chunk, decode_body, encode_frame, frame_len,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::compat::TokioAsyncReadCompatExt as _;

type Opened = oneshot::Sender<Result<yamux::Stream, yamux::ConnectionError>>;

/// Time between two questions whether the agent is still there.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A live connection to an agent.
pub(crate) struct Session {
    /// Only `None` while being dropped.
    runtime: Option<Runtime>,
    opener: mpsc::UnboundedSender<Opened>,
    next_id: Arc<AtomicU32>,
    /// Set once nothing can be asked any more.
    closed: watch::Receiver<bool>,
    agent_log: Arc<Ring>,
}

/// What happened to an exchange; the caller knows more about the machine and says it better.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection is gone.
    Closed,
    /// The deadline passed.
    TimedOut,
    /// Something else.
    Other(UvmError),
}

impl From<UvmError> for Failure {
    fn from(error: UvmError) -> Self {
        Self::Other(error)
    }
}

/// Runs a future on this thread, whatever else the thread is: an asynchronous runtime's worker too.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    futures::executor::block_on(future)
}

impl Session {
    /// Connects to the machine's agent and shakes hands.
    pub(crate) fn open(vm: &dyn VirtualMachine, timeout: Duration) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("lcow-session")
            .enable_all()
            .build()
            .map_err(UvmError::io("start", "asynchronous runtime"))?;
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce)
            .map_err(|error| UvmError::io("read", "random numbers")(io::Error::other(error)))?;
        let guard = runtime.enter();
        let socket = vm.connect()?;
        let greeted =
            block_on(async { tokio::time::timeout(timeout, greet(socket, &nonce)).await });
        drop(guard);
        let socket = match greeted {
            Ok(Ok(socket)) => socket,
            Ok(Err(failure)) => return Err(failure),
            Err(_) => return Err(Failure::TimedOut),
        };
        let (opener, requests) = mpsc::unbounded_channel();
        let (closing, closed) = watch::channel(false);
        let mut config = yamux::Config::default();
        config.set_max_num_streams(MAX_STREAMS);
        config.set_max_connection_receive_window(Some(MAX_STREAMS * 256 * 1024));
        config.set_split_send_size(chunk::MAX_CHUNK);
        let connection = yamux::Connection::new(socket.compat(), config, yamux::Mode::Client);
        runtime.spawn(drive(connection, requests, closing));
        let session = Self {
            runtime: Some(runtime),
            opener,
            next_id: Arc::new(AtomicU32::new(1)),
            closed,
            agent_log: Arc::default(),
        };
        session.follow_log();
        Ok(session)
    }

    /// What the agent has logged.
    pub(crate) fn agent_log(&self) -> Vec<u8> {
        self.agent_log.contents()
    }

    fn client(&self) -> Client {
        Client {
            opener: self.opener.clone(),
            next_id: self.next_id.clone(),
            closed: self.closed.clone(),
        }
    }

    fn follow_log(&self) {
        let (client, log) = (self.client(), self.agent_log.clone());
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                let Ok((_, mut stream)) = client.ask(Call::FollowLog, 0).await else {
                    return;
                };
                let mut buffer = Box::new([0; chunk::MAX_CHUNK]);
                while let Ok(n @ 1..) = read_chunk(&mut stream, &mut buffer).await {
                    log.append(&buffer[..n]);
                }
            });
        }
    }

    /// Asks every now and then whether the agent is there, and closes the connection if it is not: nobody who waits for a
    /// process without a deadline waits for a machine that has stopped.
    pub(crate) fn watch_heartbeat(&self, patience: Duration, lost: impl FnOnce() + Send + 'static) {
        let client = self.client();
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                loop {
                    tokio::time::sleep(HEARTBEAT).await;
                    match tokio::time::timeout(patience, client.ask(Call::Info, 0)).await {
                        Ok(Ok(_)) => {}
                        Ok(Err(_)) => return,
                        Err(_) => {
                            tracing::warn!("the utility VM's agent is silent: ending the machine");
                            // It may block, and this thread moves the bytes.
                            tokio::task::spawn_blocking(lost);
                            return;
                        }
                    }
                }
            });
        }
    }

    /// Makes one call; its answer, and the stream it came on.
    pub(crate) fn ask(
        &self,
        call: Call,
        timeout: Duration,
    ) -> Result<(Reply, yamux::Stream), Failure> {
        let Some(runtime) = &self.runtime else {
            return Err(Failure::Closed);
        };
        let _context = runtime.enter();
        // The agent gives up a little earlier, so that its own error arrives rather than ours.
        let ms = u32::try_from(timeout.as_millis() * 9 / 10)
            .unwrap_or(u32::MAX)
            .max(1);
        let client = self.client();
        block_on(async {
            match tokio::time::timeout(timeout, client.ask(call, ms)).await {
                Ok(result) => result,
                Err(_) => Err(Failure::TimedOut),
            }
        })
    }

    /// Makes one call that is answered once.
    pub(crate) fn call(&self, call: Call, timeout: Duration) -> Result<Reply, Failure> {
        self.ask(call, timeout).map(|(reply, _)| reply)
    }

    /// Waits until the connection has ended, as it does after the machine's end.
    pub(crate) fn wait_closed(&self, timeout: Duration) -> bool {
        let began = Instant::now();
        while !*self.closed.borrow() {
            if began.elapsed() > timeout {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not the waiting kind, which is not allowed on an asynchronous runtime's own threads.
            runtime.shutdown_background();
        }
    }
}

/// What opens streams.
struct Client {
    opener: mpsc::UnboundedSender<Opened>,
    next_id: Arc<AtomicU32>,
    closed: watch::Receiver<bool>,
}

impl Client {
    async fn ask(&self, call: Call, deadline_ms: u32) -> Result<(Reply, yamux::Stream), Failure> {
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (tell, told) = oneshot::channel();
        self.opener.send(tell).map_err(|_| Failure::Closed)?;
        let mut stream = match told.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if !*self.closed.borrow() => {
                return Err(UvmError::protocol(format!("open a stream: {error}")).into());
            }
            _ => return Err(Failure::Closed),
        };
        let request = Request {
            id,
            deadline_ms,
            call,
        };
        write_frame(&mut stream, &request)
            .await
            .map_err(|error| self.failure(error))?;
        let response: Option<Response> = read_frame(&mut stream)
            .await
            .map_err(|error| self.failure(error))?;
        match response {
            Some(Response { id: answered, .. }) if answered != id => {
                Err(UvmError::protocol(format!("request {id} was answered as {answered}")).into())
            }
            Some(Response {
                result: Ok(reply), ..
            }) => Ok((reply, stream)),
            Some(Response {
                result: Err(error), ..
            }) => Err(UvmError::Guest(error).into()),
            None if stream.is_closed() => Err(Failure::Closed),
            None => Err(UvmError::protocol("a request was not answered").into()),
        }
    }

    fn failure(&self, error: FrameFailure) -> Failure {
        match error {
            FrameFailure::Io(_) => Failure::Closed,
            FrameFailure::Frame(source) => Failure::Other(UvmError::Protocol {
                detail: source.to_string(),
                source: Some(source),
            }),
        }
    }
}

/// Says hello and waits for the answer to it.
async fn greet<S>(mut socket: S, nonce: &[u8; NONCE_LEN]) -> Result<S, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let hello = Hello {
        role: Role::Host,
        nonce: *nonce,
    };
    let mut answer = [0; HELLO_LEN];
    let exchange = async {
        tokio::io::AsyncWriteExt::write_all(&mut socket, &hello.encode()).await?;
        tokio::io::AsyncReadExt::read_exact(&mut socket, &mut answer).await
    };
    exchange.await.map_err(|_| Failure::Closed)?;
    Hello::accept(&answer, nonce).map_err(|error| Failure::Other(error.into()))?;
    Ok(socket)
}

/// Moves the connection's bytes and opens streams for whoever asks, until either end closes.
async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    mut connection: yamux::Connection<S>,
    mut requests: mpsc::UnboundedReceiver<Opened>,
    closing: watch::Sender<bool>,
) {
    let mut waiting: Option<Opened> = None;
    let ended = poll_fn(|cx| {
        loop {
            if waiting.is_none() {
                match requests.poll_recv(cx) {
                    Poll::Ready(Some(request)) => waiting = Some(request),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => {}
                }
            }
            if let Some(request) = waiting.take() {
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(result) => {
                        // Whoever asked may have given up: the stream is then closed again.
                        let _ = request.send(result);
                        continue;
                    }
                    Poll::Pending => waiting = Some(request),
                }
            }
            return match connection.poll_next_inbound(cx) {
                // The agent opens none: what it opens is refused by being dropped.
                Poll::Ready(Some(Ok(_))) => continue,
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(error)),
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            };
        }
    })
    .await;
    if let Some(error) = ended {
        tracing::debug!("connection to the utility VM: {error}");
    }
    closing.send_replace(true);
}

/// Why a frame did not come or go.
pub(crate) enum FrameFailure {
    Io(
        #[expect(
            dead_code,
            reason = "every failure of the stream means that it is gone"
        )]
        io::Error,
    ),
    Frame(lcow_protocol::FrameError),
}

impl From<io::Error> for FrameFailure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

async fn read_header<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<[u8; 4]>> {
    let mut header = [0; 4];
    let mut have = 0;
    while have < header.len() {
        match stream.read(&mut header[have..]).await? {
            0 if have == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => have += n,
        }
    }
    Ok(Some(header))
}

pub(crate) async fn read_frame<T: DeserializeOwned, S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<Option<T>, FrameFailure> {
    let Some(header) = read_header(stream).await? else {
        return Ok(None);
    };
    let mut body = vec![0; frame_len(header).map_err(FrameFailure::Frame)?];
    stream.read_exact(&mut body).await?;
    decode_body(&body).map(Some).map_err(FrameFailure::Frame)
}

pub(crate) async fn write_frame<T: Serialize, S: AsyncWrite + Unpin>(
    stream: &mut S,
    message: &T,
) -> Result<(), FrameFailure> {
    let bytes = encode_frame(message).map_err(FrameFailure::Frame)?;
    stream.write_all(&bytes).await?;
    Ok(stream.flush().await?)
}

/// Reads a chunk; 0 at the marked end, an error at any other.
pub(crate) async fn read_chunk<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut [u8; chunk::MAX_CHUNK],
) -> io::Result<usize> {
    let cut = || {
        io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the utility VM ended in the middle of a stream",
        )
    };
    let header = read_header(stream).await?.ok_or_else(cut)?;
    let len =
        chunk::len(header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    stream
        .read_exact(&mut buffer[..len])
        .await
        .map_err(|_| cut())?;
    Ok(len)
}

/// Waits for `future`, at most so long.
pub(crate) fn within<F: Future>(
    session: &Session,
    timeout: Duration,
    future: F,
) -> Option<F::Output> {
    let runtime = session.runtime.as_ref()?;
    let _context = runtime.enter();
    block_on(async {
        let sleep = pin!(tokio::time::sleep(timeout));
        match select(pin!(future), sleep).await {
            Either::Left((output, _)) => Some(output),
            Either::Right(_) => None,
        }
    })
}
