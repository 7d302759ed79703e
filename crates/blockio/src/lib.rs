//! Positioned, blocking I/O on a range of bytes.
//!
//! Every format in this project (ext4, VHD, …) is read and written through the two small traits of this crate, so the
//! same code works on a file, on memory, on a part of a larger disk, and on the doubles that tests use.
//!
//! * [`ReadAt`] reads at an offset, through `&self`: there is no cursor, so any number of threads share one disk. It also
//!   says where holes are, so that sparse disks are copied without reading them.
//! * [`WriteAt`] adds writing, sizing, zeroing (as holes where the file system can) and syncing.
//!
//! Nothing here is asynchronous and nothing buffers: one call is one system call (or one `memcpy`). Errors are
//! [`std::io::Error`]; callers add path, offset and operation when they turn them into errors of their own.
//!
//! ```
//! use lcow_blockio::{MemDisk, ReadAt, SubRange, WriteAt};
//!
//! let disk = MemDisk::new();
//! disk.write_all_at(4096, b"hello")?;
//! let part = SubRange::new(&disk, 4096, 5);
//! let mut word = [0; 5];
//! part.read_exact_at(0, &mut word)?;
//! assert_eq!(&word, b"hello");
//! assert_eq!(disk.size()?, 4101);
//! # Ok::<(), std::io::Error>(())
//! ```

mod file;
mod memory;
mod range;
#[cfg(feature = "testing")]
pub mod testing;

pub use file::FileDisk;
pub use memory::MemDisk;
pub use range::SubRange;

use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Reads at byte offsets.
pub trait ReadAt: Send + Sync {
    /// The size in bytes. Reads at or past it return 0 bytes.
    fn size(&self) -> io::Result<u64>;

    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Fills `buf` from `offset`, or fails with [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.read_at(offset, buf)? == buf.len() {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the disk ends inside the read",
            ))
        }
    }

    /// The next range, at `offset` or after it, that may hold something other than zeros; `None`: there are only zeros to the
    /// end. What knows nothing of holes says that all of it may.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let size = self.size()?;
        Ok((offset < size).then_some(offset..size))
    }
}

/// Writes at byte offsets. A write past the end grows the disk; the gap reads as zeros.
pub trait WriteAt: ReadAt {
    /// Writes all of `buf` at `offset`.
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Writes all of `first` at `offset` and all of `second` behind it, in one go where the system can.
    fn write_both_at(&self, offset: u64, first: &[u8], second: &[u8]) -> io::Result<()> {
        self.write_all_at(offset, first)?;
        let behind = offset
            .checked_add(first.len() as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        self.write_all_at(behind, second)
    }

    /// Sets the size: cuts, or grows with zeros that take no space where the file system can.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes `len` bytes at `offset` read as zeros, as a hole where the file system can. Never grows the disk.
    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Returns once all that was written is on stable storage.
    fn sync(&self) -> io::Result<()>;

    /// Says that `len` bytes from `offset` on are about to be written, one after another. A file may then get its space
    /// in one go, which costs less than block by block; contents and size stay as they are. What then isn't written after all is given back by
    /// [`set_len`](Self::set_len) to where the writes ended. Only a hint: it can't fail, and need not do anything.
    fn expect(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $pointer {
            fn size(&self) -> io::Result<u64> {
                (**self).size()
            }
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
                (**self).read_at(offset, buf)
            }
            fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
                (**self).next_data(offset)
            }
        }
        impl<T: WriteAt + ?Sized> WriteAt for $pointer {
            fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
                (**self).write_all_at(offset, buf)
            }
            fn write_both_at(&self, offset: u64, first: &[u8], second: &[u8]) -> io::Result<()> {
                (**self).write_both_at(offset, first, second)
            }
            fn set_len(&self, len: u64) -> io::Result<()> {
                (**self).set_len(len)
            }
            fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
                (**self).zero_range(offset, len)
            }
            fn sync(&self) -> io::Result<()> {
                (**self).sync()
            }
            fn expect(&self, offset: u64, len: u64) {
                (**self).expect(offset, len);
            }
        }
    )*};
}

forward!(&T, Arc<T>, Box<T>);
