//! Extended attributes: entries, hashes, order, and how many inodes share a block or a value.

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::{Checker, Problem, Step, Stop};
use crate::format::acl;
use crate::format::xattr::{
    BLOCK_HEADER_SIZE, INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT, XattrBlockHeader, entry_hash,
};
use crate::reader::internal::num::len64;
use crate::reader::internal::{Entry, Value, entries, signed_entry_hash};
use crate::reader::{Inode, Structure};
use crate::{InodeNumber, reader::ReadErrorKind};

/// The name index and name of an encryption context (kernel: `EXT4_XATTR_INDEX_ENCRYPTION`).
const ENCRYPTION: (u8, &[u8]) = (9, b"c");
/// Lengths of contexts of version 1 and 2, in bytes.
const CONTEXTS: [(u8, usize); 2] = [(1, 28), (2, 40)];

/// Where the attributes being looked at lie.
#[derive(Clone, Copy)]
struct Home {
    at: u64,
    /// Its length in bytes.
    len: usize,
    /// In a block, where entries are hashed and sorted.
    block: bool,
    /// Whether references to values count: those of a block that inodes share count once.
    first: bool,
}

impl<R: ReadAt> Checker<'_, R> {
    /// Checks an inode's attributes; returns how many clusters they take. `None`: they are too damaged to say.
    pub(super) fn check_attributes(&mut self, inode: &Inode) -> Step<Option<u64>> {
        let mut clusters = 0;
        let mut context = false;
        if let Some(body) = inode.body.as_deref() {
            let list = entries(inode, body, 0, inode.body_offset);
            let Some(list) = self.note(list)? else {
                return Ok(None);
            };
            let home = Home {
                at: inode.body_offset,
                len: body.len(),
                block: false,
                first: true,
            };
            self.check_entries(inode, &list, home, &mut clusters, &mut context)?;
        }
        if inode.xattr_block != 0 && !self.check_block(inode, &mut clusters, &mut context)? {
            return Ok(None);
        }
        if inode.is_encrypted() && !context {
            let detail = "it is encrypted, but has no sound encryption context";
            self.found(
                Structure::Inode(inode.number),
                inode.offset,
                Problem::Malformed,
                detail,
            )?;
        }
        Ok(Some(clusters))
    }

    /// Whether the block can be used at all.
    fn check_block(&mut self, inode: &Inode, clusters: &mut u64, context: &mut bool) -> Step<bool> {
        let block = self.fs.attribute_block(inode);
        let Some((block, at)) = self.note(block)? else {
            return Ok(false);
        };
        let number = inode.xattr_block;
        let header =
            XattrBlockHeader::ref_from_prefix(&block).map_or(0, |(h, _)| h.h_refcount.get());
        let first = match self.attribute_blocks.get_mut(&number) {
            Some((users, ..)) => {
                *users = users.saturating_add(1);
                false
            }
            None => {
                self.attribute_blocks.insert(number, (1, header, at));
                let cluster = self.cluster(number);
                if self.usage.claim(cluster, 1).is_some() && !self.sb().shares_blocks() {
                    let detail = format!("block {number} is in use already");
                    self.found(Structure::Xattrs(inode.number), at, Problem::Shared, detail)?;
                }
                true
            }
        };
        *clusters = clusters.saturating_add(1);
        let list = entries(inode, &block, BLOCK_HEADER_SIZE, at);
        let Some(list) = self.note(list)? else {
            return Ok(false);
        };
        let home = Home {
            at,
            len: block.len(),
            block: true,
            first,
        };
        self.check_entries(inode, &list, home, clusters, context)?;
        Ok(true)
    }

    fn check_entries(
        &mut self,
        inode: &Inode,
        list: &[Entry<'_>],
        home: Home,
        clusters: &mut u64,
        context: &mut bool,
    ) -> Step {
        let structure = Structure::Xattrs(inode.number);
        let mut before: Option<(u8, usize, &[u8])> = None;
        for entry in list {
            match &entry.value {
                Value::Here(value) => {
                    if (entry.index, entry.name) == ENCRYPTION {
                        *context |= value
                            .first()
                            .is_some_and(|version| CONTEXTS.contains(&(*version, value.len())));
                    }
                    if home.first {
                        self.check_value(inode, entry, value, home)?;
                    }
                }
                Value::Inode { number, size } => {
                    *clusters =
                        clusters.saturating_add(len64(*size).div_ceil(self.sb().cluster_size));
                    if home.first {
                        self.check_value_inode(inode, entry, *number, *size)?;
                    }
                }
            }
            let order = (entry.index, entry.name.len(), entry.name);
            if home.block && home.first && before.is_some_and(|before| before >= order) {
                let detail = format!(
                    "{:?} is out of order, where the kernel does not find it",
                    String::from_utf8_lossy(entry.name)
                );
                self.found(structure, home.at, Problem::Malformed, detail)?;
            }
            before = Some(order);
        }
        Ok(())
    }

    fn check_value(&mut self, inode: &Inode, entry: &Entry<'_>, value: &[u8], home: Home) -> Step {
        let structure = Structure::Xattrs(inode.number);
        // The kernel does not look where an empty value is said to lie; other readers take it for damage.
        if entry.offset > home.len {
            let detail = format!("a value at byte {}, past the end", entry.offset);
            return self.found(structure, home.at, Problem::Malformed, detail);
        }
        let hashed = entry.hash == entry_hash(entry.name, value)
            || entry.hash == signed_entry_hash(entry.name, value)
            || (entry.hash == 0 && !home.block);
        let acl = matches!(entry.index, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT);
        let detail = if !hashed {
            "its hash does not match"
        } else if acl && (!entry.name.is_empty() || acl::from_disk(value).is_none()) {
            "it is no ACL"
        } else {
            return Ok(());
        };
        let detail = format!("{:?}: {detail}", String::from_utf8_lossy(entry.name));
        self.found(structure, home.at, Problem::Malformed, detail)
    }

    fn check_value_inode(
        &mut self,
        inode: &Inode,
        entry: &Entry<'_>,
        number: InodeNumber,
        size: usize,
    ) -> Step {
        let users = self.values.entry(number.0).or_insert(0);
        *users = users.saturating_add(1);
        if *users > 1 {
            return Ok(());
        }
        match self.fs.value_inode(inode, entry, number, size) {
            // Longer than Linux lets a value be: sound, as far as can be told.
            Err(error) if error.kind() == ReadErrorKind::Unsupported => Ok(()),
            value => self.note(value).map(drop),
        }
    }

    /// Blocks and values have as many users as they say.
    pub(super) fn check_attribute_users(&mut self) -> Step {
        let mut blocks: Vec<_> = self.attribute_blocks.drain().collect();
        blocks.sort_unstable();
        for (block, (users, said, at)) in blocks {
            if users != said {
                let detail = format!("attribute block {block} has {users} users, and says {said}");
                self.found(Structure::Superblock, at, Problem::Count, detail)?;
            }
        }
        let mut values: Vec<_> = self.values.iter().map(|(n, users)| (*n, *users)).collect();
        values.sort_unstable();
        for (number, users) in values {
            let Ok(Some(inode)) = self.fs.inode_in_use(InodeNumber(number)) else {
                continue;
            };
            let (said, lustre) = self.value_references(&inode)?;
            if said != u64::from(users) && !lustre {
                let detail = format!("{users} attributes have it for a value, and it says {said}");
                self.found(
                    Structure::Inode(inode.number),
                    inode.offset,
                    Problem::Count,
                    detail,
                )?;
            }
        }
        Ok(())
    }
}

impl From<crate::reader::ReadError> for Stop {
    fn from(error: crate::reader::ReadError) -> Self {
        Self::Error(error)
    }
}
