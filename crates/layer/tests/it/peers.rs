//! Other people's crates as oracles: what `ext4-view` reads of our disks, and what `mkext4` makes of the same tars.

use std::collections::HashMap;

use lcow_ext4::Timestamp;
use lcow_layer::digest::Digest;
use lcow_testkit::{Corpora, skip};
use mkext4::sink::VecSink;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Meta, Options, ROOT, SpecialKind};
use proptest::prelude::*;
use tar::EntryType;

use crate::support::{Made, Tree, make, tree};
use crate::tars::{Hand, tar};

/// Tars of the collection that both crates can do with: names in UTF-8, no sparse files in PAX form.
const CORPORA: &[&str] = &[
    "tar-go/file-and-dir.tar",
    "tar-go/ustar.tar",
    "tar-go/v7.tar",
    "tar-go/pax-records.tar",
    "tar-tar-rs/tests__archives__directory.tar",
    "tar-tar-rs/tests__archives__duplicate_dirs.tar",
    "tar-tar-rs/tests__archives__file_times.tar",
    "tar-tar-rs/tests__archives__pax.tar",
    "tar-tar-rs/tests__archives__reading_files.tar",
    "tar-tar-rs/tests__archives__simple.tar",
    "tar-tar-rs/tests__archives__sparse.tar",
    "tar-tar-rs/tests__archives__xattrs.tar",
];

/// What the reader of our own finds, beside what ext4-view does. It knows nothing of attributes, inode numbers, link counts and
/// device numbers, and calls times corrupt whose lower 32 bits are a negative number: before 1970, and from 2038 on for 68 years.
fn as_ext4_view_reads(made: &Made) {
    let mut bytes = vec![0; usize::try_from(made.applied.disk_size).unwrap()];
    lcow_blockio::ReadAt::read_exact_at(&made.disk, 0, &mut bytes).unwrap();
    let fs = ext4_view::Ext4::load(Box::new(bytes)).unwrap();
    let ours = tree(&made.disk);
    let mut found = 0;
    let mut directories = vec![Vec::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs.read_dir(&[b"/", &directory[..]].concat()[..]).unwrap() {
            let name = entry.unwrap().file_name().as_ref().to_vec();
            if name == b"." || name == b".." {
                continue;
            }
            let mut path = directory.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name);
            let shown = path.escape_ascii().to_string();
            let node = ours
                .get(&path)
                .unwrap_or_else(|| panic!("{shown}: not ours"));
            let full = [b"/", &path[..]].concat();
            let metadata = fs.symlink_metadata(&full[..]).unwrap();
            let time = metadata.modified();
            let theirs = (
                metadata.mode() & 0o7777,
                metadata.uid(),
                metadata.gid(),
                (time.seconds(), time.nanoseconds()),
            );
            let own = (node.mtime.secs, node.mtime.nanos);
            assert_eq!(
                theirs,
                (node.mode & 0o7777, node.uid, node.gid, own),
                "{shown}"
            );
            let kind = metadata.file_type();
            let format = match node.mode & 0o170_000 {
                0o040_000 => kind.is_dir(),
                0o100_000 => kind.is_regular_file(),
                0o120_000 => kind.is_symlink(),
                0o020_000 => kind.is_char_dev(),
                0o060_000 => kind.is_block_dev(),
                0o010_000 => kind.is_fifo(),
                _ => kind.is_socket(),
            };
            assert!(format, "{shown}: {kind:?}");
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_symlink() {
                let target = fs.read_link(&full[..]).unwrap();
                assert_eq!(Some(target.as_ref()), node.link.as_deref(), "{shown}");
            } else if kind.is_regular_file() {
                let content = fs.read(&full[..]).unwrap();
                assert_eq!(content.len() as u64, node.size, "{shown}");
                assert_eq!(Some(Digest::of(&content)), node.content, "{shown}");
            }
            found += 1;
        }
    }
    assert_eq!(found + 1, ours.len(), "ext4-view finds fewer files");
}

/// A tar by way of mkext4. It wants the names of all files before any data, so the tar is read twice.
struct Peer {
    builder: FsBuilder,
    known: HashMap<Vec<String>, InodeHandle>,
}

impl Peer {
    fn new() -> Self {
        let mut options = Options::new(64 << 20, *b"lcow-tests-peers", 0);
        options.inodes = InodeCount::Exact(1024);
        Self {
            builder: FsBuilder::new(options).unwrap(),
            known: HashMap::from([(Vec::new(), ROOT)]),
        }
    }

    fn directory(&mut self, path: &[String]) -> InodeHandle {
        if let Some(&known) = self.known.get(path) {
            return known;
        }
        let (name, above) = path.split_last().unwrap();
        let parent = self.directory(above);
        let made = self
            .builder
            .mkdir(parent, name, Meta::new(0o755, 0, 0, (0, 0)));
        let made = made.unwrap();
        self.known.insert(path.to_vec(), made);
        made
    }

    /// Declares an entry; a file whose data is to come is returned.
    fn declare<R: std::io::Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Option<InodeHandle> {
        let path = components(&entry.path_bytes());
        let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
        let link = String::from_utf8(link.unwrap_or_default()).unwrap();
        let size = entry.size();
        let header = entry.header().clone();
        let mut mtime = (i64::try_from(header.mtime().unwrap()).unwrap(), 0);
        let (mut uid, mut gid) = (header.uid().unwrap(), header.gid().unwrap());
        let mut xattrs = Vec::new();
        for record in entry.pax_extensions().unwrap().into_iter().flatten() {
            let record = record.unwrap();
            let number = || record.value().unwrap().parse().unwrap();
            match record.key().unwrap() {
                "mtime" => mtime = time(record.value().unwrap()),
                "uid" => uid = number(),
                "gid" => gid = number(),
                key => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        xattrs.push((name.to_owned(), record.value_bytes().to_vec()));
                    }
                }
            }
        }
        let symlink = header.entry_type() == EntryType::Symlink;
        let mode = if symlink {
            0o777
        } else {
            header.mode().unwrap() & 0o7777
        };
        let meta = Meta::new(
            u16::try_from(mode).unwrap(),
            u32::try_from(uid).unwrap(),
            u32::try_from(gid).unwrap(),
            mtime,
        );
        let Some((name, above)) = path.split_last() else {
            self.builder.set_meta(ROOT, meta).unwrap();
            return None;
        };
        let device = || {
            let field = |field: std::io::Result<Option<u32>>| field.unwrap().unwrap_or(0);
            (field(header.device_major()), field(header.device_minor()))
        };
        let parent = self.directory(above);
        let builder = &mut self.builder;
        let made = match header.entry_type() {
            EntryType::Directory => match self.known.get(&path) {
                Some(&known) => builder.set_meta(known, meta).map(|()| known),
                None => builder.mkdir(parent, name, meta),
            },
            EntryType::Symlink => builder.symlink(parent, name, &link, meta),
            EntryType::Link => {
                let target = self.known[&components(link.as_bytes())];
                builder.hardlink(parent, name, target).unwrap();
                return None;
            }
            EntryType::Char => {
                let (major, minor) = device();
                builder.mknod(parent, name, meta, SpecialKind::Char { major, minor })
            }
            EntryType::Block => {
                let (major, minor) = device();
                builder.mknod(parent, name, meta, SpecialKind::Block { major, minor })
            }
            EntryType::Fifo => builder.mknod(parent, name, meta, SpecialKind::Fifo),
            _ => builder.file(parent, name, meta, size),
        };
        let made = made.unwrap();
        for (name, value) in xattrs {
            builder.set_xattr(made, &name, &value).unwrap();
        }
        self.known.insert(path, made);
        let file = matches!(
            header.entry_type(),
            EntryType::Regular | EntryType::GNUSparse
        );
        (file && size > 0).then_some(made)
    }
}

fn components(path: &[u8]) -> Vec<String> {
    let parts = path.split(|&b| b == b'/');
    let parts = parts.filter(|part| !matches!(*part, b"" | b"."));
    parts
        .map(|part| String::from_utf8(part.to_vec()).unwrap())
        .collect()
}

fn time(text: &str) -> (i64, u32) {
    let (secs, fraction) = text.split_once('.').unwrap_or((text, ""));
    (
        secs.parse().unwrap(),
        format!("{fraction:0<9}").parse().unwrap(),
    )
}

/// The image that mkext4 makes.
fn by_mkext4(tar: &[u8]) -> Vec<u8> {
    let mut peer = Peer::new();
    let mut files = Vec::new();
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().unwrap() {
        files.push(peer.declare(&mut entry.unwrap()));
    }
    let layout = peer.builder.seal().unwrap();
    let mut sink = VecSink::default();
    let mut writer = layout.writer(&mut sink).unwrap();
    let mut archive = tar::Archive::new(tar);
    for (entry, file) in archive.entries().unwrap().zip(files) {
        if let Some(file) = file {
            writer.fill(file, &mut entry.unwrap()).unwrap();
        }
    }
    writer.finish().unwrap();
    sink.buf
}

/// What can be compared: which names are one file rather than its number, and nothing of what only mkext4 makes.
fn comparable(tree: Tree) -> Tree {
    let mut first = HashMap::new();
    let mut tree: Tree = tree
        .into_iter()
        .filter(|(path, _)| path != b"lost+found")
        .collect();
    for (number, node) in (1..).zip(tree.values_mut()) {
        node.inode.0 = *first.entry(node.inode).or_insert(number);
        if node.mode & 0o170_000 == 0o040_000 {
            // Blocks of directories differ, and mkext4's root has one directory more.
            (node.size, node.links) = (0, 0);
        }
    }
    tree
}

fn as_both_do(tar: &[u8]) {
    let made = make(tar).unwrap();
    as_ext4_view_reads(&made);
    let mut ours = comparable(tree(&made.disk));
    let mut theirs = comparable(tree(lcow_blockio::MemDisk::from(by_mkext4(tar))));
    // A root that the tar says nothing of has another time.
    let (own, other) = (ours.get_mut(&b""[..]), theirs.get_mut(&b""[..]));
    if let (Some(own), Some(other)) = (own, other)
        && own.mtime == Timestamp::default()
    {
        (own.mtime, other.mtime) = (Timestamp::default(), Timestamp::default());
    }
    for (path, node) in &ours {
        assert_eq!(Some(node), theirs.get(path), "{}", path.escape_ascii());
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn tars_of_others_are_what_the_peers_say() {
    for name in ["gnu.tar", "pax.tar"] {
        let path = lcow_testkit::workspace_root()
            .join("fuzz/layers")
            .join(name);
        as_ext4_view_reads(&make(&std::fs::read(path).unwrap()).unwrap());
    }
    let Some(corpora) = Corpora::find() else {
        skip!("no corpora");
    };
    for name in CORPORA {
        println!("{name}");
        as_both_do(&std::fs::read(corpora.files.join(name)).unwrap());
    }
}

#[test]
fn one_of_everything_is_what_the_peers_say() {
    let device = |flag, name| {
        Hand::new(flag, name)
            .octal_at(329, 7, 8)
            .octal_at(337, 7, 300)
    };
    as_both_do(&tar(&[
        Hand::dir("./").octal_at(100, 7, 0o1755),
        Hand::dir("d").octal_at(100, 7, 0o2750),
        Hand::file("d/f", &[b'x'; 10_000]).octal_at(108, 7, 70_000),
        Hand::file("d/empty", b"").octal_at(100, 7, 0o4711),
        Hand::link("hard", "d/f"),
        Hand::symlink("soft", "d/f"),
        Hand::symlink("far", &"long/".repeat(19)),
        Hand::pax(&[
            ("mtime", b"1600000000.123456789"),
            ("uid", b"4294967294"),
            ("SCHILY.xattr.user.small", b"value"),
            ("SCHILY.xattr.user.large", &[b'v'; 2000]),
            (
                "SCHILY.xattr.security.capability",
                b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ),
        ]),
        Hand::file("p", b"with attributes"),
        device(b'3', "char"),
        device(b'4', "block"),
        Hand::new(b'6', "fifo"),
    ]));
}

/// What the peers get wrong, so that the tests above leave it out. When one of these fails, they got it right.
#[test]
fn what_the_peers_are_known_to_get_wrong() {
    let late = tar(&[Hand::file("f", b"").octal_at(136, 11, 1 << 31)]);
    let made = make(&late).unwrap();
    let mut bytes = vec![0; usize::try_from(made.applied.disk_size).unwrap()];
    lcow_blockio::ReadAt::read_exact_at(&made.disk, 0, &mut bytes).unwrap();
    let fs = ext4_view::Ext4::load(Box::new(bytes)).unwrap();
    assert!(fs.metadata("/f").is_err());
    let node = &tree(&made.disk)[&b"f"[..]];
    assert_eq!(node.mtime, Timestamp::from_secs(1 << 31));

    // An ACL is stored as `setxattr` takes it, and not in ext4's own form: no kernel reads it.
    let acl = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\x07\0\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    let bytes = tar(&[
        Hand::pax(&[("SCHILY.xattr.system.posix_acl_access", acl)]),
        Hand::file("f", b""),
    ]);
    let made = tree(&make(&bytes).unwrap().disk);
    assert_eq!(made[&b"f"[..]].xattrs[0].1, acl);
    let fs = lcow_ext4::reader::Filesystem::open(lcow_blockio::MemDisk::from(by_mkext4(&bytes)));
    let fs = fs.unwrap();
    let number = fs.lookup(&fs.root().unwrap(), b"f").unwrap().unwrap();
    let inode = fs.inode(number).unwrap();
    assert!(fs.xattrs(&inode).unwrap_err().to_string().contains("ACL"));
}

#[derive(Debug, Clone)]
enum Item {
    File(usize, usize),
    Dir,
    Link(usize),
    Symlink(usize),
    Fifo,
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        3 => (0..40_000_usize, 0..9000_usize).prop_map(|(len, hole)| Item::File(len, hole)),
        2 => Just(Item::Dir),
        1 => any::<usize>().prop_map(Item::Link),
        1 => (1..99_usize).prop_map(Item::Symlink),
        1 => Just(Item::Fifo),
    ]
}

/// Entries below directories that came before, each with a name of its own.
fn archive(items: &[(Item, usize, u64)]) -> Vec<u8> {
    let mut directories = vec![String::new()];
    let mut files = Vec::new();
    let mut entries = Vec::new();
    for (number, (item, place, owner)) in items.iter().enumerate() {
        let above = &directories[place % directories.len()];
        let name = format!("{above}{number}");
        let entry = match item {
            Item::File(len, hole) => {
                let mut data: Vec<u8> = (0..*len).map(|i| (i % 251) as u8).collect();
                let end = (hole * 3).min(*len);
                data[(*hole).min(end)..end].fill(0);
                files.push(name.clone());
                Hand::file(&name, &data)
            }
            Item::Link(which) if !files.is_empty() => {
                entries.push(Hand::link(&name, &files[which % files.len()]));
                continue;
            }
            Item::Dir if name.len() < 80 => {
                directories.push(format!("{name}/"));
                Hand::dir(&name)
            }
            Item::Symlink(len) => Hand::symlink(&name, &"t".repeat(*len)),
            _ => Hand::new(b'6', &name),
        };
        entries.push(
            entry
                .octal_at(108, 7, owner % 100_000)
                .octal_at(136, 11, owner * 2),
        );
    }
    tar(&entries)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_are_what_the_peers_say(
        items in prop::collection::vec((item(), any::<usize>(), 0..1_000_000_000_u64), 0..60),
    ) {
        as_both_do(&archive(&items));
    }
}
