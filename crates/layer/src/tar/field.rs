//! The fields of a header block (POSIX.1-1988 ustar, GNU tar's `tar.h`, star's `star.4`).

use std::ops::Range;

use super::Malformed;

/// A block, the unit of the format, in bytes.
pub const BLOCK: usize = 512;

/// One block.
pub type Block = [u8; BLOCK];

pub(crate) const NAME: Range<usize> = 0..100;
pub(crate) const MODE: Range<usize> = 100..108;
pub(crate) const UID: Range<usize> = 108..116;
pub(crate) const GID: Range<usize> = 116..124;
pub(crate) const SIZE: Range<usize> = 124..136;
pub(crate) const MTIME: Range<usize> = 136..148;
pub(crate) const CHECKSUM: Range<usize> = 148..156;
pub(crate) const TYPE: usize = 156;
pub(crate) const LINK: Range<usize> = 157..257;
pub(crate) const MAGIC: Range<usize> = 257..265;
pub(crate) const UNAME: Range<usize> = 265..297;
pub(crate) const GNAME: Range<usize> = 297..329;
pub(crate) const MAJOR: Range<usize> = 329..337;
pub(crate) const MINOR: Range<usize> = 337..345;
/// All behind the ustar fields: prefix and padding, or GNU's and star's own fields.
pub(crate) const TAIL: Range<usize> = 345..512;
const USTAR_PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_ATIME: Range<usize> = 476..488;
const STAR_CTIME: Range<usize> = 488..500;
const STAR_TRAILER: Range<usize> = 508..512;
const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;
/// Four pairs of offset and length, 24 bytes each.
pub(crate) const GNU_SPARSE: Range<usize> = 386..482;
pub(crate) const GNU_EXTENDED: usize = 482;
pub(crate) const GNU_REAL_SIZE: Range<usize> = 483..495;
/// In the blocks that continue a GNU sparse map: 21 pairs, then the flag.
pub(crate) const GNU_MORE_SPARSE: Range<usize> = 0..504;
pub(crate) const GNU_MORE_EXTENDED: usize = 504;

/// Which of the header layouts a block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    V7,
    Ustar,
    Star,
    Gnu,
}

pub(crate) fn layout(block: &Block) -> Layout {
    let magic = &block[MAGIC];
    if magic.starts_with(b"ustar\0") {
        if &block[STAR_TRAILER] == b"tar\0" {
            Layout::Star
        } else {
            Layout::Ustar
        }
    } else if magic == b"ustar  \0" {
        Layout::Gnu
    } else {
        Layout::V7
    }
}

pub(crate) fn is_zero(block: &Block) -> bool {
    block.iter().all(|&b| b == 0)
}

/// The sum of the header's bytes with its checksum taken as spaces: as unsigned bytes, and as the signed ones of some old writers.
pub(crate) fn sums(block: &Block) -> (i64, i64) {
    let mut unsigned = 0_i64;
    let mut signed = 0_i64;
    for (i, &byte) in block.iter().enumerate() {
        let byte = if CHECKSUM.contains(&i) { b' ' } else { byte };
        unsigned = unsigned.wrapping_add(i64::from(byte));
        signed = signed.wrapping_add(i64::from(byte.cast_signed()));
    }
    (unsigned, signed)
}

pub(crate) fn checksum_matches(block: &Block) -> bool {
    let Some(stated) = octal(&block[CHECKSUM]) else {
        return false;
    };
    // One pass over unsigned bytes is enough for nearly every header there is.
    let unsigned: u32 = block.iter().map(|&b| u32::from(b)).sum();
    let field: u32 = block[CHECKSUM].iter().map(|&b| u32::from(b)).sum();
    let spaces = 8 * u32::from(b' ');
    if i64::from(unsigned.wrapping_sub(field).wrapping_add(spaces)) == stated {
        return true;
    }
    sums(block).1 == stated
}

/// A text field: up to its first zero byte.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// An octal number with spaces and zero bytes around it; an empty field is 0. `None`: something else, or over 63 bits.
pub(crate) fn octal(field: &[u8]) -> Option<i64> {
    let padding = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !padding(b));
    let Some(start) = start else {
        return Some(0);
    };
    let end = field.iter().rposition(|b| !padding(b))?;
    let digits = text(field.get(start..=end)?);
    let mut value = 0_i64;
    for &digit in digits {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value
            .checked_mul(8)?
            .checked_add(i64::from(digit.wrapping_sub(b'0')))?;
    }
    Some(value)
}

/// A number in octal, or (first bit set) in two's complement base 256, as GNU tar and star write what octal can't hold.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let &first = field.first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    let invert = if first & 0x40 != 0 { 0xff } else { 0 };
    let mut value = 0_u64;
    for (i, &byte) in field.iter().enumerate() {
        let mut byte = byte ^ invert;
        if i == 0 {
            byte &= 0x7f;
        }
        if value >> 56 != 0 {
            return None;
        }
        value = (value << 8) | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if invert == 0 { value } else { !value })
}

/// The fields of a header, read but not yet judged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: i64,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) size: i64,
    pub(crate) mtime: i64,
    pub(crate) atime: Option<i64>,
    pub(crate) ctime: Option<i64>,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    pub(crate) flag: u8,
}

impl Fields {
    /// Reads a header whose checksum is right into `self`, keeping its allocations.
    pub(crate) fn read(&mut self, block: &Block) -> Result<Layout, Malformed> {
        let layout = layout(block);
        let get = |range: Range<usize>, name| number(&block[range]).ok_or(Malformed::Number(name));
        self.flag = block[TYPE];
        self.mode = get(MODE, "mode")?;
        self.uid = get(UID, "uid")?;
        self.gid = get(GID, "gid")?;
        self.size = get(SIZE, "size")?;
        self.mtime = get(MTIME, "mtime")?;
        (self.atime, self.ctime) = (None, None);
        (self.major, self.minor) = (0, 0);
        self.link.clear();
        self.link.extend_from_slice(text(&block[LINK]));
        if layout != Layout::V7 {
            self.major = get(MAJOR, "devmajor")?;
            self.minor = get(MINOR, "devminor")?;
        }
        let mut prefix: &[u8] = b"";
        match layout {
            Layout::V7 => {}
            Layout::Ustar => prefix = text(&block[USTAR_PREFIX]),
            Layout::Star => {
                prefix = text(&block[STAR_PREFIX]);
                self.atime = Some(get(STAR_ATIME, "atime")?);
                self.ctime = Some(get(STAR_CTIME, "ctime")?);
            }
            Layout::Gnu => {
                let time = |range: Range<usize>| match &block[range] {
                    [0, ..] => Some(None),
                    field => number(field).map(Some),
                };
                if let (Some(atime), Some(ctime)) = (time(GNU_ATIME), time(GNU_CTIME)) {
                    (self.atime, self.ctime) = (atime, ctime);
                } else {
                    // Go before 1.8 wrote a ustar prefix where GNU has its times; its reader takes it back like this.
                    let stray = text(&block[USTAR_PREFIX]);
                    if stray.is_ascii() {
                        prefix = stray;
                    }
                }
            }
        }
        self.path.clear();
        if !prefix.is_empty() {
            self.path.extend_from_slice(prefix);
            self.path.push(b'/');
        }
        self.path.extend_from_slice(text(&block[NAME]));
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"00000008", None),
            (b"-0000001", None),
            (b"12\x0034\0\0\0", Some(0o12)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\0\x01\0\0\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"777777777777", Some(0o777_777_777_777)),
        ] {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn checksums_signed_and_unsigned() {
        let mut block = [0; BLOCK];
        block[..3].copy_from_slice(b"\xe9a\xff");
        assert!(!checksum_matches(&block));
        for sum in [sums(&block).0, sums(&block).1] {
            block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert!(checksum_matches(&block), "{sum}");
        }
        block[0] ^= 1;
        assert!(!checksum_matches(&block));
    }
}
