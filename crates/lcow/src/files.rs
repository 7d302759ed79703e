//! Input and output named on the command line; `-` is standard input or output.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lcow_driver::Cancel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::NamedTempFile;

use crate::errors::hinted;
use crate::output::{self, Stdout};

/// Whether a path stands for standard input or output.
pub(crate) fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Standard input, unless it is a terminal: nobody types a tar.
pub(crate) fn stdin(what: &str, cancel: &Cancel) -> Result<Cancellable<io::Stdin>> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(hinted(
            format!("standard input is a terminal, and {what} is expected there"),
            "redirect a file or a pipe to it, or name a file",
        ));
    }
    Ok(Cancellable {
        inner: stdin,
        cancel: cancel.clone(),
    })
}

/// A reader whose waiting ends when the flag is set.
pub(crate) struct Cancellable<R> {
    inner: R,
    cancel: Cancel,
}

impl<R: Read + AsFd> Read for Cancellable<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.cancel.is_cancelled() {
                return Err(io::Error::other("cancelled"));
            }
            let mut fds = [PollFd::new(&self.inner, PollFlags::IN)];
            let pause = Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            match poll(&mut fds, Some(&pause)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                // Also when it can't be polled: reading tells.
                Ok(_) | Err(_) => return self.inner.read(buf),
            }
        }
    }
}

/// Opens a file to read, or standard input.
pub(crate) fn input(path: &Path, what: &str, cancel: &Cancel) -> Result<Box<dyn Read + Send>> {
    if is_dash(path) {
        return Ok(Box::new(stdin(what, cancel)?));
    }
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Err(hinted(
            format!("{} is a directory, and {what} is expected", path.display()),
            "",
        ));
    }
    Ok(Box::new(file))
}

/// A file under a temporary name in the directory of `path`, gone if it does not get another.
pub(crate) fn temporary(path: &Path, prefix: &str) -> Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(prefix)
        .suffix(".part")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .tempfile_in(directory(path))
        .with_context(|| format!("creating {}", path.display()))
}

/// Returns once the name of a file is on stable storage.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

/// The directory a file lies in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A file that appears under its name only when it is complete; or standard output.
pub(crate) enum Output {
    /// Under a temporary name in the same directory until it is kept.
    File(NamedTempFile, PathBuf),
    /// A device or a pipe, which can't be replaced.
    Direct(File),
    /// Standard output.
    Stdout(Stdout),
}

impl Output {
    /// Begins an output. `binary`: refuse to write it to a terminal.
    pub(crate) fn create(path: &Path, binary: bool) -> Result<Self> {
        if is_dash(path) {
            if binary && io::stdout().is_terminal() {
                return Err(hinted(
                    "standard output is a terminal, and the result is binary",
                    "redirect it, or name a file with -o",
                ));
            }
            return Ok(Self::Stdout(output::stdout()));
        }
        match std::fs::metadata(path) {
            Ok(m) if m.is_dir() => {
                return Err(hinted(
                    format!("{} is a directory", path.display()),
                    "name a file",
                ));
            }
            Ok(m) if !m.is_file() => {
                let file = File::options().write(true).open(path);
                return Ok(Self::Direct(
                    file.with_context(|| format!("opening {}", path.display()))?,
                ));
            }
            _ => {}
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let file = temporary(path, &format!(".{name}."))?;
        Ok(Self::File(file, path.to_owned()))
    }

    /// Gives the file its name; it and its name are on stable storage then.
    pub(crate) fn keep(self) -> Result<()> {
        match self {
            Self::File(file, path) => {
                let writing = || format!("writing {}", path.display());
                file.as_file().sync_all().with_context(writing)?;
                file.persist(&path)
                    .map_err(|e| e.error)
                    .with_context(writing)?;
                sync_directory(&path).with_context(writing)?;
            }
            Self::Direct(mut file) => file.flush()?,
            Self::Stdout(mut out) => out.flush()?,
        }
        Ok(())
    }

    /// Where it goes, for remarks.
    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self, Self::Stdout(_))
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file, _) => file.write(buf),
            Self::Direct(file) => file.write(buf),
            Self::Stdout(out) => out.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.flush(),
            Self::Direct(file) => file.flush(),
            Self::Stdout(out) => out.flush(),
        }
    }
}
