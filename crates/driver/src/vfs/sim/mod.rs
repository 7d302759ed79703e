//! A file system in memory that loses power.
//!
//! It remembers all that is done to it. [`Sim::history`] gives that record, and [`History::cuts`] the file systems that a
//! power cut may leave. Its processes can be killed at any operation, too: [`Sim::die_after`], [`Sim::next_process`].

mod cuts;
mod world;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lcow_blockio::{ReadAt, WriteAt};
use rustix::io::Errno;

pub use cuts::{Depth, History};
pub use world::World;

use super::{Cloned, Entry, FileKind, Handle, LockMode, Metadata, OpenMode, Vfs, VfsFile};
use crate::lock::Holder;
use world::Contents;

/// Something that was done to a file system. Nodes are inode numbers, never used twice.
#[derive(Debug, Clone)]
enum Op {
    /// A new file or directory without a name.
    Make { node: u64, directory: bool },
    /// A name was given.
    Link {
        directory: u64,
        name: OsString,
        node: u64,
    },
    /// A name was taken away.
    Unlink { directory: u64, name: OsString },
    /// A name was given in place of another.
    Rename {
        from: (u64, OsString),
        to: (u64, OsString),
        node: u64,
    },
    /// Bytes were written.
    Write {
        node: u64,
        at: u64,
        bytes: Arc<[u8]>,
    },
    /// The length was set.
    SetLen { node: u64, len: u64 },
    /// A hole was punched.
    Zero { node: u64, at: u64, len: u64 },
    /// A file became a clone of another.
    Share { node: u64, contents: Arc<Contents> },
    /// fsync(2).
    Sync { node: u64 },
}

/// A promise that a file system breaks, to see that it is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// fsync of a directory does nothing.
    Directories,
    /// fsync of a file does nothing.
    Files,
}

/// A process on a simulated file system. Clones are the same process.
#[derive(Debug, Clone)]
pub struct Sim {
    machine: Arc<Mutex<Machine>>,
    process: u64,
}

#[derive(Debug)]
struct Machine {
    start: World,
    world: World,
    log: Vec<Op>,
    last_node: u64,
    last_handle: u64,
    /// Node → (handle, mode).
    locks: HashMap<u64, Vec<(u64, LockMode)>>,
    /// The process that lives.
    process: u64,
    /// How many operations it may still do before it dies.
    left: Option<usize>,
    lie: Option<Lie>,
}

impl Sim {
    /// The first process after a start of the machine.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self::with(world, None)
    }

    /// As [`Sim::new`], on a file system that breaks a promise.
    #[must_use]
    pub fn lying(world: World, lie: Lie) -> Self {
        Self::with(world, Some(lie))
    }

    fn with(world: World, lie: Option<Lie>) -> Self {
        Self {
            machine: Arc::new(Mutex::new(Machine {
                start: world.clone(),
                last_node: world.last(),
                last_handle: 0,
                world,
                log: Vec::new(),
                locks: HashMap::new(),
                process: 0,
                left: None,
                lie,
            })),
            process: 0,
        }
    }

    /// Kills this process when it has changed so many things more. All it asks for fails from then on.
    pub fn die_after(&self, changes: usize) {
        self.lock().left = Some(changes);
    }

    /// Whether [`die_after`](Self::die_after) came to it.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        let machine = self.lock();
        machine.process != self.process || machine.left == Some(0)
    }

    /// Another process on the same machine, after this one was killed.
    #[must_use]
    pub fn next_process(&self) -> Self {
        let mut machine = self.lock();
        machine.process += 1;
        machine.left = None;
        machine.locks.clear();
        Self {
            machine: Arc::clone(&self.machine),
            process: machine.process,
        }
    }

    /// How many things were done.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.lock().log.len()
    }

    /// The file system as its processes see it.
    #[must_use]
    pub fn world(&self) -> World {
        self.lock().world.clone()
    }

    /// All that was done.
    #[must_use]
    pub fn history(&self) -> History {
        let machine = self.lock();
        History::new(machine.start.clone(), machine.log.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine, for a process that lives.
    fn alive(&self) -> io::Result<MutexGuard<'_, Machine>> {
        let machine = self.lock();
        if machine.process != self.process || machine.left == Some(0) {
            return Err(io::Error::other("the process was killed"));
        }
        Ok(machine)
    }

    fn handle(&self, machine: &mut Machine, node: u64) -> Handle {
        machine.last_handle += 1;
        Arc::new(SimFile {
            sim: self.clone(),
            node,
            handle: machine.last_handle,
        })
    }
}

impl Machine {
    fn change(&mut self, op: Op) {
        if let Op::Sync { node } = op {
            match self.lie {
                Some(Lie::Directories) if self.world.is_dir(node) => return,
                Some(Lie::Files) if !self.world.is_dir(node) => return,
                _ => {}
            }
        }
        self.world.apply(&op);
        self.log.push(op);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
    }

    /// A new file or directory of a name that is free.
    fn make(&mut self, parent: u64, name: OsString, directory: bool) -> u64 {
        self.last_node += 1;
        let node = self.last_node;
        // The inode alone is nothing that is seen, and no step of its own.
        let make = Op::Make { node, directory };
        self.world.apply(&make);
        self.log.push(make);
        self.change(Op::Link {
            directory: parent,
            name,
            node,
        });
        node
    }

    fn describe(&self, node: u64) -> Metadata {
        let contents = self.world.contents(node).ok();
        Metadata {
            kind: match contents {
                Some(_) => FileKind::File,
                None => FileKind::Directory,
            },
            len: contents.map_or(0, |c| c.len),
            allocated: contents.map_or(0, Contents::allocated),
            links: contents.map_or(1, |_| self.world.links(node)),
            identity: (1, node),
            mtime: 0,
            ctime: 0,
        }
    }

    fn rename(&mut self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let (from_dir, from) = self.world.parent(from)?;
        let (to_dir, to) = self.world.parent(to)?;
        let node = self.world.entry(from_dir, from)?.ok_or(Errno::NOENT)?;
        if let Some(there) = self.world.entry(to_dir, to)? {
            if !replace {
                return Err(Errno::EXIST.into());
            }
            if self.world.is_dir(there) {
                return Err(Errno::ISDIR.into());
            }
        }
        self.change(Op::Rename {
            from: (from_dir, from.to_owned()),
            to: (to_dir, to.to_owned()),
            node,
        });
        Ok(())
    }
}

impl Vfs for Sim {
    fn open(&self, path: &Path, how: OpenMode) -> io::Result<Handle> {
        let mut machine = self.alive()?;
        let node = match (machine.world.find(path), how) {
            (Ok(_), OpenMode::CreateNew) => return Err(Errno::EXIST.into()),
            (Ok(node), OpenMode::Read) => node,
            (Ok(node), _) if machine.world.is_dir(node) => return Err(Errno::ISDIR.into()),
            (Ok(node), _) => node,
            (Err(e), OpenMode::Read | OpenMode::Write) => return Err(e),
            (Err(_), OpenMode::Create | OpenMode::CreateNew) => {
                let (parent, name) = machine.world.parent(path)?;
                machine.make(parent, name.to_owned(), false)
            }
        };
        Ok(self.handle(&mut machine, node))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut machine = self.alive()?;
        if machine.world.find(path).is_ok() {
            return Err(Errno::EXIST.into());
        }
        let (parent, name) = machine.world.parent(path)?;
        machine.make(parent, name.to_owned(), true);
        Ok(())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let machine = self.alive()?;
        let node = machine.world.find(path)?;
        Ok(machine.describe(node))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let machine = self.alive()?;
        let entries = machine.world.entries(machine.world.find(path)?)?;
        Ok(entries
            .iter()
            .map(|(name, &node)| Entry {
                name: name.clone(),
                kind: machine.describe(node).kind,
            })
            .collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?.rename(from, to, true)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?.rename(from, to, false)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut machine = self.alive()?;
        let node = machine.world.find(from)?;
        let (directory, name) = machine.world.parent(to)?;
        if machine.world.entry(directory, name)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        machine.change(Op::Link {
            directory,
            name: name.to_owned(),
            node,
        });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut machine = self.alive()?;
        if machine.world.is_dir(machine.world.find(path)?) {
            return Err(Errno::ISDIR.into());
        }
        let (directory, name) = machine.world.parent(path)?;
        machine.change(Op::Unlink {
            directory,
            name: name.to_owned(),
        });
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut machine = self.alive()?;
        let node = machine.world.find(path)?;
        if !machine.world.entries(node)?.is_empty() {
            return Err(Errno::NOTEMPTY.into());
        }
        let (directory, name) = machine.world.parent(path)?;
        machine.change(Op::Unlink {
            directory,
            name: name.to_owned(),
        });
        Ok(())
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        self.alive()?.world.find(path)?;
        Ok(path.to_owned())
    }
}

#[derive(Debug)]
struct SimFile {
    sim: Sim,
    node: u64,
    handle: u64,
}

impl SimFile {
    fn change(&self, op: Op) -> io::Result<()> {
        self.sim.alive()?.change(op);
        Ok(())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl VfsFile for SimFile {
    fn metadata(&self) -> io::Result<Metadata> {
        Ok(self.sim.alive()?.describe(self.node))
    }

    fn try_lock(&self, mode: LockMode) -> io::Result<bool> {
        let mut machine = self.sim.alive()?;
        let holders = machine.locks.entry(self.node).or_default();
        let free = holders.iter().all(|&(handle, held)| {
            handle == self.handle || mode == LockMode::Shared && held == LockMode::Shared
        });
        if free {
            holders.retain(|&(handle, _)| handle != self.handle);
            holders.push((self.handle, mode));
        }
        Ok(free)
    }

    fn unlock(&self) {
        if let Ok(mut machine) = self.sim.alive()
            && let Some(holders) = machine.locks.get_mut(&self.node)
        {
            holders.retain(|&(handle, _)| handle != self.handle);
        }
    }

    fn holders(&self) -> Vec<Holder> {
        Vec::new()
    }

    fn become_clone_of(&self, from: &dyn VfsFile) -> io::Result<Cloned> {
        let node = from.metadata()?.identity.1;
        let mut machine = self.sim.alive()?;
        let contents = Arc::new(machine.world.contents(node)?.clone());
        machine.change(Op::Share {
            node: self.node,
            contents,
        });
        Ok(Cloned::Reflink)
    }

    fn as_file(&self) -> Option<&File> {
        None
    }
}

impl ReadAt for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.sim.alive()?.world.contents(self.node)?.len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let machine = self.sim.alive()?;
        Ok(machine.world.contents(self.node)?.read(offset, buf))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let machine = self.sim.alive()?;
        Ok(machine.world.contents(self.node)?.next_data(offset))
    }
}

impl WriteAt for SimFile {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.change(Op::Write {
            node: self.node,
            at: offset,
            bytes: buf.into(),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen {
            node: self.node,
            len,
        })
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Op::Zero {
            node: self.node,
            at: offset,
            len,
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.change(Op::Sync { node: self.node })
    }
}
