//! Constants of the sidecar's format. All of it lies in zstd frames (RFC 8878), one after another, that are read as one stream.
//!
//! Integers in the preamble are little-endian; everywhere else they are unsigned LEB128 (`varint`), signed ones mapped to unsigned
//! with the sign in the lowest bit (`zigzag`).

/// The stream's first eight bytes.
pub const MAGIC: [u8; 8] = *b"lcowsplt";
/// The version after the magic, 32 bits. Readers refuse any other.
pub const VERSION: u32 = 1;
/// Preamble: magic (8), version (4), size of the tar (8), digest of the tar (32), number of saved pieces (8), in bytes.
pub const PREAMBLE: usize = 60;
/// At most this many saved pieces.
pub const MAX_SAVED: u64 = 1 << 20;

/// Keys of saved pieces from here on name data of entries that got no inode; smaller ones are inode numbers.
pub const NO_INODE: u64 = 1 << 32;

/// Nothing follows; the tar is complete.
pub const OP_END: u8 = 0;
/// Length (varint) and as many bytes of the tar.
pub const OP_LITERAL: u8 = 1;
/// Length (varint): zero bytes.
pub const OP_ZEROS: u8 = 2;
/// Zero bytes up to the next multiple of 512 in the tar.
pub const OP_PAD: u8 = 3;
/// A header block; see the format's page.
pub const OP_HEADER: u8 = 4;
/// Key (zigzag, from the key before), offset in the file (varint), length (varint): data of a file.
pub const OP_DATA: u8 = 5;
/// Key (zigzag, from the key before): a file's data from offset 0, as long as the last header's size field says.
pub const OP_FILE: u8 = 6;
