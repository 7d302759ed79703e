use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Whether the test runs as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a program is on `PATH` (or in the directories that only root's `PATH` has).
#[must_use]
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

/// Runs a program and returns what it printed.
///
/// # Panics
/// If it can't be started or fails; the message holds its output.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(program);
    command
        .args(args)
        .env("LC_ALL", "C")
        .env("PATH", path_with_sbin());
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        text(&output)
    );
    output
}

/// Checks that `e2fsck -fn` has nothing to say about an ext4 image (a footer behind it is ignored).
///
/// # Panics
/// If e2fsck finds anything or exits other than 0; the message holds its output.
pub fn e2fsck(image: &Path) {
    e2fsck_but_for(image, &[]);
}

/// As [`e2fsck`], for disks that a guest's kernel wrote: remarks on what could be smaller are no complaints, nor is the time
/// of a guest whose clock is a little ahead of the host's.
///
/// # Panics
/// As [`e2fsck`].
pub fn e2fsck_aged(image: &Path) {
    let remarks = [
        "could be shorter.",
        "could be narrower.",
        "time is in the future.",
        "(by less than a day, ",
    ];
    e2fsck_but_for(image, &remarks);
}

fn e2fsck_but_for(image: &Path, remarks: &[&str]) {
    let output = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(image)
        .env("LC_ALL", "C")
        .env("PATH", path_with_sbin())
        .output()
        .unwrap_or_else(|e| panic!("e2fsck: {e}"));
    let report = text(&output);
    // Five lines of passes, a version line and a summary are all that a clean image gets.
    let complaint = report.lines().find(|line| {
        !(line.is_empty()
            || line.starts_with("Pass ")
            || line.starts_with("e2fsck ")
            || remarks.iter().any(|remark| line.contains(remark))
            || line.contains(" files (") && line.ends_with(" blocks"))
    });
    assert!(
        output.status.code() == Some(0) && complaint.is_none(),
        "e2fsck -fn {}: {}\n{report}",
        image.display(),
        output.status
    );
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

fn path_with_sbin() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// An ext4 image mounted through a loop device until dropped. Root only.
#[derive(Debug)]
pub struct LoopMount {
    dir: tempfile::TempDir,
}

impl LoopMount {
    /// Mounts `image` with the options given (`ro,noload` for a layer).
    ///
    /// # Panics
    /// If the mount fails.
    #[must_use]
    pub fn new(image: &Path, options: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = format!("loop,{options}");
        run(
            "mount",
            [
                OsStr::new("-t"),
                "ext4".as_ref(),
                "-o".as_ref(),
                options.as_ref(),
                image.as_ref(),
                dir.path().as_ref(),
            ],
        );
        Self { dir }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        // A process that another test's thread is about to start has our descriptors until it executes, and the mount is busy.
        for _ in 0..100 {
            let output = Command::new("umount").arg(self.dir.path()).output();
            match output {
                Ok(output) if output.status.success() => return,
                Ok(output) if String::from_utf8_lossy(&output.stderr).contains("busy") => {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
                _ => break,
            }
        }
        if !std::thread::panicking() {
            panic!("umount {} failed", self.dir.path().display());
        }
    }
}
