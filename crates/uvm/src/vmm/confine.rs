//! What a monitor's process may do: as little as it can live with.
//!
//! In this order, in the child before the program runs: limits; no network (an empty network namespace, in a user namespace
//! of its own if the caller is not root); the capability bounding set emptied; a user id nobody else has, no groups; no new
//! privileges; and death when the thread that started it dies.
#![allow(unsafe_code)]

use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, Gid, Uid, UnshareFlags};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// First of the user ids given to monitors started by root: an otherwise unused range (systemd's "UIDs and GIDs" page leaves
/// 1879048192–2147483647 free). Each monitor takes this plus its process id, so no two can touch each other.
const FIRST_UID: u32 = 0x7000_0000;
/// `nobody`, where the range is not mapped: inside a container's user namespace.
const NOBODY: u32 = 65534;

/// Most descriptors: two for each disk, and some.
const DESCRIPTORS: u64 = 4096;

/// What the child needs to know; made before the fork.
#[derive(Debug, Clone)]
pub(super) struct Confinement {
    root: bool,
    parent: Option<Pid>,
    /// The one group a monitor keeps, if any: the one that may open the KVM device.
    group: Option<u32>,
    limits: [(Resource, Rlimit); 2],
}

impl Confinement {
    pub(super) fn new(group: Option<u32>) -> Self {
        let now = rustix::process::getrlimit(Resource::Nofile);
        let descriptors = now
            .maximum
            .map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
        let exactly = |n| Rlimit {
            current: Some(n),
            maximum: Some(n),
        };
        Self {
            root: rustix::process::geteuid().is_root(),
            parent: Some(rustix::process::getpid()),
            group,
            limits: [
                (Resource::Core, exactly(0)),
                (Resource::Nofile, exactly(descriptors)),
            ],
        }
    }

    /// Applies it to the child of `command`, after what was registered before.
    pub(super) fn apply(self, command: &mut Command) {
        // SAFETY: `in_child` makes only system calls, and allocates nothing; all it needs was made before the fork.
        unsafe {
            command.pre_exec(move || self.in_child());
        }
    }

    fn in_child(&self) -> io::Result<()> {
        for (resource, limit) in self.limits {
            rustix::process::setrlimit(resource, limit)?;
        }
        if self.root {
            // Not allowed in some containers; there the monitor has the container's network.
            // SAFETY: no CLONE_FILES; one thread.
            let _ = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
            self.drop_root()?;
        } else {
            // Not allowed on some hosts; then there is nothing more to give up.
            // SAFETY: as above.
            let _ = unsafe {
                rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)
            };
        }
        rustix::thread::set_no_new_privs(true)?;
        // After the change of credentials, which would clear it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != self.parent {
            // The parent died in between: nobody would ever end this process.
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(())
    }

    fn drop_root(&self) -> io::Result<()> {
        for bit in 0..64 {
            // EINVAL past the last capability the kernel has; EPERM where the caller is root without them.
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
                break;
            }
        }
        let group = self.group.map(Gid::from_raw);
        rustix::thread::set_thread_groups(group.as_slice())?;
        let own = FIRST_UID.wrapping_add(
            rustix::process::getpid()
                .as_raw_nonzero()
                .get()
                .unsigned_abs(),
        );
        if become_user(own).is_err() {
            become_user(NOBODY)?;
        }
        Ok(())
    }
}

fn become_user(id: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}
