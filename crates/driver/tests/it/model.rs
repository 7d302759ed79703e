//! The store against a model of it in memory: random operations, reopenings, and processes killed in the middle of their own.
//!
//! `LCOW_MODEL_STEPS=1000000` does more (`make model`), `LCOW_MODEL_SEED=7` another walk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use lcow_blockio::FileDisk;
use lcow_driver::{
    Against, ApplyRequest, Cancel, ErrorKind, Input, Kind, Placed, Reference, Removed, Store,
};
use lcow_layer::digest::Digest;

use crate::common::{id, open, small_sandbox, tar};
use crate::helper;

const IDS: u8 = 14;
/// What layers hold: each a file of its own, one that all have, and what it takes away of others.
const TARS: &[&[(&str, &[u8])]] = &[
    &[],
    &[("a", b"1"), ("all", b"1")],
    &[("b", b"2"), ("all", b"22"), (".wh.a", b"")],
    &[
        ("c", b"3"),
        ("all", b"333"),
        (".wh.b", b""),
        (".wh.none", b""),
    ],
    &[("d", b"4"), (".wh.all", b"")],
];
/// What containers did to their sandboxes.
const UPPERS: &[&[(&str, &[u8])]] = &[
    &[],
    &[("a", b"changed"), ("made", b"5")],
    &[(".wh.a", b""), (".wh.made", b""), ("d", b"more")],
];

/// Files by name, and what is in them; `None` takes one away.
type Files = BTreeMap<&'static str, Option<&'static [u8]>>;

#[derive(Debug, Clone, PartialEq)]
enum Content {
    Empty,
    Tar(usize),
    Sandbox(usize),
    /// A layer made of a sandbox that had these changes then.
    Committed(Files),
}

fn files(list: &[(&'static str, &'static [u8])]) -> Files {
    list.iter()
        .map(|(name, bytes)| match name.strip_prefix(".wh.") {
            Some(gone) => (gone, None),
            None => (*name, Some(*bytes)),
        })
        .collect()
}

impl Content {
    fn files(&self) -> Files {
        match self {
            Self::Empty => Files::new(),
            Self::Tar(n) => files(TARS[*n]),
            Self::Sandbox(n) => files(UPPERS[*n]),
            Self::Committed(files) => files.clone(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Empty => Kind::Empty,
            Self::Tar(_) | Self::Committed(_) => Kind::Layer,
            Self::Sandbox(_) => Kind::Sandbox,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Layer {
    parent: Option<u8>,
    content: Content,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Create(u8, Option<u8>),
    Sandbox(u8, Option<u8>),
    Import(u8, Option<u8>, usize),
    Apply(u8, usize),
    Commit(u8, u8),
    Remove(u8),
    Write(u8, usize),
    Refer(u8),
    Release(u8),
    Look(u8),
    View(u8),
    Diff(u8),
    List,
}

/// What an operation gives: itself in the store, and what the model expects.
#[derive(Debug, PartialEq)]
enum Outcome {
    Done,
    Nothing,
    Failed(ErrorKind),
    Found(Option<(Kind, Vec<u8>)>),
    Names(BTreeSet<String>),
    Listed(Vec<u8>),
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    layers: BTreeMap<u8, Layer>,
    references: BTreeMap<u8, usize>,
}

impl Model {
    fn chain(&self, layer: u8) -> Vec<u8> {
        let mut chain = Vec::new();
        let mut at = self.layers[&layer].parent;
        while let Some(parent) = at {
            chain.push(parent);
            at = self.layers[&parent].parent;
        }
        chain
    }

    /// What is seen in a layer, and in none at all.
    fn view(&self, layer: Option<u8>) -> Files {
        let Some(layer) = layer else {
            return Files::new();
        };
        let mut chain = self.chain(layer);
        chain.reverse();
        chain.push(layer);
        let mut view = Files::new();
        for layer in chain {
            view.extend(self.layers[&layer].content.files());
        }
        view.retain(|_, bytes| bytes.is_some());
        view
    }

    /// What a layer has that its parent has not, and the other way round. A whiteout of what is not there changes nothing, nor
    /// does a file that is the same again.
    fn changes(&self, layer: u8) -> Files {
        let under = self.view(self.layers[&layer].parent);
        let mut own = self.layers[&layer].content.files();
        own.retain(|name, bytes| under.get(name).copied().flatten() != *bytes);
        own
    }

    fn add(&mut self, layer: u8, parent: Option<u8>, content: Content) -> Outcome {
        if self.layers.contains_key(&layer) {
            return Outcome::Failed(ErrorKind::AlreadyExists);
        }
        if parent.is_some_and(|p| !self.layers.contains_key(&p)) {
            return Outcome::Failed(ErrorKind::NotFound);
        }
        self.layers.insert(layer, Layer { parent, content });
        Outcome::Done
    }

    /// What the operation gives, and what it makes of the store.
    fn step(&mut self, op: Op) -> Outcome {
        match op {
            Op::Create(layer, parent) => self.add(layer, parent, Content::Empty),
            Op::Sandbox(layer, parent) => self.add(layer, parent, Content::Sandbox(0)),
            Op::Import(layer, parent, n) => match self.add(layer, parent, Content::Tar(n)) {
                Outcome::Failed(ErrorKind::AlreadyExists) => Outcome::Nothing,
                outcome => outcome,
            },
            Op::Apply(layer, n) => match self.layers.get_mut(&layer) {
                None => Outcome::Failed(ErrorKind::NotFound),
                Some(found) => match found.content {
                    Content::Empty => {
                        found.content = Content::Tar(n);
                        Outcome::Done
                    }
                    Content::Sandbox(_) => Outcome::Failed(ErrorKind::Invalid),
                    _ => Outcome::Failed(ErrorKind::AlreadyExists),
                },
            },
            Op::Commit(from, to) => {
                if self.layers.contains_key(&to) {
                    return Outcome::Failed(ErrorKind::AlreadyExists);
                }
                match self.layers.get(&from) {
                    None => Outcome::Failed(ErrorKind::NotFound),
                    Some(Layer {
                        parent,
                        content: Content::Sandbox(_),
                    }) => self.add(to, *parent, Content::Committed(self.changes(from))),
                    Some(_) => Outcome::Failed(ErrorKind::Invalid),
                }
            }
            Op::Remove(layer) => {
                if !self.layers.contains_key(&layer) {
                    return Outcome::Nothing;
                }
                if self.layers.values().any(|l| l.parent == Some(layer)) {
                    return Outcome::Failed(ErrorKind::HasChildren);
                }
                if self.references.contains_key(&layer) {
                    return Outcome::Failed(ErrorKind::InUse);
                }
                self.layers.remove(&layer);
                Outcome::Done
            }
            Op::Write(layer, n) => match self.layers.get_mut(&layer) {
                Some(Layer {
                    content: content @ Content::Sandbox(_),
                    ..
                }) => {
                    *content = Content::Sandbox(n);
                    Outcome::Done
                }
                Some(_) => Outcome::Failed(ErrorKind::Invalid),
                None => Outcome::Failed(ErrorKind::NotFound),
            },
            Op::Refer(layer) => {
                if !self.layers.contains_key(&layer) {
                    return Outcome::Failed(ErrorKind::NotFound);
                }
                *self.references.entry(layer).or_default() += 1;
                Outcome::Done
            }
            Op::Release(layer) => match self.references.get_mut(&layer) {
                Some(1) => {
                    self.references.remove(&layer);
                    Outcome::Done
                }
                Some(count) => {
                    *count -= 1;
                    Outcome::Done
                }
                None => Outcome::Nothing,
            },
            Op::Look(layer) => Outcome::Found(
                self.layers
                    .get(&layer)
                    .map(|l| (l.content.kind(), self.chain(layer))),
            ),
            Op::View(layer) | Op::Diff(layer) if !self.layers.contains_key(&layer) => {
                Outcome::Failed(ErrorKind::NotFound)
            }
            Op::View(layer) => {
                let view = self.view(Some(layer));
                Outcome::Names(view.into_keys().map(str::to_owned).collect())
            }
            Op::Diff(layer) => {
                let changes = match &self.layers[&layer].content {
                    Content::Sandbox(_) => self.changes(layer),
                    // Byte for byte what was applied.
                    content => content.files(),
                };
                let names = changes.into_iter().map(|(name, bytes)| match bytes {
                    Some(_) => name.to_owned(),
                    None => format!(".wh.{name}"),
                });
                Outcome::Names(names.collect())
            }
            Op::List => Outcome::Listed(self.layers.keys().copied().collect()),
        }
    }
}

fn name(layer: u8) -> lcow_driver::LayerId {
    id(&format!("l{layer:02}"))
}

fn number(name: &lcow_driver::LayerId) -> u8 {
    name.as_str()[1..].parse().unwrap()
}

/// A store with the references that its process holds.
struct Real {
    store: Store,
    references: BTreeMap<u8, Vec<Reference>>,
}

impl Real {
    fn open(root: &Path) -> Self {
        let store = open(root).unwrap();
        Self {
            store,
            references: BTreeMap::new(),
        }
    }

    fn step(&mut self, op: Op) -> Outcome {
        self.try_step(op)
            .unwrap_or_else(|e| Outcome::Failed(e.kind()))
    }

    fn try_step(&mut self, op: Op) -> Result<Outcome, lcow_driver::DriverError> {
        let store = &self.store;
        let (request, cancel) = (ApplyRequest::default(), Cancel::new());
        match op {
            Op::Create(layer, parent) => {
                store.create(&name(layer), parent.map(name).as_ref())?;
            }
            Op::Sandbox(layer, parent) => {
                store.create_read_write(
                    &name(layer),
                    parent.map(name).as_ref(),
                    &small_sandbox(),
                )?;
            }
            Op::Import(layer, parent, n) => {
                let bytes = tar(TARS[n]);
                let input = Input::Reader(&mut &bytes[..]);
                let placed = store.import(
                    &name(layer),
                    parent.map(name).as_ref(),
                    input,
                    &request,
                    &cancel,
                )?;
                if placed == Placed::AlreadyThere {
                    return Ok(Outcome::Nothing);
                }
            }
            Op::Apply(layer, n) => {
                let bytes = tar(TARS[n]);
                let input = Input::Reader(&mut &bytes[..]);
                store.apply_diff(&name(layer), None, input, &request, &cancel)?;
            }
            Op::Commit(from, to) => {
                store.commit(&name(from), &name(to), &cancel)?;
            }
            Op::Remove(layer) => {
                if store.remove(&name(layer))? == Removed::AlreadyGone {
                    return Ok(Outcome::Nothing);
                }
            }
            Op::Write(layer, n) => {
                let guard = store.lock_sandbox(&name(layer))?;
                let mut files = vec![("upper/".to_owned(), &b""[..]), ("work/".to_owned(), b"")];
                files.extend(UPPERS[n].iter().map(|f| (format!("upper/{}", f.0), f.1)));
                let files: Vec<_> = files.iter().map(|f| (f.0.as_str(), f.1)).collect();
                let file = guard.file().try_clone().unwrap();
                file.set_len(0).unwrap();
                let options = lcow_layer::apply::ApplyOptions {
                    vhd: true,
                    ..Default::default()
                };
                lcow_layer::apply::apply(&tar(&files)[..], FileDisk::from(file), None, &options)
                    .unwrap();
            }
            Op::Refer(layer) => {
                let reference = store.reference(&name(layer))?;
                self.references.entry(layer).or_default().push(reference);
            }
            Op::Release(layer) => {
                if self.references.get_mut(&layer).and_then(Vec::pop).is_none() {
                    return Ok(Outcome::Nothing);
                }
            }
            Op::Look(layer) => {
                if !store.exists(&name(layer))? {
                    return Ok(Outcome::Found(None));
                }
                let metadata = store.metadata(&name(layer))?;
                let chain = metadata.parents.iter().map(number).collect();
                return Ok(Outcome::Found(Some((metadata.kind, chain))));
            }
            Op::View(layer) => {
                let changes = store.changes(&name(layer), &Against::Nothing)?;
                let names = changes
                    .into_iter()
                    .map(|c| String::from_utf8(c.path).unwrap());
                return Ok(Outcome::Names(names.collect()));
            }
            Op::Diff(layer) => {
                let mut out = Vec::new();
                let summary = store.diff(&name(layer), &Against::Parent, &mut out, &cancel)?;
                let digest = Digest::of(&out);
                assert_eq!(summary.digest, digest);
                if let Some(applied) = store.metadata(&name(layer))?.applied {
                    assert_eq!(applied.diff_id, digest, "not the tar that was applied");
                    assert!(summary.exact);
                }
                let names = tar::Archive::new(&out[..])
                    .entries()
                    .unwrap()
                    .map(|e| e.unwrap().path().unwrap().display().to_string())
                    .filter(|name| name != "./")
                    .collect();
                return Ok(Outcome::Names(names));
            }
            Op::List => {
                let ids = store.layers()?;
                return Ok(Outcome::Listed(ids.iter().map(number).collect()));
            }
        }
        Ok(Outcome::Done)
    }
}

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    fn layer(&mut self) -> u8 {
        u8::try_from(self.roll(usize::from(IDS))).unwrap()
    }

    fn parent(&mut self) -> Option<u8> {
        (self.roll(4) > 0).then(|| self.layer())
    }

    /// An operation that changes the store, as a whole or not at all.
    fn change(&mut self) -> Op {
        match self.roll(10) {
            0 => Op::Create(self.layer(), self.parent()),
            1 => Op::Sandbox(self.layer(), self.parent()),
            2 | 3 => Op::Import(self.layer(), self.parent(), self.roll(TARS.len())),
            4 => Op::Apply(self.layer(), self.roll(TARS.len())),
            5 => Op::Commit(self.layer(), self.layer()),
            _ => Op::Remove(self.layer()),
        }
    }

    fn any(&mut self) -> Op {
        match self.roll(16) {
            0 => Op::Write(self.layer(), self.roll(UPPERS.len())),
            1 => Op::Refer(self.layer()),
            2 | 3 => Op::Release(self.layer()),
            4 | 5 => Op::Look(self.layer()),
            6 => Op::View(self.layer()),
            7 => Op::Diff(self.layer()),
            8 => Op::List,
            _ => self.change(),
        }
    }
}

/// All that the store shows is what the model has.
fn compare(real: &mut Real, model: &Model, seen: &str) {
    let mut model = model.clone();
    for op in (0..IDS)
        .flat_map(|layer| [Op::Look(layer), Op::View(layer), Op::Diff(layer)])
        .chain([Op::List])
    {
        let expected = model.step(op);
        assert_eq!(real.step(op), expected, "{op:?} {seen}");
    }
}

/// The operations of a process that is killed: it does them in order, and says so after each.
fn burst(seed: u64) -> impl Iterator<Item = Op> {
    let mut dice = Dice(seed);
    std::iter::repeat_with(move || dice.change()).take(40)
}

/// The process that is killed.
pub(crate) fn play(root: &Path) {
    let seed = std::env::var("LCOW_MODEL_SEED").unwrap().parse().unwrap();
    let mut real = Real::open(root);
    let mut out = std::io::stdout();
    writeln!(out, "{}", helper::READY).unwrap();
    for (n, op) in burst(seed).enumerate() {
        let outcome = real.step(op);
        writeln!(out, "did {n} {outcome:?}").unwrap();
        out.flush().unwrap();
    }
}

/// Lets a process work on the store and kills it, and brings the model to where it came.
fn kill_one(root: &Path, model: &mut Model, seed: u64, patience: Duration) -> usize {
    let mut child: Child = helper::command("model", root)
        .env("LCOW_MODEL_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in &mut lines {
        if line.unwrap().contains(helper::READY) {
            break;
        }
    }
    std::thread::sleep(patience);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut ops = burst(seed);
    let mut done = 0;
    for line in lines {
        let Some(text) = line.unwrap().strip_prefix("did ").map(str::to_owned) else {
            break;
        };
        let expected = model.step(ops.next().unwrap());
        assert_eq!(text, format!("{done} {expected:?}"), "before the kill");
        done += 1;
    }
    // The one that was going on is done or not, and nothing between.
    let mut real = Real::open(root);
    if let Some(op) = ops.next() {
        let mut ahead = model.clone();
        ahead.step(op);
        let changed = match op {
            Op::Create(layer, _) | Op::Sandbox(layer, _) | Op::Import(layer, _, _) => layer,
            Op::Apply(layer, _) | Op::Commit(_, layer) | Op::Remove(layer) => layer,
            other => panic!("{other:?}"),
        };
        let found = real.step(Op::Look(changed));
        if found == ahead.step(Op::Look(changed)) && found != model.step(Op::Look(changed)) {
            *model = ahead;
            done += 1;
        }
    }
    compare(&mut real, model, "after a kill");
    assert!(real.store.cleanup().unwrap().is_empty());
    done
}

#[test]
fn the_store_is_what_its_model_says_through_reopenings_and_kills() {
    let number =
        |name, default| std::env::var(name).map_or(default, |text| text.parse::<u64>().unwrap());
    let steps = number("LCOW_MODEL_STEPS", 6_000);
    let mut dice = Dice(number("LCOW_MODEL_SEED", 1));
    // In memory if that can be had: what fsync costs says nothing about what the store does.
    let memory = Path::new("/dev/shm");
    let dir = match tempfile::tempdir_in(memory) {
        Ok(dir) => dir,
        Err(_) => tempfile::tempdir().unwrap(),
    };
    let mut model = Model::default();
    let mut real = Real::open(dir.path());
    let (mut kills, mut opened, mut done) = (0, 0, 0_u64);
    while done < steps {
        match dice.roll(1_000) {
            0 => {
                drop(real);
                model.references.clear();
                real = Real::open(dir.path());
                assert!(real.store.recovery().is_empty(), "nobody died");
                compare(&mut real, &model, "after reopening");
                opened += 1;
            }
            1 => {
                drop(real);
                model.references.clear();
                let patience = Duration::from_micros(dice.roll(8_000) as u64);
                done += kill_one(dir.path(), &mut model, dice.0, patience) as u64;
                real = Real::open(dir.path());
                kills += 1;
            }
            _ => {
                let op = dice.any();
                let expected = model.step(op);
                assert_eq!(real.step(op), expected, "step {done}: {op:?}, {model:?}");
                done += 1;
            }
        }
    }
    compare(&mut real, &model, "at the end");
    let left = fs::read_dir(dir.path().join("tmp"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name() != ".commit")
        .count();
    assert_eq!(left, 0, "half-made things");
    println!("{done} steps, {opened} reopenings, {kills} kills");
}
