//! Writing an archive of blobs, with the same bytes for the same contents.

use std::io::{self, Write};

use tar_core::{EntryBuilder, EntryType, HEADER_SIZE};

/// Writes a tar of plain files and directories that belong to root and are as old as the epoch.
pub(crate) struct Archive<W> {
    out: W,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.header(path, EntryType::Directory, 0o755, 0)
    }

    pub(crate) fn file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.begin(path, bytes.len() as u64)?;
        self.out.write_all(bytes)?;
        self.end(bytes.len() as u64)
    }

    /// Begins a file of a known length, whose data goes to [`data`](Self::data).
    pub(crate) fn begin(&mut self, path: &str, size: u64) -> io::Result<()> {
        self.header(path, EntryType::Regular, 0o644, size)
    }

    pub(crate) fn data(&mut self) -> &mut W {
        &mut self.out
    }

    pub(crate) fn end(&mut self, size: u64) -> io::Result<()> {
        let block = HEADER_SIZE as u64;
        let padding = usize::try_from(size.wrapping_neg() % block).unwrap_or(0);
        self.out.write_all(&[0; HEADER_SIZE][..padding])
    }

    /// Writes the end of the archive.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * HEADER_SIZE])?;
        self.out.flush()
    }

    fn header(&mut self, path: &str, kind: EntryType, mode: u32, size: u64) -> io::Result<()> {
        let mut builder = EntryBuilder::new_ustar();
        builder.path(path).entry_type(kind);
        let fields = builder
            .mode(mode)
            .and_then(|b| b.uid(0))
            .and_then(|b| b.gid(0))
            .and_then(|b| b.mtime(0))
            .and_then(|b| b.size(size));
        if let Err(error) = fields {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                error.to_string(),
            ));
        }
        self.out.write_all(&builder.finish_bytes())
    }
}
