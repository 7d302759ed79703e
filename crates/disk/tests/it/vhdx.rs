//! What a VHDX promises, without any other program.

use lcow_blockio::testing::Dice;
use lcow_blockio::{MemDisk, ReadAt, WriteAt};
use lcow_disk::vhdx::{self, CreateOptions, MAX_VIRTUAL_SIZE, VhdxError};

use crate::support::{ID, MIB, blank, same, scribble, session};

#[test]
fn a_blank_disk_takes_next_to_nothing() {
    for (size, block_size) in [
        (512, 1 << 20),
        (20 << 30, 1 << 20),
        (MAX_VIRTUAL_SIZE, 1 << 20),
        (MAX_VIRTUAL_SIZE, 256 << 20),
    ] {
        let file = blank(size, block_size);
        assert!(file.allocated() <= 512 << 10, "{}", file.allocated());
        let image = vhdx::open(&file).unwrap();
        assert_eq!(image.size().unwrap(), size);
        assert_eq!(image.info().id, ID);
        assert_eq!(image.info().block_size, block_size);
        assert_eq!(image.next_data(0).unwrap(), None);
        let mut end = [7; 100];
        assert_eq!(image.read_at(size - 60, &mut end).unwrap(), 60);
        assert_eq!((&end[..60], &end[60..]), (&[0; 60][..], &[7; 40][..]));
        assert!(vhdx::check(&file).unwrap().notes.is_empty());
        let disk = vhdx::open_writable(&file, session(1)).unwrap();
        disk.write_all_at(size - 10, b"0123456789").unwrap();
        assert!(disk.write_all_at(size - 9, b"0123456789").is_err());
        disk.close().unwrap();
        assert!(vhdx::check(&file).unwrap().notes.is_empty());
    }
}

#[test]
fn the_same_options_and_writes_give_the_same_bytes() {
    let [a, b] = [1, 2].map(|_| {
        let file = blank(1 << 30, 1 << 20);
        let disk = vhdx::open_writable(&file, session(1)).unwrap();
        scribble(&disk, &MemDisk::new(), &mut Dice(5), 30);
        disk.close().unwrap();
        file.into_bytes()
    });
    assert!(a == b);
}

#[test]
fn what_the_format_does_not_allow_is_refused() {
    let good = CreateOptions::new(1 << 30, ID);
    for options in [
        CreateOptions {
            virtual_size: 0,
            ..good.clone()
        },
        CreateOptions {
            virtual_size: 1000,
            ..good.clone()
        },
        CreateOptions {
            virtual_size: MAX_VIRTUAL_SIZE + 512,
            ..good.clone()
        },
        CreateOptions {
            virtual_size: 512,
            logical_sector_size: 4096,
            ..good.clone()
        },
        CreateOptions {
            block_size: 1 << 19,
            ..good.clone()
        },
        CreateOptions {
            block_size: 3 << 20,
            ..good.clone()
        },
        CreateOptions {
            block_size: 1 << 29,
            ..good.clone()
        },
        CreateOptions {
            logical_sector_size: 1024,
            ..good.clone()
        },
        CreateOptions {
            logical_sector_size: 4096,
            physical_sector_size: 512,
            ..good.clone()
        },
    ] {
        let made = vhdx::create(&MemDisk::new(), &options);
        assert!(
            matches!(made, Err(VhdxError::Refused { .. })),
            "{options:?}"
        );
    }
    let file = blank(1 << 30, 1 << 20);
    let disk = vhdx::open_writable(&file, session(1)).unwrap();
    for size in [1 << 29, (1 << 30) + 1, MAX_VIRTUAL_SIZE + 512] {
        assert!(
            matches!(disk.grow(size), Err(VhdxError::Refused { .. })),
            "{size}"
        );
    }
    let mut no_log = session(1);
    no_log.log = vhdx::Guid::ZERO;
    assert!(vhdx::open_writable(&file, no_log).is_err());
}

#[test]
fn a_disk_is_an_array_of_bytes() {
    let mut dice = Dice(99);
    for block_size in [1 << 20, 2 << 20, 16 << 20] {
        let mut size = 40 * MIB + 512;
        let file = blank(size, block_size);
        let model = MemDisk::new();
        model.set_len(size).unwrap();
        for n in 0..6 {
            let disk = vhdx::open_writable(&file, session(n)).unwrap();
            scribble(&disk, &model, &mut dice, 40);
            same(&disk, &model);
            size += 512 * dice.roll(100_000);
            disk.set_len(size).unwrap();
            model.set_len(size).unwrap();
            scribble(&disk, &model, &mut dice, 10);
            same(&disk, &model);
            if n % 2 == 0 {
                disk.close().unwrap();
            } else {
                disk.sync().unwrap();
                drop(disk);
            }
            same(&vhdx::open(&file).unwrap(), &model);
            let report = vhdx::check(&file).unwrap();
            assert!(report.is_clean(), "{report:?}");
        }
    }
}

#[test]
fn space_that_is_given_up_is_used_again() {
    let file = blank(1 << 30, 1 << 20);
    let disk = vhdx::open_writable(&file, session(1)).unwrap();
    for round in 0..5_u64 {
        for block in 0..20 {
            let at = (round * 30 + block) * MIB;
            disk.write_all_at(at, &vec![1; MIB as usize]).unwrap();
        }
        disk.trim(round * 30 * MIB, 20 * MIB).unwrap();
        disk.sync().unwrap();
    }
    assert_eq!(file.size().unwrap(), 24 * MIB);
    disk.close().unwrap();
    assert!(file.allocated() < MIB, "{}", file.allocated());
    assert_eq!(vhdx::check(&file).unwrap().unused, 20 * MIB);

    // What an earlier session left behind, too, and nothing of it shows.
    let disk = vhdx::open_writable(&file, session(2)).unwrap();
    disk.write_all_at(500 * MIB + 7, b"x").unwrap();
    let mut block = vec![1; MIB as usize];
    disk.read_exact_at(500 * MIB, &mut block).unwrap();
    assert_eq!(block.iter().position(|&b| b != 0), Some(7));
    assert_eq!(file.size().unwrap(), 24 * MIB);
}

#[test]
fn what_lies_behind_the_end_is_not_shown_by_growing() {
    let file = blank(2 * MIB, 1 << 20);
    let disk = vhdx::open_writable(&file, session(1)).unwrap();
    disk.write_all_at(0, &vec![7; 2 * MIB as usize]).unwrap();
    disk.close().unwrap();
    // Another program made the disk smaller, and left everything where it was: one block and a half.
    let half = (MIB + MIB / 2).to_le_bytes();
    file.write_all_at(2 * MIB + (64 << 10) + 8, &half).unwrap();
    let disk = vhdx::open_writable(&file, session(2)).unwrap();
    assert_eq!(disk.size().unwrap(), MIB + MIB / 2);
    disk.grow(3 * MIB).unwrap();
    let mut end = vec![1; 3 * MIB as usize / 2];
    disk.read_exact_at(MIB + MIB / 2, &mut end).unwrap();
    assert!(end.iter().all(|&b| b == 0));
}

#[test]
fn a_copy_gets_an_identity_of_its_own_and_keeps_its_contents() {
    let file = blank(1 << 30, 1 << 20);
    let disk = vhdx::open_writable(&file, session(1)).unwrap();
    disk.write_all_at(5 * MIB, b"contents").unwrap();
    disk.set_id(vhdx::Guid([9; 16])).unwrap();
    disk.set_id(vhdx::Guid([9; 16])).unwrap();
    assert_eq!(disk.info().id, vhdx::Guid([9; 16]));
    // It is safe without a sync, and so is what was written before it.
    drop(disk);
    let image = vhdx::open(&file).unwrap();
    assert_eq!(
        (image.info().id, image.size().unwrap()),
        (vhdx::Guid([9; 16]), 1 << 30)
    );
    let mut word = [0; 8];
    image.read_exact_at(5 * MIB, &mut word).unwrap();
    assert_eq!(&word, b"contents");
    assert!(vhdx::check(&file).unwrap().is_clean());
}

#[test]
fn readers_and_writers_go_side_by_side() {
    let file = blank(1 << 30, 1 << 20);
    let disk = vhdx::open_writable(&file, session(1)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut dice = Dice(thread + 1);
                for n in 0..200 {
                    let at = (dice.roll(250) * 4 + thread) * 4096;
                    let bytes = [n as u8; 4096];
                    disk.write_all_at(at, &bytes).unwrap();
                    let mut read = [0; 4096];
                    disk.read_exact_at(at, &mut read).unwrap();
                    assert_eq!(read, bytes);
                    if n % 50 == 0 {
                        disk.sync().unwrap();
                        disk.trim(thread * 64 * MIB + 64 * MIB, MIB).unwrap();
                    }
                }
            });
        }
    });
    disk.close().unwrap();
    assert!(vhdx::check(&file).unwrap().is_clean());
}

#[test]
fn the_headers_say_that_the_file_changed() {
    let file = blank(1 << 30, 1 << 20);
    let disk = vhdx::open_writable(&file, session(1)).unwrap();
    disk.close().unwrap();
    assert_eq!(
        vhdx::open(&file).unwrap().info().data_write_guid,
        ID,
        "nothing did"
    );
    let disk = vhdx::open_writable(&file, session(1)).unwrap();
    disk.write_all_at(0, b"x").unwrap();
    drop(disk);
    let info = vhdx::open(&file).unwrap().info().clone();
    assert_eq!(info.data_write_guid, session(1).data_write);
    assert_eq!(info.id, ID);
}
