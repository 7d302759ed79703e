//! Quota files (kernel: `fs/quota/quotaio_v2.h`, `quota_tree.h`): what owners use is what the files say they use.
//!
//! A header, then blocks of 1 KiB: from block 1 a tree of four levels of 256 block numbers, a level for each byte of an owner's
//! number, above blocks of entries.

use std::collections::{BTreeMap, HashSet};

use lcow_blockio::ReadAt;

use super::{Checker, Problem, Step};
use crate::format::superblock::{incompat, ro_compat};
use crate::reader::internal::num::{div, le16, le32, len64, slice};
use crate::reader::{FileMap, Inode, ReadError, Structure};
use crate::{FileType, InodeNumber};

const BLOCK: usize = 1024;
const ROOT: u32 = 1;
const DEPTH: u8 = 4;
/// Bytes before the entries of a block, and of an entry of version 1.
const HEADER: usize = 16;
const ENTRY: usize = 72;
/// Magic numbers of the files of users, groups and projects.
const MAGIC: [u32; 3] = [0xd9c0_1f11, 0xd9c0_1927, 0xd9c0_3f14];

/// Bytes and inodes.
type Use = (u64, u64);

/// What each owner uses.
#[derive(Debug, Default)]
pub(super) struct Quotas([BTreeMap<u32, Use>; 3]);

impl Quotas {
    pub(super) fn charge(&mut self, inode: &Inode, project: u32) {
        for (owners, owner) in self.0.iter_mut().zip([inode.uid, inode.gid, project]) {
            let used = owners.entry(owner).or_default();
            used.0 = used.0.saturating_add(inode.blocks_512.saturating_mul(512));
            used.1 = used.1.saturating_add(1);
        }
    }
}

impl<R: ReadAt> Checker<'_, R> {
    pub(super) fn check_quotas(&mut self) -> Step {
        let sb = self.sb();
        // Values in inodes of their own count for those who have them, each time: not followed here.
        if !sb.has_ro_compat(ro_compat::QUOTA)
            || sb.has_incompat(incompat::EA_INODE)
            || !self.blocks_known
        {
            return Ok(());
        }
        let [_, user, group, project, _] = sb.hidden_inodes;
        for (kind, number) in [user, group, project].into_iter().enumerate() {
            if number == 0 {
                continue;
            }
            let number = InodeNumber(number);
            let magic = MAGIC.get(kind).copied().unwrap_or(0);
            let read = self.read_quotas(number, magic);
            let Some(said) = self.note(read)? else {
                continue;
            };
            let counted = self
                .quotas
                .0
                .get_mut(kind)
                .map(std::mem::take)
                .unwrap_or_default();
            let wrong = counted
                .iter()
                .find(|(owner, used)| said.get(owner).copied().unwrap_or_default() != **used)
                .or_else(|| {
                    said.iter()
                        .find(|(owner, used)| **used != (0, 0) && !counted.contains_key(owner))
                });
            if let Some((owner, _)) = wrong {
                let (bytes, inodes) = counted.get(owner).copied().unwrap_or_default();
                let (said_bytes, said_inodes) = said.get(owner).copied().unwrap_or_default();
                let detail = format!(
                    "it says that owner {owner} has {said_bytes} bytes in {said_inodes} files; there are {bytes} in {inodes}"
                );
                self.found(Structure::Quota(number), 0, Problem::Count, detail)?;
            }
        }
        Ok(())
    }

    fn read_quotas(
        &self,
        number: InodeNumber,
        magic: u32,
    ) -> Result<BTreeMap<u32, Use>, ReadError> {
        let inode = self.fs.inode(number)?;
        let corrupt =
            |detail: String| ReadError::corrupt(Structure::Quota(number), inode.offset, detail);
        if inode.file_type != FileType::Regular {
            return Err(corrupt("it is no regular file".to_owned()));
        }
        let map = self.fs.map_file(&inode)?;
        let block = |which: u32| -> Result<Vec<u8>, ReadError> { self.quota_block(&map, which) };
        let header = block(0)?;
        if le32(&header, 0) != magic || le32(&header, 4) != 1 {
            return Err(corrupt("no quota file of version 1".to_owned()));
        }
        let blocks = div(inode.size, len64(BLOCK));
        let mut said = BTreeMap::new();
        let mut met = HashSet::new();
        let mut ahead = vec![(ROOT, DEPTH)];
        while let Some((which, levels)) = ahead.pop() {
            if u64::from(which) >= blocks || which == 0 {
                return Err(corrupt(format!("it leads to its block {which}")));
            }
            let bytes = block(which)?;
            let Some(below) = levels.checked_sub(1) else {
                // Owners share blocks of entries.
                if met.insert(which) {
                    entries(&bytes, &mut said);
                }
                continue;
            };
            if !met.insert(which) {
                return Err(corrupt(format!("it leads to its block {which} twice")));
            }
            let children = (0..BLOCK).step_by(4).map(|at| le32(&bytes, at));
            ahead.extend(
                children
                    .filter(|child| *child != 0)
                    .map(|child| (child, below)),
            );
        }
        Ok(said)
    }

    fn quota_block(&self, map: &FileMap, which: u32) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; BLOCK];
        let offset = u64::from(which).saturating_mul(len64(BLOCK));
        self.fs.read_mapped(map, offset, &mut bytes)?;
        Ok(bytes)
    }
}

fn entries(block: &[u8], said: &mut BTreeMap<u32, Use>) {
    let count = usize::from(le16(block, 8));
    let long = |entry: &[u8], at: usize| {
        slice(entry, at, 8)
            .and_then(<[u8]>::first_chunk::<8>)
            .map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    let slots = block.get(HEADER..).unwrap_or_default().chunks_exact(ENTRY);
    let used = slots.filter(|entry| entry.iter().any(|byte| *byte != 0));
    for entry in used.take(count) {
        said.insert(le32(entry, 0), (long(entry, 48), long(entry, 24)));
    }
}
