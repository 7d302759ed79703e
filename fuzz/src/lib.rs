//! What the fuzz targets do with an input, and how they make the next one.
//!
//! Each [`Target`] has a body that runs one input and panics where the code breaks a promise, and a mutator that knows
//! the format and mends its checksums. `libfuzzer/` beside this crate makes a binary of each for libFuzzer; the tests here run the
//! bodies over all seeds and all inputs that once found something. `docs/fuzzing.md` says what each target promises.

#![allow(
    clippy::missing_panics_doc,
    reason = "panicking is how a finding is told"
)]

mod bytes;
mod ext4_to_tar;
mod fast_log;
mod fast_model;
mod fix;
mod image;
mod journal;
mod limits;
mod naive;
mod pax_model;
mod replay;
mod rng;
mod split;
mod tar_model;
mod tar_mutate;
mod tar_to_ext4;
mod tree;
mod vhd;
mod vhd_dynamic;
mod vhd_model;
mod vhdx;

use std::sync::{Mutex, PoisonError};

pub use rng::Rng;

/// The largest input, in bytes.
pub const MAX_INPUT: usize = 64 << 10;

/// One thing to fuzz.
#[derive(Debug)]
pub struct Target {
    /// Its name: of the binary, and of the folders with its seeds.
    pub name: &'static str,
    body: fn(&[u8]),
    mutator: fn(&mut Vec<u8>, usize, &mut Rng, &mut Mutate<'_>),
}

/// libFuzzer's own mutation of some bytes, which knows nothing of formats: it takes them and the most there may be of them.
pub type Mutate<'a> = dyn FnMut(&mut Vec<u8>, usize) + 'a;

/// A tar becomes a disk.
pub static TAR_TO_EXT4: Target = Target {
    name: "tar_to_ext4",
    body: tar_to_ext4::run,
    mutator: tar_mutate::mutate,
};

/// A disk becomes a tar.
pub static EXT4_TO_TAR: Target = Target {
    name: "ext4_to_tar",
    body: ext4_to_tar::run,
    mutator: image::mutate,
};

/// A journal is replayed.
pub static JOURNAL: Target = Target {
    name: "journal",
    body: journal::run,
    mutator: journal::mutate,
};

/// A sidecar makes a tar again.
pub static SPLIT: Target = Target {
    name: "split",
    body: split::run,
    mutator: split::mutate,
};

/// A VHD, fixed or dynamic, is opened and read.
pub static VHD: Target = Target {
    name: "vhd",
    body: vhd::run,
    mutator: vhd::mutate,
};

/// A VHDX is opened, read, checked and written.
pub static VHDX: Target = Target {
    name: "vhdx",
    body: vhdx::run,
    mutator: vhdx::mutate,
};

/// All targets.
pub static TARGETS: &[&Target] = &[&TAR_TO_EXT4, &EXT4_TO_TAR, &JOURNAL, &SPLIT, &VHD, &VHDX];

impl Target {
    /// Runs one input.
    pub fn run(&self, input: &[u8]) {
        // Memory and time are counted for the whole process.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        (self.body)(input);
    }

    /// Makes another input of the first `size` bytes of `data`, in place; returns its length.
    pub fn mutate(
        &self,
        data: &mut [u8],
        size: usize,
        max_size: usize,
        seed: u32,
        plain: fn(&mut [u8], usize, usize) -> usize,
    ) -> usize {
        let max = max_size.min(data.len());
        let mut input = data[..size.min(max)].to_vec();
        let mut rng = Rng::new(seed);
        (self.mutator)(&mut input, max, &mut rng, &mut |bytes, max| {
            let len = bytes.len();
            let max = max.max(len).max(1);
            bytes.resize(max, 0);
            let len = plain(bytes, len, max);
            bytes.truncate(len);
        });
        input.truncate(max);
        data[..input.len()].copy_from_slice(&input);
        input.len()
    }
}
