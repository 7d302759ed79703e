//! Power cuts, by a file system in memory that knows what a real one may have lost: see `docs/crash-safety.md`.
//!
//! Each step of a store's life is run once, and its store opened on every file system that a cut in its midst may leave. Then:
//! all is as before the step or as after it, byte for byte; once the step was acknowledged, as after it; nothing half-made is
//! left; opening it again finds nothing to do.
//!
//! `LCOW_POWER_CUTS` is how many times more states are looked at than in an ordinary run: see `make crash`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lcow_driver::vfs::sim::{Depth, Lie, Sim, World};
use lcow_driver::{DriverError, Kind, Store};

use crate::life::{ROOT, STEPS, View, blank, open_on, view};

/// How many times more than usual.
fn factor() -> usize {
    let value = std::env::var("LCOW_POWER_CUTS").unwrap_or_default();
    value.parse().unwrap_or(1)
}

fn open(sim: &Sim) -> Result<Store, DriverError> {
    open_on(Arc::new(sim.clone()))
}

/// What the store of a world must look like.
struct Oracle<'a> {
    before: &'a View,
    after: &'a View,
    acknowledged: bool,
    /// Finished blanks by path.
    cache: &'a View,
}

/// Opens the store of a world and holds it against what it may be. Gives the second process's file system, and whether there was
/// something to recover.
fn check(world: World, oracle: &Oracle<'_>) -> Result<(Sim, bool), String> {
    let sim = Sim::new(world);
    let store = open(&sim).map_err(|e| format!("it does not open: {e:?}"))?;
    let recovery = store.recovery().clone();
    if !recovery.failed.is_empty() {
        return Err(format!("recovery failed: {:?}", recovery.failed));
    }
    let recovered = sim.world();
    let seen = view(&recovered);
    let allowed = if oracle.acknowledged {
        seen == *oracle.after
    } else {
        seen == *oracle.after || seen == *oracle.before
    };
    if !allowed {
        return Err(format!("{seen:#?}\nis neither before nor after"));
    }
    let tree = recovered.tree(Path::new(ROOT));
    for (path, content) in &tree {
        if path.starts_with("tmp") && path.components().count() > 1 && !path.ends_with(".commit") {
            return Err(format!("{} is left", path.display()));
        }
        if path.starts_with("cache") && content.is_some() && oracle.cache.get(path) != Some(content)
        {
            return Err(format!("{} is not a blank", path.display()));
        }
    }
    for layer in store.layers().map_err(|e| format!("{e:?}"))? {
        let metadata = store.metadata(&layer).map_err(|e| format!("{e:?}"))?;
        if (metadata.kind == Kind::Layer) != metadata.applied.is_some() {
            return Err(format!("{layer} says it is what it is not: {metadata:?}"));
        }
    }
    drop(store);
    let again = open(&sim.next_process()).map_err(|e| format!("a second time: {e:?}"))?;
    if !again.recovery().is_empty() || sim.world().digest() != recovered.digest() {
        return Err(format!("recovered twice: {:?}", again.recovery()));
    }
    Ok((sim, !recovery.is_empty()))
}

#[derive(Debug, Default)]
struct Count {
    looked_at: usize,
    distinct: usize,
}

/// A machine's life: all steps, one after another.
struct Life {
    sim: Sim,
    /// By step: how much was done at its end, what is to be seen then, and the file system.
    ends: Vec<(usize, View, World)>,
    cache: View,
}

impl Life {
    fn new(sim: Sim) -> Self {
        let store = open(&sim).unwrap();
        let mut cache = View::new();
        let ends = STEPS
            .iter()
            .map(|(name, step)| {
                let acknowledged = step(&store).unwrap_or_else(|e| panic!("{name}: {e:?}"));
                assert!(acknowledged, "{name}");
                let world = sim.world();
                cache.extend(cached(&world));
                (sim.changes(), view(&world), world)
            })
            .collect();
        Self { sim, ends, cache }
    }

    /// The view before a step. The first one makes the store, and opening what a cut left of it makes it as well.
    fn before(&self, step: usize) -> &View {
        &self.ends[step.saturating_sub(1)].1
    }
}

fn cached(world: &World) -> impl Iterator<Item = (PathBuf, Option<u64>)> {
    let tree = world.tree(Path::new(ROOT));
    tree.into_iter().filter(|(p, _)| p.starts_with("cache"))
}

/// All cuts of a life, and, of those after which there is something to recover, cuts of the recovery too.
fn cut_a_life(life: &Life, depth: Depth, count: &mut Count) -> Result<(), String> {
    let in_recovery = Depth {
        singles: false,
        random: 2,
    };
    let mut known = HashSet::new();
    life.sim.history().cuts(0, depth, 1, |done, world| {
        let step = life.ends.partition_point(|(end, ..)| *end < done);
        let (end, after, _) = &life.ends[step];
        let oracle = Oracle {
            before: life.before(step),
            after,
            acknowledged: done == *end,
            cache: &life.cache,
        };
        let mut check_once = |world: World| {
            count.looked_at += 1;
            if !known.insert((world.digest(), step, oracle.acknowledged)) {
                return Ok(None);
            }
            count.distinct += 1;
            check(world, &oracle).map(Some)
        };
        let failed = |e: String| format!("{}, cut after {done} changes: {e}", STEPS[step].0);
        if let Some((again, true)) = check_once(world).map_err(failed)? {
            let recovery = again.history();
            recovery.cuts(0, in_recovery, done as u64, |_, world| {
                check_once(world)
                    .map(drop)
                    .map_err(|e| failed(format!("cut again in recovery: {e}")))
            })?;
        }
        Ok(())
    })
}

/// Kills a step's process after each change; another process does the step again, and the power is cut in its midst: it must
/// not rely on what it saw, nor build on it, before that is on stable storage.
fn kill_and_cut(life: &Life, depth: Depth, count: &mut Count) -> Result<(), String> {
    for (number, (name, step)) in STEPS.iter().enumerate() {
        let blank = blank();
        let start = number.checked_sub(1).map_or(&blank, |n| &life.ends[n].2);
        for kill in 0.. {
            let sim = Sim::new(start.clone());
            sim.die_after(kill);
            let finished = open(&sim).and_then(|store| step(&store)).is_ok();
            let killed = sim.changes();
            let sim = sim.next_process();
            let failed = |e: String| format!("{name}, killed after {killed} changes: {e}");
            let acknowledged = open(&sim)
                .and_then(|store| step(&store))
                .map_err(|e| failed(format!("it can't be done again: {e:?}")))?;
            let end = sim.changes();
            let after = view(&sim.world());
            let mut cache = life.cache.clone();
            cache.extend(cached(&sim.world()));
            let mut known = HashSet::new();
            sim.history()
                .cuts(killed, depth, kill as u64, |done, world| {
                    let oracle = Oracle {
                        before: life.before(number),
                        after: &after,
                        acknowledged: acknowledged && done == end,
                        cache: &cache,
                    };
                    count.looked_at += 1;
                    if !known.insert((world.digest(), oracle.acknowledged)) {
                        return Ok(());
                    }
                    count.distinct += 1;
                    check(world, &oracle)
                        .map(drop)
                        .map_err(|e| failed(format!("then cut after {} more: {e}", done - killed)))
                })?;
            if finished {
                break;
            }
        }
    }
    Ok(())
}

fn depth(singles: bool, random: usize) -> Depth {
    Depth {
        singles,
        random: random * factor(),
    }
}

#[test]
fn spec_root_a_power_cut_at_any_moment_leaves_each_layer_whole_or_absent() {
    let mut count = Count::default();
    let life = Life::new(Sim::new(blank()));
    let result = cut_a_life(&life, depth(true, 10), &mut count);
    println!("power cuts: {} changes, {count:?}", life.sim.changes());
    result.unwrap();
}

#[test]
fn a_power_cut_after_a_kill_finds_nothing_built_on_sand() {
    let mut count = Count::default();
    let life = Life::new(Sim::new(blank()));
    let result = kill_and_cut(&life, depth(false, 2), &mut count);
    println!("power cuts after kills: {count:?}");
    result.unwrap();
}

/// Without what the store waits for, layers are lost or damaged: the test can fail.
#[test]
fn a_file_system_that_does_not_sync_is_found_out() {
    for (lie, complaint) in [
        (Lie::Directories, "neither before nor after"),
        (Lie::Files, "it does not open"),
    ] {
        let life = Life::new(Sim::lying(blank(), lie));
        let error = cut_a_life(&life, depth(true, 4), &mut Count::default()).unwrap_err();
        assert!(error.contains(complaint), "{lie:?}: {error}");
    }
}
