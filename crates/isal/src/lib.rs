//! gzip, decompressed by Intel's ISA-L where that is installed: in about half of zlib-rs's time.
//!
//! Nothing is needed to build this crate. The library (Debian: `libisal2`) is loaded when the first decompressor is
//! [asked for](Library::find), which is the caller's moment to take another if there is none:
//!
//! ```
//! use std::io::{self, BufRead, Read};
//!
//! fn member<'a>(input: impl BufRead + 'a) -> Box<dyn Read + 'a> {
//!     match lcow_isal::Library::find() {
//!         Some(library) => Box::new(lcow_isal::GzDecoder::new(library, input)),
//!         None => Box::new(flate2::bufread::GzDecoder::new(input)),
//!     }
//! }
//! # let mut out = Vec::new();
//! # let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0";
//! # assert_eq!(member(&gzip[..]).read_to_end(&mut out)?, 0);
//! # Ok::<(), io::Error>(())
//! ```
//!
//! [`GzDecoder`] reads one member (RFC 1952) as `flate2::bufread::GzDecoder` does: the header is checked, the content's checksum
//! and length are verified, and what lies behind the member is left unread. What is cut off or damaged is an error, a [`Fault`]
//! inside an [`std::io::Error`].
//!
//! All `unsafe` is in `library.rs`.

mod gzip;
mod library;

pub use gzip::GzDecoder;
pub use library::Library;

/// What is wrong with a gzip member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It does not start as RFC 1952, section 2.3.1 says, or uses what is reserved there.
    #[error("the gzip header is invalid")]
    Header,
    /// The header's own checksum is wrong.
    #[error("the gzip header's checksum is wrong")]
    HeaderChecksum,
    /// The deflate stream is invalid (RFC 1951).
    #[error("the deflate stream is invalid")]
    Deflate,
    /// The content is not what the trailer's checksum or length say.
    #[error("the content's checksum or length is wrong")]
    Checksum,
    /// The input ends in the middle of the member.
    #[error("the gzip stream is cut off")]
    Truncated,
}

impl From<Fault> for std::io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault {
            Fault::Truncated => std::io::ErrorKind::UnexpectedEof,
            _ => std::io::ErrorKind::InvalidData,
        };
        Self::new(kind, fault)
    }
}
