//! Unions: a bind mount of one disk, overlayfs of several.

use super::{failed, failed_io};
use crate::{Deadline, UnionMount, log};
use lcow_protocol::{ErrorKind, RemoteError};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};
use std::ffi::CString;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The layer of mount points: a directory of the agent's own tmpfs, lowest in every container's root.
pub(super) const MOUNT_POINTS: &str = "/mountpoints";

/// mount(2) takes a page of options; longer ones fail with a misleading ENOENT.
const OPTIONS_LIMIT: usize = 4095;

/// Fixed whatever the kernel's defaults are: the writable disk is read by other programs, which know only plain overlayfs.
const FEATURES: [(&str, &str); 4] = [
    ("redirect_dir", "off"),
    ("index", "off"),
    ("metacopy", "off"),
    ("xino", "off"),
];

/// Makes the layer of mount points.
pub(super) fn make_mount_points() -> std::io::Result<()> {
    let base = Path::new(MOUNT_POINTS);
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o755);
    for dir in ["proc", "sys", "dev", "etc"] {
        builder.create(base.join(dir))?;
    }
    std::fs::create_dir(base.join("tmp"))?;
    std::fs::set_permissions(base.join("tmp"), std::fs::Permissions::from_mode(0o1777))?;
    for file in ["hosts", "hostname", "resolv.conf"] {
        std::fs::write(base.join("etc").join(file), "")?;
    }
    Ok(())
}

/// Whether the kernel takes `lowerdir+` (Linux 6.8). An older one takes any option at first and refuses to make the file
/// system, so it is made here, of two directories, and never mounted.
pub(super) fn has_lowerdir_plus() -> bool {
    let attempt = || {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for dir in ["etc", "dev"] {
            let lower = text(&Path::new(MOUNT_POINTS).join(dir));
            rustix::mount::fsconfig_set_string(&context, "lowerdir+", lower)?;
        }
        rustix::mount::fsconfig_create(&context)
    };
    let result: Result<(), Errno> = attempt();
    result.is_ok()
}

struct Overlay {
    lowers: Vec<PathBuf>,
    upper: Option<(PathBuf, PathBuf)>,
}

fn text(path: &Path) -> String {
    // All of these are names the agent made itself: `/d/<number>` and the like.
    path.to_string_lossy().into_owned()
}

impl Overlay {
    /// With the new mount API, one lower layer at a time: no limit but the kernel's 500.
    fn mount_one_by_one(&self, at: &Path) -> Result<(), Errno> {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for lower in &self.lowers {
            rustix::mount::fsconfig_set_string(&context, "lowerdir+", text(lower))?;
        }
        if let Some((upper, work)) = &self.upper {
            rustix::mount::fsconfig_set_string(&context, "upperdir", text(upper))?;
            rustix::mount::fsconfig_set_string(&context, "workdir", text(work))?;
        }
        for (key, value) in FEATURES {
            rustix::mount::fsconfig_set_string(&context, key, value)?;
        }
        rustix::mount::fsconfig_create(&context)?;
        let attributes = if self.upper.is_none() {
            MountAttrFlags::MOUNT_ATTR_RDONLY
        } else {
            MountAttrFlags::empty()
        };
        let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        rustix::mount::move_mount(
            &mount,
            "",
            rustix::fs::CWD,
            at,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
    }

    /// With mount(2): all options in one page.
    fn mount_at_once(&self, at: &Path) -> Result<(), RemoteError> {
        let mut options = String::from("lowerdir=");
        options.push_str(
            &self
                .lowers
                .iter()
                .map(|lower| text(lower))
                .collect::<Vec<_>>()
                .join(":"),
        );
        if let Some((upper, work)) = &self.upper {
            options.push_str(&format!(",upperdir={},workdir={}", text(upper), text(work)));
        }
        for (key, value) in FEATURES {
            options.push_str(&format!(",{key}={value}"));
        }
        if options.len() > OPTIONS_LIMIT {
            return Err(
                RemoteError::new(ErrorKind::Refused, "mount overlay").because(format!(
                    "{} lower layers are more than this kernel takes in one mount",
                    self.lowers.len()
                )),
            );
        }
        let options = CString::new(options)
            .map_err(|_| RemoteError::new(ErrorKind::Internal, "mount overlay"))?;
        let flags = if self.upper.is_none() {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        rustix::mount::mount("overlay", at, "overlay", flags, options.as_c_str())
            .map_err(failed("mount overlay", at))
    }
}

/// Makes sure that nothing stands at `path` that leads elsewhere: what is on a disk is the container's.
fn real_directory(path: &Path) -> Result<(), RemoteError> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed("open", path))
    .map(drop)
}

/// The `upper` and `work` directories of a writable disk, made if absent.
fn writable_dirs(disk: &Path) -> Result<(PathBuf, PathBuf), RemoteError> {
    let make = |name: &str, mode: u32| {
        let path = disk.join(name);
        match std::fs::DirBuilder::new().mode(mode).create(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(failed_io("make directory", &path)(error))
            }
            _ => {
                real_directory(&path)?;
                Ok(path)
            }
        }
    };
    Ok((make("upper", 0o755)?, make("work", 0o700)?))
}

pub(super) fn mount(union: &UnionMount, at: &Path, lowerdir_plus: bool) -> Result<(), RemoteError> {
    let mut lowers = union.lowers.clone();
    for lower in &lowers {
        real_directory(lower)?;
    }
    if union.mount_points {
        lowers.push(PathBuf::from(MOUNT_POINTS));
    }
    let upper = union.upper.as_deref().map(writable_dirs).transpose()?;
    std::fs::create_dir_all(at).map_err(failed_io("make mount point", at))?;
    let result = match (lowers.as_slice(), &upper) {
        // overlayfs wants two layers at least.
        ([only], None) => bind(only, at, true),
        ([], Some((upper, _))) => bind(upper, at, false),
        _ => {
            let overlay = Overlay { lowers, upper };
            if lowerdir_plus {
                overlay
                    .mount_one_by_one(at)
                    .map_err(failed("mount overlay", at))
            } else {
                overlay.mount_at_once(at)
            }
        }
    };
    if result.is_err() {
        let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(at);
    }
    result
}

fn bind(source: &Path, at: &Path, read_only: bool) -> Result<(), RemoteError> {
    rustix::mount::mount_bind(source, at).map_err(failed("bind", at))?;
    // The disk's own mount is nosuid,nodev; a root directory is neither, as an overlay is not.
    let flags = if read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    rustix::mount::mount_remount(at, MountFlags::BIND | flags, c"").map_err(failed("remount", at))
}

pub(super) fn unmount(at: &Path, deadline: Deadline) -> Result<(), RemoteError> {
    loop {
        match rustix::mount::unmount(at, UnmountFlags::empty()) {
            Ok(()) => break,
            Err(Errno::BUSY) if !deadline.passed() => {
                // A namespace that has just ended lets go of its mounts a moment later.
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(Errno::BUSY) => {
                let error = failed("unmount", at)(Errno::BUSY);
                return Err(RemoteError {
                    kind: ErrorKind::Busy,
                    ..error
                });
            }
            Err(errno) => return Err(failed("unmount", at)(errno)),
        }
    }
    if let Err(error) = std::fs::remove_dir(at) {
        log::info(format_args!("remove {}: {error}", at.display()));
    }
    Ok(())
}
