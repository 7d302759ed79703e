//! get, use, put, remove and force under schedules that shuttle chooses: each switch between threads is at a lock of the driver
//! or in the mounter. `LCOW_SCHEDULES=100000` tries more.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::GraphDriver;
use crate::{
    ErrorKind, LayerId, MountError, MountRequest, Mounter, OpenOptions, SandboxOptions, Store,
};

/// A mounter that sees to it that the driver keeps its promises, and lets others run in the middle of everything.
#[derive(Default)]
struct Strict {
    mounted: AtomicBool,
    mounts: AtomicUsize,
    /// Uses that go on; none may when the layer is unmounted.
    uses: AtomicUsize,
}

impl Mounter for Strict {
    type Mounted = ();

    fn name(&self) -> &'static str {
        "strict"
    }

    fn mount(&self, request: &MountRequest) -> Result<(), MountError> {
        assert!(request.upper.is_some());
        assert!(
            !self.mounted.swap(true, Ordering::SeqCst),
            "mounted a second time"
        );
        thread::yield_now();
        if thread_rng().gen_bool(0.2) {
            self.mounted.store(false, Ordering::SeqCst);
            return Err("no machine".into());
        }
        self.mounts.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn unmount(&self, _: &LayerId, (): &()) -> Result<(), MountError> {
        assert_eq!(
            self.uses.load(Ordering::SeqCst),
            0,
            "unmounted while it was used"
        );
        thread::yield_now();
        assert!(
            self.mounted.swap(false, Ordering::SeqCst),
            "unmounted a second time"
        );
        if thread_rng().gen_bool(0.2) {
            return Err("stuck".into());
        }
        Ok(())
    }
}

/// What one thread does: takes a handle, uses it or not, and puts or drops it.
fn user(driver: &GraphDriver<Strict>, id: &LayerId) {
    let handle = match driver.get(id, None) {
        Ok(handle) => handle,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            return;
        }
    };
    if thread_rng().gen_bool(0.7) {
        match handle.mounted() {
            Ok(_mounted) => {
                let uses = &driver.mounter().uses;
                uses.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
                assert!(driver.mounter().mounted.load(Ordering::SeqCst));
                uses.fetch_sub(1, Ordering::SeqCst);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Mount, "{error}"),
        }
    }
    if thread_rng().gen_bool(0.5) {
        drop(handle);
    } else if let Err(error) = driver.put(handle) {
        assert_eq!(error.kind(), ErrorKind::Mount, "{error}");
    }
}

fn remover(driver: &GraphDriver<Strict>, id: &LayerId) -> bool {
    for _ in 0..thread_rng().gen_range(0..40) {
        thread::yield_now();
    }
    match driver.remove(id, false) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
            false
        }
    }
}

#[test]
fn handles_are_counted_under_any_schedule() {
    let schedules = std::env::var("LCOW_SCHEDULES").map_or(1_500, |text| text.parse().unwrap());
    // In memory if that can be had: each schedule makes and removes a sandbox.
    let dir = tempfile::tempdir_in(Path::new("/dev/shm")).or_else(|_| tempfile::tempdir());
    let dir = dir.unwrap();
    let store = Store::open(dir.path(), OpenOptions::default()).unwrap();
    let mounts = Arc::new(AtomicUsize::new(0));
    let removals = Arc::new(AtomicUsize::new(0));
    let counted = (Arc::clone(&mounts), Arc::clone(&removals));
    shuttle::check_random(
        move || {
            let id = LayerId::new("box").unwrap();
            let options = SandboxOptions {
                size: Some(16 << 20),
                ..SandboxOptions::default()
            };
            store.create_read_write(&id, None, &options).unwrap();
            let driver = GraphDriver::new(store.clone(), Strict::default());
            let threads: Vec<_> = (0..3)
                .map(|n| {
                    let (driver, id) = (driver.clone(), id.clone());
                    thread::spawn(move || match n {
                        0 => remover(&driver, &id),
                        _ => {
                            user(&driver, &id);
                            user(&driver, &id);
                            false
                        }
                    })
                })
                .collect();
            let removed = threads.into_iter().any(|t| t.join().unwrap());
            assert_eq!(driver.references(), []);
            assert!(!driver.mounter().mounted.load(Ordering::SeqCst));
            assert_eq!(store.exists(&id).unwrap(), !removed);
            counted.0.fetch_add(
                driver.mounter().mounts.load(Ordering::SeqCst),
                Ordering::Relaxed,
            );
            counted.1.fetch_add(usize::from(removed), Ordering::Relaxed);
            // Nobody holds it any more.
            store.remove(&id).unwrap();
        },
        schedules,
    );
    let (mounts, removals) = (
        mounts.load(Ordering::Relaxed),
        removals.load(Ordering::Relaxed),
    );
    println!("{schedules} schedules, {mounts} mounts, {removals} removals");
    // Else the schedules say little.
    assert!(mounts > schedules / 2 && removals > schedules / 5 && removals < schedules);
}
