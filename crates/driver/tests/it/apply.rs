//! Tars into layers.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use lcow_driver::{
    ApplyRequest, Cancel, DriverError, ErrorKind, Input, Isolation, Kind, OpenOptions, Placed,
    Store,
};
use lcow_layer::digest::Digest;

use crate::common::{id, import, isolated, kind, noise, snapshot, tar};

/// A store for each place that tars are converted in.
fn each_isolation(test: impl Fn(&Store)) {
    for isolation in [Isolation::InProcess, isolated()] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(
            dir.path(),
            OpenOptions {
                isolation,
                ..OpenOptions::default()
            },
        )
        .unwrap();
        test(&store);
    }
}

#[test]
fn spec_apply_diff_keeps_both_isolations_give_the_same_bytes() {
    let bytes = tar(&[
        ("dir/", b""),
        ("dir/file", &noise(300_000, 3)),
        (".wh.gone", b""),
    ]);
    let mut disks = Vec::new();
    for isolation in [Isolation::InProcess, isolated()] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(
            dir.path(),
            OpenOptions {
                isolation,
                ..OpenOptions::default()
            },
        )
        .unwrap();
        import(&store, "l", None, &bytes);
        lcow_testkit::e2fsck(&raw(&store, dir.path()));
        disks.push((
            fs::read(store.root().join("l/layer.vhd")).unwrap(),
            fs::read(store.root().join("l/diff.split.zst")).unwrap(),
        ));
    }
    assert!(disks[0] == disks[1]);
}

/// The file system of layer `l` without its footer.
fn raw(store: &Store, dir: &std::path::Path) -> std::path::PathBuf {
    let disk = store.disk(&id("l")).unwrap().unwrap();
    let path = dir.join("raw.img");
    let bytes = fs::read(&disk.path).unwrap();
    fs::write(&path, &bytes[..usize::try_from(disk.bytes).unwrap()]).unwrap();
    path
}

#[test]
fn spec_apply_diff_keeps_giving_a_created_layer_its_contents_once() {
    each_isolation(|store| {
        let bytes = tar(&[("f", b"hello")]);
        let request = ApplyRequest::default();
        store.create(&id("a"), None).unwrap();
        let apply = |name: &str, parent: Option<&str>| {
            let parent = parent.map(id);
            store.apply_diff(
                &id(name),
                parent.as_ref(),
                Input::Reader(&mut &bytes[..]),
                &request,
                &Cancel::new(),
            )
        };
        assert_eq!(kind(apply("a", Some("other"))), ErrorKind::NotFound);
        let applied = apply("a", None).unwrap();
        assert_eq!(applied.record.diff_id, Digest::of(&bytes));
        assert!(
            applied.size >= 4096
                && applied.size == store.metadata(&id("a")).unwrap().applied_size()
        );
        assert_eq!(kind(apply("a", None)), ErrorKind::AlreadyExists);
        assert_eq!(kind(apply("missing", None)), ErrorKind::NotFound);
        store
            .create_read_write(&id("s"), Some(&id("a")), &crate::common::small_sandbox())
            .unwrap();
        assert_eq!(kind(apply("s", Some("a"))), ErrorKind::Invalid);
    });
}

trait AppliedSize {
    fn applied_size(&self) -> u64;
}

impl AppliedSize for lcow_driver::Metadata {
    /// What the disk and its re-emission data take.
    fn applied_size(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        ["layer.vhd", "diff.split.zst"]
            .iter()
            .map(|name| fs::metadata(self.dir.join(name)).unwrap().blocks() * 512)
            .sum()
    }
}

#[test]
fn spec_apply_diff_mends_a_bad_tar_leaves_nothing_and_says_what_is_wrong() {
    each_isolation(|store| {
        let good = tar(&[("file", &noise(200_000, 4))]);
        let mut hostile = tar(&[("aa/bb", b"x")]);
        hostile[..5].copy_from_slice(b"../bb");
        let sum: u32 = hostile[..148]
            .iter()
            .chain(b"        ")
            .chain(&hostile[156..512])
            .map(|&b| u32::from(b))
            .sum();
        hostile[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        store.create(&id("layer"), None).unwrap();
        let before = snapshot(store.root());
        let table: [(&str, &[u8], ErrorKind, &str); 4] = [
            ("truncated", &good[..100_000], ErrorKind::Corrupt, "file"),
            ("no tar", &noise(10_000, 5), ErrorKind::Corrupt, ""),
            ("hostile", &hostile, ErrorKind::Refused, "../bb"),
            (
                "no gzip",
                &[b"\x1f\x8b\x08\0".as_slice(), &noise(5000, 6)].concat(),
                ErrorKind::Corrupt,
                "gzip",
            ),
        ];
        for (name, bytes, expected, word) in table {
            let (request, cancel) = (ApplyRequest::default(), Cancel::new());
            let applied = store.apply_diff(
                &id("layer"),
                None,
                Input::Reader(&mut &*bytes),
                &request,
                &cancel,
            );
            let error = applied.unwrap_err();
            assert_eq!(error.kind(), expected, "{name}: {error:?}");
            assert!(format!("{error:?}").contains(word), "{name}: {error:?}");
            let imported = store.import(
                &id("new"),
                None,
                Input::Reader(&mut &*bytes),
                &request,
                &cancel,
            );
            assert_eq!(kind(imported), expected, "{name}");
            assert_eq!(snapshot(store.root()), before, "{name}");
            assert_eq!(store.metadata(&id("layer")).unwrap().kind, Kind::Empty);
        }
    });
}

struct Failing(usize);

impl Read for Failing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::other("the network is gone"));
        }
        let n = buf.len().min(self.0);
        buf[..n].fill(0);
        self.0 -= n;
        Ok(n)
    }
}

#[test]
fn an_input_that_fails_is_the_error_and_leaves_nothing() {
    each_isolation(|store| {
        let before = snapshot(store.root());
        // Zeros alone are a whole, empty archive: only the failure tells that it isn't.
        let mut input = Failing(10_240);
        let result = store.import(
            &id("a"),
            None,
            Input::Reader(&mut input),
            &ApplyRequest::default(),
            &Cancel::new(),
        );
        assert!(format!("{:?}", result.unwrap_err()).contains("the network is gone"));
        assert_eq!(snapshot(store.root()), before);
    });
}

#[test]
fn a_layer_with_another_diff_id_than_expected_is_not_kept() {
    each_isolation(|store| {
        let bytes = tar(&[("f", b"hello")]);
        let before = snapshot(store.root());
        let request = ApplyRequest {
            expected: Some(Digest::of(b"other")),
            ..ApplyRequest::default()
        };
        let import = |request: &ApplyRequest| {
            store.import(
                &id("a"),
                None,
                Input::Reader(&mut &bytes[..]),
                request,
                &Cancel::new(),
            )
        };
        match import(&request) {
            Err(DriverError::WrongDiffId { expected, found }) => {
                assert_eq!(
                    (expected, found),
                    (Digest::of(b"other"), Digest::of(&bytes))
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(snapshot(store.root()), before);
        let request = ApplyRequest {
            expected: Some(Digest::of(&bytes)),
            ..ApplyRequest::default()
        };
        assert_eq!(import(&request).unwrap(), Placed::Created);
        assert_eq!(import(&request).unwrap(), Placed::AlreadyThere);
    });
}

#[test]
fn a_file_is_read_by_the_converter_from_its_present_position() {
    use std::io::Seek;
    each_isolation(|store| {
        let bytes = tar(&[("f", &noise(100_000, 7))]);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"in front").unwrap();
        file.write_all(&bytes).unwrap();
        file.seek(io::SeekFrom::Start(8)).unwrap();
        let request = ApplyRequest {
            expected: Some(Digest::of(&bytes)),
            ..ApplyRequest::default()
        };
        store
            .import(&id("a"), None, Input::File(file), &request, &Cancel::new())
            .unwrap();
    });
}

#[test]
fn a_compressed_tar_is_recorded_as_it_came() {
    each_isolation(|store| {
        let bytes = tar(&[("f", &noise(100_000, 8))]);
        let packed = zstd::encode_all(&bytes[..], 3).unwrap();
        import(store, "a", None, &packed);
        let applied = store.metadata(&id("a")).unwrap().applied.unwrap();
        assert_eq!(applied.diff_id, Digest::of(&bytes));
        let compressed = applied.compressed.unwrap();
        assert_eq!(
            (compressed.digest, compressed.size),
            (Digest::of(&packed), packed.len() as u64)
        );
    });
}

#[test]
fn spec_apply_diff_mends_a_cancelled_import_ends_soon_and_leaves_nothing() {
    each_isolation(|store| {
        let before = snapshot(store.root());
        let cancel = Cancel::new();
        // A pipe that gives a part of a tar and then nothing, as a stalled download does.
        let (reader, mut writer) = io::pipe().unwrap();
        writer
            .write_all(&tar(&[("f", &[1; 4096])])[..4096])
            .unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        let in_process = matches!(isolation_of(store), "in-process");
        let start = Instant::now();
        let result = std::thread::scope(|scope| {
            let import = scope.spawn(|| {
                store.import(
                    &id("a"),
                    None,
                    Input::File(file),
                    &ApplyRequest::default(),
                    &cancel,
                )
            });
            std::thread::sleep(Duration::from_millis(300));
            cancel.cancel();
            // In the same process a read that blocks is waited for.
            if in_process {
                drop(writer);
            }
            import.join().unwrap()
        });
        assert_eq!(kind(result), ErrorKind::Cancelled);
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(snapshot(store.root()), before);
    });
}

/// Which of the two stores of [`each_isolation`] this is: the child would show among this process's children.
fn isolation_of(store: &Store) -> &'static str {
    if format!("{store:?}").contains("isolation: InProcess") {
        "in-process"
    } else {
        "isolated"
    }
}

#[test]
fn spec_apply_diff_mends_a_converter_that_dies_is_an_error_that_says_how() {
    let dir = tempfile::tempdir().unwrap();
    let isolation = Isolation::Command {
        program: "/bin/sh".into(),
        arguments: ["-c", "echo out of cheese >&2; kill -9 $$"]
            .map(Into::into)
            .to_vec(),
    };
    let store = Store::open(
        dir.path(),
        OpenOptions {
            isolation,
            ..OpenOptions::default()
        },
    )
    .unwrap();
    let before = snapshot(store.root());
    let bytes = tar(&[("f", b"x")]);
    let import = |store: &Store| {
        store.import(
            &id("a"),
            None,
            Input::Reader(&mut &bytes[..]),
            &ApplyRequest::default(),
            &Cancel::new(),
        )
    };
    let error = import(&store).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Isolation);
    assert!(
        error.to_string().contains("signal: 9") && error.to_string().contains("out of cheese"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("LCOW_NO_REEXEC=1"));
    assert_eq!(snapshot(store.root()), before);
    // One that succeeds without having done anything is no better.
    drop(store);
    let isolation = Isolation::Command {
        program: "/bin/true".into(),
        arguments: Vec::new(),
    };
    let store = Store::open(
        dir.path(),
        OpenOptions {
            isolation,
            ..OpenOptions::default()
        },
    )
    .unwrap();
    assert_eq!(kind(import(&store)), ErrorKind::Isolation);
    assert_eq!(snapshot(store.root()), before);
}

#[test]
fn spec_apply_diff_keeps_isolated_the_converter_has_given_up_everything() {
    if !lcow_testkit::is_root() {
        lcow_testkit::skip!("not root: there is little to give up");
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(
        dir.path(),
        OpenOptions {
            isolation: isolated(),
            ..OpenOptions::default()
        },
    )
    .unwrap();
    let (reader, mut writer) = io::pipe().unwrap();
    writer
        .write_all(&tar(&[("f", &[1; 4096])])[..1024])
        .unwrap();
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    std::thread::scope(|scope| {
        let cancel = Cancel::new();
        let import = {
            let (store, cancel) = (&store, cancel.clone());
            scope.spawn(move || {
                store.import(
                    &id("a"),
                    None,
                    Input::File(file),
                    &ApplyRequest::default(),
                    &cancel,
                )
            })
        };
        let (status, descriptors) = wait_for_child();
        cancel.cancel();
        drop(writer);
        assert_eq!(kind(import.join().unwrap()), ErrorKind::Cancelled);
        let field = |name: &str| {
            status
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .unwrap()
                .trim()
                .to_owned()
        };
        assert_eq!(field("Uid:"), "65534\t65534\t65534\t65534");
        assert_eq!(field("Gid:"), "65534\t65534\t65534\t65534");
        assert_eq!(field("Groups:"), "");
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("CapEff:"), "0000000000000000");
        assert_eq!(field("CapPrm:"), "0000000000000000");
        // Standard streams, disk, re-emission data, report, and duplicates of them: nothing else of the store is open.
        for target in &descriptors {
            let known = ["/dev/null", "pipe:", "/layer.vhd", "/diff.split.zst"];
            assert!(known.iter().any(|k| target.contains(k)), "{target}");
        }
    });
}

/// The status and the descriptors of this process's conversion child, once it has given up its privileges.
fn wait_for_child() -> (String, Vec<String>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            // The harness runs the hook in a thread; in a program it is the main one.
            let tasks = fs::read_dir(entry.path().join("task"))
                .into_iter()
                .flatten()
                .flatten();
            let statuses = tasks.filter_map(|t| fs::read_to_string(t.path().join("status")).ok());
            let Some(status) = statuses.into_iter().find(|s| s.contains("NoNewPrivs:\t1")) else {
                continue;
            };
            let own = status.contains(&format!("PPid:\t{}\n", std::process::id()));
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if own && command.starts_with(b"lcow-convert") {
                let links = fs::read_dir(entry.path().join("fd")).unwrap().flatten();
                let targets = links
                    .filter_map(|l| fs::read_link(l.path()).ok())
                    .map(|t| t.display().to_string());
                return (status, targets.collect());
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("no conversion child was seen");
}

#[test]
fn spec_apply_diff_mends_the_tar_is_read_to_its_end_the_trailer_too() {
    each_isolation(|store| {
        let bytes = tar(&[("f", b"x")]);
        // What a writer pads with, and what is no part of the archive any more: whoever writes it must not be left waiting.
        let mut all = bytes.clone();
        all.extend([0; 20 * 512]);
        store.create(&id("a"), None).unwrap();
        let mut rest = io::Cursor::new(all.clone());
        let applied = store
            .apply_diff(
                &id("a"),
                None,
                Input::Reader(&mut rest),
                &ApplyRequest::default(),
                &Cancel::new(),
            )
            .unwrap();
        assert_eq!(rest.position(), all.len() as u64);
        assert_eq!(applied.record.tar_size, all.len() as u64);
        assert_eq!(applied.record.diff_id, Digest::of(&all));
        // What it returns is what is allocated to the layer's disk and sidecar.
        let blocks = |name: &str| {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(store.root().join("a").join(name))
                .unwrap()
                .blocks()
                * 512
        };
        assert_eq!(applied.size, blocks("layer.vhd") + blocks("diff.split.zst"));
    });
}

#[test]
fn spec_apply_diff_keeps_the_maximum_and_leaves_nothing_above_it() {
    assert_eq!(ApplyRequest::default().max_size, 128 << 30);
    each_isolation(|store| {
        store.create(&id("a"), None).unwrap();
        let before = snapshot(store.root());
        let bytes = tar(&[("f", &noise(3 << 20, 5))]);
        let request = ApplyRequest {
            max_size: 2 << 20,
            ..ApplyRequest::default()
        };
        let applied = store.apply_diff(
            &id("a"),
            None,
            Input::Reader(&mut &bytes[..]),
            &request,
            &Cancel::new(),
        );
        let error = applied.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        assert_eq!(snapshot(store.root()), before);
    });
}
