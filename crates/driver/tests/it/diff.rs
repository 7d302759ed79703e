//! diff, changes, diff_size, diff_getter, commit: without a VM.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};

use lcow_blockio::{FileDisk, SubRange};
use lcow_driver::{Against, Cancel, ChangeKind, DriverError, ErrorKind, Store};
use lcow_layer::digest::Digest;

use crate::common::{Root, id, import, kind, noise, root, small_sandbox, tar};

fn chain() -> Root {
    let store = root();
    import(
        &store,
        "base",
        None,
        &tar(&[
            ("keep", b"1"),
            ("change", b"2"),
            ("gone", b"3"),
            ("dir/", b""),
            ("dir/f", b"4"),
        ]),
    );
    import(
        &store,
        "top",
        Some("base"),
        &tar(&[("change", b"two!"), (".wh.gone", b""), ("new", b"55555")]),
    );
    store
}

fn diff(store: &Store, name: &str, against: &Against) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    let summary = store
        .diff(&id(name), against, &mut out, &Cancel::new())
        .unwrap();
    assert_eq!(
        (summary.size, summary.digest),
        (out.len() as u64, Digest::of(&out))
    );
    (out, summary.exact)
}

fn paths(store: &Store, name: &str, against: &Against) -> Vec<(String, ChangeKind)> {
    let changes = store.changes(&id(name), against).unwrap();
    changes
        .into_iter()
        .map(|c| (String::from_utf8(c.path).unwrap(), c.kind))
        .collect()
}

fn names(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    archive
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect()
}

#[test]
fn spec_diff_completes_a_layers_own_diff_is_the_tar_that_was_applied_byte_for_byte() {
    let store = chain();
    // Something that no canonical form has: an odd order, and padding at the end.
    let mut odd = tar(&[("z", &noise(70_000, 1)), ("a", b"x"), (".wh.keep", b"")]);
    odd.extend([0; 9 * 512]);
    import(&store, "odd", Some("top"), &odd);
    for against in [Against::Parent, Against::Layer(id("top"))] {
        let (out, exact) = diff(&store, "odd", &against);
        assert!(exact && out == odd, "{against:?}");
    }
}

#[test]
fn spec_diff_mends_damage_is_an_error_and_never_another_tar() {
    let store = chain();
    let path = store.root().join("top/layer.vhd");
    let mut disk = fs::read(&path).unwrap();
    let at = disk.windows(5).position(|w| w == b"55555").unwrap();
    disk[at] = b'6';
    fs::write(&path, disk).unwrap();
    let error = store
        .diff(
            &id("top"),
            &Against::Parent,
            &mut Vec::new(),
            &Cancel::new(),
        )
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
}

#[test]
fn spec_changes_and_diff_size_complete_against_any_parent() {
    use ChangeKind::{Added, Deleted, Modified};
    let store = chain();
    let s = |list: &[(&str, ChangeKind)]| {
        list.iter()
            .map(|(p, k)| ((*p).to_owned(), *k))
            .collect::<Vec<_>>()
    };
    let own = s(&[("change", Modified), ("gone", Deleted), ("new", Added)]);
    assert_eq!(paths(&store, "top", &Against::Parent), own);
    assert_eq!(paths(&store, "top", &Against::Layer(id("base"))), own);
    assert_eq!(
        store.diff_size(&id("top"), &Against::Parent).unwrap(),
        4 + 5
    );
    let all = s(&[
        ("change", Added),
        ("dir", Added),
        ("dir/f", Added),
        ("keep", Added),
        ("new", Added),
    ]);
    assert_eq!(paths(&store, "top", &Against::Nothing), all);
    // The other way round, and against one that is in no chain of it.
    assert_eq!(
        paths(&store, "base", &Against::Layer(id("top"))),
        s(&[("change", Modified), ("gone", Added), ("new", Deleted)])
    );
    import(&store, "other", None, &tar(&[("o", b"o")]));
    assert_eq!(paths(&store, "other", &Against::Layer(id("other"))), []);
    let (out, exact) = diff(&store, "other", &Against::Layer(id("base")));
    assert!(!exact);
    assert_eq!(
        names(&out),
        ["./", ".wh.change", ".wh.dir", ".wh.gone", ".wh.keep", "o"]
    );
    assert_eq!(
        kind(store.changes(&id("top"), &Against::Layer(id("none")))),
        ErrorKind::NotFound
    );
}

#[test]
fn spec_changes_complete_layers_without_contents_change_nothing() {
    let store = chain();
    store.create(&id("empty"), Some(&id("top"))).unwrap();
    assert_eq!(paths(&store, "empty", &Against::Parent), []);
    assert_eq!(store.diff_size(&id("empty"), &Against::Parent).unwrap(), 0);
    store.create(&id("alone"), None).unwrap();
    assert_eq!(paths(&store, "alone", &Against::Parent), []);
    let (out, _) = diff(&store, "alone", &Against::Parent);
    assert_eq!(names(&out), [""; 0]);
    // Against one that has some, all of that one's is gone; and the other way round all is new.
    let top = Against::Layer(id("top"));
    let deleted = paths(&store, "alone", &top);
    let expected = ["change", "dir", "keep", "new"];
    let expected = expected.map(|path| (path.to_owned(), ChangeKind::Deleted));
    assert_eq!(deleted, expected);
    assert_eq!(store.diff_size(&id("alone"), &top).unwrap(), 0);
    let (out, exact) = diff(&store, "alone", &top);
    assert!(!exact);
    let whiteouts = [".wh.change", ".wh.dir", ".wh.keep", ".wh.new"];
    let mut listed = names(&out);
    listed.retain(|name| name != "./");
    assert_eq!(listed, whiteouts);
    let added = paths(&store, "top", &Against::Layer(id("alone")));
    assert!(added.iter().all(|(_, kind)| *kind == ChangeKind::Added) && added.len() == 5);
}

/// Does to a sandbox what a container would: puts another file system, made of a tar, into its place.
fn write_sandbox(store: &Store, name: &str, upper: &[(&str, &[u8])]) {
    let path = store.metadata(&id(name)).unwrap().disk.unwrap();
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    file.set_len(0).unwrap();
    let disk = FileDisk::from(file);
    let options = lcow_layer::apply::ApplyOptions {
        vhd: true,
        ..Default::default()
    };
    lcow_layer::apply::apply(&tar(upper)[..], &disk, None, &options).unwrap();
}

#[test]
fn spec_commit_a_stopped_sandbox_is_diffed_and_committed_without_a_vm() {
    use ChangeKind::{Added, Deleted, Modified};
    let store = chain();
    store
        .create_read_write(&id("box"), Some(&id("top")), &small_sandbox())
        .unwrap();
    assert_eq!(paths(&store, "box", &Against::Parent), []);
    write_sandbox(
        &store,
        "box",
        &[
            ("upper/", b""),
            ("work/", b""),
            ("upper/keep", b"kept"),
            ("upper/.wh.new", b""),
            ("upper/made", b"77"),
        ],
    );
    let found = paths(&store, "box", &Against::Parent);
    let expected =
        [("keep", Modified), ("made", Added), ("new", Deleted)].map(|(p, k)| (p.to_owned(), k));
    assert_eq!(found, expected);
    assert_eq!(
        store.diff_size(&id("box"), &Against::Parent).unwrap(),
        4 + 2
    );
    let (out, exact) = diff(&store, "box", &Against::Parent);
    assert!(!exact);
    assert_eq!(names(&out), ["./", "keep", "made", ".wh.new"]);

    let applied = store
        .commit(&id("box"), &id("committed"), &Cancel::new())
        .unwrap();
    assert_eq!(applied.record.diff_id, Digest::of(&out));
    assert_eq!(
        store.chain(&id("committed")).unwrap(),
        [id("top"), id("base")]
    );
    assert_eq!(paths(&store, "committed", &Against::Parent), expected);
    assert_eq!(paths(&store, "committed", &Against::Layer(id("box"))), []);
    assert!(store.exists(&id("box")).unwrap(), "the sandbox stays");
    let again = store.commit(&id("box"), &id("committed"), &Cancel::new());
    assert_eq!(kind(again), ErrorKind::AlreadyExists);
    assert_eq!(
        kind(store.commit(&id("top"), &id("x"), &Cancel::new())),
        ErrorKind::Invalid
    );
}

#[test]
fn spec_commit_of_a_damaged_sandbox_fails_and_leaves_nothing() {
    let store = chain();
    store
        .create_read_write(&id("box"), Some(&id("top")), &small_sandbox())
        .unwrap();
    let file = fs::File::options()
        .write(true)
        .open(store.root().join("box/sandbox.vhd"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 1024], 1024).unwrap();
    let before = crate::common::snapshot(store.root());
    assert_eq!(
        kind(store.commit(&id("box"), &id("new"), &Cancel::new())),
        ErrorKind::Corrupt
    );
    assert_eq!(crate::common::snapshot(store.root()), before);
}

#[test]
fn spec_diff_getter_completes_files_are_read_by_path_seekable_and_without_the_parents() {
    let store = root();
    let content = noise(3 << 20, 2);
    import(&store, "base", None, &tar(&[("b", b"x")]));
    import(
        &store,
        "top",
        Some("base"),
        &tar(&[("dir/", b""), ("dir/big", &content)]),
    );
    let getter = store.diff_getter(&id("top")).unwrap();
    let mut file = getter.open(b"dir/big").unwrap();
    let mut all = Vec::new();
    file.read_to_end(&mut all).unwrap();
    assert!(all == content);
    file.seek(SeekFrom::Start(1_234_567)).unwrap();
    let mut some = [0; 5000];
    file.read_exact(&mut some).unwrap();
    assert_eq!(some, content[1_234_567..1_239_567]);
    assert_eq!(file.seek(SeekFrom::End(-3)).unwrap(), (3 << 20) - 3);
    assert_eq!(file.read(&mut some).unwrap(), 3);
    assert_eq!(file.read(&mut some).unwrap(), 0);
    assert!(file.seek(SeekFrom::Current(i64::MIN)).is_err());
    for missing in [&b"b"[..], b"dir", b"none", b"dir/big/x"] {
        match getter.open(missing) {
            Err(DriverError::NoSuchFile { path, .. }) => assert_eq!(path, missing),
            other => panic!("{other:?}"),
        }
    }
    // What is open is not removed.
    drop(getter);
    assert_eq!(kind(store.remove(&id("top"))), ErrorKind::InUse);
    drop(file);
    store.remove(&id("top")).unwrap();
}

#[test]
fn spec_read_only_access_a_chain_is_seen_as_one_tree() {
    use lcow_layer::tree::{Follow, Tree};
    let store = chain();
    let chain = store.open_chain(&id("top")).unwrap();
    let union = chain.union().unwrap();
    let listed: Vec<_> = union
        .read_dir(union.root())
        .unwrap()
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(listed, [&b"change"[..], b"dir", b"keep", b"new"]);
    assert_eq!(
        union
            .resolve(b"change", Follow::No)
            .unwrap()
            .node
            .stat()
            .size,
        4
    );
    assert_eq!(kind(store.remove(&id("top"))), ErrorKind::InUse);
}

struct Limited(usize);

impl Write for Limited {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        let n = buf.len().min(self.0);
        self.0 -= n;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_fails_and_a_cancellation_are_told_apart() {
    let store = chain();
    for against in [Against::Parent, Against::Nothing] {
        let failed = store.diff(&id("top"), &against, &mut Limited(700), &Cancel::new());
        assert!(matches!(failed, Err(DriverError::Output(_))), "{failed:?}");
        let cancel = Cancel::new();
        cancel.cancel();
        let cancelled = store.diff(&id("top"), &against, &mut Vec::new(), &cancel);
        assert_eq!(kind(cancelled), ErrorKind::Cancelled);
    }
}

#[test]
fn a_file_system_in_a_range_is_what_a_vm_gets() {
    let store = chain();
    for disk in store.disks(&id("top")).unwrap() {
        let range = SubRange::new(FileDisk::from(disk.open().unwrap()), 0, disk.bytes);
        assert!(disk.read_only && disk.directory.is_empty());
        lcow_ext4::reader::Filesystem::open(range).unwrap();
    }
}
