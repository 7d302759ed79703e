//! What other converters get wrong, one test each.
//!
//! | trap | test |
//! |---|---|
//! | files over 42.5 GiB are damaged, where an extent tree grows past one index level | `lcow-ext4` `kernel::a_file_of_fifty_gibibytes_ends_right`, `limits::files_are_as_large_as_ext4_takes_and_no_larger` |
//! | the padding of bitmaps is not set | `lcow-ext4` `traps::the_padding_of_bitmaps_is_set` |
//! | attributes in a block are not sorted, and the kernel misses them | `lcow-ext4` `traps::attributes_of_a_block_are_sorted`, `xattrs::attributes_in_every_place_are_what_the_kernel_gives` |
//! | POSIX ACLs are stored in the form of the system calls | `lcow-ext4` `xattrs::acls_are_kept_in_ext4s_own_form` |
//! | times before 1970, and from 2038 to 2446 | `times_before_1970_and_after_2038`, `lcow-ext4` `kernel::times_before_1970_and_after_2038` |
//! | empty groups are written as zeros | `lcow-ext4` `traps::empty_groups_are_not_written`, `mkfs::twenty_gigabytes_take_less_than_a_mebibyte` |
//! | a later duplicate of a file that is not empty | `a_later_duplicate_replaces` |
//! | a file over a directory, and back | `a_file_over_a_directory_and_back` |
//! | a hard link before its target | `a_hard_link_before_its_target_is_refused_as_by_gnu_tar` |
//! | a whiteout of a name in the same layer | `a_whiteout_of_a_name_in_the_same_layer` |
//! | names that are not UTF-8 | `names_that_are_not_utf8` |
//! | implied parents | `implied_parents` |
//! | nanoseconds are lost | `nanoseconds` |
//! | devices and FIFOs are lost | `devices_and_fifos` |
//! | all attributes but capabilities are lost | `attributes_of_every_namespace` |
//! | GNU's sparse files | `extraction::the_kernel_shows_what_gnu_tar_extracts`, `gnu::every_format_of_gnu_tar_comes_back_exactly` |
//! | more than 65,000 subdirectories need `dir_nlink` | `lcow-ext4` `limits::seventy_thousand_subdirectories_show_one_link` |
//! | more than 65,000 links | `more_links_than_ext4_counts_are_refused`, `lcow-ext4` `limits::sixty_five_thousand_links_and_no_more` |
//! | directories without hash trees | `lcow-ext4` `kernel::the_kernel_finds_every_name_of_a_large_directory` (300,000 names) |
//! | random UUIDs | `uuids_come_from_the_diff_id` |

use lcow_blockio::ReadAt;
use lcow_ext4::FileType;
use lcow_ext4::check::{CheckOptions, check};
use lcow_layer::apply::{ApplyError, ApplyOptions, Refusal};

use crate::apply::assert_exact;
use crate::support::{Made, Tree, make, make_with, tree};
use crate::tars::{Hand, tar};

/// Applies a tar; the disk is in order, and gives the tar back.
fn applied(entries: &[Hand]) -> (Made, Tree) {
    let bytes = tar(entries);
    let made = make(&bytes).unwrap();
    let report = check(&made.disk, &CheckOptions::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_exact(&made, &bytes);
    let tree = tree(&made.disk);
    (made, tree)
}

fn refused(entries: &[Hand], options: &ApplyOptions) -> Refusal {
    match make_with(&tar(entries), options) {
        Err(ApplyError::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn types(tree: &Tree) -> Vec<(String, FileType, u64)> {
    tree.iter()
        .filter(|(path, _)| !path.is_empty())
        .map(|(path, node)| {
            let file_type = FileType::from_mode(node.mode).unwrap();
            let size = if file_type == FileType::Directory {
                0
            } else {
                node.size
            };
            (String::from_utf8_lossy(path).into_owned(), file_type, size)
        })
        .collect()
}

#[test]
fn times_before_1970_and_after_2038() {
    let entries: Vec<Hand> = [-1_i64, 0, 1 << 31, 1 << 32, 0x3_7fff_ffff, -(1 << 31)]
        .into_iter()
        .flat_map(|secs| {
            let name = format!("t{secs}");
            [
                Hand::pax(&[("mtime", secs.to_string().as_bytes())]),
                Hand::file(&name, b"x"),
            ]
        })
        .collect();
    let (_, tree) = applied(&entries);
    for (path, node) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        let name = String::from_utf8(path.clone()).unwrap();
        assert_eq!(format!("t{}", node.mtime.secs), name);
    }
}

#[test]
fn a_later_duplicate_replaces() {
    let (_, tree) = applied(&[Hand::file("a", &[1; 9000]), Hand::file("a", b"new")]);
    assert_eq!(types(&tree), [("a".to_owned(), FileType::Regular, 3)]);
}

#[test]
fn a_file_over_a_directory_and_back() {
    let (_, tree) = applied(&[
        Hand::file("a/b/c", b"1"),
        Hand::file("a", b"22"),
        Hand::dir("a"),
        Hand::file("a/d", b"333"),
    ]);
    let expected = [
        ("a".to_owned(), FileType::Directory, 0),
        ("a/d".to_owned(), FileType::Regular, 3),
    ];
    assert_eq!(types(&tree), expected);
}

/// GNU tar says `Cannot hard link to 'b': No such file or directory` and ends with 2.
#[test]
fn a_hard_link_before_its_target_is_refused_as_by_gnu_tar() {
    let entries = [Hand::link("a", "b"), Hand::file("b", b"1")];
    let reason = refused(&entries, &ApplyOptions::default());
    assert!(matches!(reason, Refusal::MissingTarget(_)), "{reason:?}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t"), tar(&entries)).unwrap();
    let theirs = std::process::Command::new("tar")
        .args(["-xf", "t"])
        .current_dir(dir.path())
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    assert_eq!(theirs.status.code(), Some(2));
}

#[test]
fn a_whiteout_of_a_name_in_the_same_layer() {
    for entries in [
        [Hand::file(".wh.a", b""), Hand::file("a", b"1")],
        [Hand::file("a", b"1"), Hand::file(".wh.a", b"")],
    ] {
        let (_, tree) = applied(&entries);
        assert_eq!(types(&tree), [("a".to_owned(), FileType::Regular, 1)]);
    }
}

#[test]
fn names_that_are_not_utf8() {
    let name = b"caf\xe9-\xff\xfe";
    let (_, tree) = applied(&[
        Hand::file("plain", b"").bytes(0, name),
        Hand::symlink("link", "").bytes(157, name),
    ]);
    assert!(tree.contains_key(&name[..]), "{tree:?}");
    assert_eq!(tree[&b"link"[..]].link.as_deref(), Some(&name[..]));
}

#[test]
fn implied_parents() {
    let (_, tree) = applied(&[
        Hand::file("a/b/c", b"1"),
        Hand::dir("a").octal_at(100, 7, 0o700).octal_at(108, 7, 7),
    ]);
    let (a, b) = (&tree[&b"a"[..]], &tree[&b"a/b"[..]]);
    assert_eq!(
        (a.mode & 0o7777, a.uid),
        (0o700, 7),
        "its own metadata came later"
    );
    assert_eq!(
        (b.mode & 0o7777, b.uid, b.gid),
        (0o755, 0, 0),
        "nobody said anything of it"
    );
}

#[test]
fn nanoseconds() {
    let (_, tree) = applied(&[
        Hand::pax(&[("mtime", b"1600000000.123456789")]),
        Hand::file("f", b""),
    ]);
    let time = tree[&b"f"[..]].mtime;
    assert_eq!((time.secs, time.nanos), (1_600_000_000, 123_456_789));
}

#[test]
fn devices_and_fifos() {
    let (_, tree) = applied(&[
        Hand::new(b'3', "c").octal_at(329, 7, 1).octal_at(337, 7, 3),
        Hand::new(b'4', "b")
            .octal_at(329, 7, 259)
            .octal_at(337, 7, 70_000),
        Hand::new(b'6', "p"),
    ]);
    assert_eq!(tree[&b"c"[..]].device, Some((1, 3)));
    assert_eq!(tree[&b"b"[..]].device, Some((259, 70_000)));
    let kinds: Vec<FileType> = types(&tree).into_iter().map(|(_, kind, _)| kind).collect();
    assert_eq!(
        kinds,
        [FileType::BlockDevice, FileType::CharDevice, FileType::Fifo]
    );
}

#[test]
fn attributes_of_every_namespace() {
    let acl = [
        2_u8, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0,
        255, 255, 255, 255,
    ];
    let names = ["user.u", "trusted.t", "security.s", "security.capability"];
    let mut records: Vec<(String, &[u8])> = names
        .iter()
        .map(|name| (format!("SCHILY.xattr.{name}"), &b"value"[..]))
        .collect();
    records.push(("SCHILY.xattr.system.posix_acl_access".to_owned(), &acl));
    let records: Vec<(&str, &[u8])> = records.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    let (_, tree) = applied(&[Hand::pax(&records), Hand::file("f", b"")]);
    let mut expected: Vec<(Vec<u8>, Vec<u8>)> = names
        .iter()
        .map(|name| (name.as_bytes().to_vec(), b"value".to_vec()))
        .collect();
    expected.push((b"system.posix_acl_access".to_vec(), acl.to_vec()));
    expected.sort();
    assert_eq!(tree[&b"f"[..]].xattrs, expected);
}

#[test]
fn more_links_than_ext4_counts_are_refused() {
    let mut entries = vec![Hand::file("f", b"x")];
    entries.extend((0..65_000).map(|n| Hand::link(&format!("l{n}"), "f")));
    let reason = refused(&entries, &ApplyOptions::default());
    assert!(matches!(reason, Refusal::TooManyLinks), "{reason:?}");
}

#[test]
fn uuids_come_from_the_diff_id() {
    let options = ApplyOptions {
        vhd: true,
        ..ApplyOptions::default()
    };
    let identity = |tar: &[u8]| {
        let disk = make_with(tar, &options).unwrap().disk;
        let mut uuid = [0; 16];
        disk.read_exact_at(1024 + 0x68, &mut uuid).unwrap();
        let mut footer = [0; 16];
        disk.read_exact_at(disk.size().unwrap() - 512 + 68, &mut footer)
            .unwrap();
        (uuid, footer)
    };
    let (one, other) = (tar(&[Hand::dir("a")]), tar(&[Hand::dir("b")]));
    assert_eq!(identity(&one), identity(&one));
    assert_ne!(identity(&one).0, identity(&other).0);
    assert_ne!(identity(&one).1, identity(&other).1);
}

/// The refusals of the layer format that take more than one small entry to bring about; the rest are in
/// `apply::hostile_entries_are_refused` and `apply::damaged_archives_are_told_apart`.
#[test]
fn what_is_too_much_is_refused() {
    let small = ApplyOptions {
        max_size: 1 << 20,
        ..ApplyOptions::default()
    };
    let large = [Hand::file("f", &vec![7; 2 << 20])];
    let reason = refused(&large, &small);
    assert!(
        matches!(reason, Refusal::TooLarge(size) if size == 1 << 20),
        "{reason:?}"
    );
    for key in ["path", "linkpath"] {
        let zero = [Hand::pax(&[(key, b"a\0b")]), Hand::symlink("f", "t")];
        let error = make(&tar(&zero)).unwrap_err();
        assert!(matches!(error, ApplyError::BadArchive { .. }), "{error:?}");
    }
    let room = [
        Hand::pax(&[("size", b"99999999999999999999")]),
        Hand::file("f", b""),
    ];
    assert!(make(&tar(&room)).is_err());
}
