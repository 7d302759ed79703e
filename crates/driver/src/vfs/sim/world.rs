//! What a simulated file system holds.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::Op;

/// Bytes that come and go together.
const PAGE: u64 = 4096;
/// The node of `/`.
const ROOT: u64 = 1;

/// The files and directories of a file system. Cheap to copy: copies share what is the same in both.
#[derive(Debug, Clone)]
pub struct World {
    /// By inode number. Some have no name any more, or never had one that lasted.
    nodes: BTreeMap<u64, Arc<Node>>,
}

#[derive(Debug, Clone)]
enum Node {
    Directory(BTreeMap<OsString, u64>),
    File(Contents),
}

/// The bytes of a file.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    pub(super) len: u64,
    /// By number; what is not there is a hole.
    pages: BTreeMap<u64, Arc<Page>>,
    digest: OnceLock<u64>,
}

#[derive(Debug, Clone)]
struct Page {
    bytes: Box<[u8]>,
    digest: OnceLock<Option<u64>>,
}

impl Page {
    /// `None` for zeros, which are the same as a hole.
    fn digest(&self) -> Option<u64> {
        *self.digest.get_or_init(|| {
            let zeros = self.bytes.iter().all(|&b| b == 0);
            (!zeros).then(|| hash(&self.bytes))
        })
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Contents {
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let n = left.min(buf.len());
        for (number, inside, place) in pieces(offset, n) {
            match self.pages.get(&number) {
                Some(page) => buf[place].copy_from_slice(&page.bytes[inside]),
                None => buf[place].fill(0),
            }
        }
        n
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.digest = OnceLock::new();
        for (number, inside, place) in pieces(offset, bytes.len()) {
            let page = self.pages.entry(number).or_insert_with(|| {
                Arc::new(Page {
                    bytes: vec![0; PAGE as usize].into(),
                    digest: OnceLock::new(),
                })
            });
            let page = Arc::make_mut(page);
            page.digest = OnceLock::new();
            page.bytes[inside].copy_from_slice(&bytes[place]);
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
        }
        self.digest = OnceLock::new();
        self.len = len;
    }

    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        self.digest = OnceLock::new();
        let end = offset.saturating_add(len).min(self.len);
        if offset >= end {
            return;
        }
        let touched: Vec<u64> = self
            .pages
            .range(offset / PAGE..end.div_ceil(PAGE))
            .map(|(&n, _)| n)
            .collect();
        for number in touched {
            let from = offset.saturating_sub(number * PAGE).min(PAGE) as usize;
            let to = (end - number * PAGE).min(PAGE) as usize;
            if to - from == PAGE as usize {
                self.pages.remove(&number);
            } else if let Some(page) = self.pages.get_mut(&number) {
                let page = Arc::make_mut(page);
                page.digest = OnceLock::new();
                page.bytes[from..to].fill(0);
            }
        }
    }

    pub(super) fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let mut found: Option<Range<u64>> = None;
        for &number in self.pages.range(offset / PAGE..).map(|(n, _)| n) {
            let (start, end) = (number * PAGE, (number + 1) * PAGE);
            match &mut found {
                None => found = Some(start.max(offset)..end),
                Some(range) if range.end == start => range.end = end,
                Some(_) => break,
            }
        }
        found
            .map(|range| range.start..range.end.min(self.len))
            .filter(|range| !range.is_empty())
    }

    pub(super) fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    fn digest(&self) -> u64 {
        *self.digest.get_or_init(|| {
            let pages: Vec<_> = self
                .pages
                .iter()
                .filter_map(|(&n, page)| Some((n, page.digest()?)))
                .collect();
            hash((self.len, pages))
        })
    }
}

/// The pieces of so many bytes at an offset by page: its number, the range in it, and the range in the caller's buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let start = (at % PAGE) as usize;
        let n = (PAGE as usize - start).min(len - done);
        let piece = (at / PAGE, start..start + n, done..done + n);
        done += n;
        (n > 0).then_some(piece)
    })
}

impl Default for World {
    fn default() -> Self {
        let root = Arc::new(Node::Directory(BTreeMap::new()));
        Self {
            nodes: [(ROOT, root)].into(),
        }
    }
}

impl World {
    /// Everything under a path, with the path from there: `None` for a directory, and what tells a file's bytes from others'.
    #[must_use]
    pub fn tree(&self, path: &Path) -> BTreeMap<PathBuf, Option<u64>> {
        let mut tree = BTreeMap::new();
        if let Ok(node) = self.find(path) {
            self.walk(node, PathBuf::new(), &mut tree);
        }
        tree
    }

    fn walk(&self, node: u64, path: PathBuf, tree: &mut BTreeMap<PathBuf, Option<u64>>) {
        match self.nodes.get(&node).map(|n| &**n) {
            Some(Node::Directory(entries)) => {
                for (name, &node) in entries {
                    self.walk(node, path.join(name), tree);
                }
                tree.insert(path, None);
            }
            Some(Node::File(contents)) => drop(tree.insert(path, Some(contents.digest()))),
            None => {}
        }
    }

    /// What tells this file system from others, as far as it can be seen.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest_of(ROOT)
    }

    fn digest_of(&self, node: u64) -> u64 {
        match self.nodes.get(&node).map(|n| &**n) {
            Some(Node::Directory(entries)) => {
                let mut hasher = DefaultHasher::new();
                for (name, &node) in entries {
                    name.hash(&mut hasher);
                    self.digest_of(node).hash(&mut hasher);
                }
                hasher.finish()
            }
            Some(Node::File(contents)) => contents.digest() ^ 1,
            None => 0,
        }
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => {
                    let entries = self.entries(at)?;
                    at = *entries.get(name).ok_or(Errno::NOENT)?;
                }
                _ => return Err(Errno::INVAL.into()),
            }
        }
        Ok(at)
    }

    /// The directory that a path's last component is in, and that component.
    pub(super) fn parent<'a>(&self, path: &'a Path) -> io::Result<(u64, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let directory = self.find(path.parent().unwrap_or(Path::new("/")))?;
        self.entries(directory)?;
        Ok((directory, name))
    }

    pub(super) fn entries(&self, node: u64) -> io::Result<&BTreeMap<OsString, u64>> {
        match self.nodes.get(&node).map(|n| &**n) {
            Some(Node::Directory(entries)) => Ok(entries),
            Some(Node::File(_)) => Err(Errno::NOTDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    pub(super) fn entry(&self, directory: u64, name: &OsStr) -> io::Result<Option<u64>> {
        Ok(self.entries(directory)?.get(name).copied())
    }

    pub(super) fn contents(&self, node: u64) -> io::Result<&Contents> {
        match self.nodes.get(&node).map(|n| &**n) {
            Some(Node::File(contents)) => Ok(contents),
            _ => Err(Errno::ISDIR.into()),
        }
    }

    /// How many names a file has.
    pub(super) fn links(&self, node: u64) -> u64 {
        let mut links = 0;
        let mut todo = vec![ROOT];
        while let Some(directory) = todo.pop() {
            for &entry in self.entries(directory).into_iter().flat_map(|e| e.values()) {
                if entry == node {
                    links += 1;
                } else if self.is_dir(entry) {
                    todo.push(entry);
                }
            }
        }
        links
    }

    pub(super) fn is_dir(&self, node: u64) -> bool {
        self.entries(node).is_ok()
    }

    /// The largest number of a node.
    pub(super) fn last(&self) -> u64 {
        self.nodes.keys().next_back().copied().unwrap_or(ROOT)
    }

    /// Gives a name in a directory, or takes it away.
    fn put(&mut self, directory: u64, name: &OsStr, node: Option<u64>) {
        if let Some(directory) = self.nodes.get_mut(&directory)
            && let Node::Directory(entries) = Arc::make_mut(directory)
        {
            match node {
                Some(node) => entries.insert(name.to_owned(), node),
                None => entries.remove(name),
            };
        }
    }

    pub(super) fn file(&mut self, node: u64, change: impl FnOnce(&mut Contents)) {
        if let Some(node) = self.nodes.get_mut(&node)
            && let Node::File(contents) = Arc::make_mut(node)
        {
            change(contents);
        }
    }

    /// Does to this file system what was done to another, as far as that is still possible: after a crash, not all that
    /// came before is there.
    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::Make { node, directory } => {
                let new = if *directory {
                    Node::Directory(BTreeMap::new())
                } else {
                    Node::File(Contents::default())
                };
                self.nodes.insert(*node, Arc::new(new));
            }
            Op::Link {
                directory,
                name,
                node,
            } => self.put(*directory, name, Some(*node)),
            Op::Unlink { directory, name } => self.put(*directory, name, None),
            Op::Rename { from, to, node } => {
                self.put(from.0, &from.1, None);
                self.put(to.0, &to.1, Some(*node));
            }
            Op::Write { node, at, bytes } => self.file(*node, |c| c.write(*at, bytes)),
            Op::SetLen { node, len } => self.file(*node, |c| c.set_len(*len)),
            Op::Zero { node, at, len } => self.file(*node, |c| c.zero(*at, *len)),
            Op::Share { node, contents } => self.file(*node, |c| *c = (**contents).clone()),
            Op::Sync { .. } => {}
        }
    }
}
