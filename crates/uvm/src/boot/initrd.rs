//! The initrd: a cpio archive in the kernel's "newc" form (Documentation/driver-api/early-userspace/buffer-format.rst), with
//! the agent as `/init`, the modules as `/modules/NN-name.ko` and their order in `/modules/order`.

use super::modules;
use crate::UvmError;
use cpio::newc::{Builder, ModeFileType, trailer};
use std::io::Write;
use std::path::PathBuf;

/// Writes it. Same inputs, same bytes: inode numbers count up, times are zero.
pub(super) fn write(out: &mut dyn Write, agent: &[u8], paths: &[PathBuf]) -> Result<(), UvmError> {
    let failed = |error| UvmError::io("write", "initrd")(error);
    let mut number = 0;
    let mut entry =
        |out: &mut dyn Write, name: &str, kind: ModeFileType, mode: u32, bytes: &[u8]| {
            number += 1;
            let size = u32::try_from(bytes.len()).map_err(|_| {
                failed(std::io::Error::new(
                    std::io::ErrorKind::FileTooLarge,
                    name.to_owned(),
                ))
            })?;
            let mut file = Builder::new(name)
                .ino(number)
                .nlink(1)
                .mode(mode)
                .set_mode_file_type(kind)
                .write(out, size);
            file.write_all(bytes)
                .and_then(|()| file.finish().map(drop))
                .map_err(failed)
        };
    entry(out, "init", ModeFileType::Regular, 0o755, agent)?;
    entry(out, "modules", ModeFileType::Directory, 0o755, b"")?;
    let mut order = String::new();
    for (index, path) in paths.iter().enumerate() {
        let bytes = modules::load(path)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = file.split(".ko").next().unwrap_or_default();
        let name = format!("{index:02}-{stem}.ko");
        order.push_str(&name);
        order.push('\n');
        entry(
            out,
            &format!("modules/{name}"),
            ModeFileType::Regular,
            0o644,
            &bytes,
        )?;
    }
    entry(
        out,
        "modules/order",
        ModeFileType::Regular,
        0o644,
        order.as_bytes(),
    )?;
    trailer(out).map(drop).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_archive_holds_the_agent_the_modules_and_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("b.ko"), dir.path().join("a.ko")];
        for path in &paths {
            std::fs::write(path, b"\x7fELF").unwrap();
        }
        let make = || {
            let mut bytes = Vec::new();
            write(&mut bytes, b"agent", &paths).unwrap();
            bytes
        };
        let bytes = make();
        assert_eq!(bytes, make(), "not the same bytes again");
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            found.push((
                reader.entry().name().to_owned(),
                reader.entry().mode(),
                content,
            ));
            rest = reader.finish().unwrap();
        }
        let expected: [(&str, u32, &[u8]); 5] = [
            ("init", 0o100_755, b"agent"),
            ("modules", 0o040_755, b""),
            ("modules/00-b.ko", 0o100_644, b"\x7fELF"),
            ("modules/01-a.ko", 0o100_644, b"\x7fELF"),
            ("modules/order", 0o100_644, b"00-b.ko\n01-a.ko\n"),
        ];
        assert_eq!(
            found,
            expected.map(|(name, mode, bytes)| (name.to_owned(), mode, bytes.to_vec()))
        );
    }
}
