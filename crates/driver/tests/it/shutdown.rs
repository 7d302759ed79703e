//! Power cuts on a real ext4: the file system is shut down without writing its journal, and mounted again.
//!
//! `LCOW_SHUTDOWNS` is how many times; a few in an ordinary run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use lcow_blockio::testing::Dice;
use lcow_driver::{
    ApplyRequest, Cancel, DriverError, Input, Isolation, LayerId, OpenOptions, SandboxOptions,
    Store,
};

use lcow_testkit::LoopMount;

use crate::common::{id, tar};
use crate::life::{View, host_view};

/// EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH (`fs/ext4/ext4.h`): nothing reaches the disk any more, not even what the
/// journal holds in memory.
fn shut_down(mountpoint: &File) -> bool {
    const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
    const NO_LOG_FLUSH: u32 = 2;
    // SAFETY: the kernel reads the u32 that the argument points to, and nothing else.
    #[allow(unsafe_code)]
    let done = unsafe {
        let argument = rustix::ioctl::Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH);
        rustix::ioctl::ioctl(mountpoint, argument)
    };
    done.is_ok()
}

/// What a layer must be.
#[derive(Debug, Clone, PartialEq)]
enum Must {
    /// There, with these files, if they could be read before all ended.
    Be(Option<View>),
    NotBe,
    /// Either: the power went before that was acknowledged.
    MayBe,
}

fn files_of(root: &Path, id: &LayerId) -> Option<View> {
    host_view(&root.join(id.as_str())).ok()
}

fn open(root: &Path) -> Result<Store, DriverError> {
    let options = OpenOptions {
        isolation: Isolation::InProcess,
        ..OpenOptions::default()
    };
    Store::open(root, options)
}

/// Makes and removes layers until a call fails, and notes what was acknowledged.
fn work(
    root: &Path,
    known: &Mutex<BTreeMap<LayerId, Must>>,
    round: usize,
) -> Result<(), DriverError> {
    let note = |id: &LayerId, must: Must| drop(known.lock().unwrap().insert(id.clone(), must));
    let store = open(root)?;
    let base = id("base");
    for n in 0..20 {
        let layer = id(&format!("layer-{round}-{n}"));
        note(&layer, Must::MayBe);
        match n % 4 {
            0 => drop(store.create(&layer, None)?),
            1 => {
                let options = SandboxOptions {
                    size: Some(16 << 20),
                    ..SandboxOptions::default()
                };
                store.create_read_write(&layer, Some(&base), &options)?;
            }
            _ => {
                let content = vec![n as u8; 20_000];
                let bytes = tar(&[("file", &content)]);
                let (request, cancel) = (ApplyRequest::default(), Cancel::new());
                store.import(
                    &layer,
                    Some(&base),
                    Input::Reader(&mut &*bytes),
                    &request,
                    &cancel,
                )?;
            }
        }
        note(&layer, Must::Be(None));
        note(&layer, Must::Be(files_of(root, &layer)));
        if n % 3 == 2 {
            note(&layer, Must::MayBe);
            store.remove(&layer)?;
            note(&layer, Must::NotBe);
        }
    }
    Ok(())
}

#[test]
fn a_shut_down_file_system_holds_each_layer_whole_or_not_at_all() {
    if !lcow_testkit::is_root() {
        lcow_testkit::skip!("mounting needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    File::create(&image).unwrap().set_len(192 << 20).unwrap();
    lcow_testkit::run("mkfs.ext4", ["-q".as_ref(), image.as_os_str()]);
    let mut mount = LoopMount::new(&image, "rw");
    let times: usize = std::env::var("LCOW_SHUTDOWNS")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(6);
    let mut root = mount.path().join("root");
    let store = open(&root).unwrap();
    let bytes = tar(&[("base", b"x")]);
    store
        .import(
            &id("base"),
            None,
            Input::Reader(&mut &*bytes),
            &ApplyRequest::default(),
            &Cancel::new(),
        )
        .unwrap();
    drop(store);
    let mut dice = Dice(0x5eed);
    let (mut acknowledged, mut recovered) = (0, 0);
    for round in 0..times {
        let mountpoint = File::open(mount.path()).unwrap();
        let known = Mutex::new(BTreeMap::from([(
            id("base"),
            Must::Be(files_of(&root, &id("base"))),
        )]));
        let cut = std::thread::scope(|scope| {
            let worker = scope.spawn(|| work(&root, &known, round));
            std::thread::sleep(Duration::from_micros(dice.roll(60_000)));
            let cut = shut_down(&mountpoint);
            // An error is what a power cut is to it; or it was through before.
            drop(worker.join().unwrap());
            cut
        });
        drop(mountpoint);
        if !cut {
            lcow_testkit::skip!("the file system can't be shut down");
        }
        drop(mount);
        mount = LoopMount::new(&image, "rw");
        root = mount.path().join("root");
        let store = open(&root).unwrap_or_else(|e| panic!("round {round}: {e:?}"));
        let recovery = store.recovery().clone();
        assert!(recovery.failed.is_empty(), "round {round}: {recovery:?}");
        recovered += usize::from(!recovery.is_empty());
        for (layer, must) in known.into_inner().unwrap() {
            let there = store.exists(&layer).unwrap();
            match must {
                Must::Be(files) => {
                    assert!(there, "round {round}: {layer} was acknowledged");
                    if let Some(files) = files {
                        assert_eq!(
                            files_of(&root, &layer),
                            Some(files),
                            "round {round}: {layer}"
                        );
                    }
                    acknowledged += 1;
                }
                Must::NotBe => assert!(!there, "round {round}: {layer} was removed"),
                Must::MayBe => {}
            }
        }
        let left = fs::read_dir(root.join("tmp"))
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name() != ".commit")
            .count();
        assert_eq!(left, 0, "round {round}");
        for layer in store.layers().unwrap() {
            let report = store.verify(&layer, &Cancel::new()).unwrap();
            assert!(report.is_good(), "round {round}: {report:?}");
            if layer != id("base") {
                store.remove(&layer).unwrap();
            }
        }
        drop(store);
        assert!(open(&root).unwrap().recovery().is_empty(), "round {round}");
    }
    println!(
        "shutdowns: {times}; {acknowledged} acknowledged layers were there, recovery had something to do {recovered} times"
    );
}
