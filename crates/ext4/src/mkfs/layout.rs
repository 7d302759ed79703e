//! Where everything in a blank filesystem lies.

use crate::format::BLOCK_SIZE;
use crate::writer::internal::{GROUP_MAX, Geometry, Group, INODES_PER_BLOCK, LOG_GROUPS_PER_FLEX};

/// Up to so many groups (256 GiB) there are copies of the superblock in group 1 and the powers of 3, 5 and 7.
const MANY_COPIES_MAX: u32 = 2048;

pub(super) struct Layout {
    pub(super) geometry: Geometry,
    /// Places of bitmaps and tables; the rest is still to be filled in.
    pub(super) groups: Vec<Group>,
    /// The groups with copies under `sparse_super2`; `None`: `sparse_super`.
    pub(super) two_backups: Option<[u32; 2]>,
    /// Blocks in use, as ascending ranges.
    used: Vec<(u64, u64)>,
    /// Where to look for the next free blocks.
    cursor: u64,
}

impl Layout {
    pub(super) fn new(size: u64) -> Self {
        let mut geometry = geometry(size / BLOCK_SIZE as u64, size);
        let mut two_backups = backups(geometry.groups);
        // A last group with hardly room for its own metadata is left out, as mke2fs does.
        let last = geometry.groups - 1;
        let mut overhead = 2 + geometry.table_blocks() + 50;
        if is_copy(last, two_backups) {
            overhead += 1 + geometry.descriptor_blocks();
        }
        if last > 0 && geometry.group_len(last) < overhead {
            geometry.groups = last;
            geometry.blocks = u64::from(last) * u64::from(GROUP_MAX);
            two_backups = backups(last);
        }
        let mut layout = Self {
            geometry,
            groups: vec![Group::default(); geometry.groups as usize],
            two_backups,
            used: Vec::new(),
            cursor: 0,
        };
        let own = u64::from(1 + geometry.descriptor_blocks());
        for group in layout.copies() {
            let start = u64::from(group) * u64::from(GROUP_MAX);
            layout.used.push((start, start + own));
        }
        let table = geometry.table_blocks();
        let flex = 1usize << LOG_GROUPS_PER_FLEX;
        for first in (0..layout.groups.len()).step_by(flex) {
            layout.cursor = first as u64 * u64::from(GROUP_MAX);
            let members = first..layout.groups.len().min(first + flex);
            for group in members.clone() {
                layout.groups[group].block_bitmap = layout.allocate(1);
            }
            for group in members.clone() {
                layout.groups[group].inode_bitmap = layout.allocate(1);
            }
            for group in members {
                layout.groups[group].inode_table = layout.allocate(table);
            }
        }
        layout.cursor = 0;
        layout
    }

    /// The groups with a superblock and descriptors, ascending.
    pub(super) fn copies(&self) -> Vec<u32> {
        copies(self.geometry.groups, self.two_backups)
    }

    pub(super) fn used(&self) -> &[(u64, u64)] {
        &self.used
    }

    /// Blocks that the kernel knows to be in use without a bitmap: a copy of superblock and descriptors.
    pub(super) fn own_blocks(&self, group: u32) -> u32 {
        if is_copy(group, self.two_backups) {
            1 + self.geometry.descriptor_blocks()
        } else {
            0
        }
    }

    /// Takes `len` blocks in one piece, the first there are from the cursor on.
    pub(super) fn allocate(&mut self, len: u32) -> u64 {
        let mut start = self.cursor;
        let mut at = self.used.partition_point(|(_, end)| *end <= start);
        while let Some((from, to)) = self.used.get(at)
            && *from < start + u64::from(len)
        {
            start = *to;
            at += 1;
        }
        self.take(at, start, len);
        start
    }

    /// Takes up to `len` blocks in one piece: what is free from the cursor on. Returns the first and how many.
    pub(super) fn allocate_some(&mut self, len: u32) -> (u64, u32) {
        let mut start = self.cursor;
        let mut at = self.used.partition_point(|(_, end)| *end <= start);
        while let Some((from, to)) = self.used.get(at)
            && *from <= start
        {
            start = *to;
            at += 1;
        }
        let room = self
            .used
            .get(at)
            .map_or(u64::from(len), |(from, _)| *from - start);
        let len = u32::try_from(room).map_or(len, |room| room.min(len));
        self.take(at, start, len);
        (start, len)
    }

    /// Marks blocks used, before the range at `at`.
    fn take(&mut self, at: usize, start: u64, len: u32) {
        let end = start + u64::from(len);
        match at.checked_sub(1).map(|before| &mut self.used[before]) {
            Some(before) if before.1 == start => before.1 = end,
            _ => self.used.insert(at, (start, end)),
        }
        self.cursor = end;
    }

    /// The journal's size as `mke2fs` chooses it (`ext2fs_default_journal_size`).
    pub(super) fn journal_blocks(&self) -> u32 {
        const STEPS: [(u64, u32); 7] = [
            (1 << 15, 1 << 10),
            (1 << 18, 1 << 12),
            (1 << 19, 1 << 13),
            (1 << 22, 1 << 14),
            (1 << 23, 1 << 15),
            (1 << 24, 1 << 16),
            (1 << 25, 1 << 17),
        ];
        STEPS
            .iter()
            .find(|(below, _)| self.geometry.blocks < *below)
            .map_or(1 << 18, |(_, journal)| *journal)
    }
}

fn geometry(blocks: u64, size: u64) -> Geometry {
    // Bytes for each inode, as mke2fs has them for small, usual and big filesystems.
    let ratio = match size {
        0..0x2000_0000 => 4096,
        0x2000_0000..0x400_0000_0000 => 16_384,
        _ => 65_536,
    };
    let groups = blocks.div_ceil(u64::from(GROUP_MAX));
    let per_group = (size / ratio)
        .div_ceil(groups)
        .next_multiple_of(u64::from(INODES_PER_BLOCK));
    Geometry {
        blocks,
        groups: u32::try_from(groups).unwrap_or(u32::MAX),
        blocks_per_group: GROUP_MAX,
        inodes_per_group: u32::try_from(per_group).unwrap_or(GROUP_MAX).min(GROUP_MAX),
    }
}

fn backups(groups: u32) -> Option<[u32; 2]> {
    (groups > MANY_COPIES_MAX).then(|| [1, groups - 1])
}

/// Whether a group has a superblock (kernel: `ext4_bg_has_super`).
fn is_copy(group: u32, two_backups: Option<[u32; 2]>) -> bool {
    let power_of = |base: u32| {
        let mut power = base;
        while power < group {
            power = power.saturating_mul(base);
        }
        power == group
    };
    match two_backups {
        Some(two) => group == 0 || two.contains(&group),
        None => group <= 1 || [3, 5, 7].into_iter().any(power_of),
    }
}

/// The groups with a superblock, ascending.
pub(super) fn copies(groups: u32, two_backups: Option<[u32; 2]>) -> Vec<u32> {
    if let Some(two) = two_backups {
        let mut found: Vec<u32> = two.into_iter().filter(|g| *g != 0 && *g < groups).collect();
        found.push(0);
        found.sort_unstable();
        found.dedup();
        return found;
    }
    (0..groups).filter(|group| is_copy(*group, None)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_where_the_kernel_looks() {
        assert_eq!(copies(100, None), [0, 1, 3, 5, 7, 9, 25, 27, 49, 81]);
        assert_eq!(copies(100, Some([1, 99])), [0, 1, 99]);
        assert_eq!(copies(1, Some([0, 0])), [0]);
    }

    #[test]
    fn nothing_is_given_out_twice() {
        for size in [16 << 20, 100 << 20, 20 << 30, 300 << 30, 1 << 41] {
            let mut layout = Layout::new(size);
            let mut journal = layout.journal_blocks();
            while journal > 0 {
                journal -= layout.allocate_some(journal).1;
            }
            let used = layout.used();
            assert!(used.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{size}");
            assert!(
                used.iter()
                    .all(|(a, b)| a < b && *b <= layout.geometry.blocks)
            );
        }
    }
}
