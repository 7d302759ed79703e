//! Calls that fail: every one of every operation, once and from then on.
//!
//! The operation gives a typed error (or does without what failed), leaves nothing, loses nothing, and the same store does it
//! when the file system is well again.
//!
//! Interrupted calls are started again below this seam: see `kills`.
//!
//! `LCOW_FAULTS=all` looks at every call with every error; an ordinary run at one in a few.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lcow_driver::vfs::Vfs;
use lcow_driver::vfs::faulty::{Fails, Faulty};
use lcow_driver::vfs::sim::{Sim, World};
use lcow_driver::{Against, Cancel, DriverError, ErrorKind, Store};
use rustix::io::Errno;

use crate::common::id;
use crate::life::{ROOT, STEPS, View, blank, open_on, view};

type Read = (&'static str, fn(&Store) -> Result<(), DriverError>);

/// What reads only, besides the steps of a life.
const READS: &[Read] = &[
    ("list", |store| store.layers().map(drop)),
    ("metadata", |store| store.metadata(&id("top")).map(drop)),
    ("diff", |store| {
        let (against, cancel) = (Against::Parent, Cancel::new());
        store
            .diff(&id("top"), &against, &mut std::io::sink(), &cancel)
            .map(drop)
    }),
    ("changes", |store| {
        store.changes(&id("top"), &Against::Parent).map(drop)
    }),
    ("open a file", |store| {
        let mut content = Vec::new();
        let mut file = store.diff_getter(&id("top"))?.open(b"etc/name")?;
        std::io::Read::read_to_end(&mut file, &mut content).map_err(|e| {
            match e.downcast::<std::io::Error>() {
                Ok(e) => DriverError::Input(e),
                Err(e) => DriverError::Input(e),
            }
        })?;
        assert_eq!(content, b"top");
        Ok(())
    }),
    ("status", |store| store.status().map(drop)),
    ("cleanup", |store| store.cleanup().map(drop)),
];

fn left_in_tmp(world: &World) -> Vec<PathBuf> {
    let tree = world.tree(Path::new(ROOT));
    let inside =
        |p: &PathBuf| p.starts_with("tmp") && p != Path::new("tmp") && !p.ends_with(".commit");
    tree.into_keys().filter(inside).collect()
}

/// The paths of a view: the same operation done again gives other times and random numbers.
fn paths(view: &View) -> Vec<&PathBuf> {
    view.keys().collect()
}

struct Case<'a> {
    start: &'a World,
    before: View,
    after: View,
    step: &'a dyn Fn(&Store) -> Result<bool, DriverError>,
    /// An operation that fails at its last step may be done all the same.
    may_be_done: bool,
}

/// Runs an operation with one call failing. `None`: there are not so many calls.
fn fail_one(case: &Case<'_>, call: u64, error: Errno, which: Fails) -> Option<Result<(), String>> {
    let sim = Sim::new(case.start.clone());
    let faulty = Faulty::new(Arc::new(sim.clone()));
    let vfs: Arc<dyn Vfs> = Arc::new(faulty.clone());
    // Of the first step, opening the store is all there is.
    let opened = (!case.before.is_empty()).then(|| open_on(vfs.clone()).unwrap());
    faulty.fail(call, error.raw_os_error(), which);
    let result = match &opened {
        Some(store) => (case.step)(store),
        None => open_on(vfs.clone()).map(|_| true),
    };
    let failed = faulty.heal()?;
    let store = opened.map_or_else(|| open_on(vfs), Ok);
    let judged = store
        .map_err(|e| format!("it does not open: {e:?}"))
        .and_then(|store| judge(case, &sim, &store, failed, (error, which), &result));
    Some(judged.map_err(|e| {
        format!("{failed}, call {call}, {error:?}, {which:?}: it gave {result:?}: {e}")
    }))
}

fn judge(
    case: &Case<'_>,
    sim: &Sim,
    store: &Store,
    failed: &str,
    (error, which): (Errno, Fails),
    result: &Result<bool, DriverError>,
) -> Result<(), String> {
    let expected = match error {
        Errno::NOSPC => ErrorKind::DiskFull,
        _ => ErrorKind::Io,
    };
    // Reading takes no room, and who only reads need not tell that error from others.
    let reads = ["read", "lseek"].contains(&failed);
    let seen = view(&sim.world());
    if let Err(e) = result {
        if e.kind() != expected && !(reads && e.kind() == ErrorKind::Io) {
            return Err(format!("the error is {:?}, not {expected:?}", e.kind()));
        }
        let left = left_in_tmp(&sim.world());
        if which == Fails::Once && !case.may_be_done && !left.is_empty() {
            return Err(format!("{left:?} is left"));
        }
        if which == Fails::Once && !case.may_be_done && seen != case.before {
            return Err(format!("it is not as before: {seen:#?}"));
        }
    }
    // What could not be deleted is deleted when that is possible.
    let cleaned = store.cleanup().map_err(|e| format!("cleanup: {e:?}"))?;
    if !cleaned.failed.is_empty() {
        return Err(format!("cleanup: {:?}", cleaned.failed));
    }
    let seen = view(&sim.world());
    let is_after = paths(&seen) == paths(&case.after);
    if !(is_after || result.is_err() && seen == case.before) {
        return Err(format!("neither before nor after: {seen:#?}"));
    }
    (case.step)(store).map_err(|e| format!("it does not serve: {e:?}"))?;
    let world = sim.world();
    if !left_in_tmp(&world).is_empty() || paths(&view(&world)) != paths(&case.after) {
        return Err(format!("the second time: {:#?}", view(&world)));
    }
    // What the operation has nothing to do with is as it was.
    for (path, content) in &case.before {
        if case.after.get(path) == Some(content) && view(&world).get(path) != Some(content) {
            return Err(format!("{} was changed", path.display()));
        }
    }
    Ok(())
}

#[test]
fn any_call_may_fail() {
    let all = std::env::var_os("LCOW_FAULTS").is_some_and(|v| v == "all");
    let life = Sim::new(blank());
    let nothing = life.world();
    let store = open_on(Arc::new(life.clone())).unwrap();
    let (mut points, mut failures) = (0, Vec::new());
    let mut run = |name: &str, case: &Case<'_>| {
        for (n, error) in [Errno::IO, Errno::NOSPC, Errno::MFILE]
            .into_iter()
            .enumerate()
        {
            for which in [Fails::Once, Fails::FromThenOn] {
                // Every call with one of the errors, and with each of them in a long run.
                let (mut call, stride) = match (all, n) {
                    (true, _) | (_, 0) => (0, 1),
                    (false, n) => (n as u64, 4),
                };
                while let Some(result) = fail_one(case, call, error, which) {
                    points += 1;
                    if let Err(e) = result {
                        failures.push(format!("{name}: {e}"));
                    }
                    call += stride;
                }
            }
        }
    };
    for (name, step) in STEPS {
        let opens = *name == "open";
        let start = if opens { nothing.clone() } else { life.world() };
        step(&store).unwrap();
        let case = Case {
            start: &start,
            before: view(&start),
            after: view(&life.world()),
            step,
            may_be_done: ["open", "put", "remove", "delete", "replace", "write"]
                .iter()
                .any(|w| name.starts_with(w)),
        };
        run(name, &case);
    }
    let world = life.world();
    for (name, read) in READS {
        let case = Case {
            start: &world,
            before: view(&world),
            after: view(&world),
            step: &|store| read(store).map(|()| true),
            may_be_done: false,
        };
        run(name, &case);
    }
    println!("faults: {points} points");
    assert!(
        failures.is_empty(),
        "{} failures, as\n{}",
        failures.len(),
        failures[..failures.len().min(12)].join("\n")
    );
}
