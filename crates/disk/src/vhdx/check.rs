//! Looking at everything.

use lcow_blockio::ReadAt;

use super::bat::{self, Slot, State};
use super::error::{Structure, VhdxError};
use super::format::{Guid, MIB};
use super::layout::{self, Info};
use super::replay::Replayed;
use super::space::Space;
use super::{header, log};

/// Problems that are reported one by one; further ones are only counted.
const MAX_PROBLEMS: usize = 100;

/// What [`check`] found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// What the disk is.
    pub info: Info,
    /// What is wrong; at most 100 of them.
    pub problems: Vec<Problem>,
    /// How many there are in all.
    pub problem_count: u64,
    /// What is not as a program that closed the file leaves it, but harmless: a log to replay, a header that was being
    /// written, space that nothing uses.
    pub notes: Vec<String>,
    /// Blocks that have a place in the file.
    pub blocks: u64,
    /// Bytes of the file that nothing uses.
    pub unused: u64,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0
    }

    fn problem(&mut self, structure: Structure, offset: u64, detail: String) {
        self.problem_count = self.problem_count.saturating_add(1);
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem {
                structure,
                offset,
                detail,
            });
        }
    }
}

/// Something that is wrong with a file that can be opened all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub structure: Structure,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// What it is.
    pub detail: String,
}

/// Checks the structure of a VHDX: signatures, checksums, the log, that regions and blocks lie in the file and share no byte.
/// Nothing is changed. Takes a bit of memory for each MiB of the file.
///
/// # Errors
/// As [`open`](super::open()), if there is so much wrong that nothing more can be said.
pub fn check<R: ReadAt>(disk: R) -> Result<Report, VhdxError> {
    let (header, len) = header::read(&disk)?;
    let replay = log::read(&disk, &header, len)?;
    let file = Replayed::new(disk, len, &replay);
    let mut layout = layout::read(&file, &header)?;
    layout.info.replayed = replay.entries;
    let file_len = file.size().map_err(VhdxError::io("sizing", 0))?;
    let mut report = Report {
        info: layout.info.clone(),
        problems: Vec::new(),
        problem_count: 0,
        notes: Vec::new(),
        blocks: 0,
        unused: 0,
    };
    if replay.entries > 0 {
        let note = format!("the log has entries to replay: {}", replay.entries);
        report.notes.push(note);
    } else if header.log_guid() != Guid::ZERO {
        report
            .notes
            .push("the log is in use, and has no whole entry".into());
    }
    if let Some((offset, detail)) = &header.other {
        let note = format!("the header at byte {offset} is not in use: {detail}");
        report.notes.push(note);
    }
    if let Some((offset, detail)) = layout::region_table(&file)?.other {
        report.problem(Structure::RegionTable, offset, detail);
    }
    if header.log.end() > file_len {
        let detail = "the file ends before the log does".into();
        report.problem(Structure::Log, header.log.start, detail);
    }

    let mut space = Space::new(file_len);
    for place in layout.reserved() {
        space.take(place);
    }
    let mut beyond = 0_u64;
    bat::scan(&layout, &file, &mut |slot, index, entry| {
        let at = layout.bat.start.saturating_add(index.saturating_mul(8));
        match slot {
            Slot::Block(block) => match bat::validate(&layout, file_len, block, entry) {
                Ok(State::Present(mib)) => {
                    report.blocks = report.blocks.saturating_add(1);
                    if !space.take(layout.block_place(mib)) {
                        let detail = format!("block {block} shares its place with another");
                        report.problem(Structure::Bat, at, detail);
                    }
                }
                Ok(_) => {}
                Err(VhdxError::Corrupt {
                    structure,
                    offset,
                    detail,
                }) => report.problem(structure, offset, detail),
                Err(other) => return Err(other),
            },
            // MS-VHDX 2.5.1.2: without a parent there are no sector bitmaps.
            Slot::Bitmap if entry & 7 != 0 => {
                let detail = "a sector bitmap, and the disk has no parent".into();
                report.problem(Structure::Bat, at, detail);
            }
            Slot::Bitmap => {}
            Slot::Unused => beyond = beyond.saturating_add(1),
        }
        Ok(())
    })?;
    if beyond > 0 {
        let note = format!("entries of the table behind the disk's last block: {beyond}");
        report.notes.push(note);
    }
    report.unused = space.unused().saturating_mul(MIB);
    if report.unused > 0 {
        let note = format!("bytes of the file that nothing uses: {}", report.unused);
        report.notes.push(note);
    }
    Ok(report)
}
