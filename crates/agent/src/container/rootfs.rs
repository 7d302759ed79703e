//! The process's root directory and the file systems every process finds in it.

use super::ContainerSpec;
use crate::linux::failed;
use lcow_protocol::RemoteError;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use std::ffi::CStr;
use std::path::Path;

/// Where the files for `/etc` are made, in the new mount namespace only.
const SCRATCH: &str = "/run";

/// Device nodes: name, major, minor (`Documentation/admin-guide/devices.txt`).
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Makes the calling process's root what `spec` says. Its mount namespace is new, and nobody else's.
pub(super) fn enter(spec: &ContainerSpec) -> Result<(), RemoteError> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(failed("make private", "/"))?;
    let Some(root) = &spec.root else {
        // The agent's own root, but with the /proc of the new PID namespace.
        return mount(
            "proc",
            "/proc",
            "proc",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            c"",
        );
    };
    let files = etc_files(spec)?;
    pivot(root)?;
    system_mounts()?;
    for (file, path) in &files {
        let target = rustix::fs::open(*path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let moved = target.and_then(|target| {
            let flags =
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            rustix::mount::move_mount(file, "", &target, "", flags)
        });
        match moved {
            Ok(()) => {}
            // The image has removed it, has a link there that leads nowhere, or a directory: its choice.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::INVAL) => {}
            Err(errno) => return Err(failed("mount", path)(errno)),
        }
    }
    Ok(())
}

fn mount(
    kind: &str,
    at: &str,
    source: &str,
    flags: MountFlags,
    options: &CStr,
) -> Result<(), RemoteError> {
    rustix::mount::mount(source, at, kind, flags, options).map_err(failed("mount", at))
}

/// Mounts what the union has a directory for; a union made without mount points may lack some.
fn mount_if_dir(
    kind: &str,
    at: &str,
    flags: MountFlags,
    options: &CStr,
) -> Result<bool, RemoteError> {
    match rustix::mount::mount(kind, at, kind, flags, options) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        // mqueue and the like, where the kernel has none.
        Err(Errno::NODEV) => Ok(false),
        Err(errno) => Err(failed("mount", at)(errno)),
    }
}

/// The three files, as detached mounts that can be put anywhere later, with where they go.
fn etc_files(spec: &ContainerSpec) -> Result<Vec<(OwnedFd, &'static str)>, RemoteError> {
    let exec = &spec.exec;
    mount(
        "tmpfs",
        SCRATCH,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=755,size=1m",
    )?;
    let name = if exec.hostname.is_empty() {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    } else {
        exec.hostname.clone()
    };
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{name}\n"
    );
    let contents: [(&str, &'static str, Vec<u8>); 3] = [
        ("hosts", "/etc/hosts", hosts.into_bytes()),
        (
            "hostname",
            "/etc/hostname",
            format!("{name}\n").into_bytes(),
        ),
        ("resolv.conf", "/etc/resolv.conf", exec.resolv_conf.clone()),
    ];
    contents
        .into_iter()
        .map(|(file, target, bytes)| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = Path::new(SCRATCH).join(file);
            std::fs::write(&path, bytes)
                .and_then(|()| {
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
                })
                .map_err(crate::linux::failed_io("write", &path))?;
            let tree = rustix::mount::open_tree(
                CWD,
                &path,
                OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
            )
            .map_err(failed("open tree", &path))?;
            Ok((tree, target))
        })
        .collect()
}

fn pivot(root: &Path) -> Result<(), RemoteError> {
    rustix::process::chdir(root).map_err(failed("enter", root))?;
    // With both arguments ".", the old root ends up stacked on the new one (pivot_root(2), NOTES), and is taken off.
    rustix::process::pivot_root(".", ".").map_err(failed("pivot to", root))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("leave", "/"))?;
    rustix::process::chdir("/").map_err(failed("enter", "/"))
}

fn system_mounts() -> Result<(), RemoteError> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_if_dir("proc", "/proc", plain, c"")?;
    mount_if_dir("sysfs", "/sys", plain | MountFlags::RDONLY, c"")?;
    let dev = MountFlags::NOSUID | MountFlags::NOEXEC;
    if !mount_if_dir("tmpfs", "/dev", dev, c"mode=755,size=64k")? {
        return Ok(());
    }
    for (name, major, minor) in NODES {
        let path = Path::new("/dev").join(name);
        rustix::fs::mknodat(
            CWD,
            &path,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            rustix::fs::makedev(major, minor),
        )
        .map_err(failed("make device", &path))?;
    }
    for (target, name) in LINKS {
        let path = Path::new("/dev").join(name);
        rustix::fs::symlink(target, &path).map_err(failed("make link", &path))?;
    }
    for (dir, kind, flags, options) in [
        (
            "/dev/pts",
            "devpts",
            dev,
            c"newinstance,mode=620,gid=5,ptmxmode=666",
        ),
        ("/dev/shm", "tmpfs", plain, c"mode=1777,size=64m"),
        ("/dev/mqueue", "mqueue", plain, c""),
    ] {
        rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755))
            .map_err(failed("make directory", dir))?;
        mount_if_dir(kind, dir, flags, options)?;
    }
    Ok(())
}
