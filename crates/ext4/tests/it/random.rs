//! Random sequences of calls, checked by e2fsck and against a plain model read through another ext4 reader.
//! That reader knows no `ea_inode`, so attributes stay small enough for a block here.

use std::collections::BTreeMap;

use lcow_ext4::writer::{Content, Writer, WriterOptions};
use lcow_ext4::{InodeNumber, Xattr};
use proptest::prelude::*;

use crate::support::{IDENTITY, Image, ROOT, meta, noise};

#[derive(Debug, Clone)]
enum Call {
    Directory {
        parent: usize,
        name: u16,
    },
    File {
        parent: usize,
        name: u16,
        pieces: Vec<Piece>,
    },
    Symlink {
        parent: usize,
        name: u16,
        len: usize,
    },
    Link {
        parent: usize,
        name: u16,
        target: usize,
    },
    Unlink {
        entry: usize,
    },
    Xattrs {
        target: usize,
        sizes: Vec<usize>,
    },
    Many {
        parent: usize,
        count: u16,
        len: usize,
    },
}

#[derive(Debug, Clone)]
enum Piece {
    Data(usize),
    Zeros(usize),
    Skip(u64),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (1usize..20_000).prop_map(Piece::Data),
        (60_000usize..300_000).prop_map(Piece::Data),
        (1usize..20).prop_map(|n| Piece::Data(n * 4096)),
        (1usize..20_000).prop_map(Piece::Zeros),
        (1u64..20_000).prop_map(Piece::Skip),
        (1u64..1000).prop_map(|n| Piece::Skip(n * 4096)),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    let place = || (0usize..1000, 0u16..2000);
    prop_oneof![
        3 => place().prop_map(|(parent, name)| Call::Directory { parent, name }),
        6 => (place(), prop::collection::vec(piece(), 0..6))
            .prop_map(|((parent, name), pieces)| Call::File { parent, name, pieces }),
        2 => (place(), 1usize..4096).prop_map(|((parent, name), len)| Call::Symlink { parent, name, len }),
        2 => (place(), 0usize..1000).prop_map(|((parent, name), target)| Call::Link { parent, name, target }),
        3 => (0usize..1000).prop_map(|entry| Call::Unlink { entry }),
        2 => (0usize..1000, prop::collection::vec(0usize..950, 0..5))
            .prop_map(|(target, sizes)| Call::Xattrs { target, sizes }),
        1 => (0usize..1000, 1u16..400, 1usize..200)
            .prop_map(|(parent, count, len)| Call::Many { parent, count, len }),
    ]
}

/// What there should be: paths and what they hold.
#[derive(Debug, Default)]
struct Model {
    entries: BTreeMap<(u32, Vec<u8>), u32>,
    directories: Vec<u32>,
    files: BTreeMap<u32, Vec<u8>>,
    links: BTreeMap<u32, Vec<u8>>,
}

impl Model {
    fn directory(&self, index: usize) -> InodeNumber {
        InodeNumber(self.directories[index % self.directories.len()])
    }

    fn unlink(&mut self, parent: u32, name: &[u8]) {
        let inode = self.entries.remove(&(parent, name.to_vec())).unwrap();
        if self.directories.contains(&inode) {
            let below: Vec<_> = self
                .entries
                .keys()
                .filter(|k| k.0 == inode)
                .cloned()
                .collect();
            for (parent, name) in below {
                self.unlink(parent, &name);
            }
            self.directories.retain(|d| *d != inode);
        } else if !self.entries.values().any(|i| *i == inode) {
            self.files.remove(&inode);
            self.links.remove(&inode);
        }
    }
}

fn run(calls: &[Call], inline: bool) {
    let image = Image::new();
    let mut options = WriterOptions::default();
    options.inline_data = inline;
    let mut w = Writer::new(image.disk(), &options).unwrap();
    let mut model = Model {
        directories: vec![2],
        ..Model::default()
    };
    for (number, call) in calls.iter().enumerate() {
        match call {
            Call::Directory { parent, name } => {
                let parent = model.directory(*parent);
                let name = format!("d{name}").into_bytes();
                if let Ok(inode) = w.create(parent, &name, Content::Directory, &meta(0o755)) {
                    model.entries.insert((parent.0, name), inode.0);
                    model.directories.push(inode.0);
                }
            }
            Call::File {
                parent,
                name,
                pieces,
            } => {
                let parent = model.directory(*parent);
                let name = format!("f{name}").into_bytes();
                let Ok(inode) = w.create(parent, &name, Content::Regular, &meta(0o644)) else {
                    continue;
                };
                let mut content = Vec::new();
                w.begin_data(inode).unwrap();
                for piece in pieces {
                    let bytes = match piece {
                        Piece::Data(len) => noise(*len, number as u64),
                        Piece::Zeros(len) => vec![0; *len],
                        Piece::Skip(len) => {
                            w.skip_data(*len).unwrap();
                            content.resize(content.len() + usize::try_from(*len).unwrap(), 0);
                            continue;
                        }
                    };
                    w.write_data(&bytes).unwrap();
                    content.extend(bytes);
                }
                w.end_data().unwrap();
                model.entries.insert((parent.0, name), inode.0);
                model.files.insert(inode.0, content);
            }
            Call::Symlink { parent, name, len } => {
                let parent = model.directory(*parent);
                let name = format!("s{name}").into_bytes();
                // ext4-view takes no component longer than 255 bytes, not even in a target.
                let mut target = vec![b'a' + u8::try_from(number % 26).unwrap(); *len];
                target
                    .iter_mut()
                    .skip(100)
                    .step_by(100)
                    .for_each(|b| *b = b'/');
                if let Ok(inode) = w.create(parent, &name, Content::Symlink(&target), &meta(0o777))
                {
                    model.entries.insert((parent.0, name), inode.0);
                    model.links.insert(inode.0, target);
                }
            }
            Call::Link {
                parent,
                name,
                target,
            } => {
                let parent = model.directory(*parent);
                let name = format!("l{name}").into_bytes();
                let Some(target) = model.files.keys().nth(*target % model.files.len().max(1))
                else {
                    continue;
                };
                if w.link(parent, &name, InodeNumber(*target)).is_ok() {
                    model.entries.insert((parent.0, name), *target);
                }
            }
            Call::Unlink { entry } => {
                let count = model.entries.len().max(1);
                let Some((parent, name)) = model.entries.keys().nth(entry % count).cloned() else {
                    continue;
                };
                w.unlink(InodeNumber(parent), &name).unwrap();
                model.unlink(parent, &name);
            }
            Call::Xattrs { target, sizes } => {
                let count = model.entries.len().max(1);
                let Some(inode) = model.entries.values().nth(target % count) else {
                    continue;
                };
                let set: Vec<Xattr> = sizes
                    .iter()
                    .enumerate()
                    .map(|(i, size)| Xattr {
                        name: format!("user.{i}").into_bytes(),
                        value: noise(*size, 9),
                    })
                    .collect();
                w.set_xattrs(InodeNumber(*inode), &set).unwrap();
                assert_eq!(w.xattrs(InodeNumber(*inode)).unwrap(), set);
            }
            Call::Many { parent, count, len } => {
                let parent = model.directory(*parent);
                for i in 0..*count {
                    let name = format!("{number}-{i}-{}", "x".repeat(*len)).into_bytes();
                    let inode = w
                        .create(parent, &name, Content::Fifo, &meta(0o644))
                        .unwrap();
                    model.entries.insert((parent.0, name), inode.0);
                }
            }
        }
    }
    for (inode, content) in &model.files {
        let mut read = vec![1; content.len() + 10];
        let n = w.read_back(InodeNumber(*inode), 0, &mut read).unwrap();
        assert!(read[..n] == *content, "read back {inode}");
    }
    w.finish(&IDENTITY).unwrap();
    crate::support::clean(image.path());
    check_ours(&image, &model);
    // It knows no inline data.
    if !inline {
        check(&image, &model);
    }
}

/// Reads all of it with ext4-view, which shares no line with the writer.
fn check(image: &Image, model: &Model) {
    let fs = ext4_view::Ext4::load(Box::new(image.bytes())).unwrap();
    let mut left = model.entries.clone();
    let mut directories = vec![(ROOT.0, b"/".to_vec())];
    while let Some((inode, path)) = directories.pop() {
        for entry in fs.read_dir(path.as_slice()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().as_ref().to_vec();
            if name == b"." || name == b".." {
                continue;
            }
            let child = left
                .remove(&(inode, name.clone()))
                .unwrap_or_else(|| panic!("{inode} has {:?}", String::from_utf8_lossy(&name)));
            let path = [path.as_slice(), b"/", &name].concat();
            if let Some(content) = model.files.get(&child) {
                assert!(fs.read(path.as_slice()).unwrap() == *content, "{child}");
            } else if let Some(target) = model.links.get(&child) {
                assert_eq!(fs.read_link(path.as_slice()).unwrap().as_ref(), target);
            } else if model.directories.contains(&child) {
                directories.push((child, path));
            }
        }
    }
    assert!(left.is_empty(), "missing: {left:?}");
}

/// The same with the crate's own reader.
fn check_ours(image: &Image, model: &Model) {
    let disk = image.disk();
    let fs = lcow_ext4::reader::Filesystem::open(&disk).unwrap();
    let mut left = model.entries.clone();
    for directory in &model.directories {
        let dir = fs.inode(InodeNumber(*directory)).unwrap();
        for entry in fs.read_dir(&dir).unwrap() {
            let child = left.remove(&(*directory, entry.name)).unwrap();
            assert_eq!(child, entry.inode.0);
            let inode = fs.inode(entry.inode).unwrap();
            if let Some(content) = model.files.get(&child) {
                let mut read = vec![1; content.len() + 1];
                let n = fs.read_at(&inode, 0, &mut read).unwrap();
                assert!(read[..n] == *content, "{child}");
            } else if let Some(target) = model.links.get(&child) {
                assert_eq!(fs.read_link(&inode).unwrap(), *target);
            }
        }
    }
    assert!(left.is_empty(), "missing: {left:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_calls_gives_what_it_says(calls in prop::collection::vec(call(), 0..120), inline in any::<bool>()) {
        run(&calls, inline);
    }
}
