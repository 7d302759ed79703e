//! Random layers, what they should look like as one tree, and what a tree looks like.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lcow_blockio::{MemDisk, ReadAt};
use lcow_ext4::reader::Filesystem;
use lcow_ext4::writer::{Content, Identity, Metadata, Writer, WriterOptions};
use lcow_ext4::{Device, FileType, InodeNumber, Timestamp, Xattr};
use lcow_layer::tree::{Subtree, Tree};
use lcow_layer::union::Union;
use proptest::prelude::*;

pub(crate) type Disk = Box<dyn ReadAt>;
pub(crate) type Fs = Filesystem<Disk>;
pub(crate) type Path = Vec<u8>;

/// A file of a layer, as a test wants it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct File {
    pub(crate) kind: Kind,
    pub(crate) mode: u16,
    pub(crate) owner: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Regular(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    Fifo,
    Device(Device),
    BlockDevice(Device),
    /// Another name for a file of the same layer.
    Link(Path),
}

pub(crate) const OPAQUE: &[u8] = b"trusted.overlay.opaque";
pub(crate) const XWHITEOUT: &[u8] = b"trusted.overlay.whiteout";

impl File {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            // The kernel gives every link this mode, and so does everything that unpacks one.
            mode: if matches!(kind, Kind::Symlink(_)) {
                0o777
            } else {
                0o644
            },
            kind,
            owner: 0,
            mtime: Timestamp::from_secs(1_000),
            xattrs: Vec::new(),
        }
    }

    pub(crate) fn regular(content: &[u8]) -> Self {
        Self::new(Kind::Regular(content.to_vec()))
    }

    pub(crate) fn directory() -> Self {
        Self {
            mode: 0o755,
            ..Self::new(Kind::Directory)
        }
    }

    pub(crate) fn whiteout() -> Self {
        Self::new(Kind::Device(Device::default()))
    }

    pub(crate) fn with(mut self, name: &[u8], value: &[u8]) -> Self {
        self.xattrs.retain(|(other, _)| other != name);
        self.xattrs.push((name.to_vec(), value.to_vec()));
        self.xattrs.sort();
        self
    }

    fn is_opaque(&self) -> bool {
        self.xattrs.contains(&(OPAQUE.to_vec(), b"y".to_vec()))
    }

    fn is_whiteout(&self) -> bool {
        match &self.kind {
            Kind::Device(device) => *device == Device::default(),
            Kind::Regular(content) => {
                content.is_empty() && self.xattrs.iter().any(|(name, _)| name == XWHITEOUT)
            }
            _ => false,
        }
    }
}

/// A layer: each path with its file, parents before children.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Layer(pub(crate) BTreeMap<Path, File>);

pub(crate) fn parent(path: &[u8]) -> &[u8] {
    path.iter()
        .rposition(|&b| b == b'/')
        .map_or(&[], |slash| &path[..slash])
}

pub(crate) fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').next().unwrap_or(path)
}

impl Layer {
    /// Adds a file if its path is free, making its parents. Says whether it did.
    pub(crate) fn add(&mut self, path: &[u8], file: File) -> bool {
        if path.is_empty() || self.0.contains_key(path) {
            return false;
        }
        let mut up = parent(path);
        let mut missing = Vec::new();
        while !up.is_empty() {
            match self.0.get(up).map(|file| &file.kind) {
                Some(Kind::Directory) => break,
                Some(_) => return false,
                None => missing.push(up.to_vec()),
            }
            up = parent(up);
        }
        if let Kind::Link(target) = &file.kind
            && !matches!(
                self.0.get(target).map(|file| &file.kind),
                Some(Kind::Regular(_) | Kind::Fifo | Kind::Symlink(_))
            )
        {
            return false;
        }
        for dir in missing {
            self.0.insert(dir, File::directory());
        }
        self.0.insert(path.to_vec(), file);
        true
    }

    fn real(&self, path: &[u8]) -> &Path {
        let (own, file) = self.0.get_key_value(path).unwrap();
        match &file.kind {
            Kind::Link(target) => target,
            _ => own,
        }
    }

    /// Writes the layer below `root` of a filesystem.
    pub(crate) fn write<D: lcow_blockio::WriteAt>(
        &self,
        writer: &mut Writer<D>,
        root: InodeNumber,
    ) {
        let mut made: HashMap<&[u8], InodeNumber> = HashMap::from([(&b""[..], root)]);
        let (links, files): (Vec<_>, Vec<_>) = self
            .0
            .iter()
            .partition(|(_, file)| matches!(file.kind, Kind::Link(_)));
        for (path, file) in files {
            let content = match &file.kind {
                Kind::Regular(_) => Content::Regular,
                Kind::Directory => Content::Directory,
                Kind::Symlink(target) => Content::Symlink(target),
                Kind::Fifo => Content::Fifo,
                Kind::Device(device) => Content::CharDevice(*device),
                Kind::BlockDevice(device) => Content::BlockDevice(*device),
                Kind::Link(_) => unreachable!(),
            };
            let metadata = Metadata {
                permissions: file.mode,
                uid: file.owner,
                gid: file.owner / 2,
                atime: file.mtime,
                mtime: file.mtime,
                ctime: file.mtime,
            };
            let dir = made[parent(path)];
            let inode = writer.create(dir, name(path), content, &metadata).unwrap();
            let xattrs: Vec<_> = file
                .xattrs
                .iter()
                .map(|(name, value)| Xattr {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect();
            writer.set_xattrs(inode, &xattrs).unwrap();
            if let Kind::Regular(content) = &file.kind {
                writer.begin_data(inode).unwrap();
                writer.write_data(content).unwrap();
                writer.end_data().unwrap();
            }
            made.insert(path, inode);
        }
        for (path, file) in links {
            let Kind::Link(target) = &file.kind else {
                unreachable!()
            };
            let dir = made[parent(path)];
            writer.link(dir, name(path), made[&**target]).unwrap();
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        image(std::slice::from_ref(self), false)
    }

    pub(crate) fn open(&self) -> Arc<Fs> {
        open(self.bytes())
    }
}

/// A disk image of layers: one layer at its root, or several in `0`, `1`, ….
pub(crate) fn image(layers: &[Layer], in_directories: bool) -> Vec<u8> {
    let disk = MemDisk::new();
    let mut writer = Writer::new(&disk, &WriterOptions::default()).unwrap();
    let metadata = Metadata {
        permissions: 0o755,
        ..Metadata::default()
    };
    writer.set_metadata(InodeNumber::ROOT, &metadata).unwrap();
    for (number, layer) in layers.iter().enumerate() {
        let root = if in_directories {
            let name = number.to_string();
            writer
                .create(
                    InodeNumber::ROOT,
                    name.as_bytes(),
                    Content::Directory,
                    &metadata,
                )
                .unwrap()
        } else {
            InodeNumber::ROOT
        };
        layer.write(&mut writer, root);
    }
    let identity = Identity {
        uuid: [7; 16],
        hash_seed: [9; 16],
    };
    writer.finish(&identity).unwrap();
    disk.into_bytes()
}

pub(crate) fn open(bytes: Vec<u8>) -> Arc<Fs> {
    Arc::new(Filesystem::open(Box::new(MemDisk::from(bytes)) as Disk).unwrap())
}

pub(crate) fn whole(fs: &Arc<Fs>) -> Subtree<Disk> {
    Subtree::open(Arc::clone(fs), b"").unwrap()
}

pub(crate) fn union(layers: &[Layer]) -> Union<Disk> {
    Union::new(layers.iter().map(|layer| whole(&layer.open())).collect()).unwrap()
}

/// Everything about a file that two trees are compared by. Of directories the size is left out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first name of the same file.
    pub(crate) first_name: Path,
}

pub(crate) type Dump = BTreeMap<Path, Record>;

/// A tree, through its public face; without the root.
pub(crate) fn dump<T: Tree>(tree: &T) -> Dump {
    let mut dump = Dump::new();
    let mut todo = vec![(Path::new(), tree.root().clone())];
    while let Some((dir, node)) = todo.pop() {
        let entries = tree.read_dir(&node).unwrap();
        assert!(entries.is_sorted_by(|a, b| a.name < b.name));
        for entry in entries {
            let path = [&*dir, b"/", &entry.name].concat();
            let path = path.strip_prefix(b"/").unwrap_or(&path).to_vec();
            let child = tree.node(&entry).unwrap();
            let looked_up = tree
                .lookup(&node, &entry.name)
                .unwrap()
                .expect("it is listed");
            assert_eq!(looked_up.identity(), child.identity());
            dump.insert(path.clone(), record(tree, &child));
            if child.file_type() == FileType::Directory {
                todo.push((path, child));
            }
        }
    }
    // The first names: those of the same identity.
    let mut first = HashMap::new();
    for (path, record) in &mut dump {
        let identity = std::mem::take(&mut record.first_name);
        record.first_name = first
            .entry(identity)
            .or_insert_with(|| path.clone())
            .clone();
    }
    dump
}

fn record<T: Tree>(tree: &T, node: &lcow_layer::tree::Node) -> Record {
    let stat = node.stat();
    let mut content = Vec::new();
    match stat.file_type {
        FileType::Regular => {
            let file = tree.open_file(node).unwrap();
            content = vec![0; stat.size as usize + 1];
            let len = file.read_at(0, &mut content).unwrap();
            assert_eq!(len as u64, stat.size);
            content.truncate(len);
        }
        FileType::Symlink => content = tree.read_link(node).unwrap(),
        _ => {}
    }
    let xattrs = tree.xattrs(node).unwrap();
    Record {
        mode: stat.mode().into(),
        uid: stat.uid,
        gid: stat.gid,
        mtime: (stat.mtime.secs, stat.mtime.nanos),
        device: (stat.device.major, stat.device.minor),
        content,
        xattrs: xattrs.into_iter().map(|x| (x.name, x.value)).collect(),
        first_name: format!("{:?}", node.identity()).into_bytes(),
    }
}

/// What overlayfs shows of layers, nearest first, by the letter of its documentation: the whole tree at once, unlike the union.
pub(crate) fn expected(layers: &[Layer]) -> Dump {
    let mut dump = Dump::new();
    let all: Vec<usize> = (0..layers.len()).collect();
    expect_below(layers, &all, b"", &mut dump);
    let mut first = HashMap::new();
    for (path, record) in &mut dump {
        let identity = std::mem::take(&mut record.first_name);
        record.first_name = first
            .entry(identity)
            .or_insert_with(|| path.clone())
            .clone();
    }
    dump
}

fn expect_below(layers: &[Layer], dirs: &[usize], dir: &[u8], dump: &mut Dump) {
    let mut names: Vec<Path> = dirs
        .iter()
        .flat_map(|&i| layers[i].0.keys())
        .filter(|path| parent(path) == dir)
        .cloned()
        .collect();
    names.sort();
    names.dedup();
    for path in names {
        let mut merged = Vec::new();
        for &i in dirs {
            let Some(file) = layers[i].0.get(&path) else {
                continue;
            };
            let target = layers[i].real(&path);
            let file = if target == &path {
                file
            } else {
                &layers[i].0[target]
            };
            let directory = file.kind == Kind::Directory;
            if file.is_whiteout() || (!merged.is_empty() && !directory) {
                break;
            }
            if merged.is_empty() {
                dump.insert(path.clone(), expected_record(file, i, target));
            }
            merged.push(i);
            if !directory || file.is_opaque() {
                break;
            }
        }
        let is_directory = merged
            .first()
            .is_some_and(|&i| layers[i].0[&path].kind == Kind::Directory);
        if is_directory {
            expect_below(layers, &merged, &path, dump);
        }
    }
}

fn expected_record(file: &File, layer: usize, target: &[u8]) -> Record {
    let (file_type, content, device) = match &file.kind {
        Kind::Regular(content) => (FileType::Regular, content.clone(), Device::default()),
        Kind::Directory => (FileType::Directory, Vec::new(), Device::default()),
        Kind::Symlink(target) => (FileType::Symlink, target.clone(), Device::default()),
        Kind::Fifo => (FileType::Fifo, Vec::new(), Device::default()),
        Kind::Device(device) => (FileType::CharDevice, Vec::new(), *device),
        Kind::BlockDevice(device) => (FileType::BlockDevice, Vec::new(), *device),
        Kind::Link(_) => unreachable!(),
    };
    let seen = file.xattrs.iter().filter_map(|(name, value)| {
        match name.strip_prefix(b"trusted.overlay.") {
            None => Some((name.clone(), value.clone())),
            Some(rest) => {
                let nested = rest.strip_prefix(b"overlay.")?;
                Some(([b"trusted.overlay.", nested].concat(), value.clone()))
            }
        }
    });
    let mut xattrs: Vec<_> = seen.collect();
    xattrs.sort();
    Record {
        mode: u32::from(file_type.mode_bits() | file.mode),
        uid: file.owner,
        gid: file.owner / 2,
        mtime: (file.mtime.secs, file.mtime.nanos),
        device: (device.major, device.minor),
        content,
        xattrs,
        first_name: [format!("{layer}:").as_bytes(), target].concat(),
    }
}

fn any_path() -> impl Strategy<Value = Path> {
    let name = prop::sample::select(vec!["a", "b", "a-", "a.b", "\u{e4}"]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/").into_bytes())
}

fn any_file(nested: bool) -> impl Strategy<Value = File> {
    let kind = prop_oneof![
        4 => prop::collection::vec(0..3u8, 0..4).prop_map(Kind::Regular),
        4 => Just(Kind::Directory),
        1 => any_path().prop_map(Kind::Symlink),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Device(Device { major: 1, minor: 3 })),
        2 => any_path().prop_map(Kind::Link),
        2 => Just(Kind::Device(Device::default())),
    ];
    let marks = prop::sample::select(vec![0, 0, 1, 2, 3]);
    (kind, 0..2u32, 0..2i64, 0..2u32, marks).prop_map(move |(kind, owner, secs, nanos, marks)| {
        let mode = match kind {
            Kind::Symlink(_) => 0o777,
            _ => 0o700 + owner as u16,
        };
        let mut file = File {
            kind,
            mode,
            owner,
            mtime: Timestamp { secs, nanos },
            xattrs: Vec::new(),
        };
        match (marks, &file.kind) {
            (1, Kind::Directory) => file = file.with(OPAQUE, b"y"),
            (1 | 2, Kind::Regular(_)) => file = file.with(b"user.x", b"1"),
            (2, Kind::Directory) if nested => {
                file = file
                    .with(b"trusted.overlay.overlay.opaque", b"y")
                    .with(b"trusted.overlay.impure", b"y");
            }
            (3, Kind::Regular(content)) if nested && content.is_empty() => {
                file = file.with(XWHITEOUT, b"y");
            }
            _ => {}
        }
        file
    })
}

/// A layer of up to 12 files among few paths, so that layers get in each other's way. `nested` also gives attributes of a nested
/// overlay, and whiteouts in attribute form.
pub(crate) fn any_layer(nested: bool) -> impl Strategy<Value = Layer> {
    prop::collection::vec((any_path(), any_file(nested)), 0..12).prop_map(move |files| {
        let mut layer = Layer::default();
        for (path, file) in files {
            let announces = nested && file.xattrs.iter().any(|(name, _)| name == XWHITEOUT);
            if layer.add(&path, file) && announces {
                // Whoever makes whiteouts in attribute form says so on the directory.
                let dir = parent(&path).to_vec();
                match layer.0.get_mut(&dir) {
                    Some(dir) if !dir.is_opaque() => *dir = dir.clone().with(OPAQUE, b"x"),
                    _ => {
                        layer.0.remove(&path);
                    }
                }
            }
        }
        // No link may have lost its file, or be a whiteout where none is announced.
        let gone: Vec<_> = layer
            .0
            .iter()
            .filter(|(_, file)| match &file.kind {
                Kind::Link(target) => layer.0.get(target).is_none_or(File::is_whiteout),
                _ => false,
            })
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            layer.0.remove(&path);
        }
        layer
    })
}
