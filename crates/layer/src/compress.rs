//! Compression of inputs, recognised by content and never by name: gzip (any number of members), zstd (any number of frames), xz
//! and bzip2 (any number of streams), and the `.Z` of Unix `compress`.

mod lzw;

use std::fmt;
use std::io::{self, BufRead, Read};

use crate::tar::{BLOCK, field};

/// How an input is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
    Compress,
}

impl Compression {
    /// How many bytes of an input [`detect`](Self::detect) looks at.
    pub const DETECT_LEN: usize = BLOCK;

    /// Recognises the compression from an input's first [`DETECT_LEN`](Self::DETECT_LEN) bytes (or all of a shorter one). What starts like a compressed
    /// stream by chance but has a tar header's checksum is plain.
    #[must_use]
    pub fn detect(start: &[u8]) -> Self {
        if let Some(block) = start.first_chunk::<BLOCK>()
            && field::checksum_matches(block)
        {
            return Self::None;
        }
        match start {
            // RFC 1952, section 2.3.1; method 8 is deflate.
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            // RFC 8878, section 3.1.1.
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // The .xz file format, section 2.1.1.1.
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            // gzip's `unlzw.c`.
            [0x1f, 0x9d, ..] => Self::Compress,
            _ => Self::None,
        }
    }

    /// A reader of what `input` holds when decompressed. It reads `input` to its end, and is an error where anything
    /// but a further member (or zero padding behind gzip, or anything that is no further stream behind bzip2, which its own tool
    /// ignores too) follows.
    ///
    /// # Errors
    /// If the decoder can't be set up.
    pub fn decoder<'a, R: BufRead + 'a>(self, input: R) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(Gzip(Some(Member::new(input)))),
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
            Self::Xz => {
                // `xz -9` needs 65 MiB to decompress.
                let stream = liblzma::stream::Stream::new_stream_decoder(
                    256 << 20,
                    liblzma::stream::CONCATENATED,
                )?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
            }
            Self::Bzip2 => Box::new(Bzip2(Some(bzip2::bufread::BzDecoder::new(input)))),
            Self::Compress => Box::new(lzw::Lzw::new(input)),
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Compress => "compress",
        })
    }
}

/// What reads one member of a gzip file.
enum Member<R> {
    Zlib(Box<flate2::bufread::GzDecoder<R>>),
    #[cfg(feature = "isal")]
    Isal(lcow_isal::GzDecoder<R>),
}

impl<R: BufRead> Member<R> {
    fn new(input: R) -> Self {
        #[cfg(feature = "isal")]
        if let Some(library) = lcow_isal::Library::find() {
            return Self::Isal(lcow_isal::GzDecoder::new(library, input));
        }
        Self::Zlib(Box::new(flate2::bufread::GzDecoder::new(input)))
    }

    fn into_inner(self) -> R {
        match self {
            Self::Zlib(decoder) => decoder.into_inner(),
            #[cfg(feature = "isal")]
            Self::Isal(decoder) => decoder.into_inner(),
        }
    }
}

impl<R: BufRead> Read for Member<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Zlib(decoder) => decoder.read(out),
            #[cfg(feature = "isal")]
            Self::Isal(decoder) => decoder.read(out),
        }
    }
}

/// Members one after another, and zeros after the last one: tapes and some tools pad so.
struct Gzip<R>(Option<Member<R>>);

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        while let Some(decoder) = &mut self.0 {
            let n = decoder.read(out)?;
            if n > 0 {
                return Ok(n);
            }
            let Some(mut input) = self.0.take().map(Member::into_inner) else {
                break;
            };
            let buffer = input.fill_buf()?;
            match buffer.first() {
                None => {}
                Some(0) => rest_is_zero(&mut input)?,
                Some(_) => self.0 = Some(Member::new(input)),
            }
        }
        Ok(0)
    }
}

/// Streams one after another.
struct Bzip2<R>(Option<bzip2::bufread::BzDecoder<R>>);

impl<R: BufRead> Read for Bzip2<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        while let Some(decoder) = &mut self.0 {
            let n = decoder.read(out)?;
            if n > 0 {
                return Ok(n);
            }
            let Some(mut input) = self.0.take().map(bzip2::bufread::BzDecoder::into_inner) else {
                break;
            };
            match input.fill_buf()? {
                [b'B', ..] => self.0 = Some(bzip2::bufread::BzDecoder::new(input)),
                // Read to the end all the same: the digest is over all of it.
                _ => {
                    io::copy(&mut input, &mut io::sink())?;
                }
            }
        }
        Ok(0)
    }
}

fn rest_is_zero(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let len = buffer.len();
        if len == 0 {
            return Ok(());
        }
        if buffer.iter().any(|&b| b != 0) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "something other than padding follows the compressed stream",
            ));
        }
        input.consume(len);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(bytes: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let format = Compression::detect(bytes);
        let mut out = Vec::new();
        format.decoder(bytes)?.read_to_end(&mut out)?;
        Ok((format, out))
    }

    #[test]
    fn members_follow_one_another() {
        type Encode = fn(&[u8]) -> Vec<u8>;
        for (format, encode) in [
            (Compression::Gzip, gzip as Encode),
            (Compression::Zstd, |b| zstd::encode_all(b, 1).unwrap()),
            (Compression::Xz, xz),
            (Compression::Bzip2, bzip2),
        ] {
            let two = [encode(b"hello, "), encode(b"world")].concat();
            let (found, bytes) = decode(&two).unwrap();
            assert_eq!((found, &bytes[..]), (format, &b"hello, world"[..]));
            assert!(decode(&two[..two.len() - 3]).is_err(), "{format}: cut");
            let garbage = [&two[..], b"garbage"].concat();
            let is_error = decode(&garbage).is_err();
            assert_eq!(
                is_error,
                format != Compression::Bzip2,
                "{format}: garbage behind"
            );
        }
        let padded = [gzip(b"a"), vec![0; 5000]].concat();
        assert_eq!(decode(&padded).unwrap().1, b"a");
    }

    #[test]
    fn a_tar_that_starts_like_something_else_is_plain() {
        let mut block = [0; BLOCK];
        block[..6].copy_from_slice(b"BZh91A");
        assert_eq!(Compression::detect(&block), Compression::Bzip2);
        let (sum, _) = field::sums(&block);
        block[field::CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(Compression::detect(&block), Compression::None);
    }
}
