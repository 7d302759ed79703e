//! ISA-L beside zlib-rs: the same bytes, and the same refusals.

use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::{Compression, GzBuilder};
use lcow_isal::{Fault, GzDecoder, Library};

/// What came of a member: its content, and how many bytes of the input were left.
type Outcome = Result<(Vec<u8>, usize), io::Error>;

fn read_all(decoder: &mut impl Read, piece: usize) -> io::Result<Vec<u8>> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        match decoder.read(&mut buffer)? {
            0 => break,
            n => all.extend_from_slice(&buffer[..n]),
        }
    }
    assert_eq!(decoder.read(&mut buffer)?, 0, "an end that isn't one");
    Ok(all)
}

/// Gives the input in pieces of so many bytes, and takes the output in such pieces.
fn isal(library: Library, gzip: &[u8], input: usize, output: usize) -> Outcome {
    let mut decoder = GzDecoder::new(library, BufReader::with_capacity(input, gzip));
    let bytes = read_all(&mut decoder, output)?;
    let mut rest = Vec::new();
    decoder.into_inner().read_to_end(&mut rest)?;
    Ok((bytes, rest.len()))
}

fn zlib(gzip: &[u8]) -> Outcome {
    let mut decoder = flate2::bufread::GzDecoder::new(gzip);
    let bytes = read_all(&mut decoder, 1 << 16)?;
    Ok((bytes, decoder.into_inner().len()))
}

/// Both give the same, or both refuse.
fn agree(library: Library, gzip: &[u8], input: usize, output: usize) -> bool {
    match (isal(library, gzip, input, output), zlib(gzip)) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        (Err(_), Err(_)) => true,
        _ => false,
    }
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that repeat at all distances, with stretches that don't.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as usize
    };
    let mut bytes: Vec<u8> = Vec::with_capacity(len);
    while bytes.len() < len {
        let run = next() % 300 + 1;
        if next() % 3 == 0 || bytes.is_empty() {
            bytes.extend((0..run).map(|_| next().to_le_bytes()[1]));
        } else {
            let from = bytes.len() - 1 - next() % bytes.len().min(40_000);
            for i in 0..run {
                bytes.push(bytes[from + i]);
            }
        }
    }
    bytes.truncate(len);
    bytes
}

macro_rules! library {
    () => {
        match Library::find() {
            Some(library) => library,
            None => lcow_testkit::skip!("no libisal2"),
        }
    };
}

#[test]
fn all_levels_and_all_sizes_of_pieces_give_the_content() {
    let library = library!();
    for len in [0, 1, 7, 300, 32 << 10, (64 << 10) + 1, 700_000] {
        let bytes = sample(len);
        for level in [0, 1, 6, 9] {
            let mut gzip = gzip(&bytes, level);
            gzip.extend_from_slice(b"behind");
            let pieces: &[usize] = match len {
                700_000 => &[4096, 128 << 10],
                _ => &[1, 3, 511, 4096, 128 << 10],
            };
            for &input in pieces {
                for &output in pieces {
                    let (found, rest) = isal(library, &gzip, input, output).unwrap();
                    assert!(
                        found == bytes && rest == 6,
                        "{len} bytes at level {level}, in pieces of {input} and {output}: {} bytes, {rest} left",
                        found.len()
                    );
                }
            }
        }
    }
}

#[test]
fn all_that_a_header_may_have_is_read_past() {
    let library = library!();
    let plain = gzip(b"content", 6);
    for flags in 0..=u8::MAX {
        for spoiled in [false, true] {
            let mut header = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 3];
            if flags & 4 != 0 {
                header.extend_from_slice(b"\x05\x00extra");
            }
            if flags & 8 != 0 {
                header.extend_from_slice(b"name\0");
            }
            if flags & 16 != 0 {
                header.extend_from_slice(b"comment\0");
            }
            if flags & 2 != 0 {
                let mut crc = flate2::Crc::new();
                crc.update(&header);
                let sum = crc.sum() as u16 ^ u16::from(spoiled);
                header.extend_from_slice(&sum.to_le_bytes());
            }
            let gzip = [&header[..], &plain[10..]].concat();
            let fine = flags & 0xe0 == 0 && (flags & 2 == 0 || !spoiled);
            assert_eq!(isal(library, &gzip, 5, 64).is_ok(), fine, "{flags:#x}");
            assert!(agree(library, &gzip, 5, 64), "{flags:#x}");
            for cut in 0..gzip.len() {
                assert!(
                    fault(isal(library, &gzip[..cut], 5, 64)).is_some(),
                    "{flags:#x}, cut to {cut}"
                );
            }
        }
    }
    let text = |len| {
        [
            &[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3][..],
            &vec![b'n'; len],
            &[0],
            &plain[10..],
        ]
        .concat()
    };
    for (len, fine) in [(65_535, true), (65_536, false)] {
        assert_eq!(isal(library, &text(len), 512, 64).is_ok(), fine, "{len}");
        assert!(agree(library, &text(len), 512, 64), "{len}");
    }
}

/// The fault in an error, which must be one of ours.
fn fault(outcome: Outcome) -> Option<Fault> {
    let error = outcome.err()?;
    Some(
        *error
            .get_ref()
            .and_then(|e| e.downcast_ref())
            .expect("a fault"),
    )
}

#[test]
fn what_is_cut_off_is_an_error_wherever_it_is_cut() {
    let library = library!();
    for level in [0, 1, 9] {
        let gzip = gzip(&sample(3000), level);
        for cut in 0..gzip.len() {
            assert_eq!(
                fault(isal(library, &gzip[..cut], 1024, 1 << 16)),
                Some(Fault::Truncated),
                "level {level}, cut to {cut} of {}",
                gzip.len()
            );
        }
    }
}

#[test]
fn damage_is_refused_as_zlib_does() {
    let library = library!();
    for level in [0, 1, 9] {
        let whole = gzip(&sample(2000), level);
        for bit in 0..whole.len() * 8 {
            let mut gzip = whole.clone();
            gzip[bit / 8] ^= 1 << (bit % 8);
            assert!(
                agree(library, &gzip, 1024, 1 << 16),
                "level {level}, bit {bit}: {:?} and {:?}",
                isal(library, &gzip, 1024, 1 << 16).map(|(b, rest)| (b.len(), rest)),
                zlib(&gzip).map(|(b, rest)| (b.len(), rest))
            );
        }
    }
    let whole = gzip(b"checked", 6);
    for (from_end, name) in [(8, "checksum"), (4, "length")] {
        let mut gzip = whole.clone();
        let at = gzip.len() - from_end;
        gzip[at] ^= 1;
        assert_eq!(
            fault(isal(library, &gzip, 64, 64)),
            Some(Fault::Checksum),
            "{name}"
        );
    }
}

#[test]
fn an_error_of_the_input_is_passed_on() {
    struct Broken<'a>(&'a [u8]);
    impl Read for Broken<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            match self.0.read(out)? {
                0 => Err(io::Error::from_raw_os_error(5)),
                n => Ok(n),
            }
        }
    }
    let library = library!();
    let gzip = gzip(&sample(100_000), 6);
    for cut in [3, gzip.len() / 2] {
        let mut decoder = GzDecoder::new(library, BufReader::new(Broken(&gzip[..cut])));
        let error = decoder.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5));
        assert_eq!(decoder.read(&mut [0; 8]).unwrap(), 0, "over after an error");
    }
}

#[test]
fn the_collections_files_give_the_same() {
    fn walk(dir: &std::path::Path, each: &mut dyn FnMut(&std::path::Path)) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap() {
                t if t.is_dir() => walk(&entry.path(), each),
                t if t.is_file() => each(&entry.path()),
                _ => {}
            }
        }
    }
    let library = library!();
    let Some(corpora) = lcow_testkit::Corpora::find() else {
        lcow_testkit::skip!("no corpora");
    };
    let mut seen = 0;
    walk(&corpora.files, &mut |path| {
        let mut file = BufReader::new(std::fs::File::open(path).unwrap());
        if !file.fill_buf().unwrap().starts_with(&[0x1f, 0x8b, 8]) {
            return;
        }
        let mut gzip = Vec::new();
        file.read_to_end(&mut gzip).unwrap();
        seen += 1;
        // Each member, and what follows the last.
        let mut rest = &gzip[..];
        while !rest.is_empty() {
            assert!(
                agree(library, rest, 128 << 10, 128 << 10),
                "{}",
                path.display()
            );
            match zlib(rest) {
                Ok((_, left)) => rest = &rest[rest.len() - left..],
                Err(_) => break,
            }
        }
    });
    assert!(seen > 20, "{seen} files");
}
