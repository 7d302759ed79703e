//! The records of PAX extended headers (POSIX.1-2001, pax, "pax Extended Header").

use lcow_ext4::Timestamp;

use super::Malformed;

/// `LENGTH KEYWORD=VALUE\n`, the length being that of the whole record in decimal.
pub(crate) struct Records<'a>(pub(crate) &'a [u8]);

impl<'a> Records<'a> {
    fn take(&mut self) -> Result<(&'a [u8], &'a [u8]), &'static str> {
        let space = self
            .0
            .iter()
            .position(|&b| b == b' ')
            .ok_or("a record has no length")?;
        let length = self.0.get(..space).unwrap_or_default();
        let length = decimal(length)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|&n| n > space.saturating_add(1))
            .ok_or("a record's length is not a number, or too small")?;
        let (record, rest) = self
            .0
            .split_at_checked(length)
            .ok_or("a record is longer than the header")?;
        let record = record
            .get(space.saturating_add(1)..)
            .and_then(|r| r.strip_suffix(b"\n"))
            .ok_or("a record does not end in a newline")?;
        let equals = record
            .iter()
            .position(|&b| b == b'=')
            .ok_or("a record has no '='")?;
        let (key, value) = (
            record.get(..equals).unwrap_or_default(),
            record.get(equals.saturating_add(1)..).unwrap_or_default(),
        );
        if key.is_empty() || key.contains(&0) {
            return Err("a keyword is empty or holds a zero byte");
        }
        // As Go's reader has it: text that names something holds no zero byte; other values are free.
        if matches!(key, b"path" | b"linkpath" | b"uname" | b"gname") && value.contains(&0) {
            return Err("a name holds a zero byte");
        }
        self.0 = rest;
        Ok((key, value))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.take();
        if record.is_err() {
            self.0 = &[];
        }
        Some(record.map_err(Malformed::Pax))
    }
}

/// A decimal number with an optional sign, and nothing else.
pub(crate) fn decimal(text: &[u8]) -> Option<i64> {
    // `i64::from_str` takes exactly this form.
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds since 1970 in decimal with an optional fraction; digits past nanoseconds are dropped.
pub(crate) fn time(value: &[u8]) -> Option<Timestamp> {
    let mut parts = value.splitn(2, |&b| b == b'.');
    let whole = parts.next().unwrap_or_default();
    let fraction = parts.next().unwrap_or_default();
    let secs = decimal(whole)?;
    let mut nanos = 0_u32;
    let mut scale = 100_000_000_u32;
    for &digit in fraction {
        if !digit.is_ascii_digit() {
            return None;
        }
        let digit = u32::from(digit.wrapping_sub(b'0'));
        nanos = nanos.wrapping_add(digit.wrapping_mul(scale));
        scale /= 10;
    }
    if whole.first() == Some(&b'-') && nanos > 0 {
        // -1.25 is a quarter second before -1, which is 750 ms after -2.
        return Some(Timestamp {
            secs: secs.checked_sub(1)?,
            nanos: 1_000_000_000_u32.wrapping_sub(nanos),
        });
    }
    Some(Timestamp { secs, nanos })
}

/// Undoes what GNU tar does to `%` and `=` in the names of attributes.
pub(crate) fn gnu_unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, skip) = match tail {
            [b'2', b'5', ..] if first == b'%' => (b'%', 2),
            [b'3', b'D', ..] if first == b'%' => (b'=', 2),
            _ => (first, 0),
        };
        out.push(byte);
        rest = tail.get(skip..).unwrap_or_default();
    }
    out
}

/// Undoes the URL encoding of libarchive's attribute names.
pub(crate) fn url_decode(name: &[u8]) -> Vec<u8> {
    let nibble = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%'
            && let [high, low, ..] = *tail
            && let (Some(high), Some(low)) = (nibble(high), nibble(low))
        {
            out.push((high << 4) | low);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

/// Base 64 (RFC 4648) with or without padding, as libarchive writes attribute values; `None` for anything else.
pub(crate) fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().position(|&b| b == b'=').unwrap_or(text.len());
    let (digits, padding) = text.split_at_checked(end)?;
    if padding.len() > 2 || padding.iter().any(|&b| b != b'=') {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len());
    for group in digits.chunks(4) {
        if group.len() == 1 {
            return None;
        }
        let mut bits = 0_u32;
        for i in 0..4 {
            let sextet = match group.get(i).copied() {
                None => 0,
                Some(b @ b'A'..=b'Z') => b.wrapping_sub(b'A'),
                Some(b @ b'a'..=b'z') => b.wrapping_sub(b'a').wrapping_add(26),
                Some(b @ b'0'..=b'9') => b.wrapping_sub(b'0').wrapping_add(52),
                Some(b'+') => 62,
                Some(b'/') => 63,
                Some(_) => return None,
            };
            bits = (bits << 6) | u32::from(sextet);
        }
        let [_, bytes @ ..] = bits.to_be_bytes();
        out.extend_from_slice(bytes.get(..group.len().saturating_sub(1))?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pair<'a> = (&'a [u8], &'a [u8]);

    fn all(bytes: &[u8]) -> Result<Vec<Pair<'_>>, Malformed> {
        Records(bytes).collect()
    }

    #[test]
    fn records() {
        assert_eq!(
            all(b"12 path=a/b\n5 k=\n11 x=1\n2=3\n").unwrap(),
            [(&b"path"[..], &b"a/b"[..]), (b"k", b""), (b"x", b"1\n2=3")]
        );
        for bad in [
            &b"path=a\n"[..],
            b"99 path=a\n",
            b"11 path=a/b\n",
            b"9 path=a/",
            b"8 patha\n",
            b"5 =a\n",
            b"3 \n",
            b"-5 a=\n",
            b"8 k\0=ab\n",
            b"11 path=a\0\n",
            b"2 \n",
            b"0 \n",
        ] {
            assert!(all(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times() {
        let at = |secs, nanos| Some(Timestamp { secs, nanos });
        for (text, expected) in [
            ("0", at(0, 0)),
            ("1350244992.023960108", at(1_350_244_992, 23_960_108)),
            ("1.5", at(1, 500_000_000)),
            ("1.", at(1, 0)),
            ("1.0000000019", at(1, 1)),
            ("-1", at(-1, 0)),
            ("-1.25", at(-2, 750_000_000)),
            ("-0.5", at(-1, 500_000_000)),
            ("", None),
            (".5", None),
            ("1.x", None),
            ("1e3", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn encodings() {
        assert_eq!(gnu_unescape(b"user.a%3Db%25c%20%"), b"user.a=b%c%20%");
        assert_eq!(url_decode(b"user.a%3db%25%zz%4"), b"user.a=b%%zz%4");
        for (text, expected) in [
            ("", Some(&b""[..])),
            ("YQ==", Some(b"a")),
            ("YQ", Some(b"a")),
            ("YWJj", Some(b"abc")),
            ("/+8A", Some(b"\xff\xef\0")),
            ("Y", None),
            ("Y*==", None),
            ("YQ=a", None),
        ] {
            assert_eq!(
                base64_decode(text.as_bytes()).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
