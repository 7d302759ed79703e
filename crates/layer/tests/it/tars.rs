//! Tars made by hand, block by block.

/// An entry's header with its data and padding.
#[derive(Debug, Clone)]
pub(crate) struct Hand {
    block: [u8; 512],
    data: Vec<u8>,
}

impl Hand {
    pub(crate) fn new(flag: u8, name: &str) -> Self {
        let mut block = [0; 512];
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[156] = flag;
        let mut hand = Self {
            block,
            data: Vec::new(),
        };
        hand.put(0, name.as_bytes());
        hand.octal(100, 7, 0o644);
        hand.octal(108, 7, 0);
        hand.octal(116, 7, 0);
        hand.octal(124, 11, 0);
        hand.octal(136, 11, 1_600_000_000);
        hand
    }

    pub(crate) fn file(name: &str, data: &[u8]) -> Self {
        Self::new(b'0', name).data(data)
    }

    pub(crate) fn dir(name: &str) -> Self {
        Self::new(b'5', name).octal_at(100, 7, 0o755)
    }

    pub(crate) fn link(name: &str, target: &str) -> Self {
        Self::new(b'1', name).bytes(157, target.as_bytes())
    }

    pub(crate) fn symlink(name: &str, target: &str) -> Self {
        Self::new(b'2', name).bytes(157, target.as_bytes())
    }

    /// An `x` header with these records.
    pub(crate) fn pax(records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len != rest + len.to_string().len() {
                len += 1;
            }
            body.extend_from_slice(format!("{len} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        Self::new(b'x', "pax").data(&body)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn octal(&mut self, at: usize, digits: usize, value: u64) {
        let text = format!("{value:0digits$o}");
        self.put(at, text.as_bytes());
    }

    pub(crate) fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }

    pub(crate) fn octal_at(mut self, at: usize, digits: usize, value: u64) -> Self {
        self.octal(at, digits, value);
        self
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.octal(124, 11, data.len() as u64);
        self.data = data.to_vec();
        self
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut out = self.block.to_vec();
        out[148..156].fill(b' ');
        let sum: u32 = out.iter().map(|&b| u32::from(b)).sum();
        out[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

/// The entries and the end of an archive.
pub(crate) fn tar(entries: &[Hand]) -> Vec<u8> {
    let mut out: Vec<u8> = entries.iter().flat_map(Hand::finish).collect();
    out.resize(out.len() + 1024, 0);
    out
}
