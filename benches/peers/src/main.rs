//! Tars turned into ext4 by other projects' crates, for the tables of `make bench`.
//!
//! `peers mkext4|arcbox TAR OUT`

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Component, Path};

use mkext4::sink::FileSink;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Meta, Options, ROOT, SpecialKind};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [which, tar, out] = args.as_slice() else {
        return Err("usage: peers mkext4|arcbox TAR OUT".into());
    };
    match which.as_str() {
        "mkext4" => with_mkext4(Path::new(tar), Path::new(out)),
        "arcbox" => with_arcbox(Path::new(tar), Path::new(out)),
        _ => Err("no such peer".into()),
    }
}

fn open(tar: &Path) -> Result<BufReader<File>> {
    Ok(BufReader::with_capacity(1 << 20, File::open(tar)?))
}

fn with_arcbox(tar: &Path, out: &Path) -> Result<()> {
    let mut formatter = arcbox_ext4::Formatter::new(out, 4096, 1 << 20)?;
    formatter.unpack_tar(open(tar)?)?;
    formatter.close()?;
    Ok(())
}

/// mkext4 wants all names and sizes before any data, so the tar is read twice.
fn with_mkext4(tar: &Path, out: &Path) -> Result<()> {
    let (mut entries, mut bytes) = (0_u64, 0_u64);
    let mut archive = tar::Archive::new(File::open(tar)?);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        entries += 1;
        bytes += entry.size().next_multiple_of(4096);
    }
    let inodes = u32::try_from(entries + 64)?;
    let size = bytes + entries * 320 + (64 << 20);
    let mut options = Options::new(
        (size + size / 32).next_multiple_of(4096),
        *b"lcow-bench-peers",
        0,
    );
    options.inodes = InodeCount::Exact(inodes);
    let mut builder = FsBuilder::new(options)?;

    let mut known: HashMap<Vec<String>, InodeHandle> = HashMap::from([(Vec::new(), ROOT)]);
    let mut files = Vec::new();
    let mut archive = tar::Archive::new(File::open(tar)?);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = components(&entry.path()?)?;
        let header = entry.header();
        let meta = Meta::new(
            u16::try_from(header.mode()? & 0o7777)?,
            u32::try_from(header.uid()?)?,
            u32::try_from(header.gid()?)?,
            (i64::try_from(header.mtime()?)?, 0),
        );
        let Some((name, dir)) = path.split_last() else {
            builder.set_meta(ROOT, meta)?;
            continue;
        };
        let parent = parents(&mut builder, &mut known, dir)?;
        let kind = header.entry_type();
        if kind.is_dir() {
            if let Some(&dir) = known.get(&path) {
                builder.set_meta(dir, meta)?;
            } else {
                let dir = builder.mkdir(parent, name, meta)?;
                known.insert(path, dir);
            }
        } else if kind.is_symlink() {
            let target = entry.link_name()?.ok_or("a symlink without a target")?;
            builder.symlink(parent, name, target.to_str().ok_or("not UTF-8")?, meta)?;
        } else if kind.is_hard_link() {
            let target = entry.link_name()?.ok_or("a link without a target")?;
            let target = known
                .get(&components(&target)?)
                .ok_or("a link to nothing")?;
            builder.hardlink(parent, name, *target)?;
        } else if kind.is_character_special() || kind.is_block_special() {
            let major = header.device_major()?.unwrap_or(0);
            let minor = header.device_minor()?.unwrap_or(0);
            let kind = if kind.is_block_special() {
                SpecialKind::Block { major, minor }
            } else {
                SpecialKind::Char { major, minor }
            };
            builder.mknod(parent, name, meta, kind)?;
        } else if kind.is_fifo() {
            builder.mknod(parent, name, meta, SpecialKind::Fifo)?;
        } else {
            let file = builder.file(parent, name, meta, entry.size())?;
            if entry.size() > 0 {
                files.push(file);
            }
            known.insert(path, file);
        }
    }

    let layout = builder.seal()?;
    let mut sink = FileSink::create(out, layout.image_len())?;
    let mut writer = layout.writer(&mut sink)?;
    let mut files = files.into_iter();
    let mut archive = tar::Archive::new(open(tar)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if entry.size() > 0 && (kind.is_file() || kind.is_contiguous()) {
            let file = files.next().ok_or("the two passes differ")?;
            let size = entry.size();
            writer.fill(file, &mut entry.by_ref().take(size))?;
        }
    }
    writer.finish()?;
    Ok(())
}

fn parents(
    builder: &mut FsBuilder,
    known: &mut HashMap<Vec<String>, InodeHandle>,
    dir: &[String],
) -> Result<InodeHandle> {
    if let Some(&found) = known.get(dir) {
        return Ok(found);
    }
    let Some((name, above)) = dir.split_last() else {
        return Ok(ROOT);
    };
    let parent = parents(builder, known, above)?;
    let made = builder.mkdir(parent, name, Meta::new(0o755, 0, 0, (0, 0)))?;
    known.insert(dir.to_vec(), made);
    Ok(made)
}

fn components(path: &Path) -> Result<Vec<String>> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_str().map(str::to_owned)),
            _ => None,
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| "a name is not UTF-8".into())
}
