use std::fmt;

/// An instant as ext4 keeps it: whole seconds since 1970-01-01 UTC, and nanoseconds after them.
///
/// ext4 holds −2³¹ … 15,032,385,535 s (December 1901 to May 2446). What lies outside is brought to the nearest end
/// when written, as the kernel does (`timestamp_truncate`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970, rounded down: negative before it.
    pub secs: i64,
    /// Nanoseconds after `secs`, 0 … 999,999,999. Larger values are written as 999,999,999.
    pub nanos: u32,
}

impl Timestamp {
    /// The earliest instant ext4 can hold.
    pub const MIN: Self = Self {
        secs: -0x8000_0000,
        nanos: 0,
    };
    /// The latest instant ext4 can hold.
    pub const MAX: Self = Self {
        secs: 0x3_7fff_ffff,
        nanos: 999_999_999,
    };

    /// An instant at a whole second.
    #[must_use]
    pub const fn from_secs(secs: i64) -> Self {
        Self { secs, nanos: 0 }
    }
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum FileType {
    Regular,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl FileType {
    /// The type bits of `st_mode` / `i_mode` (`S_IFMT`).
    #[must_use]
    pub const fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0x1000,
            Self::CharDevice => 0x2000,
            Self::Directory => 0x4000,
            Self::BlockDevice => 0x6000,
            Self::Regular => 0x8000,
            Self::Symlink => 0xa000,
            Self::Socket => 0xc000,
        }
    }

    /// The type in a mode; `None` for bits no type has.
    #[must_use]
    pub const fn from_mode(mode: u16) -> Option<Self> {
        Some(match mode & 0xf000 {
            0x1000 => Self::Fifo,
            0x2000 => Self::CharDevice,
            0x4000 => Self::Directory,
            0x6000 => Self::BlockDevice,
            0x8000 => Self::Regular,
            0xa000 => Self::Symlink,
            0xc000 => Self::Socket,
            _ => return None,
        })
    }

    /// The type byte of a directory entry (`EXT4_FT_*`).
    #[must_use]
    pub const fn dirent_code(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::CharDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink => 7,
        }
    }

    /// The type in a directory entry; `None` for 0 (unknown) and codes no type has.
    #[must_use]
    pub const fn from_dirent_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => return None,
        })
    }
}

/// The number of an inode, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeNumber(pub u32);

impl InodeNumber {
    /// The root directory of every ext2/3/4 filesystem.
    pub const ROOT: Self = Self(2);
}

impl fmt::Display for InodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A device's number: 12 bits of major and 20 bits of minor are what Linux and ext4 hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[allow(missing_docs)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xattr {
    /// The full name with its namespace: `user.x`, `security.capability`, `system.posix_acl_access`, …
    pub name: Vec<u8>,
    /// The value as `getxattr` gives it. POSIX ACLs are turned into ext4's own form, and back, inside this crate.
    pub value: Vec<u8>,
}
