//! The walk through two unions at once.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use lcow_blockio::ReadAt;
use lcow_ext4::FileType;
use lcow_ext4::reader::FileData;

use super::links::{Name, Names};
use crate::export::{ExportError, is_lost_and_found};
use crate::tree::walk::{SeenDirectories, Step, child_path, steps};
use crate::tree::{FileIdentity, Node, Place, Spot, Tree, TreeError};
use crate::union::Union;

/// What is known of a path in both unions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Added,
    Modified,
    Deleted,
    /// In both and alike. Kept for directories with changes below, and while its links are not known.
    Same,
}

/// A path that matters.
#[derive(Debug)]
pub(crate) struct Item {
    /// The directory that it is in; the root is its own.
    parent: usize,
    name: Range<usize>,
    pub(crate) state: State,
    /// Where `after` has it; `None` if deleted.
    pub(crate) place: Option<Place>,
    /// It is a change, or has one below.
    used: bool,
    /// A directory that replaced another and keeps nothing of it.
    pub(crate) opaque: bool,
    /// Below such a directory.
    pub(crate) covered: bool,
}

/// The paths that matter, in the order of a tar's names. The first is the root.
#[derive(Debug, Default)]
pub(crate) struct Items {
    items: Vec<Item>,
    names: Vec<u8>,
}

impl Items {
    fn add(&mut self, parent: usize, name: &[u8], state: State, place: Option<Place>) -> usize {
        let start = self.names.len();
        self.names.extend(name);
        let index = self.items.len();
        self.items.push(Item {
            parent,
            name: start..self.names.len(),
            state,
            place,
            used: false,
            opaque: false,
            covered: false,
        });
        if state != State::Same {
            self.mark_used(index);
        }
        index
    }

    fn mark_used(&mut self, mut index: usize) {
        while !self.items[index].used {
            self.items[index].used = true;
            index = self.items[index].parent;
        }
    }

    pub(crate) fn state(&self, index: usize) -> State {
        self.items[index].state
    }

    pub(super) fn modify(&mut self, index: usize) {
        if self.items[index].state == State::Same {
            self.items[index].state = State::Modified;
            self.mark_used(index);
        }
    }

    /// The changes and the directories that lead to them, the root included if there is any.
    pub(crate) fn used(&self) -> impl Iterator<Item = (usize, &Item)> {
        self.items.iter().enumerate().filter(|(_, item)| item.used)
    }

    pub(crate) fn path(&self, mut index: usize) -> Vec<u8> {
        let mut names = Vec::new();
        // A parent comes before its children: this ends at the root.
        while index != 0 {
            let item = &self.items[index];
            names.push(&self.names[item.name.clone()]);
            index = item.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    pub(super) fn content_size<R: ReadAt>(&self, after: &Union<R>) -> Result<u64, ExportError> {
        let mut counted = HashSet::new();
        let mut total: u64 = 0;
        for (index, item) in self.used() {
            let (State::Added | State::Modified, Some(place)) = (item.state, &item.place) else {
                continue;
            };
            let node = after
                .open_place(place)
                .map_err(|e| reading(&self.path(index), e))?;
            let stat = node.stat();
            if stat.file_type == FileType::Regular
                && (stat.links == 1 || counted.insert(node.identity()))
            {
                total = total.saturating_add(stat.size);
            }
        }
        Ok(total)
    }
}

fn reading(path: &[u8], source: TreeError) -> ExportError {
    let path = path.into();
    ExportError::Tree { path, source }
}

/// Which filesystem and inode, told apart across both unions.
pub(super) type Key = (usize, lcow_ext4::InodeNumber);

struct Row {
    name: Vec<u8>,
    after: Option<Place>,
    before: Option<Place>,
    /// Whether there may be something to see below: `after` has a directory.
    directory: bool,
}

struct Frame {
    item: usize,
    path: Vec<u8>,
    rows: Vec<Row>,
    steps: std::vec::IntoIter<Step>,
    /// What a directory that was visited needs to be descended into, by row.
    pending: HashMap<usize, Below>,
    /// Both have this directory, but `after`'s is cut off from all that `before` has there by an opaque mark of its own.
    cut: bool,
    /// All that `after` has here is written by a diff.
    whole: bool,
    /// Something of `before` is gone here.
    deleted: bool,
    /// `before` has this directory too.
    both: bool,
}

struct Below {
    item: usize,
    after: Node,
    before: Option<Node>,
}

struct Comparison<'u, R> {
    after: &'u Union<R>,
    before: Option<&'u Union<R>>,
    /// For each layer of `before`, its number among all opened filesystems; those of `after` come first.
    filesystems: (Vec<usize>, Vec<usize>),
    items: Items,
    names: Names,
    seen: (SeenDirectories, SeenDirectories),
    buffers: (Vec<u8>, Vec<u8>),
    /// Look at everything, also at what both unions share.
    thorough: bool,
    /// Something that both share was not looked at.
    partial: bool,
}

/// How much content is compared at once, in bytes.
const BUFFER: usize = 256 << 10;
/// Up to how many lookups, in all layers together, are taken for cheaper than listing the directory.
const FEW_LOOKUPS: usize = 4096;

pub(crate) fn compare<R: ReadAt>(
    after: &Union<R>,
    before: Option<&Union<R>>,
) -> Result<Items, ExportError> {
    let mut comparison = Comparison::new(after, before, false);
    comparison.run()?;
    if comparison.partial && comparison.names.are_incomplete(&comparison.items) {
        comparison = Comparison::new(after, before, true);
        comparison.run()?;
    }
    let Comparison {
        mut items, names, ..
    } = comparison;
    names.resolve(&mut items);
    cover(&mut items);
    Ok(items)
}

/// Below an opaque directory, deletions and further marks are said already.
fn cover(items: &mut Items) {
    for index in 1..items.items.len() {
        let parent = &items.items[items.items[index].parent];
        let covered = parent.opaque || parent.covered;
        items.items[index].covered = covered;
    }
}

fn number_filesystems<R: ReadAt>(
    after: &Union<R>,
    before: Option<&Union<R>>,
) -> (Vec<usize>, Vec<usize>) {
    let before = before.map_or(&[][..], Union::layers);
    // One layer is compared with each other one: 1,000 layers make a million pointer comparisons, 2 ms.
    let all: Vec<_> = after.layers().iter().chain(before).collect();
    let mut numbers: Vec<usize> = all
        .iter()
        .enumerate()
        .map(|(i, layer)| {
            let earlier = all[..i]
                .iter()
                .position(|other| layer.shares_filesystem(other));
            earlier.unwrap_or(i)
        })
        .collect();
    let of_before = numbers.split_off(after.layers().len());
    (numbers, of_before)
}

impl<'u, R: ReadAt> Comparison<'u, R> {
    fn new(after: &'u Union<R>, before: Option<&'u Union<R>>, thorough: bool) -> Self {
        Self {
            filesystems: number_filesystems(after, before),
            after,
            before,
            items: Items::default(),
            names: Names::default(),
            seen: Default::default(),
            buffers: (vec![0; BUFFER], vec![0; BUFFER]),
            thorough,
            partial: false,
        }
    }

    fn run(&mut self) -> Result<(), ExportError> {
        let after = self.after.root().clone();
        let before = self.before.map(|before| before.root().clone());
        let root = self.items.add(0, b"", State::Same, Some(after.place()));
        if let Some(before) = &before
            && self.root_differs(&after, before)?
        {
            self.items.modify(root);
        }
        let below = Below {
            item: root,
            after,
            before,
        };
        let mut stack = Vec::new();
        stack.extend(self.enter(Vec::new(), below, false)?);
        while let Some(frame) = stack.last_mut() {
            match frame.steps.next() {
                Some(Step::Visit(row)) => self.visit(frame, row)?,
                Some(Step::Descend(row)) => {
                    let Some(below) = frame.pending.remove(&row) else {
                        continue;
                    };
                    let path = child_path(&frame.path, &frame.rows[row].name)?;
                    let cut = frame.cut;
                    match self.enter(path, below, cut)? {
                        Some(next) => stack.push(next),
                        // The same on both sides: `after` keeps what it had.
                        None => frame.whole = false,
                    }
                }
                None => {
                    let Some(done) = stack.pop() else { break };
                    self.leave(&done, stack.last_mut());
                }
            }
        }
        Ok(())
    }

    /// Whether the roots differ in what their owner set. Times are not compared: that of a sandbox's root tells when the sandbox was made.
    fn root_differs(&self, after: &Node, before: &Node) -> Result<bool, ExportError> {
        let (a, b) = (after.stat(), before.stat());
        Ok(
            (a.permissions, a.uid, a.gid) != (b.permissions, b.uid, b.gid)
                || self.xattrs_differ(b"", after, before)?,
        )
    }

    fn key_after(&self, at: FileIdentity) -> Key {
        key(&self.filesystems.0, at)
    }

    fn key_before(&self, at: FileIdentity) -> Key {
        key(&self.filesystems.1, at)
    }

    /// Opens a directory; `None` if it is one and the same on both sides.
    fn enter(
        &mut self,
        path: Vec<u8>,
        below: Below,
        parent_cut: bool,
    ) -> Result<Option<Frame>, ExportError> {
        let Below {
            item,
            after,
            before,
        } = below;
        let after_keys: Vec<_> = after
            .spots()
            .map(|s| self.key_after(s.identity()))
            .collect();
        let before_keys: Vec<_> = before
            .iter()
            .flat_map(Node::spots)
            .map(|s| self.key_before(s.identity()))
            .collect();
        if after_keys == before_keys && !self.thorough {
            self.partial = true;
            return Ok(None);
        }
        self.seen.0.enter(&after, &path)?;
        if let Some(before) = &before {
            self.seen.1.enter(before, &path)?;
        }
        let read = |e| reading(&path, e);
        let shared = after_keys
            .iter()
            .rev()
            .zip(before_keys.iter().rev())
            .take_while(|(a, b)| a == b)
            .count();
        let mut rows = match (&before, self.before) {
            (Some(before_dir), Some(before_union)) => {
                let few = if shared > 0 && !self.thorough {
                    self.few_rows(&after, before_dir, before_union, shared)
                        .map_err(read)?
                } else {
                    None
                };
                match few {
                    Some(rows) => {
                        self.partial = true;
                        rows
                    }
                    None => {
                        let listed = self.after.read_dir(&after).map_err(read)?;
                        let others = before_union.read_dir(before_dir).map_err(read)?;
                        zip(listed, others)
                    }
                }
            }
            _ => zip(self.after.read_dir(&after).map_err(read)?, Vec::new()),
        };
        if path.is_empty() {
            self.drop_lost_and_found(&mut rows)?;
        }
        let cut = before.is_some()
            && shared == 0
            && (parent_cut || self.is_cut(&after, &before_keys).map_err(read)?);
        let steps = steps(rows.iter().map(|row| (&*row.name, row.directory))).into_iter();
        Ok(Some(Frame {
            item,
            path,
            rows,
            steps,
            pending: HashMap::new(),
            cut,
            whole: true,
            deleted: false,
            both: before.is_some(),
        }))
    }

    /// Whether the farthest directory merged into `after`'s is opaque, and none of `before`'s.
    fn is_cut(&self, after: &Node, before: &[Key]) -> Result<bool, TreeError> {
        let Some(last) = after.spots().next_back() else {
            return Ok(false);
        };
        Ok(!before.contains(&self.key_after(last.identity()))
            && !is_layer_root(self.after, last)
            && self.after.marks(last)?.opaque)
    }

    /// The names that can differ, if both directories have the same `shared` ones merged last: those that the others have. `None`
    /// if they are so many that whole listings are cheaper.
    fn few_rows(
        &self,
        after: &Node,
        before: &Node,
        before_union: &Union<R>,
        shared: usize,
    ) -> Result<Option<Vec<Row>>, TreeError> {
        let mut names = Vec::new();
        let mut depth: usize = 0;
        for (union, dir) in [(self.after, after), (before_union, before)] {
            let count = dir.spots().count();
            depth = depth.saturating_add(count);
            for spot in dir.spots().take(count.saturating_sub(shared)) {
                let listed = union.filesystem(spot.layer).read_dir(&spot.inode);
                let listed = listed.map_err(TreeError::on(spot.layer))?;
                names.extend(listed.into_iter().map(|entry| entry.name));
                if names.len().saturating_mul(depth) > FEW_LOOKUPS {
                    return Ok(None);
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        let mut rows = Vec::with_capacity(names.len());
        for name in names {
            let a = self.after.lookup(after, &name)?;
            let b = before_union.lookup(before, &name)?;
            if a.is_some() || b.is_some() {
                rows.push(Row {
                    directory: a
                        .as_ref()
                        .is_some_and(|n| n.file_type() == FileType::Directory),
                    after: a.map(|node| node.place()),
                    before: b.map(|node| node.place()),
                    name,
                });
            }
        }
        Ok(Some(rows))
    }

    /// Takes the directory that `mke2fs` makes for `e2fsck` out of a listing of the root.
    fn drop_lost_and_found(&self, rows: &mut Vec<Row>) -> Result<(), ExportError> {
        let name = b"lost+found";
        let Some(at) = rows.iter().position(|row| row.name == name) else {
            return Ok(());
        };
        let drop = |union: &Union<R>, place: &mut Option<Place>| -> Result<(), ExportError> {
            if let Some(found) = place {
                let read = |e| reading(name, e);
                let node = union.open_place(found).map_err(read)?;
                if is_lost_and_found(union, name, &node).map_err(read)? {
                    *place = None;
                }
            }
            Ok(())
        };
        let row = &mut rows[at];
        drop(self.after, &mut row.after)?;
        if let Some(before) = self.before {
            drop(before, &mut row.before)?;
        }
        row.directory &= row.after.is_some();
        if row.after.is_none() && row.before.is_none() {
            rows.remove(at);
        }
        Ok(())
    }

    fn visit(&mut self, frame: &mut Frame, row_index: usize) -> Result<(), ExportError> {
        let row = &frame.rows[row_index];
        let path = child_path(&frame.path, &row.name)?;
        let read = |e| reading(&path, e);
        let Some(after_place) = &row.after else {
            frame.deleted = true;
            self.items.modify(frame.item);
            self.items.add(frame.item, &row.name, State::Deleted, None);
            return Ok(());
        };
        let after = self.after.open_place(after_place).map_err(read)?;
        let before = match (&row.before, self.before) {
            (Some(place), Some(union)) => {
                let is_directory = after.file_type() == FileType::Directory;
                if self.is_same_place(after_place, place) && !(is_directory && self.thorough) {
                    frame.whole = false;
                    self.partial |= is_directory;
                    if after.file_type() != FileType::Directory && after.inode().links > 1 {
                        let item = self.add(frame.item, &row.name, State::Same, &after);
                        self.add_name(item, &after, Some(&after), true);
                    }
                    return Ok(());
                }
                Some(union.open_place(place).map_err(read)?)
            }
            _ => None,
        };
        let is_directory = after.file_type() == FileType::Directory;
        let Some(before) = before else {
            if frame.both {
                self.items.modify(frame.item);
            }
            let item = self.add(frame.item, &row.name, State::Added, &after);
            if is_directory {
                let below = Below {
                    item,
                    after,
                    before: None,
                };
                frame.pending.insert(row_index, below);
            } else {
                self.add_name(item, &after, None, false);
            }
            return Ok(());
        };
        let both_directories = is_directory && before.file_type() == FileType::Directory;
        let state = if self.differ(&path, &after, &before)? {
            State::Modified
        } else {
            State::Same
        };
        if is_directory {
            let item = self.add(frame.item, &row.name, state, &after);
            let below = Below {
                item,
                after,
                before: both_directories.then_some(before),
            };
            frame.pending.insert(row_index, below);
            return Ok(());
        }
        if state == State::Same {
            frame.whole = false;
            if after.inode().links <= 1 && before.inode().links <= 1 {
                return Ok(());
            }
        }
        let item = self.add(frame.item, &row.name, state, &after);
        self.add_name(item, &after, Some(&before), false);
        Ok(())
    }

    fn leave(&mut self, done: &Frame, parent: Option<&mut Frame>) {
        let item = &mut self.items.items[done.item];
        item.opaque = done.both && done.cut && done.whole && done.deleted;
        let Some(parent) = parent else { return };
        if done.both {
            // A directory that a diff would not even name is not written by it.
            parent.whole &= done.whole && item.used;
            parent.deleted |= done.deleted;
        }
    }

    fn add(&mut self, parent: usize, name: &[u8], state: State, after: &Node) -> usize {
        self.items.add(parent, name, state, Some(after.place()))
    }

    fn add_name(&mut self, item: usize, after: &Node, before: Option<&Node>, identical: bool) {
        if after.file_type() == FileType::Directory
            || after.inode().links <= 1 && before.is_none_or(|before| before.inode().links <= 1)
        {
            return;
        }
        let key = self.key_after(after.identity());
        let key_before = match before {
            Some(_) if identical => Some(key),
            Some(before) => Some(self.key_before(before.identity())),
            None => None,
        };
        self.names.add(Name {
            item,
            after: key,
            before: key_before,
            links: (
                after.inode().links,
                before.map_or(0, |before| before.inode().links),
            ),
            shared: (
                self.filesystems.1.contains(&key.0),
                key_before.is_some_and(|key| self.filesystems.0.contains(&key.0)),
            ),
        });
    }

    fn is_same_place(&self, after: &Place, before: &Place) -> bool {
        let after = after.parts().iter().map(|at| self.key_after(*at));
        let before = before.parts().iter().map(|at| self.key_before(*at));
        after.eq(before)
    }

    fn xattrs_differ(&self, path: &[u8], after: &Node, before: &Node) -> Result<bool, ExportError> {
        let Some(union) = self.before else {
            return Ok(true);
        };
        let read = |e| reading(path, e);
        Ok(self.after.xattrs(after).map_err(read)? != union.xattrs(before).map_err(read)?)
    }

    /// Whether two files differ in anything but their names, links, access and change times.
    fn differ(&mut self, path: &[u8], after: &Node, before: &Node) -> Result<bool, ExportError> {
        let Some(union) = self.before else {
            return Ok(true);
        };
        let (a, b) = (after.stat(), before.stat());
        if (a.mode(), a.uid, a.gid, a.mtime, a.device)
            != (b.mode(), b.uid, b.gid, b.mtime, b.device)
            || a.file_type != FileType::Directory && a.size != b.size
            || self.xattrs_differ(path, after, before)?
        {
            return Ok(true);
        }
        let read = |e| reading(path, e);
        match a.file_type {
            FileType::Symlink => {
                let targets = (self.after.read_link(after), union.read_link(before));
                Ok(targets.0.map_err(read)? != targets.1.map_err(read)?)
            }
            FileType::Regular => {
                let files = (self.after.open_file(after), union.open_file(before));
                let files = (files.0.map_err(read)?, files.1.map_err(read)?);
                let layers = (after.identity().layer, before.identity().layer);
                contents_differ(&files.0, &files.1, &mut self.buffers).map_err(|(first, e)| {
                    let layer = if first { layers.0 } else { layers.1 };
                    read(TreeError::on(layer)(e))
                })
            }
            _ => Ok(false),
        }
    }
}

fn key(filesystems: &[usize], at: FileIdentity) -> Key {
    let layer = usize::try_from(at.layer.0).unwrap_or(usize::MAX);
    (filesystems[layer], at.inode)
}

/// Whether this is the root of its layer, on which marks mean nothing.
fn is_layer_root<R: ReadAt>(union: &Union<R>, spot: &Spot) -> bool {
    let layer = usize::try_from(spot.layer.0).unwrap_or(usize::MAX);
    union.layers()[layer].root().identity().inode == spot.inode.number
}

/// Two sorted listings as one.
fn zip(after: Vec<crate::tree::Entry>, before: Vec<crate::tree::Entry>) -> Vec<Row> {
    let mut rows = Vec::with_capacity(after.len().max(before.len()));
    let mut before = before.into_iter().peekable();
    let only_before = |entry: crate::tree::Entry| Row {
        name: entry.name,
        after: None,
        before: Some(entry.place),
        directory: false,
    };
    for entry in after {
        while let Some(gone) = before.next_if(|other| other.name < entry.name) {
            rows.push(only_before(gone));
        }
        let same = before.next_if(|other| other.name == entry.name);
        rows.push(Row {
            name: entry.name,
            after: Some(entry.place),
            before: same.map(|other| other.place),
            directory: entry.file_type == FileType::Directory,
        });
    }
    rows.extend(before.map(only_before));
    rows
}

/// Compares files of the same length, leaving out what is a hole in both. An error says whether the first file had it.
fn contents_differ<R: ReadAt>(
    a: &FileData<'_, R>,
    b: &FileData<'_, R>,
    buffers: &mut (Vec<u8>, Vec<u8>),
) -> Result<bool, (bool, lcow_ext4::reader::ReadError)> {
    let mut at: u64 = 0;
    loop {
        let starts = [a.next_data(at), b.next_data(at)];
        let Some(start) = starts.into_iter().flatten().map(|data| data.start).min() else {
            return Ok(false);
        };
        at = at.max(start);
        let len = a.read_at(at, &mut buffers.0).map_err(|e| (true, e))?;
        let other = b.read_at(at, &mut buffers.1).map_err(|e| (false, e))?;
        if buffers.0.get(..len) != buffers.1.get(..other) {
            return Ok(true);
        }
        if len == 0 {
            return Ok(false);
        }
        at = at.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
    }
}
