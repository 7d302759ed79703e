//! How large a sidecar is beside the metadata that it stands for: all bytes of a tar but the data of files.

use std::io::Read;

use lcow_blockio::MemDisk;
use lcow_layer::apply::{ApplyOptions, apply};
use lcow_layer::export::{Expected, Exported, exact};

/// Files in the tree; directories come on top.
const FILES: u32 = 100_000;

/// Random numbers that are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }

    fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        let index = self.roll(all.len() as u64);
        all[usize::try_from(index).unwrap()]
    }

    /// A word as identifiers are made of.
    fn word(&mut self) -> String {
        const SYLLABLES: &[&str] = &[
            "ab", "al", "an", "ar", "at", "ba", "ce", "co", "con", "de", "di", "do", "el", "en",
            "er", "es", "ex", "fi", "for", "ge", "il", "in", "is", "it", "le", "li", "lo", "ma",
            "me", "mo", "ne", "no", "on", "or", "per", "po", "pro", "re", "ri", "ro", "se", "si",
            "st", "sub", "ta", "te", "ter", "ti", "to", "tion", "un", "ur", "ver", "vi",
        ];
        let count = 2 + self.roll(3);
        (0..count).map(|_| self.one_of(SYLLABLES)).collect()
    }

    fn nanos(&mut self) -> u64 {
        self.roll(1_000_000_000)
    }
}

/// Who wrote the tar.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// GNU tar, as Debian's tools call it.
    Gnu,
    /// Docker and BuildKit, where times have no fractions.
    Ustar,
    /// Docker and BuildKit: a PAX header for each time with a fraction.
    Pax,
    /// GNU tar `--format=posix`: a PAX header with three times for each entry.
    GnuPax,
}

/// A tree's tar as it streams. Data is zeros: what the sidecar says of it does not depend on it.
struct Tar {
    form: Form,
    dice: Dice,
    words: Vec<String>,
    left: u32,
    in_directory: u64,
    package: String,
    directory: String,
    released: u64,
    buffer: Vec<u8>,
    at: usize,
    zeros: u64,
    metadata: u64,
    data: u64,
    ended: bool,
}

impl Tar {
    fn new(form: Form) -> Self {
        let mut dice = Dice(0x1234_5678_9abc_def1);
        let words = (0..4000).map(|_| dice.word()).collect();
        Self {
            form,
            dice,
            words,
            left: FILES,
            in_directory: 0,
            package: String::new(),
            directory: String::new(),
            released: 0,
            buffer: Vec::new(),
            at: 0,
            zeros: 0,
            metadata: 0,
            data: 0,
            ended: false,
        }
    }

    fn word(&mut self) -> &str {
        // Some words are used much more often than others.
        let most = 1 + self.dice.roll(self.words.len() as u64);
        let index = self.dice.roll(most);
        &self.words[usize::try_from(index).unwrap()]
    }

    fn header(&mut self, flag: u8, name: &str, mode: u32, size: u64, mtime: u64) {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        let gnu = self.form == Form::Gnu;
        let is_extended = flag == b'x';
        match name.len() {
            0..=100 => put(0, name.as_bytes()),
            _ => {
                let split = (name.len() - 100..name.len()).find(|&i| name.as_bytes()[i] == b'/');
                let split = split.expect("names are short, but not paths");
                put(0, &name.as_bytes()[split + 1..]);
                put(345, &name.as_bytes()[..split]);
            }
        }
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\x000000000\0");
        put(124, format!("{size:011o}\0{mtime:011o}\0").as_bytes());
        put(156, &[flag]);
        put(257, if gnu { b"ustar  \0" } else { b"ustar\x0000" });
        if matches!(self.form, Form::Gnu | Form::GnuPax) && !is_extended {
            put(265, b"root");
            put(297, b"root");
        }
        if !(gnu || is_extended && self.form == Form::Pax) {
            put(329, b"0000000\x000000000\0");
        }
        put(148, b"        ");
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.buffer.extend(block);
    }

    fn entry(&mut self, flag: u8, name: &str, mode: u32, size: u64, mtime: u64) {
        let times: &[&str] = match self.form {
            Form::Gnu | Form::Ustar => &[],
            Form::Pax => &["mtime"],
            Form::GnuPax => &["mtime", "atime", "ctime"],
        };
        if !times.is_empty() {
            let mut body = String::new();
            for key in times {
                // Read and unpacked later than written, each at a time of its own.
                let seconds = if *key == "mtime" {
                    mtime
                } else {
                    1_700_000_000 + u64::from(FILES - self.left) / 2000
                };
                let record = format!(" {key}={seconds}.{:09}\n", self.dice.nanos());
                body.push_str(&format!("{}{record}", record.len() + 2));
            }
            let base = name
                .trim_end_matches('/')
                .rsplit_once('/')
                .unwrap_or(("", name));
            let (pax_name, time) = match self.form {
                Form::Pax => (format!("{}/PaxHeaders.0/{}", base.0, base.1), 0),
                _ => (format!("{}/PaxHeaders/{}", base.0, base.1), mtime),
            };
            let mode = if self.form == Form::Pax { 0 } else { 0o644 };
            self.header(b'x', &pax_name, mode, body.len() as u64, time);
            self.buffer.extend(body.as_bytes());
            let end = self.buffer.len().next_multiple_of(512);
            self.buffer.resize(end, 0);
        }
        self.header(flag, name, mode, size, mtime);
        self.metadata += self.buffer.len() as u64 + size.next_multiple_of(512) - size;
        self.data += size;
        self.zeros = size.next_multiple_of(512);
    }

    /// The next entry, into the buffer.
    fn next(&mut self) {
        self.buffer.clear();
        self.at = 0;
        if self.left == 0 {
            self.ended = true;
            self.buffer.resize(10_240, 0);
            self.metadata += 10_240;
            return;
        }
        if self.in_directory == 0 {
            self.in_directory = 1 + self.dice.roll(12) * self.dice.roll(6);
            if self.dice.roll(3) == 0 || self.package.is_empty() {
                let place = self.dice.one_of(&[
                    "usr/share",
                    "usr/lib/node_modules",
                    "usr/include",
                    "srv/app/src",
                    "usr/lib/python3",
                ]);
                self.package = format!("{place}/{}-{}", self.word().to_owned(), self.word());
                self.released = 1_500_000_000 + self.dice.roll(200_000_000);
                self.directory = self.package.clone();
            } else {
                let below = self.word().to_owned();
                self.directory = format!("{}/{below}", self.package);
            }
            let (name, mtime) = (format!("{}/", self.directory), self.released);
            return self.entry(b'5', &name, 0o755, 0, mtime);
        }
        self.in_directory -= 1;
        self.left -= 1;
        let ending = self.dice.one_of(&[
            "js", "ts", "c", "h", "py", "json", "md", "html", "so.1", "gz", "d.ts", "map",
        ]);
        let stem = match self.dice.roll(3) {
            0 => format!("{}_{}", self.word().to_owned(), self.word()),
            1 => format!("{}{}", self.word().to_owned(), self.dice.roll(100)),
            _ => self.word().to_owned(),
        };
        // Names repeat in a directory now and then; a number keeps them apart.
        let name = format!("{}/{stem}-{}.{ending}", self.directory, self.in_directory);
        let mode = if self.dice.roll(12) == 0 {
            0o755
        } else {
            0o644
        };
        let size = (1 << self.dice.roll(13)) + self.dice.roll(1000);
        // Two of three files are of the release's time, the others older.
        let mtime = match self.dice.roll(3) {
            0 => self.released - self.dice.roll(30_000_000),
            _ => self.released,
        };
        self.entry(b'0', &name, mode, size, mtime);
    }
}

impl Read for Tar {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let mut done = 0;
        while done < out.len() {
            if self.at == self.buffer.len() && self.zeros == 0 {
                if self.ended {
                    break;
                }
                self.next();
            }
            let rest = &mut out[done..];
            let header = &self.buffer[self.at..];
            let n = if header.is_empty() {
                let n = rest.len().min(usize::try_from(self.zeros).unwrap());
                rest[..n].fill(0);
                self.zeros -= n as u64;
                n
            } else {
                let n = rest.len().min(header.len());
                rest[..n].copy_from_slice(&header[..n]);
                self.at += n;
                n
            };
            done += n;
        }
        Ok(done)
    }
}

#[test]
fn a_sidecar_is_a_twentieth_of_the_metadata() {
    println!(
        "{FILES} files: bytes of tar, of metadata, of sidecar, and the sidecar in % of the metadata"
    );
    for form in [Form::Gnu, Form::Ustar, Form::Pax, Form::GnuPax] {
        let mut tar = Tar::new(form);
        let disk = MemDisk::new();
        let mut split = Vec::new();
        let applied = apply(&mut tar, &disk, Some(&mut split), &ApplyOptions::default()).unwrap();
        assert!(applied.entries > u64::from(FILES));
        assert_eq!(applied.tar_size, tar.metadata + tar.data);
        let percent = split.len() as f64 * 100.0 / tar.metadata as f64;
        println!(
            "{form:?}: {} {} {} {percent:.2}",
            applied.tar_size,
            tar.metadata,
            split.len()
        );
        assert!(percent <= 5.0, "{form:?}: {percent}");
        let mut out = std::io::sink();
        let expected = Exported {
            diff_id: applied.diff_id,
            size: applied.tar_size,
        };
        exact(&disk, &split[..], Expected::This(expected), &mut out).unwrap();
    }
}
