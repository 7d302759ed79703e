//! What can go wrong with a utility VM.

use lcow_protocol::{FrameError, HandshakeError, RemoteError};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An error of this crate. Its text says what failed and on what; [`UvmError::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UvmError {
    /// The program that runs virtual machines is not installed.
    #[error("{program} is not installed (looked in PATH: {path})")]
    NoVmm {
        /// Its name.
        program: &'static str,
        /// The search path.
        path: String,
    },
    /// No kernel can be used.
    #[error("no kernel for the utility VM{}", reasons(.rejected))]
    NoKernel {
        /// Kernels that were looked at, with what is wrong with each.
        rejected: Vec<(PathBuf, String)>,
    },
    /// A kernel is there, and this user may not read it.
    #[error("the kernel {} can't be read", path.display())]
    KernelUnreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel's modules lack some that the utility VM needs.
    #[error("the kernel {} has no modules {} (looked in {})", kernel.display(), missing.join(", "), modules.display())]
    ModulesMissing {
        /// The kernel.
        kernel: PathBuf,
        /// Where its modules should be.
        modules: PathBuf,
        /// Names of modules that are neither there nor built in.
        missing: Vec<String>,
    },
    /// A file of the kernel package is not what it should be.
    #[error("{} is not a usable {what}: {detail}", path.display())]
    BadBootFile {
        /// `kernel`, `module`…
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// An option has a value that can't work.
    #[error("utility VM option {option}: {detail}")]
    BadOption {
        /// Its name.
        option: &'static str,
        /// What is wrong with its value.
        detail: String,
    },
    /// A disk's file is damaged.
    #[error("a VHDX is damaged {when}: {detail}")]
    DamagedDisk {
        /// When that was found: before the disk was attached, or after it was detached.
        when: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The virtual machine monitor refused a command.
    #[error("the virtual machine monitor could not {operation}: {detail}")]
    Vmm {
        /// What it was asked.
        operation: String,
        /// Its answer.
        detail: String,
    },
    /// The machine is gone, by itself or because it was killed.
    #[error("the utility VM is gone ({status})")]
    Gone {
        /// How it ended.
        status: String,
    },
    /// Something took longer than it may.
    #[error("{operation} took longer than {} s", after.as_secs_f32())]
    TimedOut {
        /// What.
        operation: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The agent refused, or failed.
    #[error("in the utility VM: {0}")]
    Guest(#[source] RemoteError),
    /// The other end of the port is not our agent.
    #[error("handshake with the utility VM")]
    Handshake(#[from] HandshakeError),
    /// The agent sent what no agent sends.
    #[error("the utility VM broke the protocol: {detail}")]
    Protocol {
        /// What it did.
        detail: String,
        /// The frame's fault, if it was one.
        #[source]
        source: Option<FrameError>,
    },
    /// A disk, union or process that this machine does not have.
    #[error("{operation}: the utility VM has no {what}")]
    Unknown {
        /// What was asked.
        operation: &'static str,
        /// What is missing.
        what: String,
    },
    /// A system call on the host.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Several things failed, one after the other.
    #[error("{first}; and then: {}", list(.rest))]
    Several {
        /// The first.
        #[source]
        first: Box<UvmError>,
        /// The others, in order.
        rest: Vec<UvmError>,
    },
    /// Another error, with a directory that holds what is known about it: console, agent and kernel logs, the monitor's
    /// trace, its command line and exit status.
    #[error("{source} (diagnostics: {})", bundle.display())]
    Diagnosed {
        /// The error.
        source: Box<UvmError>,
        /// The directory.
        bundle: PathBuf,
    },
}

fn reasons(rejected: &[(PathBuf, String)]) -> String {
    rejected.iter().fold(String::new(), |text, (path, why)| {
        format!("{text}; {}: {why}", path.display())
    })
}

fn list(errors: &[UvmError]) -> String {
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

impl UvmError {
    /// This error, with those that followed it.
    pub(crate) fn followed_by(self, rest: Vec<Self>) -> Self {
        if rest.is_empty() {
            return self;
        }
        Self::Several {
            first: Box::new(self),
            rest,
        }
    }

    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }

    pub(crate) fn protocol(detail: impl Into<String>) -> Self {
        Self::Protocol {
            detail: detail.into(),
            source: None,
        }
    }

    /// The error itself, without the wrapping that names its diagnostics.
    #[must_use]
    pub fn cause(&self) -> &Self {
        match self {
            Self::Diagnosed { source, .. } => source.cause(),
            Self::Several { first, .. } => first.cause(),
            other => other,
        }
    }

    /// The directory with diagnostics, if there is one.
    #[must_use]
    pub fn bundle(&self) -> Option<&std::path::Path> {
        match self {
            Self::Diagnosed { bundle, .. } => Some(bundle),
            Self::Several { first, .. } => first.bundle(),
            _ => None,
        }
    }

    /// The agent's error, if it is one.
    #[must_use]
    pub fn remote(&self) -> Option<&RemoteError> {
        match self.cause() {
            Self::Guest(error) => Some(error),
            _ => None,
        }
    }

    /// What a shell would exit with: 127 for a command that does not exist, 126 for one that can't be executed.
    #[must_use]
    pub fn shell_exit_code(&self) -> Option<i32> {
        self.remote().and_then(RemoteError::shell_exit_code)
    }

    /// What the user can do about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self.cause() {
            Self::NoVmm { .. } => Some(
                "install QEMU: `apt install qemu-system-x86` (Debian, Ubuntu) or `dnf install qemu-system-x86-core` (Fedora)",
            ),
            Self::NoKernel { .. } | Self::ModulesMissing { .. } => Some(
                "install a kernel with its modules: `apt install linux-image-cloud-amd64` (Debian), `apt install \
                 linux-image-virtual` (Ubuntu) or `dnf install kernel-core kernel-modules-core` (Fedora); or name one with \
                 lcow.kernel",
            ),
            Self::KernelUnreadable { .. } => Some(
                "make the kernel readable (`chmod a+r`), copy it to where you can read it and name it with lcow.kernel, or \
                 install one that everyone may read: `apt install linux-image-cloud-amd64` (Debian) or `dnf install \
                 kernel-core` (Fedora)",
            ),
            _ => None,
        }
    }

    /// Whether a bundle of diagnostics helps: not for what the caller asked wrongly, nor where no machine ran.
    pub(crate) fn wants_bundle(&self) -> bool {
        use lcow_protocol::ErrorKind;
        match self {
            Self::Guest(error) => !matches!(
                error.kind,
                ErrorKind::CommandNotFound
                    | ErrorKind::CommandNotExecutable
                    | ErrorKind::NoSuchUser
                    | ErrorKind::Refused
            ),
            Self::Vmm { .. }
            | Self::Gone { .. }
            | Self::TimedOut { .. }
            | Self::Handshake(_)
            | Self::Protocol { .. } => true,
            _ => false,
        }
    }
}
