//! A file system without room.

use std::fs;
use std::path::{Path, PathBuf};

use lcow_driver::{ApplyRequest, Cancel, DriverError, Input, Isolation, OpenOptions, Store};

use crate::common::{id, import, isolated, noise, small_sandbox, snapshot, tar};

/// A file system in memory of the size asked for.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={size},mode=0755")).unwrap();
        rustix::mount::mount(
            "tmpfs",
            dir.path(),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            options.as_c_str(),
        )
        .ok()?;
        Some(Self(dir))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("root")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

fn fill(path: &Path, leave: u64) -> PathBuf {
    let free = rustix::fs::statvfs(path).unwrap();
    let filler = path.join("filler");
    fs::write(
        &filler,
        vec![1; usize::try_from((free.f_bavail * free.f_frsize).saturating_sub(leave)).unwrap()],
    )
    .unwrap();
    filler
}

#[test]
fn a_full_disk_is_told_as_such_leaves_nothing_and_the_store_still_serves() {
    for isolation in [Isolation::InProcess, isolated()] {
        let Some(tmpfs) = Tmpfs::new("24m") else {
            lcow_testkit::skip!("can't mount a tmpfs");
        };
        let store = Store::open(
            &tmpfs.path(),
            OpenOptions {
                isolation,
                ..OpenOptions::default()
            },
        )
        .unwrap();
        import(&store, "base", None, &tar(&[("f", b"x")]));
        store.create(&id("empty"), None).unwrap();
        let before = snapshot(store.root());
        let check = |what: &str, error: DriverError| {
            assert!(error.is_disk_full(), "{what}: {error:?}");
            assert!(error.hint().unwrap().contains("space"), "{what}");
            assert_eq!(snapshot(store.root()), before, "{what}");
        };
        let big = tar(&[("big", &noise(40 << 20, 9))]);
        let (request, cancel) = (ApplyRequest::default(), Cancel::new());
        let imported = store.import(
            &id("n"),
            Some(&id("base")),
            Input::Reader(&mut &big[..]),
            &request,
            &cancel,
        );
        check("import", imported.unwrap_err());
        let applied = store.apply_diff(
            &id("empty"),
            None,
            Input::Reader(&mut &big[..]),
            &request,
            &cancel,
        );
        check("apply", applied.unwrap_err());

        let filler = fill(tmpfs.0.path(), 0);
        let error = store.create(&id("n"), None).unwrap_err();
        check("create", error);
        check(
            "sandbox",
            store
                .create_read_write(&id("n"), None, &small_sandbox())
                .unwrap_err(),
        );
        // Removing works without room, and reading.
        let mut out = Vec::new();
        store
            .diff(&id("base"), &Default::default(), &mut out, &cancel)
            .unwrap();
        store.remove(&id("empty")).unwrap();
        fs::remove_file(filler).unwrap();
        import(&store, "n", Some("base"), &tar(&[("g", b"y")]));
        assert!(store.verify(&id("n"), &cancel).unwrap().is_good());
    }
}
