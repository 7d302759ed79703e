//! Images that other projects made for their own tests; see the README beside the archive for what each class demands.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use lcow_blockio::FileDisk;
use lcow_ext4::reader::{Filesystem, Journal, ReadError, ReadErrorKind};
use lcow_testkit::{Corpora, skip};

use crate::export::{Tree, hex, read_all};
use crate::memory;

/// The most one file may take.
const TIME: Duration = Duration::from_secs(10);

struct Image {
    folder: String,
    file: String,
    bytes: u64,
    class: String,
}

fn images(corpora: &Corpora) -> Vec<Image> {
    let index = std::fs::read_to_string(corpora.index.join("INDEX.ext4.tsv")).unwrap();
    index
        .lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            Image {
                folder: fields[0].to_owned(),
                file: fields[1].to_owned(),
                bytes: fields[2].parse().unwrap(),
                class: fields[9].to_owned(),
            }
        })
        .collect()
}

fn export(path: &Path, hash: bool, resolve: bool) -> Result<(Tree, Journal), ReadError> {
    let fs = Filesystem::open(FileDisk::open(path).unwrap())?;
    let tree = read_all(&fs, hash)?;
    // What the listing shows must be found by name as well, through the hash tree where there is one.
    for path in tree.keys().filter(|_| resolve).step_by(7) {
        fs.resolve(path)?;
    }
    Ok((tree, fs.info().journal))
}

/// The kernel's tree; paths that the kernel itself could not read hold `Err(errno)`.
type Manifest = BTreeMap<String, Result<serde_json::Value, i64>>;

fn manifest(corpora: &Corpora, image: &Image) -> Option<Manifest> {
    let path = corpora
        .files
        .join(&image.folder)
        .join("manifest")
        .join(format!("{}.json", image.file));
    let text = std::fs::read_to_string(path).ok()?;
    let list: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let entries = list.into_iter().map(|entry| {
        let path = entry["p"].as_str().unwrap().to_owned();
        let error = entry["err"].as_i64();
        (path, error.map_or(Ok(entry), Err))
    });
    Some(entries.collect())
}

/// Where an exported tree differs from the kernel's.
fn differences(tree: &Tree, manifest: &Manifest) -> Vec<String> {
    let mut list = Vec::new();
    let tree: BTreeMap<String, _> = tree.iter().map(|(p, e)| (escaped(p), e)).collect();
    for path in tree.keys().filter(|path| !manifest.contains_key(*path)) {
        list.push(format!("{path}: only we see it"));
    }
    for (path, theirs) in manifest {
        let name = path;
        let Some(ours) = tree.get(path) else {
            list.push(format!("{name}: we miss it"));
            continue;
        };
        let Ok(theirs) = theirs else {
            list.push(format!("{name}: the kernel can't read it, we can"));
            continue;
        };
        let mut field = |what: &str, ours: serde_json::Value| {
            if ours != theirs[what] {
                list.push(format!("{name}: {what} {ours} is {}", theirs[what]));
            }
        };
        field("m", format!("{:#o}", ours.mode).into());
        field("u", ours.uid.into());
        field("g", ours.gid.into());
        field("s", ours.size.into());
        field("t", ours.mtime.0.into());
        field("n", ours.links.into());
        field("h", ours.sha256.clone().into());
        field("l", ours.link.as_deref().map(escaped).into());
        let xattrs = serde_json::to_value(&ours.xattrs).unwrap();
        field(
            "x",
            if ours.xattrs.is_empty() {
                serde_json::Value::Null
            } else {
                xattrs
            },
        );
    }
    list
}

/// The manifests have paths in ASCII, the rest as Python's `backslashreplace` writes it.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match u32::from(c) {
                0..=0x7F => text.push(c),
                n @ 0x80..=0xFF => text.push_str(&format!("\\x{n:02x}")),
                n @ 0x100..=0xFFFF => text.push_str(&format!("\\u{n:04x}")),
                n => text.push_str(&format!("\\U{n:08x}")),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\udc{byte:02x}"));
        }
    }
    text
}

/// What became of an image, and whether that is right for its class.
fn judge(corpora: &Corpora, image: &Image) -> (String, bool) {
    let path = corpora.files.join(&image.folder).join(&image.file);
    let manifest = manifest(corpora, image);
    let started = Instant::now();
    // In a damaged hash tree a leaf may be out of reach, for us as for the kernel; the listing has its names.
    let sound = image.class.starts_with('A');
    let (result, peak) = memory::peak(|| export(&path, manifest.is_some(), sound));
    let took = started.elapsed();
    let kernel_fails = manifest
        .as_ref()
        .is_some_and(|m| m.values().any(Result::is_err));
    let class = image.class.as_str();
    let replay = class.ends_with("+needs-replay");
    let (what, right) = match &result {
        Ok((tree, journal)) => {
            let ignored = replay && !matches!(journal, Journal::Replayed { .. });
            if let Some(manifest) = &manifest {
                let differ = differences(tree, manifest);
                if differ.is_empty() && !ignored {
                    ("equal to the kernel's tree".to_owned(), true)
                } else {
                    (format!("differs: {}", differ.join("; ")), false)
                }
            } else {
                let right = (class.starts_with("A-") || class.starts_with("B-")) && !ignored;
                (format!("read whole ({} entries)", tree.len()), right)
            }
        }
        Err(error) => {
            let right = match error.kind() {
                ReadErrorKind::Unsupported => true,
                ReadErrorKind::Corrupt => {
                    // A clean image must open, unless the kernel fails on it as well.
                    !class.starts_with("A-clean") || kernel_fails || (replay && manifest.is_none())
                }
                _ => false,
            };
            (error.to_string(), right)
        }
    };
    let bound = (64 << 20) + 4 * image.bytes;
    if took > TIME || peak > bound {
        return (format!("{what}; took {took:?} and {peak} bytes"), false);
    }
    (what, right)
}

#[test]
fn every_image_ends_as_its_class_demands() {
    let Some(corpora) = Corpora::find() else {
        skip!("no corpora");
    };
    let mut table: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for image in images(corpora) {
        let (what, right) = judge(corpora, &image);
        let row = table.entry(image.class.clone()).or_default();
        row.0 += usize::from(right);
        row.1 += 1;
        let line = format!("{:<24} {}: {what}", image.class, image.file);
        println!("{} {line}", if right { "  " } else { "!!" });
        if !right {
            wrong.push(line);
        }
    }
    println!("\n{:<26} {:>5} {:>5}", "class", "right", "all");
    for (class, (right, all)) in &table {
        println!("{class:<26} {right:>5} {all:>5}");
    }
    assert!(
        table.values().map(|row| row.1).sum::<usize>() > 0,
        "the index is empty"
    );
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn the_comparison_sees_a_difference() {
    let Some(corpora) = Corpora::find() else {
        skip!("no corpora");
    };
    let images = images(corpora);
    let image = images.iter().find(|i| i.file == "ext4.bin").unwrap();
    let path = corpora.files.join(&image.folder).join(&image.file);
    let mut tree = export(&path, true, true).unwrap().0;
    let manifest = manifest(corpora, image).unwrap();
    assert_eq!(differences(&tree, &manifest), Vec::<String>::new());
    tree.get_mut(&b"xattr_cap"[..]).unwrap().xattrs.clear();
    tree.get_mut(&b"test_file"[..]).unwrap().sha256 = Some(hex(b"other"));
    tree.remove(&b"lost+found"[..]);
    assert_eq!(differences(&tree, &manifest).len(), 3);
}
