//! An error that happened in the guest.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What sort of thing went wrong, where the errno alone does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A system call failed; the errno says how.
    System,
    /// The request names something the agent does not have, or that is in the wrong state.
    Refused,
    /// The disk, device or file exists, and is not what it should be.
    Corrupt,
    /// Something holds what was to be taken away.
    Busy,
    /// The deadline of the request passed.
    TimedOut,
    /// The command does not exist: a shell's exit code 127.
    CommandNotFound,
    /// The command exists and can't be executed: a shell's exit code 126.
    CommandNotExecutable,
    /// The user or group to run as does not exist in the container.
    NoSuchUser,
    /// A fault in the agent itself.
    Internal,
}

/// An error carried across the virtual machine's boundary: errno, operation and path unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteError {
    /// What sort.
    pub kind: ErrorKind,
    /// Linux errno, or 0 where no system call failed.
    pub errno: i32,
    /// What was being done: `mount`, `exec`, `open device`…
    pub operation: String,
    /// The path it was done to, in the guest; raw bytes.
    pub path: Option<Vec<u8>>,
    /// Anything more that a person can use; may be empty.
    pub detail: String,
}

impl RemoteError {
    /// An error of `kind` in `operation`.
    #[must_use]
    pub fn new(kind: ErrorKind, operation: impl Into<String>) -> Self {
        Self {
            kind,
            errno: 0,
            operation: operation.into(),
            path: None,
            detail: String::new(),
        }
    }

    /// A failed system call.
    #[must_use]
    pub fn system(operation: impl Into<String>, errno: i32) -> Self {
        Self {
            errno,
            ..Self::new(ErrorKind::System, operation)
        }
    }

    /// Adds the path.
    #[must_use]
    pub fn at(mut self, path: impl Into<Vec<u8>>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// Adds words for people.
    #[must_use]
    pub fn because(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// The exit code a shell gives for a command that could not be started: 127 for one that does not exist, 126 for one that
    /// can't be executed, and nothing for any other error.
    #[must_use]
    pub fn shell_exit_code(&self) -> Option<i32> {
        match self.kind {
            ErrorKind::CommandNotFound => Some(127),
            ErrorKind::CommandNotExecutable => Some(126),
            _ => None,
        }
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation)?;
        if let Some(path) = &self.path {
            write!(f, " {}", String::from_utf8_lossy(path))?;
        }
        match self.kind {
            ErrorKind::System if self.errno != 0 => {
                // The standard library's text for an errno; its "(os error N)" tail is what names the number.
                write!(f, ": {}", std::io::Error::from_raw_os_error(self.errno))?;
            }
            ErrorKind::System => write!(f, ": failed")?,
            ErrorKind::Refused => write!(f, ": refused")?,
            ErrorKind::Corrupt => write!(f, ": not what it should be")?,
            ErrorKind::Busy => write!(f, ": in use")?,
            ErrorKind::TimedOut => write!(f, ": deadline passed")?,
            ErrorKind::CommandNotFound => write!(f, ": command not found")?,
            ErrorKind::CommandNotExecutable => write!(f, ": command can't be executed")?,
            ErrorKind::NoSuchUser => write!(f, ": no such user or group")?,
            ErrorKind::Internal => write!(f, ": fault in the guest agent")?,
        }
        if self.errno != 0 && self.kind != ErrorKind::System {
            write!(f, " ({})", std::io::Error::from_raw_os_error(self.errno))?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for RemoteError {}
