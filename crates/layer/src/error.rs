use std::fmt;

/// What sort of failure an error is, for callers that treat them differently (retry, tell the user, quarantine).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The input contradicts its own format, is cut short, or does not have the digest it should have.
    Corrupt,
    /// Valid input that uses something this program does not do.
    Unsupported,
    /// Well-formed, but hostile, meaningless, or past a limit.
    Refused,
    /// Reading the input or writing the output failed.
    Io,
}

/// An entry's name in a tar, as bytes; shown with everything that is not printable escaped, and cut at 256 bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EntryName(pub Vec<u8>);

impl EntryName {
    const SHOWN: usize = 256;
}

impl From<&[u8]> for EntryName {
    fn from(name: &[u8]) -> Self {
        Self(name.to_vec())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..Self::SHOWN).unwrap_or(&self.0);
        for chunk in shown.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() || c == '\\' {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        if shown.len() < self.0.len() {
            f.write_str("…")?;
        }
        Ok(())
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::EntryName;

    #[test]
    fn names_are_shown_safely() {
        assert_eq!(EntryName::from(&b"a/b c"[..]).to_string(), "a/b c");
        assert_eq!(
            EntryName::from(&b"a\n\x1b[0m\xff"[..]).to_string(),
            "a\\n\\u{1b}[0m\\xff"
        );
        assert_eq!(
            EntryName(vec![b'x'; 300]).to_string(),
            format!("{}…", "x".repeat(256))
        );
    }
}
