//! What the host and the guest agent say to each other: messages, framing, version. No I/O.
//!
//! The two ends share one byte stream (a virtio-serial port). Its life, normative in `docs/format/uvm-protocol.md`:
//!
//! ```text
//!  host                                         guest agent
//!   │── Hello: magic, version, nonce ───────────────►│   32 bytes, fixed        [handshake]
//!   │◄─────────────── Welcome: magic, version, nonce ─│   32 bytes, same nonce
//!   │══ yamux: the host opens every stream ══════════│
//!   │── frame(Request{id, deadline, call}) ─────────►│   one request a stream   [message]
//!   │◄───────────────── frame(Response{id, result}) ─│
//!   │── frames of ProcessControl ───────────────────►│   if the call was Exec
//!   │◄──────────────────────── frames of ProcessEvent │
//!   │◄─ chunks of bytes, an empty one ends them ────►│   if it was AttachStdio  [chunk]
//! ```
//!
//! Control messages are [`postcard`] in frames of at most [`MAX_FRAME`] bytes; bulk bytes go as [`chunk`]s, whose explicit
//! end tells a finished transfer from one whose peer died. Errors cross the boundary as [`RemoteError`] with errno,
//! operation and path. Both ends treat the other as hostile: every length is checked before it is believed.
//!
//! ```
//! use lcow_protocol::{Call, FrameDecoder, Request, RequestId, encode_frame};
//! let request = Request { id: RequestId(7), deadline_ms: 1_000, call: Call::Sync };
//! let bytes = encode_frame(&request)?;
//! let mut decoder = FrameDecoder::new();
//! decoder.push(&bytes);
//! assert_eq!(decoder.next::<Request>()?, Some(request));
//! # Ok::<(), lcow_protocol::FrameError>(())
//! ```
#![forbid(unsafe_code)]
#![warn(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

pub mod chunk;
mod error;
mod frame;
mod handshake;
mod message;

pub use error::{ErrorKind, RemoteError};
pub use frame::{
    FrameDecoder, FrameError, HEADER_LEN, MAX_FRAME, decode_body, encode_frame, frame_len,
};
pub use handshake::{HELLO_LEN, HandshakeError, Hello, NONCE_LEN, Role, VERSION};
pub use message::{
    AgentInfo, Call, DiskId, DiskMount, ExecSpec, ExitStatus, Identity, Lower, MAX_FREEZE_MS,
    ProcessControl, ProcessEvent, ProcessId, Reply, Request, RequestId, Response, ScsiAddress,
    Statistics, Stdio, UnionId, UnionSpec,
};

/// Name of the virtio-serial port the agent opens: `/dev/virtio-ports/<name>`, or found through
/// `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "org.lcow.agent.0";

/// Most streams open at a time on one connection, both directions. Each may have 256 KiB in flight.
pub const MAX_STREAMS: usize = 512;
