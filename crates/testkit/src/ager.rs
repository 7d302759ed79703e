use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, Timespec, Timestamps, XattrFlags};

/// Numbers that look random and are the same each time (xorshift64*).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % sides
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        // A block that begins as the journal's own do must be escaped by the kernel and unescaped by us.
        let mut data = if self.roll(5) == 0 {
            vec![0xC0, 0x3B, 0x39, 0x98]
        } else {
            Vec::new()
        };
        let mut state = self.roll(u64::MAX);
        while (data.len() as u64) < len {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            data.extend_from_slice(&state.to_be_bytes());
        }
        data.truncate(usize::try_from(len).unwrap_or(0));
        data
    }
}

/// Makes a filesystem look as if it had been used for long: a repeatable mix of all that programs do to files.
///
/// What a filesystem refuses (no space, no such feature) is left undone.
#[derive(Debug)]
pub struct Ager {
    root: PathBuf,
    dice: Dice,
    /// Files without a name that stay open: a crash leaves them as orphans.
    open: Vec<File>,
}

impl Ager {
    /// An ager of what is below `root`, whose doings depend on `seed` alone.
    #[must_use]
    pub fn new(root: &Path, seed: u64) -> Self {
        Self {
            root: root.to_owned(),
            dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            open: Vec::new(),
        }
    }

    /// Does so many things.
    pub fn age(&mut self, steps: u32) {
        for _ in 0..steps {
            // A refusal is as good as anything: the next step follows all the same.
            let _ = self.step();
        }
    }

    fn directory(&mut self) -> io::Result<PathBuf> {
        let mut path = self.root.clone();
        for _ in 0..self.dice.roll(5) {
            path.push(format!("d{}", self.dice.roll(4)));
        }
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    fn file(&mut self) -> io::Result<PathBuf> {
        let dir = self.directory()?;
        let name = match self.dice.roll(10) {
            0 => format!("{:x<200}", self.dice.roll(30)),
            1 => format!("\u{e9}t\u{e9} {}", self.dice.roll(30)),
            _ => format!("f{}", self.dice.roll(30)),
        };
        Ok(dir.join(name))
    }

    fn opened(&mut self) -> io::Result<File> {
        let path = self.file()?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    }

    fn step(&mut self) -> io::Result<()> {
        match self.dice.roll(30) {
            0..=3 => {
                let len = match self.dice.roll(8) {
                    0 => self.dice.roll(400_000),
                    1 | 2 => self.dice.roll(200),
                    _ => self.dice.roll(20_000),
                };
                let data = self.dice.bytes(len);
                fs::write(self.file()?, data)
            }
            4 | 5 => {
                let (at, len) = (self.dice.roll(200_000), self.dice.roll(30_000));
                let data = self.dice.bytes(len);
                self.opened()?.write_all_at(&data, at)
            }
            // Far out, so that the map gets deep.
            6 => {
                let file = self.opened()?;
                for _ in 0..self.dice.roll(40) {
                    let at = self.dice.roll(2_000) * 12_288;
                    let data = self.dice.bytes(100);
                    file.write_all_at(&data, at)?;
                }
                Ok(())
            }
            7 | 8 => {
                let len = self.dice.roll(100_000);
                self.opened()?.set_len(len)
            }
            9..=11 => fs::remove_file(self.file()?),
            12 | 13 => {
                let (from, to) = (self.file()?, self.file()?);
                fs::rename(from, to)
            }
            14 => {
                let (from, to) = (self.directory()?, self.directory()?);
                if from == self.root {
                    return Ok(());
                }
                let moved = to.join(format!("moved-{}", self.dice.roll(4)));
                fs::rename(from, moved)
            }
            15 => {
                let dir = self.directory()?;
                if dir == self.root || self.dice.roll(3) > 0 {
                    return Ok(());
                }
                fs::remove_dir_all(dir)
            }
            16 => {
                let (file, dir) = (self.file()?, self.directory()?);
                for n in 0..self.dice.roll(30) {
                    fs::hard_link(&file, dir.join(format!("link{n}")))?;
                }
                Ok(())
            }
            17 => {
                let len = match self.dice.roll(3) {
                    0 => 59 + self.dice.roll(3),
                    1 => self.dice.roll(1000),
                    _ => 1 + self.dice.roll(30),
                };
                let target = "t".repeat(usize::try_from(len).unwrap_or(1));
                let path = self.file()?;
                let _ = fs::remove_file(&path);
                symlink(target, path)
            }
            18..=20 => self.fallocate(),
            21..=23 => self.xattr(),
            24 => {
                let mode = u32::try_from(self.dice.roll(0o10000)).unwrap_or(0) | 0o600;
                fs::set_permissions(self.file()?, fs::Permissions::from_mode(mode))
            }
            25 => {
                let (path, id) = (self.file()?, u32::try_from(self.dice.roll(200_000)).ok());
                std::os::unix::fs::lchown(path, id, id.map(|id| id / 2))
            }
            26 => {
                let seconds = i64::try_from(self.dice.roll(8_000_000_000)).unwrap_or(0);
                let time = Timespec {
                    tv_sec: seconds - 2_000_000_000,
                    tv_nsec: i64::try_from(self.dice.roll(1_000_000_000)).unwrap_or(0),
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                let (path, flags) = (self.file()?, AtFlags::SYMLINK_NOFOLLOW);
                Ok(rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags)?)
            }
            // Many names, so that there is a hash tree; then fewer.
            27 => {
                let dir = self.directory()?.join("many");
                fs::create_dir_all(&dir)?;
                let first = self.dice.roll(400);
                for n in first..first + 120 {
                    File::create(dir.join(format!("a longish name of an empty file {n:05}")))?;
                }
                for n in (first..first + 120).step_by(3) {
                    fs::remove_file(dir.join(format!("a longish name of an empty file {n:05}")))?;
                }
                Ok(())
            }
            28 => {
                let path = self.directory()?.join("gone");
                let mut file = File::create(&path)?;
                file.write_all(b"a file without a name")?;
                fs::remove_file(path)?;
                self.open.push(file);
                Ok(())
            }
            _ => self.opened()?.sync_all(),
        }
    }

    fn fallocate(&mut self) -> io::Result<()> {
        // Collapsing and inserting wants whole blocks (or clusters).
        const UNIT: u64 = 65_536;
        let file = self.opened()?;
        let odd = (self.dice.roll(150_000), 1 + self.dice.roll(90_000));
        let even = (self.dice.roll(3) * UNIT, (1 + self.dice.roll(2)) * UNIT);
        let (flags, (at, len)) = match self.dice.roll(7) {
            0 => (FallocateFlags::empty(), odd),
            1 => (FallocateFlags::KEEP_SIZE, odd),
            2 => (FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, odd),
            3 => (FallocateFlags::ZERO_RANGE, odd),
            4 => (FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, odd),
            5 => (FallocateFlags::COLLAPSE_RANGE, even),
            _ => (FallocateFlags::INSERT_RANGE, even),
        };
        Ok(rustix::fs::fallocate(&file, flags, at, len)?)
    }

    fn xattr(&mut self) -> io::Result<()> {
        let path = self.file()?;
        for _ in 0..1 + self.dice.roll(6) {
            let name = format!("user.name{}", self.dice.roll(12));
            if self.dice.roll(3) == 0 {
                let _ = rustix::fs::lremovexattr(&path, name);
                continue;
            }
            let len = match self.dice.roll(12) {
                0 => self.dice.roll(9_000),
                1 | 2 => self.dice.roll(900),
                _ => self.dice.roll(60),
            };
            let value = self.dice.bytes(len);
            rustix::fs::lsetxattr(&path, name, &value, XattrFlags::empty())?;
        }
        Ok(())
    }
}
