//! Cloning a disk file: sharing its blocks where the file system can, else copying what is not a hole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::vfs::Cloned;

/// Makes the empty file `to` a clone of `from`. Does not sync.
pub(crate) fn clone(from: &File, to: &File) -> io::Result<Cloned> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(Cloned::Reflink),
        // Not on this file system, or not across these two.
        Err(
            Errno::OPNOTSUPP
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::NOSYS
            | Errno::PERM,
        ) => sparse_copy(from, to).map(|()| Cloned::Copy),
        Err(e) => Err(e.into()),
    }
}

/// Copies the data of `from`, and leaves holes where it has them.
pub(crate) fn sparse_copy(from: &File, to: &File) -> io::Result<()> {
    let len = from.metadata()?.len();
    ftruncate(to, len)?;
    let mut at = 0;
    while at < len {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            // A file system without holes: all of it is data.
            Err(Errno::INVAL) => at,
            Err(e) => return Err(e.into()),
        };
        let end = match seek(from, SeekFrom::Hole(start)) {
            Ok(end) => end.min(len),
            Err(Errno::INVAL) => len,
            Err(e) => return Err(e.into()),
        };
        copy_range(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let want = usize::try_from(end - read_at)
            .unwrap_or(usize::MAX)
            .min(1 << 30);
        match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), want) {
            // The file was cut meanwhile; nobody writes to a blank or a layer.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => {
                return copy_through_memory(from, to, read_at, end);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn copy_through_memory(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        from.read_exact_at(&mut buffer[..want], at)?;
        to.write_all_at(&buffer[..want], at)?;
        at += want as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_sparse_copy_has_the_same_bytes_and_stays_sparse() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(64 << 20).unwrap();
        for at in [0_u64, 1 << 20, (32 << 20) + 4096, (64 << 20) - 5] {
            from.write_all_at(b"data!", at).unwrap();
        }
        for copy in [sparse_copy, |a: &File, b: &File| {
            copy_through_memory(a, b, 0, 64 << 20)
        }] {
            let to = tempfile::tempfile().unwrap();
            copy(&from, &to).unwrap();
            let (mut a, mut b) = (Vec::new(), Vec::new());
            seek(&from, SeekFrom::Start(0)).unwrap();
            seek(&to, SeekFrom::Start(0)).unwrap();
            (&from).read_to_end(&mut a).unwrap();
            (&to).read_to_end(&mut b).unwrap();
            assert!(a == b);
        }
        let to = tempfile::tempfile().unwrap();
        sparse_copy(&from, &to).unwrap();
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
