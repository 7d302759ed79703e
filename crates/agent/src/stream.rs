//! Frames and chunks over an asynchronous stream.

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use lcow_protocol::{HEADER_LEN, chunk, decode_body, encode_frame, frame_len};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Reads exactly one header, or nothing at the end of the stream.
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

/// The next message, or nothing at a clean end.
pub(crate) async fn read_frame<T: DeserializeOwned, S: AsyncRead + Unpin>(
    stream: &mut S,
) -> io::Result<Option<T>> {
    const { assert!(HEADER_LEN == chunk::CHUNK_HEADER) };
    let Some(header) = read_header(stream).await? else {
        return Ok(None);
    };
    let mut body = vec![0; frame_len(header).map_err(invalid)?];
    stream.read_exact(&mut body).await?;
    decode_body(&body).map(Some).map_err(invalid)
}

/// Sends one message.
pub(crate) async fn write_frame<T: Serialize, S: AsyncWrite + Unpin>(
    stream: &mut S,
    message: &T,
) -> io::Result<()> {
    let bytes = encode_frame(message).map_err(invalid)?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads a chunk into `buffer`; its length, 0 at the marked end.
///
/// # Errors
/// `UnexpectedEof` if the stream ends without the mark.
pub(crate) async fn read_chunk<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut [u8; chunk::MAX_CHUNK],
) -> io::Result<usize> {
    let header = read_header(stream)
        .await?
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let len = chunk::len(header).map_err(invalid)?;
    stream.read_exact(&mut buffer[..len]).await?;
    Ok(len)
}

/// Sends the chunk whose bytes are `framed[CHUNK_HEADER..]`; its first bytes are overwritten with the header.
pub(crate) async fn write_chunk<S: AsyncWrite + Unpin>(
    stream: &mut S,
    framed: &mut [u8],
) -> io::Result<()> {
    let len = framed.len().saturating_sub(chunk::CHUNK_HEADER);
    framed[..chunk::CHUNK_HEADER].copy_from_slice(&chunk::header(len).map_err(invalid)?);
    stream.write_all(framed).await
}

/// Sends the end mark and closes the sending side.
pub(crate) async fn end_chunks<S: AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    stream.write_all(&chunk::END).await?;
    stream.close().await
}
