//! Length-prefixed postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest body of a frame, in bytes. A peer that announces more is cut off before anything is allocated.
pub const MAX_FRAME: usize = 1024 * 1024;
/// Bytes of a frame's header: the body's length as a little-endian `u32`.
pub const HEADER_LEN: usize = 4;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The announced, or the produced, body is over [`MAX_FRAME`].
    #[error("a control frame of {len} bytes is over the limit of {MAX_FRAME}")]
    TooLong {
        /// Length of the body in bytes.
        len: u64,
    },
    /// The body is not the message that was expected here.
    #[error("a control frame of {len} bytes is not a valid message")]
    Malformed {
        /// Length of the body in bytes.
        len: usize,
        /// What the decoder said.
        #[source]
        source: postcard::Error,
    },
    /// A message is followed by bytes that belong to nothing.
    #[error("a control frame has {extra} bytes after its message")]
    Trailing {
        /// Bytes left over.
        extra: usize,
    },
}

/// Encodes `message` with its header.
///
/// # Errors
/// [`FrameError::TooLong`] if the message does not fit a frame.
pub fn encode_frame<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let body =
        postcard::to_stdvec(message).map_err(|source| FrameError::Malformed { len: 0, source })?;
    let too_long = || FrameError::TooLong {
        len: u64::try_from(body.len()).unwrap_or(u64::MAX),
    };
    if body.len() > MAX_FRAME {
        return Err(too_long());
    }
    let len = u32::try_from(body.len()).map_err(|_| too_long())?;
    let mut out = Vec::with_capacity(HEADER_LEN.saturating_add(body.len()));
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&body);
    Ok(out)
}

/// The length of the body that `header` announces, in bytes.
///
/// # Errors
/// [`FrameError::TooLong`] for more than [`MAX_FRAME`].
pub fn frame_len(header: [u8; HEADER_LEN]) -> Result<usize, FrameError> {
    let len = u32::from_le_bytes(header);
    match usize::try_from(len) {
        Ok(len) if len <= MAX_FRAME => Ok(len),
        _ => Err(FrameError::TooLong {
            len: u64::from(len),
        }),
    }
}

/// Decodes one message that must fill `body` exactly.
///
/// # Errors
/// [`FrameError::Malformed`] or [`FrameError::Trailing`].
pub fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let (message, rest) =
        postcard::take_from_bytes(body).map_err(|source| FrameError::Malformed {
            len: body.len(),
            source,
        })?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(FrameError::Trailing { extra: rest.len() })
    }
}

/// Finds frames in bytes that arrive in pieces.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
}

impl FrameDecoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes. The caller calls [`next`](Self::next) until it gives `None` before adding more, which bounds the buffer to
    /// one frame and one read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// [`FrameError`]; the stream can't be used after it.
    #[expect(
        clippy::should_implement_trait,
        reason = "each message may have its own type"
    )]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let end = frame_len(*header)?.saturating_add(HEADER_LEN);
        let Some(body) = self.buffer.get(HEADER_LEN..end) else {
            return Ok(None);
        };
        let message = decode_body(body)?;
        self.buffer.drain(..end);
        Ok(Some(message))
    }

    /// Bytes that are not yet a whole frame: non-zero at the end of a stream means it was cut.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }
}
