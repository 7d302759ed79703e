//! Tars as nobody should write them, byte by byte, that are accepted all the same: each must come back exactly.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::apply::assert_exact;
use crate::support::make;

/// How a number is written into its field.
#[derive(Debug, Clone, Copy)]
enum Style {
    /// Zeros in front, a zero byte behind.
    Usual,
    /// Spaces in front, a space and a zero byte behind (V7).
    Spaces,
    /// Digits to the field's end.
    Full,
    /// As few digits as it takes, then spaces.
    Short,
    /// A zero byte after the digits, and anything behind it.
    Garbage,
    /// Two's complement, the first bit set.
    Base256,
}

fn put_number(field: &mut [u8], value: u64, style: Style) {
    let width = field.len();
    let text = match style {
        Style::Usual => format!("{value:0digits$o}\0", digits = width - 1),
        Style::Spaces => format!("{value:digits$o} \0", digits = width - 2),
        Style::Full => format!("{value:0width$o}"),
        Style::Short => format!("{value:o}{}", " ".repeat(width)),
        Style::Garbage => format!("{value:o}\0{}", "x7 9".repeat(width)),
        Style::Base256 => String::new(),
    };
    if text.is_empty() || text.trim_end().len() > width && !matches!(style, Style::Garbage) {
        field.fill(0);
        for (to, byte) in field.iter_mut().rev().zip(value.to_le_bytes()) {
            *to = byte;
        }
        field[0] |= 0x80;
    } else {
        field.copy_from_slice(&text.as_bytes()[..width]);
    }
}

fn any_style() -> impl Strategy<Value = Style> {
    prop_oneof![
        4 => Just(Style::Usual),
        1 => Just(Style::Spaces),
        1 => Just(Style::Full),
        1 => Just(Style::Short),
        1 => Just(Style::Garbage),
        2 => Just(Style::Base256),
    ]
}

/// What stands in front of an entry.
#[derive(Debug, Clone)]
enum Before {
    /// An `x` header with these records.
    Pax(Vec<(String, Vec<u8>)>),
    /// A `g` header.
    Global(Vec<(String, Vec<u8>)>),
    /// GNU's `L` or `K`: the name, and whether a zero byte ends it.
    Long(u8, Vec<u8>, bool),
}

/// An entry: whatever goes into it is not checked for making sense.
#[derive(Debug, Clone)]
struct Weird {
    before: Vec<Before>,
    name: Vec<u8>,
    link: Vec<u8>,
    flag: u8,
    magic: [u8; 8],
    /// mode, uid, gid, size, mtime, major, minor.
    styles: Vec<Style>,
    mtime: u64,
    /// A size where there is no data.
    false_size: u64,
    data: Vec<u8>,
    sparse: Option<Sparse>,
    /// Bytes where a header has none: behind names' ends, in unused fields.
    noise: Vec<u8>,
    /// Fills the padding behind data and extended headers.
    padding: u8,
    /// Which of the forms of a checksum.
    checksum: u8,
}

#[derive(Debug, Clone, Copy)]
enum Sparse {
    Old,
    Pax00,
    Pax01,
    Pax10,
}

const USTAR: [u8; 8] = *b"ustar\x0000";
const GNU: [u8; 8] = *b"ustar  \0";

fn finish(block: &mut [u8; 512], form: u8) {
    block[148..156].fill(b' ');
    let unsigned: i64 = block.iter().map(|&b| i64::from(b)).sum();
    let signed: i64 = block.iter().map(|&b| i64::from(b as i8)).sum();
    let sum = if form & 8 != 0 && signed > 0 {
        signed
    } else {
        unsigned
    };
    let text = match form % 6 {
        0 => format!("{sum:06o}\0 "),
        1 => format!("{sum:07o}\0"),
        2 => format!("{sum:6o}\0 "),
        3 => format!("{sum:06o} \0"),
        4 => format!("{sum:08o}"),
        _ => format!("{sum:o}        ")[..8].to_owned(),
    };
    block[148..156].copy_from_slice(text.as_bytes());
}

fn pad(out: &mut Vec<u8>, byte: u8) {
    let end = out.len().next_multiple_of(512);
    out.resize(end, byte);
}

fn records(list: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in list {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len += 1;
        }
        body.extend(format!("{len} {key}=").into_bytes());
        body.extend(value);
        body.push(b'\n');
    }
    body
}

impl Weird {
    fn header(&self, flag: u8, name: &[u8], size: u64) -> [u8; 512] {
        let mut block = [0; 512];
        block[156] = flag;
        block[257..265].copy_from_slice(&self.magic);
        for (at, len) in [(0, 100), (157, 100)] {
            let text = if at == 0 { name } else { &self.link };
            let text = &text[..text.len().min(len)];
            block[at..at + text.len()].copy_from_slice(text);
            // What follows a name's end is nobody's.
            for (to, byte) in block[at + text.len()..at + len]
                .iter_mut()
                .skip(1)
                .zip(&self.noise)
            {
                *to = *byte;
            }
        }
        let values = [0o644, 1000, 70_000, size, self.mtime];
        let fields = [(100, 8), (108, 8), (116, 8), (124, 12), (136, 12)];
        for (i, ((at, len), value)) in fields.into_iter().zip(values).enumerate() {
            put_number(&mut block[at..at + len], value, self.styles[i]);
        }
        if self.magic == USTAR || self.magic == GNU {
            put_number(&mut block[329..337], 1, self.styles[5]);
            put_number(&mut block[337..345], 3, self.styles[6]);
            for (to, byte) in block[265..329].iter_mut().zip(&self.noise) {
                *to = *byte;
            }
            for (to, byte) in block[500..508].iter_mut().zip(&self.noise) {
                *to = *byte;
            }
        } else {
            // V7 knows nothing from here on.
            for (to, byte) in block[265..].iter_mut().zip(self.noise.iter().cycle()) {
                *to = *byte;
            }
        }
        block
    }

    fn special(&self, out: &mut Vec<u8>, flag: u8, body: &[u8]) {
        let mut block = self.header(flag, b"some/header", body.len() as u64);
        finish(&mut block, self.checksum);
        out.extend(block);
        out.extend(body);
        pad(out, self.padding);
    }

    fn write(&self, out: &mut Vec<u8>) {
        for before in &self.before {
            match before {
                Before::Pax(list) => self.special(out, b'x', &records(list)),
                Before::Global(list) => self.special(out, b'g', &records(list)),
                Before::Long(flag, name, zero) => {
                    let mut body = name.clone();
                    body.extend(zero.then_some(0));
                    self.special(out, *flag, &body);
                }
            }
        }
        let has_data = matches!(self.flag, 0 | b'0' | b'7' | b'S') && !self.name.ends_with(b"/");
        let mut stored = if has_data {
            self.data.clone()
        } else {
            Vec::new()
        };
        let half = (stored.len() / 2) as u64;
        let rest = stored.len() as u64 - half;
        let real = 1 << 20;
        // Two pieces with a hole in front, between and behind.
        let map = [4096, half, 100_000, rest];
        let mut size = stored.len() as u64;
        match self.sparse.filter(|_| has_data) {
            None if !has_data => size = self.false_size,
            None => {}
            Some(Sparse::Old) => {
                let mut block = self.header(b'S', &self.name, size);
                block[257..265].copy_from_slice(&GNU);
                block[345..].fill(0);
                put_number(&mut block[329..337], 0, self.styles[5]);
                put_number(&mut block[337..345], 0, self.styles[6]);
                for (i, pair) in map.chunks(2).enumerate() {
                    put_number(&mut block[386 + 24 * i..][..12], pair[0], Style::Usual);
                    put_number(&mut block[398 + 24 * i..][..12], pair[1], self.styles[3]);
                }
                block[482] = self.padding;
                put_number(&mut block[483..495], real, self.styles[3]);
                finish(&mut block, self.checksum);
                out.extend(block);
                if self.padding != 0 {
                    // One more block of the map, with nothing in it but bytes that do not count.
                    let mut more = [0; 512];
                    more[505..].fill(self.padding);
                    out.extend(more);
                }
                out.extend(stored);
                pad(out, self.padding);
                return;
            }
            Some(version) => {
                let mut list: Vec<(String, Vec<u8>)> = Vec::new();
                let mut add = |key: &str, value: String| {
                    list.push((format!("GNU.sparse.{key}"), value.into_bytes()));
                };
                match version {
                    Sparse::Pax00 => {
                        add("size", real.to_string());
                        add("numblocks", "2".into());
                        for pair in map.chunks(2) {
                            add("offset", pair[0].to_string());
                            add("numbytes", pair[1].to_string());
                        }
                    }
                    Sparse::Pax01 => {
                        add("size", real.to_string());
                        add("numblocks", "2".into());
                        let text: Vec<String> = map.iter().map(u64::to_string).collect();
                        add("map", text.join(","));
                    }
                    _ => {
                        add("major", "1".into());
                        add("minor", "0".into());
                        add("realsize", real.to_string());
                        let mut head =
                            format!("2\n{}\n{}\n{}\n{}\n", map[0], map[1], map[2], map[3])
                                .into_bytes();
                        // What follows the map in its block is not looked at.
                        pad(&mut head, self.padding);
                        stored = [head, stored].concat();
                    }
                }
                self.special(out, b'x', &records(&list));
                size = stored.len() as u64;
            }
        }
        let mut block = self.header(self.flag, &self.name, size);
        finish(&mut block, self.checksum);
        out.extend(block);
        out.extend(stored);
        pad(out, self.padding);
    }
}

fn any_bytes(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), len)
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => (0..40_u8).prop_map(|i| format!("f{i}").into_bytes()),
        2 => (0..6_u8).prop_map(|i| format!("d{i}/").into_bytes()),
        2 => (0..6_u8, 0..6_u8).prop_map(|(i, k)| format!("./e{i}//x{k}").into_bytes()),
        1 => (0..6_u8).prop_map(|i| format!(".wh.w{i}").into_bytes()),
        1 => Just(b"e1/.wh..wh..opq".to_vec()),
        1 => Just(b"e1/.wh..wh.plnk".to_vec()),
        1 => any::<[u8; 4]>().prop_map(|b| [&b"n\xff"[..], &b.map(|b| b | 0x80)].concat()),
        1 => Just(vec![b'n'; 100]),
    ]
}

fn any_before() -> impl Strategy<Value = Before> {
    let record = prop_oneof![
        (1_u64..9_000_000_000, 0..1_000_000_000_u32)
            .prop_map(|(s, n)| ("mtime".to_owned(), format!("{s}.{n:09}").into_bytes())),
        Just(("mtime".to_owned(), b"-1.5".to_vec())),
        Just(("atime".to_owned(), b"".to_vec())),
        (0..200_u8).prop_map(|i| (
            "path".to_owned(),
            format!("p{i}/{}", "long".repeat(60)).into_bytes()
        )),
        any_bytes(0..300).prop_map(|value| ("comment".to_owned(), value)),
        any_bytes(0..300).prop_map(|value| ("SCHILY.xattr.user.any".to_owned(), value)),
        Just(("LIBARCHIVE.xattr.user.b".to_owned(), b"eHl6".to_vec())),
        Just(("uid".to_owned(), b"4000000000".to_vec())),
        Just((
            "SCHILY.xattr.security.capability".to_owned(),
            vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        )),
    ];
    let global = prop_oneof![
        any_bytes(0..100).prop_map(|value| ("comment".to_owned(), value)),
        (1..100_u8).prop_map(|gid| ("gid".to_owned(), gid.to_string().into_bytes())),
        Just(("mtime".to_owned(), b"1234567890.5".to_vec())),
    ];
    let long = (any::<bool>(), 100..250_usize, any::<bool>(), any::<u8>()).prop_map(
        |(link, len, zero, i)| {
            let name = format!("{}{i}", "l".repeat(len)).into_bytes();
            Before::Long(if link { b'K' } else { b'L' }, name, zero)
        },
    );
    prop_oneof![
        3 => prop::collection::vec(record, 0..4).prop_map(Before::Pax),
        1 => prop::collection::vec(global, 0..3).prop_map(Before::Global),
        2 => long,
    ]
}

fn any_entry() -> impl Strategy<Value = Weird> {
    let flag = prop_oneof![
        10 => prop::sample::select(vec![b'0', 0, b'7']),
        5 => prop::sample::select(b"123456".to_vec()),
    ];
    let data = prop_oneof![
        2 => Just(Vec::new()),
        4 => any_bytes(1..700),
        2 => (1..4_usize, any::<u8>()).prop_map(|(blocks, byte)| vec![byte; blocks * 4096]),
        1 => (0..9000_usize).prop_map(|len| vec![0; len]),
    ];
    let sparse = prop_oneof![
        6 => Just(None),
        1 => prop::sample::select(vec![Sparse::Old, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10]).prop_map(Some),
    ];
    let magic = prop::sample::select(vec![
        USTAR,
        GNU,
        [0; 8],
        *b"ustar\x0099",
        *b"junk \x01\x02\x03",
    ]);
    let bytes = (
        prop_oneof![2 => Just(Vec::new()), 1 => any_bytes(1..64)],
        prop_oneof![2 => Just(0), 1 => any::<u8>()],
        any::<u8>(),
    );
    let numbers = (
        prop::collection::vec(any_style(), 7),
        0..1_u64 << 33,
        prop_oneof![Just(0), 1..5000_u64],
    );
    let link = prop_oneof![
        (0..40_u8).prop_map(|i| format!("f{i}").into_bytes()),
        Just(vec![b't'; 100]),
    ];
    let names = (prop::collection::vec(any_before(), 0..3), any_name(), link);
    (names, flag, magic, numbers, data, sparse, bytes).prop_map(
        |(
            (before, name, link),
            flag,
            magic,
            (styles, mtime, false_size),
            data,
            sparse,
            (noise, padding, checksum),
        )| Weird {
            before,
            name,
            link,
            flag,
            magic,
            styles,
            mtime,
            false_size,
            data,
            sparse,
            noise,
            padding,
            checksum,
        },
    )
}

fn any_archive() -> impl Strategy<Value = Vec<u8>> {
    // How it ends: not at all, with one block of zeros, with two and more, at any byte.
    let end = prop_oneof![Just(0), Just(512), Just(1024), 1024..20_000_usize];
    let cut = prop_oneof![3 => Just(0), 1 => 0..512_usize];
    (prop::collection::vec(any_entry(), 1..7), end, cut).prop_map(|(entries, end, cut)| {
        let mut out = Vec::new();
        for entry in &entries {
            entry.write(&mut out);
        }
        if end == 0 {
            // The last padding may be missing, in part or as a whole.
            let data = out.len() - out.iter().rev().take_while(|&&b| b == 0).count();
            out.truncate(data.max(out.len().saturating_sub(cut)));
        }
        out.resize(out.len() + end, 0);
        out
    })
}

/// Enough of them are accepted, or the test would show nothing.
#[test]
fn whatever_is_accepted_comes_back() {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let (mut accepted, mut refused) = (0, 0);
    let strategy = any_archive();
    for _ in 0..cases() {
        let bytes = strategy.new_tree(&mut runner).unwrap().current();
        match make(&bytes) {
            Ok(made) => {
                assert_exact(&made, &bytes);
                accepted += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(
        accepted > refused / 4,
        "{accepted} accepted, {refused} refused"
    );
}

/// 1,500, or as many as `LCOW_CASES` says, for a longer soak.
fn cases() -> u32 {
    std::env::var("LCOW_CASES").map_or(1500, |text| text.parse().unwrap())
}
