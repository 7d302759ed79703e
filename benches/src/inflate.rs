//! Decompresses a file and throws the result away, with the library that `lcow` uses and as it uses it.

use std::fs::File;
use std::io::{BufReader, Read as _};

use anyhow::{Context as _, Result};
use lcow_layer::compress::Compression;

pub(crate) fn run(mut args: impl Iterator<Item = std::ffi::OsString>) -> Result<()> {
    let path = args.next().context("no file")?;
    let mut start = [0; Compression::DETECT_LEN];
    let len = File::open(&path)?.read(&mut start)?;
    let input = BufReader::with_capacity(128 << 10, File::open(&path)?);
    let mut decoder = Compression::detect(&start[..len]).decoder(input)?;
    let mut buffer = vec![0; 128 << 10];
    while decoder.read(&mut buffer)? > 0 {}
    Ok(())
}
