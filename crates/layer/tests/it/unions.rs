//! The union against a model of overlayfs, and path resolution.

use lcow_layer::ErrorKind;
use lcow_layer::tree::{Follow, Subtree, Tree, TreeError};
use proptest::prelude::*;

use crate::forest::{self, File, Kind, Layer, OPAQUE, any_layer, dump, expected, union, whole};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_stacks_look_as_overlayfs_shows_them(layers in prop::collection::vec(any_layer(true), 1..6)) {
        prop_assert_eq!(dump(&union(&layers)), expected(&layers));
    }

    #[test]
    fn one_layer_is_shown_raw(layer in any_layer(true)) {
        let raw = dump(&whole(&layer.open()));
        prop_assert_eq!(raw.keys().collect::<Vec<_>>(), layer.0.keys().collect::<Vec<_>>());
        for (path, file) in &layer.0 {
            if !matches!(file.kind, Kind::Link(_)) {
                prop_assert_eq!(&raw[path].xattrs, &file.xattrs);
            }
        }
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
    File::new(Kind::Symlink(target.into()))
}

#[test]
fn paths_resolve_inside_the_root() {
    let mut files = vec![
        ("etc/passwd", File::regular(b"x")),
        ("dir/sub/file", File::regular(b"y")),
        ("abs", link("/etc/passwd")),
        ("up", link("../../../../etc/passwd")),
        ("dir/rel", link("../etc//./passwd")),
        ("dir/dirlink", link("sub/")),
        ("loop", link("loop")),
        ("dangling", link("nowhere/at/all")),
        ("filelink/", link("etc/passwd/")),
    ];
    files.last_mut().unwrap().0 = "filelink";
    let names: Vec<String> = (0..42).map(|i| format!("hop{i}")).collect();
    for (i, name) in names.iter().enumerate() {
        let target = if i == 0 {
            "etc/passwd".to_owned()
        } else {
            format!("hop{}", i - 1)
        };
        files.push((name, link(&target)));
    }
    let tree = union(&[layer(&files)]);
    let found = |path: &str, follow| {
        let found = tree.resolve(path.as_bytes(), follow).map(|r| r.path);
        found.map(|path| String::from_utf8(path).unwrap())
    };
    for (path, expected) in [
        ("", ""),
        ("/", ""),
        (".", ""),
        ("../..", ""),
        ("/etc/passwd", "etc/passwd"),
        ("etc//passwd", "etc/passwd"),
        ("etc/../etc/./passwd", "etc/passwd"),
        ("../../etc/passwd", "etc/passwd"),
        ("abs", "etc/passwd"),
        ("up", "etc/passwd"),
        ("dir/rel", "etc/passwd"),
        ("dir/dirlink/file", "dir/sub/file"),
        ("dir/dirlink/../rel", "etc/passwd"),
        ("hop39", "etc/passwd"),
    ] {
        assert_eq!(found(path, Follow::Yes).unwrap(), expected, "{path}");
    }
    for (path, expected) in [
        ("abs", "abs"),
        ("dir/dirlink/", "dir/sub"),
        ("loop", "loop"),
    ] {
        assert_eq!(found(path, Follow::No).unwrap(), expected, "{path}");
    }
    let long = "n".repeat(256);
    for (path, wanted) in [
        ("nope", "NotFound"),
        ("dangling", "NotFound"),
        ("etc/passwd/x", "NotADirectory"),
        ("etc/passwd/", "NotADirectory"),
        ("etc/passwd/..", "NotADirectory"),
        ("filelink", "NotADirectory"),
        ("loop", "Loop"),
        ("hop40", "Loop"),
        (&long, "NameTooLong"),
    ] {
        let error = found(path, Follow::Yes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let error = format!("{error:?}");
        assert!(error.starts_with(wanted), "{path}: {error}");
    }
}

#[test]
fn merged_directories_have_one_link() {
    let one = layer(&[("d/a", File::regular(b""))]);
    let tree = union(&[one.clone(), one]);
    let merged = tree.resolve(b"d", Follow::No).unwrap().node;
    assert_eq!(merged.stat().links, 1);
    assert_eq!(tree.root().stat().links, 1);
}

#[test]
fn a_mark_on_a_layers_root_means_nothing() {
    let mut upper = Layer::default();
    upper.add(b"0/own", File::regular(b"u"));
    upper
        .0
        .insert(b"0".to_vec(), File::directory().with(OPAQUE, b"y"));
    let upper = Subtree::open(forest::open(upper.bytes()), b"0").unwrap();
    let lower = union(&[layer(&[("below", File::regular(b"l"))])]);
    let names: Vec<_> = dump(&lower.with_upper(upper)).into_keys().collect();
    assert_eq!(names, [&b"below"[..], b"own"]);
}

#[test]
fn features_that_need_more_than_names_are_refused() {
    let moved = layer(&[
        ("d/x", File::regular(b"")),
        (
            "m",
            File::regular(b"data").with(b"trusted.overlay.metacopy", b""),
        ),
    ]);
    let mut moved = moved;
    let d = moved.0.get_mut(&b"d"[..]).unwrap();
    *d = d.clone().with(b"trusted.overlay.redirect", b"/other");
    let tree = union(&[moved]);
    for path in [&b"d"[..], b"d/x"] {
        let error = tree.resolve(path, Follow::Yes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("redirect_dir"), "{error}");
    }
    let entries = tree.read_dir(tree.root()).unwrap();
    assert!(matches!(
        tree.node(&entries[0]),
        Err(TreeError::Overlay { .. })
    ));
    let file = tree.resolve(b"m", Follow::Yes).unwrap().node;
    let error = tree.open_file(&file).err().unwrap();
    assert!(error.to_string().contains("metacopy"), "{error}");
}

#[test]
fn five_hundred_layers() {
    let mut layers = Vec::new();
    for i in (0..500).rev() {
        let mut one = layer(&[
            ("all/same", File::regular(i.to_string().as_bytes())),
            (&format!("all/{i}"), File::regular(b"own")),
        ]);
        if i % 10 == 9 {
            one.add(format!("all/{}", i - 1).as_bytes(), File::whiteout());
        }
        layers.push(one);
    }
    let tree = union(&layers);
    let all = tree.resolve(b"all", Follow::No).unwrap().node;
    assert_eq!(tree.read_dir(&all).unwrap().len(), 451);
    assert!(tree.lookup(&all, b"0").unwrap().is_some());
    assert!(tree.lookup(&all, b"8").unwrap().is_none());
    let same = tree.resolve(b"all/same", Follow::No).unwrap().node;
    let mut text = [0; 8];
    let len = tree
        .open_file(&same)
        .unwrap()
        .read_at(0, &mut text)
        .unwrap();
    assert_eq!(&text[..len], b"499");
}
