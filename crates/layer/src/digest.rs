//! Content names: SHA-256 digests in the form that the OCI specifications write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// A SHA-256 digest, shown and parsed as `sha256:` and 64 lowercase hexadecimal digits
/// (OCI image specification, descriptor.md, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// A digest from its 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits alone, as blob file names have them.
    #[must_use]
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        let mut hex = String::with_capacity(64);
        for byte in self.0 {
            // Writing to a String does not fail.
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }

    /// 16 bytes that follow from this digest and a purpose: how a layer's UUIDs are made without a clock or randomness.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> [u8; 16] {
        let mut hash = Hasher::new();
        hash.update(purpose.as_bytes());
        hash.update(&[0]);
        hash.update(&self.0);
        let full = hash.finish();
        let mut short = [0; 16];
        for (to, from) in short.iter_mut().zip(full.0) {
            *to = from;
        }
        short
    }

    /// Like [`derive`](Self::derive), with the version and variant bits of a custom UUID set (RFC 9562, section 5.8, version 8).
    #[must_use]
    pub fn derive_uuid(&self, purpose: &str) -> [u8; 16] {
        let mut uuid = self.derive(purpose);
        uuid[6] = (uuid[6] & 0x0f) | 0x80;
        uuid[8] = (uuid[8] & 0x3f) | 0x80;
        uuid
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `algorithm:` in front.
    #[error("{0:?} is not a digest: it has no algorithm in front, as in sha256:…")]
    NoAlgorithm(String),
    /// An algorithm other than sha256.
    #[error("digest algorithm {0:?} is not supported: only sha256 is")]
    Algorithm(String),
    /// Not 64 lowercase hexadecimal digits.
    #[error("{0:?} is not a sha256 digest: 64 lowercase hexadecimal digits are needed")]
    Digits(String),
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, digits) = text
            .split_once(':')
            .ok_or_else(|| DigestError::NoAlgorithm(text.to_owned()))?;
        if algorithm != "sha256" {
            return Err(DigestError::Algorithm(algorithm.to_owned()));
        }
        parse_hex(digits)
            .map(Self)
            .ok_or_else(|| DigestError::Digits(digits.to_owned()))
    }
}

/// The specification allows lowercase only, so that one content has one name.
fn parse_hex(digits: &str) -> Option<[u8; 32]> {
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(byte.wrapping_sub(b'a').wrapping_add(10)),
        _ => None,
    };
    let mut bytes = [0; 32];
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = (nibble(*high)? << 4) | nibble(*low)?;
    }
    Some(bytes)
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Hashes a stream piece by piece.
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all that was added.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

/// The chain ID of a layer on top of a chain (OCI image specification, config.md, "Layer ChainID"): the diff ID itself for the
/// lowest layer, else the digest of `PARENT DIFFID`.
#[must_use]
pub fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    parent.map_or(*diff_id, |parent| {
        Digest::of(format!("{parent} {diff_id}").as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_form_round_trips_and_is_strict() {
        let empty = Digest::of(b"");
        assert_eq!(empty.to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(empty));
        let json = serde_json::to_string(&empty).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), empty);
        for bad in [
            "",
            "e3b0",
            "sha256:",
            "md5:00",
            &EMPTY.to_uppercase(),
            &EMPTY[..70],
            &format!("{EMPTY}0"),
            &EMPTY.replace('e', "E"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn chain_id_is_as_the_specification_writes_it() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(chain_id(None, &a), a);
        assert_eq!(
            chain_id(Some(&a), &b),
            Digest::of(format!("sha256:{} sha256:{}", a.hex(), b.hex()).as_bytes())
        );
    }

    #[test]
    fn derived_ids_differ_by_purpose_and_digest() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let uuid = a.derive_uuid("one");
        assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2));
        assert_ne!(uuid, a.derive_uuid("two"));
        assert_ne!(uuid, b.derive_uuid("one"));
    }
}
