//! Who a process runs as: `user[:group]` resolved in the container's own `/etc/passwd` (passwd(5)) and `/etc/group`
//! (group(5)), as the OCI image configuration's `User` field has it.

use lcow_protocol::{ErrorKind, Identity, RemoteError};
use rustix::process::{Gid, Uid};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

/// Most bytes read of either file: the container wrote them.
const FILE_LIMIT: u64 = 4 << 20;

/// A process's credentials and home.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// Supplementary groups, sorted.
    pub(super) groups: Vec<Gid>,
    pub(super) home: OsString,
}

/// Lines of a colon-separated file, as fields.
fn records(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .map(|line| line.split(|byte| *byte == b':').collect())
}

fn number(field: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(field).ok()?;
    // `u32::from_str` takes a sign; the files and the image format don't. The last number means "no change" to the kernel.
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|n| *n != u32::MAX)
}

fn missing(what: &str, name: &str) -> RemoteError {
    RemoteError::new(ErrorKind::NoSuchUser, format!("look up {what}")).because(format!("{name:?}"))
}

/// Resolves `wanted` with the text of the two files.
fn resolve_in(wanted: &str, passwd: &[u8], group: &[u8]) -> Result<User, RemoteError> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, (!group.is_empty()).then_some(group)),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    // A name first: a user may be called "1000" (useradd refuses it, files don't).
    let entries: Vec<Vec<&[u8]>> = records(passwd).filter(|fields| fields.len() >= 4).collect();
    let uid_number = number(user.as_bytes());
    let entry = entries
        .iter()
        .find(|fields| fields[0] == user.as_bytes())
        .or_else(|| {
            entries
                .iter()
                .find(|fields| uid_number.is_some() && number(fields[2]) == uid_number)
        });
    let uid = match entry {
        Some(fields) => number(fields[2]).ok_or_else(|| missing("user", user))?,
        None => uid_number.ok_or_else(|| missing("user", user))?,
    };
    let primary = entry.and_then(|fields| number(fields[3])).unwrap_or(0);
    let home = entry
        .and_then(|fields| fields.get(5))
        .filter(|home| !home.is_empty())
        .map_or_else(
            || OsString::from("/"),
            |home| OsString::from_vec(home.to_vec()),
        );
    let groups: Vec<Vec<&[u8]>> = records(group).filter(|fields| fields.len() >= 3).collect();
    let (gid, supplementary) = match wanted_group {
        Some(name) => {
            let gid = groups
                .iter()
                .find(|fields| fields[0] == name.as_bytes())
                .and_then(|fields| number(fields[2]))
                .or_else(|| number(name.as_bytes()))
                .ok_or_else(|| missing("group", name))?;
            // A group that was asked for is the only one, as other runtimes have it.
            (gid, BTreeSet::new())
        }
        None => {
            let name = entry.map(|fields| fields[0]);
            let member = |fields: &&Vec<&[u8]>| {
                name.is_some_and(|name| {
                    fields
                        .get(3)
                        .is_some_and(|list| list.split(|b| *b == b',').any(|m| m == name))
                })
            };
            (
                primary,
                groups
                    .iter()
                    .filter(member)
                    .filter_map(|fields| number(fields[2]))
                    .collect(),
            )
        }
    };
    Ok(User {
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        groups: supplementary.into_iter().map(Gid::from_raw).collect(),
        home,
    })
}

/// The file's bytes; none if it does not exist or can't be read as one.
fn read(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Not a FIFO that never ends an open, nor a device: the image chose what is there.
    let file = std::fs::metadata(path)
        .and_then(|metadata| {
            if metadata.is_file() {
                std::fs::File::open(path)
            } else {
                Err(std::io::ErrorKind::NotFound.into())
            }
        })
        .and_then(|file| file.take(FILE_LIMIT).read_to_end(&mut bytes));
    match file {
        Ok(_) => bytes,
        Err(_) => Vec::new(),
    }
}

/// Resolves `identity` in the root directory the caller is in.
pub(super) fn resolve(identity: &Identity) -> Result<User, RemoteError> {
    match identity {
        Identity::Ids { uid, gid, groups } => {
            if [uid, gid]
                .into_iter()
                .chain(groups)
                .any(|id| *id == u32::MAX)
            {
                return Err(missing("user", "4294967295"));
            }
            Ok(User {
                uid: Uid::from_raw(*uid),
                gid: Gid::from_raw(*gid),
                groups: groups.iter().copied().map(Gid::from_raw).collect(),
                home: OsString::from(if *uid == 0 { "/root" } else { "/" }),
            })
        }
        Identity::Named(wanted) => resolve_in(wanted, &read("/etc/passwd"), &read("/etc/group")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\napp:x:1000:100:App:/home/app:/bin/sh\n77:x:5:6::/five:\n";
    const GROUP: &[u8] =
        b"root:x:0:\nusers:x:100:\nwheel:x:10:root,app\nvideo:x:44:app\nbad:x:zz:app\n";

    fn show(wanted: &str) -> Result<(u32, u32, Vec<u32>, String), ErrorKind> {
        resolve_in(wanted, PASSWD, GROUP)
            .map_err(|error| error.kind)
            .map(|user| {
                (
                    user.uid.as_raw(),
                    user.gid.as_raw(),
                    user.groups.iter().map(|group| group.as_raw()).collect(),
                    user.home.into_string().unwrap(),
                )
            })
    }

    #[test]
    fn names_and_numbers_resolve_as_the_image_format_says() {
        type Expected = Result<(u32, u32, Vec<u32>, &'static str), ErrorKind>;
        let cases: [(&str, Expected); 12] = [
            ("", Ok((0, 0, vec![10], "/root"))),
            ("root", Ok((0, 0, vec![10], "/root"))),
            ("app", Ok((1000, 100, vec![10, 44], "/home/app"))),
            ("1000", Ok((1000, 100, vec![10, 44], "/home/app"))),
            ("app:wheel", Ok((1000, 10, vec![], "/home/app"))),
            ("app:4242", Ok((1000, 4242, vec![], "/home/app"))),
            ("4242", Ok((4242, 0, vec![], "/"))),
            (":wheel", Ok((0, 10, vec![], "/root"))),
            ("77", Ok((5, 6, vec![], "/five"))),
            ("nobody-here", Err(ErrorKind::NoSuchUser)),
            ("app:nothing", Err(ErrorKind::NoSuchUser)),
            ("+5", Err(ErrorKind::NoSuchUser)),
        ];
        for (wanted, expected) in cases {
            let expected =
                expected.map(|(uid, gid, groups, home)| (uid, gid, groups, home.to_owned()));
            assert_eq!(show(wanted), expected, "{wanted:?}");
        }
    }

    #[test]
    fn without_files_only_numbers_resolve() {
        let user = resolve_in("12:34", b"", b"").unwrap();
        assert_eq!((user.uid.as_raw(), user.gid.as_raw()), (12, 34));
        assert_eq!(
            resolve_in("app", b"", b"").unwrap_err().kind,
            ErrorKind::NoSuchUser
        );
        assert_eq!(
            resolve_in("4294967295", b"", b"").unwrap_err().kind,
            ErrorKind::NoSuchUser
        );
    }
}
