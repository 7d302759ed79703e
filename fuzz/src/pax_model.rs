//! What PAX's records mean, written a second time: the part of [`tar_model`](crate::tar_model) that reads extended headers.

use std::collections::BTreeMap;

use lcow_ext4::Timestamp;

use crate::tar_model::{Result, Stop, refuse};

/// What extended headers say of an entry.
#[derive(Default)]
pub(crate) struct Extended {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) size: Option<i64>,
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) major: Option<i64>,
    pub(crate) minor: Option<i64>,
    /// From `SCHILY.xattr.…` and `SCHILY.acl.…`.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// From `LIBARCHIVE.xattr.…`, which count where the others have no attribute of the name.
    pub(crate) libarchive: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.…`
    pub(crate) sparse: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.offset` and `GNU.sparse.numbytes`, in turn.
    pub(crate) pairs: Vec<i64>,
}

/// Keys and values of extended headers, in order.
pub(crate) type Records = Vec<(Vec<u8>, Vec<u8>)>;

pub(crate) fn decimal(value: &[u8]) -> Result<i64> {
    let plain = !value.is_empty() && value.len() < 18 && value.iter().all(u8::is_ascii_digit);
    if !plain {
        return Err(Stop::Unknown);
    }
    Ok(value.iter().fold(0, |n, &b| n * 10 + i64::from(b - b'0')))
}

fn time(value: &[u8]) -> Result<Timestamp> {
    let mut parts = value.split(|&b| b == b'.');
    let secs = decimal(parts.next().unwrap_or_default())?;
    let mut fraction = parts.next().unwrap_or_default().to_vec();
    if parts.next().is_some() || !fraction.iter().all(u8::is_ascii_digit) {
        return Err(Stop::Unknown);
    }
    fraction.resize(9, b'0');
    let nanos = fraction
        .iter()
        .fold(0, |n, &b| n * 10 + u32::from(b - b'0'));
    Ok(Timestamp { secs, nanos })
}

/// The records of an extended header.
pub(crate) fn records(body: &[u8]) -> Result<Records> {
    let mut records = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let space = rest.iter().position(|&b| b == b' ');
        let Some(space) = space else {
            return refuse("a record without a length");
        };
        let len = usize::try_from(decimal(&rest[..space])?).unwrap_or(usize::MAX);
        if len > rest.len() || len < space + 3 || rest[len - 1] != b'\n' {
            return refuse("a record with a wrong length");
        }
        let record = &rest[space + 1..len - 1];
        rest = &rest[len..];
        let Some(equals) = record.iter().position(|&b| b == b'=') else {
            return refuse("a record without a value");
        };
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return refuse("a key that is none");
        }
        let is_name = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
        if is_name && value.contains(&0) {
            return refuse("a name with a zero");
        }
        records.push((key.to_vec(), value.to_vec()));
    }
    Ok(records)
}

/// What records come to. An empty value takes what was said before back.
pub(crate) fn extended(records: &[(Vec<u8>, Vec<u8>)]) -> Result<Extended> {
    let mut into = Extended::default();
    for (key, value) in records {
        let text = (!value.is_empty()).then(|| value.clone());
        let number = || text.as_deref().map(decimal).transpose();
        match &key[..] {
            b"path" => into.path = text,
            b"linkpath" => into.link = text,
            b"uid" => into.uid = number()?,
            b"gid" => into.gid = number()?,
            b"size" => into.size = number()?,
            b"mtime" => into.mtime = text.as_deref().map(time).transpose()?,
            // Times that the model does not compare.
            b"atime" | b"ctime" => {
                text.as_deref().map(time).transpose()?;
            }
            b"SCHILY.devmajor" => into.major = number()?,
            b"SCHILY.devminor" => into.minor = number()?,
            b"SCHILY.acl.access" => {
                if let Some(acl) = acl(value, false)? {
                    into.xattrs.insert(ACL_ACCESS.to_vec(), acl);
                }
            }
            b"SCHILY.acl.default" => {
                if let Some(acl) = acl(value, true)? {
                    into.xattrs.insert(ACL_DEFAULT.to_vec(), acl);
                }
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                if (into.pairs.len() % 2 == 0) != key.ends_with(b"offset") {
                    return refuse("offsets and lengths that do not alternate");
                }
                let Some(number) = number()? else {
                    return refuse("an offset or a length that is none");
                };
                into.pairs.push(number);
            }
            key if key.starts_with(b"GNU.sparse.") => {
                match text {
                    Some(text) => into.sparse.insert(key.to_vec(), text),
                    None => into.sparse.remove(key),
                };
            }
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    let name = replace(&replace(name, b"%3D", b"="), b"%25", b"%");
                    into.xattrs.insert(name, value.clone());
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    into.libarchive.insert(url(name), base64(value)?);
                }
                // Nobody has to know any other.
            }
        }
    }
    Ok(into)
}

pub(crate) const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
pub(crate) const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(from) {
            out.extend(to);
            at += from.len();
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    out
}

/// `%` and two hexadecimal digits are a byte; a `%` before anything else is itself.
fn url(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| {
        let byte = text.get(at).copied().map(char::from);
        byte.and_then(|c| c.to_digit(16))
    };
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.extend(u8::try_from(high * 16 + low));
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// RFC 4648, with all of its padding or without.
fn base64(text: &[u8]) -> Result<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let end = text.iter().rposition(|&b| b != b'=').map_or(0, |at| at + 1);
    let (digits, padding) = text.split_at(end);
    let mut bits = Vec::new();
    for digit in digits {
        let Some(value) = ALPHABET.iter().position(|d| d == digit) else {
            return refuse("base 64 that is none");
        };
        bits.extend((0..6).rev().map(|bit| value >> bit & 1 == 1));
    }
    if digits.len() % 4 == 1 {
        return refuse("base 64 that ends within a byte");
    }
    if !padding.is_empty() && !text.len().is_multiple_of(4) {
        // Other padding than there should be.
        return Err(Stop::Unknown);
    }
    let byte = |bits: &[bool]| bits.iter().fold(0, |n, &bit| n << 1 | u8::from(bit));
    Ok(bits.chunks_exact(8).map(byte).collect())
}

/// A POSIX ACL in text, as `getxattr` would give it (kernel, `include/uapi/linux/posix_acl_xattr.h`). `None`: it can't be read or
/// says nothing, and is left out.
fn acl(text: &[u8], default: bool) -> Result<Option<Vec<u8>>> {
    if !text.is_ascii() {
        return Err(Stop::Unknown);
    }
    let text = String::from_utf8_lossy(text);
    let mut entries: Vec<(u16, u32, u16)> = Vec::new();
    for line in text.split([',', '\n']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split(':').collect();
        let (qualifier, permissions, id) = match fields[..] {
            ["m" | "mask" | "o" | "other", permissions] => ("", permissions, ""),
            [_, qualifier, permissions] => (qualifier, permissions, qualifier),
            [_, qualifier, permissions, id, ..] => (qualifier, permissions, id),
            _ => return Ok(None),
        };
        let tag = match (fields[0], qualifier) {
            ("u" | "user", "") => 1,
            ("u" | "user", _) => 2,
            ("g" | "group", "") => 4,
            ("g" | "group", _) => 8,
            ("m" | "mask", "") => 16,
            ("o" | "other", "") => 32,
            _ => return Ok(None),
        };
        let id = if tag == 2 || tag == 8 {
            if id.starts_with('+') {
                return Err(Stop::Unknown);
            }
            match id.parse() {
                Ok(id) => id,
                Err(_) => return Ok(None),
            }
        } else {
            u32::MAX
        };
        if permissions.chars().any(|c| !"rwx-".contains(c)) {
            return Ok(None);
        }
        let bit = |c, value| if permissions.contains(c) { value } else { 0 };
        entries.push((tag, id, bit('r', 4) | bit('w', 2) | bit('x', 1)));
    }
    // What the mode says too.
    let more = entries.iter().any(|(tag, ..)| matches!(tag, 2 | 8 | 16));
    if entries.is_empty() || !(more || default) {
        return Ok(None);
    }
    entries.sort_unstable();
    let mut value = vec![2, 0, 0, 0];
    for (tag, id, permissions) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Ok(Some(value))
}

/// Whether a value of an ACL's attribute is one that comes back as it is: known tags, and numbers where they belong.
pub(crate) fn is_acl(value: &[u8]) -> bool {
    let Some(entries) = value.strip_prefix(&[2, 0, 0, 0]) else {
        return false;
    };
    entries.len() % 8 == 0
        && entries.chunks_exact(8).all(|entry| match entry[..2] {
            [2 | 8, 0] => true,
            [1 | 4 | 16 | 32, 0] => entry[4..] == [0xff; 4],
            _ => false,
        })
}
