//! The images that inputs patch, how a patch is written, and how an input is made into another.
//!
//! An input is the number of an image, a byte of flags, and patches: an offset (24 bits, little-endian), the length less one, and as many
//! bytes. What is cut short at the end does not count. So inputs stay small, and each mutation hits what matters.

use std::sync::OnceLock;

use crate::bytes::{get, le16, le32, part, put};
use crate::{Mutate, Rng};

/// Images in `bases/`. Only ever added to at the end: inputs name them by their place.
const BASES: &[&[u8]] = &[
    include_bytes!("../bases/ext4.zst"),
    include_bytes!("../bases/ext4-nocsum.zst"),
    include_bytes!("../bases/ext4-nothing.zst"),
    include_bytes!("../bases/ext2.zst"),
    include_bytes!("../bases/ext2-csum.zst"),
    include_bytes!("../bases/inline.zst"),
    include_bytes!("../bases/ea_inode.zst"),
    include_bytes!("../bases/bigalloc.zst"),
    include_bytes!("../bases/meta_bg.zst"),
    include_bytes!("../bases/groups.zst"),
    include_bytes!("../bases/sparse2.zst"),
    include_bytes!("../bases/blocks4k.zst"),
    include_bytes!("../bases/journal.zst"),
    include_bytes!("../bases/journal-32.zst"),
    include_bytes!("../bases/journal-ext3.zst"),
    include_bytes!("../bases/resize.zst"),
    include_bytes!("../bases/quota.zst"),
    include_bytes!("../bases/casefold.zst"),
    include_bytes!("../bases/orphans.zst"),
    include_bytes!("../bases/syzkaller/0.zst"),
    include_bytes!("../bases/syzkaller/1.zst"),
    include_bytes!("../bases/syzkaller/2.zst"),
    include_bytes!("../bases/syzkaller/3.zst"),
    include_bytes!("../bases/syzkaller/4.zst"),
    include_bytes!("../bases/syzkaller/5.zst"),
    include_bytes!("../bases/syzkaller/6.zst"),
    include_bytes!("../bases/syzkaller/7.zst"),
    include_bytes!("../bases/syzkaller/8.zst"),
    include_bytes!("../bases/syzkaller/9.zst"),
    include_bytes!("../bases/syzkaller/10.zst"),
    include_bytes!("../bases/syzkaller/11.zst"),
    include_bytes!("../bases/syzkaller/12.zst"),
    include_bytes!("../bases/syzkaller/13.zst"),
    include_bytes!("../bases/syzkaller/14.zst"),
    include_bytes!("../bases/syzkaller/15.zst"),
    include_bytes!("../bases/syzkaller/16.zst"),
    include_bytes!("../bases/syzkaller/17.zst"),
    include_bytes!("../bases/syzkaller/18.zst"),
    include_bytes!("../bases/syzkaller/19.zst"),
    include_bytes!("../bases/syzkaller/20.zst"),
    include_bytes!("../bases/syzkaller/21.zst"),
    include_bytes!("../bases/syzkaller/22.zst"),
    include_bytes!("../bases/syzkaller/23.zst"),
    include_bytes!("../bases/syzkaller/24.zst"),
    include_bytes!("../bases/syzkaller/25.zst"),
    include_bytes!("../bases/syzkaller/26.zst"),
    include_bytes!("../bases/syzkaller/27.zst"),
    include_bytes!("../bases/syzkaller/28.zst"),
    include_bytes!("../bases/syzkaller/29.zst"),
    include_bytes!("../bases/syzkaller/30.zst"),
    include_bytes!("../bases/syzkaller/31.zst"),
    include_bytes!("../bases/syzkaller/32.zst"),
    include_bytes!("../bases/syzkaller/33.zst"),
    include_bytes!("../bases/syzkaller/34.zst"),
    include_bytes!("../bases/syzkaller/35.zst"),
    include_bytes!("../bases/syzkaller/36.zst"),
    include_bytes!("../bases/syzkaller/37.zst"),
    include_bytes!("../bases/syzkaller/38.zst"),
    include_bytes!("../bases/syzkaller/39.zst"),
    include_bytes!("../bases/syzkaller/40.zst"),
    include_bytes!("../bases/syzkaller/41.zst"),
    include_bytes!("../bases/syzkaller/42.zst"),
    include_bytes!("../bases/syzkaller/43.zst"),
    include_bytes!("../bases/syzkaller/44.zst"),
    include_bytes!("../bases/syzkaller/45.zst"),
    include_bytes!("../bases/syzkaller/46.zst"),
    include_bytes!("../bases/syzkaller/47.zst"),
    include_bytes!("../bases/syzkaller/48.zst"),
    include_bytes!("../bases/syzkaller/49.zst"),
    include_bytes!("../bases/syzkaller/50.zst"),
    include_bytes!("../bases/syzkaller/51.zst"),
    include_bytes!("../bases/syzkaller/52.zst"),
    include_bytes!("../bases/syzkaller/53.zst"),
    include_bytes!("../bases/syzkaller/54.zst"),
    include_bytes!("../bases/syzkaller/55.zst"),
    include_bytes!("../bases/syzkaller/56.zst"),
    include_bytes!("../bases/syzkaller/57.zst"),
    include_bytes!("../bases/syzkaller/58.zst"),
    include_bytes!("../bases/syzkaller/59.zst"),
    include_bytes!("../bases/syzkaller/60.zst"),
    include_bytes!("../bases/syzkaller/61.zst"),
    include_bytes!("../bases/syzkaller/62.zst"),
];

/// Flag: checksums are mended after the patches.
pub(crate) const MEND: u8 = 1;
/// Flag: the image is taken for a layer, with overlayfs's whiteouts.
pub(crate) const OVERLAY: u8 = 2;

/// An image, and where in it patches are worth most.
pub(crate) struct Base {
    pub(crate) bytes: Vec<u8>,
    /// Places of 16 bytes that are neither zeros nor text.
    spots: Vec<usize>,
}

/// The image of a number; numbers past the last begin anew.
pub(crate) fn base(number: u8) -> &'static Base {
    static UNPACKED: [OnceLock<Base>; BASES.len()] = [const { OnceLock::new() }; BASES.len()];
    let number = usize::from(number) % BASES.len();
    UNPACKED[number].get_or_init(|| {
        let bytes = zstd::decode_all(BASES[number]).expect("the images are whole");
        let dull = |b: &u8| matches!(b, b' '..=b'~' | b'\n' | 0);
        let spots = bytes
            .chunks(16)
            .enumerate()
            .filter(|(_, chunk)| !chunk.iter().all(dull))
            .map(|(i, _)| i * 16)
            .collect();
        Base { bytes, spots }
    })
}

#[derive(Debug, Clone)]
struct Patch {
    at: usize,
    bytes: Vec<u8>,
}

/// An input, read.
#[derive(Debug, Clone)]
struct Input {
    base: u8,
    flags: u8,
    patches: Vec<Patch>,
}

impl Input {
    fn read(input: &[u8]) -> Self {
        let mut patches = Vec::new();
        let mut rest = input.get(2..).unwrap_or_default();
        while let [a, b, c, len, behind @ ..] = rest {
            let len = usize::from(*len) + 1;
            let Some((bytes, behind)) = behind.split_at_checked(len) else {
                break;
            };
            let at = usize::from(*a) | usize::from(*b) << 8 | usize::from(*c) << 16;
            patches.push(Patch {
                at,
                bytes: bytes.to_vec(),
            });
            rest = behind;
        }
        Self {
            base: input.first().copied().unwrap_or(0),
            flags: input.get(1).copied().unwrap_or(0),
            patches,
        }
    }

    fn write(&self) -> Vec<u8> {
        let mut out = vec![self.base, self.flags];
        for patch in &self.patches {
            if let Ok(len) = u8::try_from(patch.bytes.len().wrapping_sub(1)) {
                out.extend_from_slice(&patch.at.to_le_bytes()[..3]);
                out.push(len);
                out.extend_from_slice(&patch.bytes);
            }
        }
        out
    }

    fn patched(&self) -> Vec<u8> {
        let mut image = base(self.base).bytes.clone();
        for patch in &self.patches {
            put(&mut image, patch.at, &patch.bytes);
        }
        image
    }
}

/// The flags and the image of an input, patched but not mended.
pub(crate) fn make(input: &[u8]) -> (u8, Vec<u8>) {
    let input = Input::read(input);
    (input.flags, input.patched())
}

/// Numbers of bytes that a number on the disk has.
const WIDTHS: &[usize] = &[1, 2, 2, 4, 4, 4, 8];

fn value(now: &[u8], image: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut word = [0; 8];
    word[..now.len()].copy_from_slice(now);
    let number = u64::from_le_bytes(word);
    let blocks = u64::from(le32(image, 1024 + 4));
    let new = match rng.below(14) {
        0 => 0,
        1 => u64::MAX,
        2 => number.wrapping_add(1),
        3 => number.wrapping_sub(1),
        4 => number ^ (1 << rng.below(now.len() * 8)),
        5 => rng.number() % 64,
        6 => rng.number() % blocks.max(1),
        7 => blocks.wrapping_sub(rng.number() % 3),
        8 => 1 << rng.below(now.len() * 8),
        9 => number.wrapping_add(rng.number() % 16),
        10 => 0x7fff_ffff_ffff_ffff >> (64 - now.len() * 8),
        11 => u64::from(le32(image, rng.below(image.len() / 4) * 4)),
        12 => number.rotate_left(8),
        _ => rng.number(),
    };
    new.to_le_bytes()[..now.len()].to_vec()
}

/// A patch somewhere in what matters of an image as patched so far.
fn patch(input: &Input, rng: &mut Rng) -> Patch {
    let image = input.patched();
    let spots = &base(input.base).spots;
    let spot = |rng: &mut Rng| match rng.below(8) {
        0 => 1024 + rng.below(0x280),
        // The first descriptors, behind the superblock's block.
        1 => 2048.max(1024 << le32(&image, 1024 + 24).min(6)) + rng.below(64),
        _ => rng.pick(spots) + rng.below(16),
    };
    if rng.one_in(6) {
        // Something whole, from somewhere else: an entry, an extent, an inode.
        let len = *rng.pick(&[8, 12, 16, 24, 32, 64, 128, 256]);
        let (from, to) = (*rng.pick(spots), *rng.pick(spots));
        let bytes = part(&image, from, len);
        if !bytes.is_empty() {
            return Patch {
                at: to,
                bytes: bytes.to_vec(),
            };
        }
    }
    let width = *rng.pick(WIDTHS);
    let at = spot(rng) / width.min(4) * width.min(4);
    let now = get::<8>(&image, at);
    Patch {
        at,
        bytes: value(&now[..width], &image, rng),
    }
}

pub(crate) fn mutate(input: &mut Vec<u8>, max: usize, rng: &mut Rng, plain: &mut Mutate<'_>) {
    let mut read = Input::read(input);
    for _ in 0..=rng.below(3) {
        step(&mut read, rng, plain);
    }
    *input = read.write();
    input.truncate(max);
}

fn step(input: &mut Input, rng: &mut Rng, plain: &mut Mutate<'_>) {
    let count = input.patches.len();
    match rng.below(20) {
        0 => input.flags ^= 1 << rng.below(2),
        1 if count < 3 => input.base = u8::try_from(rng.below(BASES.len())).unwrap_or(0),
        1..=3 if count > 1 => {
            input.patches.remove(rng.below(count));
        }
        4 if count > 0 => {
            let patch = &mut input.patches[rng.below(count)];
            let move_by = *rng.pick(&[1, 2, 4, 8, 12, 16, 32, 128, 256, 1024, 4096]);
            patch.at = if rng.one_in(2) {
                patch.at.wrapping_add(move_by)
            } else {
                patch.at.wrapping_sub(move_by)
            } & 0xff_ffff;
        }
        5..=7 if count > 0 => {
            let image = input.patched();
            let patch = &mut input.patches[rng.below(count)];
            if patch.bytes.len() <= 8 {
                patch.bytes = value(&patch.bytes, &image, rng);
            } else {
                let len = patch.bytes.len();
                plain(&mut patch.bytes, len);
            }
        }
        8 => {
            let mut bytes = input.write();
            let max = bytes.len() + 32;
            plain(&mut bytes, max);
            *input = Input::read(&bytes);
        }
        _ if count < 100 => {
            let patch = patch(input, rng);
            input.patches.push(patch);
        }
        _ => {}
    }
    if rng.one_in(8) {
        input.flags |= MEND;
    }
}

/// The fields of a superblock that the harness needs, believed only as far as arithmetic goes.
#[derive(Debug)]
pub(crate) struct Geometry {
    pub(crate) block: usize,
    pub(crate) first_block: usize,
    pub(crate) blocks_per_group: usize,
    pub(crate) clusters_per_group: usize,
    pub(crate) inodes_per_group: usize,
    pub(crate) inode_size: usize,
    pub(crate) descriptor: usize,
    pub(crate) groups: usize,
    pub(crate) first_meta_bg: usize,
    pub(crate) compat: u32,
    pub(crate) incompat: u32,
    pub(crate) ro_compat: u32,
}

impl Geometry {
    pub(crate) fn of(image: &[u8]) -> Option<Self> {
        const SB: usize = 1024;
        let long = |at| usize::try_from(le32(image, SB + at)).unwrap_or(0);
        let log = le32(image, SB + 0x18);
        let (compat, incompat) = (le32(image, SB + 0x5c), le32(image, SB + 0x60));
        let dynamic = long(0x4c) > 0;
        let bit64 = incompat & 0x80 != 0;
        let geometry = Self {
            block: 1024 << log.min(6),
            first_block: long(0x14),
            blocks_per_group: long(0x20),
            clusters_per_group: long(0x24),
            inodes_per_group: long(0x28),
            inode_size: if dynamic {
                usize::from(le16(image, SB + 0x58))
            } else {
                128
            },
            descriptor: if bit64 {
                usize::from(le16(image, SB + 0xfe))
            } else {
                32
            },
            groups: long(4)
                .saturating_sub(long(0x14))
                .div_ceil(long(0x20).max(1)),
            first_meta_bg: long(0x104),
            compat,
            incompat,
            ro_compat: le32(image, SB + 0x64),
        };
        let sane = log <= 6
            && (32..=1024).contains(&geometry.descriptor)
            && (128..=geometry.block).contains(&geometry.inode_size)
            && geometry.blocks_per_group > 0
            && geometry.groups <= 4096
            && geometry.inodes_per_group <= geometry.block * 8;
        sane.then_some(geometry)
    }

    /// Whether a group begins with a copy of the superblock.
    fn has_super(&self, image: &[u8], group: usize) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat & 0x200 != 0 {
            let number = u32::try_from(group).unwrap_or(0);
            return [0x24c, 0x250]
                .iter()
                .any(|at| le32(image, 1024 + at) == number);
        }
        let power = |base: usize| {
            let mut n = base;
            while n < group {
                n *= base;
            }
            n == group
        };
        self.ro_compat & 1 == 0 || group == 1 || power(3) || power(5) || power(7)
    }

    /// Where the descriptor of a group lies.
    pub(crate) fn descriptor_at(&self, image: &[u8], group: usize) -> usize {
        let per_block = (self.block / self.descriptor).max(1);
        let number = group / per_block;
        let block = if self.incompat & 0x10 == 0 || number < self.first_meta_bg {
            1024 / self.block + 1 + number
        } else {
            let first = number * per_block;
            // With clusters, blocks of 1 KiB are counted from 0, and the superblock is in the second.
            let second = self.block == 1024 && number == 0 && self.first_block == 0;
            first * self.blocks_per_group
                + self.first_block
                + usize::from(self.has_super(image, first))
                + usize::from(second)
        };
        block * self.block + group % per_block * self.descriptor
    }

    /// A block number in a descriptor: its lower word at `low`, its upper (of 64-byte descriptors) at `high`.
    pub(crate) fn descriptor_block(
        &self,
        image: &[u8],
        group: usize,
        low: usize,
        high: usize,
    ) -> usize {
        let at = self.descriptor_at(image, group);
        let high = if self.descriptor >= 64 {
            u64::from(le32(image, at + high))
        } else {
            0
        };
        usize::try_from(high << 32 | u64::from(le32(image, at + low))).unwrap_or(usize::MAX)
    }

    /// Where an inode lies; `None` if there is no such group.
    pub(crate) fn inode_at(&self, image: &[u8], number: usize) -> Option<usize> {
        let place = number.checked_sub(1)?;
        let group = place / self.inodes_per_group.max(1);
        if group >= self.groups {
            return None;
        }
        let table = self.descriptor_block(image, group, 8, 0x28);
        table
            .checked_mul(self.block)?
            .checked_add(place % self.inodes_per_group * self.inode_size)
    }
}
