//! Traps that the image's bytes alone show; `lcow-layer`'s test `traps` has the whole list.

use lcow_blockio::ReadAt;
use lcow_ext4::Xattr;
use lcow_ext4::format::xattr::{BLOCK_HEADER_SIZE, MAGIC, XattrEntry, entry_size};
use lcow_ext4::format::{GroupDescriptor, Superblock};
use zerocopy::{FromBytes, IntoBytes};

use crate::support::{ROOT, file, image, noise};

#[test]
fn the_padding_of_bitmaps_is_set() {
    let (image, summary) = image(|w| {
        for n in 0..100 {
            file(w, ROOT, &format!("f{n}"), &noise(9000, n));
        }
    });
    let disk = image.disk();
    let mut sb = Superblock::zeroed();
    disk.read_exact_at(1024, sb.as_mut_bytes()).unwrap();
    let mut group = GroupDescriptor::zeroed();
    disk.read_exact_at(4096, group.as_mut_bytes()).unwrap();
    let padding = |block: u32, from: u64| {
        let mut bitmap = vec![0; 4096];
        disk.read_exact_at(u64::from(block) * 4096, &mut bitmap)
            .unwrap();
        (from..32_768).all(|bit| bitmap[bit as usize / 8] >> (bit % 8) & 1 == 1)
    };
    assert!(
        summary.blocks < 32_768,
        "one group, so that there is padding"
    );
    assert!(padding(group.bg_block_bitmap_lo.get(), summary.blocks));
    assert!(padding(
        group.bg_inode_bitmap_lo.get(),
        sb.s_inodes_per_group.get().into()
    ));
}

#[test]
fn attributes_of_a_block_are_sorted() {
    let names = [
        "user.zz",
        "user.a",
        "trusted.long-name",
        "user.mmmm",
        "security.b",
        "user.b",
    ];
    let xattrs = names.map(|name| Xattr {
        name: name.as_bytes().to_vec(),
        value: noise(100, 5),
    });
    let (image, _) = image(|w| {
        let f = file(w, ROOT, "f", b"x");
        w.set_xattrs(f, &xattrs).unwrap();
    });
    let bytes = image.bytes();
    let block = bytes
        .chunks_exact(4096)
        .find(|block| block[..4] == MAGIC.to_le_bytes())
        .expect("too much for the inode");
    let mut rest = &block[BLOCK_HEADER_SIZE..];
    let mut order = Vec::new();
    while rest[..4] != [0; 4] {
        let (entry, names) = XattrEntry::ref_from_prefix(rest).unwrap();
        let len = usize::from(entry.e_name_len);
        order.push((entry.e_name_index, len, names[..len].to_vec()));
        rest = &rest[entry_size(len)..];
    }
    assert_eq!(order.len(), names.len());
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn empty_groups_are_not_written() {
    // 100 GiB of holes between two blocks, over 800 groups if they were on the disk.
    let (image, summary) = image(|w| {
        let f = file(w, ROOT, "f", b"");
        w.begin_data(f).unwrap();
        w.write_data(&noise(4096, 1)).unwrap();
        w.skip_data(100 << 30).unwrap();
        w.write_data(&noise(4096, 2)).unwrap();
        w.end_data().unwrap();
    });
    assert!(summary.size_bytes < 1 << 20, "{summary:?}");
    assert!(image.allocated() < 128 << 10, "{}", image.allocated());
}
