//! What overlayfs keeps on files of its layers (`fs/overlayfs/overlayfs.h`, `enum ovl_xattr`; `fs/overlayfs/xattrs.c`).

use lcow_ext4::reader::Inode;
use lcow_ext4::{Device, FileType, Xattr};

use crate::whiteout::{OPAQUE_VALUE, OPAQUE_XATTR};

/// The prefix of all attributes that are overlayfs's own.
const PRIVATE: &[u8] = b"trusted.overlay.";
/// The prefix under which a nested overlay's own attributes are kept.
const ESCAPED: &[u8] = b"trusted.overlay.overlay.";
const WHITEOUT: &[u8] = b"trusted.overlay.whiteout";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
const METACOPY: &[u8] = b"trusted.overlay.metacopy";
/// The value of [`OPAQUE_XATTR`] that announces whiteouts in attribute form.
const XWHITEOUTS: &[u8] = b"x";

/// The attributes that change what a union shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Hides what farther layers have in this directory.
    pub(crate) opaque: bool,
    /// Holds whiteouts in attribute form.
    pub(crate) xwhiteouts: bool,
    /// Is one, if it is an empty regular file.
    pub(crate) whiteout: bool,
    /// Is merged with another name.
    pub(crate) redirect: bool,
    /// Has its data elsewhere.
    pub(crate) metacopy: bool,
}

impl Marks {
    pub(crate) fn of(xattrs: &[Xattr]) -> Self {
        let mut marks = Self::default();
        for xattr in xattrs {
            match &*xattr.name {
                // Both values count only alone: `yes` is not `y` (`ovl_get_dir_xattr_val`).
                OPAQUE_XATTR => {
                    marks.opaque = xattr.value == OPAQUE_VALUE;
                    marks.xwhiteouts = xattr.value == XWHITEOUTS;
                }
                WHITEOUT => marks.whiteout = true,
                REDIRECT => marks.redirect = true,
                METACOPY => marks.metacopy = true,
                _ => {}
            }
        }
        marks
    }

    /// The feature that a file of this type needs, and that a union by name does not have.
    pub(crate) fn unsupported(&self, file_type: FileType) -> Option<&'static str> {
        match file_type {
            FileType::Directory if self.redirect => Some("redirect_dir"),
            FileType::Regular if self.metacopy => Some("metacopy"),
            _ => None,
        }
    }
}

/// Whether this is the device that stands for a deleted name (`IS_WHITEOUT`, include/linux/fs.h).
pub(crate) fn is_whiteout_device(inode: &Inode) -> bool {
    inode.file_type == FileType::CharDevice
        && inode.device().unwrap_or_default() == Device::default()
}

/// Whether this may be a whiteout in attribute form, going by the inode alone.
pub(crate) fn may_be_xwhiteout(inode: &Inode) -> bool {
    inode.file_type == FileType::Regular && inode.size == 0
}

/// A file's attributes as the union shows them: without overlayfs's own, a nested overlay's under their own names.
pub(crate) fn seen(raw: Vec<Xattr>) -> Vec<Xattr> {
    let mut xattrs: Vec<Xattr> = raw
        .into_iter()
        .filter_map(|mut xattr| {
            if let Some(rest) = xattr.name.strip_prefix(ESCAPED) {
                xattr.name = [PRIVATE, rest].concat();
                Some(xattr)
            } else if xattr.name.starts_with(PRIVATE) {
                None
            } else {
                Some(xattr)
            }
        })
        .collect();
    xattrs.sort_unstable();
    xattrs
}

/// A file's attributes as an image layer has them: overlayfs's own are said by other means, a nested overlay's are kept as the
/// layer's disk will need them. `raw` says whether they are a layer's, rather than [seen] in a union.
pub(crate) fn for_layer(mut xattrs: Vec<Xattr>, raw: bool) -> Vec<Xattr> {
    if raw {
        xattrs.retain(|x| !x.name.starts_with(PRIVATE) || x.name.starts_with(ESCAPED));
    } else {
        for xattr in &mut xattrs {
            if let Some(rest) = xattr.name.strip_prefix(PRIVATE) {
                xattr.name = [ESCAPED, rest].concat();
            }
        }
    }
    xattrs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &str) -> Xattr {
        Xattr {
            name: name.into(),
            value: value.into(),
        }
    }

    #[test]
    fn only_the_exact_values_count() {
        for (value, opaque, xwhiteouts) in [
            ("y", true, false),
            ("x", false, true),
            ("yes", false, false),
            ("", false, false),
            ("Y", false, false),
        ] {
            let marks = Marks::of(&[xattr("trusted.overlay.opaque", value)]);
            assert_eq!(
                (marks.opaque, marks.xwhiteouts),
                (opaque, xwhiteouts),
                "{value}"
            );
        }
    }

    #[test]
    fn private_attributes_are_hidden_and_nested_ones_are_not() {
        let raw = vec![
            xattr("security.x", "1"),
            xattr("trusted.overlay.opaque", "y"),
            xattr("trusted.overlay.overlay.opaque", "y"),
            xattr("trusted.other", "2"),
            xattr("user.overlay.opaque", "y"),
        ];
        let names = [
            "security.x",
            "trusted.other",
            "trusted.overlay.opaque",
            "user.overlay.opaque",
        ];
        let seen: Vec<_> = seen(raw).into_iter().map(|x| x.name).collect();
        assert_eq!(seen, names.map(|n| n.as_bytes().to_vec()));
    }
}
