//! get and put, against a mounter that mounts nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lcow_driver::{
    Against, Cancel, ErrorKind, Frozen, GraphDriver, LayerId, MachineStatus, MountError,
    MountRequest, Mounter, MounterStatus, Removed,
};

use crate::common::{Root, id, import, kind, root, small_sandbox, tar};

#[derive(Default)]
struct Fake {
    log: Mutex<Vec<String>>,
    mounts: AtomicUsize,
    fail_mount: AtomicBool,
    fail_unmount: AtomicBool,
    slow: AtomicBool,
    frozen: Arc<AtomicBool>,
    fail_freeze: AtomicBool,
    fail_thaw: AtomicBool,
}

struct Ice(Arc<AtomicBool>, bool);

impl Frozen for Ice {
    fn thaw(self: Box<Self>) -> Result<(), MountError> {
        if self.1 {
            return Err("it was thawed long ago".into());
        }
        Ok(())
    }
}

impl Drop for Ice {
    fn drop(&mut self) {
        assert!(self.0.swap(false, Ordering::SeqCst), "thawed twice");
    }
}

impl Fake {
    fn note(&self, line: String) {
        self.log.lock().unwrap().push(line);
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

impl Mounter for Fake {
    type Mounted = String;

    fn name(&self) -> &'static str {
        "fake"
    }

    fn mount(&self, request: &MountRequest) -> Result<String, MountError> {
        let mut disks: Vec<_> = request.lowers.iter().map(|d| d.id.to_string()).collect();
        if let Some((disk, guard)) = &request.upper {
            assert_eq!(&disk.path, guard.path());
            assert!(!disk.read_only);
            disks.insert(0, format!("[{}]", disk.id));
        }
        assert!(request.lowers.iter().all(|d| d.read_only));
        self.note(format!("mount {}", disks.join("+")));
        if self.slow.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.fail_mount.load(Ordering::Relaxed) {
            return Err("no machine".into());
        }
        assert_eq!(
            self.mounts.fetch_add(1, Ordering::SeqCst),
            0,
            "mounted twice at the same time"
        );
        Ok(format!("/{}", request.id))
    }

    fn status(&self) -> MounterStatus {
        MounterStatus {
            accelerator: Some("wishes".into()),
            machines: vec![MachineStatus {
                id: id("box"),
                name: "m".into(),
                pid: None,
                uptime: Some(1),
                disks: 3,
                unions: 1,
                processes: 0,
            }],
            ..MounterStatus::default()
        }
    }

    fn freeze(&self, id: &LayerId, mounted: &String) -> Result<Box<dyn Frozen>, MountError> {
        assert_eq!(*mounted, format!("/{id}"));
        self.note(format!("freeze {id}"));
        if self.fail_freeze.load(Ordering::Relaxed) {
            return Err("too warm".into());
        }
        assert!(!self.frozen.swap(true, Ordering::SeqCst), "frozen twice");
        let fails = self.fail_thaw.load(Ordering::Relaxed);
        Ok(Box::new(Ice(Arc::clone(&self.frozen), fails)))
    }

    fn unmount(&self, id: &LayerId, mounted: &String) -> Result<(), MountError> {
        assert_eq!(*mounted, format!("/{id}"));
        self.note(format!("unmount {id}"));
        if self.slow.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.mounts.fetch_sub(1, Ordering::SeqCst);
        if self.fail_unmount.load(Ordering::Relaxed) {
            Err("stuck".into())
        } else {
            Ok(())
        }
    }
}

fn driver() -> (Root, GraphDriver<Fake>) {
    let root = root();
    import(&root, "base", None, &tar(&[("f", b"1")]));
    import(&root, "top", Some("base"), &tar(&[("g", b"2")]));
    root.create(&id("empty"), Some(&id("top"))).unwrap();
    root.create_read_write(&id("box"), Some(&id("empty")), &small_sandbox())
        .unwrap();
    let driver = GraphDriver::new(root.store.clone(), Fake::default());
    (root, driver)
}

#[test]
fn spec_get_keeps_lazy_and_mends_counted_and_mounts_once() {
    let (_root, driver) = driver();
    let one = driver.get(&id("box"), Some("label")).unwrap();
    let two = driver.get(&id("box"), None).unwrap();
    assert_eq!(driver.references(), [(id("box"), 2)]);
    assert!(
        driver.mounter().take_log().is_empty(),
        "nothing is mounted before the first use"
    );
    assert_eq!(*two.mounted().unwrap(), "/box");
    assert_eq!(*one.mounted().unwrap(), "/box");
    assert_eq!(driver.mounter().take_log(), ["mount [box]+top+base"]);
    driver.put(one).unwrap();
    assert_eq!(driver.references(), [(id("box"), 1)]);
    assert!(
        driver.mounter().take_log().is_empty(),
        "the other handle keeps it"
    );
    driver.put(two).unwrap();
    assert_eq!(driver.mounter().take_log(), ["unmount box"]);
    assert_eq!(driver.references(), []);
    assert_eq!(kind(driver.get(&id("none"), None)), ErrorKind::NotFound);
}

#[test]
fn spec_put_mends_a_handle_that_was_never_used_unmounts_nothing() {
    let (_root, driver) = driver();
    let handle = driver.get(&id("top"), None).unwrap();
    driver.put(handle).unwrap();
    drop(driver.get(&id("top"), None).unwrap());
    assert!(driver.mounter().take_log().is_empty());
    assert_eq!(driver.references(), []);
}

#[test]
fn spec_put_keeps_the_last_reference_releases_the_layer() {
    let (_root, driver) = driver();
    let handle = driver.get(&id("box"), None).unwrap();
    handle.mounted().unwrap();
    assert_eq!(kind(driver.remove(&id("box"), false)), ErrorKind::InUse);
    assert_eq!(
        kind(driver.store().lock_sandbox(&id("box"))),
        ErrorKind::InUse
    );
    drop(handle);
    drop(driver.store().lock_sandbox(&id("box")).unwrap());
    assert_eq!(driver.remove(&id("box"), true).unwrap(), Removed::Removed);
}

#[test]
fn spec_get_a_failed_mount_leaves_the_handle_usable() {
    let (_root, driver) = driver();
    driver.mounter().fail_mount.store(true, Ordering::Relaxed);
    let handle = driver.get(&id("box"), None).unwrap();
    let error = handle.mounted().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mount);
    assert_eq!(error.to_string(), "mounting box");
    driver.mounter().fail_mount.store(false, Ordering::Relaxed);
    assert_eq!(*handle.mounted().unwrap(), "/box");
    driver.put(handle).unwrap();
}

#[test]
fn spec_put_mends_a_failed_unmount_is_reported_and_releases_all_the_same() {
    let (_root, driver) = driver();
    driver.mounter().fail_unmount.store(true, Ordering::Relaxed);
    let handle = driver.get(&id("box"), None).unwrap();
    handle.mounted().unwrap();
    assert_eq!(kind(driver.put(handle)), ErrorKind::Mount);
    assert_eq!(driver.references(), []);
    driver
        .mounter()
        .fail_unmount
        .store(false, Ordering::Relaxed);
    driver.remove(&id("box"), false).unwrap();
}

#[test]
fn sixty_four_threads_get_use_and_put_one_sandbox() {
    let (_root, driver) = driver();
    driver.mounter().slow.store(true, Ordering::Relaxed);
    std::thread::scope(|scope| {
        for n in 0..64 {
            let driver = driver.clone();
            scope.spawn(move || {
                for round in 0..4 {
                    let handle = driver.get(&id("box"), None).unwrap();
                    if (n + round) % 3 != 0 {
                        assert_eq!(*handle.mounted().unwrap(), "/box");
                    }
                    driver.put(handle).unwrap();
                }
            });
        }
    });
    assert_eq!(driver.references(), []);
    assert_eq!(driver.mounter().mounts.load(Ordering::SeqCst), 0);
    let log = driver.mounter().take_log();
    let count = |what: &str| log.iter().filter(|l| l.starts_with(what)).count();
    assert!(count("mount") >= 1 && count("mount") == count("unmount"));
    driver.remove(&id("box"), false).unwrap();
}

#[test]
fn spec_status_completes_driver_mode_mounter_references_and_machines() {
    let (_root, driver) = driver();
    let handle = driver.get(&id("top"), None).unwrap();
    let status = driver.status().unwrap();
    assert_eq!(
        (status.driver, status.mode, status.mounter),
        ("lcow", "safe", "fake")
    );
    assert_eq!(lcow_driver::NAME, "lcow");
    assert_eq!(status.references, [(id("top"), 1)]);
    assert_eq!((status.store.layers, status.store.sandboxes), (2, 1));
    assert_eq!(status.store.root, driver.store().root());
    assert_eq!(status.mounting.machines[0].disks, 3);
    assert_eq!(status.mounting.accelerator.as_deref(), Some("wishes"));
    driver.put(handle).unwrap();
}

#[test]
fn spec_cleanup_keeps_stopping_and_mends_saying_what_it_could_not_do() {
    let (root, driver) = driver();
    let cleanup = driver.cleanup().unwrap();
    assert!(cleanup.store.is_empty() && cleanup.reaped.is_empty() && cleanup.failed.is_none());
    assert!(cleanup.stopped.is_empty() && cleanup.not_stopped.is_empty());
    // A removal that nobody finished, and something mounted.
    std::fs::create_dir(root.root().join("old-removing")).unwrap();
    let handle = driver.get(&id("box"), None).unwrap();
    handle.mounted().unwrap();
    let cleanup = driver.cleanup().unwrap();
    assert_eq!(cleanup.stopped, [id("box")]);
    assert_eq!(cleanup.store.removals_finished, ["old"]);
    assert_eq!(
        driver.mounter().take_log(),
        ["mount [box]+top+base", "unmount box"]
    );
    drop(driver.store().lock_sandbox(&id("box")).unwrap());
    // The handle still counts, and mounts again.
    assert_eq!(kind(driver.remove(&id("box"), false)), ErrorKind::InUse);
    handle.mounted().unwrap();
    driver.mounter().fail_unmount.store(true, Ordering::Relaxed);
    let cleanup = driver.cleanup().unwrap();
    assert!(cleanup.stopped.is_empty());
    let (layer, error) = &cleanup.not_stopped[0];
    assert_eq!((layer, error.to_string()), (&id("box"), "stuck".to_owned()));
    driver.put(handle).unwrap();
}

#[test]
fn spec_diff_reads_a_sandbox_in_use_from_a_copy_that_is_made_while_it_is_frozen() {
    let (root, driver) = driver();
    let files = |what: &str| {
        driver
            .mounter()
            .take_log()
            .iter()
            .filter(|l| l.starts_with(what))
            .count()
    };
    let temporary = || std::fs::read_dir(root.root().join("tmp")).unwrap().count();
    // Not mounted here: read as it is.
    assert_eq!(driver.changes(&id("box"), &Against::Parent).unwrap(), []);
    assert_eq!(files("freeze"), 0);

    let handle = driver.get(&id("box"), None).unwrap();
    handle.mounted().unwrap();
    let in_use = driver.store().changes(&id("box"), &Against::Parent);
    assert_eq!(kind(in_use), ErrorKind::InUse);
    let before = temporary();
    let cancel = Cancel::new();
    assert_eq!(driver.changes(&id("box"), &Against::Parent).unwrap(), []);
    assert_eq!(driver.diff_size(&id("box"), &Against::Parent).unwrap(), 0);
    let mut tar = Vec::new();
    driver
        .diff(&id("box"), &Against::Parent, &mut tar, &cancel)
        .unwrap();
    let applied = driver.commit(&id("box"), &id("new"), &cancel).unwrap();
    assert_eq!(applied.record.diff_id, lcow_layer::digest::Digest::of(&tar));
    let staged = driver.stage_commit(&id("box"), &cancel).unwrap();
    assert_eq!(staged.applied().record.diff_id, applied.record.diff_id);
    drop(staged);
    // The other side of a comparison may be in use too.
    assert_eq!(
        driver
            .changes(&id("new"), &Against::Layer(id("box")))
            .unwrap(),
        []
    );
    let getter = driver.diff_getter(&id("box")).unwrap();
    assert_eq!(kind(getter.open(b"f")), ErrorKind::NotFound);
    assert_eq!(files("freeze"), 7);
    drop(getter);
    assert_eq!(temporary(), before, "no copy stays");
    // What can't be vouched for is an error, and nothing is left.
    driver.mounter().fail_freeze.store(true, Ordering::Relaxed);
    let error = driver.changes(&id("box"), &Against::Parent).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::Mount, "freezing box".into())
    );
    driver.mounter().fail_freeze.store(false, Ordering::Relaxed);
    driver.mounter().fail_thaw.store(true, Ordering::Relaxed);
    let error = driver
        .commit(&id("box"), &id("other"), &cancel)
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::Mount, "thawing box".into())
    );
    driver.mounter().fail_thaw.store(false, Ordering::Relaxed);
    assert!(!driver.store().exists(&id("other")).unwrap());
    assert_eq!(temporary(), before);

    std::thread::scope(|scope| {
        for _ in 0..8 {
            let driver = driver.clone();
            scope.spawn(move || driver.changes(&id("box"), &Against::Parent).unwrap());
        }
    });
    driver.put(handle).unwrap();
    assert_eq!(driver.references(), []);
    driver.mounter().take_log();
    // Of a layer that can't be written to nothing is frozen.
    let top = driver.get(&id("top"), None).unwrap();
    top.mounted().unwrap();
    assert_eq!(
        driver.changes(&id("top"), &Against::Parent).unwrap().len(),
        1
    );
    driver.put(top).unwrap();
    assert_eq!(files("freeze"), 0);
}

#[test]
fn spec_get_mends_a_sandbox_below_another_is_whole_or_refused() {
    let (root, driver) = driver();
    let child = |name: &str, parent: &str| {
        root.create_read_write(&id(name), Some(&id(parent)), &small_sandbox())
            .unwrap();
    };
    child("on-box", "box");
    let mount = |name: &str| -> Result<(), lcow_driver::DriverError> {
        let handle = driver.get(&id(name), None)?;
        handle.mounted()?;
        driver.put(handle)
    };
    mount("on-box").unwrap();

    // A VHDX whose last changes are only in its log: they are written to their places first.
    let vhdx = lcow_driver::SandboxOptions {
        format: Some(lcow_driver::DiskFormat::Vhdx),
        ..small_sandbox()
    };
    root.create_read_write(&id("vhdx"), Some(&id("base")), &vhdx)
        .unwrap();
    child("on-vhdx", "vhdx");
    let path = root.root().join("vhdx/sandbox.vhdx");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let file = lcow_blockio::FileDisk::from(file);
    {
        use lcow_blockio::WriteAt;
        let disk =
            lcow_disk::vhdx::open_writable(&file, [[1; 16], [2; 16], [3; 16]].into()).unwrap();
        disk.write_all_at(30 << 20, &[7; 512]).unwrap();
        disk.sync().unwrap();
    }
    assert!(lcow_disk::vhdx::open(&file).unwrap().info().replayed > 0);
    // Not while somebody reads it as it is, in whose way that would be.
    let reader = root.diff_getter(&id("vhdx")).unwrap();
    assert_eq!(kind(mount("on-vhdx")), ErrorKind::InUse);
    drop(reader);
    mount("on-vhdx").unwrap();
    assert_eq!(lcow_disk::vhdx::open(&file).unwrap().info().replayed, 0);

    // A journal that was not replayed: what a read-only mount would show is not what the sandbox holds.
    if !lcow_testkit::have("debugfs") {
        lcow_testkit::skip!("debugfs is not installed");
    }
    let path = root.root().join("box/sandbox.vhd");
    let block = root.root().join("tmp/block");
    std::fs::write(&block, [0; 4096]).unwrap();
    let script = root.root().join("tmp/script");
    std::fs::write(&script, format!("jo\njw -b 7000 {}\njc\n", block.display())).unwrap();
    let words = ["-w", "-f"].map(std::ffi::OsStr::new);
    let files = [script.as_os_str(), path.as_os_str()];
    lcow_testkit::run("debugfs", words.into_iter().chain(files));
    let error = mount("on-box").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(
        error
            .to_string()
            .contains("sandbox box, which was not stopped cleanly"),
        "{error}"
    );
    mount("box").unwrap();
}
