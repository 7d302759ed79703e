//! The union against the kernel's overlay on a corpus of constructed cases, random stacks, and other projects' tars in pairs.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lcow_blockio::MemDisk;
use lcow_ext4::{Device, FileType};
use lcow_layer::ErrorKind;
use lcow_layer::apply::{ApplyOptions, apply};
use lcow_layer::flatten::{FlattenOptions, flatten};
use lcow_layer::tree::{Follow, Subtree, Tree};
use lcow_layer::union::Union;
use lcow_testkit::{Corpora, LoopMount, is_root, skip};

use crate::forest::{self, Disk, File, Kind, Layer, OPAQUE, XWHITEOUT, dump, open};
use crate::kernel::{self, Overlay, lowers, random_layers};

/// Layers, nearest first, and the paths that are seen in them together.
struct Case {
    name: &'static str,
    layers: Vec<Layer>,
    seen: &'static [&'static str],
}

fn file(content: &str) -> File {
    File::regular(content.as_bytes())
}

fn dir() -> File {
    File::directory()
}

fn gone() -> File {
    File::whiteout()
}

fn link(target: &str) -> File {
    File::new(Kind::Symlink(target.into()))
}

fn hard(target: &str) -> File {
    File::new(Kind::Link(target.into()))
}

fn opaque(value: &str) -> File {
    dir().with(OPAQUE, value.as_bytes())
}

fn xwhiteout() -> File {
    file("").with(XWHITEOUT, b"y")
}

fn marked(file: File, name: &str) -> File {
    file.with(format!("trusted.overlay.{name}").as_bytes(), b"y")
}

fn layer(files: &[(&str, File)]) -> Layer {
    let mut layer = Layer::default();
    for (path, file) in files {
        // A device can have several names too, which `add` does not know.
        if matches!(file.kind, Kind::Link(_)) {
            layer.0.insert(path.as_bytes().to_vec(), file.clone());
        } else {
            assert!(layer.add(path.as_bytes(), file.clone()), "{path}");
        }
    }
    layer
}

macro_rules! case {
    ($name:literal: $([$(($path:expr, $file:expr)),* $(,)?]),+ => $seen:expr) => {
        Case { name: $name, layers: vec![$(layer(&[$(($path, $file)),*])),+], seen: &$seen }
    };
}

/// Every rule of `fs/overlayfs/namei.c` and `readdir.c` that does not need a redirect or metacopy.
fn cases() -> Vec<Case> {
    let mut cases = vec![
        case!("a device 0:0 deletes a file":
            [("f", gone())], [("f", file("1")), ("g", file("2"))] => ["g"]),
        case!("a device 0:0 deletes a directory":
            [("d", gone())], [("d/f", file("1"))] => []),
        case!("a whiteout of what is not there": [("d/f", gone()), ("g", gone())], [("d/h", file(""))] => ["d", "d/h"]),
        case!("a whiteout where only one layer has the directory":
            [("d/f", gone()), ("d/g", file(""))], [] => ["d", "d/g"]),
        case!("a whiteout in the farthest layer": [("a", file(""))], [("f", gone())] => ["a"]),
        case!("a whiteout hides no nearer file":
            [("f", file("new"))], [("f", gone())], [("f", file("old"))] => ["f"]),
        case!("whiteouts that are one inode":
            [("a", gone()), ("b", hard("a")), ("d/c", hard("a")), ("d", dir())],
            [("a", file("")), ("b", file("")), ("d/c", file("")), ("d/e", file(""))] => ["d", "d/e"]),
        case!("other devices delete nothing":
            [
                ("null", File::new(Kind::Device(Device { major: 1, minor: 3 }))),
                ("minor", File::new(Kind::Device(Device { major: 0, minor: 1 }))),
                ("block", File::new(Kind::BlockDevice(Device { major: 0, minor: 0 }))),
                ("fifo", File::new(Kind::Fifo)),
            ],
            [("null/f", file("")), ("minor", file("")), ("block", file("")), ("fifo", file(""))]
            => ["block", "fifo", "minor", "null"]),
        case!("a file with the attribute is a whiteout":
            [("d", opaque("x")), ("d/f", xwhiteout())], [("d/f", file("1")), ("d/g", file("2"))] => ["d", "d/g"]),
        case!("in attribute form a directory is deleted too":
            [("d", opaque("x")), ("d/e", xwhiteout())], [("d/e/f", file("1"))] => ["d"]),
        case!("in attribute form in the middle":
            [("d/a", file("a"))], [("d", opaque("x")), ("d/f", xwhiteout())], [("d/f", file("1")), ("d/g", file("2"))]
            => ["d", "d/a", "d/g"]),
        case!("in attribute form under a nearer file":
            [("d/f", file("new"))], [("d", opaque("x")), ("d/f", xwhiteout())], [("d/f", file("old"))] => ["d", "d/f"]),
        case!("a file with content is no whiteout":
            [("d", opaque("x")), ("d/f", file("x").with(XWHITEOUT, b"y"))], [("d/f", file("1"))] => ["d", "d/f"]),
        case!("a directory or link with the attribute is no whiteout":
            [("d", opaque("x")), ("d/e", dir().with(XWHITEOUT, b"y")), ("d/l", link("e").with(XWHITEOUT, b"y"))],
            [("d/e/f", file("1")), ("d/l", file("2"))] => ["d", "d/e", "d/e/f", "d/l"]),
        case!("x hides nothing": [("d", opaque("x")), ("d/a", file(""))], [("d/b", file(""))] => ["d", "d/a", "d/b"]),
        case!("y hides": [("d", opaque("y")), ("d/a", file(""))], [("d/b", file(""))] => ["d", "d/a"]),
        case!("y hides what is below, and no nearer layer":
            [("d/e/n", file(""))], [("d", opaque("y")), ("d/e/m", file(""))], [("d/e/f", file(""))]
            => ["d", "d/e", "d/e/m", "d/e/n"]),
        case!("y in the farthest layer": [("d/a", file(""))], [("d", opaque("y")), ("d/b", file(""))] => ["d", "d/a", "d/b"]),
        case!("y within y":
            [("d", dir()), ("d/e", opaque("y")), ("d/e/a", file(""))],
            [("d", opaque("y")), ("d/e/b", file("")), ("d/c", file(""))],
            [("d/e/f", file("")), ("d/g", file(""))] => ["d", "d/c", "d/e", "d/e/a"]),
        case!("other values are not y":
            [("a", opaque("yes")), ("b", opaque("Y")), ("c", opaque("")), ("e", opaque("n"))],
            [("a/1", file("")), ("b/1", file("")), ("c/1", file("")), ("e/1", file(""))]
            => ["a", "a/1", "b", "b/1", "c", "c/1", "e", "e/1"]),
        case!("y on what is no directory means nothing":
            [("f", file("new").with(OPAQUE, b"y"))], [("f", file("old"))] => ["f"]),
        case!("a whiteout in an opaque directory":
            [("d", opaque("y")), ("d/f", gone()), ("d/a", file(""))], [("d/f", file(""))] => ["d", "d/a"]),
        case!("a file over a directory": [("d", file("now a file"))], [("d/f", file(""))] => ["d"]),
        case!("a directory over a file": [("d/f", file(""))], [("d", file("was a file"))] => ["d", "d/f"]),
        case!("a directory over a file over a directory":
            [("d/a", file(""))], [("d", file(""))], [("d/b", file(""))] => ["d", "d/a"]),
        case!("a directory over a whiteout over a directory":
            [("d/a", file(""))], [("d", gone())], [("d/b", file(""))] => ["d", "d/a"]),
        case!("a directory over a link to one":
            [("d/a", file("")), ("e/b", file(""))], [("d", link("e")), ("e/c", file(""))] => ["d", "d/a", "e", "e/b", "e/c"]),
        case!("a link over a directory": [("d", link("e"))], [("d/a", file("")), ("e/b", file(""))] => ["d", "e", "e/b"]),
        case!("a FIFO between directories":
            [("d/a", file(""))], [("d", File::new(Kind::Fifo))], [("d/b", file(""))] => ["d", "d/a"]),
        case!("hard links in one layer, one name covered":
            [("b", file("own"))], [("a", file("1")), ("b", hard("a")), ("c", hard("a"))] => ["a", "b", "c"]),
        case!("hard links of the same name in two layers":
            [("a", file("1")), ("b", hard("a"))], [("b", file("2")), ("c", hard("b"))] => ["a", "b", "c"]),
        case!("what copying up leaves is not seen":
            [
                ("f", marked(marked(file("up"), "origin"), "uuid")),
                ("d", marked(marked(marked(dir(), "impure"), "origin"), "nlink")),
                ("d/g", marked(marked(file(""), "protattr"), "upper")),
            ],
            [("f", file("low")), ("d/h", file(""))] => ["d", "d/g", "d/h", "f"]),
        case!("a nested overlay's attributes are seen":
            [
                ("d", dir().with(b"trusted.overlay.overlay.opaque", b"y")),
                ("d/f", file("").with(b"trusted.overlay.overlay.whiteout", b"y")),
                ("d/g", file("").with(b"trusted.overlay.overlay.overlay.x", b"1")),
                ("e", dir().with(b"trusted.overlay.overlay.redirect", b"/d")),
            ],
            [("d/h", file("")), ("e/i", file(""))] => ["d", "d/f", "d/g", "d/h", "e", "e/i"]),
        case!("user.overlay is an attribute like any other":
            [
                ("d", dir().with(b"user.overlay.opaque", b"y")),
                ("d/f", file("").with(b"user.overlay.whiteout", b"y")),
                ("e", dir().with(b"user.overlay.redirect", b"/d")),
            ],
            [("d/f", file("1")), ("d/g", file("2")), ("e/h", file(""))] => ["d", "d/f", "d/g", "e", "e/h"]),
        case!("a merged directory is the nearest one's":
            [("d", File { mode: 0o2711, owner: 7, ..dir().with(b"user.who", b"top") }), ("d/a", file(""))],
            [("d", File { mode: 0o700, owner: 8, ..dir().with(b"user.who", b"low").with(b"user.low", b"1") }), ("d/b", file(""))]
            => ["d", "d/a", "d/b"]),
        case!("names that only look like whiteouts":
            [(".wh.f", file("")), (".wh..wh..opq", file("")), ("d/.wh.g", file(""))],
            [("f", file("")), ("d/g", file(""))] => [".wh..wh..opq", ".wh.f", "d", "d/.wh.g", "d/g", "f"]),
        case!("directories three deep in four layers":
            [("a/b/c/1", file(""))], [("a/b/c/2", file("")), ("a/x", gone())],
            [("a/b/d", file("")), ("a/x/y", file(""))], [("a/b/c/3", file("")), ("a/x/z", file(""))]
            => ["a", "a/b", "a/b/c", "a/b/c/1", "a/b/c/2", "a/b/c/3", "a/b/d"]),
    ];
    // Names that are not text, and as long as they get.
    let mut odd = [Layer::default(), Layer::default()];
    for (i, layer) in odd.iter_mut().enumerate() {
        for name in [&b"\xff\xfe"[..], b"new\nline", b"\x01", b" ", &[b'n'; 255]] {
            layer.add(name, dir());
            layer.add(&[name, b"/", format!("{i}").as_bytes()].concat(), file(""));
        }
    }
    odd[0].add(b"\xff\xfe/\x80", file("near"));
    odd[1].add(b"\xff\xfe/\x80", file("far"));
    odd[0].add(b"\xc3", gone());
    odd[1].add(b"\xc3", file(""));
    cases.push(Case {
        name: "names that are not text",
        layers: odd.to_vec(),
        seen: &[],
    });
    cases
}

/// The layers of all stacks on one disk, and where each stack begins.
fn together(stacks: &[Vec<Layer>]) -> (Vec<u8>, Vec<usize>) {
    let mut starts = vec![0];
    let mut all = Vec::new();
    for layers in stacks {
        all.extend(layers.iter().cloned());
        // The mount needs two layers at least.
        all.push(Layer::default());
        starts.push(all.len());
    }
    (forest::image(&all, true), starts)
}

/// Holds each stack against the kernel's overlay. Says how many files were compared.
fn compare_with_the_kernel(stacks: &[Vec<Layer>], name: impl Fn(usize) -> String) -> usize {
    let (bytes, starts) = together(stacks);
    let place = tempfile::tempdir().unwrap();
    let image = place.path().join("layers.img");
    fs::write(&image, &bytes).unwrap();
    let fs = open(bytes);
    let all = lowers(&fs, *starts.last().unwrap());
    let merged = place.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let lower = LoopMount::new(&image, "ro,noload");
    let mut compared = 0;
    for (number, range) in starts.windows(2).map(|w| w[0]..w[1]).enumerate() {
        let paths: Vec<PathBuf> = range
            .clone()
            .map(|i| lower.path().join(i.to_string()))
            .collect();
        let overlay = Overlay::new(&merged, &paths, None);
        let union = Union::new(all[range].to_vec()).unwrap();
        compared += same(&union, overlay.path(), &name(number));
    }
    compared
}

/// Whether a union and a mounted overlay show the same, link counts included.
fn same(union: &Union<Disk>, mounted: &Path, name: &str) -> usize {
    let (ours, theirs) = (dump(union), kernel::dump(mounted));
    for (path, record) in &theirs {
        let shown = path.escape_ascii();
        assert_eq!(ours.get(path), Some(record), "{name}: {shown}");
    }
    let ours: Vec<_> = ours.into_keys().collect();
    let theirs: Vec<_> = theirs.into_keys().collect();
    assert_eq!(ours, theirs, "{name}");
    for path in ours.iter().chain([&Vec::new()]) {
        let meta = fs::symlink_metadata(mounted.join(std::ffi::OsStr::from_bytes(path))).unwrap();
        let stat = union.resolve(path, Follow::No).unwrap().node.stat();
        let shown = path.escape_ascii();
        assert_eq!(
            u64::from(stat.links),
            meta.nlink(),
            "{name}: links of {shown}"
        );
        let times = |secs, nanos| (secs, u32::try_from(nanos).unwrap());
        assert_eq!(
            [stat.mtime, stat.ctime].map(|t| (t.secs, t.nanos)),
            [
                times(meta.mtime(), meta.mtime_nsec()),
                times(meta.ctime(), meta.ctime_nsec())
            ],
            "{name}: times of {shown}"
        );
    }
    ours.len()
}

#[test]
fn every_case_is_as_the_documentation_says() {
    for case in cases() {
        let union = forest::union(&case.layers);
        let names: Vec<_> = dump(&union).into_keys().collect();
        if !case.seen.is_empty() {
            let seen: Vec<_> = case.seen.iter().map(|s| s.as_bytes().to_vec()).collect();
            assert_eq!(names, seen, "{}", case.name);
        }
        // A listing and a lookup agree on every name that any layer has.
        for path in case.layers.iter().flat_map(|layer| layer.0.keys()) {
            let found = union.resolve(path, Follow::No);
            let listed = names.contains(path);
            assert_eq!(
                found.is_ok(),
                listed,
                "{}: {}",
                case.name,
                path.escape_ascii()
            );
        }
        flattens(&union, case.name);
    }
}

/// The flattened disk shows the same.
fn flattens(union: &Union<Disk>, name: &str) {
    let disk = MemDisk::new();
    let id = lcow_layer::digest::Digest::of(name.as_bytes());
    flatten(union, &id, &disk, &FlattenOptions::default()).unwrap();
    let flat = Union::new(vec![forest::whole(&open(disk.into_bytes()))]).unwrap();
    assert!(dump(&flat) == dump(union), "{name}: flattened, it differs");
}

#[test]
fn every_case_is_as_the_kernel_shows_it() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let cases = cases();
    let stacks: Vec<Vec<Layer>> = cases.iter().map(|case| case.layers.clone()).collect();
    let compared = compare_with_the_kernel(&stacks, |i| cases[i].name.to_owned());
    assert!(compared > 80, "{compared}");
}

#[test]
fn random_stacks_are_as_the_kernel_shows_them() {
    if !is_root() {
        skip!("not root: can't mount");
    }
    let stacks: Vec<Vec<Layer>> = (0..200_u8)
        .map(|seed| random_layers(seed, 1 + usize::from(seed) % 6))
        .collect();
    let compared = compare_with_the_kernel(&stacks, |i| format!("seed {i}"));
    assert!(compared > 1000, "{compared}");
}

/// A mark on a layer's own root hides nothing in the kernel either; the root's other attributes and metadata are the nearest layer's.
#[test]
fn the_roots_of_layers() {
    let near = File {
        mode: 0o1751,
        owner: 12,
        ..opaque("y").with(b"user.root", b"near")
    };
    let far = File {
        mode: 0o700,
        ..dir().with(b"user.root", b"far").with(b"user.far", b"1")
    };
    let mut both = Layer::default();
    for (name, root) in [("0", near), ("1", far)] {
        both.add(name.as_bytes(), root);
        both.add(format!("{name}/own-{name}").as_bytes(), file(""));
    }
    let bytes = forest::image(&[both], false);
    let trees = lowers(&open(bytes.clone()), 2);
    let union = Union::new(trees).unwrap();
    let names: Vec<_> = dump(&union).into_keys().collect();
    assert_eq!(names, [&b"own-0"[..], b"own-1"]);
    let stat = union.root().stat();
    assert_eq!((stat.permissions, stat.uid), (0o1751, 12));
    if !is_root() {
        skip!("not root: can't mount");
    }
    let place = tempfile::tempdir().unwrap();
    let image = place.path().join("img");
    fs::write(&image, bytes).unwrap();
    let merged = place.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let lower = LoopMount::new(&image, "ro,noload");
    let overlay = Overlay::new(&merged, &["0", "1"].map(|i| lower.path().join(i)), None);
    assert_eq!(same(&union, overlay.path(), "roots"), 2);
    let meta = fs::metadata(&merged).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o1751, 12));
    assert_eq!(
        kernel::xattrs_of(&merged),
        [(b"user.root".to_vec(), b"near".to_vec())]
    );
}

/// What needs more than names: refused by us with the feature's name. The kernel, mounted as a VM mounts it, refuses metacopy too.
#[test]
fn redirects_and_metacopy_are_refused() {
    let moved = layer(&[
        ("d/x", file("")),
        ("m", file("data").with(b"trusted.overlay.metacopy", b"")),
        ("plain", file("p")),
    ]);
    let mut moved = moved;
    let d = moved.0.get_mut(&b"d"[..]).unwrap();
    *d = d.clone().with(b"trusted.overlay.redirect", b"/other");
    let base = layer(&[("m", file("real")), ("other/y", file(""))]);
    let union = forest::union(&[moved.clone(), base.clone()]);
    let refused = |error: lcow_layer::tree::TreeError, feature: &str| {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(feature), "{error}");
    };
    for path in [&b"d"[..], b"d/x", b"d/y"] {
        refused(union.resolve(path, Follow::No).unwrap_err(), "redirect_dir");
    }
    let m = union.resolve(b"m", Follow::No).unwrap().node;
    refused(union.open_file(&m).unwrap_err(), "metacopy");
    assert!(union.resolve(b"plain", Follow::No).is_ok());
    if !is_root() {
        skip!("not root: can't mount");
    }
    let place = tempfile::tempdir().unwrap();
    let image = place.path().join("img");
    fs::write(&image, forest::image(&[moved, base], true)).unwrap();
    let merged = place.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let lower = LoopMount::new(&image, "ro,noload");
    let overlay = Overlay::new(&merged, &["0", "1"].map(|i| lower.path().join(i)), None);
    let error = fs::read(overlay.path().join("m")).unwrap_err();
    assert!(
        matches!(error.kind(), io::ErrorKind::PermissionDenied),
        "{error}"
    );
    assert_eq!(fs::read(overlay.path().join("plain")).unwrap(), b"p");
}

/// A tar of the corpora as a layer's disk, unless a file in it is too large to compare.
fn corpus_layer(tar: &[u8]) -> Option<Vec<u8>> {
    let disk = MemDisk::new();
    // One of them makes a quarter of a million directories.
    let options = ApplyOptions {
        max_size: 32 << 20,
        ..ApplyOptions::default()
    };
    apply(tar, &disk, None, &options).ok()?;
    let bytes = disk.into_bytes();
    let fs = open(bytes.clone());
    // The kernel takes no longer paths in one call.
    let small = fs.walk(&fs.root().unwrap()).unwrap().all(|file| {
        let file = file.unwrap();
        let is_large = file.inode.file_type == FileType::Regular && file.inode.size >= 8 << 20;
        !is_large && file.path.len() < 3000
    });
    small.then_some(bytes)
}

#[test]
fn other_projects_tars_in_pairs() {
    let Some(corpora) = Corpora::find() else {
        skip!("no corpora");
    };
    let index = fs::read_to_string(corpora.index.join("INDEX.tar.tsv")).unwrap();
    let mut layers = Vec::new();
    for line in index.lines().skip(1) {
        let columns: Vec<&str> = line.split('\t').collect();
        let small = columns[4].parse().is_ok_and(|len: u64| len < 8 << 20);
        if columns[5].starts_with("T1") && small {
            let name = format!("{}/{}", columns[0], columns[1]);
            let tar = fs::read(corpora.files.join(&name)).unwrap();
            layers.extend(corpus_layer(&tar).map(|bytes| (name, bytes)));
        }
    }
    assert!(layers.len() > 100, "{}", layers.len());
    let place = tempfile::tempdir().unwrap();
    let merged = place.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let mut compared = 0;
    let mut above: Option<(&String, Subtree<Disk>, Option<LoopMount>)> = None;
    for (number, (name, bytes)) in layers.iter().enumerate() {
        let tree = forest::whole(&open(bytes.clone()));
        let mounted = is_root().then(|| {
            let image = place.path().join(number.to_string());
            fs::write(&image, bytes).unwrap();
            LoopMount::new(&image, "ro,noload")
        });
        if let Some((above, above_tree, above_mounted)) = above {
            let name = format!("{above} over {name}");
            let union = Union::new(vec![above_tree, tree.clone()]).unwrap();
            flattens(&union, &name);
            if let (Some(near), Some(far)) = (&above_mounted, &mounted) {
                let overlay = Overlay::new(&merged, &[near.path(), far.path()], None);
                compared += same(&union, overlay.path(), &name);
            }
        }
        above = Some((name, tree, mounted));
    }
    if !is_root() {
        skip!("not root: can't mount; compared with the flattened disk alone");
    }
    assert!(compared > 500, "{compared}");
}
