//! What a power cut may leave.
//!
//! # The rules
//! fsync(2) of a file makes its bytes durable, and of a directory the names in it, with those that the same renames took
//! away elsewhere; nothing else makes anything durable. What is not durable may be there or not, each change by itself:
//!
//! * a write in part, in pieces of 512 bytes, or only the length that it gave the file, with zeros;
//! * a name without the bytes of its file, and the bytes of a file without its name;
//! * a later change without an earlier one, unless both are of the same name.
//!
//! A rename is all there or not at all. That, and no more, is what journaling file systems have in common (ext4, XFS and
//! btrfs keep names in order besides; `docs/crash-safety.md` has the sources).

use std::ffi::OsStr;

use lcow_blockio::testing::Dice;

use super::Op;
use super::world::World;

/// What a power cut can't tear, in bytes: a sector of the oldest disks.
const ATOM: usize = 512;

/// All that was done to a file system.
#[derive(Debug, Clone)]
pub struct History {
    start: World,
    ops: Vec<Op>,
}

/// How many of the states after each operation are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Depth {
    /// Whether each change that is not durable is left out, and kept, by itself, and what came up to it.
    pub singles: bool,
    /// So many combinations by lot.
    pub random: usize,
}

/// What becomes of a change that is not durable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Lost,
    /// Of a write: in part. Else as lost.
    Torn,
    /// Of a write: only the length. Else as lost.
    Length,
}

impl Op {
    /// The directory and the name that are changed, the two of them for a rename.
    fn names(&self) -> [Option<(u64, &OsStr)>; 2] {
        match self {
            Self::Link {
                directory, name, ..
            }
            | Self::Unlink { directory, name } => [Some((*directory, name)), None],
            Self::Rename { from, to, .. } => [Some((from.0, &from.1)), Some((to.0, &to.1))],
            _ => [None, None],
        }
    }

    fn is_of_names(&self) -> bool {
        self.names()[0].is_some()
    }

    /// Whether fsync of this node makes it durable.
    fn is_of(&self, synced: u64) -> bool {
        match self {
            Self::Write { node, .. }
            | Self::SetLen { node, .. }
            | Self::Zero { node, .. }
            | Self::Share { node, .. } => *node == synced,
            _ => self
                .names()
                .iter()
                .flatten()
                .any(|&(directory, _)| directory == synced),
        }
    }

    fn shares_a_name(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.names(), other.names());
        ours.iter()
            .flatten()
            .any(|name| theirs.iter().flatten().any(|other| name == other))
    }
}

impl History {
    pub(super) fn new(start: World, ops: Vec<Op>) -> Self {
        Self { start, ops }
    }

    /// How many operations it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether nothing was done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Calls `each` with file systems that a power cut may leave, after each operation from the one numbered `from` on. The
    /// first argument says how many operations had been done. The same seed gives the same ones.
    ///
    /// Stops with the first error of `each`.
    ///
    /// # Errors
    /// That one.
    pub fn cuts<E>(
        &self,
        from: usize,
        depth: Depth,
        seed: u64,
        mut each: impl FnMut(usize, World) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut dice = Dice(seed.wrapping_mul(2) | 1);
        let mut durable = self.start.clone();
        let mut pending: Vec<&Op> = Vec::new();
        for done in 0..=self.ops.len() {
            let mut news = done == from;
            if let Some(op) = done.checked_sub(1).and_then(|last| self.ops.get(last)) {
                match op {
                    // The inode of something without a name is not seen.
                    Op::Make { .. } => durable.apply(op),
                    Op::Sync { node } => {
                        news |= commit(&mut durable, &mut pending, *node);
                    }
                    op => {
                        pending.push(op);
                        news = true;
                    }
                }
            }
            if done >= from && news {
                combine(&durable, &pending, depth, &mut dice, &mut |world| {
                    each(done, world)
                })?;
            }
        }
        Ok(())
    }
}

/// Makes durable what fsync of a node makes durable, and what came before it of the same names.
fn commit(durable: &mut World, pending: &mut Vec<&Op>, node: u64) -> bool {
    let mut goes: Vec<bool> = pending.iter().map(|op| op.is_of(node)).collect();
    for later in (0..pending.len()).rev() {
        if goes[later] && pending[later].is_of_names() {
            for earlier in 0..later {
                goes[earlier] |= pending[earlier].shares_a_name(pending[later]);
            }
        }
    }
    let mut goes = goes.into_iter();
    let before = pending.len();
    pending.retain(|op| {
        let goes = goes.next().unwrap_or(false);
        if goes {
            durable.apply(op);
        }
        !goes
    });
    before != pending.len()
}

fn combine<E>(
    durable: &World,
    pending: &[&Op],
    depth: Depth,
    dice: &mut Dice,
    each: &mut impl FnMut(World) -> Result<(), E>,
) -> Result<(), E> {
    let mut cut = |fate: &mut dyn FnMut(usize, &Op) -> Fate, dice: &mut Dice| {
        let mut world = durable.clone();
        for (n, op) in pending.iter().enumerate() {
            let fate = fate(n, op);
            keep(&mut world, op, fate, dice);
        }
        each(world)
    };
    use Fate::{Kept, Length, Lost, Torn};
    let if_kept = |kept: bool| if kept { Kept } else { Lost };
    cut(&mut |_, _| Kept, dice)?;
    if pending.is_empty() {
        return Ok(());
    }
    cut(&mut |_, _| Lost, dice)?;
    if pending.len() > 1 {
        let of_names = |op: &Op, there, else_| if op.is_of_names() { there } else { else_ };
        cut(&mut |_, op| of_names(op, Kept, Lost), dice)?;
        cut(&mut |_, op| of_names(op, Kept, Length), dice)?;
        cut(&mut |_, op| of_names(op, Kept, Torn), dice)?;
        cut(&mut |_, op| of_names(op, Lost, Kept), dice)?;
    }
    if depth.singles {
        for one in 0..pending.len() {
            cut(&mut |n, _| if_kept(n != one), dice)?;
            cut(&mut |n, _| if_kept(n == one), dice)?;
            cut(&mut |n, _| if_kept(n <= one), dice)?;
        }
    }
    for _ in 0..depth.random {
        // Half of the time most things are kept.
        let mut own = Dice(dice.roll(u64::MAX) | 1);
        let sides = 2 + 6 * own.roll(2);
        let mut fate = |_: usize, _: &Op| match own.roll(sides) {
            0 => [Lost, Lost, Torn, Length][own.roll(4) as usize],
            _ => Kept,
        };
        cut(&mut fate, dice)?;
    }
    Ok(())
}

fn keep(world: &mut World, op: &Op, fate: Fate, dice: &mut Dice) {
    match (fate, op) {
        (Fate::Kept, op) => world.apply(op),
        (Fate::Torn, Op::Write { node, at, bytes }) => world.file(*node, |contents| {
            for (n, piece) in bytes.chunks(ATOM).enumerate() {
                if dice.roll(2) == 0 {
                    contents.write(at + (n * ATOM) as u64, piece);
                }
            }
        }),
        (Fate::Length, Op::Write { node, at, bytes }) => world.file(*node, |contents| {
            let end = at + bytes.len() as u64;
            if contents.len < end {
                contents.set_len(end);
            }
        }),
        (Fate::Length, Op::Share { node, contents }) => {
            world.file(*node, |own| own.set_len(contents.len));
        }
        (Fate::Lost | Fate::Torn | Fate::Length, _) => {}
    }
}
