//! A member's header, and the member as a reader.

use std::fmt;
use std::io::{self, BufRead, Read};

use crate::library::Inflater;
use crate::{Fault, Library};

/// RFC 1952, section 2.3.1: flags of a header.
const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;
/// The longest name or comment that is read, in bytes; what flate2 allows.
const TEXT_MAX: usize = 65_535;

/// Reads one member of a gzip file, and nothing behind it.
pub struct GzDecoder<R> {
    input: R,
    stage: Stage,
}

enum Stage {
    Header(Library),
    Body(Inflater),
    /// At the end, or after an error.
    Over,
}

impl<R: BufRead> GzDecoder<R> {
    /// A decoder of the member that `input` is at the start of. Nothing is read yet.
    pub fn new(library: Library, input: R) -> Self {
        Self {
            input,
            stage: Stage::Header(library),
        }
    }

    /// The input, at the byte behind the member if that was read to its end.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn step(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Stage::Header(library) = self.stage {
            Header(&mut self.input).pass()?;
            self.stage = Stage::Body(Inflater::new(library));
        }
        let Stage::Body(inflater) = &mut self.stage else {
            return Ok(0);
        };
        loop {
            let input = fill(&mut self.input)?;
            let at_end = input.is_empty();
            let step = inflater.step(input, out)?;
            self.input.consume(step.consumed);
            if step.finished {
                self.stage = Stage::Over;
                return Ok(step.produced);
            }
            match (step.produced, step.consumed) {
                (0, 0) if at_end => return Err(Fault::Truncated.into()),
                // With input and room there is always something to do.
                (0, 0) => return Err(Fault::Deflate.into()),
                (0, _) => {}
                (produced, _) => return Ok(produced),
            }
        }
    }
}

impl<R: BufRead> Read for GzDecoder<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        self.step(out).inspect_err(|_| self.stage = Stage::Over)
    }
}

impl<R> fmt::Debug for GzDecoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GzDecoder").finish_non_exhaustive()
    }
}

/// The input's next bytes; none at its end.
fn fill(input: &mut impl BufRead) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    // What is buffered now is given again without reading.
    input.fill_buf()
}

struct Header<'a, R>(&'a mut R);

impl<R: BufRead> Header<'_, R> {
    /// Reads past a header, checking it.
    fn pass(mut self) -> io::Result<()> {
        let mut crc = flate2::Crc::new();
        let fixed = self.array::<10>(&mut crc)?;
        let [0x1f, 0x8b, 8, flags, ..] = fixed else {
            return Err(Fault::Header.into());
        };
        if flags & RESERVED != 0 {
            return Err(Fault::Header.into());
        }
        if flags & FEXTRA != 0 {
            let len = u16::from_le_bytes(self.array(&mut crc)?);
            for _ in 0..len {
                self.array::<1>(&mut crc)?;
            }
        }
        for flag in [FNAME, FCOMMENT] {
            if flags & flag != 0 {
                self.text(&mut crc)?;
            }
        }
        if flags & FHCRC != 0 {
            let [low, high, ..] = crc.sum().to_le_bytes();
            if self.array(&mut crc)? != [low, high] {
                return Err(Fault::HeaderChecksum.into());
            }
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, crc: &mut flate2::Crc) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Fault::Truncated.into(),
            _ => e,
        })?;
        crc.update(&bytes);
        Ok(bytes)
    }

    /// A text and the zero behind it.
    fn text(&mut self, crc: &mut flate2::Crc) -> io::Result<()> {
        for _ in 0..=TEXT_MAX {
            if self.array(crc)? == [0] {
                return Ok(());
            }
        }
        Err(Fault::Header.into())
    }
}
