//! Dynamic VHDs, which are only read.

use lcow_blockio::testing::Dice;
use lcow_blockio::{FileDisk, MemDisk, ReadAt, WriteAt};
use lcow_disk::vhd::{self, Creator, Geometry, Kind, VhdError};

use crate::support::{Lab, MIB, copy, have_qemu, new_file, qemu_img, same};

/// Sets the checksum of a footer or a dynamic header right.
fn seal(file: &MemDisk, at: u64, len: usize, checksum: usize) {
    let mut bytes = vec![0; len];
    file.read_exact_at(at, &mut bytes).unwrap();
    bytes[checksum..checksum + 4].fill(0);
    let sum: u32 = bytes.iter().map(|&b| u32::from(b)).sum();
    file.write_all_at(at + checksum as u64, &(!sum).to_be_bytes())
        .unwrap();
}

fn seal_all(file: &MemDisk) {
    seal(file, 0, 512, 64);
    seal(file, 512, 1024, 36);
    seal(file, file.size().unwrap() - 512, 512, 64);
}

/// 5 MiB in blocks of 2 MiB, of which the last, which is half behind the end, and the first have a place, in this order.
fn made() -> MemDisk {
    let file = MemDisk::new();
    let end = 2048 + 2 * (2 * MIB + 512);
    vhd::write_footer(&file, end, *b"0123456789abcdef").unwrap();
    for at in [0, end] {
        let mut footer = [0; 512];
        file.read_exact_at(end, &mut footer).unwrap();
        footer[16..24].copy_from_slice(&512_u64.to_be_bytes());
        footer[40..48].copy_from_slice(&(5 * MIB).to_be_bytes());
        footer[48..56].copy_from_slice(&(5 * MIB).to_be_bytes());
        footer[63] = 3;
        file.write_all_at(at, &footer).unwrap();
    }
    let mut header = vec![0; 1024];
    header[..8].copy_from_slice(b"cxsparse");
    header[8..16].fill(0xff);
    header[16..24].copy_from_slice(&1536_u64.to_be_bytes());
    header[24..28].copy_from_slice(&0x10000_u32.to_be_bytes());
    header[28..32].copy_from_slice(&3_u32.to_be_bytes());
    header[32..36].copy_from_slice(&(2_u32 << 20).to_be_bytes());
    file.write_all_at(512, &header).unwrap();
    let table = [4 + 4096 + 1, u32::MAX, 4];
    for (n, entry) in (0..).zip(table) {
        file.write_all_at(1536 + 4 * n, &entry.to_be_bytes())
            .unwrap();
    }
    for (block, byte) in [(0, b'c'), (1, b'a')] {
        let at = 2048 + block * (2 * MIB + 512);
        file.write_all_at(at, &[0xff; 512]).unwrap();
        file.write_all_at(at + 512, &vec![byte; 2 * MIB as usize])
            .unwrap();
    }
    seal_all(&file);
    file
}

#[test]
fn a_dynamic_disk_is_read() {
    let file = made();
    let disk = vhd::open_any(&file).unwrap();
    assert_eq!(disk.size().unwrap(), 5 * MIB);
    assert_eq!(disk.footer().kind, Kind::Dynamic { header_offset: 512 });
    assert_eq!(disk.dynamic().unwrap().check().unwrap(), 2);
    let mut all = vec![1; 6 * MIB as usize];
    assert_eq!(disk.read_at(0, &mut all).unwrap(), 5 * MIB as usize);
    for (n, expected) in [b'a', b'a', 0, 0, b'c', 1].into_iter().enumerate() {
        let mib = &all[n << 20..][..1 << 20];
        assert!(mib.iter().all(|&b| b == expected), "MiB {n}");
    }
    let first = disk.next_data(0).unwrap().unwrap();
    assert_eq!(first, 0..2 * MIB);
    assert_eq!(disk.next_data(first.end).unwrap(), Some(4 * MIB..5 * MIB));
    assert!(
        matches!(vhd::open(&file), Err(VhdError::Unsupported { .. })),
        "layers are fixed"
    );
}

#[test]
fn damage_is_found() {
    type Damage = fn(&MemDisk);
    let put = |file: &MemDisk, at: u64, bytes: &[u8]| file.write_all_at(at, bytes).unwrap();
    let cases: &[(&str, Damage)] = &[
        ("the copy of the footer", |f| {
            f.write_all_at(100, b"?").unwrap();
        }),
        ("the header", |f| f.write_all_at(600, b"?").unwrap()),
        ("the header's cookie", |f| {
            f.write_all_at(512, b"?").unwrap();
            seal_all(f);
        }),
        ("blocks of 3 MiB", |f| {
            f.write_all_at(512 + 32, &(3_u32 << 20).to_be_bytes())
                .unwrap();
            seal_all(f);
        }),
        ("blocks of 512 bytes", |f| {
            f.write_all_at(512 + 32, &512_u32.to_be_bytes()).unwrap();
            seal_all(f);
        }),
        ("a table that is too short", |f| {
            f.write_all_at(512 + 28, &2_u32.to_be_bytes()).unwrap();
            seal_all(f);
        }),
        ("a table behind the end", |f| {
            f.write_all_at(512 + 16, &(1_u64 << 40).to_be_bytes())
                .unwrap();
            seal_all(f);
        }),
        ("a header behind the end", |f| {
            for at in [0, f.size().unwrap() - 512] {
                f.write_all_at(at + 16, &(1_u64 << 62).to_be_bytes())
                    .unwrap();
            }
            seal_all(f);
        }),
        ("a copy of another size", |f| {
            f.write_all_at(48, &(4 * MIB).to_be_bytes()).unwrap();
            seal_all(f);
        }),
        ("a block behind the end", |f| {
            f.write_all_at(1536, &9000_u32.to_be_bytes()).unwrap();
        }),
        ("a block in the footer", |f| {
            // The last block, of which only half counts, alone.
            f.write_all_at(1536, &[0xff; 4]).unwrap();
            f.write_all_at(1536 + 8, &6150_u32.to_be_bytes()).unwrap();
        }),
        ("a header in the footer", |f| {
            let end = f.size().unwrap() - 512;
            let mut header = [0; 512];
            f.read_exact_at(512, &mut header).unwrap();
            f.write_all_at(end - 512, &header).unwrap();
            for at in [0, end] {
                f.write_all_at(at + 16, &(end - 512).to_be_bytes()).unwrap();
            }
            seal_all(f);
            seal(f, end - 512, 1024, 36);
        }),
        ("a block far behind the end", |f| {
            f.write_all_at(1536, &0xffff_fffe_u32.to_be_bytes())
                .unwrap();
        }),
        ("a block in the footer's copy", |f| {
            f.write_all_at(1536, &[0; 4]).unwrap();
        }),
        ("a block in the table", |f| {
            f.write_all_at(1536, &3_u32.to_be_bytes()).unwrap();
        }),
        ("a block in another", |f| {
            f.write_all_at(1536, &5_u32.to_be_bytes()).unwrap();
        }),
    ];
    for (name, damage) in cases {
        let file = made();
        damage(&file);
        let error = match vhd::open_any(&file) {
            Err(error) => error,
            Ok(disk) => disk.dynamic().unwrap().check().expect_err(name),
        };
        assert!(matches!(error, VhdError::Corrupt { .. }), "{name}: {error}");
    }
    // A version that is not known, and a parent.
    let file = made();
    put(&file, 512 + 24, &[9]);
    seal_all(&file);
    assert!(matches!(
        vhd::open_any(&file),
        Err(VhdError::Unsupported { .. })
    ));
    let file = made();
    put(&file, 63, &[4]);
    put(&file, file.size().unwrap() - 512 + 63, &[4]);
    seal_all(&file);
    assert!(matches!(vhd::open_any(&file), Err(VhdError::Differencing)));
}

#[test]
fn the_copy_counts_where_the_end_has_no_footer() {
    let file = made();
    file.set_len(file.size().unwrap() - 512).unwrap();
    let disk = vhd::open_any(&file).unwrap();
    assert_eq!(disk.dynamic().unwrap().check().unwrap(), 2);
    // But not for a fixed disk: its first bytes are a guest's.
    let fixed = MemDisk::new();
    vhd::write_footer(&fixed, MIB, [1; 16]).unwrap();
    let mut footer = [0; 512];
    fixed.read_exact_at(MIB, &mut footer).unwrap();
    fixed.write_all_at(0, &footer).unwrap();
    fixed.set_len(MIB + 100).unwrap();
    assert!(matches!(
        vhd::open_any(&fixed),
        Err(VhdError::Corrupt { .. })
    ));
}

#[test]
fn disks_of_virtual_pc_are_as_large_as_their_geometry() {
    let file = made();
    for at in [0, file.size().unwrap() - 512] {
        file.write_all_at(at + 28, &Creator::VIRTUAL_PC.0).unwrap();
    }
    seal_all(&file);
    let disk = vhd::open_any(&file).unwrap();
    assert_eq!(disk.footer().current_size, 5 * MIB);
    let Geometry {
        cylinders,
        heads,
        sectors,
    } = disk.footer().geometry;
    let shown = u64::from(cylinders) * u64::from(heads) * u64::from(sectors) * 512;
    assert!(shown < 5 * MIB);
    assert_eq!(disk.size().unwrap(), shown);
}

#[test]
fn what_qemu_makes_is_read() {
    if !have_qemu() {
        lcow_testkit::skip!("no qemu-img");
    }
    let lab = Lab::new();
    let mut dice = Dice(11);
    for (size, subformat) in [
        (70 * MIB, "dynamic"),
        (5 * MIB + 512, "dynamic"),
        (3 << 30, "dynamic"),
        (20 * MIB, "fixed"),
    ] {
        let model = MemDisk::new();
        model.set_len(size).unwrap();
        for _ in 0..20 {
            let bytes = vec![dice.roll(255) as u8 + 1; 1 + dice.roll(100_000) as usize];
            let at = dice.roll(size - bytes.len() as u64);
            model.write_all_at(at, &bytes).unwrap();
        }
        let _ = std::fs::remove_file(lab.path("in.raw"));
        let raw = new_file(&lab.path("in.raw"));
        raw.set_len(size).unwrap();
        copy(&model, &raw);
        let options = format!("subformat={subformat},force_size=on");
        let (from, to) = (lab.name("in.raw"), lab.name("q.vhd"));
        let _ = std::fs::remove_file(&to);
        qemu_img([
            "convert", "-f", "raw", "-O", "vpc", "-o", &options, &from, &to,
        ]);
        let disk = vhd::open_any(FileDisk::open(&lab.path("q.vhd")).unwrap()).unwrap();
        same(&disk, &model);
        let blocks = disk.dynamic().map(|d| d.check().unwrap());
        assert_eq!(blocks.is_some(), subformat == "dynamic");
        if let Some(blocks) = blocks {
            assert!(blocks >= 2, "{blocks}");
        }
    }
}
