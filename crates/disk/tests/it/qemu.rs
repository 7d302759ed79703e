//! VHDX against `qemu-img`, both ways.

use lcow_blockio::testing::{Dice, Op, Recorder};
use lcow_blockio::{FileDisk, MemDisk, WriteAt};
use lcow_disk::vhdx::{self, CreateOptions};

use crate::support::{
    ID, Lab, MIB, copy, have_qemu, new_file, qemu_img, same, save, scribble, session, try_qemu_img,
};

#[test]
fn qemu_takes_what_is_made_here() {
    if !have_qemu() {
        lcow_testkit::skip!("no qemu-img");
    }
    let mut dice = Dice(7);
    for (size, block_size, sector) in [
        (20 << 30, 1 << 20, 512),
        (MIB / 2, 1 << 20, 512),
        (100 * MIB + 4096, 8 << 20, 4096),
        (30 << 30, 16 << 20, 512),
        (64 << 40, 32 << 20, 512),
    ] {
        // "Operation not supported", says QEMU 7.2 of sectors of 4 KiB.
        let known_to_qemu = sector == 512;
        let lab = Lab::new();
        let file = new_file(&lab.path("x.vhdx"));
        let options = CreateOptions {
            block_size,
            logical_sector_size: sector,
            ..CreateOptions::new(size, ID)
        };
        vhdx::create(&file, &options).unwrap();
        let model = MemDisk::new();
        model.set_len(size).unwrap();
        let case = format!("{size} bytes, blocks of {block_size}, sectors of {sector}");

        for n in 0..3 {
            let disk = vhdx::open_writable(&file, session(n)).unwrap();
            scribble(&disk, &model, &mut dice, 25);
            disk.close().unwrap();
            let report = vhdx::check(&file).unwrap();
            assert!(report.is_clean(), "{case}: {report:?}");
            same(&vhdx::open(&file).unwrap(), &model);
            if known_to_qemu {
                qemu_img(["check", "-f", "vhdx", &lab.name("x.vhdx")]);
            }
        }
        if !known_to_qemu {
            continue;
        }
        let info = qemu_img(["info", "-f", "vhdx", "--output=json", &lab.name("x.vhdx")]);
        for fact in [
            format!("\"virtual-size\": {size}"),
            format!("\"cluster-size\": {block_size}"),
        ] {
            assert!(info.contains(&fact), "{case}: {info}");
        }
        // The largest file of the test's file system is smaller than the largest disk.
        if size < 2 << 40 {
            same(&lab.as_qemu_reads("x.vhdx", "vhdx"), &model);
        }
    }
}

#[test]
fn what_qemu_makes_is_taken() {
    if !have_qemu() {
        lcow_testkit::skip!("no qemu-img");
    }
    let lab = Lab::new();
    let size = 70 * MIB;
    let raw = new_file(&lab.path("in.raw"));
    raw.set_len(size).unwrap();
    for at in [0, 5 * MIB - 100, 33 * MIB, size - 4096] {
        raw.write_all_at(at, &[at as u8 | 1; 4096]).unwrap();
    }
    for (subformat, block_size) in [
        ("dynamic", "1M"),
        ("dynamic", "8M"),
        ("dynamic", "256M"),
        ("fixed", "1M"),
        ("fixed", "32M"),
    ] {
        let options = format!("subformat={subformat},block_size={block_size}");
        let _ = std::fs::remove_file(lab.path("q.vhdx"));
        qemu_img([
            "convert",
            "-f",
            "raw",
            "-O",
            "vhdx",
            "-o",
            &options,
            &lab.name("in.raw"),
            &lab.name("q.vhdx"),
        ]);
        let file = new_file(&lab.path("q.vhdx"));
        let image = vhdx::open(&file).unwrap();
        assert_eq!(image.info().virtual_size, size, "{options}");
        assert_eq!(image.info().fixed, subformat == "fixed", "{options}");
        same(&image, &raw);
        let report = vhdx::check(&file).unwrap();
        assert!(report.is_clean(), "{options}: {report:?}");

        // Written here, it is still good there.
        let model = MemDisk::new();
        model.set_len(size).unwrap();
        copy(&raw, &model);
        let disk = vhdx::open_writable(&file, session(9)).unwrap();
        scribble(&disk, &model, &mut Dice(3), 30);
        disk.close().unwrap();
        assert!(vhdx::check(&file).unwrap().is_clean(), "{options}");
        qemu_img(["check", "-f", "vhdx", &lab.name("q.vhdx")]);
        same(&lab.as_qemu_reads("q.vhdx", "vhdx"), &model);
    }
}

#[test]
fn a_disk_that_grew_is_good_to_qemu() {
    if !have_qemu() {
        lcow_testkit::skip!("no qemu-img");
    }
    let lab = Lab::new();
    let file = new_file(&lab.path("x.vhdx"));
    vhdx::create(&file, &CreateOptions::new(MIB + 512, ID)).unwrap();
    let disk = vhdx::open_writable(&file, session(1)).unwrap();
    disk.write_all_at(MIB, &[1; 512]).unwrap();
    // Within the table's region, then with another one.
    for size in [50 << 30, 300 << 30] {
        disk.grow(size).unwrap();
        disk.write_all_at(size - 3, b"end").unwrap();
    }
    disk.close().unwrap();
    let report = vhdx::check(&file).unwrap();
    assert!(report.is_clean(), "{report:?}");
    qemu_img(["check", "-f", "vhdx", &lab.name("x.vhdx")]);
    same(
        &lab.as_qemu_reads("x.vhdx", "vhdx"),
        &vhdx::open(&file).unwrap(),
    );
}

/// Files as a crash leaves them, with a log that says more than the rest.
#[test]
fn a_log_is_replayed_as_qemu_does() {
    if !have_qemu() {
        lcow_testkit::skip!("no qemu-img");
    }
    let lab = Lab::new();
    let recorder = Recorder::default();
    vhdx::create(&recorder, &CreateOptions::new(200 << 30, ID)).unwrap();
    let begin = recorder.count();
    let disk = vhdx::open_writable(&recorder, session(1)).unwrap();
    let mut syncs = Vec::new();
    for n in 0..3_u64 {
        disk.write_all_at(n * 90 * MIB, &[n as u8 + 1; 100_000])
            .unwrap();
        disk.write_all_at(150 << 30, &[n as u8 + 7; 5000]).unwrap();
        disk.trim((n + 1) * 90 * MIB / 2, 90 * MIB).unwrap();
        disk.sync().unwrap();
        syncs.push(recorder.count());
    }
    disk.grow(300 << 30).unwrap();
    drop(disk);

    let ops = recorder.ops();
    let mut dirty = 0;
    for done in begin..=ops.len() {
        // Each state at a sync, and the one just before the next change of metadata in place.
        let at_sync = matches!(ops.get(done), Some(Op::Sync) | None);
        if !at_sync {
            continue;
        }
        let cut = MemDisk::new();
        for op in &ops[..done] {
            match op {
                Op::Write(at, bytes) => cut.write_all_at(*at, bytes).unwrap(),
                Op::SetLen(len) => cut.set_len(*len).unwrap(),
                Op::Zero(at, len) => cut.zero_range(*at, *len).unwrap(),
                Op::Sync => {}
            }
        }
        let image = vhdx::open(&cut).unwrap();
        if image.info().replayed == 0 {
            continue;
        }
        dirty += 1;
        save(&cut, &lab.path("d.vhdx"));
        let read_only = try_qemu_img(&["info", "-f", "vhdx", &lab.name("d.vhdx")]);
        assert!(!read_only.status.success(), "qemu sees the log too");
        qemu_img(["check", "-r", "all", "-f", "vhdx", &lab.name("d.vhdx")]);
        let theirs = FileDisk::open(&lab.path("d.vhdx")).unwrap();
        let replayed = vhdx::open(&theirs).unwrap();
        assert_eq!(replayed.info().replayed, 0, "qemu emptied the log");
        same(&replayed, &image);
        assert!(vhdx::check(&theirs).unwrap().is_clean());

        // Ours on the disk comes to the same.
        let ours = vhdx::open_writable(&cut, session(2)).unwrap();
        same(&ours, &replayed);
        drop(ours);
        assert_eq!(vhdx::open(&cut).unwrap().info().replayed, 0);
    }
    assert!(dirty > 5, "{dirty} states with a log");
    assert_eq!(syncs.len(), 3);
}
