//! Whether KVM works here: tried, not assumed, and remembered until the host boots again.
//!
//! ```text
//!  auto ─► /dev/kvm can't be opened ─────────────────────────────► tcg
//!       ─► verdict of this boot ──────────────► works: kvm, hangs: tcg
//!       ─► none: start under kvm, wait PROBE ─► answered: "works" │ not: "hangs", kill, start under tcg
//! ```

use crate::vmm::Accelerator;
use crate::{Accel, UvmError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a first guest under KVM has to answer; a healthy one takes well under a second.
pub const PROBE: Duration = Duration::from_secs(4);

const DEVICE: &str = "/dev/kvm";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// A guest under KVM answered.
    Works,
    /// It did not, within [`PROBE`].
    Hangs,
}

#[derive(Serialize, Deserialize)]
struct Record {
    boot_id: String,
    verdict: Verdict,
    /// Why, in words.
    #[serde(default)]
    why: String,
}

/// What to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// This and nothing else.
    Only(Accelerator),
    /// KVM, for so long as a probe may take; else emulation.
    Probe,
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("kvm.json")
}

fn boot_id() -> Option<String> {
    std::fs::read_to_string(BOOT_ID)
        .ok()
        .map(|id| id.trim().to_owned())
}

fn record(state_dir: &Path) -> Option<Record> {
    let record: Record = serde_json::from_slice(&std::fs::read(file(state_dir)).ok()?).ok()?;
    (Some(&record.boot_id) == boot_id().as_ref()).then_some(record)
}

/// The verdict of this boot, if there is one; `lcow doctor` shows it.
#[must_use]
pub fn verdict(state_dir: &Path) -> Option<Verdict> {
    record(state_dir).map(|record| record.verdict)
}

/// What a person is told about the verdict of this boot: why machines are emulated, or that they need not be.
#[must_use]
pub fn reason(state_dir: &Path) -> Option<String> {
    let record = record(state_dir)?;
    Some(match record.verdict {
        Verdict::Works => "KVM works".into(),
        Verdict::Hangs => format!(
            "{DEVICE} is there, but no guest runs under it ({}): emulating until this host boots again",
            record.why
        ),
    })
}

/// Keeps a verdict, and why. That it can't be kept only costs the next start a probe.
pub(crate) fn remember(state_dir: &Path, verdict: Verdict, why: &str) {
    let write = || -> Option<()> {
        let bytes = serde_json::to_vec(&Record {
            boot_id: boot_id()?,
            verdict,
            why: why.to_owned(),
        })
        .ok()?;
        let mut temporary = tempfile::NamedTempFile::new_in(state_dir).ok()?;
        std::io::Write::write_all(&mut temporary, &bytes).ok()?;
        temporary.persist(file(state_dir)).ok().map(drop)
    };
    if write().is_none() {
        tracing::debug!(
            "the KVM verdict could not be kept in {}",
            state_dir.display()
        );
    }
}

/// Whether this user may open the device at all.
fn device_opens() -> std::io::Result<()> {
    std::fs::File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map(drop)
}

pub(crate) fn plan(accel: Accel, state_dir: &Path) -> Result<Plan, UvmError> {
    match accel {
        Accel::Tcg => Ok(Plan::Only(Accelerator::Tcg)),
        Accel::Kvm => {
            device_opens().map_err(UvmError::io("open", DEVICE))?;
            Ok(Plan::Only(Accelerator::Kvm))
        }
        Accel::Auto if device_opens().is_err() => Ok(Plan::Only(Accelerator::Tcg)),
        Accel::Auto => Ok(match verdict(state_dir) {
            Some(Verdict::Works) => Plan::Only(Accelerator::Kvm),
            Some(Verdict::Hangs) => Plan::Only(Accelerator::Tcg),
            None => Plan::Probe,
        }),
    }
}

/// What the next machine will run under, if that is known, and why, in words.
pub(crate) fn outlook(accel: Accel, state_dir: &Path) -> (Option<Accelerator>, String) {
    let told = |name| format!("told to by lcow.accel={name}");
    match accel {
        Accel::Tcg => (Some(Accelerator::Tcg), told("tcg")),
        Accel::Kvm => (Some(Accelerator::Kvm), told("kvm")),
        Accel::Auto => {
            if let Err(error) = device_opens() {
                return (
                    Some(Accelerator::Tcg),
                    format!("{DEVICE} can't be opened: {error}"),
                );
            }
            let accelerator = verdict(state_dir).map(|verdict| match verdict {
                Verdict::Works => Accelerator::Kvm,
                Verdict::Hangs => Accelerator::Tcg,
            });
            let untried = "the first utility VM since this host booted will show whether KVM works";
            (
                accelerator,
                reason(state_dir).unwrap_or_else(|| untried.to_owned()),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_holds_for_this_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(verdict(dir.path()), None);
        for (accel, expected) in [
            (Accel::Tcg, Accelerator::Tcg),
            (Accel::Kvm, Accelerator::Kvm),
        ] {
            let (accelerator, why) = outlook(accel, dir.path());
            assert_eq!(accelerator, Some(expected));
            assert!(why.contains(&format!("lcow.accel={expected}")), "{why}");
        }
        assert!(!outlook(Accel::Auto, dir.path()).1.is_empty());
        remember(dir.path(), Verdict::Hangs, "it was slow");
        assert_eq!(verdict(dir.path()), Some(Verdict::Hangs));
        assert!(reason(dir.path()).unwrap().contains("(it was slow)"));
        let other = Record {
            boot_id: "another boot".into(),
            verdict: Verdict::Works,
            why: String::new(),
        };
        std::fs::write(file(dir.path()), serde_json::to_vec(&other).unwrap()).unwrap();
        assert_eq!(verdict(dir.path()), None);
        std::fs::write(file(dir.path()), b"{").unwrap();
        assert_eq!(verdict(dir.path()), None);
    }
}
