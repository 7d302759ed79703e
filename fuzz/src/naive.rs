//! A second, plain reading of where a file's blocks lie. It checks nothing: it is only asked about what the reader took.

use std::collections::BTreeSet;

use lcow_ext4::format::Superblock;
use lcow_ext4::reader::Info;
use zerocopy::FromBytes;

use crate::bytes::{le16, le32, part};
use crate::image::Geometry;
use crate::tree::{Kind, Node, Tree, grains};

const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;

/// A file's blocks: the logical number, the physical one, and whether it was written to.
pub(crate) type Blocks = Vec<(usize, usize, bool)>;

/// The blocks of the inode at `at`. `None`: its data is in the inode, or there are more blocks than the image has.
pub(crate) fn blocks(image: &[u8], geometry: &Geometry, at: usize) -> Option<Blocks> {
    blocks_of(image, geometry, part(image, at, 128))
}

/// The same of an inode's bytes.
pub(crate) fn blocks_of(image: &[u8], geometry: &Geometry, inode: &[u8]) -> Option<Blocks> {
    let flags = le32(inode, 0x20);
    if flags & INLINE != 0 {
        return None;
    }
    let mut out = Blocks::new();
    let root = part(inode, 0x28, 60);
    let mut budget = image.len() / geometry.block + 16;
    if flags & EXTENTS != 0 {
        extents(image, geometry, root, 0, &mut out, &mut budget)?;
    } else {
        let per_block = geometry.block / 4;
        let mut logical = 0;
        for slot in 0..15 {
            let number = usize::try_from(le32(root, slot * 4)).unwrap_or(0);
            let depth = slot.saturating_sub(11);
            mapped(
                image,
                geometry,
                (number, depth),
                logical,
                &mut out,
                &mut budget,
            )?;
            logical += per_block.pow(u32::try_from(depth).unwrap_or(0));
        }
    }
    Some(out)
}

fn extents(
    image: &[u8],
    geometry: &Geometry,
    node: &[u8],
    level: usize,
    out: &mut Blocks,
    budget: &mut usize,
) -> Option<()> {
    *budget = budget.checked_sub(1)?;
    let depth = le16(node, 6);
    for entry in 1..=usize::from(le16(node, 2)) {
        let at = entry * 12;
        if depth == 0 {
            let logical = usize::try_from(le32(node, at)).ok()?;
            let len = le16(node, at + 4);
            let (len, written) = if len > 32768 {
                (usize::from(len) - 32768, false)
            } else {
                (usize::from(len), true)
            };
            let high = usize::from(le16(node, at + 6)) << 32;
            let physical = high | usize::try_from(le32(node, at + 8)).ok()?;
            *budget = budget.checked_sub(len)?;
            out.extend((0..len).map(|i| (logical + i, physical + i, written)));
        } else if level < 6 {
            let child = usize::try_from(le32(node, at + 4)).ok()?;
            let child = part(image, child.checked_mul(geometry.block)?, geometry.block);
            extents(image, geometry, child, level + 1, out, budget)?;
        }
    }
    Some(())
}

fn mapped(
    image: &[u8],
    geometry: &Geometry,
    (number, depth): (usize, usize),
    logical: usize,
    out: &mut Blocks,
    budget: &mut usize,
) -> Option<()> {
    if number == 0 {
        return Some(());
    }
    *budget = budget.checked_sub(1)?;
    if depth == 0 {
        out.push((logical, number, true));
        return Some(());
    }
    let per_block = geometry.block / 4;
    let below = per_block.pow(u32::try_from(depth - 1).ok()?);
    let table = part(image, number.checked_mul(geometry.block)?, geometry.block);
    for slot in 0..per_block {
        let child = usize::try_from(le32(table, slot * 4)).ok()?;
        mapped(
            image,
            geometry,
            (child, depth - 1),
            logical + slot * below,
            out,
            budget,
        )?;
    }
    Some(())
}

/// Blocks that are the file system's own: superblock, descriptors, bitmaps, inode tables, the journal.
fn own_blocks(image: &[u8], geometry: &Geometry) -> BTreeSet<usize> {
    let mut own = BTreeSet::from([1024 / geometry.block]);
    let table = (geometry.inodes_per_group * geometry.inode_size).div_ceil(geometry.block);
    for group in 0..geometry.groups {
        own.insert(geometry.descriptor_at(image, group) / geometry.block);
        own.insert(geometry.descriptor_block(image, group, 0, 0x20));
        own.insert(geometry.descriptor_block(image, group, 4, 0x24));
        let first = geometry.descriptor_block(image, group, 8, 0x28);
        own.extend(first..first.saturating_add(table));
    }
    let journal = usize::try_from(le32(image, 1024 + 0xe0)).unwrap_or(0);
    if geometry.compat & 4 != 0
        && let Some(at) = geometry.inode_at(image, journal)
    {
        // What is mapped behind the end is nobody's.
        let size = usize::try_from(le32(image, at + 4)).unwrap_or(0);
        let blocks = blocks(image, geometry, at).unwrap_or_default();
        let within = blocks.iter().filter(|b| b.0 * geometry.block < size);
        own.extend(within.map(|b| b.1));
    }
    own
}

/// Holds the content of each file against the blocks that its inode names.
pub(crate) fn check_contents(image: &[u8], info: &Info, tree: &Tree) {
    let Some(geometry) = Geometry::of(image) else {
        return;
    };
    let long = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let superblock = Superblock::ref_from_prefix(&image[1024..]);
    let is_primary = superblock.is_ok_and(|(sb, _)| sb.feature_names() == info.features)
        && geometry.block == long(info.block_size)
        && geometry.inode_size == long(info.inode_size)
        && geometry.blocks_per_group == long(info.blocks_per_group)
        && geometry.inodes_per_group == long(info.inodes_per_group.into())
        && geometry.groups == long(info.groups.into());
    if !is_primary {
        // The reader took the copy of a broken superblock.
        return;
    }
    let own = own_blocks(image, &geometry);
    for (path, node) in tree {
        check_content(image, &geometry, &own, path, node);
    }
}

fn check_content(
    image: &[u8],
    geometry: &Geometry,
    own: &BTreeSet<usize>,
    path: &[u8],
    node: &Node,
) {
    let Kind::File(size, found) = &node.kind else {
        return;
    };
    let shown = path.escape_ascii();
    let at = geometry
        .inode_at(image, node.identity)
        .expect("the reader found the inode");
    let Some(mut blocks) = blocks(image, geometry, at) else {
        return;
    };
    blocks.sort_unstable();
    let mut expected = Vec::new();
    for (logical, physical, written) in blocks {
        let offset = logical.saturating_mul(geometry.block) as u64;
        if !written || offset >= *size {
            continue;
        }
        assert!(
            !own.contains(&physical),
            "{shown} has block {physical} of the file system's own"
        );
        let bytes = part(image, physical * geometry.block, geometry.block);
        let left = usize::try_from(size - offset).unwrap_or(usize::MAX);
        grains(offset, &bytes[..bytes.len().min(left)], &mut expected);
    }
    assert!(
        *found == expected,
        "{shown}: its data is not what its blocks hold, or zeros where it has none"
    );
}
