//! Names in a tar as paths below the layer's root.

use super::Refusal;
use crate::EntryName;

/// The components of a name: absolute names start at the root, `.` and empty components go, `..` takes the one before it back.
///
/// What `..` takes back is never looked at on the disk: no link can bend it.
pub(super) fn components(name: &[u8]) -> Result<Vec<&[u8]>, Climbs> {
    let mut components = Vec::new();
    for component in name.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop().ok_or(Climbs)?;
            }
            _ => components.push(component),
        }
    }
    Ok(components)
}

/// `..` above the root.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Climbs;

/// A name cut into the directory's part and the last component, if neither needs more than that to be understood: no
/// `.`, `..` or empty component at the end.
pub(super) fn split_plain(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    let (dir, last) = match name.iter().rposition(|&b| b == b'/') {
        Some(slash) => name.split_at(slash),
        None => (&[][..], name),
    };
    let last = last.strip_prefix(b"/").unwrap_or(last);
    (!matches!(last, b"" | b"." | b"..")).then_some((dir, last))
}

pub(super) fn check_component(component: &[u8]) -> Result<(), Refusal> {
    if component.len() > 255 {
        return Err(Refusal::NameTooLong(component.len()));
    }
    if component.contains(&0) {
        return Err(Refusal::ZeroByte);
    }
    Ok(())
}

/// The components up to and including the one at `depth`, for messages.
pub(super) fn join(components: &[&[u8]], depth: usize) -> EntryName {
    let shown = components.get(..=depth).unwrap_or(components);
    EntryName(shown.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_components() {
        for (name, expected) in [
            ("a/b", Ok(vec!["a", "b"])),
            ("./a//b/", Ok(vec!["a", "b"])),
            ("/a", Ok(vec!["a"])),
            ("a/../b", Ok(vec!["b"])),
            ("", Ok(vec![])),
            ("/", Ok(vec![])),
            ("a/..", Ok(vec![])),
            ("..", Err(Climbs)),
            ("/..", Err(Climbs)),
            ("a/../../b", Err(Climbs)),
            ("...", Ok(vec!["..."])),
        ] {
            let expected = expected.map(|c| c.into_iter().map(str::as_bytes).collect::<Vec<_>>());
            assert_eq!(components(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn plain_names_are_cut_in_two() {
        for (name, expected) in [
            ("a", Some(("", "a"))),
            ("a/b", Some(("a", "b"))),
            ("./a/b/", Some(("./a", "b"))),
            ("a/..", None),
            ("a/.", None),
            ("a//", None),
            ("", None),
            ("/", None),
            ("./", None),
        ] {
            let expected = expected.map(|(d, l)| (d.as_bytes(), l.as_bytes()));
            assert_eq!(split_plain(name.as_bytes()), expected, "{name}");
        }
    }
}
