//! Extended attributes (kernel: `fs/ext4/xattr.h`, `xattr.c`).
//!
//! Behind an inode's fields or in a block of their own: a header, then entries one after another up to four zero bytes,
//! and the values from the end backwards. Offsets of values count from the first entry in an inode, and from the start of a
//! block. Entries of a block are sorted by (name index, name length, name): the kernel stops looking where an entry is past.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `h_magic` of both headers.
pub const MAGIC: u32 = 0xea02_0000;
/// Most inodes that may share a block.
pub const REFCOUNT_MAX: u32 = 1024;
/// The longest value Linux has, in bytes (`XATTR_SIZE_MAX`).
pub const VALUE_MAX: usize = 65_536;
/// Bytes of the header in an inode: only its magic.
pub const INODE_HEADER_SIZE: usize = 4;
/// Bytes of the header of a block.
pub const BLOCK_HEADER_SIZE: usize = 32;
/// Bytes of an entry before its name.
pub const ENTRY_SIZE: usize = 16;

/// The start of an attribute block, 32 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct XattrBlockHeader {
    /// [`MAGIC`].
    pub h_magic: U32,
    /// Inodes that use the block.
    pub h_refcount: U32,
    /// 1: blocks in use.
    pub h_blocks: U32,
    /// Hash of all attributes, by which the kernel finds blocks to share.
    pub h_hash: U32,
    /// crc32c of the filesystem's seed, the block's number (64 bits) and the block with this field 0.
    pub h_checksum: U32,
    /// 0.
    pub h_reserved: [U32; 3],
}

/// The start of an entry, 16 bytes; the name without its namespace follows, then padding to a multiple of 4.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct XattrEntry {
    /// Length of the name behind this, in bytes.
    pub e_name_len: u8,
    /// The namespace, see [`PREFIXES`].
    pub e_name_index: u8,
    /// Where the value lies.
    pub e_value_offs: U16,
    /// The inode whose data is the value under `ea_inode`; 0: the value is here.
    pub e_value_inum: U32,
    /// Length of the value in bytes.
    pub e_value_size: U32,
    /// [`entry_hash`]; 0 in inodes, but for values in inodes of their own.
    pub e_hash: U32,
}

const _: () = assert!(size_of::<XattrBlockHeader>() == BLOCK_HEADER_SIZE);
const _: () = assert!(size_of::<XattrEntry>() == ENTRY_SIZE);

/// `e_name_index` of POSIX access ACLs.
pub const INDEX_ACL_ACCESS: u8 = 2;
/// `e_name_index` of POSIX default ACLs.
pub const INDEX_ACL_DEFAULT: u8 = 3;
/// `e_name_index` of the `system.` namespace, where inline data lies as `data`.
pub const INDEX_SYSTEM: u8 = 7;

/// Name indexes and what they stand for. The whole of a name that ends without a dot is the index, and nothing follows.
pub const PREFIXES: &[(u8, &[u8])] = &[
    (INDEX_ACL_ACCESS, b"system.posix_acl_access"),
    (INDEX_ACL_DEFAULT, b"system.posix_acl_default"),
    (8, b"system.richacl"),
    (1, b"user."),
    (4, b"trusted."),
    (5, b"lustre."),
    (6, b"security."),
    (INDEX_SYSTEM, b"system."),
    (10, b"gnu."),
];

/// A full name's index and the rest to store. `None`: ext4 has no such namespace, or nothing comes after it.
#[must_use]
pub fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        (rest.is_empty() != prefix.ends_with(b".")).then_some((*index, rest))
    })
}

/// The full name of a stored one. `None`: no such index.
#[must_use]
pub fn join_name(index: u8, rest: &[u8]) -> Option<Vec<u8>> {
    let (_, prefix) = PREFIXES.iter().find(|(i, _)| *i == index)?;
    Some([prefix, rest].concat())
}

/// `e_hash` of an entry whose value is in the same block (`ext4_xattr_hash_entry`). Names with bytes above 127 were hashed
/// as signed bytes by kernels before 6.2 on machines where `char` is signed; this is the unsigned form, which all take.
#[must_use]
pub fn entry_hash(name: &[u8], value: &[u8]) -> u32 {
    value
        .chunks(4)
        .map(|chunk| {
            let mut word = [0; 4];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            u32::from_le_bytes(word)
        })
        .fold(name_hash(name), |hash, word| hash.rotate_left(16) ^ word)
}

/// `e_hash` of an entry whose value is in an inode of its own, from the crc32c of that value with the filesystem's seed.
#[must_use]
pub fn entry_hash_of_inode(name: &[u8], value_checksum: u32) -> u32 {
    name_hash(name).rotate_left(16) ^ value_checksum
}

fn name_hash(name: &[u8]) -> u32 {
    name.iter()
        .fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte))
}

/// `h_hash` from the entries' hashes in order; 0, "do not share", if one of them is 0.
#[must_use]
pub fn block_hash(entries: impl IntoIterator<Item = u32>) -> u32 {
    let mut hash = 0u32;
    for entry in entries {
        if entry == 0 {
            return 0;
        }
        hash = hash.rotate_left(16) ^ entry;
    }
    hash
}

/// Bytes of an entry with its name and padding.
#[must_use]
pub const fn entry_size(name_len: usize) -> usize {
    ENTRY_SIZE.saturating_add(name_len).saturating_add(3) & !3
}

/// Bytes a value takes with its padding.
#[must_use]
pub const fn value_size(len: usize) -> usize {
    len.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_and_join() {
        for (name, index, rest) in [
            (&b"user.a.b"[..], 1, &b"a.b"[..]),
            (b"system.posix_acl_access", 2, b""),
            (b"system.posix_acl_default", 3, b""),
            (b"security.capability", 6, b"capability"),
            (b"trusted.overlay.opaque", 4, b"overlay.opaque"),
            (b"system.other", 7, b"other"),
            (b"system.posix_acl_accessory", 7, b"posix_acl_accessory"),
        ] {
            assert_eq!(split_name(name), Some((index, rest)));
            assert_eq!(join_name(index, rest).as_deref(), Some(name));
        }
        for name in [&b"user."[..], b"user", b"osx.thing", b"", b"nfs4."] {
            assert_eq!(split_name(name), None);
        }
    }
}
