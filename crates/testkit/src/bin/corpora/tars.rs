//! Tars, and what is none: what `lcow disk from-tar` makes of them beside the tree that containerd's applier makes, and the way back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use lcow_testkit::{Corpora, Entry};
use serde::Deserialize;

use crate::process::{Failure, Lab};
use crate::{Case, Outcome, read_tar};

/// What containerd makes of a tar. Paths are UTF-8 with other bytes replaced.
#[derive(Debug, Deserialize)]
pub(crate) struct Expected {
    /// Nothing where it refuses.
    tree: Option<Vec<Known>>,
}

#[derive(Debug, Deserialize)]
struct Known {
    p: String,
    m: String,
    u: u64,
    g: u64,
    s: u64,
    n: u64,
    h: Option<String>,
    l: Option<String>,
    /// Major number times 256, and minor.
    d: Option<u64>,
    #[serde(default)]
    x: BTreeMap<String, String>,
}

/// What containerd makes of each tar, by its name.
pub(crate) type Expectations = BTreeMap<String, Expected>;

pub(crate) fn expectations(corpora: &Corpora) -> io::Result<Expectations> {
    let packed = fs::read(corpora.index.join("tar-expect.json.zst"))?;
    Ok(serde_json::from_slice(&zstd::decode_all(&packed[..])?)?)
}

/// The tars of the index, and the archives that are no tars.
pub(crate) fn cases(corpora: &Corpora) -> io::Result<Vec<Case>> {
    let index = fs::read_to_string(corpora.index.join("INDEX.tar.tsv"))?;
    let mut cases = Vec::new();
    for line in index.lines().skip(1) {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let field = |n: usize| fields.get(n).map_or("", String::as_str);
        cases.push(Case {
            group: "tar",
            class: field(5).to_owned(),
            name: format!("{}/{}", field(0), field(1)),
            columns: fields.clone(),
        });
    }
    for folder in fs::read_dir(&corpora.files)? {
        let folder = folder?;
        let origin = folder.file_name().to_string_lossy().into_owned();
        if !origin.starts_with("nontar-") {
            continue;
        }
        for file in fs::read_dir(folder.path())? {
            let name = file?.file_name().to_string_lossy().into_owned();
            cases.push(Case {
                group: "no tar",
                class: "nontar".to_owned(),
                name: format!("{origin}/{name}"),
                columns: Vec::new(),
            });
        }
    }
    Ok(cases)
}

fn from_tar(tar: &Path, lab: &mut Lab) -> io::Result<Result<(), Failure>> {
    let args = [
        "disk",
        "from-tar",
        "-o",
        "out.ext4",
        "--split",
        "out.split",
        "-i",
    ];
    let mut args: Vec<String> = args.map(str::to_owned).to_vec();
    args.push(tar.to_string_lossy().into_owned());
    Ok(lab.lcow(&args, &[], &["out.ext4", "out.split"])?.map(drop))
}

pub(crate) fn judge_nontar(corpora: &Corpora, case: &Case, lab: &mut Lab) -> io::Result<Outcome> {
    match from_tar(&corpora.files.join(&case.name), lab)? {
        Ok(()) => {
            lab.complain("accepted");
            Ok("accepted")
        }
        Err(failure) => {
            // What is compressed may be damaged before it can be seen not to be a tar.
            if !["not-a-tar", "corrupt"].contains(&&*failure.kind) {
                lab.complain(format!("{}: {}", failure.kind, failure.message));
            }
            Ok(failure.outcome())
        }
    }
}

pub(crate) fn judge(
    corpora: &Corpora,
    expectations: &Expectations,
    case: &Case,
    lab: &mut Lab,
) -> io::Result<Outcome> {
    let class = case.class.split('-').next().unwrap_or_default();
    let compression = case.columns.get(3).map_or("", String::as_str);
    let tar = corpora.files.join(&case.name);
    if let Err(failure) = from_tar(&tar, lab)? {
        // What the specification refuses by name, though containerd takes it with the name bent.
        let hostile = failure.kind == "refused"
            && ["leaves the root", "is a symbolic link"]
                .iter()
                .any(|why| failure.message.contains(why));
        if class == "T1" && !hostile {
            lab.complain(format!("{}: {}", failure.kind, failure.message));
        }
        return Ok(failure.outcome());
    }
    if !["T1", "T1b", "T3a", "S"].contains(&class) {
        lab.complain("accepted");
        return Ok("accepted");
    }
    let made = ["out.ext4", "out.split"];
    let with_tar = ["out.ext4", "out.split", "out.tar"];
    // A tar of a bomb is not written out.
    if class != "S" {
        let back = [
            "disk",
            "to-tar",
            "out.ext4",
            "--split",
            "out.split",
            "-o",
            "out.tar",
        ];
        match lab.lcow(&back, &made, &["out.tar"])? {
            Ok(_) => {
                if !same(&mut plain(&tar, compression)?, &lab.path("out.tar"))? {
                    lab.complain("the tar that comes back is another");
                }
                fs::remove_file(lab.path("out.tar"))?;
            }
            Err(failure) => lab.complain(format!("no way back: {}", failure.message)),
        }
    }
    if class == "T1" || class == "T3a" {
        let canonical = ["disk", "to-tar", "out.ext4", "-o", "out.tar"];
        match lab.lcow(&canonical, &made, &with_tar)? {
            Ok(_) => {
                let mut bytes = Vec::new();
                plain(&tar, compression)?.read_to_end(&mut bytes)?;
                compare(&expectations[&case.name], &bytes, lab)?;
            }
            Err(failure) => lab.complain(format!("no export: {}", failure.message)),
        }
    }
    Ok("accepted")
}

/// The tar as it was before it was compressed.
fn plain(tar: &Path, compression: &str) -> io::Result<Box<dyn Read>> {
    let program = match compression {
        "none" => return Ok(Box::new(BufReader::new(File::open(tar)?))),
        // gzip knows the `compress` of old, too.
        "compress" => "gzip",
        other => other,
    };
    let child = Command::new(program)
        .args(["-d", "-c", "-q"])
        .stdin(File::open(tar)?)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    child
        .stdout
        .map(|out| Box::new(BufReader::new(out)) as Box<dyn Read>)
        .ok_or_else(|| io::Error::other("no pipe"))
}

fn same(one: &mut dyn Read, other: &Path) -> io::Result<bool> {
    let mut other = File::open(other)?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    loop {
        a.clear();
        b.clear();
        Read::take(&mut *one, 1 << 18).read_to_end(&mut a)?;
        Read::take(&mut other, 1 << 18).read_to_end(&mut b)?;
        if a != b {
            return Ok(false);
        }
        if a.is_empty() {
            return Ok(true);
        }
    }
}

/// Complains of what differs from the tree that containerd makes.
fn compare(expected: &Expected, tar: &[u8], lab: &mut Lab) -> io::Result<()> {
    // What is not UTF-8 is replaced there, so that several names may look the same.
    let mut found: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for (path, entry) in read_tar(&lab.path("out.tar"), &|_| true)? {
        let path = String::from_utf8_lossy(&path).into_owned();
        found.entry(path).or_default().push(entry);
    }
    // containerd knows nothing of libarchive's attributes and of ACLs in text; we keep them.
    let xattrs = !["LIBARCHIVE.xattr.", "SCHILY.acl."]
        .iter()
        .any(|key| tar.windows(key.len()).any(|w| w == key.as_bytes()));
    for known in expected.tree.iter().flatten() {
        let path = &known.p;
        let same = found.get_mut(path).filter(|same| !same.is_empty());
        let ours = same.map(|same| {
            let fits = same.iter().position(|entry| entry.sha256 == known.h);
            same.swap_remove(fits.unwrap_or(0))
        });
        let Some(ours) = ours else {
            // An empty one is taken for mke2fs's.
            if path != "lost+found" {
                lab.complain(format!("{path}: missing"));
            }
            continue;
        };
        let mut field = |what: &str, ours: String, theirs: String| {
            if ours != theirs {
                lab.complain(format!("{path}: {what} {ours}, not {theirs}"));
            }
        };
        field("mode", format!("{:o}", ours.mode), known.m.clone());
        field("owner", ours.uid.to_string(), known.u.to_string());
        field("group", ours.gid.to_string(), known.g.to_string());
        if ours.mode & 0o170_000 == 0o100_000 {
            field("size", ours.size.to_string(), known.s.to_string());
            // The largest were not hashed.
            if known.h.is_some() {
                field(
                    "content",
                    format!("{:?}", ours.sha256),
                    format!("{:?}", known.h),
                );
            }
        }
        if ours.mode & 0o170_000 != 0o040_000 {
            field("links", ours.links.to_string(), known.n.to_string());
        }
        let link = ours.link.as_deref().map(String::from_utf8_lossy);
        field("target", format!("{link:?}"), format!("{:?}", known.l));
        let device = ours
            .device
            .map(|(major, minor)| u64::from(major << 8 | minor));
        field("device", format!("{device:?}"), format!("{:?}", known.d));
        if xattrs {
            field(
                "xattrs",
                format!("{:?}", ours.xattrs),
                format!("{:?}", known.x),
            );
        }
    }
    for (path, _) in found.iter().filter(|(_, left)| !left.is_empty()) {
        lab.complain(format!("{path}: not expected"));
    }
    Ok(())
}
