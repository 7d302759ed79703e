//! Hashing blocks, on as many threads as there are processors.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::{BLOCK_LEN, BlockHash};

/// More threads than this find nothing to do: memory is the limit by then.
const MAX_THREADS: usize = 16;

/// A block of zeros.
const ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];

/// Hashes blocks with one salt.
#[derive(Clone)]
pub(super) struct BlockHasher {
    /// What has seen the salt.
    salted: Sha256,
    /// The hash of a block of zeros: holes are many, and need no hashing.
    zeros: BlockHash,
}

impl BlockHasher {
    pub(super) fn new(salt: &[u8]) -> Self {
        let salted = Sha256::new_with_prefix(salt);
        let zeros = BlockHash(salted.clone().chain_update(ZEROS).finalize().into());
        Self { salted, zeros }
    }

    /// The hash of a block.
    pub(super) fn hash(&self, block: &[u8]) -> BlockHash {
        if block == ZEROS {
            return self.zeros;
        }
        BlockHash(self.salted.clone().chain_update(block).finalize().into())
    }
}

/// Does `work` for all of `0 .. count`, in ascending order but side by side, each thread with a state of its own. Gives the
/// error of the lowest number that failed.
pub(super) fn each<S, E: Send>(
    count: u64,
    state: impl Fn() -> S + Sync,
    work: impl Fn(u64, &mut S) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicU64::new(0);
    // Numbers at and above this one need not be done any more.
    let stop = AtomicU64::new(count);
    let first: Mutex<Option<(u64, E)>> = Mutex::new(None);
    let run = || {
        let mut state = state();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= stop.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = work(number, &mut state) {
                // All lower numbers were handed out before: whichever of them fails gets here too.
                stop.fetch_min(number, Ordering::Relaxed);
                let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|&(lowest, _)| number < lowest) {
                    *first = Some((number, error));
                }
                return;
            }
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors
        .min(MAX_THREADS)
        .min(usize::try_from(count).unwrap_or(MAX_THREADS));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}
