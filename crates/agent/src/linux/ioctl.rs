//! The ioctls that have no safe wrapper. All of the agent's `unsafe` outside of process start is here.
#![allow(unsafe_code)]

use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;

/// `struct fstrim_range` of `linux/fs.h`: bytes.
#[repr(C)]
struct FstrimRange {
    start: u64,
    len: u64,
    min_len: u64,
}

/// `FITRIM`, `_IOWR('X', 121, struct fstrim_range)`.
const FITRIM: libc::c_ulong = 0xc018_5879;

/// Discards all free blocks of the file system that `dir` is on; how many bytes were.
pub(super) fn trim(dir: impl AsFd) -> Result<u64, Errno> {
    let mut range = FstrimRange {
        start: 0,
        len: u64::MAX,
        min_len: 0,
    };
    // SAFETY: FITRIM reads and writes one `fstrim_range`, which `range` is and outlives the call; the descriptor is open.
    let result = unsafe { libc::ioctl(dir.as_fd().as_raw_fd(), FITRIM as _, &raw mut range) };
    if result == 0 {
        Ok(range.len)
    } else {
        Err(last_errno())
    }
}

/// `FIFREEZE`, `_IOWR('X', 119, int)` of `linux/fs.h`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
/// `FITHAW`, `_IOWR('X', 120, int)`.
const FITHAW: libc::c_ulong = 0xc004_5878;

/// Writes the file system that `dir` is on out, and lets nothing change it.
pub(super) fn freeze(dir: impl AsFd) -> Result<(), Errno> {
    level(dir, FIFREEZE)
}

/// Takes a freeze back.
pub(super) fn thaw(dir: impl AsFd) -> Result<(), Errno> {
    level(dir, FITHAW)
}

fn level(dir: impl AsFd, request: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: the kernel reads nothing behind the argument of these two (`ioctl_fsfreeze` takes none, whatever the number
    // says); the descriptor is open.
    let result = unsafe { libc::ioctl(dir.as_fd().as_raw_fd(), request as _, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

/// Brings the loopback interface up, so that a process can talk to itself.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all zeroes is a valid `ifreq`: its fields are integers, addresses and arrays of bytes.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo\0") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which `request` is and outlives the call; the descriptor is an open socket.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
