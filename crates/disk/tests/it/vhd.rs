//! The fixed VHD against its specification and `qemu-img`.

use std::fs::File;
use std::process::Command;

use lcow_blockio::{FileDisk, MemDisk, ReadAt, WriteAt};
use lcow_disk::vhd::{self, FOOTER_LEN, Geometry, VhdError};

const ID: [u8; 16] = *b"0123456789abcdef";

fn made(size: u64) -> Vec<u8> {
    let disk = MemDisk::new();
    vhd::write_footer(&disk, size, ID).unwrap();
    disk.into_bytes()
}

/// Changes one byte of the footer and sets the checksum right again.
fn with_byte(at: usize, value: u8) -> MemDisk {
    let mut bytes = made(4096);
    let footer = bytes.len() - 512;
    bytes[footer + at] = value;
    bytes[footer + 64..footer + 68].fill(0);
    let sum: u32 = bytes[footer..].iter().map(|&b| u32::from(b)).sum();
    bytes[footer + 64..footer + 68].copy_from_slice(&(!sum).to_be_bytes());
    bytes.into()
}

#[test]
fn a_footer_reads_back() {
    let bytes = made(1 << 20);
    assert_eq!(bytes.len() as u64, (1 << 20) + FOOTER_LEN);
    let (footer, contents) = vhd::open(MemDisk::from(bytes)).unwrap();
    assert_eq!((footer.current_size, footer.unique_id), (1 << 20, ID));
    assert_eq!(contents.size().unwrap(), 1 << 20);
}

#[test]
fn the_same_disk_gives_the_same_bytes() {
    assert_eq!(made(8192), made(8192));
}

#[test]
fn geometry_is_the_specifications() {
    // From the algorithm in the appendix, worked by hand at each of its turns.
    for (sectors, c, h, s) in [
        (0, 0, 4, 17),
        (17 * 4 * 900, 900, 4, 17),
        (17 * 16 * 1023, 1023, 16, 17),
        (17 * 16 * 1024, 561, 16, 31),
        (31 * 16 * 1024, 503, 16, 63),
        (65535 * 16 * 63, 16191, 16, 255),
        (65535 * 16 * 255 + 99, 65535, 16, 255),
    ] {
        let expected = Geometry {
            cylinders: c,
            heads: h,
            sectors: s,
        };
        assert_eq!(
            Geometry::for_size(sectors * 512),
            expected,
            "{sectors} sectors"
        );
    }
}

#[test]
fn qemu_img_sees_the_whole_disk() {
    if !lcow_testkit::have("qemu-img") {
        lcow_testkit::skip!("no qemu-img");
    }
    // 10,485,760 + 4,096 bytes are not expressible as a geometry: a reader that goes by it sees another size.
    let size = (10 << 20) + 4096;
    let file = tempfile::NamedTempFile::new().unwrap();
    let disk = FileDisk::from(
        File::options()
            .write(true)
            .read(true)
            .open(file.path())
            .unwrap(),
    );
    disk.write_all_at(size - 5, b"end!\n").unwrap();
    vhd::write_footer(&disk, size, ID).unwrap();

    let info = Command::new("qemu-img")
        .args(["info", "-f", "vpc", "--output=json"])
        .arg(file.path())
        .output()
        .unwrap();
    let info = String::from_utf8(info.stdout).unwrap();
    assert!(
        info.contains(&format!("\"virtual-size\": {size}")),
        "{info}"
    );

    let raw = tempfile::NamedTempFile::new().unwrap();
    let path = |f: &tempfile::NamedTempFile| f.path().to_str().unwrap().to_owned();
    lcow_testkit::run(
        "qemu-img",
        [
            "convert",
            "-f",
            "vpc",
            "-O",
            "raw",
            &path(&file),
            &path(&raw),
        ],
    );
    let raw = std::fs::read(raw.path()).unwrap();
    assert_eq!(raw.len() as u64, size);
    assert!(raw.ends_with(b"end!\n"));
}

#[test]
fn a_fixed_disk_made_by_qemu_img_opens() {
    if !lcow_testkit::have("qemu-img") {
        lcow_testkit::skip!("no qemu-img");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q.vhd");
    lcow_testkit::run(
        "qemu-img",
        [
            "create",
            "-f",
            "vpc",
            "-o",
            "subformat=fixed,force_size=on",
            path.to_str().unwrap(),
            "3M",
        ],
    );
    let (footer, contents) = vhd::open(FileDisk::open(&path).unwrap()).unwrap();
    assert_eq!(
        (footer.current_size, contents.size().unwrap()),
        (3 << 20, 3 << 20)
    );
}

#[test]
fn the_original_drivers_footer_opens() {
    // Its writer left geometry, creator and timestamp empty.
    let mut bytes = made(4096);
    let at = bytes.len() - 512;
    bytes[at + 24..at + 40].fill(0);
    bytes[at + 56..at + 60].fill(0);
    bytes[at + 64..at + 68].fill(0);
    let sum: u32 = bytes[at..].iter().map(|&b| u32::from(b)).sum();
    bytes[at + 64..at + 68].copy_from_slice(&(!sum).to_be_bytes());
    let (footer, _) = vhd::open(MemDisk::from(bytes)).unwrap();
    assert_eq!(
        (footer.current_size, footer.geometry),
        (4096, Geometry::default())
    );
}

#[test]
fn damage_and_other_kinds_are_told_apart() {
    let open = |disk: MemDisk| vhd::open(disk).unwrap_err();
    assert!(matches!(
        open(vec![0; 100].into()),
        VhdError::Corrupt { offset: 0, .. }
    ));
    assert!(
        matches!(
            open(vec![0; 4608].into()),
            VhdError::Corrupt { offset: 4096, .. }
        ),
        "no cookie"
    );
    let mut flipped = made(4096);
    *flipped.last_mut().unwrap() ^= 1;
    assert!(
        matches!(open(flipped.into()), VhdError::Corrupt { .. }),
        "checksum"
    );
    assert!(
        matches!(
            open(made(4096).split_off(512).into()),
            VhdError::Corrupt { .. }
        ),
        "cut short"
    );
    assert!(matches!(open(with_byte(63, 4)), VhdError::Differencing));
    assert!(matches!(open(with_byte(63, 3)), VhdError::Unsupported { kind } if kind == "dynamic"));
    assert!(matches!(
        open(with_byte(63, 9)),
        VhdError::Unsupported { .. }
    ));
    assert!(
        matches!(open(with_byte(12, 1)), VhdError::Unsupported { .. }),
        "format version"
    );
    assert!(
        matches!(open(with_byte(55, 1)), VhdError::Corrupt { .. }),
        "size not in sectors"
    );
    assert!(matches!(
        vhd::write_footer(&MemDisk::new(), 100, ID),
        Err(VhdError::Size { size: 100 })
    ));
}
