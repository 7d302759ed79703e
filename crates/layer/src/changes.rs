//! What differs between two unions.
//!
//! A container's changes are `changes(&image.with_upper(upper), Some(&image))`; a layer's, those of the union that ends in it against
//! the union of its parents; but any two unions can be compared, related or not, and `None` is the empty tree.
//!
//! # What counts as a change
//! * **Added**, **Deleted**: the path is in one of the two only. What was below a deleted directory is not told one by one; what is below an
//!   added one is.
//! * **Modified**: type, permissions, owner, group, modification time, device, link target, extended attributes or content differ. A directory
//!   is modified also when a name in it was added or deleted. Access and change times and link counts do not count.
//! * The root itself is never told of, as in Docker and containerd (but see [`diff`](crate::diff)).
//! * Several names of one file are one file: if one name of it is new or differs, all its names are changes, and so they are if names that
//!   were one file are not any more. Without that, a [`diff`](crate::diff) could not hold links.
//!
//! Changes are sorted by the bytes of their paths.
//!
//! # Cost
//! What the two unions share is not read: where both have the same directories of the same opened filesystems merged below, only the names
//! that the other layers have there are looked at. Of two files that are not the same, content is read only when all metadata,
//! size and modification time among it, are equal. Memory is about 60 bytes and the name for each change; telling them in order takes
//! their paths for a while.

mod compare;
mod links;

use lcow_blockio::ReadAt;

pub(crate) use compare::{Items, State, compare};

use crate::export::ExportError;
use crate::union::Union;

/// A path and what happened to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Change {
    /// The path, relative to the root, without a leading slash.
    pub path: Vec<u8>,
    /// What happened.
    pub kind: ChangeKind,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It is another file, or has other metadata or content.
    Modified,
    /// It is gone.
    Deleted,
}

/// All changes of a comparison, sorted by path.
#[derive(Debug)]
pub struct Changes {
    items: Items,
    /// What of them is told, by path.
    told: Vec<usize>,
}

impl Changes {
    /// The changes, in the order of their paths.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Change> + '_ {
        self.told.iter().map(|&index| Change {
            path: self.items.path(index),
            kind: match self.items.state(index) {
                State::Added => ChangeKind::Added,
                State::Deleted => ChangeKind::Deleted,
                State::Modified | State::Same => ChangeKind::Modified,
            },
        })
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// How many changes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.told.len()
    }
}

/// Compares two unions: what became of `before` in `after`.
///
/// # Errors
/// [`ExportError::Tree`], with the path that could not be read, or [`ExportError::Walk`].
pub fn changes<R: ReadAt>(
    after: &Union<R>,
    before: Option<&Union<R>>,
) -> Result<Changes, ExportError> {
    let items = compare(after, before)?;
    let used = items
        .used()
        .filter(|(index, item)| *index != 0 && item.state != State::Same);
    let mut told: Vec<usize> = used.map(|(index, _)| index).collect();
    told.sort_by_cached_key(|&index| items.path(index));
    Ok(Changes { items, told })
}

/// The bytes of content that a diff carries: the lengths of all regular files added or modified, of several names of one
/// file only once.
///
/// # Errors
/// As for [`changes`].
pub fn diff_size<R: ReadAt>(
    after: &Union<R>,
    before: Option<&Union<R>>,
) -> Result<u64, ExportError> {
    compare(after, before)?.content_size(after)
}
