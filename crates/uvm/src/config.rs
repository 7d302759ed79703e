//! How a machine is to be.

use std::path::PathBuf;
use std::time::Duration;

/// Which way the guest's processor is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Accel {
    /// KVM if it proves itself on this host, else emulation; see [`crate::accel`].
    #[default]
    Auto,
    /// KVM or an error.
    Kvm,
    /// Emulation. QEMU promises no isolation of the guest then: the confinement of its process is what counts.
    Tcg,
}

impl std::str::FromStr for Accel {
    type Err = crate::UvmError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(crate::UvmError::BadOption {
                option: "lcow.accel",
                detail: format!("{text:?} is none of auto, kvm, tcg"),
            }),
        }
    }
}

/// Default of [`MachineConfig::memory_mib`].
pub const DEFAULT_MEMORY_MIB: u32 = 256;
/// Default of [`MachineConfig::timeout`].
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// A utility VM's configuration. Start from [`MachineConfig::new`] and change what differs.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// Memory in MiB, 64 to 1,048,576.
    pub memory_mib: u32,
    /// Virtual processors, 1 to 64. One is fastest under emulation.
    pub cpus: u32,
    /// How the processor is made.
    pub accel: Accel,
    /// The kernel: a bzImage or an ELF with a PVH entry; none: the newest of `boot_dir` that has what is needed.
    pub kernel: Option<PathBuf>,
    /// An initrd to use as it is instead of the generated one; it must hold the agent.
    pub initrd: Option<PathBuf>,
    /// Appended to the kernel's command line.
    pub boot_parameters: String,
    /// Where boot files are cached and diagnostics are kept (`<data root>/uvm`); made if absent, 0700.
    pub state_dir: PathBuf,
    /// The longest that one operation may take.
    pub timeout: Duration,
    /// Where kernels are: `/boot`, or the environment's `LCOW_BOOT_DIR`.
    pub boot_dir: PathBuf,
    /// Where their modules are, by release: `/lib/modules`, or the environment's `LCOW_MODULES_DIR`.
    pub modules_dir: PathBuf,
}

impl MachineConfig {
    /// The defaults, keeping state in `state_dir`.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        let dir = |variable: &str, default: &str| {
            std::env::var_os(variable)
                .filter(|value| !value.is_empty())
                .map_or_else(|| PathBuf::from(default), PathBuf::from)
        };
        Self {
            memory_mib: DEFAULT_MEMORY_MIB,
            cpus: 1,
            accel: Accel::Auto,
            kernel: None,
            initrd: None,
            boot_parameters: String::new(),
            state_dir: state_dir.into(),
            timeout: DEFAULT_TIMEOUT,
            boot_dir: dir("LCOW_BOOT_DIR", "/boot"),
            modules_dir: dir("LCOW_MODULES_DIR", "/lib/modules"),
        }
    }

    pub(crate) fn check(&self) -> Result<(), crate::UvmError> {
        let bad = |option, detail: String| Err(crate::UvmError::BadOption { option, detail });
        if !(64..=1 << 20).contains(&self.memory_mib) {
            return bad(
                "lcow.memory",
                format!("{} MiB is not within 64 to 1048576", self.memory_mib),
            );
        }
        if !(1..=64).contains(&self.cpus) {
            return bad("lcow.cpus", format!("{} is not within 1 to 64", self.cpus));
        }
        if self.timeout.is_zero() {
            return bad("lcow.timeout", "zero".into());
        }
        Ok(())
    }
}
