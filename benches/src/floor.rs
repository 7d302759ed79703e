//! The least that a conversion through the page cache can cost: reading the input and writing as many bytes as the disk has,
//! with no work in between.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};
use nix::fcntl::{FallocateFlags, fallocate};

/// Bytes read at a time, and written at a time at multiples of that: what `lcow` does too.
const READ: usize = 256 << 10;
const WRITE: usize = 64 << 10;

/// `INPUT OUTPUT BYTES`: reads all of a file, and in step with that writes so many bytes of anything to another.
pub(crate) fn run(mut args: impl Iterator<Item = std::ffi::OsString>) -> Result<()> {
    let mut input = File::open(args.next().context("no input")?)?;
    let output = File::create(args.next().context("no output")?)?;
    let bytes = args.next().context("no number of bytes")?;
    let bytes: u64 = bytes.to_str().context("no number")?.parse()?;
    // Asked for in one go, as `lcow` asks for it in steps: cheaper than block by block, where it can be done.
    let _ = fallocate(
        &output,
        FallocateFlags::FALLOC_FL_KEEP_SIZE,
        0,
        i64::try_from(bytes)?,
    );
    let size = input.metadata()?.len().max(1);
    let mut buffer = vec![1; READ];
    let (mut taken, mut made) = (0, 0);
    loop {
        let n = input.read(&mut buffer)?;
        taken += n as u64;
        let due = match n {
            0 => bytes,
            _ => (u128::from(bytes) * u128::from(taken) / u128::from(size)) as u64,
        };
        while made < due && (n == 0 || due - made >= WRITE as u64) {
            let piece = &buffer[..WRITE.min(usize::try_from(bytes - made).unwrap_or(WRITE))];
            output.write_all_at(piece, made)?;
            made += piece.len() as u64;
        }
        if n == 0 {
            return Ok(());
        }
    }
}
