use std::collections::BTreeMap;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

use crate::tree::{Entry, Tree, hex};

/// The files of a tar in the form that `lcow disk to-tar` writes, ustar and PAX. Not the project's own reader, so that
/// the two can't agree on a mistake. Directories have 0 links. `hash`: whether a file's content is of interest.
///
/// # Errors
/// If the tar can't be read, or is not of that form.
pub fn read_tar(mut input: impl Read, hash: &dyn Fn(&[u8]) -> bool) -> io::Result<Tree> {
    let mut files = Tree::new();
    let mut links: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut records = BTreeMap::new();
    loop {
        let mut header = [0; 512];
        input.read_exact(&mut header)?;
        if header == [0; 512] {
            break;
        }
        checksum(&header)?;
        let size = number(&header[124..136])?;
        let kind = header[156];
        if kind == b'x' {
            let mut body = vec![0; usize::try_from(size.next_multiple_of(512)).map_err(bad)?];
            input.read_exact(&mut body)?;
            body.truncate(usize::try_from(size).map_err(bad)?);
            records = pax(&body)?;
            continue;
        }
        let records = std::mem::take(&mut records);
        let path = path(&header, &records);
        let target = records.get("linkpath").cloned();
        let target = target.unwrap_or_else(|| text(&header[157..257]));
        if kind == b'1' {
            links.push((path, target));
            continue;
        }
        let mut entry = fields(&header, &records)?;
        if kind == b'2' {
            entry.size = target.len() as u64;
            entry.link = Some(target);
        }
        if kind == b'0' {
            let stored = match records.get("size") {
                Some(size) => decimal(size)?,
                None => size,
            };
            content(&mut input, stored, &records, &mut entry, hash(&path))?;
        }
        if !path.is_empty() {
            files.insert(path, entry);
        }
    }
    let mut names: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for (path, target) in links {
        names.entry(target).or_default().push(path);
    }
    for (target, others) in names {
        let file = files.get_mut(&target).ok_or_else(|| {
            bad(format!(
                "a link to {}, which is not there",
                target.escape_ascii()
            ))
        })?;
        file.links += others.len() as u64;
        let file = file.clone();
        files.extend(others.into_iter().map(|path| (path, file.clone())));
    }
    Ok(files)
}

fn bad(what: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

fn checksum(header: &[u8; 512]) -> io::Result<()> {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(n, byte)| u64::from(if (148..156).contains(&n) { b' ' } else { *byte }))
        .sum();
    if number(&header[148..156])? == sum {
        Ok(())
    } else {
        Err(bad("a header's checksum is wrong"))
    }
}

fn text(field: &[u8]) -> Vec<u8> {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    field[..end].to_vec()
}

fn number(field: &[u8]) -> io::Result<u64> {
    let digits = String::from_utf8_lossy(field);
    let digits = digits.trim_matches(['\0', ' ']);
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).map_err(|e| bad(format!("{digits:?}: {e}")))
}

fn decimal<T: std::str::FromStr>(value: &[u8]) -> io::Result<T> {
    let digits = String::from_utf8_lossy(value);
    digits
        .parse()
        .map_err(|_| bad(format!("{digits:?} is no number")))
}

fn pax(mut body: &[u8]) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut records = BTreeMap::new();
    while !body.is_empty() {
        let space = body
            .iter()
            .position(|b| *b == b' ')
            .ok_or_else(|| bad("a PAX record"))?;
        let len: usize = decimal(&body[..space])?;
        let record = body
            .get(space + 1..len)
            .ok_or_else(|| bad("a PAX record's length"))?;
        let record = record
            .strip_suffix(b"\n")
            .ok_or_else(|| bad("a PAX record's end"))?;
        let equals = record
            .iter()
            .position(|b| *b == b'=')
            .ok_or_else(|| bad("a PAX record"))?;
        let key = String::from_utf8_lossy(&record[..equals]).into_owned();
        records.insert(key, record[equals + 1..].to_vec());
        body = &body[len..];
    }
    Ok(records)
}

fn path(header: &[u8; 512], records: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let known = records
        .get("GNU.sparse.name")
        .or_else(|| records.get("path"));
    let mut path = known.cloned().unwrap_or_else(|| {
        let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
        if prefix.is_empty() {
            name
        } else {
            [&prefix[..], b"/", &name].concat()
        }
    });
    if let Some(inside) = path.strip_prefix(b"./") {
        path = inside.to_vec();
    }
    if path.last() == Some(&b'/') {
        path.pop();
    }
    path
}

fn fields(header: &[u8; 512], records: &BTreeMap<String, Vec<u8>>) -> io::Result<Entry> {
    let kind = match header[156] {
        b'0' => 0o100_000,
        b'2' => 0o120_000,
        b'3' => 0o020_000,
        b'4' => 0o060_000,
        b'5' => 0o040_000,
        b'6' => 0o010_000,
        other => return Err(bad(format!("an entry of type {other}"))),
    };
    let or = |key: &str, field: &[u8]| match records.get(key) {
        Some(value) => decimal(value),
        None => number(field).and_then(|n| u32::try_from(n).map_err(bad)),
    };
    let mtime = match records.get("mtime") {
        Some(value) => time(value)?,
        None => (i64::try_from(number(&header[136..148])?).map_err(bad)?, 0),
    };
    let xattrs = records
        .iter()
        .filter_map(|(key, value)| {
            Some((key.strip_prefix("SCHILY.xattr.")?.to_owned(), hex(value)))
        })
        .collect();
    let device = match header[156] {
        b'3' | b'4' => Some((
            or("SCHILY.devmajor", &header[329..337])?,
            or("SCHILY.devminor", &header[337..345])?,
        )),
        _ => None,
    };
    Ok(Entry {
        mode: kind | u32::try_from(number(&header[100..108])?).map_err(bad)?,
        uid: or("uid", &header[108..116])?,
        gid: or("gid", &header[116..124])?,
        mtime,
        device,
        xattrs,
        links: u64::from(kind != 0o040_000),
        ..Entry::default()
    })
}

/// Seconds and nanoseconds after them; PAX writes times before 1970 as negative numbers with a fraction.
fn time(value: &[u8]) -> io::Result<(i64, u32)> {
    let mut parts = value.splitn(2, |b| *b == b'.');
    let whole: i64 = decimal(parts.next().unwrap_or_default())?;
    let digits = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let nanos: u32 = decimal(format!("{digits:0<9}").as_bytes())?;
    Ok(if value.first() == Some(&b'-') && nanos > 0 {
        (whole - 1, 1_000_000_000 - nanos)
    } else {
        (whole, nanos)
    })
}

/// Reads a file's data and, if it is `wanted`, hashes it with its holes.
fn content(
    input: &mut impl Read,
    stored: u64,
    records: &BTreeMap<String, Vec<u8>>,
    entry: &mut Entry,
    wanted: bool,
) -> io::Result<()> {
    let mut padding = stored.next_multiple_of(512) - stored;
    let mut map = vec![(0, stored)];
    entry.size = stored;
    if let Some(real) = records.get("GNU.sparse.realsize") {
        entry.size = decimal(real)?;
        let (pairs, used) = sparse_map(input)?;
        map = pairs;
        padding = (stored - used).next_multiple_of(512) - (stored - used);
    }
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let zeros = vec![0; if wanted { 1 << 18 } else { 0 }];
    let mut at = 0;
    for (offset, len) in map.into_iter().chain([(entry.size, 0)]) {
        while wanted && at < offset {
            let step = (offset - at).min(zeros.len() as u64);
            digest.update(&zeros[..usize::try_from(step).map_err(bad)?]);
            at += step;
        }
        at = at.max(offset);
        let mut left = len;
        while left > 0 {
            let step = usize::try_from(left.min(buffer.len() as u64)).map_err(bad)?;
            input.read_exact(&mut buffer[..step])?;
            if wanted {
                digest.update(&buffer[..step]);
            }
            left -= step as u64;
        }
        at += len;
    }
    io::copy(&mut input.take(padding), &mut io::sink())?;
    if wanted {
        entry.sha256 = Some(hex(&digest.finalize()));
    }
    Ok(())
}

/// Where the pieces of a sparse file go, as (offset, length).
type Pieces = Vec<(u64, u64)>;

/// The map at the start of a sparse file's data (GNU's "1.0"), and the bytes it took.
fn sparse_map(input: &mut impl Read) -> io::Result<(Pieces, u64)> {
    let mut block = [0; 512];
    let mut numbers: Vec<u64> = Vec::new();
    let mut digits = Vec::new();
    let mut used = 0;
    loop {
        input.read_exact(&mut block)?;
        used += 512;
        for byte in block {
            if byte != b'\n' {
                digits.push(byte);
                continue;
            }
            numbers.push(decimal(&digits)?);
            digits.clear();
            if numbers.len() as u64 == 1 + 2 * numbers[0] {
                let pairs = numbers[1..].chunks_exact(2).map(|p| (p[0], p[1])).collect();
                return Ok((pairs, used));
            }
        }
    }
}
