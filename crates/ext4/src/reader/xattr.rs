//! Extended attributes, wherever they lie.

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::error::{ReadError, Structure};
use super::num::{index, le32, len64, slice};
use super::source::Meta;
use super::{Filesystem, Inode};
use crate::format::inode::flags;
use crate::format::superblock::incompat;
use crate::format::xattr::{
    BLOCK_HEADER_SIZE, ENTRY_SIZE, INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT, INDEX_SYSTEM, MAGIC,
    VALUE_MAX, XattrBlockHeader, XattrEntry, entry_hash, entry_hash_of_inode, entry_size,
    join_name,
};
use crate::format::{acl, inode as raw_inode};
use crate::{FileType, InodeNumber, Xattr};

/// The name under `INDEX_SYSTEM` that holds the rest of inline data.
const INLINE_NAME: &[u8] = b"data";

/// An attribute as it is stored.
pub(crate) struct Entry<'a> {
    pub(crate) index: u8,
    pub(crate) name: &'a [u8],
    pub(crate) hash: u32,
    /// Where the value is said to lie, which means nothing for empty ones and those in inodes.
    pub(crate) offset: usize,
    pub(crate) value: Value<'a>,
}

pub(crate) enum Value<'a> {
    Here(&'a [u8]),
    Inode { number: InodeNumber, size: usize },
}

/// Goes through the entries from `first` on; value offsets count from the start of `area`. `at` is where `area` lies, in bytes.
pub(crate) fn entries<'a>(
    inode: &Inode,
    area: &'a [u8],
    first: usize,
    at: u64,
) -> Result<Vec<Entry<'a>>, ReadError> {
    let corrupt = |place: usize, detail: &str| {
        ReadError::corrupt(
            Structure::Xattrs(inode.number),
            at.saturating_add(len64(place)),
            detail,
        )
    };
    let mut found = Vec::new();
    // Ends of names and starts of values must not cross: the end of the names is known only after the last.
    let mut lowest_value = area.len();
    let mut values: Vec<(usize, usize)> = Vec::new();
    let mut place = first;
    loop {
        let Some(rest) = slice(area, place, 4) else {
            return Err(corrupt(place, "the list of names has no end"));
        };
        if rest == [0; 4] {
            break;
        }
        let Some(Ok((raw, after))) = area.get(place..).map(XattrEntry::ref_from_prefix) else {
            return Err(corrupt(place, "an entry leaves the area"));
        };
        let name_len = usize::from(raw.e_name_len);
        let Some(name) = slice(after, 0, name_len) else {
            return Err(corrupt(place, "a name leaves the area"));
        };
        if name.contains(&0) {
            return Err(corrupt(place, "a name holds a NUL"));
        }
        let size = index(u64::from(raw.e_value_size.get()));
        let value = match raw.e_value_inum.get() {
            0 if size == 0 => Value::Here(&[]),
            0 => {
                let start = usize::from(raw.e_value_offs.get());
                let Some(value) = slice(area, start, size) else {
                    return Err(corrupt(place, "a value leaves the area"));
                };
                lowest_value = lowest_value.min(start);
                values.push((start, size));
                Value::Here(value)
            }
            number => Value::Inode {
                number: InodeNumber(number),
                size,
            },
        };
        found.push(Entry {
            index: raw.e_name_index,
            name,
            hash: raw.e_hash.get(),
            offset: usize::from(raw.e_value_offs.get()),
            value,
        });
        place = place.saturating_add(entry_size(name_len).max(ENTRY_SIZE));
    }
    if lowest_value < place.saturating_add(4) {
        return Err(corrupt(place, "a value lies among the names"));
    }
    values.sort_unstable();
    let mut pairs = values.iter().zip(values.iter().skip(1));
    if pairs.any(|((start, len), (next, _))| start.saturating_add(*len) > *next) {
        return Err(corrupt(first, "values lie over one another"));
    }
    Ok(found)
}

/// The rest of an inode's inline data, in the inode's attribute area `body`.
pub(crate) fn find_inline<'a>(
    inode: &Inode,
    body: &'a [u8],
) -> Result<Option<&'a [u8]>, ReadError> {
    for entry in entries(inode, body, 0, inode.body_offset)? {
        if entry.index == INDEX_SYSTEM && entry.name == INLINE_NAME {
            return match entry.value {
                Value::Here(value) => Ok(Some(value)),
                Value::Inode { .. } => Err(inode.corrupt("inline data in another inode")),
            };
        }
    }
    Ok(None)
}

impl<R: ReadAt> Filesystem<R> {
    /// The extended attributes of an inode, sorted by name, as `listxattr` and `getxattr` show them to root: POSIX ACLs in
    /// their syscall form, without those that ext4 keeps for itself (inline data, encryption).
    ///
    /// # Errors
    /// *corrupt*; *unsupported* if a value is longer than Linux lets one be (64 KiB).
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, ReadError> {
        let mut list: Vec<Xattr> = Vec::new();
        if let Some(body) = inode.body.as_deref() {
            for entry in entries(inode, body, 0, inode.body_offset)? {
                self.take(inode, &entry, inode.body_offset, &mut list)?;
            }
        }
        if inode.xattr_block != 0 {
            self.take_block(inode, &mut list)?;
        }
        // Should a name be in both places, the kernel finds the one in the inode, which comes first here.
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list.dedup_by(|later, first| later.name == first.name);
        Ok(list)
    }

    /// The block of an inode's attributes and where it lies, its header and checksum checked.
    pub(crate) fn attribute_block(&self, inode: &Inode) -> Result<(Meta, u64), ReadError> {
        let number = inode.xattr_block;
        let sb = &self.superblock;
        if number >= sb.blocks
            || number < sb.first_data_block
            || self.system_zone().overlaps(number, 1)
        {
            return Err(inode.corrupt(format!("attributes in block {number}")));
        }
        let at = number.saturating_mul(sb.block_size);
        let corrupt =
            |detail: &str| ReadError::corrupt(Structure::Xattrs(inode.number), at, detail);
        let block = self.block("read extended attributes", number)?;
        let Ok((header, _)) = XattrBlockHeader::ref_from_prefix(&block) else {
            return Err(corrupt("the block is not whole"));
        };
        if header.h_magic.get() != MAGIC || header.h_blocks.get() != 1 {
            return Err(corrupt("the block has no magic number"));
        }
        if sb.checksums() {
            const FIELD: usize = std::mem::offset_of!(XattrBlockHeader, h_checksum);
            const BEHIND: usize = FIELD + 4;
            let sum = sb
                .seed
                .u64(number)
                .bytes(block.get(..FIELD).unwrap_or_default())
                .bytes(&[0; 4])
                .bytes(block.get(BEHIND..).unwrap_or_default());
            if sum.value() != header.h_checksum.get() {
                return Err(corrupt("the checksum does not match"));
            }
        }
        Ok((block, at))
    }

    fn take_block(&self, inode: &Inode, list: &mut Vec<Xattr>) -> Result<(), ReadError> {
        let (block, at) = self.attribute_block(inode)?;
        for entry in entries(inode, &block, BLOCK_HEADER_SIZE, at)? {
            self.take(inode, &entry, at, list)?;
        }
        Ok(())
    }

    fn take(
        &self,
        inode: &Inode,
        entry: &Entry<'_>,
        at: u64,
        list: &mut Vec<Xattr>,
    ) -> Result<(), ReadError> {
        if entry.index == INDEX_SYSTEM && entry.name == INLINE_NAME {
            return Ok(());
        }
        // Namespaces that the kernel has no name for are ext4's own (9: encryption contexts); it shows none of them.
        let Some(name) = join_name(entry.index, entry.name) else {
            return Ok(());
        };
        let corrupt =
            |detail: String| ReadError::corrupt(Structure::Xattrs(inode.number), at, detail);
        let value = match &entry.value {
            Value::Here(value) => value.to_vec(),
            Value::Inode { number, size } => self.value_inode(inode, entry, *number, *size)?,
        };
        let value = if matches!(entry.index, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT) {
            if !entry.name.is_empty() {
                return Err(corrupt("an ACL with a name of its own".to_owned()));
            }
            acl::from_disk(&value).ok_or_else(|| corrupt("a malformed ACL".to_owned()))?
        } else {
            value
        };
        list.push(Xattr { name, value });
        Ok(())
    }

    /// A value that is the content of an inode of its own (`ea_inode`).
    pub(crate) fn value_inode(
        &self,
        inode: &Inode,
        entry: &Entry<'_>,
        number: InodeNumber,
        size: usize,
    ) -> Result<Vec<u8>, ReadError> {
        let corrupt = |detail: String| {
            ReadError::corrupt(Structure::Xattrs(inode.number), inode.offset, detail)
        };
        if !self.superblock.has_incompat(incompat::EA_INODE) {
            return Err(corrupt(format!(
                "a value in inode {number}, without the feature ea_inode"
            )));
        }
        if size > VALUE_MAX {
            return Err(ReadError::unsupported(format!(
                "an extended attribute of {size} bytes (inode {})",
                inode.number
            )));
        }
        let holder = self.inode(number)?;
        if !holder.has(flags::EA_INODE)
            || holder.file_type != FileType::Regular
            || holder.size != len64(size)
            || holder.has(flags::ENCRYPT)
        {
            return Err(corrupt(format!("inode {number} does not hold the value")));
        }
        let map = self.map_file(&holder)?;
        let mut value = vec![0; size];
        self.read_mapped(&map, 0, &mut value)?;
        let sum = self.superblock.seed.bytes(&value).value();
        let table = self
            .source
            .meta("read an inode", holder.offset, len64(raw_inode::OLD_SIZE))?;
        // The value's checksum lies in the access time of the inode that holds it.
        let stored = le32(&table, std::mem::offset_of!(raw_inode::Inode, i_atime));
        if sum != stored {
            return Err(corrupt(format!(
                "the value in inode {number} does not match its checksum"
            )));
        }
        let signed = signed_name_hash(entry.name).rotate_left(16) ^ sum;
        if entry.hash != entry_hash_of_inode(entry.name, sum) && entry.hash != signed {
            return Err(corrupt(format!(
                "the value in inode {number} does not match its hash"
            )));
        }
        Ok(value)
    }
}

/// The part of an entry's hash that comes from its name, as kernels before 6.2 computed it where `char` is signed.
fn signed_name_hash(name: &[u8]) -> u32 {
    name.iter().fold(0_u32, |hash, byte| {
        hash.rotate_left(5) ^ i32::from(byte.cast_signed()).cast_unsigned()
    })
}

/// [`entry_hash`](crate::format::xattr::entry_hash) as those kernels computed it.
pub(crate) fn signed_entry_hash(name: &[u8], value: &[u8]) -> u32 {
    // The name's part is turned and mixed into once for each word of the value: what differs in it stays apart.
    let words = u32::try_from(value.len().div_ceil(4)).unwrap_or(0);
    let (signed, unsigned) = (signed_name_hash(name), entry_hash(name, &[]));
    let turned = (signed ^ unsigned).rotate_left(words.wrapping_mul(16) & 31);
    entry_hash(name, value) ^ turned
}
