//! Extended attributes: in the inode, in a shared block, in inodes of their own; as the kernel gives them.

use std::path::Path;

use lcow_ext4::Xattr;
use lcow_ext4::writer::{Content, WriteError};
use lcow_testkit::{LoopMount, is_root, run, skip};

use crate::support::{ROOT, dir, file, image, meta, noise};

fn xattr(name: &str, value: &[u8]) -> Xattr {
    Xattr {
        name: name.as_bytes().to_vec(),
        value: value.to_vec(),
    }
}

fn get(path: &Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 70_000];
    let len = rustix::fs::lgetxattr(path, name, &mut value)
        .unwrap_or_else(|e| panic!("{} {name}: {e}", path.display()));
    value.truncate(len);
    value
}

fn names(path: &Path) -> Vec<String> {
    let mut list = vec![0; 70_000];
    let len = rustix::fs::llistxattr(path, &mut list).unwrap();
    let text = String::from_utf8(list[..len].to_vec()).unwrap();
    let mut names: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn attributes_in_every_place_are_what_the_kernel_gives() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let sets = [
        ("small", vec![xattr("security.capability", &capability)]),
        ("empty-value", vec![xattr("user.empty", b"")]),
        (
            "sorted",
            // Neither length nor letters alone are the order.
            [
                "user.zz",
                "user.b",
                "trusted.aaa",
                "user.aaaa",
                "security.x",
                "user.a",
                "trusted.overlay.opaque",
            ]
            .map(|name| xattr(name, name.repeat(10).as_bytes()))
            .to_vec(),
        ),
        (
            "block",
            vec![
                xattr("user.large", &noise(3000, 1)),
                xattr("user.odd", &noise(77, 2)),
            ],
        ),
        (
            "full",
            vec![xattr("user.full", &noise(4096 - 32 - 20 - 4, 3))],
        ),
        (
            "inode",
            vec![
                xattr("user.one", &noise(65_536, 4)),
                xattr("user.two", &noise(5000, 5)),
                xattr("user.x", b"y"),
            ],
        ),
    ];
    let (image, _) = image(|w| {
        for (name, set) in &sets {
            let f = file(w, ROOT, name, b"data");
            w.set_xattrs(f, set).unwrap();
            let mut read = w.xattrs(f).unwrap();
            let mut expected = set.clone();
            read.sort();
            expected.sort();
            assert!(read == expected, "{name}");
        }
        let d = dir(w, ROOT, "dir");
        w.set_xattrs(d, &sets[2].1).unwrap();
        let l = w
            .create(ROOT, b"symlink", Content::Symlink(b"x"), &meta(0o777))
            .unwrap();
        w.set_xattrs(l, &[xattr("trusted.t", b"v")]).unwrap();
    });
    let mount = LoopMount::new(image.path(), "ro");
    let also = [
        ("dir", sets[2].1.clone()),
        ("symlink", vec![xattr("trusted.t", b"v")]),
    ];
    for (name, set) in sets.iter().chain(&also) {
        let path = mount.path().join(name);
        let mut expected: Vec<String> = set
            .iter()
            .map(|x| String::from_utf8(x.name.clone()).unwrap())
            .collect();
        expected.sort();
        assert_eq!(names(&path), expected, "{name}");
        for x in set {
            let attribute = String::from_utf8(x.name.clone()).unwrap();
            assert!(get(&path, &attribute) == x.value, "{name} {attribute}");
        }
    }
}

#[test]
fn acls_are_kept_in_ext4s_own_form() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    // What setfacl gives elsewhere, taken as getxattr gives it.
    let entry = |tag: u16, permissions: u16, id: u32| {
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
        bytes
    };
    let acl = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 6, !0),
        entry(2, 4, 1234),
        entry(4, 4, !0),
        entry(8, 5, 77),
        entry(16, 5, !0),
        entry(32, 0, !0),
    ]
    .concat();
    let (image, _) = image(|w| {
        let f = file(w, ROOT, "f", b"");
        w.set_xattrs(f, &[xattr("system.posix_acl_access", &acl)])
            .unwrap();
        let d = dir(w, ROOT, "d");
        let both = [
            xattr("system.posix_acl_default", &acl),
            xattr("system.posix_acl_access", &acl),
        ];
        w.set_xattrs(d, &both).unwrap();
        // An ACL without entries is none.
        let g = file(w, ROOT, "g", b"");
        w.set_xattrs(g, &[xattr("system.posix_acl_access", &[2, 0, 0, 0])])
            .unwrap();
        assert_eq!(w.xattrs(g).unwrap(), []);
        let error = w
            .set_xattrs(g, &[xattr("system.posix_acl_access", b"nonsense")])
            .unwrap_err();
        assert!(matches!(error, WriteError::InvalidAcl { .. }));
    });
    let mount = LoopMount::new(image.path(), "ro,acl");
    assert_eq!(get(&mount.path().join("f"), "system.posix_acl_access"), acl);
    assert_eq!(
        get(&mount.path().join("d"), "system.posix_acl_default"),
        acl
    );
    let listed = run(
        "getfacl",
        [
            "-n".as_ref(),
            "-p".as_ref(),
            mount.path().join("d").as_os_str(),
        ],
    );
    let listed = String::from_utf8(listed.stdout).unwrap();
    for line in [
        "user:1234:r--",
        "group:77:r-x",
        "mask::r-x",
        "default:user:1234:r--",
    ] {
        assert!(listed.contains(line), "{line} in\n{listed}");
    }
}

#[test]
fn files_with_the_same_attributes_share_blocks() {
    let value = noise(2000, 1);
    let (_, shared) = image(|w| {
        for i in 0..3000 {
            let f = file(w, ROOT, &format!("f{i}"), b"");
            w.set_xattrs(f, &[xattr("user.v", &value)]).unwrap();
        }
        // Some let go again.
        for i in 0..1500 {
            w.unlink(ROOT, format!("f{i}").as_bytes()).unwrap();
        }
    });
    let (_, without) = image(|w| {
        for i in 0..3000 {
            file(w, ROOT, &format!("f{i}"), b"");
        }
        for i in 0..1500 {
            w.unlink(ROOT, format!("f{i}").as_bytes()).unwrap();
        }
    });
    // 1,024 inodes share a block.
    assert!(shared.blocks - without.blocks <= 3);
}

#[test]
fn attributes_that_are_replaced_or_deleted_leave_nothing() {
    image(|w| {
        let f = file(w, ROOT, "f", b"");
        for size in [10, 3000, 60_000, 20, 50_000] {
            w.set_xattrs(f, &[xattr("user.v", &noise(size, 1))])
                .unwrap();
        }
        let g = file(w, ROOT, "g", b"");
        w.set_xattrs(g, &[xattr("user.v", &noise(50_000, 1))])
            .unwrap();
        w.set_xattrs(f, &[]).unwrap();
        assert_eq!(w.xattrs(f).unwrap(), []);
        let gone = w.unlink(ROOT, b"g").unwrap();
        assert_eq!(gone, [g]);
    });
}

#[test]
fn attributes_that_ext4_cannot_hold_are_refused() {
    image(|w| {
        let f = file(w, ROOT, "f", b"");
        for name in ["osx.thing", "user.", "user", "", "lustre.x", "system.other"] {
            let error = w.set_xattrs(f, &[xattr(name, b"v")]).unwrap_err();
            assert!(matches!(error, WriteError::XattrName { .. }), "{name}");
        }
        let long = format!("user.{}", "n".repeat(256));
        assert!(matches!(
            w.set_xattrs(f, &[xattr(&long, b"")]),
            Err(WriteError::XattrName { .. })
        ));
        let twice = [xattr("user.a", b"1"), xattr("user.a", b"2")];
        assert!(matches!(
            w.set_xattrs(f, &twice),
            Err(WriteError::XattrTwice { .. })
        ));
        let large = [xattr("user.a", &[1; 65_537])];
        assert!(matches!(
            w.set_xattrs(f, &large),
            Err(WriteError::XattrTooLarge { .. })
        ));
        let many: Vec<Xattr> = (0..300)
            .map(|i| xattr(&format!("user.{i}"), b"1"))
            .collect();
        assert!(matches!(
            w.set_xattrs(f, &many),
            Err(WriteError::TooManyXattrs { .. })
        ));
        assert_eq!(w.xattrs(f).unwrap(), []);
    });
}
