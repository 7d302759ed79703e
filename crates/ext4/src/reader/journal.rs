//! Replaying the journal in memory (Linux `fs/jbd2/recovery.c`).
//!
//! One pass reads the log and notes what each transaction writes and revokes; at its end the whole transactions among them
//! become an overlay: blocks of the filesystem whose newest version is a block of the journal. Nothing is copied, so the
//! cost is bounded by the number of the journal's blocks.
//!
//! What the kernel refuses to replay is refused here: *corrupt*. [Fast commits](super::fast_commit) are replayed on top.

use std::collections::{BTreeMap, HashMap};

use lcow_blockio::ReadAt;
use zerocopy::FromBytes;

use super::error::{ReadError, Structure};
use super::map::{Extent, Owner};
use super::num::{be32, be64, div, index, join32, len64, slice};
use super::source::LogBlock;
use super::{Filesystem, Journal, fast_commit, group};
use crate::InodeNumber;
use crate::format::Checksum;
use crate::format::journal::{
    BLOCK_COMMIT, BLOCK_DESCRIPTOR, BLOCK_REVOKE, BLOCK_SUPERBLOCK_V1, BLOCK_SUPERBLOCK_V2,
    BlockTag, BlockTag3, CHECKSUM_CRC32, CHECKSUM_CRC32C, COMPAT_CHECKSUM, CommitHeader,
    DEFAULT_FAST_COMMIT_BLOCKS, JOURNAL_MAGIC, JournalHeader, JournalSuperblock, TAG_ESCAPE,
    TAG_LAST, TAG_SAME_UUID, incompat as journal_incompat,
};
use crate::format::superblock::{compat, incompat};

/// `s_feature_incompat` bits of the journal that are understood.
const KNOWN: u32 = journal_incompat::REVOKE
    | journal_incompat::BIT64
    | journal_incompat::ASYNC_COMMIT
    | journal_incompat::CSUM_V2
    | journal_incompat::CSUM_V3
    | journal_incompat::FAST_COMMIT;
/// Bytes of a header, behind which tags begin.
const HEADER: usize = 12;
/// Bytes of a revocation block's header: a journal header and the number of bytes in use.
const REVOKE_HEADER: usize = 16;

fn corrupt(at: u64, detail: impl Into<String>) -> ReadError {
    ReadError::corrupt(Structure::Journal, at, detail)
}

/// The log's shape.
struct Log<'a, R> {
    fs: &'a Filesystem<R>,
    map: &'a [Extent],
    compat: u32,
    incompat: u32,
    seed: Checksum,
    /// First block of the ring.
    first: u64,
    /// The block behind the ring.
    end: u64,
    /// The block behind the journal; from `end` on lie fast commits.
    max: u64,
}

/// A block that a transaction writes.
struct Write {
    sequence: u32,
    /// Block of the filesystem.
    target: u64,
    /// Byte offset of the new version.
    offset: u64,
    escaped: bool,
    checksum: Option<u32>,
}

/// Everything read from the log up to its end.
#[derive(Default)]
struct Contents {
    writes: Vec<Write>,
    /// Blocks, and the last transaction that revoked each.
    revokes: Vec<(u64, u32)>,
    /// The first revocation block that makes no sense, and its transaction: that need not be whole, and then nobody reads it.
    bad_revoke: Option<(u32, ReadError)>,
}

impl<R: ReadAt> Filesystem<R> {
    /// Lays the journal over the disk if it has something to replay.
    pub(crate) fn replay_journal(&mut self) -> Result<Journal, ReadError> {
        let sb = &self.superblock;
        let recover = sb.has_incompat(incompat::RECOVER);
        if !sb.has_compat(compat::HAS_JOURNAL) {
            return if recover {
                Err(corrupt(0, "it has to be replayed but does not exist"))
            } else {
                Ok(Journal::None)
            };
        }
        if sb.journal_inode == 0 {
            return if recover {
                Err(ReadError::unsupported(
                    "a journal on another device, with something to replay",
                ))
            } else {
                Ok(Journal::External)
            };
        }
        let number = InodeNumber(sb.journal_inode);
        // Until the replay the descriptors may be half written: of the journal's group only the inode table's place counts.
        let groups = sb.journal_inode.div_ceil(sb.inodes_per_group.max(1));
        if groups > sb.groups {
            return Err(corrupt(0, format!("it is said to be inode {number}")));
        }
        self.groups = group::read_groups(&self.source, sb, groups, None)?;
        for group in &mut self.groups {
            group.used_inodes = sb.inodes_per_group;
        }
        let inode = self.inode(number)?;
        if inode.file_type != crate::FileType::Regular {
            return Err(inode.corrupt("the journal is not a regular file"));
        }
        let map = self.extents_until(&inode, u64::MAX, Owner::Own)?;
        self.journal = map.iter().map(|e| (e.physical, e.len)).collect();
        let Some((raw, at)) = self.log_superblock(&map)? else {
            return Err(corrupt(inode.offset, "it has no blocks"));
        };
        let superblock = JournalSuperblock::ref_from_bytes(&raw)
            .map_err(|_| corrupt(at, "its superblock is not whole"))?;
        let blocks = div(inode.size, self.superblock.block_size);
        let log = Log::new(self, superblock, &map, blocks, at)?;
        let start = u64::from(superblock.s_start.get());
        if start == 0 {
            return Ok(Journal::Clean);
        }
        if !recover {
            // The kernel sets the flag before the first transaction and clears it after the last.
            return Err(corrupt(
                at,
                "it holds transactions that the superblock knows nothing of",
            ));
        }
        if start < log.first || start >= log.end {
            return Err(corrupt(at, format!("the log starts at block {start}")));
        }
        let first = superblock.s_sequence.get();
        let (contents, end) = log.scan(start, first)?;
        let overlay = log.overlay(contents, end)?;
        let (records, fast_commits) = log.fast_commits(end)?;
        let replayed = Journal::Replayed {
            transactions: end.wrapping_sub(first),
            blocks: len64(overlay.len()),
            fast_commits,
        };
        self.source.overlay(overlay);
        self.fast_commits = records;
        Ok(replayed)
    }

    fn log_superblock(&self, map: &[Extent]) -> Result<Option<([u8; 1024], u64)>, ReadError> {
        let Some(first) = map.first().filter(|e| e.logical == 0) else {
            return Ok(None);
        };
        let at = first.physical.saturating_mul(self.superblock.block_size);
        let mut raw = [0; 1024];
        self.source
            .read("read the journal's superblock", at, &mut raw)?;
        Ok(Some((raw, at)))
    }
}

impl<'a, R: ReadAt> Log<'a, R> {
    fn new(
        fs: &'a Filesystem<R>,
        superblock: &JournalSuperblock,
        map: &'a [Extent],
        blocks: u64,
        at: u64,
    ) -> Result<Self, ReadError> {
        let kind = superblock.s_header.h_blocktype.get();
        if superblock.s_header.h_magic.get() != JOURNAL_MAGIC
            || !(kind == BLOCK_SUPERBLOCK_V1 || kind == BLOCK_SUPERBLOCK_V2)
        {
            return Err(corrupt(at, "its superblock has no magic number"));
        }
        let (compat, incompat, ro_compat) = if kind == BLOCK_SUPERBLOCK_V2 {
            (
                superblock.s_feature_compat.get(),
                superblock.s_feature_incompat.get(),
                superblock.s_feature_ro_compat.get(),
            )
        } else {
            (0, 0, 0)
        };
        if incompat & !KNOWN != 0 || ro_compat != 0 {
            return Err(ReadError::unsupported(format!(
                "journal features {:#x}",
                (incompat & !KNOWN) | ro_compat
            )));
        }
        let has = |bit| incompat & bit != 0;
        let v2 = has(journal_incompat::CSUM_V2);
        let v3 = has(journal_incompat::CSUM_V3);
        if (v2 && v3) || ((v2 || v3) && compat & COMPAT_CHECKSUM != 0) {
            return Err(corrupt(at, "it has checksums of two kinds"));
        }
        if v2 || v3 {
            if superblock.s_checksum_type != CHECKSUM_CRC32C {
                return Err(ReadError::unsupported(format!(
                    "journal checksum type {}",
                    superblock.s_checksum_type
                )));
            }
            if superblock.checksum() != superblock.s_checksum.get() {
                return Err(corrupt(at, "the checksum of its superblock does not match"));
            }
        }
        if u64::from(superblock.s_blocksize.get()) != fs.superblock.block_size {
            return Err(corrupt(
                at,
                format!("it has blocks of {} bytes", superblock.s_blocksize.get()),
            ));
        }
        let max = u64::from(superblock.s_maxlen.get());
        let first = u64::from(superblock.s_first.get());
        if max > blocks || first == 0 || first >= max {
            return Err(corrupt(
                at,
                format!("a ring of blocks {first}..{max} in {blocks}"),
            ));
        }
        let mut end = max;
        if has(journal_incompat::FAST_COMMIT) {
            let fast = match superblock.s_num_fc_blks.get() {
                0 => DEFAULT_FAST_COMMIT_BLOCKS,
                blocks => blocks,
            };
            end = end
                .checked_sub(u64::from(fast))
                .filter(|end| *end > first)
                .ok_or_else(|| corrupt(at, format!("{fast} of {max} blocks for fast commits")))?;
        }
        Ok(Self {
            fs,
            map,
            compat,
            incompat,
            seed: Checksum::from_uuid(&superblock.s_uuid),
            first,
            end,
            max,
        })
    }

    fn has(&self, bit: u32) -> bool {
        self.incompat & bit != 0
    }

    /// Whether blocks of the log carry CRC-32C checksums.
    fn checksums(&self) -> bool {
        self.has(journal_incompat::CSUM_V2 | journal_incompat::CSUM_V3)
    }

    /// Where a block of the journal lies, in bytes.
    fn place(&self, block: u64) -> Result<u64, ReadError> {
        let number = self.map.partition_point(|e| e.end() <= block);
        self.map
            .get(number)
            .filter(|e| e.written)
            .and_then(|e| Some(e.physical.saturating_add(block.checked_sub(e.logical)?)))
            .map(|physical| physical.saturating_mul(self.fs.superblock.block_size))
            .ok_or_else(|| corrupt(0, format!("its block {block} is a hole")))
    }

    fn read(&self, block: u64, buf: &mut [u8]) -> Result<u64, ReadError> {
        let at = self.place(block)?;
        self.fs.source.read("read the journal", at, buf)?;
        Ok(at)
    }

    /// The block `step` blocks further around the ring.
    fn after(&self, block: u64, step: u64) -> u64 {
        let next = block.saturating_add(step);
        if next >= self.end {
            next.saturating_sub(self.end.saturating_sub(self.first))
        } else {
            next
        }
    }

    /// Reads the log from `start`, whose first transaction is `sequence`. Returns what is in it, and the first transaction
    /// that is not whole.
    fn scan(&self, start: u64, sequence: u32) -> Result<(Contents, u32), ReadError> {
        let mut contents = Contents::default();
        let mut buf = vec![0; index(self.fs.superblock.block_size)];
        let mut block = start;
        let mut next = sequence;
        // The ring can't hold more blocks than it has: who goes on is running in circles.
        let mut left = self.end.saturating_sub(self.first);
        let mut doubtful = false;
        let mut committed = 0_u64;
        let mut crc = Crc32Be::new();
        // An asynchronous commit whose checksum fails ends the log, unless another commit follows.
        let mut broken = None;
        while let Some(rest) = left.checked_sub(1) {
            left = rest;
            let at = self.read(block, &mut buf)?;
            block = self.after(block, 1);
            let Ok((header, _)) = JournalHeader::ref_from_prefix(&buf) else {
                break;
            };
            if header.h_magic.get() != JOURNAL_MAGIC || header.h_sequence.get() != next {
                break;
            }
            match header.h_blocktype.get() {
                BLOCK_DESCRIPTOR => {
                    // The rest of an older transaction can look like this: the commit block's time tells.
                    doubtful |= !self.tail_matches(&buf);
                    let old = self.compat & COMPAT_CHECKSUM != 0 && broken.is_none();
                    if old && !doubtful {
                        crc.update(&buf);
                    }
                    let count = self.tags(&buf, |tag| {
                        let data = self.place(block)?;
                        block = self.after(block, 1);
                        contents.writes.push(Write {
                            sequence: next,
                            offset: data,
                            ..tag
                        });
                        Ok(())
                    });
                    let count = match count {
                        // A stale block can hold anything.
                        Err(_) if doubtful => 0,
                        other => other?,
                    };
                    if old && !doubtful {
                        let from = contents.writes.len().saturating_sub(index(count));
                        for write in contents.writes.iter().skip(from) {
                            self.fs
                                .source
                                .read("read the journal", write.offset, &mut buf)?;
                            crc.update(&buf);
                        }
                    }
                    let Some(rest) = left.checked_sub(count) else {
                        return Err(corrupt(at, "a transaction is longer than the log"));
                    };
                    left = rest;
                }
                BLOCK_REVOKE => {
                    doubtful |= !self.tail_matches(&buf);
                    if let Err(error) = self.revokes(&buf, at, next, &mut contents.revokes) {
                        contents.bad_revoke.get_or_insert((next, error));
                    }
                }
                BLOCK_COMMIT => {
                    let Ok((commit, _)) = CommitHeader::ref_from_prefix(&buf) else {
                        break;
                    };
                    let time = commit.h_commit_sec.get();
                    if doubtful {
                        if time >= committed {
                            return Err(corrupt(
                                at,
                                format!("a checksum in transaction {next} does not match"),
                            ));
                        }
                        // Left over from an earlier turn of the ring.
                        break;
                    }
                    let right = if self.compat & COMPAT_CHECKSUM != 0 {
                        if broken.is_some() {
                            return Err(corrupt(at, format!("transaction {next} is damaged")));
                        }
                        crc.matches(commit)
                    } else {
                        self.commit_matches(&buf)
                    };
                    if right {
                        committed = time;
                        crc = Crc32Be::new();
                        next = next.wrapping_add(1);
                    } else if time < committed {
                        break;
                    } else if self.has(journal_incompat::ASYNC_COMMIT) && broken.is_none() {
                        broken = Some(next);
                        committed = time;
                        next = next.wrapping_add(1);
                    } else {
                        return Err(corrupt(
                            at,
                            format!("the checksum of transaction {next} does not match"),
                        ));
                    }
                }
                _ => break,
            }
        }
        Ok((contents, broken.unwrap_or(next)))
    }

    /// Whether the checksum in the last four bytes of a descriptor or revocation block is right.
    fn tail_matches(&self, block: &[u8]) -> bool {
        if !self.checksums() {
            return true;
        }
        let tail = block.len().saturating_sub(4);
        let (data, _) = block.split_at(tail);
        self.seed.bytes(data).bytes(&[0; 4]).value() == be32(block, tail)
    }

    fn commit_matches(&self, block: &[u8]) -> bool {
        if !self.checksums() {
            return true;
        }
        const FIELD: usize = std::mem::offset_of!(CommitHeader, h_chksum);
        const BEHIND: usize = FIELD + 4;
        // The checksum is of the whole block.
        let sum = self
            .seed
            .bytes(block.get(..FIELD).unwrap_or_default())
            .bytes(&[0; 4])
            .bytes(block.get(BEHIND..).unwrap_or_default());
        sum.value() == be32(block, FIELD)
    }

    /// Calls `each` with the tags of a descriptor block; returns how many there are.
    fn tags(
        &self,
        block: &[u8],
        mut each: impl FnMut(Write) -> Result<(), ReadError>,
    ) -> Result<u64, ReadError> {
        let v3 = self.has(journal_incompat::CSUM_V3);
        let v2 = self.has(journal_incompat::CSUM_V2);
        let bit64 = self.has(journal_incompat::BIT64);
        let size = match (v3, bit64) {
            (true, _) => 16,
            (false, true) => 12_usize,
            (false, false) => 8,
        };
        let size = size.saturating_add(if v2 { 2 } else { 0 });
        let limit = block
            .len()
            .saturating_sub(if self.checksums() { 4 } else { 0 });
        let block = block.get(..limit).unwrap_or_default();
        let mut place = HEADER;
        let mut count = 0_u64;
        while let Some(raw) = slice(block, place, size) {
            let (low, flags, high, checksum) = if v3 {
                let Ok((tag, _)) = BlockTag3::ref_from_prefix(raw) else {
                    break;
                };
                let sum = Some(tag.t_checksum.get());
                (
                    tag.t_blocknr,
                    tag.t_flags.get(),
                    tag.t_blocknr_high.get(),
                    sum,
                )
            } else {
                let Ok((tag, rest)) = BlockTag::ref_from_prefix(raw) else {
                    break;
                };
                let sum = v2.then(|| u32::from(tag.t_checksum.get()));
                let flags = u32::from(tag.t_flags.get());
                (tag.t_blocknr, flags, be32(rest, 0), sum)
            };
            let target = join32(if bit64 { high } else { 0 }, low.get());
            count = count.saturating_add(1);
            each(Write {
                sequence: 0,
                target,
                offset: 0,
                escaped: flags & TAG_ESCAPE != 0,
                checksum,
            })?;
            place = place.saturating_add(size);
            if flags & TAG_SAME_UUID == 0 {
                place = place.saturating_add(16);
            }
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(count)
    }

    fn revokes(
        &self,
        block: &[u8],
        at: u64,
        sequence: u32,
        into: &mut Vec<(u64, u32)>,
    ) -> Result<(), ReadError> {
        let used = index(u64::from(be32(block, HEADER)));
        let limit = block
            .len()
            .saturating_sub(if self.checksums() { 4 } else { 0 });
        if used > limit {
            return Err(corrupt(
                at,
                format!("a revocation block with {used} bytes in use"),
            ));
        }
        let records = block.get(REVOKE_HEADER..used).unwrap_or_default();
        if self.has(journal_incompat::BIT64) {
            into.extend(records.chunks_exact(8).map(|r| (be64(r, 0), sequence)));
        } else {
            into.extend(
                records
                    .chunks_exact(4)
                    .map(|r| (u64::from(be32(r, 0)), sequence)),
            );
        }
        Ok(())
    }

    /// The newest version of each block that whole transactions (those before `end`) write.
    fn overlay(&self, contents: Contents, end: u32) -> Result<BTreeMap<u64, LogBlock>, ReadError> {
        if let Some((sequence, error)) = contents.bad_revoke
            && before(sequence, end)
        {
            return Err(error);
        }
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        for &(block, sequence) in &contents.revokes {
            if before(sequence, end) {
                revoked.insert(block, sequence);
            }
        }
        // What the journal holds of itself would change what is being read.
        let mut own: Vec<(u64, u64)> = self.map.iter().map(|e| (e.physical, e.len)).collect();
        own.sort_unstable();
        let is_own = |block: u64| {
            let after = own.partition_point(|&(first, _)| first <= block);
            let before = after.checked_sub(1).and_then(|i| own.get(i));
            before.is_some_and(|&(first, len)| block < first.saturating_add(len))
        };
        let mut overlay = BTreeMap::new();
        let mut buf = vec![0; index(self.fs.superblock.block_size)];
        for write in &contents.writes {
            // A revocation holds for its own transaction and those before it.
            let gone = revoked
                .get(&write.target)
                .is_some_and(|&sequence| !before(sequence, write.sequence));
            if gone || !before(write.sequence, end) {
                continue;
            }
            if write.target >= self.fs.superblock.blocks {
                return Err(corrupt(
                    write.offset,
                    format!("it writes block {}, which there is not", write.target),
                ));
            }
            if let Some(stored) = write.checksum {
                self.fs
                    .source
                    .read("read the journal", write.offset, &mut buf)?;
                let sum = self.seed.bytes(&write.sequence.to_be_bytes()).bytes(&buf);
                let right = if self.has(journal_incompat::CSUM_V3) {
                    sum.value() == stored
                } else {
                    u32::from(sum.low()) == stored
                };
                if !right {
                    return Err(corrupt(
                        write.offset,
                        format!(
                            "the checksum of block {} in transaction {} does not match",
                            write.target, write.sequence
                        ),
                    ));
                }
            }
            if is_own(write.target) {
                return Err(corrupt(
                    write.offset,
                    format!("it writes block {}, which is its own", write.target),
                ));
            }
            overlay.insert(
                write.target,
                LogBlock {
                    offset: write.offset,
                    escaped: write.escaped,
                },
            );
        }
        Ok(overlay)
    }

    /// The fast commits of the transaction that would come next.
    fn fast_commits(&self, next: u32) -> Result<(Vec<fast_commit::Record>, u32), ReadError> {
        let mut scan = fast_commit::Scan::new(index(self.fs.superblock.inode_size));
        let mut buf = vec![0; index(self.fs.superblock.block_size)];
        // The kernel leaves the block right behind the ring out (`jbd2_fc_init`).
        let first = self.end.saturating_add(1);
        for block in first..self.max {
            let at = self.read(block, &mut buf)?;
            if !scan.block(&buf, at, next)? {
                break;
            }
        }
        Ok(scan.finish())
    }
}

/// Whether transaction `a` came before `b`; the numbers wrap around.
fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

/// The checksum of journals with `COMPAT_CHECKSUM`: CRC-32, most significant bit first, over a transaction's blocks.
struct Crc32Be {
    state: u32,
    table: Option<Box<[u32; 256]>>,
}

impl Crc32Be {
    fn new() -> Self {
        Self {
            state: !0,
            table: None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        let table = self.table.get_or_insert_with(|| {
            let mut table = Box::new([0_u32; 256]);
            for (entry, number) in table.iter_mut().zip(0_u32..) {
                *entry = (0..8).fold(number << 24, |crc, _| {
                    if crc & 0x8000_0000 == 0 {
                        crc << 1
                    } else {
                        (crc << 1) ^ 0x04C1_1DB7
                    }
                });
            }
            table
        });
        for &byte in bytes {
            let [top, ..] = self.state.to_be_bytes();
            self.state = (self.state << 8) ^ table[usize::from(top ^ byte)];
        }
    }

    fn matches(&self, commit: &CommitHeader) -> bool {
        let stored = commit.h_chksum[0].get();
        let (kind, size) = (commit.h_chksum_type, commit.h_chksum_size);
        (self.state == stored && kind == CHECKSUM_CRC32 && size == 4)
            || (stored == 0 && kind == 0 && size == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_of_the_check_string() {
        // CRC-32/MPEG-2: the same polynomial, start value and bit order, no final inversion.
        let mut crc = Crc32Be::new();
        crc.update(b"123456789");
        assert_eq!(crc.state, 0x0376_E6E7);
    }

    #[test]
    fn transaction_numbers_wrap() {
        assert!(before(1, 2) && !before(2, 2) && !before(3, 2));
        assert!(before(u32::MAX, 0) && !before(0, u32::MAX));
    }
}
