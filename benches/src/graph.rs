//! `lcow-benches graph`: the graph driver's operations, in the shapes of Docker's own benchmarks of graph drivers.
//!
//! Times are of calls of the library, each synced to the disk as the store does it. Beside them, where there is one, the
//! work that a driver over plain directories has: GNU tar extracting a layer and syncing it, or packing the changed files;
//! `mke2fs` making a blank disk.

use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};
use lcow_blockio::FileDisk;
use lcow_driver::{
    Against, ApplyRequest, Cancel, Input, Isolation, LayerId, OpenOptions, SandboxOptions, Store,
};

use crate::Options;

struct Bench<'a> {
    options: &'a Options,
    store: Store,
    dir: &'a Path,
    table: Table,
}

/// Prints the table, and what a store of 10,000 layers costs.
pub(crate) fn print(options: &Options) -> Result<()> {
    let dir = tempfile::tempdir_in(&options.dir)?;
    let open = OpenOptions {
        isolation: Isolation::Command {
            program: options.lcow.clone().into(),
            arguments: Vec::new(),
        },
        ..OpenOptions::default()
    };
    let store = Store::open(&dir.path().join("store"), open)?;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["", "n", "p50 ms", "p99 ms", "peer", "p50 ms"]);
    let mut bench = Bench {
        options,
        store,
        dir: dir.path(),
        table,
    };
    bench.sandboxes()?;
    bench.applies()?;
    bench.container()?;
    for (all, changed) in [(10, 10), (10_000, 10), (10_000, 10_000)] {
        bench.changed(all, changed)?;
    }
    bench.deep()?;
    println!("\ngraph driver: calls of the library, conversion in a process of its own");
    println!("{}", bench.table);
    drop(bench.store);
    many(&dir.path().join("many"))
}

/// Milliseconds of each of `n` calls, sorted.
fn times(n: usize, mut call: impl FnMut(usize) -> Result<()>) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(n);
    for i in 0..n {
        let start = Instant::now();
        call(i)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn at(times: &[f64], percent: usize) -> f64 {
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

fn id(name: impl std::fmt::Display) -> Result<LayerId> {
    Ok(LayerId::new(&name.to_string())?)
}

/// A tar of files of a few bytes that differ with `version`, a directory for each thousand.
fn tar_of(prefix: &str, files: impl IntoIterator<Item = usize>, version: u64) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for n in files {
        let content = format!("file {n}, version {version}");
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000 + version);
        header.set_size(content.len() as u64);
        let name = format!("{prefix}d{}/file-{n}", n / 1000);
        tar.append_data(&mut header, name, content.as_bytes())?;
    }
    Ok(tar.into_inner()?)
}

/// Extracts a tar into a new directory, synced: what a driver over directories does to apply a layer.
fn extract(tar: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to)?;
    run(Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(to))?;
    run(Command::new("sync").arg("-f").arg(to))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

impl Bench<'_> {
    fn row(&mut self, what: &str, times: &[f64], peer: Option<(&str, Vec<f64>)>) {
        let figure = |f: f64| Cell::new(format!("{f:.2}")).set_alignment(CellAlignment::Right);
        let mut row = vec![
            Cell::new(what),
            Cell::new(times.len()),
            figure(at(times, 50)),
            figure(at(times, 99)),
        ];
        if let Some((peer, theirs)) = peer {
            row.push(Cell::new(peer));
            row.push(figure(at(&theirs, 50)));
        }
        self.table.add_row(row);
    }

    fn import(&self, name: &str, parent: Option<&str>, tar: &[u8]) -> Result<()> {
        let parent = parent.map(id).transpose()?;
        let input = Input::Reader(&mut &*tar);
        let (request, cancel) = (ApplyRequest::default(), Cancel::new());
        self.store
            .import(&id(name)?, parent.as_ref(), input, &request, &cancel)?;
        Ok(())
    }

    /// A sandbox in which a container changed files: the tar's names begin with `upper/`.
    fn container_on(&self, name: &str, parent: &str, tar: &[u8]) -> Result<()> {
        let options = SandboxOptions {
            size: Some(64 << 20),
            ..SandboxOptions::default()
        };
        self.store
            .create_read_write(&id(name)?, Some(&id(parent)?), &options)?;
        let guard = self.store.lock_sandbox(&id(name)?)?;
        let file = guard.file().try_clone()?;
        file.set_len(0)?;
        let options = lcow_layer::apply::ApplyOptions {
            vhd: true,
            ..Default::default()
        };
        lcow_layer::apply::apply(tar, FileDisk::from(file), None, &options)?;
        Ok(())
    }

    fn sandboxes(&mut self) -> Result<()> {
        const N: usize = 200;
        let name = |n: usize| id(format!("box-{n}"));
        let options = SandboxOptions::default();
        // The first makes the blank that the others are cloned from.
        let first = times(1, |_| {
            self.store
                .create_read_write(&id("first")?, None, &options)?;
            Ok(())
        })?;
        let made = times(N, |n| {
            self.store.create_read_write(&name(n)?, None, &options)?;
            Ok(())
        })?;
        let exists = times(N, |n| {
            ensure!(black_box(self.store.exists(&name(n)?)?));
            Ok(())
        })?;
        let metadata = times(N, |n| {
            black_box(self.store.metadata(&name(n)?)?);
            Ok(())
        })?;
        let removed = times(N, |n| {
            self.store.remove(&name(n)?)?;
            Ok(())
        })?;
        let disk = self.dir.join("mke2fs");
        let peer = times(20, |_| {
            run(Command::new("mke2fs")
                .args(["-q", "-F", "-t", "ext4"])
                .arg(&disk)
                .arg("20G"))?;
            std::fs::File::open(&disk)?.sync_all()?;
            std::fs::remove_file(&disk)?;
            Ok(())
        })?;
        self.row("create_read_write, 20 GB, the first", &first, None);
        self.row(
            "create_read_write, 20 GB",
            &made,
            Some(("mke2fs, fsync", peer)),
        );
        self.row("exists", &exists, None);
        self.row("metadata", &metadata, None);
        self.row("remove", &removed, None);
        Ok(())
    }

    fn applies(&mut self) -> Result<()> {
        const N: usize = 50;
        let tars = (0..N as u64)
            .map(|version| tar_of("", 0..10, version))
            .collect::<Result<Vec<_>>>()?;
        let path = self.dir.join("ten.tar");
        std::fs::write(&path, &tars[0])?;
        let ours = times(N, |n| self.import(&format!("ten-{n}"), None, &tars[n]))?;
        let theirs = times(N, |n| extract(&path, &self.dir.join(format!("ten-{n}"))))?;
        self.row(
            "apply of 10 files",
            &ours,
            Some(("tar -x, sync -f", theirs)),
        );
        Ok(())
    }

    /// 10 changed files in a container over a chain of 1 GB.
    fn container(&mut self) -> Result<()> {
        let Some(big) = ["dev", "source", "npm", "minbase"]
            .iter()
            .map(|name| self.options.dir.join(format!("{name}.tar")))
            .find(|path| path.exists())
        else {
            println!("skipped: no tree of the benchmarks' inputs was made");
            return Ok(());
        };
        let (request, cancel) = (ApplyRequest::default(), Cancel::new());
        let input = Input::File(std::fs::File::open(&big)?);
        self.store
            .import(&id("big")?, None, input, &request, &cancel)?;
        self.container_on("over-big", "big", &tar_of("upper/", 0..10, 1)?)?;
        let gigabytes = std::fs::metadata(&big)?.len() as f64 / 1e9;
        let title = format!("of 10 changed files over {gigabytes:.1} GB");
        self.compare(&title, "over-big", 10, 20)
    }

    /// `changed` of `all` files are changed in a container.
    fn changed(&mut self, all: usize, changed: usize) -> Result<()> {
        let layer = format!("layer-{all}");
        self.import(&layer, None, &tar_of("", 0..all, 0)?)?;
        let step = all / changed;
        let tar = tar_of("upper/", (0..all).step_by(step), 1)?;
        let name = format!("changed-{changed}-of-{all}");
        self.container_on(&name, &layer, &tar)?;
        let title = format!("of {changed} of {all} files");
        self.compare(&title, &name, changed, 20)
    }

    fn compare(&mut self, title: &str, name: &str, changed: usize, n: usize) -> Result<()> {
        let sandbox = id(name)?;
        let cancel = Cancel::new();
        let changes = times(n, |_| {
            let found = self.store.changes(&sandbox, &Against::Parent)?;
            ensure!(found.len() >= changed, "{} changes", found.len());
            Ok(())
        })?;
        let sizes = times(n, |_| {
            ensure!(self.store.diff_size(&sandbox, &Against::Parent)? > 0);
            Ok(())
        })?;
        let mut tar = Vec::new();
        let diffs = times(n, |_| {
            tar.clear();
            self.store
                .diff(&sandbox, &Against::Parent, &mut tar, &cancel)?;
            Ok(())
        })?;
        // What a driver over directories has of the same container: a directory with the changed files.
        let (path, upper) = (
            self.dir.join("peer.tar"),
            self.dir.join(format!("upper-{name}")),
        );
        std::fs::write(&path, &tar)?;
        extract(&path, &upper)?;
        let peer = times(n, |_| {
            run(Command::new("tar")
                .arg("-C")
                .arg(&upper)
                .args(["-cf", "-", "."]))
        })?;
        self.row(&format!("changes {title}"), &changes, None);
        self.row(&format!("diff_size {title}"), &sizes, None);
        self.row(
            &format!("diff {title}"),
            &diffs,
            Some(("tar -c of the upper directory", peer)),
        );
        Ok(())
    }

    /// A file of the lowest of 20 layers, read through all of them.
    fn deep(&mut self) -> Result<()> {
        use lcow_layer::tree::{Follow, Tree as _};
        let mut parent = None;
        for n in 0..20_usize {
            let name = format!("deep-{n}");
            let tar = tar_of("", n * 1000..n * 1000 + 100, 0)?;
            self.import(&name, parent.as_deref(), &tar)?;
            parent = Some(name);
        }
        let top = id(parent.context("no layers")?)?;
        let read = times(50, |_| {
            let chain = self.store.open_chain(&top)?;
            let union = chain.union().context("an empty chain")?;
            let found = union.resolve(b"d0/file-7", Follow::Yes)?;
            let file = union.open_file(&found.node)?;
            let mut bytes = vec![0; usize::try_from(file.size())?];
            file.read_at(0, &mut bytes)?;
            ensure!(bytes == b"file 7, version 0");
            Ok(())
        })?;
        self.row(
            "opening 20 layers and reading a file of the lowest",
            &read,
            None,
        );
        Ok(())
    }
}

/// A store of 10,000 layers: how long opening and listing take.
fn many(root: &Path) -> Result<()> {
    const LAYERS: usize = 10_000;
    let store = Store::open(root, OpenOptions::default())?;
    let chain = 100;
    let start = Instant::now();
    for n in 0..LAYERS {
        let parent = match n % chain {
            0 => None,
            _ => Some(id(format!("layer-{}", n - 1))?),
        };
        store.create(&id(format!("layer-{n}"))?, parent.as_ref())?;
    }
    let made = start.elapsed().as_secs_f64() * 1e3 / LAYERS as f64;
    drop(store);
    let opened = times(5, |_| {
        drop(Store::open(root, OpenOptions::default())?);
        Ok(())
    })?;
    let store = Store::open(root, OpenOptions::default())?;
    let listed = times(5, |_| {
        let layers = store.layers()?;
        ensure!(layers.len() == LAYERS);
        for layer in &layers {
            black_box(store.metadata(layer)?);
        }
        Ok(())
    })?;
    let removed = times(20, |n| {
        store.remove(&id(format!("layer-{}", chain * (n + 1) - 1))?)?;
        Ok(())
    })?;
    println!(
        "\n10,000 layers: opened in {:.0} ms, listed with all their metadata in {:.0} ms; {made:.2} ms to make one, {:.2} ms to remove one",
        at(&opened, 50),
        at(&listed, 50),
        at(&removed, 50)
    );
    Ok(())
}
