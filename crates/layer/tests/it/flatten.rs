//! Flattened layers against the union, and against the kernel's overlay over the layers.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use lcow_blockio::MemDisk;
use lcow_ext4::FileType;
use lcow_ext4::reader::Filesystem;
use lcow_layer::ErrorKind;
use lcow_layer::digest::Digest;
use lcow_layer::flatten::{FlattenError, FlattenOptions, Flattened, LayerName, flatten, name};
use lcow_layer::tree::{Follow, Tree};
use lcow_layer::union::Union;
use lcow_testkit::{LoopMount, e2fsck, have, is_root, skip};
use proptest::prelude::*;

use crate::forest::{
    self, Disk, Dump, File, Kind, Layer, OPAQUE, any_layer, dump, open, union, whole,
};
use crate::kernel::{self, Overlay, random_layers};
use crate::support::make;
use crate::tars::{Hand, tar};

fn test_name() -> Digest {
    Digest::of(b"some layers")
}

fn try_flatten(union: &Union<Disk>) -> Result<(Vec<u8>, Flattened), FlattenError> {
    let disk = MemDisk::new();
    let flat = flatten(union, &test_name(), &disk, &FlattenOptions::default())?;
    Ok((disk.into_bytes(), flat))
}

fn flat(union: &Union<Disk>) -> Vec<u8> {
    try_flatten(union).unwrap().0
}

/// A layer's disk as overlayfs shows it, all times and the root included.
fn seen(bytes: Vec<u8>) -> (Dump, BTreeMap<Vec<u8>, String>) {
    let union = Union::new(vec![whole(&open(bytes))]).unwrap();
    (dump(&union), times(&union))
}

/// What [`dump`] leaves out: the root, and times other than the last change's.
fn times(union: &Union<Disk>) -> BTreeMap<Vec<u8>, String> {
    let mut times = BTreeMap::new();
    let root = union.root().stat();
    let xattrs = union.xattrs(union.root()).unwrap();
    let line = format!("{:o} {} {} {xattrs:?}", root.mode(), root.uid, root.gid);
    times.insert(Vec::new(), line);
    for path in dump(union).into_keys().chain([Vec::new()]) {
        let stat = union.resolve(&path, Follow::No).unwrap().node.stat();
        let line = format!("{:?} {:?} {:?}", stat.atime, stat.mtime, stat.ctime);
        times.entry(path).or_default().push_str(&line);
    }
    times
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flattened_stack_shows_what_the_union_does(layers in prop::collection::vec(any_layer(true), 1..6)) {
        let stack = union(&layers);
        let bytes = flat(&stack);
        prop_assert_eq!(seen(bytes.clone()), (dump(&stack), times(&stack)));
        prop_assert!(flat(&stack) == bytes, "the same layers, other bytes");

        // Nothing is left of what overlayfs keeps for itself.
        for (path, record) in dump(&whole(&open(bytes.clone()))) {
            prop_assert!(
                record.mode & 0o170_000 != 0o020_000 || record.device != (0, 0),
                "{} is a whiteout", path.escape_ascii()
            );
            for (name, _) in record.xattrs {
                let own = name.starts_with(b"trusted.overlay.") && !name.starts_with(b"trusted.overlay.overlay.");
                prop_assert!(!own, "{}: {}", path.escape_ascii(), name.escape_ascii());
            }
        }

        // Flattened again it stays what it is.
        let again = Union::new(vec![whole(&open(bytes))]).unwrap();
        let twice = flat(&again);
        prop_assert_eq!(seen(twice), (dump(&stack), times(&stack)));
    }

    #[test]
    fn further_layers_lie_over_it_as_over_the_layers(
        uppers in prop::collection::vec(any_layer(true), 1..3),
        lowers in prop::collection::vec(any_layer(true), 1..4),
    ) {
        let all: Vec<Layer> = uppers.iter().chain(&lowers).cloned().collect();
        let below = whole(&open(flat(&union(&lowers))));
        let mut stack: Vec<_> = uppers.iter().map(|layer| whole(&layer.open())).collect();
        stack.push(below);
        prop_assert_eq!(dump(&Union::new(stack).unwrap()), dump(&union(&all)));
    }
}

#[test]
fn the_kernel_shows_the_same_and_the_disk_is_clean() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    for seed in 100..116_u8 {
        let count = 1 + usize::from(seed) % 6;
        let mut layers = random_layers(seed, count);
        // The mount needs two layers at least.
        layers.push(Layer::default());
        let dir = tempfile::tempdir().unwrap();
        let layers_image = dir.path().join("layers.img");
        fs::write(&layers_image, forest::image(&layers, true)).unwrap();
        let merged = dir.path().join("merged");
        fs::create_dir(&merged).unwrap();
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let by_kernel = {
            let lower = LoopMount::new(&layers_image, "ro,noload");
            let paths: Vec<PathBuf> = (0..layers.len())
                .map(|i| lower.path().join(i.to_string()))
                .collect();
            let overlay = Overlay::new(&merged, &paths, None);
            kernel::dump(overlay.path())
        };
        let fs_of_layers = open(fs::read(&layers_image).unwrap());
        let stack = Union::new(kernel::lowers(&fs_of_layers, layers.len())).unwrap();
        let flat_image = dir.path().join("flat.img");
        fs::write(&flat_image, flat(&stack)).unwrap();
        e2fsck(&flat_image);
        let flattened = {
            let lower = LoopMount::new(&flat_image, "ro,noload");
            let overlay = Overlay::new(&merged, &[empty, lower.path()], None);
            kernel::dump(overlay.path())
        };
        for (path, record) in &by_kernel {
            let path_text = path.escape_ascii();
            assert_eq!(
                flattened.get(path),
                Some(record),
                "seed {seed}: {path_text}"
            );
        }
        assert_eq!(flattened.len(), by_kernel.len(), "seed {seed}");
    }
}

fn layer(files: &[(&str, File)]) -> Layer {
    let mut layer = Layer::default();
    for (path, file) in files {
        assert!(layer.add(path.as_bytes(), file.clone()), "{path}");
    }
    layer
}

fn link(target: &str) -> File {
    File::new(Kind::Link(target.into()))
}

#[test]
fn hard_links_are_whole_as_far_as_they_are_seen() {
    // `a`, `d/b` and `d/c` are one file, of which the top layer hides `d/b` and makes `a` another one.
    let base = layer(&[
        ("a", File::regular(b"one")),
        ("d/b", link("a")),
        ("d/c", link("a")),
        ("s", File::new(Kind::Symlink(b"a".to_vec()))),
        ("f", File::new(Kind::Fifo)),
        ("t", link("s")),
        ("u", link("f")),
    ]);
    let middle = layer(&[("x", File::regular(b"one")), ("y", link("x"))]);
    let top = layer(&[("a", File::regular(b"two")), ("d/b", File::whiteout())]);
    let flat = Union::new(vec![whole(&open(flat(&union(&[top, middle, base]))))]).unwrap();
    let stat = |path: &str| {
        let node = flat.resolve(path.as_bytes(), Follow::No).unwrap().node;
        (node.identity(), node.stat().links)
    };
    assert!(flat.resolve(b"d/b", Follow::No).is_err());
    assert_eq!(stat("d/c").1, 1);
    assert_eq!(stat("a").1, 1);
    for (one, other) in [("x", "y"), ("s", "t"), ("f", "u")] {
        assert_eq!(stat(one), stat(other), "{one}");
        assert_eq!(stat(one).1, 2, "{one}");
    }
    assert_ne!(stat("x").0, stat("d/c").0);
}

#[test]
fn holes_stay_holes_and_data_keeps_its_order() {
    let big: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8 + 1).collect();
    let mut sparse = vec![0; 40 << 20];
    sparse[8 << 20..(8 << 20) + big.len()].copy_from_slice(&big);
    sparse[39 << 20] = 1;
    let base = tar(&[
        Hand::file("z", &big),
        Hand::file("sparse", &sparse),
        Hand::file("a", &big),
        Hand::file("gone", &big),
        Hand::file("m", b"small"),
        Hand::file("empty", b""),
        Hand::file("hole", &vec![0; 1 << 20]),
    ]);
    let top = tar(&[
        Hand::file("zz", &big),
        Hand::file(".wh.gone", b""),
        Hand::file("b", &big),
    ]);
    let [top, base] = [top, base].map(|tar| whole(&open(make(&tar).unwrap().disk.into_bytes())));
    let (bytes, told) = try_flatten(&Union::new(vec![top, base]).unwrap()).unwrap();
    assert_eq!(told.names, 9);
    assert_eq!(told.disk_size, bytes.len() as u64);
    let fs = open(bytes);
    let mut places = BTreeMap::new();
    for entry in fs.walk(&fs.root().unwrap()).unwrap() {
        let entry = entry.unwrap();
        if let Some(first) = fs.extents(&entry.inode).unwrap().first()
            && entry.inode.file_type == FileType::Regular
        {
            places.insert(first.physical, String::from_utf8(entry.path).unwrap());
        }
    }
    let order: Vec<_> = places.into_values().collect();
    assert_eq!(order, ["z", "sparse", "a", "m", "zz", "b"]);
    let sparse_blocks: u64 = {
        let inode = fs.resolve(b"sparse").unwrap();
        fs.extents(&inode).unwrap().iter().map(|e| e.len).sum()
    };
    assert_eq!(sparse_blocks, 300_000_u64.div_ceil(4096) + 1);
    assert_eq!(
        told.data,
        5 * 4096 * 74 - 4 * (4096 * 74 - 300_000) + 4096 + 5
    );
}

#[test]
fn what_a_union_can_not_follow_is_refused() {
    for (file, feature) in [
        (
            File::regular(b"").with(b"trusted.overlay.metacopy", b""),
            "metacopy",
        ),
        (
            File::regular(b"data").with(b"trusted.overlay.metacopy", b""),
            "metacopy",
        ),
        (
            File::directory().with(b"trusted.overlay.redirect", b"/other"),
            "redirect_dir",
        ),
    ] {
        let error = try_flatten(&union(&[layer(&[("d/x", file)])])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(text.contains(feature), "{text}");
    }
}

#[test]
fn identity_and_size_follow_from_name_and_options() {
    let stack = union(&[layer(&[("f", File::regular(b"x"))])]);
    let other_name = name(
        &[LayerName::FileSystem([1; 16])],
        &FlattenOptions::default(),
    );
    let disk = MemDisk::new();
    let options = FlattenOptions {
        vhd: true,
        ..FlattenOptions::default()
    };
    let told = flatten(&stack, &other_name, &disk, &options).unwrap();
    let vhd = disk.into_bytes();
    assert_eq!(vhd.len() as u64, told.disk_size + 512);
    let uuid = |bytes: &[u8]| {
        Filesystem::open(MemDisk::from(bytes.to_vec()))
            .unwrap()
            .info()
            .uuid
    };
    assert_eq!(
        uuid(&vhd),
        other_name.derive_uuid("lcow flattened layers: file system UUID")
    );
    assert_ne!(uuid(&vhd), uuid(&flat(&stack)));
    let small = FlattenOptions {
        max_size: 1 << 20,
        ..FlattenOptions::default()
    };
    let big = union(&[layer(&[("f", File::regular(&vec![7; 2 << 20]))])]);
    let error = flatten(&big, &test_name(), MemDisk::new(), &small).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
}

/// Deep chains: each layer adds, replaces and deletes.
#[test]
fn a_hundred_and_five_hundred_layers() {
    for count in [100, 500] {
        let layers: Vec<Layer> = (0..count)
            .rev()
            .map(|i: usize| {
                let mut one = layer(&[
                    ("all/same", File::regular(i.to_string().as_bytes())),
                    (&format!("all/{i}"), File::regular(b"own")),
                    (&format!("in/{}/{i}", i % 7), File::regular(b"deep")),
                ]);
                if i % 10 == 9 {
                    one.add(format!("all/{}", i - 1).as_bytes(), File::whiteout());
                }
                if i == count / 2 {
                    let dir = one.0.get_mut(format!("in/{}", i % 7).as_bytes()).unwrap();
                    *dir = dir.clone().with(OPAQUE, b"y");
                }
                one
            })
            .collect();
        let stack = union(&layers);
        let (bytes, told) = try_flatten(&stack).unwrap();
        let flat = Union::new(vec![whole(&open(bytes.clone()))]).unwrap();
        assert_eq!(dump(&flat), dump(&stack), "{count}");
        let all = flat.resolve(b"all", Follow::No).unwrap().node;
        assert_eq!(flat.read_dir(&all).unwrap().len(), count - count / 10 + 1);
        assert_eq!(told.names, dump(&stack).len() as u64 + 1);
        let same = flat.resolve(b"all/same", Follow::No).unwrap().node;
        let mut text = [0; 8];
        let file = flat.open_file(&same).unwrap();
        let len = file.read_at(0, &mut text).unwrap();
        assert_eq!(&text[..len], (count - 1).to_string().as_bytes());
        if have("e2fsck") {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("flat");
            fs::write(&path, &bytes).unwrap();
            e2fsck(&path);
        }
    }
}

/// A file that looks deleted where no directory says that such are there: overlayfs lists it, and finds nothing of that name.
#[test]
fn what_is_listed_but_not_there_is_left_out() {
    let hidden = File::regular(b"").with(forest::XWHITEOUT, b"y");
    let stack = union(&[layer(&[("d/a", hidden), ("d/b", File::regular(b""))])]);
    let dir = stack.resolve(b"d", Follow::No).unwrap().node;
    assert_eq!(stack.read_dir(&dir).unwrap().len(), 2);
    assert!(stack.lookup(&dir, b"a").unwrap().is_none());
    let fs = Arc::new(open(flat(&stack)));
    assert!(fs.resolve(b"d/a").is_err());
    assert!(fs.resolve(b"d/b").is_ok());
}

#[test]
fn the_overlay_page_says_what_the_code_does() {
    let page = lcow_testkit::workspace_root().join("docs/format/overlay.md");
    let page = fs::read_to_string(page).unwrap();
    let version = lcow_layer::flatten::VERSION;
    assert!(page.contains(&format!("\nVersion {version}. One disk")));
    let options = FlattenOptions::default();
    let diff_id = Digest::of(b"x");
    let text = format!(
        "lcow flattened layers {version}\nmax-size {}\n",
        options.max_size
    );
    assert!(page.contains(&format!("```text\n{text}sha256:…\n```")));
    let named = name(&[LayerName::DiffId(diff_id)], &options);
    assert_eq!(named, Digest::of(format!("{text}{diff_id}\n").as_bytes()));
    assert_eq!(
        LayerName::FileSystem([0xa; 16]).to_string(),
        format!("uuid:{}", "0a".repeat(16))
    );
    assert!(page.contains("`uuid:` and the 32 digits"));

    // Each row of the table about marks, done to a file below which something else lies.
    let row = |mark: &str, meaning: &str| {
        let found = page
            .lines()
            .any(|line| line.starts_with(&format!("| {mark}")) && line.contains(meaning));
        assert!(found, "{mark}: {meaning}");
    };
    let below = layer(&[
        ("d/f", File::regular(b"low")),
        ("d/g", File::regular(b"low")),
    ]);
    let shows = |files: &[(&str, File)]| {
        let union = union(&[layer(files), below.clone()]);
        let d = union.resolve(b"d", Follow::No)?.node;
        let file = union.lookup(&d, b"f")?;
        if let Some(file) = &file {
            union.open_file(file)?;
        }
        Ok::<_, lcow_layer::tree::TreeError>((file.is_some(), union.lookup(&d, b"g")?.is_some()))
    };
    let empty = || File::regular(b"");
    let dir = File::directory;
    row("character device 0:0 ", "a whiteout");
    assert_eq!(shows(&[("d/f", File::whiteout())]).unwrap(), (false, true));
    row(
        "`trusted.overlay.whiteout`, on an empty regular file",
        "the same",
    );
    let marked = empty().with(b"trusted.overlay.whiteout", b"y");
    assert_eq!(shows(&[("d/f", marked)]).unwrap(), (false, true));
    row("`trusted.overlay.opaque` = `y`", "are not merged");
    let files = [
        ("d", dir().with(b"trusted.overlay.opaque", b"y")),
        ("d/f", empty()),
    ];
    assert_eq!(shows(&files).unwrap(), (true, false));
    row(
        "`trusted.overlay.opaque` = `x`",
        "whiteouts in attribute form",
    );
    let files = [("d", dir().with(b"trusted.overlay.opaque", b"x"))];
    assert_eq!(shows(&files).unwrap(), (true, true));
    row("`trusted.overlay.redirect`", "refused");
    shows(&[("d", dir().with(b"trusted.overlay.redirect", b"/x"))]).unwrap_err();
    row("`trusted.overlay.metacopy`", "refused");
    shows(&[("d/f", empty().with(b"trusted.overlay.metacopy", b""))]).unwrap_err();
    for (mark, meaning, stored, seen) in [
        (
            "`trusted.overlay.overlay.`NAME",
            "seen as `trusted.overlay.`NAME",
            "trusted.overlay.overlay.x",
            Some("trusted.overlay.x"),
        ),
        (
            "any other `trusted.overlay.`NAME",
            "not seen",
            "trusted.overlay.x",
            None,
        ),
        (
            "`user.overlay.`NAME",
            "like any other",
            "user.overlay.x",
            Some("user.overlay.x"),
        ),
    ] {
        row(mark, meaning);
        let union = union(&[
            layer(&[("d", dir().with(stored.as_bytes(), b"1"))]),
            below.clone(),
        ]);
        let d = union.resolve(b"d", Follow::No).unwrap().node;
        let names: Vec<_> = union
            .xattrs(&d)
            .unwrap()
            .into_iter()
            .map(|x| x.name)
            .collect();
        assert_eq!(
            names,
            Vec::from_iter(seen.map(|name| name.as_bytes().to_vec())),
            "{stored}"
        );
    }
}
