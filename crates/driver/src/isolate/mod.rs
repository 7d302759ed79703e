//! Converting tars in a process of their own.
//!
//! A tar may come from anywhere, and reading it means decompressing and parsing it. So a child process does that: this
//! program again, started under another name, with five descriptors (the tar, the disk, the re-emission data, the report,
//! and an error stream) and nothing else: no privileges, no way to gain any, and bounded resources. It never opens a file.
//!
//! ```text
//!  parent                                   child (nobody, no groups, no_new_privs, rlimits)
//!  tar bytes ──────────── 0 ───────────────► decompress, parse, write
//!  layer.vhd (half made) ─ 3 ──────────────►
//!  diff.split.zst ──────── 4 ──────────────►
//!            ◄──────────── 5 ─────────────── report: what came of it, or the error
//! ```
//!
//! The program takes part by calling [`child_main_if_asked`] first thing in `main`. A library user who does not, and whoever
//! sets `LCOW_NO_REEXEC=1`, gets the conversion in their own process.

mod child;
mod parent;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lcow_blockio::WriteAt;
use lcow_layer::apply::{ApplyError, ApplyOptions, Salt, apply};
use lcow_layer::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::cancel::{Cancel, Stoppable};
use crate::error::{ConvertError, DriverError, ErrorKind, chain};
use crate::store::Input;
use crate::vfs::{Handle, Sequential};

/// Set to `1`, this makes tars be converted in the same process.
pub const NO_REEXEC_VARIABLE: &str = "LCOW_NO_REEXEC";

/// The variable through which the child gets its task.
const TASK_VARIABLE: &str = "LCOW_CONVERT_TASK";

const DISK_FD: i32 = 3;
const SPLIT_FD: i32 = 4;
const REPORT_FD: i32 = 5;

static HOOKED: AtomicBool = AtomicBool::new(false);

/// Where tars are converted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Isolation {
    /// In a child process if the program calls [`child_main_if_asked`] and `LCOW_NO_REEXEC` does not forbid it, else in the
    /// same process.
    #[default]
    Auto,
    /// In the same process.
    InProcess,
    /// In a child process: this program, which must call [`child_main_if_asked`].
    Command {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<OsString>,
    },
}

/// Converts a tar and exits, if this process was started for that; otherwise returns at once, and the program is known to
/// take part. Call it first thing in `main`, before any thread is started.
pub fn child_main_if_asked() {
    HOOKED.store(true, Ordering::Relaxed);
    if let Some(task) = std::env::var_os(TASK_VARIABLE) {
        std::process::exit(child::main(&task));
    }
}

/// What the child is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) overlay: bool,
    pub(crate) max_size: u64,
    pub(crate) verity: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) diff_id: Digest,
    pub(crate) tar_size: u64,
    pub(crate) entries: u64,
    pub(crate) disk_size: u64,
    pub(crate) verity_root: Option<String>,
    pub(crate) compressed: Option<(Digest, u64)>,
}

/// What the child reports.
type Report = Result<Done, ConvertError>;

/// Makes a tar into a disk and its re-emission data, wherever that is to be done.
pub(crate) fn convert(
    isolation: &Isolation,
    task: &Task,
    input: Input<'_>,
    disk: &Handle,
    split: &Handle,
    cancel: &Cancel,
) -> Result<Done, DriverError> {
    let forbidden = std::env::var_os(NO_REEXEC_VARIABLE).is_some_and(|v| v == "1");
    let (Some(disk_file), Some(split_file)) = (disk.as_file(), split.as_file()) else {
        return in_process(task, input, disk, split, cancel);
    };
    let (program, arguments) = match isolation {
        Isolation::Command { program, arguments } if !forbidden => {
            (program.clone(), arguments.clone())
        }
        Isolation::Auto if HOOKED.load(Ordering::Relaxed) && !forbidden => {
            // Not the path of the program: that may have been replaced by another version since.
            (PathBuf::from("/proc/self/exe"), Vec::new())
        }
        _ => return in_process(task, input, disk, split, cancel),
    };
    parent::run(
        &program, &arguments, task, input, disk_file, split_file, cancel,
    )
}

fn in_process(
    task: &Task,
    input: Input<'_>,
    disk: &Handle,
    split: &Handle,
    cancel: &Cancel,
) -> Result<Done, DriverError> {
    let split = Sequential::new(Arc::clone(split));
    let result = match input {
        Input::File(file) => convert_here(task, Stoppable::new(file, cancel), disk, split),
        Input::Reader(reader) => convert_here(task, Stoppable::new(reader, cancel), disk, split),
    };
    cancel.check()?;
    result.map_err(DriverError::Convert)
}

/// The conversion itself, in whichever process.
fn convert_here(
    task: &Task,
    input: impl Read + Send,
    disk: impl WriteAt,
    split: impl Write,
) -> Report {
    let options = ApplyOptions {
        overlay: task.overlay,
        max_size: task.max_size,
        vhd: true,
        verity: task.verity.then_some(Salt::Derived),
        ..ApplyOptions::default()
    };
    let io = |operation: &str| {
        let operation = operation.to_owned();
        move |e: std::io::Error| ConvertError {
            kind: crate::error::io_kind(&e),
            message: format!("{operation}: {e}"),
        }
    };
    let mut split = std::io::BufWriter::with_capacity(256 << 10, split);
    let applied = apply(input, disk, Some(&mut split), &options).map_err(|e| record(&e))?;
    split.flush().map_err(io("writing the re-emission data"))?;
    Ok(Done {
        diff_id: applied.diff_id,
        tar_size: applied.tar_size,
        entries: applied.entries,
        disk_size: applied.disk_size,
        verity_root: applied.verity_root.map(|root| root.to_string()),
        compressed: applied
            .compressed
            .filter(|c| c.format != lcow_layer::compress::Compression::None)
            .map(|c| (c.digest, c.size)),
    })
}

fn record(error: &ApplyError) -> ConvertError {
    let mut kind = crate::store::layer_kind(error.kind());
    // The operating system's error is somewhere down the causes; a full disk is told apart from other failures.
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(e) = e.downcast_ref::<std::io::Error>()
            && crate::error::io_kind(e) == ErrorKind::DiskFull
        {
            kind = ErrorKind::DiskFull;
        }
        cause = e.source();
    }
    ConvertError {
        kind,
        message: chain(error),
    }
}
