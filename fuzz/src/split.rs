//! The split sidecar. Input: the number of a layer, a byte of flags, and the sidecar's bytes inside its compression.
//!
//! With the disk of that layer, whose tar is known: that very tar comes out, or a typed error; never another tar. If the sidecar names
//! another digest (it may be mended to name the digest of whatever it describes), it is not what was asked for.

use std::sync::OnceLock;

use lcow_blockio::MemDisk;
use lcow_layer::ErrorKind;
use lcow_layer::apply::{ApplyOptions, apply};
use lcow_layer::digest::Digest;
use lcow_layer::export::{ExactError, Expected, Exported, exact};

use crate::bytes::put;
use crate::limits::{Capped, bounded};
use crate::{Mutate, Rng};

/// Flag: the bytes are the sidecar as stored, and not compressed here.
const STORED: u8 = 1;
/// Flag: the sidecar names the digest of what it comes to.
const MEND: u8 = 2;

const MEMORY: usize = 48 << 20;

/// Tars that have something for every operation.
const TARS: &[&[u8]] = &[
    include_bytes!("../layers/gnu.tar"),
    include_bytes!("../layers/pax.tar"),
    include_bytes!("../layers/sparse.tar"),
    include_bytes!("../layers/replaced.tar"),
];

struct Layer {
    tar: &'static [u8],
    disk: MemDisk,
    made: Exported,
    sidecar: Vec<u8>,
}

fn layer(number: u8) -> &'static Layer {
    static MADE: [OnceLock<Layer>; TARS.len()] = [const { OnceLock::new() }; TARS.len()];
    let number = usize::from(number) % TARS.len();
    MADE[number].get_or_init(|| {
        let tar = TARS[number];
        let disk = MemDisk::new();
        let mut stored = Vec::new();
        let applied = apply(tar, &disk, Some(&mut stored), &ApplyOptions::default())
            .expect("the layers are good");
        Layer {
            tar,
            disk,
            made: Exported {
                diff_id: applied.diff_id,
                size: applied.tar_size,
            },
            sidecar: zstd::decode_all(&stored[..]).expect("a sidecar of ours"),
        }
    })
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("memory can be written to")
}

pub(crate) fn run(input: &[u8]) {
    let &[number, flags, ref bytes @ ..] = input else {
        return;
    };
    let layer = layer(number);
    let limit = layer.tar.len() * 2 + (1 << 16);
    let mut stored = if flags & STORED != 0 {
        bytes.to_vec()
    } else {
        compress(bytes)
    };
    if flags & (STORED | MEND) == MEND {
        // What does it come to? The digest is checked last, so the error tells.
        let mut out = Capped::new(limit);
        if let Err(ExactError::Differs { found, .. }) = exact(
            &layer.disk,
            &stored[..],
            Expected::AtMost(limit as u64),
            &mut out,
        ) {
            let mut mended = bytes.to_vec();
            put(&mut mended, 20, found.as_bytes());
            stored = compress(&mended);
        }
    }
    for expected in [Expected::This(layer.made), Expected::AtMost(limit as u64)] {
        let mut out = Capped::new(limit);
        let result = bounded("re-emitting", MEMORY, || {
            exact(&layer.disk, &stored[..], expected, &mut out)
        });
        match result {
            Ok(done) => {
                assert_eq!(done.size, out.bytes.len() as u64, "the size");
                assert_eq!(done.diff_id, Digest::of(&out.bytes), "the digest");
                if matches!(expected, Expected::This(_)) {
                    assert!(out.bytes == layer.tar, "another tar");
                }
            }
            Err(error) => {
                // No more than the limit is ever written.
                assert!(error.kind() != ErrorKind::Io, "{error:?}");
            }
        }
    }
}

pub(crate) fn mutate(input: &mut Vec<u8>, max: usize, rng: &mut Rng, plain: &mut Mutate<'_>) {
    if input.len() < 2 + 60 || rng.one_in(200) {
        let number = u8::try_from(rng.below(TARS.len())).unwrap_or(0);
        *input = [&[number, 0][..], &layer(number).sidecar].concat();
    }
    if rng.one_in(20) {
        input[1] ^= 1 << rng.below(2);
    }
    let stored = input[1] & STORED != 0;
    let mut bytes = input.split_off(2);
    if !stored && rng.one_in(3) {
        let at = rng.below(bytes.len());
        match rng.below(4) {
            // Operations, lengths and masks are single bytes mostly.
            0 => bytes[at] = u8::try_from(rng.below(8)).unwrap_or(0),
            1 => bytes[at] = bytes[at].wrapping_add(1),
            2 => {
                let len = rng.below(64).min(bytes.len() - at);
                let copy = bytes[at..at + len].to_vec();
                let to = rng.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => {
                let end = (at + rng.below(32)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    } else {
        plain(&mut bytes, max.saturating_sub(2));
    }
    input.append(&mut bytes);
    input.truncate(max);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_left_alone_gives_its_tar() {
        for number in 0..TARS.len() {
            let layer = layer(u8::try_from(number).unwrap());
            let mut out = Vec::new();
            let stored = compress(&layer.sidecar);
            exact(
                &layer.disk,
                &stored[..],
                Expected::This(layer.made),
                &mut out,
            )
            .unwrap();
            assert!(out == layer.tar);
        }
    }

    #[test]
    fn another_digest_is_mended_in() {
        // The last byte of a literal in the sidecar of the first layer, as it is text in the tar.
        let layer = layer(0);
        let mut sidecar = layer.sidecar.clone();
        let at = sidecar.windows(5).rposition(|w| w == b"ustar").unwrap();
        sidecar[at] ^= 1;
        run(&[&[0, MEND][..], &sidecar].concat());
    }
}
