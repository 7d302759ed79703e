//! Which of a kernel's modules a machine needs, and in what order (`modules.dep`(5), `modules.builtin`).

use crate::UvmError;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What the agent can't do without.
const NEEDED: [&str; 6] = [
    "virtio_pci",
    "virtio_console",
    "virtio_scsi",
    "sd_mod",
    "ext4",
    "overlay",
];

/// Largest module taken, in bytes, uncompressed.
const MODULE_LIMIT: u64 = 64 << 20;

/// `kernel/fs/ext4/ext4.ko.xz` → `ext4`; `-` and `_` are the same in module names.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split(".ko").next().unwrap_or(file);
    stem.replace('-', "_")
}

/// The modules needed, in the order to load them; or the names of those that are missing.
pub(super) fn resolve(dir: &Path) -> Result<Vec<PathBuf>, Vec<String>> {
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
    let (dep, builtin) = (read("modules.dep"), read("modules.builtin"));
    order(&dep, &builtin).map(|paths| paths.into_iter().map(|path| dir.join(path)).collect())
}

fn order(dep: &str, builtin: &str) -> Result<Vec<String>, Vec<String>> {
    let builtin: BTreeSet<String> = builtin.lines().map(name_of).collect();
    let mut modules: BTreeMap<String, (&str, Vec<String>)> = BTreeMap::new();
    for line in dep.lines() {
        if let Some((path, needs)) = line.split_once(':') {
            let needs = needs.split_whitespace().map(name_of).collect();
            modules.insert(name_of(path), (path, needs));
        }
    }
    let mut missing = Vec::new();
    let mut done = BTreeSet::new();
    let mut paths = Vec::new();
    for name in NEEDED {
        visit(
            name,
            &modules,
            &builtin,
            &mut done,
            &mut paths,
            &mut missing,
        );
    }
    if missing.is_empty() {
        Ok(paths)
    } else {
        Err(missing)
    }
}

fn visit(
    name: &str,
    modules: &BTreeMap<String, (&str, Vec<String>)>,
    builtin: &BTreeSet<String>,
    done: &mut BTreeSet<String>,
    paths: &mut Vec<String>,
    missing: &mut Vec<String>,
) {
    if !done.insert(name.to_owned()) || builtin.contains(name) {
        return;
    }
    let Some((path, needs)) = modules.get(name) else {
        missing.push(name.to_owned());
        return;
    };
    // `modules.dep` lists what a module needs from the last to load to the first.
    for need in needs.iter().rev() {
        visit(need, modules, builtin, done, paths, missing);
    }
    paths.push((*path).to_owned());
}

/// A module's bytes, decompressed: the guest's kernel may not be able to.
pub(super) fn load(path: &Path) -> Result<Vec<u8>, UvmError> {
    let file = std::fs::File::open(path).map_err(UvmError::io("open", path))?;
    let extension = path.extension().and_then(|extension| extension.to_str());
    let reader: Box<dyn Read> = match extension {
        Some("ko") => Box::new(file),
        Some("xz") => Box::new(liblzma::read::XzDecoder::new(file)),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(file)),
        Some("zst") => Box::new(
            zstd::stream::read::Decoder::new(file).map_err(UvmError::io("decompress", path))?,
        ),
        _ => {
            let detail = "its name says no compression this program knows".into();
            return Err(UvmError::BadBootFile {
                what: "module",
                path: path.to_owned(),
                detail,
            });
        }
    };
    let mut bytes = Vec::new();
    reader
        .take(MODULE_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(UvmError::io("read", path))?;
    if !bytes.starts_with(b"\x7fELF") {
        let detail = "it does not begin as an ELF file".into();
        return Err(UvmError::BadBootFile {
            what: "module",
            path: path.to_owned(),
            detail,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/virtio/virtio.ko:
kernel/virtio/virtio_ring.ko: kernel/virtio/virtio.ko
kernel/virtio/virtio_pci.ko: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko
kernel/char/virtio_console.ko.xz: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko
kernel/scsi/scsi-mod.ko:
kernel/scsi/virtio_scsi.ko: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko kernel/scsi/scsi-mod.ko
kernel/scsi/sd_mod.ko: kernel/scsi/scsi-mod.ko
kernel/fs/overlay.ko:
";

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let order = order(DEP, "kernel/fs/ext4/ext4.ko\n").unwrap();
        let names: Vec<String> = order.iter().map(|path| name_of(path)).collect();
        let expected = [
            "virtio",
            "virtio_ring",
            "virtio_pci",
            "virtio_console",
            "scsi_mod",
            "virtio_scsi",
            "sd_mod",
            "overlay",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(order(DEP, "").unwrap_err(), ["ext4"]);
        assert_eq!(order("", "").unwrap_err().len(), NEEDED.len());
    }

    #[test]
    fn compressed_modules_come_out_plain() {
        let dir = tempfile::tempdir().unwrap();
        let elf = b"\x7fELF and the rest".repeat(100);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        std::io::Write::write_all(&mut xz, &elf).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, &elf).unwrap();
        let files = [
            ("m.ko", elf.clone()),
            ("m.ko.xz", xz.finish().unwrap()),
            ("m.ko.gz", gz.finish().unwrap()),
            ("m.ko.zst", zstd::encode_all(elf.as_slice(), 1).unwrap()),
        ];
        for (name, bytes) in files {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(load(&path).unwrap(), elf, "{name}");
        }
        std::fs::write(dir.path().join("n.ko"), b"text").unwrap();
        assert!(matches!(
            load(&dir.path().join("n.ko")),
            Err(UvmError::BadBootFile { .. })
        ));
    }
}
