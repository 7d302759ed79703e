//! POSIX ACLs: the form `getxattr` gives (version 2, 8 bytes an entry) and the one ext4 keeps (version 1, 4 bytes for
//! entries that need no id). Kernel: `fs/posix_acl.c`, `fs/ext4/acl.c`.

const SYSCALL_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;
/// `ACL_UNDEFINED_ID`, what entries without an id have in the syscall form.
const NO_ID: u32 = !0;
const USER: u16 = 2;
const GROUP: u16 = 8;

fn has_id(tag: u16) -> Option<bool> {
    match tag {
        USER | GROUP => Some(true),
        1 | 4 | 0x10 | 0x20 => Some(false),
        _ => None,
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

/// The on-disk form of an ACL in syscall form. `None`: it is not one.
#[must_use]
pub fn to_disk(mut value: &[u8]) -> Option<Vec<u8>> {
    if u32::from_le_bytes(take(&mut value)?) != SYSCALL_VERSION {
        return None;
    }
    let mut out = DISK_VERSION.to_le_bytes().to_vec();
    while !value.is_empty() {
        let tag = take::<2>(&mut value)?;
        let permissions = take::<2>(&mut value)?;
        let id = take::<4>(&mut value)?;
        out.extend(tag);
        out.extend(permissions);
        if has_id(u16::from_le_bytes(tag))? {
            out.extend(id);
        }
    }
    Some(out)
}

/// The syscall form of an ACL as it lies on disk. `None`: it is not one.
#[must_use]
pub fn from_disk(mut value: &[u8]) -> Option<Vec<u8>> {
    if u32::from_le_bytes(take(&mut value)?) != DISK_VERSION {
        return None;
    }
    let mut out = SYSCALL_VERSION.to_le_bytes().to_vec();
    while !value.is_empty() {
        let tag = take::<2>(&mut value)?;
        out.extend(tag);
        out.extend(take::<2>(&mut value)?);
        if has_id(u16::from_le_bytes(tag))? {
            out.extend(take::<4>(&mut value)?);
        } else {
            out.extend(NO_ID.to_le_bytes());
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_goes_both_ways() {
        // u::rw-, u:1000:r--, g::r--, m::r--, o::---
        let syscall = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255,
            255, 255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
        ];
        let disk = [
            1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 16, 0, 4, 0, 32, 0, 0, 0,
        ];
        assert_eq!(to_disk(&syscall).as_deref(), Some(&disk[..]));
        assert_eq!(from_disk(&disk).as_deref(), Some(&syscall[..]));
    }

    #[test]
    fn what_is_no_acl_is_refused() {
        for bad in [
            &b""[..],
            &[1, 0, 0, 0],
            &[2, 0, 0, 0, 1],
            &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(to_disk(bad), None, "{bad:?}");
        }
        assert_eq!(from_disk(&[2, 0, 0, 0]), None);
        assert_eq!(from_disk(&[1, 0, 0, 0, 2, 0, 0, 0]), None);
    }
}
