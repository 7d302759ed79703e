//! Tars that other projects made, by the class their README puts them in.

use std::collections::BTreeMap;

use lcow_blockio::ReadAt;
use lcow_layer::ErrorKind;
use lcow_layer::apply::{ApplyError, ApplyOptions};
use lcow_layer::export::exact;
use lcow_testkit::{Corpora, skip};
use serde_json::Value;

use crate::support::{Made, make_with, tree};

fn options() -> ApplyOptions {
    ApplyOptions {
        overlay: false,
        ..ApplyOptions::default()
    }
}

/// How the disk differs from the tree that containerd's applier makes.
fn differences(made: &Made, expected: &Value) -> Vec<String> {
    let mut found = tree(&made.disk);
    found.remove(&b""[..]);
    let mut differences = Vec::new();
    for file in expected["tree"].as_array().into_iter().flatten() {
        let path = file["p"].as_str().unwrap();
        let Some(node) = found.remove(path.as_bytes()) else {
            differences.push(format!("{path}: missing"));
            continue;
        };
        let mode = format!("{:o}", node.mode);
        let mut compare = |what: &str, ours: String, theirs: String| {
            if ours != theirs {
                differences.push(format!("{path}: {what} {ours}, not {theirs}"));
            }
        };
        compare("mode", mode, file["m"].as_str().unwrap().to_owned());
        for (what, ours) in [("u", node.uid.into()), ("g", node.gid.into()), ("s", node.size)] {
            if what != "s" || node.content.is_some() {
                compare(what, ours.to_string(), file[what].to_string());
            }
        }
        if node.mode & 0xf000 != 0x4000 {
            compare("links", node.links.to_string(), file["n"].to_string());
        }
        if let Some(hash) = file["h"].as_str() {
            compare("content", node.content.unwrap().hex(), hash.to_owned());
        }
        let link = node.link.as_ref().map(|l| l.escape_ascii().to_string());
        compare("link", format!("{link:?}"), format!("{:?}", file["l"].as_str()));
        let device = node.device.map(|(major, minor)| u64::from((major << 8) | minor));
        compare("device", format!("{device:?}"), format!("{:?}", file["d"].as_u64()));
        let mut xattrs = serde_json::Map::new();
        for (name, value) in &node.xattrs {
            let value: String = value.iter().map(|b| format!("{b:02x}")).collect();
            xattrs.insert(String::from_utf8(name.clone()).unwrap(), value.into());
        }
        let theirs = file["x"].as_object().cloned().unwrap_or_default();
        compare("xattrs", format!("{xattrs:?}"), format!("{theirs:?}"));
    }
    for path in found.keys() {
        differences.push(format!("{}: not expected", path.escape_ascii()));
    }
    differences
}

#[test]
fn every_class_ends_as_it_should() {
    let Some(corpora) = Corpora::find() else {
        skip!("no corpora");
    };
    let index = std::fs::read_to_string(corpora.index.join("INDEX.tar.tsv")).unwrap();
    let expect = std::fs::read(corpora.index.join("tar-expect.json.zst")).unwrap();
    let expect: Value = serde_json::from_slice(&zstd::decode_all(&expect[..]).unwrap()).unwrap();
    for line in index.lines().skip(1) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [corpus, file, .., tree_n, escapes] = columns[..] else {
            panic!("{line}");
        };
        let class = columns[5];
        let path = corpora.files.join(corpus).join(file);
        let Ok(tar) = std::fs::read(&path) else {
            println!("?? {corpus}/{file}: not there");
            continue;
        };
        eprintln!("at {corpus}/{file}");
        match make_with(&tar, &options()) {
            Err(e) => println!("{class} {corpus}/{file} ERR {:?} {e} [{escapes}]", e.kind()),
            Ok(made) => {
                let mut out = Vec::new();
                let e = exact(&made.disk, &made.split[..], None, &mut out);
                let d = differences(&made, &expect[format!("{corpus}/{file}")]);
                println!("{class} {corpus}/{file} OK tree_n {tree_n} exact {:?} {d:?} [{escapes}]", e.map(|e| e.diff_id == made.applied.diff_id));
            }
        }
    }
}
