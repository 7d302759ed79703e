//! Power cuts, on a file system in memory that keeps apart what is durable: the images are those before an operation or after it,
//! and each is whole.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use lcow_driver::vfs::Vfs;
use lcow_driver::vfs::sim::{Depth, Sim, World};
use lcow_driver::{Cancel, Kind, OpenOptions, Store};
use lcow_image::{ImageError, Images, Input, LoadOptions};

use crate::archive::tar;

fn open(sim: &Sim) -> Result<Images, ImageError> {
    let options = OpenOptions {
        vfs: Arc::new(sim.clone()),
        ..OpenOptions::default()
    };
    Images::open(&Store::open(Path::new("/data/root"), options)?)
}

fn load(images: &Images, name: &str, content: &[u8]) -> Result<bool, ImageError> {
    let rootfs = tar(&[("etc/", b""), ("etc/file", content), ("bin/", b"")]);
    let input = Input::Stream {
        name: "the stream".to_owned(),
        reader: Box::new(Cursor::new(rootfs)),
    };
    let options = LoadOptions {
        name: Some(name.parse().unwrap()),
        ..LoadOptions::default()
    };
    images
        .load(input, &options, &Cancel::new(), &|_| {})
        .map(|_| true)
}

/// Says whether what it did was acknowledged.
type Step = (&'static str, fn(&Images) -> Result<bool, ImageError>);

const STEPS: &[Step] = &[
    ("open", |_| Ok(true)),
    ("load", |images| load(images, "one", b"first")),
    ("load another", |images| load(images, "two", b"second")),
    ("take a name", |images| load(images, "one", b"third")),
    ("remove and prune", |images| {
        let acknowledged = match images.remove("two") {
            Err(ImageError::NotFound { .. }) => false,
            result => result.map(|_| true)?,
        };
        images.prune()?;
        Ok(acknowledged)
    }),
];

/// Names by image.
type Seen = BTreeMap<String, Vec<String>>;

fn seen(images: &Images) -> Result<Seen, String> {
    let list = images.list().map_err(|e| format!("{e:?}"))?;
    let named = |i: &lcow_image::Image| {
        let names = i.names.iter().map(ToString::to_string).collect();
        (i.id.to_string(), names)
    };
    Ok(list.iter().map(named).collect())
}

fn check(world: World, allowed: &[&Seen]) -> Result<(), String> {
    let images = open(&Sim::new(world)).map_err(|e| format!("it does not open: {e:?}"))?;
    let now = seen(&images)?;
    if !allowed.contains(&&now) {
        return Err(format!("{now:?} is none of {allowed:?}"));
    }
    // A damaged image would only be left out of the list.
    let index = images.store().images_dir().join("index.json");
    let index = images.store().read_file(&index, 1 << 20).unwrap();
    let index: serde_json::Value = index.map_or_else(Default::default, |bytes| {
        serde_json::from_slice(&bytes).unwrap()
    });
    let entries = index["manifests"].as_array().map_or(0, Vec::len);
    let listed: usize = now.values().map(|names| names.len().max(1)).sum();
    if entries != listed {
        return Err(format!("{entries} in the index, {listed} in the list"));
    }
    for image in images.list().map_err(|e| format!("{e:?}"))? {
        for layer in &image.layers {
            let metadata = images.store().metadata(layer);
            if !metadata.is_ok_and(|m| m.kind == Kind::Layer) {
                return Err(format!("{} lacks layer {layer}", image.id));
            }
        }
    }
    Ok(())
}

/// Runs a step in a process that is killed after so many changes, then again in another one, and looks at what power cuts during that
/// may leave. Whether the first process came to the end.
fn kill_and_cut(
    start: &World,
    step: &Step,
    kill: usize,
    count: &mut usize,
) -> Result<bool, String> {
    let run = |sim: &Sim| open(sim).and_then(|images| (step.1)(&images));
    let before = seen(&open(&Sim::new(start.clone())).unwrap())?;
    let sim = Sim::new(start.clone());
    sim.die_after(kill);
    let finished = run(&sim).is_ok();
    let killed = sim.changes();
    let sim = sim.next_process();
    let acknowledged = run(&sim).map_err(|e| format!("it can't be done again: {e:?}"))?;
    let end = sim.changes();
    let after = seen(&open(&Sim::new(sim.world())).unwrap())?;
    let depth = Depth {
        singles: false,
        random: 1,
    };
    sim.history()
        .cuts(killed, depth, kill as u64, |done, world| {
            *count += 1;
            let allowed: &[&Seen] = if acknowledged && done == end {
                &[&after]
            } else {
                &[&before, &after]
            };
            check(world, allowed).map_err(|e| format!("cut after {} more: {e}", done - killed))
        })?;
    Ok(finished)
}

#[test]
fn power_cuts_and_kills_leave_the_images_before_or_after() {
    let sim = Sim::new(World::default());
    sim.create_dir(Path::new("/data")).unwrap();
    let mut start = sim.world();
    let mut count = 0;
    for step in STEPS {
        for kill in 0.. {
            let finished = kill_and_cut(&start, step, kill, &mut count)
                .unwrap_or_else(|e| panic!("{}, killed after {kill}: {e}", step.0));
            if finished {
                break;
            }
        }
        let sim = Sim::new(start.clone());
        open(&sim).and_then(|images| (step.1)(&images)).unwrap();
        start = sim.world();
    }
    println!("power cuts: {count}");
}
