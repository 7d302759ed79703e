//! Walking a tree in the order of a tar's names.
//!
//! Sorted by the bytes of the whole names, directories with a slash at their end, as a tar has them: `a-b`, `a/`, `a/b`. So all that is below
//! a directory follows it at once, which GNU tar relies on: it gives a directory its times when the first entry outside it comes.

use std::cmp::Ordering;
use std::collections::HashSet;

use lcow_ext4::FileType;
use lcow_ext4::reader::Filesystem;

use super::{Entry, FileIdentity, MAX_PATH, Node, Tree, TreeError, join};

/// What to do next in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Come by the name with this index.
    Visit(usize),
    /// Go below the directory with this index.
    Descend(usize),
}

/// The steps through a directory, whose names are given with whether they are directories.
pub(crate) fn steps<'a>(names: impl Iterator<Item = (&'a [u8], bool)>) -> Vec<Step> {
    let mut keyed: Vec<(&[u8], bool, usize)> =
        names.enumerate().map(|(i, (n, d))| (n, d, i)).collect();
    keyed.sort_unstable_by(|a, b| order(a.0, a.1, b.0, b.1));
    let steps = keyed.into_iter().flat_map(|(_, directory, i)| {
        let descend = directory.then_some(Step::Descend(i));
        std::iter::once(Step::Visit(i)).chain(descend)
    });
    steps.collect()
}

/// Compares two names, each with a slash behind it or not.
fn order(a: &[u8], a_slash: bool, b: &[u8], b_slash: bool) -> Ordering {
    let slash = |slash: bool| slash.then_some(&b'/');
    a.iter()
        .chain(slash(a_slash))
        .cmp(b.iter().chain(slash(b_slash)))
}

/// Directories seen, to tell a damaged filesystem whose directories form a loop or a diamond.
#[derive(Debug, Default)]
pub(crate) struct SeenDirectories(HashSet<FileIdentity>);

impl SeenDirectories {
    pub(crate) fn enter(&mut self, node: &Node, path: &[u8]) -> Result<(), TreeError> {
        let at = node.identity();
        if !self.0.insert(at) {
            let path = path.to_vec();
            return Err(TreeError::DirectoryTwice { at, path });
        }
        Ok(())
    }
}

/// `dir/name`, if that is not too long to go on with.
pub(crate) fn child_path(dir: &[u8], name: &[u8]) -> Result<Vec<u8>, TreeError> {
    let path = join(dir, name);
    if path.len() > MAX_PATH {
        return Err(TreeError::PathTooLong {
            len: path.len(),
            start: path[..64].to_vec(),
        });
    }
    Ok(path)
}

struct Frame {
    path: Vec<u8>,
    entries: Vec<Entry>,
    steps: std::vec::IntoIter<Step>,
}

/// Calls `visit` for every file of a tree in order, the root first, as the empty path. Where the tree is all of a filesystem, files in
/// use that it has no name for are *corrupt* at the end. Memory is one listing for each directory on the way down, a number
/// for each directory seen, and a bit for each inode.
pub(crate) fn walk<T, E>(
    tree: &T,
    mut visit: impl FnMut(&[u8], &Node) -> Result<(), E>,
) -> Result<(), E>
where
    T: Tree + ?Sized,
    E: From<TreeError>,
{
    let mut seen = SeenDirectories::default();
    let whole = tree.whole_filesystem();
    let mut census = whole.map(Filesystem::census);
    visit(b"", tree.root())?;
    let mut stack = vec![open(tree, tree.root(), Vec::new(), &mut seen)?];
    // A directory is entered right after it was visited: its inode need not be read again.
    let mut last: Option<(Vec<u8>, Node)> = None;
    while let Some(frame) = stack.last_mut() {
        match frame.steps.next() {
            None => {
                stack.pop();
            }
            Some(Step::Visit(i)) => {
                let entry = &frame.entries[i];
                let path = child_path(&frame.path, &entry.name)?;
                let node = tree.node(entry)?;
                if let Some(census) = &mut census {
                    census.see(node.identity().inode);
                }
                if tree.is_hidden(&node)? {
                    continue;
                }
                visit(&path, &node)?;
                last = Some((path, node));
            }
            Some(Step::Descend(i)) => {
                let entry = &frame.entries[i];
                let path = child_path(&frame.path, &entry.name)?;
                let node = match last.take() {
                    Some((visited, node)) if visited == path => node,
                    _ => tree.node(entry)?,
                };
                // A directory entry may lie about the type.
                if node.file_type() == FileType::Directory {
                    let frame = open(tree, &node, path, &mut seen)?;
                    stack.push(frame);
                }
            }
        }
    }
    if let (Some(filesystem), Some(census)) = (whole, census) {
        let on = TreeError::on(tree.root().identity().layer);
        filesystem.look_for_lost(&census).map_err(on)?;
    }
    Ok(())
}

fn open<T: Tree + ?Sized>(
    tree: &T,
    dir: &Node,
    path: Vec<u8>,
    seen: &mut SeenDirectories,
) -> Result<Frame, TreeError> {
    seen.enter(dir, &path)?;
    let entries = tree.read_dir(dir)?;
    let names = entries
        .iter()
        .map(|e| (&*e.name, e.file_type == FileType::Directory));
    let steps = steps(names).into_iter();
    Ok(Frame {
        path,
        steps,
        entries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_names_in_a_tar() {
        let names: [(&[u8], bool); 5] = [
            (b"a", true),
            (b"a-", false),
            (b"a.d", true),
            (b"a0", false),
            (b"ab", true),
        ];
        let mut walked = Vec::new();
        for step in steps(names.iter().copied()) {
            match step {
                Step::Visit(i) if names[i].1 => walked.push([names[i].0, b"/"].concat()),
                Step::Visit(i) => walked.push(names[i].0.to_vec()),
                Step::Descend(i) => {
                    walked.extend([&b"-"[..], b"x"].map(|below| join(names[i].0, below)));
                }
            }
        }
        assert!(walked.is_sorted());
        assert_eq!(walked.len(), 11);
    }
}
