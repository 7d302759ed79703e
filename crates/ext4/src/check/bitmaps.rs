//! Bitmaps, and all that is counted.

use lcow_blockio::ReadAt;

use super::{Checker, Problem, Step};
use crate::format::group::{BLOCK_UNINIT, INODE_UNINIT};
use crate::format::superblock::SUPERBLOCK_OFFSET;
use crate::reader::Structure;
use crate::reader::internal::num::{div, index, join32, len64};
use crate::reader::internal::{Group, locate};

/// A bitmap on the disk beside what it should be.
struct Compared<'a> {
    structure: Structure,
    at: u64,
    /// What is in use; `None`: nothing.
    used: Option<&'a [u8]>,
    /// Bits that stand for something.
    bits: u64,
    /// Bits that the checksum covers.
    covered: u64,
    checksum: u32,
    /// What a bit stands for, in messages, and the number of the first.
    what: &'static str,
    first: u64,
}

impl<R: ReadAt> Checker<'_, R> {
    pub(super) fn check_bitmaps(&mut self) -> Step {
        let sb = self.sb();
        let ratio = self.ratio();
        let per_group = div(sb.blocks_per_group, ratio);
        let all = self.cluster(sb.blocks.saturating_sub(1)).saturating_add(1);
        let (mut free_blocks, mut free_inodes) = (0_u64, 0_u64);
        let mut first_inode = 1_u32;
        for (number, group) in (0_u32..).zip(&self.fs.groups) {
            let start = u64::from(number).saturating_mul(per_group);
            let clusters = all.saturating_sub(start).min(per_group);
            let used = self.usage.bytes(start, clusters);
            let taken = used.as_deref().map_or(0, count);
            free_blocks = free_blocks.saturating_add(clusters.saturating_sub(taken));
            self.report.clusters = self.report.clusters.saturating_add(taken);
            if self.blocks_known {
                self.check_count(
                    number,
                    "free blocks",
                    group.free_blocks,
                    clusters.saturating_sub(taken),
                )?;
                self.check_block_bitmap(
                    number,
                    group,
                    used.as_deref(),
                    start,
                    clusters,
                    per_group,
                )?;
            }
            let place = index(u64::from(number));
            let inodes = self.used_inodes(place, first_inode);
            let (in_use, directories, bitmap) = match &inodes {
                Some((used, directories, bitmap)) => (*used, *directories, Some(bitmap.as_slice())),
                None => (0, 0, None),
            };
            let free = u64::from(sb.inodes_per_group.saturating_sub(in_use));
            free_inodes = free_inodes.saturating_add(free);
            self.report.inodes = self.report.inodes.saturating_add(u64::from(in_use));
            self.check_count(number, "free inodes", group.free_inodes, free)?;
            self.check_count(
                number,
                "directories",
                group.directories,
                u64::from(directories),
            )?;
            self.check_inode_bitmap(number, group, bitmap, first_inode)?;
            first_inode = first_inode.saturating_add(sb.inodes_per_group);
        }
        // The kernel brings these up to date when it unmounts, and goes by the descriptors before.
        if self.report.replayed || !sb.clean {
            return Ok(());
        }
        let raw = self.raw_superblock()?;
        let high = if sb.has_incompat(crate::format::superblock::incompat::BIT64) {
            raw.s_free_blocks_count_hi.get()
        } else {
            0
        };
        let said = [
            (
                "free blocks",
                join32(high, raw.s_free_blocks_count_lo.get()),
                // Blocks here, clusters in the descriptors.
                free_blocks.saturating_mul(ratio),
                self.blocks_known,
            ),
            (
                "free inodes",
                u64::from(raw.s_free_inodes_count.get()),
                free_inodes,
                true,
            ),
        ];
        for (what, said, counted, known) in said {
            if said != counted && known {
                let detail = format!("it says {said} {what}, and there are {counted}");
                self.found(
                    Structure::Superblock,
                    SUPERBLOCK_OFFSET,
                    Problem::Count,
                    detail,
                )?;
            }
        }
        Ok(())
    }

    fn check_count(&mut self, group: u32, what: &str, said: u32, counted: u64) -> Step {
        if u64::from(said) == counted {
            return Ok(());
        }
        self.found(
            Structure::GroupDescriptor(group),
            locate(self.sb(), group),
            Problem::Count,
            format!("it says {said} {what}, and there are {counted}"),
        )
    }

    fn check_block_bitmap(
        &mut self,
        number: u32,
        group: &Group,
        used: Option<&[u8]>,
        start: u64,
        clusters: u64,
        per_group: u64,
    ) -> Step {
        let sb = self.sb();
        let first = start
            .saturating_mul(self.ratio())
            .saturating_add(sb.first_data_block);
        if group.flags & BLOCK_UNINIT != 0 && sb.checked_descriptors() {
            // Only metadata may be in use, which the kernel knows without a bitmap (`ext4_init_block_bitmap`).
            let ratio = self.ratio();
            let stray = used.and_then(|used| {
                (0..clusters).find(|cluster| {
                    let block = first.saturating_add(cluster.saturating_mul(ratio));
                    bit(used, *cluster) && !self.fs.system_zone().overlaps(block, ratio)
                })
            });
            if let Some(cluster) = stray {
                let block = first.saturating_add(cluster.saturating_mul(ratio));
                let detail = format!("block {block} is in use, but the group is flagged empty");
                self.found(
                    Structure::GroupDescriptor(number),
                    locate(sb, number),
                    Problem::Bitmap,
                    detail,
                )?;
            }
            return Ok(());
        }
        self.compare(&Compared {
            structure: Structure::BlockBitmap(number),
            at: group.block_bitmap.saturating_mul(sb.block_size),
            used,
            bits: clusters,
            covered: per_group,
            checksum: group.block_bitmap_checksum,
            what: if self.ratio() == 1 {
                "block"
            } else {
                "cluster"
            },
            first: if self.ratio() == 1 { first } else { start },
        })
    }

    fn check_inode_bitmap(
        &mut self,
        number: u32,
        group: &Group,
        used: Option<&[u8]>,
        first: u32,
    ) -> Step {
        let sb = self.sb();
        if group.flags & INODE_UNINIT != 0 && sb.checked_descriptors() {
            if used.is_some() {
                self.found(
                    Structure::GroupDescriptor(number),
                    locate(sb, number),
                    Problem::Bitmap,
                    "inodes are in use, but the group is flagged empty",
                )?;
            }
            return Ok(());
        }
        self.compare(&Compared {
            structure: Structure::InodeBitmap(number),
            at: group.inode_bitmap.saturating_mul(sb.block_size),
            used,
            bits: u64::from(sb.inodes_per_group),
            covered: u64::from(sb.inodes_per_group),
            checksum: group.inode_bitmap_checksum,
            what: "inode",
            first: u64::from(first),
        })
    }

    fn compare(&mut self, this: &Compared<'_>) -> Step {
        let sb = self.sb();
        self.spend(sb.block_size)?;
        let mut bitmap = vec![0; index(sb.block_size)];
        self.fs.source.read("read a bitmap", this.at, &mut bitmap)?;
        if sb.checksums() {
            let covered = bitmap.get(..index(this.covered / 8)).unwrap_or_default();
            let sum = sb.seed.bytes(covered);
            // Small descriptors keep the lower half alone.
            let right = if sb.descriptor_size >= 64 {
                sum.value() == this.checksum
            } else {
                u32::from(sum.low()) == this.checksum
            };
            if !right {
                let detail = "the checksum does not match";
                self.found(this.structure, this.at, Problem::Malformed, detail)?;
            }
        }
        let whole = index(this.bits / 8);
        let none = Vec::new();
        let used = this.used.unwrap_or(&none);
        let same = match this.used {
            Some(used) => bitmap.get(..whole) == used.get(..whole),
            None => bitmap
                .get(..whole)
                .is_some_and(|b| b.iter().all(|byte| *byte == 0)),
        };
        let from = if same {
            len64(whole).saturating_mul(8)
        } else {
            0
        };
        let wrong = (from..this.bits).find(|number| bit(&bitmap, *number) != bit(used, *number));
        if let Some(number) = wrong {
            let count = (from..this.bits)
                .filter(|number| bit(&bitmap, *number) != bit(used, *number))
                .count();
            let detail = format!(
                "{count} bits are wrong, first {} {}, which is {}in use",
                this.what,
                this.first.saturating_add(number),
                if bit(used, number) { "" } else { "not " }
            );
            self.found(this.structure, this.at, Problem::Bitmap, detail)?;
        }
        let bits = sb.block_size.saturating_mul(8);
        if let Some(number) = (this.bits..bits).find(|number| !bit(&bitmap, *number)) {
            let detail = format!(
                "the padding from bit {} on is not set at {number}",
                this.bits
            );
            self.found(this.structure, this.at, Problem::Bitmap, detail)?;
        }
        Ok(())
    }
}

fn bit(bitmap: &[u8], number: u64) -> bool {
    bitmap
        .get(index(number / 8))
        .is_some_and(|byte| byte >> (number % 8) & 1 == 1)
}

fn count(bitmap: &[u8]) -> u64 {
    bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum()
}
