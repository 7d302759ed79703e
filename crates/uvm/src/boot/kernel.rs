//! Finding a kernel, and making it one that QEMU boots fast.
//!
//! A distribution's kernel is a bzImage (Documentation/arch/x86/boot.rst): real-mode setup code, then a compressed ELF. QEMU
//! enters an uncompressed ELF directly through its PVH note (Xen's `elfnote.h`), which spares the guest the decompression, so
//! that is what is cached. A bzImage whose ELF can't be had, or has no such note, is booted as it is.

use super::{Key, cached, modules};
use crate::{MachineConfig, UvmError};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// Largest kernel taken, in bytes, compressed or not.
const KERNEL_LIMIT: u64 = 256 << 20;

/// Offsets in a bzImage.
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const BOOT_VERSION: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The boot protocol that brought the payload fields.
const PAYLOAD_VERSION: u16 = 0x0208;

/// Type of the PVH entry's note, and its owner's name.
const PHYS32_ENTRY: u32 = 18;
const XEN: &[u8] = b"Xen\0";

/// A kernel's file, open.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) path: PathBuf,
    file: File,
}

/// Opens a kernel, telling one that can't be read from one that is not there.
pub(super) fn open_kernel(path: &Path) -> Result<Kernel, UvmError> {
    match File::open(path) {
        Ok(file) => Ok(Kernel {
            path: path.to_owned(),
            file,
        }),
        Err(source) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(UvmError::KernelUnreadable {
                path: path.to_owned(),
                source,
            })
        }
        Err(source) => Err(UvmError::io("open kernel", path)(source)),
    }
}

/// A kernel the user named, with the modules of its release.
pub(super) fn with_modules(
    path: &Path,
    config: &MachineConfig,
) -> Result<(Kernel, Vec<PathBuf>), UvmError> {
    let mut kernel = open_kernel(path)?;
    let release = kernel.release()?;
    let dir = config.modules_dir.join(&release);
    match modules::resolve(&dir) {
        Ok(found) => Ok((kernel, found)),
        Err(missing) => Err(UvmError::ModulesMissing {
            kernel: path.to_owned(),
            modules: dir,
            missing,
        }),
    }
}

/// The newest kernel that can be read and has what is needed.
pub(super) fn newest(config: &MachineConfig) -> Result<(Kernel, Vec<PathBuf>), UvmError> {
    let mut candidates: Vec<(String, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(&config.boot_dir)
        .into_iter()
        .flatten()
        .flatten()
    {
        if let Some(release) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix("vmlinuz-"))
        {
            candidates.push((release.to_owned(), entry.path()));
        }
    }
    // Fedora and others keep it beside its modules, and copy it to /boot for the boot loader.
    for entry in std::fs::read_dir(&config.modules_dir)
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path().join("vmlinuz");
        if let (Ok(release), true) = (entry.file_name().into_string(), path.is_file()) {
            candidates.push((release, path));
        }
    }
    candidates.sort_by_key(|(name, _)| std::cmp::Reverse(version_key(name)));
    let mut rejected = Vec::new();
    let mut unreadable = None;
    for (release, path) in candidates {
        let dir = config.modules_dir.join(&release);
        match (modules::resolve(&dir), open_kernel(&path)) {
            (Ok(found), Ok(kernel)) => return Ok((kernel, found)),
            (Ok(_), Err(error)) => {
                rejected.push((path, error.to_string()));
                unreadable.get_or_insert(error);
            }
            (Err(missing), _) => {
                rejected.push((
                    path,
                    format!("no modules {} in {}", missing.join(", "), dir.display()),
                ));
            }
        }
    }
    match unreadable {
        // It would do if it could be read: that is what to tell.
        Some(error @ UvmError::KernelUnreadable { .. }) => Err(error),
        _ => {
            if rejected.is_empty() {
                rejected.push((config.boot_dir.clone(), "no vmlinuz-* there".into()));
            }
            Err(UvmError::NoKernel { rejected })
        }
    }
}

/// Sorts releases as people do: numbers by value, the rest by bytes.
fn version_key(release: &str) -> Vec<(u64, String)> {
    let mut key = Vec::new();
    for piece in release.split(['.', '-', '+', '~', '_']) {
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        key.push((
            piece[..digits].parse().unwrap_or(0),
            piece[digits..].to_owned(),
        ));
    }
    key
}

impl Kernel {
    fn bytes(&mut self) -> Result<Vec<u8>, UvmError> {
        let failed = |error| UvmError::io("read", &self.path)(error);
        let mut bytes = Vec::new();
        (&self.file).rewind().map_err(failed)?;
        (&self.file)
            .take(KERNEL_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        (&self.file).rewind().map_err(failed)?;
        Ok(bytes)
    }

    fn bad(&self, detail: impl Into<String>) -> UvmError {
        UvmError::BadBootFile {
            what: "kernel",
            path: self.path.clone(),
            detail: detail.into(),
        }
    }

    /// The release, as in `uname -r`: from the image itself, or from the file's name.
    fn release(&mut self) -> Result<String, UvmError> {
        let bytes = self.bytes()?;
        if let Some(release) = bz_release(&bytes) {
            return Ok(release);
        }
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        match name.split_once('-') {
            Some((_, release)) if bytes.starts_with(b"\x7fELF") => Ok(release.to_owned()),
            _ => Err(self.bad(
                "its release can't be told: neither a bzImage, nor an ELF named vmlinux-<release>",
            )),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u64::from_le_bytes)
}

fn is_bzimage(bytes: &[u8]) -> bool {
    u16_at(bytes, BOOT_FLAG) == Some(0xaa55)
        && bytes.get(HEADER_MAGIC..HEADER_MAGIC + 4) == Some(b"HdrS")
}

fn bz_release(bytes: &[u8]) -> Option<String> {
    if !is_bzimage(bytes) {
        return None;
    }
    let at = usize::from(u16_at(bytes, KERNEL_VERSION)?).checked_add(0x200)?;
    let text = bytes.get(at..)?;
    let end = text
        .iter()
        .take(128)
        .position(|byte| matches!(byte, b' ' | 0))?;
    String::from_utf8(text[..end].to_vec())
        .ok()
        .filter(|text| !text.is_empty() && !text.contains('/'))
}

/// The compressed kernel inside a bzImage.
fn payload(bytes: &[u8]) -> Option<&[u8]> {
    if !is_bzimage(bytes) || u16_at(bytes, BOOT_VERSION)? < PAYLOAD_VERSION {
        return None;
    }
    // Zero means four sectors of setup, for old images; then one boot sector.
    let setup = match *bytes.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup + 1) * 512 + usize::try_from(u32_at(bytes, PAYLOAD_OFFSET)?).ok()?;
    let len = usize::try_from(u32_at(bytes, PAYLOAD_LENGTH)?).ok()?;
    bytes.get(start..start.checked_add(len)?)
}

/// Decompresses a payload by its magic (`scripts/extract-vmlinux` in Linux); none if it is of a kind this program lacks.
fn decompress(payload: &[u8]) -> Option<std::io::Result<Vec<u8>>> {
    let read = |reader: &mut dyn Read| {
        let mut bytes = Vec::new();
        let mut limited = reader.take(KERNEL_LIMIT);
        let mut buffer = vec![0; 1 << 16];
        loop {
            match limited.read(&mut buffer) {
                Ok(0) => return Ok(bytes),
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                // The build appends the size to the compressed stream: what follows its end is not another stream.
                Err(_) if bytes.starts_with(b"\x7fELF") => return Ok(bytes),
                Err(error) => return Err(error),
            }
        }
    };
    Some(match payload {
        [0x1f, 0x8b, ..] => read(&mut flate2::read::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read(&mut liblzma::read::XzDecoder::new(payload)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => match zstd::stream::read::Decoder::new(payload) {
            Ok(decoder) => read(&mut decoder.single_frame()),
            Err(error) => Err(error),
        },
        [b'B', b'Z', b'h', ..] => read(&mut bzip2::read::BzDecoder::new(payload)),
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => unlz4_legacy(rest),
        _ => return None,
    })
}

/// LZ4's legacy frame, after its magic: blocks of at most 8 MiB, each with its compressed size before it
/// (LZ4 frame format, "Legacy frame").
fn unlz4_legacy(mut rest: &[u8]) -> std::io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let invalid = |error: lz4_flex::block::DecompressError| {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    };
    let mut out = Vec::new();
    while let Some(len) = u32_at(rest, 0).and_then(|len| usize::try_from(len).ok()) {
        // The last four bytes are the uncompressed size, appended by the kernel's build: no block follows them.
        let Some(block) = rest.get(4..).and_then(|rest| rest.get(..len)) else {
            break;
        };
        if len == 0 {
            break;
        }
        out.extend(lz4_flex::block::decompress(block, BLOCK).map_err(invalid)?);
        if out.len() as u64 > KERNEL_LIMIT {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        rest = &rest[4 + len..];
    }
    Ok(out)
}

/// Whether an x86-64 ELF has the note with the PVH entry point.
fn has_pvh_entry(elf: &[u8]) -> Option<bool> {
    const PT_NOTE: u32 = 4;
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return Some(false);
    }
    let table = usize::try_from(u64_at(elf, 0x20)?).ok()?;
    let (size, count) = (
        usize::from(u16_at(elf, 0x36)?),
        usize::from(u16_at(elf, 0x38)?),
    );
    for index in 0..count {
        let header = elf.get(table.checked_add(index.checked_mul(size)?)?..)?;
        if u32_at(header, 0)? != PT_NOTE {
            continue;
        }
        let start = usize::try_from(u64_at(header, 8)?).ok()?;
        let len = usize::try_from(u64_at(header, 32)?).ok()?;
        let mut notes = elf.get(start..start.checked_add(len)?)?;
        while let (Some(name), Some(data), Some(kind)) =
            (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
        {
            let padded = |n: u32| usize::try_from(n).ok()?.checked_next_multiple_of(4);
            let (name_len, data_len) = (padded(name)?, padded(data)?);
            if kind == PHYS32_ENTRY && notes.get(12..)?.starts_with(XEN) {
                return Some(true);
            }
            match notes.get(12usize.checked_add(name_len)?.checked_add(data_len)?..) {
                Some(rest) => notes = rest,
                None => break,
            }
        }
    }
    Some(false)
}

/// The kernel as it is booted: its ELF if that can be had, else the image itself.
pub(super) fn bootable(mut kernel: Kernel, cache: &Path) -> Result<File, UvmError> {
    let mut key = Key::new(b"kernel");
    key.add_file(&kernel.path)?;
    let name = key.name("kernel");
    // An empty file remembers that there is nothing to extract.
    if let Ok(file) = File::open(cache.join(&name)) {
        let empty = file
            .metadata()
            .map_err(UvmError::io("look at", cache.join(&name)))?
            .len()
            == 0;
        return Ok(if empty { kernel.file } else { file });
    }
    let bytes = kernel.bytes()?;
    if bytes.starts_with(b"\x7fELF") {
        return match has_pvh_entry(&bytes) {
            Some(true) => Ok(kernel.file),
            _ => Err(kernel.bad("an ELF without a PVH entry; use its bzImage")),
        };
    }
    if !is_bzimage(&bytes) {
        return Err(kernel.bad("neither a bzImage nor an ELF"));
    }
    let elf = match payload(&bytes).and_then(decompress) {
        Some(Ok(elf)) if has_pvh_entry(&elf) == Some(true) => elf,
        Some(Err(error)) => {
            return Err(kernel.bad(format!("its payload does not decompress: {error}")));
        }
        _ => Vec::new(),
    };
    let file = cached(cache, "kernel", &key, |out| {
        out.write_all(&elf)
            .map_err(UvmError::io("write", cache.join(&name)))
    })?;
    Ok(if elf.is_empty() { kernel.file } else { file })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn bzimage(release: &str, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[SETUP_SECTORS] = 1;
        bytes[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&0xaa55_u16.to_le_bytes());
        bytes[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        bytes[BOOT_VERSION..BOOT_VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        bytes[KERNEL_VERSION..KERNEL_VERSION + 2].copy_from_slice(&0x100_u16.to_le_bytes());
        let text = format!("{release} (someone) #1");
        bytes[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        bytes[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let len = u32::try_from(payload.len()).unwrap();
        bytes[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&len.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend_from_slice(payload);
        bytes
    }

    /// A minimal ELF with one note segment.
    fn elf(note_type: u32) -> Vec<u8> {
        let mut bytes = vec![0; 0x40 + 0x38];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[0x20] = 0x40;
        bytes[0x36] = 0x38;
        bytes[0x38] = 1;
        bytes[0x40] = 4;
        bytes[0x48] = 0x78;
        bytes[0x60] = 20;
        for word in [4, 4, note_type] {
            bytes.extend(u32::to_le_bytes(word));
        }
        bytes.extend(XEN);
        bytes.extend([0; 4]);
        bytes
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let block = lz4_flex::block::compress(bytes);
        let mut out = vec![0x02, 0x21, 0x4c, 0x18];
        out.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
        out.extend(block);
        out.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
        out
    }

    fn config(dir: &Path) -> MachineConfig {
        MachineConfig {
            boot_dir: dir.join("boot"),
            modules_dir: dir.join("modules"),
            ..MachineConfig::new(dir.join("state"))
        }
    }

    fn install(dir: &Path, release: &str, with_modules: bool) {
        std::fs::create_dir_all(dir.join("boot")).unwrap();
        std::fs::write(
            dir.join("boot").join(format!("vmlinuz-{release}")),
            bzimage(release, &[]),
        )
        .unwrap();
        let modules = dir.join("modules").join(release);
        std::fs::create_dir_all(&modules).unwrap();
        if with_modules {
            let builtin = "virtio_pci virtio_console virtio_scsi sd_mod ext4 overlay"
                .split(' ')
                .map(|name| format!("kernel/{name}.ko\n"))
                .collect::<String>();
            std::fs::write(modules.join("modules.builtin"), builtin).unwrap();
        }
    }

    #[test]
    fn every_compression_gives_the_elf_back() {
        let elf = elf(PHYS32_ENTRY);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&elf).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&elf).unwrap();
        let mut zst = zstd::encode_all(elf.as_slice(), 1).unwrap();
        zst.extend([1, 2, 3, 4]);
        let payloads = [gz.finish().unwrap(), xz.finish().unwrap(), zst, lz4(&elf)];
        for payload_bytes in payloads {
            let image = bzimage("6.1", &payload_bytes);
            let got = decompress(payload(&image).unwrap()).unwrap().unwrap();
            assert_eq!(got, elf, "{:02x?}", &payload_bytes[..4]);
        }
        assert!(decompress(b"\x89LZO").is_none());
    }

    #[test]
    fn the_pvh_note_decides() {
        assert_eq!(has_pvh_entry(&elf(PHYS32_ENTRY)), Some(true));
        assert_eq!(has_pvh_entry(&elf(7)), Some(false));
        assert_eq!(has_pvh_entry(b"MZ"), Some(false));
        let whole = elf(PHYS32_ENTRY);
        for len in 0..whole.len() {
            // Cut anywhere: an answer or none, never a panic.
            let _ = has_pvh_entry(&whole[..len]);
        }
    }

    #[test]
    fn a_bzimage_is_unpacked_once_and_one_without_pvh_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path();
        let path = dir.path().join("vmlinuz");
        for (note, unpacked) in [(PHYS32_ENTRY, true), (7, false)] {
            std::fs::write(&path, bzimage("6.1", &lz4(&elf(note)))).unwrap();
            // A later version of the same file must not be taken for the earlier one.
            let later =
                std::time::SystemTime::now() + std::time::Duration::from_secs(u64::from(note));
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(later)
                .unwrap();
            for _ in 0..2 {
                let mut first = [0; 4];
                bootable(open_kernel(&path).unwrap(), cache)
                    .unwrap()
                    .read_exact(&mut first)
                    .unwrap();
                assert_eq!(&first == b"\x7fELF", unpacked, "note {note}");
            }
        }
        assert_eq!(
            std::fs::read_dir(cache).unwrap().count(),
            3,
            "the kernel and two cached files"
        );
    }

    #[test]
    fn the_newest_kernel_that_has_its_modules_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        for (release, with_modules) in [
            ("6.1.0-9-cloud", true),
            ("6.1.0-56-cloud", true),
            ("6.12.1", false),
        ] {
            install(dir.path(), release, with_modules);
        }
        let (mut kernel, modules) = newest(&config(dir.path())).unwrap();
        assert!(kernel.path.ends_with("vmlinuz-6.1.0-56-cloud"));
        assert_eq!(kernel.release().unwrap(), "6.1.0-56-cloud");
        assert!(modules.is_empty());
        let named = dir.path().join("boot/vmlinuz-6.12.1");
        let error = with_modules(&named, &config(dir.path())).unwrap_err();
        assert!(
            matches!(&error, UvmError::ModulesMissing { missing, .. } if missing.len() == 6),
            "{error}"
        );
    }

    #[test]
    fn no_kernel_says_where_it_was_looked_for_and_what_to_install() {
        let dir = tempfile::tempdir().unwrap();
        let error = newest(&config(dir.path())).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&dir.path().join("boot").display().to_string()),
            "{error}"
        );
        let hint = error.hint().unwrap();
        assert!(hint.contains("linux-image-cloud-amd64") && hint.contains("kernel-core"));
        install(dir.path(), "6.12.1", false);
        let error = newest(&config(dir.path())).unwrap_err();
        assert!(error.to_string().contains("virtio_scsi"), "{error}");
    }
}
