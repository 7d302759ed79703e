use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::{ReadAt, WriteAt};

/// A file (or block device) as a disk.
#[derive(Debug)]
pub struct FileDisk(File);

impl FileDisk {
    /// Opens a disk for reading only.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// The file itself.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Gives the file back.
    #[must_use]
    pub fn into_file(self) -> File {
        self.0
    }
}

impl From<File> for FileDisk {
    fn from(file: File) -> Self {
        Self(file)
    }
}

#[cfg(unix)]
mod os {
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
    use rustix::io::Errno;

    pub(super) fn read(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        file.read_at(buf, offset)
    }

    pub(super) fn write(file: &File, offset: u64, buf: &[u8]) -> io::Result<usize> {
        file.write_at(buf, offset)
    }

    /// May write less than all.
    pub(super) fn write_both(
        file: &File,
        offset: u64,
        first: &[u8],
        second: &[u8],
    ) -> io::Result<usize> {
        let slices = [io::IoSlice::new(first), io::IoSlice::new(second)];
        Ok(rustix::io::pwritev(file, &slices, offset)?)
    }

    /// Nothing is lost if it can't be done: the writes will tell whether there is space.
    pub(super) fn expect(file: &File, offset: u64, len: u64) {
        let _ = fallocate(file, FallocateFlags::KEEP_SIZE, offset, len);
    }

    /// `Ok(false)`: this file system can't punch holes.
    pub(super) fn punch(file: &File, offset: u64, len: u64) -> io::Result<bool> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match fallocate(file, mode, offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Also moves the cursor, which nothing here goes by.
    pub(super) fn next_data(file: &File, offset: u64, size: u64) -> io::Result<Option<Range<u64>>> {
        let all = Ok((offset < size).then_some(offset..size));
        if offset >= size {
            return all;
        }
        let start = match seek(file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // A device, or a file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return all,
            Err(e) => return Err(e.into()),
        };
        match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => Ok(Some(start..end)),
            // It was cut since.
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(windows)]
mod os {
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::os::windows::fs::FileExt;

    pub(super) fn read(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        file.seek_read(buf, offset)
    }

    pub(super) fn write(file: &File, offset: u64, buf: &[u8]) -> io::Result<usize> {
        file.seek_write(buf, offset)
    }

    pub(super) fn write_both(
        file: &File,
        offset: u64,
        first: &[u8],
        _: &[u8],
    ) -> io::Result<usize> {
        write(file, offset, first)
    }

    pub(super) fn expect(_: &File, _: u64, _: u64) {}

    pub(super) fn punch(_: &File, _: u64, _: u64) -> io::Result<bool> {
        Ok(false)
    }

    pub(super) fn next_data(_: &File, offset: u64, size: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset < size).then_some(offset..size))
    }
}

impl ReadAt for FileDisk {
    fn size(&self) -> io::Result<u64> {
        use std::io::{Seek, SeekFrom};
        let metadata = self.0.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        // A block device has no length of its own: its end tells. The cursor is used by nothing else here.
        (&self.0).seek(SeekFrom::End(0))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        // No file reaches there, and the system calls an offset that overflows invalid.
        if offset > i64::MAX as u64 - buf.len() as u64 {
            return Ok(0);
        }
        let mut done = 0;
        while done < buf.len() {
            match os::read(&self.0, offset + done as u64, &mut buf[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        os::next_data(&self.0, offset, self.size()?)
    }
}

impl WriteAt for FileDisk {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match os::write(&self.0, offset + done as u64, &buf[done..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_both_at(&self, offset: u64, first: &[u8], second: &[u8]) -> io::Result<()> {
        let done = loop {
            match os::write_both(&self.0, offset, first, second) {
                Ok(done) => break done,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        };
        // Nearly always all of it; what is left, in the plain way.
        let later = done.saturating_sub(first.len());
        self.write_all_at(offset + done as u64, &first[done.min(first.len())..])?;
        self.write_all_at(offset + (first.len() + later) as u64, &second[later..])
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len).min(self.size()?);
        if offset >= end || os::punch(&self.0, offset, end - offset)? {
            return Ok(());
        }
        let zeros = vec![0; 1 << 20];
        let mut at = offset;
        while at < end {
            let n = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(zeros.len());
            self.write_all_at(at, &zeros[..n])?;
            at += n as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn expect(&self, offset: u64, len: u64) {
        os::expect(&self.0, offset, len);
    }
}
