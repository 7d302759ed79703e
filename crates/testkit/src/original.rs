//! Disks as the original driver left them, made with the tools that its own utility VM had.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::run;

/// An ext4 image of `mib` MiB without a journal that holds `tree`.
fn image(path: &Path, mib: u64, tree: &Path) {
    File::create(path)
        .and_then(|file| file.set_len(mib << 20))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let options = ["-q", "-t", "ext4", "-O", "^has_journal,^resize_inode", "-d"];
    let files = [tree.as_os_str(), path.as_os_str()];
    run("mke2fs", options.iter().map(OsStr::new).chain(files));
}

/// A `layer.vhd` with what is in `tree`: ext4 and a footer without a geometry, by a creator that nobody else knows.
///
/// # Panics
/// If `mke2fs` fails, or the file can't be written.
pub fn original_layer(path: &Path, tree: &Path) {
    const SIZE: u64 = 16 << 20;
    image(path, SIZE >> 20, tree);
    // Hard disk footer format: "Virtual Hard Disk Image Format Specification", Microsoft 2006. Big-endian.
    let mut footer = [0; 512];
    let fields: [(usize, &[u8]); 8] = [
        (0, b"conectix"),
        (8, &2_u32.to_be_bytes()),
        (12, &0x0001_0000_u32.to_be_bytes()),
        (16, &u64::MAX.to_be_bytes()),
        (28, b"xyz\0"),
        (40, &SIZE.to_be_bytes()),
        (48, &SIZE.to_be_bytes()),
        (60, &2_u32.to_be_bytes()),
    ];
    for (at, bytes) in fields {
        footer[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let sum = !footer.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
    File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.write_all_at(&footer, SIZE))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// A `sandbox.vhdx` of 1 MiB blocks with what is in `tree` (`upper/` and `work/` at its root, or nothing before the first
/// mount), and a whiteout at each path of `whiteouts`.
///
/// # Panics
/// If `mke2fs`, `debugfs` or `qemu-img` fails.
pub fn original_sandbox(path: &Path, tree: &Path, whiteouts: &[&str]) {
    let raw = path.with_extension("raw");
    image(&raw, 64, tree);
    for whiteout in whiteouts {
        let (dir, name) = whiteout.rsplit_once('/').unwrap_or(("/", whiteout));
        let script = path.with_extension("debugfs");
        std::fs::write(&script, format!("cd {dir}\nmknod {name} c 0 0\n"))
            .unwrap_or_else(|e| panic!("{}: {e}", script.display()));
        let words = [OsStr::new("-w"), OsStr::new("-f"), script.as_os_str()];
        run("debugfs", words.into_iter().chain([raw.as_os_str()]));
        std::fs::remove_file(&script).unwrap_or_else(|e| panic!("{}: {e}", script.display()));
    }
    let options = [
        "convert",
        "-f",
        "raw",
        "-O",
        "vhdx",
        "-o",
        "subformat=dynamic,block_size=1M",
    ];
    let files = [raw.as_os_str(), path.as_os_str()];
    run("qemu-img", options.iter().map(OsStr::new).chain(files));
    std::fs::remove_file(&raw).unwrap_or_else(|e| panic!("{}: {e}", raw.display()));
}
