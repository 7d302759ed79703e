use lcow_ext4::FileType;

use super::{Node, Tree, TreeError, join};

/// The kernel's limit on symbolic links in one resolution (`MAXSYMLINKS`, include/linux/namei.h).
const MAX_LINKS: u32 = 40;
/// The longest name (`NAME_MAX`), in bytes.
pub(crate) const MAX_NAME: usize = 255;

/// Whether a symbolic link at the end of a path is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// As `stat` does.
    Yes,
    /// As `lstat` does. A trailing slash still follows.
    No,
}

/// What a path led to.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The path without symbolic links, `.` and `..`; empty for the root.
    pub path: Vec<u8>,
    /// The file there.
    pub node: Node,
}

pub(super) fn resolve<T: Tree + ?Sized>(
    tree: &T,
    path: &[u8],
    follow: Follow,
) -> Result<Resolved, TreeError> {
    // The way from the root to here, by name, so that `..` goes where the kernel goes.
    let mut way: Vec<(Vec<u8>, Node)> = Vec::new();
    let mut todo = Vec::new();
    push_components(&mut todo, path);
    let mut links: u32 = 0;
    while let Some(name) = todo.pop() {
        let here = way.last().map_or_else(|| tree.root(), |(_, node)| node);
        if here.file_type() != FileType::Directory {
            return Err(TreeError::NotADirectory {
                path: path_of(&way),
            });
        }
        match &*name {
            b"." => continue,
            b".." => {
                way.pop();
                continue;
            }
            _ if name.len() > MAX_NAME => return Err(TreeError::NameTooLong { name }),
            _ => {}
        }
        let Some(node) = tree.lookup(here, &name)? else {
            return Err(TreeError::NotFound {
                path: join(&path_of(&way), &name),
            });
        };
        let follows = !todo.is_empty() || follow == Follow::Yes;
        if node.file_type() != FileType::Symlink || !follows {
            way.push((name, node));
            continue;
        }
        links = links.saturating_add(1);
        if links > MAX_LINKS {
            return Err(TreeError::Loop {
                path: join(&path_of(&way), &name),
            });
        }
        let target = tree.read_link(&node)?;
        match target.first() {
            None => {
                return Err(TreeError::NotFound {
                    path: join(&path_of(&way), &name),
                });
            }
            Some(b'/') => way.clear(),
            Some(_) => {}
        }
        push_components(&mut todo, &target);
    }
    let path = path_of(&way);
    let node = way
        .pop()
        .map_or_else(|| tree.root().clone(), |(_, node)| node);
    Ok(Resolved { path, node })
}

/// Puts a path's components onto a stack, the first on top. A trailing slash counts as `/.`: it asks for a directory.
fn push_components(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    if path.ends_with(b"/") {
        todo.push(b".".to_vec());
    }
    let components = path.split(|&b| b == b'/').filter(|c| !c.is_empty());
    todo.extend(components.rev().map(<[u8]>::to_vec));
}

fn path_of(way: &[(Vec<u8>, Node)]) -> Vec<u8> {
    let names: Vec<&[u8]> = way.iter().map(|(name, _)| &**name).collect();
    names.join(&b'/')
}
