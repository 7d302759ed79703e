//! ext2, ext3 and ext4 images: what `lcow disk` makes of them beside the tree that Linux shows.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;

use lcow_testkit::{Corpora, Entry};
use serde::Deserialize;

use crate::process::{Failure, Lab};
use crate::{Case, Outcome, read_tar};

/// A file as the kernel's manifest has it; `err` if the kernel could not read it.
#[derive(Debug, Deserialize)]
struct Known {
    p: String,
    err: Option<i64>,
    #[serde(default)]
    m: String,
    #[serde(default)]
    u: u64,
    #[serde(default)]
    g: u64,
    #[serde(default)]
    s: u64,
    #[serde(default)]
    t: i64,
    #[serde(default)]
    n: u64,
    h: Option<String>,
    l: Option<String>,
    #[serde(default)]
    x: BTreeMap<String, String>,
    /// `st_rdev` of devices.
    r: Option<u64>,
}

/// A file as `lcow disk ls --json` has it.
#[derive(Debug, Deserialize)]
struct Listed {
    path: String,
    #[serde(rename = "type")]
    file_type: String,
    mode: String,
    links: u64,
    uid: u64,
    gid: u64,
    size: u64,
}

const SOCKET: u32 = 0o140_000;

/// The images of the index: a part of a disk each, mostly all of it.
pub(crate) fn cases(corpora: &Corpora) -> io::Result<Vec<Case>> {
    let index = fs::read_to_string(corpora.index.join("INDEX.ext4.tsv"))?;
    let mut cases = Vec::new();
    for line in index.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let field = |n: usize| fields.get(n).copied().unwrap_or_default();
        cases.push(Case {
            group: "image",
            class: field(9).to_owned(),
            name: format!("{}/{}", field(0), field(1)),
            // Of a partitioned disk the last column says where the partition is.
            columns: fields.iter().map(|&f| f.to_owned()).collect(),
        });
    }
    Ok(cases)
}

pub(crate) fn judge(corpora: &Corpora, case: &Case, lab: &mut Lab) -> io::Result<Outcome> {
    let disk = corpora.files.join(&case.name);
    let disk = disk.to_string_lossy().into_owned();
    let manifest = manifest(corpora, case)?;
    if !case.class.starts_with("P-") {
        return export(&disk, "0", manifest.as_deref(), &case.class, lab);
    }
    // The whole of a partitioned disk is no filesystem; the place in it that the index names is.
    match to_tar(&disk, "0", lab)? {
        Err(failure) if failure.kind == "corrupt" => {}
        _ => lab.complain("the whole of a partitioned disk is not refused"),
    }
    let offset = case.columns.last().map_or("", String::as_str);
    export(&disk, offset, manifest.as_deref(), "A-clean", lab)
}

fn to_tar(disk: &str, offset: &str, lab: &mut Lab) -> io::Result<Result<(), Failure>> {
    let to_tar = ["disk", "to-tar", disk, "--offset", offset, "-o", "out.tar"];
    Ok(lab.lcow(&to_tar, &[], &["out.tar"])?.map(drop))
}

/// The kernel's tree, where it was taken.
fn manifest(corpora: &Corpora, case: &Case) -> io::Result<Option<Vec<Known>>> {
    let (folder, file) = case.name.split_once('/').unwrap_or_default();
    let path = corpora.files.join(folder).join("manifest");
    match fs::read(path.join(format!("{file}.json"))) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Exports an image and holds what comes of it against its class.
fn export(
    disk: &str,
    offset: &str,
    manifest: Option<&[Known]>,
    class: &str,
    lab: &mut Lab,
) -> io::Result<Outcome> {
    let replay = class.ends_with("+needs-replay");
    if let Err(failure) = to_tar(disk, offset, lab)? {
        let kernel_fails = manifest.is_some_and(|m| m.iter().any(|k| k.err.is_some()));
        let right = match failure.kind.as_str() {
            "unsupported" => true,
            // A clean image must open, unless the kernel fails on it as well; one to be replayed may be refused.
            "corrupt" => !class.starts_with("A-clean") || kernel_fails || replay,
            _ => false,
        };
        if !right {
            lab.complain(format!("{}: {}", failure.kind, failure.message));
        }
        return Ok(failure.outcome());
    }
    let inspect = ["disk", "inspect", disk, "--offset", offset];
    let report = lab.lcow(&inspect, &["out.tar"], &[])?.unwrap_or_default();
    let replayed = String::from_utf8_lossy(&report).contains("transactions replayed");
    if replay && !replayed {
        lab.complain("the journal is ignored");
    }
    let ls = ["disk", "ls", "-R", disk, "--offset", offset];
    let listed = match lab.lcow(&ls, &["out.tar"], &[])? {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(failure) => {
            lab.complain(format!("ls: {}", failure.message));
            return Ok("exported");
        }
    };
    let mut listed: BTreeMap<String, Listed> =
        listed_by_path(listed).ok_or_else(|| io::Error::other("a path in `disk ls`"))?;
    let wanted: BTreeMap<&str, bool> = manifest
        .unwrap_or_default()
        .iter()
        .map(|known| (known.p.as_str(), known.h.is_some()))
        .collect();
    let hash = |path: &[u8]| wanted.get(&*escaped(path)) == Some(&true);
    let tar = read_tar(&lab.path("out.tar"), &hash)?;
    // What the listing shows must be found by name as well, through the hash tree where there is one.
    if class.starts_with("A-")
        && let Some(path) = tar.keys().nth(tar.len() / 2)
    {
        let path = OsStr::from_bytes(path);
        let mut find: Vec<&OsStr> = ["disk", "ls", disk, "--offset", offset]
            .map(OsStr::new)
            .to_vec();
        find.extend([OsStr::new("--"), path]);
        if let Err(failure) = lab.lcow(&find, &["out.tar"], &[])? {
            lab.complain(format!("{}: {}", path.display(), failure.message));
        }
    }
    let tar: BTreeMap<String, Entry> = tar
        .into_iter()
        .map(|(path, entry)| (escaped(&path), entry))
        .collect();
    let mut differ = Vec::new();
    for path in tar.keys().filter(|path| !listed.contains_key(*path)) {
        differ.push(format!("{path}: in the tar, but not in the listing"));
    }
    match manifest {
        Some(manifest) => {
            for known in manifest {
                compare(
                    known,
                    tar.get(&known.p),
                    listed.remove(&known.p),
                    &mut differ,
                );
            }
            let more = listed.keys().map(|path| format!("{path}: only we see it"));
            differ.extend(more);
        }
        None if class.starts_with("A-") || class.starts_with("B-") => {}
        None => differ.push("it was read whole".to_owned()),
    }
    if !differ.is_empty() {
        lab.complain(differ.join("; "));
    }
    Ok("exported")
}

/// How a file of the tar and of the listing differs from the kernel's.
fn compare(known: &Known, tar: Option<&Entry>, listed: Option<Listed>, differ: &mut Vec<String>) {
    let path = &known.p;
    let Some(listed) = listed else {
        differ.push(format!("{path}: not in the listing"));
        return;
    };
    if known.err.is_some() {
        differ.push(format!("{path}: the kernel can't read it, we can"));
        return;
    }
    let mode = known.m.trim_start_matches("0o");
    let mode = u32::from_str_radix(mode, 8).unwrap_or(0);
    let mut field = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            differ.push(format!("{path}: {what} {ours} is {theirs}"));
        }
    };
    let kind = match mode & 0o170_000 {
        0o040_000 => "directory",
        0o120_000 => "symlink",
        0o100_000 => "file",
        0o020_000 => "character device",
        0o060_000 => "block device",
        0o010_000 => "fifo",
        _ => "socket",
    };
    field("type", listed.file_type, kind.to_owned());
    field("listed mode", listed.mode, format!("{:04o}", mode & 0o7777));
    field("links", listed.links.to_string(), known.n.to_string());
    field("listed owner", listed.uid.to_string(), known.u.to_string());
    field("listed group", listed.gid.to_string(), known.g.to_string());
    if kind != "directory" {
        field("listed size", listed.size.to_string(), known.s.to_string());
    }
    let Some(ours) = tar else {
        // No tar can hold a socket, and mke2fs's empty `lost+found` is left out.
        let left_out = mode & 0o170_000 == SOCKET || path == "lost+found";
        field("in the tar", false.to_string(), (!left_out).to_string());
        return;
    };
    field("mode", format!("{:o}", ours.mode), format!("{mode:o}"));
    field("owner", ours.uid.to_string(), known.u.to_string());
    field("group", ours.gid.to_string(), known.g.to_string());
    field("mtime", ours.mtime.0.to_string(), known.t.to_string());
    if kind == "file" {
        field("size", ours.size.to_string(), known.s.to_string());
    }
    field(
        "content",
        format!("{:?}", ours.sha256),
        format!("{:?}", known.h),
    );
    let link = ours.link.as_deref().map(escaped);
    field("target", format!("{link:?}"), format!("{:?}", known.l));
    field(
        "xattrs",
        format!("{:?}", ours.xattrs),
        format!("{:?}", known.x),
    );
    if let (Some(theirs), Some((major, minor))) = (known.r, ours.device) {
        let (major, minor) = (u64::from(major), u64::from(minor));
        let ours = (major & 0xfff) << 8 | (minor & 0xff) | (minor & !0xff) << 12;
        field("device", ours.to_string(), theirs.to_string());
    }
}

fn listed_by_path(list: Vec<Listed>) -> Option<BTreeMap<String, Listed>> {
    list.into_iter()
        .map(|file| Some((escaped(&printed(&file.path)?), file)))
        .collect()
}

/// The bytes that `lcow` prints so: `\\`, `\n`, `\t`, `\r`, `\u{…}`, `\xNN`, all else as it is.
fn printed(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(rest.get(..at)?.as_bytes());
        rest = rest.get(at + 1..)?;
        let escape = rest.chars().next()?;
        rest = rest.get(1..)?;
        match escape {
            '\\' => bytes.push(b'\\'),
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            'r' => bytes.push(b'\r'),
            'x' => {
                bytes.push(u8::from_str_radix(rest.get(..2)?, 16).ok()?);
                rest = rest.get(2..)?;
            }
            'u' => {
                let (digits, after) = rest.strip_prefix('{')?.split_once('}')?;
                let c = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = after;
            }
            _ => return None,
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

/// The manifests have paths in ASCII, the rest as Python's `backslashreplace` writes it.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match u32::from(c) {
                0..=0x7F => text.push(c),
                n @ 0x80..=0xFF => text.push_str(&format!("\\x{n:02x}")),
                n @ 0x100..=0xFFFF => text.push_str(&format!("\\u{n:04x}")),
                n => text.push_str(&format!("\\U{n:08x}")),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\udc{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_in_any_field_is_seen() {
        let known: Known = serde_json::from_str(
            r#"{"p": "a", "m": "0o100644", "u": 1, "g": 2, "s": 3, "t": 4, "n": 1, "h": "abc", "x": {"user.a": "62"}}"#,
        )
        .unwrap();
        let listed = |size| Listed {
            path: "a".to_owned(),
            file_type: "file".to_owned(),
            mode: "0644".to_owned(),
            links: 1,
            uid: 1,
            gid: 2,
            size,
        };
        let entry = Entry {
            mode: 0o100_644,
            uid: 1,
            gid: 2,
            size: 3,
            mtime: (4, 0),
            xattrs: BTreeMap::from([("user.a".to_owned(), "62".to_owned())]),
            sha256: Some("abc".to_owned()),
            links: 1,
            ..Entry::default()
        };
        let differences = |entry: Option<&Entry>, listed| {
            let mut differ = Vec::new();
            compare(&known, entry, listed, &mut differ);
            differ.len()
        };
        assert_eq!(differences(Some(&entry), Some(listed(3))), 0);
        assert_eq!(differences(Some(&entry), Some(listed(4))), 1);
        assert_eq!(differences(Some(&entry), None), 1);
        assert_eq!(differences(None, Some(listed(3))), 1);
        let changes: [fn(&mut Entry); 7] = [
            |m| m.mode ^= 1,
            |m| m.uid += 1,
            |m| m.gid += 1,
            |m| m.size += 1,
            |m| m.mtime.0 += 1,
            |m| m.xattrs.clear(),
            |m| m.sha256 = None,
        ];
        for change in changes {
            let mut changed = entry.clone();
            change(&mut changed);
            assert_eq!(differences(Some(&changed), Some(listed(3))), 1);
        }
    }

    #[test]
    fn printed_paths_are_read_back() {
        let bytes = printed("a\\\\b\\n\\x01\\u{1b}\u{e9}").unwrap();
        assert_eq!(bytes, b"a\\b\n\x01\x1b\xc3\xa9");
        assert_eq!(escaped(&bytes), "a\\b\n\x01\x1b\\xe9");
        assert_eq!(printed("\\q"), None);
    }
}
