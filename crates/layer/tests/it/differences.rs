//! `changes` against a plain comparison, and `diff` by what it must do: on top of the one tree it gives the other.

use std::collections::BTreeSet;
use std::sync::Arc;

use lcow_blockio::MemDisk;
use lcow_layer::apply::{ApplyOptions, apply};
use lcow_layer::changes::{Change, ChangeKind, changes, diff_size};
use lcow_layer::diff::diff;
use lcow_layer::tree::{Subtree, Tree};
use lcow_layer::union::Union;
use proptest::prelude::*;

use crate::forest::{
    Disk, Dump, File, Fs, Kind, Layer, OPAQUE, any_layer, dump, name, open, parent, union, whole,
};

type Tar = Vec<u8>;

fn diff_of(after: &Union<Disk>, before: Option<&Union<Disk>>) -> Tar {
    let mut tar = Vec::new();
    diff(after, before, None, &mut tar).unwrap();
    tar
}

fn applied(tar: &[u8]) -> Arc<Fs> {
    let disk = MemDisk::new();
    apply(tar, &disk, None, &ApplyOptions::default()).unwrap();
    open(disk.into_bytes())
}

/// The names in a tar, in its order.
fn names(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
        .collect()
}

fn list(after: &Union<Disk>, before: Option<&Union<Disk>>) -> Vec<Change> {
    changes(after, before).unwrap().iter().collect()
}

/// What must be changed, and what may be as well since it has several names on either side.
fn truth(after: &Dump, before: &Dump) -> (BTreeSet<Change>, BTreeSet<Vec<u8>>) {
    let change = |path: &[u8], kind| Change {
        path: path.to_vec(),
        kind,
    };
    let is_directory = |mode: u32| mode & 0xf000 == 0x4000;
    let mut must = BTreeSet::new();
    let mut may = BTreeSet::new();
    for (path, new) in after {
        match before.get(path) {
            None => {
                must.insert(change(path, ChangeKind::Added));
                let dir = parent(path);
                if before.get(dir).is_some_and(|d| is_directory(d.mode)) {
                    must.insert(change(dir, ChangeKind::Modified));
                }
            }
            Some(old) => {
                let mut old = old.clone();
                old.first_name.clone_from(&new.first_name);
                if *new != old {
                    must.insert(change(path, ChangeKind::Modified));
                } else if !is_directory(new.mode) {
                    may.insert(path.clone());
                }
            }
        }
    }
    for path in before.keys() {
        let dir = parent(path);
        let stays = dir.is_empty() || after.get(dir).is_some_and(|d| is_directory(d.mode));
        let was = dir.is_empty() || before.get(dir).is_some_and(|d| is_directory(d.mode));
        if !after.contains_key(path) && stays && was {
            must.insert(change(path, ChangeKind::Deleted));
            if !dir.is_empty() {
                must.insert(change(dir, ChangeKind::Modified));
            }
        }
    }
    (must, may)
}

fn check(after: &Union<Disk>, before: &Union<Disk>) -> Result<(), TestCaseError> {
    let (new, old) = (dump(after), dump(before));
    let told = list(after, Some(before));
    prop_assert!(told.is_sorted_by(|a, b| a.path < b.path), "{told:?}");
    let (must, may) = truth(&new, &old);
    let told_set: BTreeSet<_> = told.iter().cloned().collect();
    for missing in must.difference(&told_set) {
        prop_assert!(false, "missing: {missing:?} in {told:?}");
    }
    for extra in told_set.difference(&must) {
        let links = |d: &Dump| {
            let first = &d[&extra.path].first_name;
            d.values().filter(|r| r.first_name == *first).count()
        };
        prop_assert!(may.contains(&extra.path), "extra: {extra:?}");
        prop_assert!(links(&new) > 1 || links(&old) > 1, "extra: {extra:?}");
    }

    let tar = diff_of(after, Some(before));
    prop_assert_eq!(told.is_empty(), names(&tar).iter().all(|name| name == "./"));
    let layers = std::iter::once(whole(&applied(&tar))).chain(before.layers().iter().cloned());
    let result = Union::new(layers.collect()).unwrap();
    prop_assert_eq!(dump(&result), new, "{:?}", names(&tar));
    if told.is_empty() {
        return Ok(());
    }
    prop_assert_eq!(result.root().stat().mode(), after.root().stat().mode());
    prop_assert_eq!(result.root().stat().mtime, after.root().stat().mtime);
    // And nothing is left to tell.
    prop_assert_eq!(list(&result, Some(after)), vec![]);
    Ok(())
}

fn opened(layers: &[Layer]) -> Vec<Subtree<Disk>> {
    layers.iter().map(|layer| whole(&layer.open())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// A container, or a layer, over what it was made on: the shared layers are known to be the same.
    #[test]
    fn a_diff_on_its_parent_gives_the_child(
        parents in prop::collection::vec(any_layer(false), 1..4),
        own in prop::collection::vec(any_layer(false), 1..3),
    ) {
        let parents = opened(&parents);
        let all = opened(&own).into_iter().chain(parents.iter().cloned()).collect();
        check(&Union::new(all).unwrap(), &Union::new(parents).unwrap())?;
    }

    /// Nothing shared, or nothing known to be.
    #[test]
    fn a_diff_between_strangers_gives_the_other(
        before in prop::collection::vec(any_layer(false), 1..4),
        own in prop::collection::vec(any_layer(false), 1..3),
        related in any::<bool>(),
    ) {
        let mut after = own;
        if related {
            after.extend(before.iter().cloned());
        }
        check(&union(&after), &union(&before))?;
    }

    /// Back to where the container came from.
    #[test]
    fn a_diff_backwards_gives_the_parent(
        parents in prop::collection::vec(any_layer(false), 1..4),
        own in any_layer(false),
    ) {
        let parents = opened(&parents);
        let parent = Union::new(parents).unwrap();
        check(&parent, &parent.with_upper(whole(&own.open())))?;
    }

    #[test]
    fn against_nothing_all_is_added(layers in prop::collection::vec(any_layer(false), 1..4)) {
        let after = union(&layers);
        let told = list(&after, None);
        prop_assert!(told.iter().all(|change| change.kind == ChangeKind::Added));
        let paths: Vec<_> = told.into_iter().map(|change| change.path).collect();
        prop_assert_eq!(paths, dump(&after).into_keys().collect::<Vec<_>>());
        let tar = diff_of(&after, None);
        prop_assert_eq!(dump(&whole(&applied(&tar))), dump(&after));
    }
}

fn layer(files: &[(&str, File)]) -> Layer {
    let mut layer = Layer::default();
    for (path, file) in files {
        assert!(layer.add(path.as_bytes(), file.clone()), "{path}");
    }
    layer
}

fn text(content: &str) -> File {
    File::regular(content.as_bytes())
}

/// Names of the diff of `own` over `base`.
fn names_over(own: &Layer, base: &Layer) -> Vec<String> {
    let base = union(std::slice::from_ref(base));
    let after = base.with_upper(whole(&own.open()));
    check(&after, &base).unwrap();
    names(&diff_of(&after, Some(&base)))
}

#[test]
fn a_directory_made_anew_is_opaque_and_a_deleted_name_is_a_whiteout() {
    let base = layer(&[
        ("d/a", text("1")),
        ("d/b", text("2")),
        ("d/sub/x", text("3")),
        ("e/only", text("4")),
    ]);
    let opaque = File::directory().with(OPAQUE, b"y");
    let anew = layer(&[
        ("d", opaque.clone()),
        ("d/a", text("new")),
        ("d/sub/y", text("5")),
        ("e/only", File::whiteout()),
    ]);
    assert_eq!(
        names_over(&anew, &base),
        [
            "./",
            "d/",
            "d/.wh..wh..opq",
            "d/a",
            "d/sub/",
            "d/sub/y",
            "e/",
            "e/.wh.only"
        ]
    );
    // What it keeps unchanged would have to be written again: then names are deleted one by one.
    let keeps = layer(&[("d", opaque), ("d/a", text("1"))]);
    assert_eq!(
        names_over(&keeps, &base),
        ["./", "d/", "d/.wh.b", "d/.wh.sub"]
    );
}

#[test]
fn a_mark_with_nothing_to_hide_is_left_out() {
    let base = layer(&[("d/a", text("1"))]);
    let new = layer(&[
        ("n", File::directory().with(OPAQUE, b"y")),
        ("n/f", text("")),
    ]);
    assert_eq!(names_over(&new, &base), ["./", "n/", "n/f"]);
}

#[test]
fn types_may_change() {
    let base = layer(&[
        ("file", text("1")),
        ("dir/below", text("2")),
        ("same", text("3")),
    ]);
    let own = layer(&[
        ("file/below", text("4")),
        ("dir", File::new(Kind::Symlink(b"same".to_vec()))),
    ]);
    assert_eq!(
        names_over(&own, &base),
        ["./", "dir", "file/", "file/below"]
    );
}

#[test]
fn links_come_whole_or_not_at_all() {
    let link = |target: &str| File::new(Kind::Link(target.into()));
    // `a` was copied up by being linked: it looks as before.
    let base = layer(&[("a", text("1")), ("p", text("2")), ("q", text("2"))]);
    let own = layer(&[("a", text("1")), ("z", link("a"))]);
    assert_eq!(names_over(&own, &base), ["./", "a", "z"]);
    // Two alike files became one.
    let own = layer(&[("p", text("2")), ("q", link("p"))]);
    assert_eq!(names_over(&own, &base), ["./", "p", "q"]);
    // One file became two.
    let base = layer(&[("p", text("2")), ("q", link("p"))]);
    let own = layer(&[("p", text("2"))]);
    assert_eq!(names_over(&own, &base), ["./", "p"]);
}

#[test]
fn a_name_that_is_hidden_is_no_link() {
    let base = opened(&[layer(&[("shared/file", text("1"))])]);
    let linked = layer(&[
        ("a", text("2")),
        ("b", File::new(Kind::Link(b"a".to_vec()))),
    ]);
    let own = opened(&[layer(&[("b", File::whiteout())]), linked]);
    let all = own.into_iter().chain(base.iter().cloned()).collect();
    check(&Union::new(all).unwrap(), &Union::new(base).unwrap()).unwrap();

    // Hidden on a disk that both have.
    let linked = layer(&[
        ("a", text("2")),
        ("b", File::new(Kind::Link(b"a".to_vec()))),
    ]);
    let parent = Union::new(opened(&[layer(&[("b", File::whiteout())]), linked])).unwrap();
    let own = layer(&[("a", File::whiteout())]);
    check(&parent, &parent.with_upper(whole(&own.open()))).unwrap();
}

#[test]
fn nothing_changed_is_an_empty_tar() {
    let base = union(&[layer(&[("a/b", text("1"))])]);
    let same = base.with_upper(whole(&Layer::default().open()));
    assert_eq!(diff_of(&same, Some(&base)), vec![0; 1024]);
    assert_eq!(diff_of(&base, Some(&base)), vec![0; 1024]);
}

#[test]
fn sizes_count_each_file_once() {
    let link = File::new(Kind::Link(b"new".to_vec()));
    let base = union(&[layer(&[("old", text("12345")), ("gone", text("12"))])]);
    let own = layer(&[
        ("new", text("1234567")),
        ("new-too", link),
        ("old", text("123")),
        ("gone", File::whiteout()),
    ]);
    let after = base.with_upper(whole(&own.open()));
    assert_eq!(diff_size(&after, Some(&base)).unwrap(), 10);
    assert_eq!(diff_size(&after, None).unwrap(), 10);
    assert_eq!(diff_size(&base, Some(&base)).unwrap(), 0);
}

#[test]
fn alike_in_all_but_content_is_a_change() {
    let base = union(&[layer(&[("a", text("aaaa")), ("b", text("same"))])]);
    let other = union(&[layer(&[("a", text("aaab")), ("b", text("same"))])]);
    let told = list(&other, Some(&base));
    assert_eq!(told.len(), 1);
    assert_eq!(name(&told[0].path), b"a");
}

#[test]
fn an_image_layer_cant_hold_a_file_called_like_a_whiteout() {
    let base = union(&[Layer::default()]);
    let own = layer(&[(".wh.passwd", text("mine"))]);
    let after = base.with_upper(whole(&own.open()));
    let error = diff(&after, Some(&base), None, Vec::new()).unwrap_err();
    assert_eq!(error.kind(), lcow_layer::ErrorKind::Refused);
    assert!(error.to_string().contains(".wh.passwd"), "{error}");
}

#[test]
fn what_mke2fs_makes_is_no_change() {
    let lost = File {
        mode: 0o700,
        ..File::directory()
    };
    let base = union(&[layer(&[("a", text("1"))])]);
    let with = union(&[layer(&[("a", text("1")), ("lost+found", lost.clone())])]);
    assert_eq!(list(&with, Some(&base)), vec![]);
    assert_eq!(list(&base, Some(&with)), vec![]);
    let used = union(&[layer(&[
        ("a", text("1")),
        ("lost+found", lost),
        ("lost+found/#12", text("found")),
    ])]);
    assert_eq!(list(&used, Some(&base)).len(), 2);
}
