//! POSIX ACLs in text, as star and GNU tar put them into `SCHILY.acl.access` and `SCHILY.acl.default`.

/// One entry of an ACL in the form `getxattr` gives (kernel, `include/uapi/linux/posix_acl_xattr.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct AclEntry {
    tag: u16,
    id: u32,
    permissions: u16,
}

const VERSION: u32 = 2;
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;
const NO_ID: u32 = u32::MAX;

/// The attribute's value for a text of entries `TAG:QUALIFIER:PERMISSIONS[:ID]` between commas or newlines.
///
/// Qualifiers must be numbers, or the number must follow (star writes it so): names mean nothing without the machine that
/// they are from. `Some(None)`: the ACL says nothing, or (unless it is a directory's `default`) no more than the mode does. `None`: not an ACL.
#[allow(clippy::option_option)]
pub(crate) fn parse(text: &[u8], default: bool) -> Option<Option<Vec<u8>>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for part in text.split([',', '\n']) {
        // `#effective:…` and other remarks.
        let part = part.split('#').next().unwrap_or_default().trim();
        if part.is_empty() {
            continue;
        }
        let mut fields = part.split(':');
        let (tag, qualifier, permissions) = (fields.next()?, fields.next()?, fields.next());
        let (qualifier, permissions) = match (tag, permissions) {
            (_, Some(permissions)) => (qualifier, permissions),
            // Solaris writes `mask:rwx` and `other:rwx`.
            ("m" | "mask" | "o" | "other", None) => ("", qualifier),
            _ => return None,
        };
        let mut id = || -> Option<u32> { fields.next().unwrap_or(qualifier).parse().ok() };
        let (tag, id) = match (tag, qualifier.is_empty()) {
            ("u" | "user", true) => (USER_OBJ, NO_ID),
            ("u" | "user", false) => (USER, id()?),
            ("g" | "group", true) => (GROUP_OBJ, NO_ID),
            ("g" | "group", false) => (GROUP, id()?),
            ("m" | "mask", true) => (MASK, NO_ID),
            ("o" | "other", true) => (OTHER, NO_ID),
            _ => return None,
        };
        let mut bits = 0;
        for c in permissions.chars() {
            bits |= match c {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                '-' => 0,
                _ => return None,
            };
        }
        entries.push(AclEntry {
            tag,
            id,
            permissions: bits,
        });
    }
    let minimal = entries
        .iter()
        .all(|e| matches!(e.tag, USER_OBJ | GROUP_OBJ | OTHER));
    if entries.is_empty() || (minimal && !default) {
        return Some(None);
    }
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        value.extend_from_slice(&entry.tag.to_le_bytes());
        value.extend_from_slice(&entry.permissions.to_le_bytes());
        value.extend_from_slice(&entry.id.to_le_bytes());
    }
    Some(Some(value))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn text_becomes_the_attribute() {
        let gnu = parse(
            b"user::rw-\nuser:1000:r--\ngroup::r--\nmask::r--\nother::---\n",
            false,
        );
        let value = gnu.unwrap().unwrap();
        assert_eq!(value.len(), 4 + 5 * 8);
        assert_eq!(value[..4], [2, 0, 0, 0]);
        assert_eq!(value[4..12], [1, 0, 6, 0, 255, 255, 255, 255]);
        assert_eq!(value[12..20], [2, 0, 4, 0, 0xe8, 3, 0, 0]);
        let star = parse(
            b"user::rw-,user:lisa:r--:1000,group::r--,mask:r--,other::---",
            false,
        );
        assert_eq!(star.unwrap().unwrap(), value);
        let minimal = b"user::rw-,group::r--,other::r--";
        assert_eq!(parse(minimal, false), Some(None));
        assert!(parse(minimal, true).unwrap().is_some());
        assert_eq!(parse(b"", true), Some(None));
        for bad in [
            &b"user:lisa:r--"[..],
            b"user",
            b"what::rwx",
            b"user::rwz",
            b"\xff",
        ] {
            assert_eq!(parse(bad, false), None, "{}", bad.escape_ascii());
        }
    }
}
