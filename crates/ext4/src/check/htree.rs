//! Hash trees of directories: every block in its place, every name under its hash (kernel: `fs/ext4/namei.c`).

use std::ops::Range;

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::{Checker, Problem, Step};
use crate::format::dir::{
    DX_NODE_ENTRIES_OFFSET, DX_ROOT_ENTRIES_OFFSET, DX_ROOT_INFO_OFFSET, DxRootInfo,
};
use crate::format::hash::{HashVersion, hash};
use crate::format::inode::flags;
use crate::format::superblock::incompat;
use crate::reader::internal::Dots;
use crate::reader::internal::num::{div, index};
use crate::reader::{Extent, Inode, Structure};

/// What a hash version stands for that this crate computes no hashes of: encrypted case-folded directories.
const SIPHASH: u8 = 6;

/// A tree being gone through.
struct Tree<'a> {
    dir: &'a Inode,
    extents: &'a [Extent],
    version: Option<HashVersion>,
    /// Directory blocks met.
    met: Vec<bool>,
}

impl<R: ReadAt> Checker<'_, R> {
    /// Goes through the hash tree of a directory.
    pub(super) fn check_tree_of(&mut self, dir: &Inode, extents: &[Extent]) -> Step {
        let sb = self.sb();
        let structure = Structure::HashTree(dir.number);
        let root = self.fs.dir_block(dir, extents, 0);
        let Some((root, at)) = self.note(root)? else {
            return Ok(());
        };
        let Some(Ok((info, _))) = root
            .get(DX_ROOT_INFO_OFFSET..)
            .map(DxRootInfo::ref_from_prefix)
        else {
            return self.found(structure, at, Problem::Malformed, "the root is not whole");
        };
        let deepest = if sb.has_incompat(incompat::LARGEDIR) {
            2
        } else {
            1
        };
        if info.reserved_zero.get() != 0
            || info.info_length != 8
            || info.unused_flags & 1 != 0
            || info.indirect_levels > deepest
        {
            let detail = format!(
                "a root of {} bytes over {} levels",
                info.info_length, info.indirect_levels
            );
            return self.found(structure, at, Problem::Malformed, detail);
        }
        let unknown = info.hash_version > SIPHASH
            || (info.hash_version == SIPHASH) != (dir.has(flags::CASEFOLD) && dir.is_encrypted());
        let version = HashVersion::from_disk(info.hash_version, sb.hash_unsigned)
            // The hashes of case-folded directories are of folded names.
            .filter(|_| !dir.has(flags::CASEFOLD));
        if unknown {
            let detail = format!("hash version {}", info.hash_version);
            return self.found(structure, at, Problem::Malformed, detail);
        }
        let mut tree = Tree {
            dir,
            extents,
            version,
            met: vec![false; index(div(dir.size, sb.block_size))],
        };
        self.check_dx_node(
            &mut tree,
            0,
            DX_ROOT_ENTRIES_OFFSET,
            info.indirect_levels,
            0..u32::MAX,
        )?;
        if let Some(block) = tree.met.iter().position(|met| !met) {
            let detail = format!("no entry of the tree leads to block {block}");
            self.found(structure, at, Problem::Reference, detail)?;
        }
        Ok(())
    }

    /// A root or node, whose children are leaves if `levels` is 0. Recursion ends: each level is one less.
    fn check_dx_node(
        &mut self,
        tree: &mut Tree<'_>,
        block: u64,
        base: usize,
        levels: u8,
        range: Range<u32>,
    ) -> Step {
        let Some((bytes, at)) = self.enter(tree, block)? else {
            return Ok(());
        };
        let whole = block == 0
            || (bytes.first_chunk::<4>() == Some(&[0; 4])
                && self
                    .fs
                    .rec_len(crate::reader::internal::num::le16(&bytes, 4))
                    == bytes.len());
        if !whole {
            let detail = "a node of the tree is a block of names";
            return self.found(
                Structure::HashTree(tree.dir.number),
                at,
                Problem::Malformed,
                detail,
            );
        }
        let node = self.fs.node(tree.dir, bytes, at, base, range);
        let Some(node) = self.note(node)? else {
            return Ok(());
        };
        for number in 0..node.count {
            let range = node.range(number);
            let child = node.block(number);
            match levels.checked_sub(1) {
                Some(below) => {
                    self.check_dx_node(tree, child, DX_NODE_ENTRIES_OFFSET, below, range)?;
                }
                None => self.check_leaf(tree, child, range)?,
            }
        }
        Ok(())
    }

    /// Reads a block that an entry leads to: one that is there, and that no other entry leads to.
    fn enter(
        &mut self,
        tree: &mut Tree<'_>,
        block: u64,
    ) -> Step<Option<(crate::reader::source::Meta, u64)>> {
        let detail = match tree.met.get_mut(index(block)) {
            None => format!("it leads to block {block}, past the directory's end"),
            Some(true) => format!("it leads to block {block} twice"),
            Some(met) => {
                *met = true;
                self.spend(self.sb().block_size)?;
                let read = self.fs.dir_block(tree.dir, tree.extents, block);
                return self.note(read);
            }
        };
        let structure = Structure::HashTree(tree.dir.number);
        self.found(structure, tree.dir.offset, Problem::Malformed, detail)?;
        Ok(None)
    }

    fn check_leaf(&mut self, tree: &mut Tree<'_>, block: u64, range: Range<u32>) -> Step {
        let Some((bytes, at)) = self.enter(tree, block)? else {
            return Ok(());
        };
        let Some(version) = tree.version else {
            return Ok(());
        };
        let seed = self.sb().hash_seed;
        let mut stray = None;
        let parsed = self
            .fs
            .parse(tree.dir, &bytes, at, Dots::None, &mut |entry| {
                let (hash, _) = hash(version, &seed, entry.name);
                if hash < range.start & !1 || hash > range.end {
                    stray = Some(entry.name.to_vec());
                }
                Ok(stray.is_none())
            });
        self.note(parsed)?;
        if let Some(name) = stray {
            let detail = format!("{:?} is in the wrong leaf", String::from_utf8_lossy(&name));
            self.found(
                Structure::HashTree(tree.dir.number),
                at,
                Problem::Malformed,
                detail,
            )?;
        }
        Ok(())
    }
}
