//! What an archive as a whole is compressed with, told by its first bytes.

use std::io::{self, BufRead};

/// The longest zstd window that is accepted, as a power of two: 128 MiB, what `zstd` itself takes without being asked.
const ZSTD_WINDOW_LOG: u32 = 27;

/// A compression, by its magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Compression {
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame may come first (RFC 8878 §3.1.2); pzstd writes one.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }

    /// The uncompressed bytes. Streams put one after the other count as one.
    pub(crate) fn reader<'a, R: BufRead + Send + 'a>(
        self,
        input: R,
    ) -> io::Result<Box<dyn io::Read + Send + 'a>> {
        Ok(match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
            Self::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(input)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        })
    }
}

/// What people may have given instead of an image, by its first bytes.
pub(crate) fn describe(start: &[u8]) -> &'static str {
    let at =
        |offset: usize, magic: &[u8]| start.get(offset..).is_some_and(|s| s.starts_with(magic));
    if start.is_empty() {
        "it is empty"
    } else if start.iter().all(|&b| b == 0) {
        "it holds nothing but zeros"
    } else if at(0, b"PK\x03\x04") {
        "it is a zip archive"
    } else if at(0, b"\x7fELF") {
        "it is an ELF program"
    } else if at(0, b"#!") {
        "it is a script"
    } else if at(0, b"QFI\xfb") {
        "it is a qcow2 disk"
    } else if at(0, b"vhdxfile") {
        "it is a VHDX disk"
    } else if at(0, b"conectix") || at(0, b"cxsparse") {
        "it is a VHD disk"
    } else if at(1080, &[0x53, 0xef]) {
        "it is an ext2/3/4 file system"
    } else if at(0, b"hsqs") {
        "it is a squashfs file system"
    } else if at(0, b"!<arch>\n") {
        "it is an ar archive (a .deb?)"
    } else if at(0, b"\xed\xab\xee\xdb") {
        "it is an RPM package"
    } else if at(0, b"070701") || at(0, b"070702") {
        "it is a cpio archive"
    } else if at(0, b"7z\xbc\xaf\x27\x1c") {
        "it is a 7-Zip archive"
    } else if at(0, b"{") || at(0, b"[") {
        "it is a JSON document"
    } else if at(0, b"<") {
        "it is an HTML or XML page"
    } else {
        "it is not a tar archive"
    }
}
