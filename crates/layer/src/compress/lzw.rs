//! The `.Z` files of Unix `compress`: LZW with codes of 9 to 16 bits.
//!
//! No standard describes them; the rules are those of gzip's `unlzw.c`. The format has no length and no checksum: where it is cut, only
//! what is inside can tell.

use std::io::{self, BufRead, Read};

/// The code that empties the table, in block mode.
const CLEAR: u16 = 256;
/// Codes are as wide as this at first, in bits.
const MIN_BITS: u32 = 9;
/// Codes come in groups of so many. A change of width ends a group early: its rest is filled up.
const GROUP: u32 = 8;

/// Decodes a stream.
pub(super) struct Lzw<R> {
    input: R,
    state: Option<State>,
}

struct State {
    max_bits: u32,
    /// Whether [`CLEAR`] has its meaning.
    block_mode: bool,
    /// Width of the next code, in bits.
    bits: u32,
    /// Codes read of the present group.
    in_group: u32,
    /// Bits taken from the input and not yet used, the next lowest.
    buffer: u64,
    buffered: u32,
    /// The next code to be given a meaning; more than 16 bits once the table is full.
    free: u32,
    previous: Option<u16>,
    first_byte: u8,
    /// What a code stands for: what another code stands for, and a byte.
    prefix: Vec<u16>,
    suffix: Vec<u8>,
    /// Decoded bytes, the next last.
    ready: Vec<u8>,
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: BufRead> Lzw<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, state: None }
    }
}

impl State {
    fn begin(input: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; 3];
        input.read_exact(&mut header)?;
        let flags = header[2];
        let max_bits = u32::from(flags & 0x1f);
        if !(MIN_BITS..=16).contains(&max_bits) || flags & 0x60 != 0 {
            return Err(damaged("its third byte is not that of a .Z file"));
        }
        let block_mode = flags & 0x80 != 0;
        Ok(Self {
            max_bits,
            block_mode,
            bits: MIN_BITS,
            in_group: 0,
            buffer: 0,
            buffered: 0,
            free: if block_mode { 257 } else { 256 },
            previous: None,
            first_byte: 0,
            prefix: vec![0; 1 << max_bits],
            suffix: (0..1_u32 << max_bits).map(|n| n.to_le_bytes()[0]).collect(),
            ready: Vec::new(),
        })
    }

    /// The next `bits` bits; `None`: the input ends before.
    fn code(&mut self, input: &mut impl BufRead) -> io::Result<Option<u16>> {
        while self.buffered < self.bits {
            let Some(&byte) = input.fill_buf()?.first() else {
                return Ok(None);
            };
            input.consume(1);
            self.buffer |= u64::from(byte) << self.buffered;
            self.buffered = self.buffered.saturating_add(8);
        }
        let [low, high, ..] = self.buffer.to_le_bytes();
        let mask = u16::MAX >> 16_u32.saturating_sub(self.bits);
        self.buffer >>= self.bits;
        self.buffered = self.buffered.saturating_sub(self.bits);
        self.in_group = self.in_group.saturating_add(1) & (GROUP - 1);
        Ok(Some(u16::from_le_bytes([low, high]) & mask))
    }

    /// Passes the rest of a group, for codes of another width come now.
    fn end_group(&mut self, input: &mut impl BufRead) -> io::Result<()> {
        while self.in_group != 0 && self.code(input)?.is_some() {}
        self.in_group = 0;
        Ok(())
    }

    /// Decodes one code into `ready`; `false` at the end.
    fn step(&mut self, input: &mut impl BufRead) -> io::Result<bool> {
        if self.bits < self.max_bits && self.free >> self.bits > 0 {
            self.end_group(input)?;
            self.bits = self.bits.saturating_add(1);
        }
        let Some(code) = self.code(input)? else {
            return Ok(false);
        };
        let Some(previous) = self.previous else {
            let Ok(byte) = u8::try_from(code) else {
                return Err(damaged("its first code is not a byte"));
            };
            self.first_byte = byte;
            self.previous = Some(code);
            self.ready.push(byte);
            return Ok(true);
        };
        if code == CLEAR && self.block_mode {
            self.end_group(input)?;
            self.bits = MIN_BITS;
            // The code after the clearing defines this one, which nothing can use.
            self.free = u32::from(CLEAR);
            return Ok(true);
        }
        let mut walk = code;
        if u32::from(code) >= self.free {
            if u32::from(code) > self.free {
                return Err(damaged("a code has no meaning yet"));
            }
            self.ready.push(self.first_byte);
            walk = previous;
        }
        // Each code's prefix is a lower code, so this ends.
        while walk > 255 {
            let place = usize::from(walk);
            self.ready
                .push(self.suffix.get(place).copied().unwrap_or(0));
            walk = self.prefix.get(place).copied().unwrap_or(0);
        }
        self.first_byte = walk.to_le_bytes()[0];
        self.ready.push(self.first_byte);
        if let Ok(free) = usize::try_from(self.free)
            && let (Some(prefix), Some(suffix)) =
                (self.prefix.get_mut(free), self.suffix.get_mut(free))
        {
            *prefix = previous;
            *suffix = self.first_byte;
            self.free = self.free.saturating_add(1);
        }
        self.previous = Some(code);
        Ok(true)
    }
}

impl<R: BufRead> Read for Lzw<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let state = match &mut self.state {
            Some(state) => state,
            none => none.insert(State::begin(&mut self.input)?),
        };
        let mut done = 0_usize;
        while done < out.len() {
            if state.ready.is_empty() && !state.step(&mut self.input)? {
                break;
            }
            for to in out.iter_mut().skip(done) {
                let Some(byte) = state.ready.pop() else {
                    break;
                };
                *to = byte;
                done = done.saturating_add(1);
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Lzw::new(bytes).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn what_compress_writes_is_read() {
        assert_eq!(decode(&[0x1f, 0x9d, 0x90]).unwrap(), b"");
        assert_eq!(decode(&[0x1f, 0x9d, 0x90, b'a', 0]).unwrap(), b"a");
        if !lcow_testkit::have("compress") {
            lcow_testkit::skip!("no compress (package ncompress)");
        }
        // Text that repeats, then noise, which makes `compress` clear its table, then the same text again.
        let text: Vec<u8> = (0..60_000_u32)
            .flat_map(|n| format!("{} ", n * n).into_bytes())
            .collect();
        let noise: Vec<u8> = (0..400_000_u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let all = [&text[..], &noise, &text].concat();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        // Of 9 bits gzip can't read what `compress` writes either.
        for bits in ["10", "12", "15", "16"] {
            for len in [1, 2, 300, 5000, 70_000, all.len()] {
                std::fs::write(&path, &all[..len]).unwrap();
                let args = ["-c", "-f", "-b", bits, path.to_str().unwrap()];
                let packed = lcow_testkit::run("compress", args).stdout;
                assert!(decode(&packed).unwrap() == all[..len], "{bits} {len}");
            }
        }
    }

    #[test]
    fn damage_is_an_error() {
        assert!(decode(&[0x1f, 0x9d]).is_err());
        assert!(decode(&[0x1f, 0x9d, 0x88, 0]).is_err());
        assert!(decode(&[0x1f, 0x9d, 0x91, 0]).is_err());
        assert!(decode(&[0x1f, 0x9d, 0xf0, 0]).is_err());
        // The first code must be a byte; the second can't be beyond the table.
        assert!(decode(&[0x1f, 0x9d, 0x90, 0, 1]).is_err());
        assert!(decode(&[0x1f, 0x9d, 0x90, b'a', 0xfe, 3]).is_err());
    }
}
