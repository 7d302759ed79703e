//! SCSI disks: found by address, checked by serial, mounted as ext4.

use super::{failed, failed_io};
use crate::{Deadline, log};
use lcow_protocol::{DiskMount, ErrorKind, RemoteError, ScsiAddress};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the kernel may take to see a disk by itself before it is told to look.
const NUDGE_AFTER: Duration = Duration::from_millis(500);
/// Seconds after which the kernel gives a command to a disk up; a busy host is no broken disk, and requests have deadlines of their
/// own. Its own default is 30.
const COMMAND_TIMEOUT: &str = "300";

/// Sleeps a little, then a little more, until something is true.
struct Poll {
    pause: Duration,
    deadline: Deadline,
}

impl Poll {
    fn new(deadline: Deadline) -> Self {
        Self {
            pause: Duration::from_micros(500),
            deadline,
        }
    }

    fn again(&mut self, operation: &str) -> Result<(), RemoteError> {
        self.deadline.check(operation)?;
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(Duration::from_millis(10));
        Ok(())
    }
}

/// The number of the virtio-scsi host adapter, as in `/sys/class/scsi_host/host<N>`.
fn adapter() -> Result<u32, RemoteError> {
    const HOSTS: &str = "/sys/class/scsi_host";
    for entry in std::fs::read_dir(HOSTS).map_err(failed_io("list", HOSTS))? {
        let entry = entry.map_err(failed_io("list", HOSTS))?;
        let name = std::fs::read_to_string(entry.path().join("proc_name")).unwrap_or_default();
        let file_name = entry.file_name();
        let number = file_name
            .to_str()
            .and_then(|name| name.strip_prefix("host")?.parse().ok());
        // Linux up to 6.x calls it "virtio_scsi"; "Virtio SCSI HBA" is the `name`, not the `proc_name`.
        if let ("virtio_scsi", Some(number)) = (name.trim(), number) {
            return Ok(number);
        }
    }
    Err(RemoteError::new(ErrorKind::Refused, "find disk")
        .because("the machine has no virtio-scsi adapter"))
}

fn device_dir(host: u32, address: ScsiAddress) -> PathBuf {
    let ScsiAddress { target, lun } = address;
    PathBuf::from(format!("/sys/bus/scsi/devices/{host}:0:{target}:{lun}"))
}

/// The disk's name, such as `sdb`, once there is one.
fn block_name(device: &Path) -> Option<String> {
    let mut names = std::fs::read_dir(device.join("block")).ok()?;
    names.next()?.ok()?.file_name().into_string().ok()
}

/// Waits for the disk at `address` to open; its sysfs directory and its node.
fn find(address: ScsiAddress, deadline: Deadline) -> Result<(PathBuf, PathBuf), RemoteError> {
    const OPERATION: &str = "wait for disk";
    let host = adapter()?;
    let device = device_dir(host, address);
    let mut poll = Poll::new(deadline);
    let began = Instant::now();
    let mut nudged = false;
    let node = loop {
        if let Some(name) = block_name(&device) {
            break Path::new("/dev").join(name);
        }
        if !nudged && began.elapsed() > NUDGE_AFTER {
            // An adapter drops events when many disks come at once; asking for this one finds it.
            nudged = true;
            let scan = format!("/sys/class/scsi_host/host{host}/scan");
            let what = format!("0 {} {}", address.target, address.lun);
            log::info(format_args!("disk {what} is late: scanning for it"));
            std::fs::write(&scan, what).map_err(failed_io("scan", &scan))?;
        }
        poll.again(OPERATION)
            .map_err(|error| error.at(device.to_string_lossy().as_bytes()))?;
    };
    // The entry in sysfs comes before the node opens: ENOENT, then ENXIO, then a disk.
    loop {
        match rustix::fs::open(&node, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(_) => return Ok((device, node)),
            Err(Errno::NOENT | Errno::NXIO) => {
                poll.again(OPERATION)
                    .map_err(|error| error.at(node.to_string_lossy().as_bytes()))?;
            }
            Err(errno) => return Err(failed("open disk", &node)(errno)),
        }
    }
}

/// Checks the unit serial number, page 0x80 of the vital product data (SPC-4 §7.8.13): four bytes of header, then the serial.
fn check_serial(device: &Path, promised: &str) -> Result<(), RemoteError> {
    let path = device.join("vpd_pg80");
    let page = std::fs::read(&path).map_err(failed_io("read serial", &path))?;
    let serial = page.get(4..).unwrap_or_default();
    let serial = String::from_utf8_lossy(serial);
    if serial.trim_matches(['\0', ' ']) == promised {
        return Ok(());
    }
    Err(RemoteError::new(ErrorKind::Corrupt, "check serial")
        .at(path.to_string_lossy().as_bytes())
        .because(format!(
            "the disk says {serial:?}, the host promised {promised:?}"
        )))
}

pub(super) fn mount(mount: &DiskMount, at: &Path, deadline: Deadline) -> Result<(), RemoteError> {
    let (device, node) = find(mount.address, deadline)?;
    // A kernel without that file has another limit, which is no reason to do without the disk.
    let _ = std::fs::write(device.join("timeout"), COMMAND_TIMEOUT);
    check_serial(&device, &mount.serial)?;
    std::fs::create_dir_all(at).map_err(failed_io("make mount point", at))?;
    let (flags, options): (MountFlags, &CStr) = if mount.read_only {
        // A journal that was not replayed would make a read-only mount fail, since it can't be written back.
        (MountFlags::RDONLY, c"noload")
    } else {
        // Blank disks have uninitialised inode tables: writing them in the background would only fill the host's disk.
        (MountFlags::empty(), c"noinit_itable")
    };
    let flags = flags | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(&node, at, c"ext4", flags, options).map_err(|errno| {
        let error = failed("mount", &node)(errno);
        let _ = std::fs::remove_dir(at);
        match errno {
            Errno::INVAL | Errno::UCLEAN | Errno::NOTSUP => RemoteError {
                kind: ErrorKind::Corrupt,
                detail: "no ext4 file system this kernel takes; the guest kernel's log says more"
                    .into(),
                ..error
            },
            _ => error,
        }
    })
}

pub(super) fn unmount(mount: &DiskMount, at: &Path, deadline: Deadline) -> Result<(), RemoteError> {
    let device = device_dir(adapter()?, mount.address);
    let mut poll = Poll::new(deadline);
    loop {
        match rustix::mount::unmount(at, UnmountFlags::empty()) {
            Ok(()) => break,
            // Not mounted: an earlier attempt got this far.
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(Errno::BUSY) if !deadline.passed() => poll.again("unmount")?,
            Err(Errno::BUSY) => {
                return Err(RemoteError {
                    kind: ErrorKind::Busy,
                    ..failed("unmount", at)(Errno::BUSY)
                });
            }
            Err(errno) => return Err(failed("unmount", at)(errno)),
        }
    }
    let _ = std::fs::remove_dir(at);
    let Some(name) = block_name(&device) else {
        return Ok(());
    };
    let node = Path::new("/dev").join(name);
    // The last reference of a mount may go a little later than umount(2) returns; an exclusive open tells.
    loop {
        match rustix::fs::open(
            &node,
            OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(_) => break,
            Err(Errno::BUSY) => poll.again("release disk").map_err(|error| {
                RemoteError {
                    kind: ErrorKind::Busy,
                    ..error
                }
                .at(node.to_string_lossy().as_bytes())
            })?,
            Err(Errno::NOENT | Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(failed("release disk", &node)(errno)),
        }
    }
    let delete = device.join("delete");
    std::fs::write(&delete, "1").map_err(failed_io("delete device", &delete))
}
