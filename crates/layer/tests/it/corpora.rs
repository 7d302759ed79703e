//! Tars that other projects made, by the class their README puts them in.

use std::collections::BTreeMap;

use lcow_layer::ErrorKind;
use lcow_layer::apply::{ApplyError, ApplyOptions, Refusal};
use lcow_layer::export::exact;
use lcow_testkit::{Corpora, skip};
use serde_json::Value;

use crate::support::{Made, Node, make_with, tree};

fn options() -> ApplyOptions {
    ApplyOptions {
        overlay: false,
        ..ApplyOptions::default()
    }
}

/// How the disk differs from the tree that containerd's applier makes.
fn differences(made: &Made, expected: &Value) -> Vec<String> {
    // The expectation's names are UTF-8, with other bytes replaced.
    let mut found: BTreeMap<String, Node> = tree(&made.disk)
        .into_iter()
        .map(|(path, node)| (String::from_utf8_lossy(&path).into_owned(), node))
        .collect();
    found.remove("");
    let mut differences = Vec::new();
    for file in expected["tree"].as_array().into_iter().flatten() {
        let path = file["p"].as_str().unwrap();
        let Some(node) = found.remove(path) else {
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
        for (what, ours) in [
            ("u", node.uid.into()),
            ("g", node.gid.into()),
            ("s", node.size),
        ] {
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
        compare(
            "link",
            format!("{link:?}"),
            format!("{:?}", file["l"].as_str()),
        );
        let device = node
            .device
            .map(|(major, minor)| u64::from((major << 8) | minor));
        compare(
            "device",
            format!("{device:?}"),
            format!("{:?}", file["d"].as_u64()),
        );
        let mut xattrs = serde_json::Map::new();
        for (name, value) in &node.xattrs {
            let value: String = value.iter().map(|b| format!("{b:02x}")).collect();
            xattrs.insert(String::from_utf8(name.clone()).unwrap(), value.into());
        }
        let theirs = file["x"].as_object().cloned().unwrap_or_default();
        compare("xattrs", format!("{xattrs:?}"), format!("{theirs:?}"));
    }
    for path in found.keys() {
        differences.push(format!("{path}: not expected"));
    }
    differences
}

/// How a tar ended.
fn outcome(result: &Result<Made, ApplyError>) -> &'static str {
    match result {
        Ok(_) => "accepted",
        Err(e) => match e.kind() {
            ErrorKind::Refused => "refused",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Io => "I/O error",
        },
    }
}

/// Holds a tar against its class; the error says what is wrong with how it ended.
fn judge(
    columns: &[&str],
    tar: &[u8],
    result: &Result<Made, ApplyError>,
    expected: &Value,
) -> Result<(), String> {
    let class = columns[5].split('-').next().unwrap_or_default();
    match result {
        Ok(made) => {
            let mut out = Vec::new();
            if made.applied.tar_size < 64 << 20 {
                exact(&made.disk, &made.split[..], None, &mut out).map_err(|e| e.to_string())?;
                if made.applied.compressed.is_none() && out != tar {
                    return Err("re-emitted tar differs".to_owned());
                }
            }
            let differences = match class {
                "T1" | "T3a" => differences(made, expected),
                // Whatever comes of it, nothing in it can point outside: there is no outside.
                "T1b" | "S" => Vec::new(),
                _ => vec!["accepted".to_owned()],
            };
            // containerd knows nothing of libarchive's attributes and of ACLs in text; we keep them.
            let ours_alone = [
                "test_pax_xattr_header_libarchive.tar",
                "test_compat_star_acl_posix1e.tar",
            ];
            if differences.is_empty() || ours_alone.contains(&columns[1]) {
                Ok(())
            } else {
                Err(differences.join("; "))
            }
        }
        Err(e) if e.kind() == ErrorKind::Io => Err(e.to_string()),
        Err(e) if class == "T1" => match e {
            // What section 1 refuses by name, though containerd takes it with the name bent.
            ApplyError::Refused {
                reason: Refusal::LeavesRoot | Refusal::SymlinkInPath(_),
                ..
            } => Ok(()),
            // Unix compress is not among section 1's compressions.
            ApplyError::NotATar { .. } if columns[3] == "compress" => Ok(()),
            e => Err(e.to_string()),
        },
        Err(_) => Ok(()),
    }
}

#[test]
fn every_class_ends_as_it_should() {
    let Some(corpora) = Corpora::find() else {
        skip!("no corpora");
    };
    let index = std::fs::read_to_string(corpora.index.join("INDEX.tar.tsv")).unwrap();
    let expect = std::fs::read(corpora.index.join("tar-expect.json.zst")).unwrap();
    let expect: Value = serde_json::from_slice(&zstd::decode_all(&expect[..]).unwrap()).unwrap();
    let mut table: BTreeMap<(String, &str), u32> = BTreeMap::new();
    let mut wrong = Vec::new();
    for line in index.lines().skip(1) {
        let columns: Vec<&str> = line.split('\t').collect();
        let name = format!("{}/{}", columns[0], columns[1]);
        let tar = std::fs::read(corpora.files.join(&name)).unwrap();
        let result = make_with(&tar, &options());
        *table
            .entry((columns[5].to_owned(), outcome(&result)))
            .or_default() += 1;
        if let Err(why) = judge(&columns, &tar, &result, &expect[&name]) {
            wrong.push(format!("{} {name}: {why}", columns[5]));
        }
    }
    for folder in std::fs::read_dir(&corpora.files).unwrap() {
        let folder = folder.unwrap();
        if !folder.file_name().to_string_lossy().starts_with("nontar-") {
            continue;
        }
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            let bytes = std::fs::read(file.path()).unwrap();
            let result = make_with(&bytes, &options());
            *table
                .entry(("nontar".to_owned(), outcome(&result)))
                .or_default() += 1;
            if result.is_ok() {
                wrong.push(format!("nontar {:?}: accepted", file.file_name()));
            }
        }
    }
    for ((class, outcome), count) in table {
        println!("{class:45} {outcome:12} {count:4}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
