//! The `lcow.*` options: of the store, and of one sandbox.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::DriverError;
use crate::record::DiskFormat;

/// Bytes in a "GB" of `lcow.sandboxsize`, which means GiB, as in the original driver.
pub(crate) const GIB: u64 = 1 << 30;
/// The least size that `lcow.sandboxsize` takes, in GiB, and its default.
pub(crate) const MIN_SANDBOX_GB: u64 = 20;
/// The least size of a sandbox asked for with `size`, in bytes.
pub const MIN_SANDBOX_BYTES: u64 = 16 << 20;
/// The greatest size of a sandbox, in bytes.
pub const MAX_SANDBOX_BYTES: u64 = 16 << 40;
/// How long one operation of a utility VM may take unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
/// The environment variable that gives the timeout, in seconds, where no option does.
pub const TIMEOUT_VARIABLE: &str = "LCOW_TIMEOUT_SECONDS";

/// The beginning of the environment variables that give options: `LCOW_OPT_MEMORY` is `lcow.memory`.
pub const OPTION_VARIABLES: &str = "LCOW_OPT_";

/// Where an option was given. In the order of precedence, the least one first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In a configuration file.
    File(PathBuf),
    /// By an environment variable of that name.
    Variable(String),
    /// With the call: on the command line.
    Call,
}

impl Origin {
    fn rank(&self) -> u8 {
        match self {
            Self::File(_) => 0,
            // What holds where no option does is less than an option.
            Self::Variable(name) if name == TIMEOUT_VARIABLE => 1,
            Self::Variable(_) => 2,
            Self::Call => 3,
        }
    }
}

/// Words for the end of an error; none for an option that came with the call.
impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, " (in {})", path.display()),
            Self::Variable(name) => write!(f, " (in the variable {name})"),
            Self::Call => Ok(()),
        }
    }
}

/// An option as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key, in any case.
    pub key: String,
    /// The value.
    pub value: String,
    /// Where it was given.
    pub origin: Origin,
}

impl Setting {
    /// Takes `key=value`.
    ///
    /// # Errors
    /// [`DriverError::OptionWithoutValue`].
    pub fn parse(option: &str) -> Result<Self, DriverError> {
        match option.split_once('=') {
            Some((key, value)) => Ok(Self {
                key: key.trim().to_owned(),
                value: value.to_owned(),
                origin: Origin::Call,
            }),
            None => Err(DriverError::OptionWithoutValue {
                option: option.to_owned(),
            }),
        }
    }

    /// The options in environment variables: [`OPTION_VARIABLES`] and [`TIMEOUT_VARIABLE`].
    pub fn from_environment(
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> impl Iterator<Item = Self> {
        variables.into_iter().filter_map(|(name, value)| {
            let key = match name.strip_prefix(OPTION_VARIABLES) {
                Some(key) => format!("lcow.{}", key.to_ascii_lowercase()),
                None if name == TIMEOUT_VARIABLE => "lcow.timeout".to_owned(),
                None => return None,
            };
            Some(Self {
                key,
                value,
                origin: Origin::Variable(name),
            })
        })
    }
}

/// Which accelerator a utility VM runs under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accel {
    /// KVM where it is found to work, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What makes a layer's files visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MounterKind {
    /// A utility VM.
    #[default]
    Uvm,
    /// The host's kernel (opt-in).
    Host,
}

/// The options of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `lcow.globalmode`: one utility VM for the whole store.
    pub global_mode: bool,
    /// `lcow.sandboxsize`: the size of a sandbox whose size is not asked for, in bytes.
    pub sandbox_size: u64,
    /// `lcow.sandboxformat`.
    pub sandbox_format: DiskFormat,
    /// `lcow.kirdpath`: where kernel and initrd are.
    pub kird_path: Option<PathBuf>,
    /// `lcow.kernel`: a file in `kird_path`, or a path.
    pub kernel: Option<PathBuf>,
    /// `lcow.initrd`: a file in `kird_path`, or a path.
    pub initrd: Option<PathBuf>,
    /// `lcow.vhdx`: a root disk to boot.
    pub vhdx: Option<PathBuf>,
    /// `lcow.bootparameters`: appended to the kernel command line.
    pub boot_parameters: Option<String>,
    /// `lcow.timeout`: for one operation of a utility VM.
    pub timeout: Duration,
    /// `lcow.memory`: of a utility VM, in MiB.
    pub memory_mib: u32,
    /// `lcow.cpus`: of a utility VM.
    pub cpus: u32,
    /// `lcow.accel`.
    pub accel: Accel,
    /// `lcow.mounter`.
    pub mounter: MounterKind,
    /// `lcow.verity`: whether layers that are made get a dm-verity tree.
    pub verity: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            global_mode: false,
            sandbox_size: MIN_SANDBOX_GB * GIB,
            sandbox_format: DiskFormat::Vhd,
            kird_path: None,
            kernel: None,
            initrd: None,
            vhdx: None,
            boot_parameters: None,
            timeout: DEFAULT_TIMEOUT,
            memory_mib: 256,
            cpus: 1,
            accel: Accel::Auto,
            mounter: MounterKind::Uvm,
            verity: false,
        }
    }
}

const KNOWN: &[&str] = &[
    "lcow.globalmode",
    "lcow.sandboxsize",
    "lcow.sandboxformat",
    "lcow.kirdpath",
    "lcow.kernel",
    "lcow.initrd",
    "lcow.vhdx",
    "lcow.bootparameters",
    "lcow.timeout",
    "lcow.memory",
    "lcow.cpus",
    "lcow.accel",
    "lcow.mounter",
    "lcow.verity",
];

impl Options {
    /// Reads `key=value` options alone. Keys are case-insensitive; of a key given twice the last one counts.
    ///
    /// # Errors
    /// [`DriverError::OptionWithoutValue`], [`DriverError::UnknownOption`], [`DriverError::InvalidOption`].
    pub fn parse<S: AsRef<str>>(options: impl IntoIterator<Item = S>) -> Result<Self, DriverError> {
        let settings = options.into_iter().map(|o| Setting::parse(o.as_ref()));
        Self::resolve(&settings.collect::<Result<Vec<_>, _>>()?)
    }

    /// Reads options from wherever they were given. With the call counts more than in the environment, and that more than in a
    /// file; within one place the last one counts. A timeout of 0 is as good as none. All of them are looked at, those
    /// that don't count too.
    ///
    /// # Errors
    /// [`DriverError::UnknownOption`], [`DriverError::InvalidOption`], which name the place.
    pub fn resolve(settings: &[Setting]) -> Result<Self, DriverError> {
        let mut this = Self::default();
        let mut timeout = Duration::ZERO;
        let mut by_rank: Vec<_> = settings.iter().collect();
        by_rank.sort_by_key(|s| s.origin.rank());
        for Setting { key, value, origin } in by_rank {
            let set = match key.trim().to_ascii_lowercase().as_str() {
                "lcow.timeout" => seconds(key, value).map(|given| {
                    if !given.is_zero() {
                        timeout = given;
                    }
                }),
                name => this.set(name, key, value),
            };
            set.map_err(|e| e.given(origin))?;
        }
        if !timeout.is_zero() {
            this.timeout = timeout;
        }
        Ok(this)
    }

    fn set(&mut self, name: &str, key: &str, value: &str) -> Result<(), DriverError> {
        match name {
            "lcow.globalmode" => self.global_mode = boolean(key, value)?,
            "lcow.sandboxsize" => self.sandbox_size = gigabytes(key, value)?,
            "lcow.sandboxformat" => self.sandbox_format = format(key, value)?,
            "lcow.kirdpath" => self.kird_path = Some(path(key, value)?),
            "lcow.kernel" => self.kernel = Some(path(key, value)?),
            "lcow.initrd" => self.initrd = Some(path(key, value)?),
            "lcow.vhdx" => self.vhdx = Some(path(key, value)?),
            "lcow.bootparameters" => self.boot_parameters = Some(text(key, value)?),
            "lcow.memory" => {
                self.memory_mib = number(key, value, 64, 1 << 20, "MiB, 64 to 1048576")?;
            }
            "lcow.cpus" => self.cpus = number(key, value, 1, 256, "1 to 256")?,
            "lcow.accel" => {
                self.accel = match value.to_ascii_lowercase().as_str() {
                    "auto" => Accel::Auto,
                    "kvm" => Accel::Kvm,
                    "tcg" => Accel::Tcg,
                    _ => return Err(invalid(key, value, "auto, kvm, tcg")),
                }
            }
            "lcow.mounter" => {
                self.mounter = match value.to_ascii_lowercase().as_str() {
                    "uvm" => MounterKind::Uvm,
                    "host" => MounterKind::Host,
                    _ => return Err(invalid(key, value, "uvm, host")),
                }
            }
            "lcow.verity" => self.verity = boolean(key, value)?,
            _ => {
                return Err(DriverError::UnknownOption {
                    key: key.to_owned(),
                    value: value.to_owned(),
                    origin: Origin::Call,
                    known: KNOWN.join(", "),
                });
            }
        }
        Ok(())
    }

    /// The kernel asked for: a bare file name lies in `lcow.kirdpath` where that is given.
    #[must_use]
    pub fn kernel_path(&self) -> Option<PathBuf> {
        self.in_kird(self.kernel.as_deref()?)
    }

    /// The initrd asked for: a bare file name lies in `lcow.kirdpath` where that is given.
    #[must_use]
    pub fn initrd_path(&self) -> Option<PathBuf> {
        self.in_kird(self.initrd.as_deref()?)
    }

    fn in_kird(&self, file: &Path) -> Option<PathBuf> {
        let bare = file.parent().is_some_and(|p| p.as_os_str().is_empty());
        match &self.kird_path {
            Some(directory) if bare => Some(directory.join(file)),
            _ => Some(file.to_owned()),
        }
    }
}

/// What is asked of one sandbox. All of it may be absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxOptions {
    /// The size in bytes; the store's `lcow.sandboxsize` if absent. A multiple of 4096.
    pub size: Option<u64>,
    /// The format; the store's `lcow.sandboxformat` if absent.
    pub format: Option<DiskFormat>,
    /// Whether the file system has a journal. Without one it does not survive the crash of its VM.
    pub journal: bool,
}

impl Default for SandboxOptions {
    fn default() -> Self {
        Self {
            size: None,
            format: None,
            journal: true,
        }
    }
}

impl SandboxOptions {
    /// Reads storage options: `lcow.sandboxsize`, `lcow.sandboxformat`, `size` and `journal`.
    ///
    /// # Errors
    /// As [`Options::parse`].
    pub fn parse<S: AsRef<str>>(options: impl IntoIterator<Item = S>) -> Result<Self, DriverError> {
        let mut this = Self::default();
        for option in options {
            let Setting { key, value, .. } = Setting::parse(option.as_ref())?;
            let (key, value) = (key.as_str(), value.as_str());
            match key.to_ascii_lowercase().as_str() {
                "lcow.sandboxsize" => this.size = Some(gigabytes(key, value)?),
                "lcow.sandboxformat" => this.format = Some(format(key, value)?),
                "size" | "lcow.size" => this.size = Some(parse_size(key, value)?),
                "journal" | "lcow.journal" => this.journal = boolean(key, value)?,
                _ => {
                    return Err(DriverError::UnknownOption {
                        key: key.to_owned(),
                        value: value.to_owned(),
                        origin: Origin::Call,
                        known: "lcow.sandboxsize, lcow.sandboxformat, size, journal".into(),
                    });
                }
            }
        }
        Ok(this)
    }
}

/// Reads a size as Docker writes one: a number and a unit (`b`, `k`, `m`, `g`, `t`, also as `kb` or `KiB`), all powers of
/// 1024. Rounded up to whole 4 KiB blocks.
///
/// # Errors
/// [`DriverError::InvalidOption`] if it is no size, or not from 16 MiB to 16 TiB.
pub fn parse_size(key: &str, value: &str) -> Result<u64, DriverError> {
    let refuse = || invalid(key, value, "a size from 16M to 16T, as 512M or 10G");
    let text = value.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refuse())?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(refuse()),
    };
    let bytes = number.checked_mul(1 << shift).ok_or_else(refuse)?;
    if !(MIN_SANDBOX_BYTES..=MAX_SANDBOX_BYTES).contains(&bytes) {
        return Err(refuse());
    }
    Ok(bytes.next_multiple_of(4096))
}

fn invalid(key: &str, value: &str, allowed: &str) -> DriverError {
    DriverError::InvalidOption {
        key: key.to_owned(),
        value: value.to_owned(),
        origin: Origin::Call,
        allowed: allowed.to_owned(),
    }
}

fn boolean(key: &str, value: &str) -> Result<bool, DriverError> {
    // What Go's strconv.ParseBool takes, since that is what the original's users wrote.
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(invalid(key, value, "true, false")),
    }
}

fn gigabytes(key: &str, value: &str) -> Result<u64, DriverError> {
    let refuse = || invalid(key, value, "whole GB, 20 to 16384");
    let gb: u64 = value.parse().map_err(|_| refuse())?;
    if (MIN_SANDBOX_GB..=MAX_SANDBOX_BYTES / GIB).contains(&gb) {
        Ok(gb * GIB)
    } else {
        Err(refuse())
    }
}

fn seconds(key: &str, value: &str) -> Result<Duration, DriverError> {
    let n = number(
        key,
        value,
        0,
        i32::MAX.unsigned_abs(),
        "whole seconds, 0 (the default) or more",
    )?;
    Ok(Duration::from_secs(n.into()))
}

fn number(key: &str, value: &str, min: u32, max: u32, allowed: &str) -> Result<u32, DriverError> {
    match value.parse() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(invalid(key, value, allowed)),
    }
}

fn format(key: &str, value: &str) -> Result<DiskFormat, DriverError> {
    match value.to_ascii_lowercase().as_str() {
        "vhd" => Ok(DiskFormat::Vhd),
        "vhdx" => Ok(DiskFormat::Vhdx),
        _ => Err(invalid(key, value, "vhd, vhdx")),
    }
}

fn path(key: &str, value: &str) -> Result<PathBuf, DriverError> {
    if value.is_empty() || value.contains('\0') {
        return Err(invalid(key, value, "a path"));
    }
    Ok(PathBuf::from(value))
}

fn text(key: &str, value: &str) -> Result<String, DriverError> {
    if value.contains(['\0', '\n']) {
        return Err(invalid(key, value, "kernel parameters on one line"));
    }
    Ok(value.to_owned())
}
