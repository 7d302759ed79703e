//! From the kernel's first instruction in user space to a handshake with the host.

use super::unions;
use crate::log;
use lcow_protocol::{HELLO_LEN, Hello, PORT_NAME, Role};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the initrd holds the modules, and the order to load them in.
const MODULES: &str = "/modules";
/// The file in it that names them, one a line.
const MODULE_ORDER: &str = "/modules/order";
/// How long the port may take to appear before the agent says so on the console. It goes on waiting.
const PORT_PATIENCE: Duration = Duration::from_secs(5);

/// Something at boot did not work, and nothing after it can.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// A system call on a path.
    #[error("{operation} {path}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The host said something else than a handshake.
    #[error("handshake with the host")]
    Handshake(#[from] lcow_protocol::HandshakeError),
}

fn system<E: Into<std::io::Error>>(
    operation: &'static str,
    path: &str,
) -> impl FnOnce(E) -> BootError {
    move |source| BootError::System {
        operation,
        path: path.to_owned(),
        source: source.into(),
    }
}

/// Loads the initrd's modules in their order. One that fails is reported and passed over: what needs it fails by itself, with
/// this in the log.
fn load_modules() {
    let order = std::fs::read_to_string(MODULE_ORDER).unwrap_or_default();
    for name in order.lines() {
        let path = format!("{MODULES}/{name}");
        let result = File::open(&path)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            .and_then(|file| rustix::system::finit_module(&file, c"", 0));
        match result {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => log::fault(format_args!("load module {name}: {errno}")),
        }
    }
}

fn mount(
    kind: &str,
    at: &str,
    flags: MountFlags,
    options: &std::ffi::CStr,
) -> Result<(), BootError> {
    match rustix::fs::mkdir(at, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(system("make directory", at)(errno)),
    }
    rustix::mount::mount(kind, at, kind, flags, options).map_err(system("mount", at))
}

/// Leaves the initrd's root for a tmpfs: processes leave it in turn with pivot_root(2), which can't leave the initrd's.
fn change_root() -> Result<(), BootError> {
    const NEW: &str = "/newroot";
    mount(
        "tmpfs",
        NEW,
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=755",
    )?;
    // The modules are loaded: their files only take memory.
    let _ = std::fs::remove_dir_all(MODULES);
    rustix::process::chdir(NEW).map_err(system("enter", NEW))?;
    rustix::mount::mount_move(NEW, "/").map_err(system("move", NEW))?;
    rustix::process::chroot(".").map_err(system("change root to", NEW))?;
    rustix::process::chdir("/").map_err(system("enter", "/"))
}

fn mounts() -> Result<(), BootError> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", plain, c"")?;
    mount("sysfs", "/sys", plain, c"")?;
    mount("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755")?;
    mount(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=620,gid=5,ptmxmode=666",
    )?;
    for (dir, mode) in [
        ("/d", 0o700),
        ("/u", 0o700),
        ("/run", 0o755),
        ("/tmp", 0o1777),
    ] {
        std::fs::create_dir(dir).map_err(system("make directory", dir))?;
        rustix::fs::chmod(dir, Mode::from_raw_mode(mode)).map_err(system("change mode of", dir))?;
    }
    unions::make_mount_points().map_err(system("make", unions::MOUNT_POINTS))
}

/// The port named [`PORT_NAME`], once the kernel has it.
fn open_port() -> Result<File, BootError> {
    const PORTS: &str = "/sys/class/virtio-ports";
    let began = Instant::now();
    let mut said = false;
    loop {
        for entry in std::fs::read_dir(PORTS).into_iter().flatten().flatten() {
            let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() != PORT_NAME {
                continue;
            }
            let node = Path::new("/dev").join(entry.file_name());
            match File::options().read(true).write(true).open(&node) {
                Ok(port) => return Ok(port),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(system("open", &node.to_string_lossy())(error)),
            }
        }
        if !said && began.elapsed() > PORT_PATIENCE {
            said = true;
            log::fault(format_args!(
                "no virtio-serial port named {PORT_NAME}: is virtio_console loaded?"
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for the host's hello and answers it. A port without a host reads as ended, so that means "not yet" here.
fn greet(port: &mut (impl Read + Write)) -> Result<(), BootError> {
    let mut bytes = [0; HELLO_LEN];
    let mut have = 0;
    while have < bytes.len() {
        match port.read(&mut bytes[have..]) {
            Ok(0) => std::thread::sleep(Duration::from_millis(1)),
            Ok(n) => have += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(system("read", PORT_NAME)(error)),
        }
    }
    let hello = Hello::decode(Role::Host, &bytes)?;
    let answer = Hello {
        role: Role::Guest,
        nonce: hello.nonce,
    };
    port.write_all(&answer.encode())
        .map_err(system("write", PORT_NAME))
}

/// Does it all; the port, non-blocking, after the handshake.
///
/// # Errors
/// [`BootError`], after which there is nothing to do but say so and power off.
pub fn boot() -> Result<File, BootError> {
    rustix::process::umask(Mode::empty());
    load_modules();
    change_root()?;
    mounts()?;
    if let Err(errno) = super::loopback_up() {
        log::info(format_args!("loopback interface: {errno}"));
    }
    let mut port = open_port()?;
    greet(&mut port)?;
    let flags = rustix::fs::fcntl_getfl(&port).map_err(system("get flags of", PORT_NAME))?;
    rustix::fs::fcntl_setfl(&port, flags | OFlags::NONBLOCK)
        .map_err(system("set flags of", PORT_NAME))?;
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// Reads as ended a few times, then in pieces.
    struct Port {
        input: Vec<u8>,
        silent: u32,
        output: Vec<u8>,
    }

    impl Read for Port {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.silent > 0 {
                self.silent -= 1;
                return Ok(0);
            }
            let n = buffer.len().min(5).min(self.input.len());
            buffer[..n].copy_from_slice(&self.input[..n]);
            self.input.drain(..n);
            Ok(n)
        }
    }

    impl Write for Port {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.output.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_host_may_come_late_and_in_pieces() {
        let nonce = [9; 16];
        let hello = Hello {
            role: Role::Host,
            nonce,
        };
        let mut port = Port {
            input: hello.encode().to_vec(),
            silent: 3,
            output: Vec::new(),
        };
        greet(&mut port).unwrap();
        let answer: [u8; HELLO_LEN] = port.output.try_into().unwrap();
        Hello::accept(&answer, &nonce).unwrap();
    }

    #[test]
    fn a_stranger_gets_no_answer() {
        let mut port = Port {
            input: vec![b'x'; HELLO_LEN],
            silent: 0,
            output: Vec::new(),
        };
        assert!(matches!(greet(&mut port), Err(BootError::Handshake(_))));
        assert!(port.output.is_empty());
    }
}
