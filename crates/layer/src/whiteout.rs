//! The two ways of saying "deleted" in a layer.
//!
//! In a tar (OCI image specification, layer.md, "Whiteouts") a file `.wh.NAME` deletes NAME of the layers below, and a file
//! `.wh..wh..opq` hides all that the layers below have in its directory. On a disk that overlayfs takes (kernel,
//! `Documentation/filesystems/overlayfs.rst`) the first is a character device 0:0 called NAME, the second
//! the attribute `trusted.overlay.opaque=y` on the directory.

/// What a tar name starts with to be a whiteout.
pub const PREFIX: &[u8] = b".wh.";
/// What names of aufs's own files start with; none of them is content.
pub const META_PREFIX: &[u8] = b".wh..wh.";
/// The name of the file that makes its directory opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// The attribute that makes a directory opaque on a disk.
pub const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";
/// The value of [`OPAQUE_XATTR`].
pub const OPAQUE_VALUE: &[u8] = b"y";

/// What the last component of a tar name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// A name like any other.
    Ordinary,
    /// Deletes this name.
    Whiteout(&'a [u8]),
    /// Makes the directory that it is in opaque.
    Opaque,
    /// A file of aufs's own, to drop.
    Dropped,
}

/// Reads a single path component as a layer's tar means it.
#[must_use]
pub fn meaning(component: &[u8]) -> Meaning<'_> {
    if component == OPAQUE {
        Meaning::Opaque
    } else if component.starts_with(META_PREFIX) {
        Meaning::Dropped
    } else if let Some(name) = component.strip_prefix(PREFIX) {
        Meaning::Whiteout(name)
    } else {
        Meaning::Ordinary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_told_apart() {
        for (name, expected) in [
            (&b"a"[..], Meaning::Ordinary),
            (b".wh", Meaning::Ordinary),
            (b"a.wh.b", Meaning::Ordinary),
            (b".wh.a", Meaning::Whiteout(b"a")),
            (b".wh.", Meaning::Whiteout(b"")),
            (b".wh..wh..opq", Meaning::Opaque),
            (b".wh..wh..opqx", Meaning::Dropped),
            (b".wh..wh.plnk", Meaning::Dropped),
            (b".wh..wh.", Meaning::Dropped),
        ] {
            assert_eq!(meaning(name), expected, "{}", String::from_utf8_lossy(name));
        }
    }
}
