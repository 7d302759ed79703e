//! Mends the checksums of an image that was patched, so that what lies behind them is reached.
//!
//! Everything that a reader could get to by plain means is sealed again; what is too broken to be found stays as it is.

use lcow_ext4::format::Checksum;
use lcow_ext4::format::checksum::crc16;

use crate::bytes::{get, le16, le32, part, put};
use crate::image::Geometry;
use crate::naive;

const SB: usize = 1024;
const METADATA_CSUM: u32 = 0x400;
const GDT_CSUM: u32 = 0x10;
const CSUM_SEED: u32 = 0x2000;

/// Seals the superblock, descriptors, bitmaps, inodes, extent, directory, hash tree and attribute blocks.
pub(crate) fn mend(image: &mut [u8]) {
    let Some(geometry) = Geometry::of(image) else {
        return;
    };
    let uuid = get::<16>(image, SB + 0x68);
    if geometry.ro_compat & METADATA_CSUM != 0 {
        let seed = if geometry.incompat & CSUM_SEED != 0 {
            Checksum::from_seed(le32(image, SB + 0x270))
        } else {
            Checksum::from_uuid(&uuid)
        };
        // Descriptors first: they say where the inodes are, and their own seal is that of the bitmaps too.
        for group in 0..geometry.groups {
            seal_bitmaps(image, &geometry, seed, group);
            let at = geometry.descriptor_at(image, group);
            put(image, at + 0x1e, &[0; 2]);
            let number = u32::try_from(group).unwrap_or(0);
            let sum = seed.u32(number).bytes(part(image, at, geometry.descriptor));
            put(image, at + 0x1e, &sum.low().to_le_bytes());
        }
        let inodes = (geometry.groups * geometry.inodes_per_group).min(8192);
        for number in 1..=inodes {
            seal_inode(image, &geometry, seed, number);
        }
        let sum = Checksum::START.bytes(part(image, SB, 1020)).value();
        put(image, SB + 1020, &sum.to_le_bytes());
    } else if geometry.ro_compat & GDT_CSUM != 0 {
        for group in 0..geometry.groups {
            let at = geometry.descriptor_at(image, group);
            let number = u32::try_from(group).unwrap_or(0);
            let sum = crc16(crc16(!0, &uuid), &number.to_le_bytes());
            let sum = crc16(sum, part(image, at, 0x1e));
            let behind = part(image, at + 0x20, geometry.descriptor - 0x20);
            let sum = crc16(sum, behind);
            put(image, at + 0x1e, &sum.to_le_bytes());
        }
    }
}

fn seal_bitmaps(image: &mut [u8], geometry: &Geometry, seed: Checksum, group: usize) {
    let at = geometry.descriptor_at(image, group);
    let flags = le16(image, at + 0x12);
    for (low, high, bits, sum_low, sum_high, unused) in [
        (0, 0x20, geometry.clusters_per_group, 0x18, 0x38, 2),
        (4, 0x24, geometry.inodes_per_group, 0x1a, 0x3a, 1),
    ] {
        if flags & unused != 0 {
            // That bitmap is not on the disk.
            continue;
        }
        let block = geometry.descriptor_block(image, group, low, high);
        let Some(start) = block.checked_mul(geometry.block) else {
            continue;
        };
        let sum = seed.bytes(part(image, start, (bits / 8).min(geometry.block)));
        put(image, at + sum_low, &sum.low().to_le_bytes());
        if geometry.descriptor >= 64 {
            put(image, at + sum_high, &sum.high().to_le_bytes());
        }
    }
}

fn seal_inode(image: &mut [u8], geometry: &Geometry, seed: Checksum, number: usize) {
    let Some(at) = geometry.inode_at(image, number) else {
        return;
    };
    let raw = part(image, at, geometry.inode_size).to_vec();
    if raw.iter().all(|&b| b == 0) {
        return;
    }
    let number = u32::try_from(number).unwrap_or(0);
    let own = seed.inode(number, le32(&raw, 0x64));
    let flags = le32(&raw, 0x20);
    if le16(&raw, 0) & 0xf000 == 0x4000
        && let Some(blocks) = naive::blocks(image, geometry, at)
    {
        for (logical, physical, _) in blocks {
            let indexed = flags & 0x1000 != 0;
            seal_directory(image, geometry.block, physical, own, indexed, logical == 0);
        }
    }
    if flags & 0x8_0000 != 0 {
        let mut budget = 64;
        seal_extents(
            image,
            geometry.block,
            part(&raw, 0x28, 60),
            own,
            0,
            &mut budget,
        );
    }
    let acl = u64::from(le32(&raw, 0x68)) | u64::from(le16(&raw, 0x76)) << 32;
    if acl != 0
        && let Some(start) = usize::try_from(acl)
            .ok()
            .and_then(|acl| acl.checked_mul(geometry.block))
    {
        put(image, start.saturating_add(0x10), &[0; 4]);
        let sum = seed.u64(acl).bytes(part(image, start, geometry.block));
        put(
            image,
            start.saturating_add(0x10),
            &sum.value().to_le_bytes(),
        );
    }
    // The seal of the inode itself, whose fields for it count as zeros.
    let mut raw = raw;
    put(&mut raw, 0x7c, &[0; 2]);
    let wide = raw.len() > 128 && le16(&raw, 0x80) >= 4;
    if wide {
        put(&mut raw, 0x82, &[0; 2]);
    }
    let sum = own.bytes(&raw);
    put(image, at + 0x7c, &sum.low().to_le_bytes());
    if wide {
        put(image, at + 0x82, &sum.high().to_le_bytes());
    }
}

fn seal_directory(
    image: &mut [u8],
    size: usize,
    block: usize,
    own: Checksum,
    indexed: bool,
    first: bool,
) {
    let Some(start) = block.checked_mul(size) else {
        return;
    };
    let bytes = part(image, start, size).to_vec();
    if bytes.is_empty() {
        return;
    }
    let node = le32(&bytes, 0) == 0 && usize::from(le16(&bytes, 4)) == size;
    if indexed && (first || node) {
        let entries = if first { 32 } else { 8 };
        let tail = entries + usize::from(le16(&bytes, entries)) * 8;
        let used = entries + usize::from(le16(&bytes, entries + 2)) * 8;
        if tail + 8 <= size && used <= size {
            let sum = own
                .bytes(&bytes[..used])
                .bytes(&bytes[tail..tail + 4])
                .bytes(&[0; 4]);
            put(image, start + tail + 4, &sum.value().to_le_bytes());
        }
    } else {
        let sum = own.bytes(&bytes[..size - 12]);
        put(image, start + size - 4, &sum.value().to_le_bytes());
    }
}

fn seal_extents(
    image: &mut [u8],
    size: usize,
    node: &[u8],
    own: Checksum,
    level: usize,
    budget: &mut usize,
) {
    if le16(node, 6) == 0 || level > 5 {
        return;
    }
    for entry in 1..=usize::from(le16(node, 2)) {
        let Some(left) = budget.checked_sub(1) else {
            return;
        };
        *budget = left;
        let child = usize::try_from(le32(node, entry * 12 + 4)).unwrap_or(usize::MAX);
        let Some(start) = child.checked_mul(size) else {
            continue;
        };
        let bytes = part(image, start, size).to_vec();
        let tail = 12 + usize::from(le16(&bytes, 4)) * 12;
        if tail + 4 <= bytes.len() {
            let sum = own.bytes(&bytes[..tail]);
            put(image, start + tail, &sum.value().to_le_bytes());
        }
        seal_extents(image, size, &bytes, own, level + 1, budget);
    }
}

#[cfg(test)]
mod tests {
    use super::mend;
    use crate::image::base;

    #[test]
    fn images_in_order_are_left_as_they_are() {
        for number in 0..19 {
            let before = &base(number).bytes;
            let mut after = before.clone();
            mend(&mut after);
            let at = before.iter().zip(&after).position(|(a, b)| a != b);
            assert_eq!(at, None, "image {number}");
        }
    }

    #[test]
    fn a_patch_is_sealed() {
        use crate::bytes::Bytes;
        use lcow_ext4::reader::Filesystem;
        let mut image = base(0).bytes.clone();
        image[1024 + 0x78] ^= 1;
        assert!(Filesystem::open(Bytes(&image)).is_err());
        mend(&mut image);
        assert!(Filesystem::open(Bytes(&image)).is_ok());
    }
}
