use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::archive::{Files, ImageSpec, archive, noise, tar, two_layers};

/// A data root of its own, gone with the test.
pub(crate) struct Lab {
    pub directory: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn image(&self, name: &str, files: &Files) -> PathBuf {
        self.write(name, &archive(files))
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lcow"));
        command
            .args(args)
            .env("LCOW_ROOT", self.root())
            .env_remove("LCOW_LOG")
            .env_remove("SOURCE_DATE_EPOCH")
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed, and gives its standard output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "lcow {args:?}: {}\n{}",
            output.status,
            stderr(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with a code, and gives its standard error.
    pub(crate) fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(
            output.status.code(),
            Some(code),
            "lcow {args:?}: {}",
            stderr(&output)
        );
        stderr(&output)
    }

    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// Loads an image of two small layers under the name `demo`.
    pub(crate) fn demo(&self) -> ImageSpec {
        let spec = ImageSpec::new("demo", two_layers());
        let path = self.image(
            "demo.tar",
            &crate::archive::oci(std::slice::from_ref(&spec)),
        );
        self.ok(&["load", path.to_str().unwrap()]);
        spec
    }

    /// Nothing half-made is left, and nobody holds the data root.
    pub(crate) fn assert_clean(&self) {
        let list = |name: &str| -> Vec<String> {
            std::fs::read_dir(self.root().join(name))
                .map(|entries| {
                    let names =
                        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
                    names.filter(|n| n != ".commit").collect()
                })
                .unwrap_or_default()
        };
        assert_eq!(list("tmp"), [""; 0], "left in tmp");
        assert_eq!(list("scratch"), [""; 0], "left in scratch");
        for entry in std::fs::read_dir(self.root()).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(!name.ends_with("-removing"), "{name}");
        }
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end && !self.processes().is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.processes(), [""; 0], "processes left");
    }

    /// Processes that have a file below the data root open, or name it on their command line.
    fn processes(&self) -> Vec<String> {
        let root = self.root();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == std::process::id().to_string() {
                continue;
            }
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let named = String::from_utf8_lossy(&command).contains(root.to_str().unwrap());
            let open = std::fs::read_dir(entry.path().join("fd")).is_ok_and(|fds| {
                fds.flatten()
                    .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|t| t.starts_with(&root)))
            });
            if named || open {
                found.push(format!("{pid}: {}", String::from_utf8_lossy(&command)));
            }
        }
        found
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for a condition, and panics if it does not come.
pub(crate) fn eventually(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < end, "waited {seconds} s for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An image with a shell; `None` if this machine has no static busybox.
pub(crate) fn busybox() -> Option<ImageSpec> {
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|p| std::fs::read(p).ok())?;
    let mut builder = tar::Builder::new(Vec::new());
    let mut add =
        |name: &str, kind: tar::EntryType, mode: u32, data: &[u8], target: Option<&str>| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_mtime(1_700_000_000);
            header.set_size(data.len() as u64);
            match target {
                Some(target) => builder.append_link(&mut header, name, target).unwrap(),
                None => builder.append_data(&mut header, name, data).unwrap(),
            }
        };
    use tar::EntryType::{Directory, Regular, Symlink};
    for directory in ["bin/", "etc/", "srv/", "home/", "home/me/"] {
        add(directory, Directory, 0o755, b"", None);
    }
    add("tmp/", Directory, 0o1777, b"", None);
    add("bin/busybox", Regular, 0o755, &program, None);
    for applet in [
        "sh", "cat", "id", "pwd", "sleep", "rm", "mv", "env", "echo", "mkdir", "chmod", "kill",
        "head",
    ] {
        add(
            &format!("bin/{applet}"),
            Symlink,
            0o777,
            b"",
            Some("busybox"),
        );
    }
    add(
        "etc/passwd",
        Regular,
        0o644,
        b"root:x:0:0::/root:/bin/sh\nme:x:1234:2345::/home/me:/bin/sh\n",
        None,
    );
    add(
        "etc/group",
        Regular,
        0o644,
        b"root:x:0:\nme:x:2345:\n",
        None,
    );
    let base = builder.into_inner().unwrap();
    let top = tar(&[
        ("etc/", b""),
        ("etc/motd", b"from the second layer\n"),
        ("etc/doomed", b""),
        ("etc/noexec", b"x"),
    ]);
    Some(ImageSpec {
        config: serde_json::json!({
            "Env": ["PATH=/bin", "FROM=image"], "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo default command"],
            "WorkingDir": "/srv",
        }),
        ..ImageSpec::new("busybox", vec![base, top])
    })
}

/// An archive that takes long enough to load for something to happen meanwhile.
pub(crate) fn large() -> Files {
    let layers = vec![
        tar(&[("first", &noise(1 << 20, 1))]),
        tar(&[("second", &noise(48 << 20, 2))]),
    ];
    crate::archive::oci(&[ImageSpec {
        gzip: false,
        ..ImageSpec::new("large", layers)
    }])
}

pub(crate) fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}
