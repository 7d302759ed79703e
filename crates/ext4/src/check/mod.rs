//! A structural verifier: whether an image is one that a kernel may be given.
//!
//! [`check`] looks at every structure of an ext2, ext3 or ext4 filesystem, as `e2fsck -fn` does, and changes nothing:
//!
//! ```text
//! layout       superblock, descriptors, where metadata lies        ─┐
//! inodes       every inode, its blocks, sizes, flags, attributes    │ what is in use
//! directories  every block and name, hash trees                     ─┘
//! tree         every directory reached once, every link counted
//! bitmaps      blocks and inodes in use, padding, counts, checksums
//! ```
//! Structures are read by the [`reader`](crate::reader), whose errors become findings; what only the whole can tell (a block
//! with two owners, an inode without a name) is found here. A journal that was not played back is replayed in memory first,
//! so that an image is judged as a kernel would find it after mounting it (short of fast commits, which change files rather than
//! blocks: the kernel makes the bitmaps for them); inodes on the orphan list are in use.
//!
//! # Bounds
//! Findings end at [`CheckOptions::max_findings`]. Memory is a bit for each block of those parts of the disk that are in use,
//! 12 bytes an inode and 20 a directory in use, and the names of one directory at a time: an empty disk of terabytes costs
//! a few megabytes. Time is that of reading all metadata once, which [`CheckOptions::max_read`] limits: blocks reached
//! twice are a finding, so what is visited again and again ends with the findings.
//!
//! # Beside e2fsck
//! What e2fsck reports, this reports; `tests/reader/mutation.rs` holds the two together. It finds more: attributes of a block
//! out of order (which the kernel's search would miss), a name twice in different blocks of a directory. Left to e2fsck
//! are things that are no damage: times beyond 2310, which e2fsck takes for mistakes of old kernels, extent trees
//! that could be shorter, superblock fields that only matter to tools (times of checks, labels), and the copies of the
//! superblock.

mod bitmaps;
mod content;
mod directories;
mod finding;
mod htree;
mod inodes;
mod journal;
mod layout;
mod orphans;
mod quota;
mod tree;
mod usage;
mod xattrs;

use std::collections::{HashMap, HashSet};

use lcow_blockio::ReadAt;

use crate::format::Superblock as RawSuperblock;
use crate::reader::internal::num::{div, index, rem};
use crate::reader::internal::{Objections, Superblock};
use crate::reader::{Filesystem, Journal, ReadError, Structure};
use crate::{FileType, InodeNumber};
pub use finding::{Finding, Problem, Report};
use quota::Quotas;
use usage::Usage;

/// How far a check goes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CheckOptions {
    /// The check ends after so many findings; 100 by default.
    pub max_findings: usize,
    /// The most bytes of inode tables, directories and bitmaps to read; 64 GiB by default.
    pub max_read: u64,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            max_findings: 100,
            max_read: 64 << 30,
        }
    }
}

/// Checks the filesystem that a disk begins with.
///
/// # Errors
/// *unsupported*, where the image uses what this crate does not read, and what the disk says. What is corrupt is in the
/// report.
///
/// ```
/// use lcow_blockio::MemDisk;
/// use lcow_ext4::check::{CheckOptions, check};
/// use lcow_ext4::writer::{Identity, Writer, WriterOptions};
///
/// let disk = MemDisk::new();
/// let writer = Writer::new(&disk, &WriterOptions::default())?;
/// writer.finish(&Identity { uuid: [1; 16], hash_seed: [2; 16] })?;
/// assert!(check(&disk, &CheckOptions::default())?.is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check<R: ReadAt>(disk: R, options: &CheckOptions) -> Result<Report, ReadError> {
    let mut objections = Objections::gather();
    let opened = Filesystem::open_with(disk, &mut objections);
    let mut report = Report::default();
    for error in objections.into_list() {
        report.findings.push(Finding::from_error(error)?);
    }
    let fs = match opened {
        Ok(fs) => fs,
        Err(error) => {
            report.findings.push(Finding::from_error(error)?);
            report.findings.truncate(options.max_findings.max(1));
            return Ok(report);
        }
    };
    let mut checker = Checker::new(&fs, options, report);
    match checker.run() {
        Ok(complete) => checker.report.complete = complete,
        Err(Stop::Enough) => {}
        Err(Stop::Error(error)) => return Err(error),
    }
    Ok(checker.report)
}

/// Why a check ends early.
enum Stop {
    /// The findings are as many as were asked for.
    Enough,
    Error(ReadError),
}

type Step<T = ()> = Result<T, Stop>;

/// What an inode is, as far as names and links need to know.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    kind: Kind,
    encrypted: bool,
    indexed: bool,
    /// As the inode has it.
    links: u16,
    /// Names met, `.` and `..` included.
    names: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Kind {
    #[default]
    Unused,
    /// In use, but too damaged to say more.
    Broken,
    /// Reserved for the filesystem's own use: it has no names.
    Hidden,
    /// On the orphan list: it has no names any more.
    Orphan,
    /// The value of an attribute.
    Value,
    File(FileType),
}

/// A directory.
#[derive(Debug, Clone, Copy)]
struct Dir {
    number: u32,
    /// The directory that has a name for it; 0: none was met.
    parent: u32,
    /// What its own `..` says; 0: not known.
    above: u32,
}

struct Checker<'a, R> {
    fs: &'a Filesystem<R>,
    options: &'a CheckOptions,
    report: Report,
    /// Clusters in use, counted from the first data block's.
    usage: Usage,
    /// By group, as far as inodes are in use.
    states: Vec<Vec<State>>,
    /// In the order of their numbers.
    directories: Vec<Dir>,
    orphans: HashSet<u32>,
    /// Whether the filesystem is younger than 1970 and as many seconds as it has inodes: then a small time of deletion is none.
    dated: bool,
    /// Attribute blocks: users counted, users according to the block, and where it lies.
    attribute_blocks: HashMap<u64, (u32, u32, u64)>,
    /// Inodes that hold values: how many attributes name them.
    values: HashMap<u32, u32>,
    quotas: Quotas,
    /// Whether all blocks in use are known: no map was too damaged to follow.
    blocks_known: bool,
    /// Whether all names are known.
    names_known: bool,
    read: u64,
}

impl<'a, R: ReadAt> Checker<'a, R> {
    fn new(fs: &'a Filesystem<R>, options: &'a CheckOptions, mut report: Report) -> Self {
        report.replayed = matches!(fs.info().journal, Journal::Replayed { .. });
        Self {
            fs,
            options,
            report,
            usage: Usage::default(),
            states: vec![Vec::new(); fs.groups.len()],
            directories: Vec::new(),
            orphans: HashSet::new(),
            dated: true,
            attribute_blocks: HashMap::new(),
            values: HashMap::new(),
            quotas: Quotas::default(),
            blocks_known: true,
            names_known: true,
            read: 0,
        }
    }

    /// Whether everything was looked at.
    fn run(&mut self) -> Step<bool> {
        self.enough()?;
        self.check_superblock()?;
        if !self.fs.groups.iter().all(|group| group.in_place) {
            // Inode tables that are not where they should be: nothing more can be told.
            return Ok(false);
        }
        self.check_layout()?;
        self.check_journal()?;
        self.find_orphans()?;
        self.check_inodes()?;
        self.check_attribute_users()?;
        self.check_directories()?;
        self.check_tree()?;
        self.check_bitmaps()?;
        self.check_quotas()?;
        Ok(self.blocks_known && self.names_known)
    }

    fn sb(&self) -> &'a Superblock {
        &self.fs.superblock
    }

    /// The superblock's fields as they are on the disk.
    fn raw_superblock(&self) -> Step<RawSuperblock> {
        let mut raw = RawSuperblock::zeroed();
        let offset = crate::format::superblock::SUPERBLOCK_OFFSET;
        let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut raw);
        self.fs
            .source
            .read("read the superblock", offset, bytes)
            .map_err(Stop::Error)?;
        Ok(raw)
    }

    fn found(
        &mut self,
        structure: Structure,
        offset: u64,
        problem: Problem,
        detail: impl Into<String>,
    ) -> Step {
        self.report.findings.push(Finding {
            structure,
            offset,
            problem,
            detail: detail.into(),
        });
        self.enough()
    }

    fn enough(&mut self) -> Step {
        if self.report.findings.len() >= self.options.max_findings.max(1) {
            self.report
                .findings
                .truncate(self.options.max_findings.max(1));
            return Err(Stop::Enough);
        }
        Ok(())
    }

    /// What a reader says: a finding if it is corrupt.
    fn note<T>(&mut self, result: Result<T, ReadError>) -> Step<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                let finding = Finding::from_error(error).map_err(Stop::Error)?;
                self.report.findings.push(finding);
                self.enough()?;
                Ok(None)
            }
        }
    }

    /// Takes note of bytes about to be read.
    fn spend(&mut self, bytes: u64) -> Step {
        self.read = self.read.saturating_add(bytes);
        if self.read > self.options.max_read {
            let limit = self.options.max_read;
            self.found(
                Structure::Superblock,
                0,
                Problem::Unfinished,
                format!("more than {limit} bytes of metadata: the rest was not looked at"),
            )?;
            return Err(Stop::Enough);
        }
        Ok(())
    }

    /// Blocks to a cluster.
    fn ratio(&self) -> u64 {
        div(self.sb().cluster_size, self.sb().block_size).max(1)
    }

    /// The cluster of a block, counted from the first data block's.
    fn cluster(&self, block: u64) -> u64 {
        div(
            block.saturating_sub(self.sb().first_data_block),
            self.ratio(),
        )
    }

    /// The group of an inode and its place in it, counted from 0.
    fn place(&self, number: u32) -> (usize, usize) {
        let number = u64::from(number.saturating_sub(1));
        let per_group = u64::from(self.sb().inodes_per_group);
        (index(div(number, per_group)), index(rem(number, per_group)))
    }

    fn state(&self, number: u32) -> State {
        let (group, place) = self.place(number);
        self.states
            .get(group)
            .and_then(|states| states.get(place))
            .copied()
            .unwrap_or_default()
    }

    /// The state of an inode, to change it; `None`: there is no such inode, or it was never in use.
    fn state_mut(&mut self, number: u32) -> Option<&mut State> {
        let (group, place) = self.place(number);
        self.states.get_mut(group)?.get_mut(place)
    }

    /// Counts a name of an inode.
    fn count_name(&mut self, number: u32) {
        if let Some(state) = self.state_mut(number) {
            state.names = state.names.saturating_add(1);
        }
    }

    fn set_state(&mut self, number: u32, state: State) {
        let (group, place) = self.place(number);
        if let Some(states) = self.states.get_mut(group) {
            if states.len() <= place {
                states.resize(place.saturating_add(1), State::default());
            }
            if let Some(slot) = states.get_mut(place) {
                *slot = state;
            }
        }
    }

    fn directory_mut(&mut self, number: u32) -> Option<&mut Dir> {
        let at = self
            .directories
            .binary_search_by_key(&number, |dir| dir.number)
            .ok()?;
        self.directories.get_mut(at)
    }

    fn inode_structure(number: u32) -> Structure {
        Structure::Inode(InodeNumber(number))
    }
}
