//! The hashes of htree directories (kernel: `fs/ext4/hash.c`).

/// `hash_version` of an htree's root, or `s_def_hash_version`, with the signedness of `s_flags` applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashVersion {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Whether bytes above 127 count as negative.
    pub signed: bool,
}

/// The algorithm of a directory hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Algorithm {
    Legacy,
    HalfMd4,
    Tea,
}

impl HashVersion {
    /// What an on-disk `hash_version` means in a filesystem whose `s_flags` ask for unsigned hashes or not. `None`: unknown
    /// (`siphash`, 6, belongs to encrypted case-folded directories).
    #[must_use]
    pub const fn from_disk(version: u8, unsigned: bool) -> Option<Self> {
        let (algorithm, signed) = match version {
            0 => (Algorithm::Legacy, !unsigned),
            1 => (Algorithm::HalfMd4, !unsigned),
            2 => (Algorithm::Tea, !unsigned),
            3 => (Algorithm::Legacy, false),
            4 => (Algorithm::HalfMd4, false),
            5 => (Algorithm::Tea, false),
            _ => return None,
        };
        Some(Self { algorithm, signed })
    }
}

/// The reserved hash that marks the end of a directory; never the hash of a name.
const EOF: u32 = 0xffff_fffe;
const DEFAULT_SEED: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The major and minor hash of a name. The major one's lowest bit is clear.
#[must_use]
pub fn hash(version: HashVersion, seed: &[u8; 16], name: &[u8]) -> (u32, u32) {
    let signed = version.signed;
    let mut state = seed_words(seed);
    let (major, minor) = match version.algorithm {
        Algorithm::Legacy => (legacy(name, signed), 0),
        Algorithm::HalfMd4 => {
            for chunk in chunks(name, 32) {
                let words: [u32; 8] = pack(chunk, signed);
                half_md4(&mut state, &words);
            }
            (state[1], state[2])
        }
        Algorithm::Tea => {
            for chunk in chunks(name, 16) {
                let words: [u32; 4] = pack(chunk, signed);
                tea(&mut state, &words);
            }
            (state[0], state[1])
        }
    };
    let major = major & !1;
    (
        if major == EOF {
            EOF.wrapping_sub(2)
        } else {
            major
        },
        minor,
    )
}

fn seed_words(seed: &[u8; 16]) -> [u32; 4] {
    if *seed == [0; 16] {
        return DEFAULT_SEED;
    }
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(seed.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// The rest of the name at each step: packing needs its whole length, not the step's.
fn chunks(name: &[u8], step: usize) -> impl Iterator<Item = &[u8]> {
    (0..name.len())
        .step_by(step)
        .map(move |at| name.get(at..).unwrap_or_default())
}

fn widen(byte: u8, signed: bool) -> u32 {
    if signed {
        i32::from(byte.cast_signed()).cast_unsigned()
    } else {
        u32::from(byte)
    }
}

/// Up to `N` words of the name, the rest filled with its length (`str2hashbuf_signed`, `str2hashbuf_unsigned`).
fn pack<const N: usize>(rest: &[u8], signed: bool) -> [u32; N] {
    let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
    let pad = len | len.wrapping_shl(8);
    let pad = pad | pad.wrapping_shl(16);
    let mut words = [pad; N];
    let taken = rest.get(..N.saturating_mul(4)).unwrap_or(rest);
    for (word, bytes) in words.iter_mut().zip(taken.chunks(4)) {
        *word = bytes.iter().fold(pad, |value, byte| {
            widen(*byte, signed).wrapping_add(value.wrapping_shl(8))
        });
    }
    words
}

fn legacy(name: &[u8], signed: bool) -> u32 {
    let (mut hash0, mut hash1) = (0x12a3_fe2du32, 0x37ab_e8f9u32);
    for byte in name {
        let value = widen(*byte, signed).wrapping_mul(7_152_373);
        let mut hash = hash1.wrapping_add(hash0 ^ value);
        if hash & 0x8000_0000 != 0 {
            hash = hash.wrapping_sub(0x7fff_ffff);
        }
        hash1 = hash0;
        hash0 = hash;
    }
    hash0.wrapping_shl(1)
}

fn tea(state: &mut [u32; 4], words: &[u32; 4]) {
    let [a, b, c, d] = *words;
    let (mut b0, mut b1) = (state[0], state[1]);
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        b0 = b0.wrapping_add(
            (b1 << 4).wrapping_add(a) ^ b1.wrapping_add(sum) ^ (b1 >> 5).wrapping_add(b),
        );
        b1 = b1.wrapping_add(
            (b0 << 4).wrapping_add(c) ^ b0.wrapping_add(sum) ^ (b0 >> 5).wrapping_add(d),
        );
    }
    state[0] = state[0].wrapping_add(b0);
    state[1] = state[1].wrapping_add(b1);
}

fn half_md4(state: &mut [u32; 4], words: &[u32; 8]) {
    const K2: u32 = 0x5a82_7999;
    const K3: u32 = 0x6ed9_eba1;
    // Word order and shifts of the three rounds.
    const ROUNDS: [([usize; 8], [u32; 4]); 3] = [
        ([0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        ([1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        ([3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (round, (order, shifts)) in ROUNDS.iter().enumerate() {
        for (step, index) in order.iter().enumerate() {
            let (mix, key) = match round {
                0 => (d ^ (b & (c ^ d)), 0),
                1 => ((b & c).wrapping_add((b ^ c) & d), K2),
                _ => (b ^ c ^ d, K3),
            };
            let turned = a
                .wrapping_add(mix)
                .wrapping_add(words[*index].wrapping_add(key))
                .rotate_left(shifts[step & 3]);
            (a, b, c, d) = (d, turned, b, c);
        }
    }
    for (word, value) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(value);
    }
}
