//! Checking a layer, without changing anything.

use lcow_disk::verity::{self, BlockHash, Tree, VerityError};
use lcow_ext4::check::{CheckOptions, Report, check};
use serde::Serialize;

use super::Store;
use super::disk_file::vhdx_problems;
use super::read::read_error;
use crate::cancel::{Cancel, Stoppable};
use crate::error::chain;
use crate::record::{AppliedRecord, DiskFormat, Kind};
use crate::{Disk, DriverError, LayerId};

/// Something wrong with a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `chain`, `parents` (they are there), `record`, `footer`, `structure` (of a VHDX), `verity`, `file system` or `digest`.
    pub check: &'static str,
    /// What is wrong.
    pub problem: String,
}

/// The check that other layers fail.
const PARENTS: &str = "parents";

/// What checking a layer found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// The layer.
    pub id: LayerId,
    /// The checks that were made.
    pub checked: Vec<&'static str>,
    /// What is wrong. Empty: all is well.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether the layer itself is damaged, and not only what it stands on.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|f| f.check != PARENTS)
    }

    fn note<T>(&mut self, check: &'static str, result: Result<T, DriverError>) -> Option<T> {
        self.checked.push(check);
        match result {
            Ok(value) => Some(value),
            Err(e) => {
                self.findings.push(Finding {
                    check,
                    problem: chain(&e),
                });
                None
            }
        }
    }
}

impl Store {
    /// Checks a layer: that its parents are there, that its records can be read, its disk's footer, every block against the
    /// recorded root hash if it has a verity tree, every structure of its file system, and that the tar that was applied comes
    /// out of it again with the digest it had.
    ///
    /// # Errors
    /// [`DriverError::NotFound`], [`DriverError::InUse`] for a sandbox that is being written to,
    /// [`DriverError::Cancelled`]; what is wrong with the layer is in the report.
    pub fn verify(&self, id: &LayerId, cancel: &Cancel) -> Result<VerifyReport, DriverError> {
        let _reference = self.reference(id)?;
        let mut report = VerifyReport {
            id: id.clone(),
            checked: Vec::new(),
            findings: Vec::new(),
        };
        let parents = self.check_chain(id);
        let name = match parents {
            Err(DriverError::NoParent { .. }) => PARENTS,
            _ => "chain",
        };
        report.note(name, parents);
        let record = self.0.record(id);
        let record = report.note("record", record).flatten();
        let Some((kind, _)) = report.note("kind", self.0.kind(id)) else {
            return Ok(report);
        };
        let _quiet = match kind {
            Kind::Sandbox => Some(self.quiet_sandbox(id)?),
            _ => None,
        };
        let Some(disk) = report.note("footer", self.disk(id)).flatten() else {
            return Ok(report);
        };
        if disk.format == DiskFormat::Vhdx {
            let problems = report.note("structure", vhdx_problems(&self.0.files, &disk.path));
            let findings = problems.into_iter().flatten().map(|problem| Finding {
                check: "structure",
                problem,
            });
            report.findings.extend(findings);
        }
        let applied = record
            .and_then(|r| r.applied)
            .filter(|_| kind == Kind::Layer);
        if let Some(applied) = &applied
            && let Some(root) = &applied.verity_root
        {
            let verified = self.check_verity(&disk, applied, root, cancel);
            cancel.check()?;
            report.note("verity", verified);
        }
        let checked = self.open_disk(&disk).and_then(|d| {
            check(d, &CheckOptions::default()).map_err(|e| read_error("reading", id, e))
        });
        let checked = report.note("file system", checked);
        let readable = checked.as_ref().is_some_and(Report::is_clean);
        let found = checked.into_iter().flat_map(|checked| checked.findings);
        report.findings.extend(found.map(|finding| Finding {
            check: "file system",
            problem: finding.to_string(),
        }));
        if let Some(applied) = applied
            && readable
        {
            let expected = match applied.verity_root {
                Some(_) => verity::end(applied.disk_size).unwrap_or(u64::MAX),
                None => applied.disk_size,
            };
            if expected != disk.bytes {
                let problem = format!(
                    "the disk has {} bytes, and by the record it should have {expected}",
                    disk.bytes
                );
                report.findings.push(Finding {
                    check: "record",
                    problem,
                });
            }
            let mut sink = Stoppable::new(std::io::sink(), cancel);
            let emitted = self.diff_exact(id, &mut sink);
            cancel.check()?;
            report.note("digest", emitted);
        }
        Ok(report)
    }

    /// Every block of the disk is what was hashed when the layer was made.
    fn check_verity(
        &self,
        disk: &Disk,
        applied: &AppliedRecord,
        root: &str,
        cancel: &Cancel,
    ) -> Result<(), DriverError> {
        let record = self.0.path(&disk.id).join("layer.json");
        let root: BlockHash = root.parse().map_err(|e| DriverError::corrupt(&record, e))?;
        let range = Stoppable::new(self.open_disk(disk)?, cancel);
        Tree::open(range, applied.disk_size)
            .and_then(|tree| tree.verify(&root))
            .map_err(|e| match e {
                VerityError::Io {
                    operation, source, ..
                } => DriverError::io(operation, &disk.path)(source),
                VerityError::Unsupported { .. } => DriverError::Unsupported {
                    what: e.to_string(),
                    path: Some(disk.path.clone()),
                },
                e => DriverError::corrupt(&disk.path, e),
            })
    }

    /// The parents are there, and agree about theirs.
    fn check_chain(&self, id: &LayerId) -> Result<(), DriverError> {
        let chain = self.0.chain(id)?;
        for (i, parent) in chain.iter().enumerate() {
            let theirs = self.0.chain(parent).map_err(|e| match e {
                DriverError::NotFound { id: parent } => DriverError::NoParent {
                    id: id.clone(),
                    parent,
                },
                e => e,
            })?;
            if *theirs != chain[i + 1..] {
                let path = self.0.path(id).join("layerchain.json");
                return Err(DriverError::corrupt(
                    &path,
                    format!("it disagrees with the chain of {parent}"),
                ));
            }
        }
        Ok(())
    }
}
