//! Processes: streams, exit codes, signals, users, environment.

use crate::support::{disk, need_qemu, output, run, sh, spec, start, userland};
use lcow_uvm::{ExitStatus, Machine, ProcessSpec, UnionId};
use std::io::{Read, Write};
use std::time::Duration;

/// A machine with a root that has a shell.
fn shell(dir: &tempfile::TempDir, writable: bool) -> (Machine, UnionId) {
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    userland(
        &tree,
        &[
            "dash", "cat", "id", "sleep", "env", "ls", "stat", "head", "mkdir", "mv", "rm",
            "hostname",
        ],
    );
    std::fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0::/root:/bin/dash\napp:x:1000:100::/home/app:/bin/dash\n",
    )
    .unwrap();
    std::fs::write(
        tree.join("etc/group"),
        "root:x:0:\nusers:x:100:\nvideo:x:44:app\n",
    )
    .unwrap();
    std::fs::write(tree.join("etc/hosts"), "from the image\n").unwrap();
    std::fs::write(tree.join("plain"), "not a program\n").unwrap();
    let layer = disk(dir.path(), "layer", 64, Some(&tree));
    let mut disks = vec![spec(&layer, true)];
    if writable {
        disks.push(spec(&disk(dir.path(), "sandbox", 64, None), false));
    }
    let machine = start(dir);
    let ids = machine.attach(disks).unwrap();
    let root = machine
        .container_root(&ids[..1], ids.get(1).copied())
        .unwrap();
    (machine, root)
}

fn exec(root: UnionId, argv: &[&str]) -> ProcessSpec {
    ProcessSpec::new(Some(root), argv.iter().copied())
}

#[test]
fn a_process_is_what_its_specification_says() {
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let (machine, root) = shell(&dir, true);

    assert_eq!(
        sh(&machine, root, "echo out; echo err >&2; exit 7"),
        ("out\nerr\n".into(), ExitStatus::Code(7))
    );
    assert_eq!(
        sh(&machine, root, "kill -TERM $$").1,
        ExitStatus::Signal(15)
    );

    // Environment and working directory.
    let mut with = exec(root, &["dash", "-c", "echo $A $HOME; pwd"]);
    with.env = vec![b"A=b c".to_vec()];
    with.cwd = b"/made/on/demand".to_vec();
    assert_eq!(run(&machine, &with).0, "b c /root\n/made/on/demand\n");

    // Users.
    for (user, expected) in [
        ("", "uid=0(root) gid=0(root) groups=0(root)"),
        (
            "app",
            "uid=1000(app) gid=100(users) groups=100(users),44(video)",
        ),
        ("1000:44", "uid=1000(app) gid=44(video) groups=44(video)"),
        ("4242", "uid=4242 gid=0(root) groups=0(root)"),
    ] {
        let mut with = exec(root, &["id"]);
        with.user = user.into();
        assert_eq!(run(&machine, &with).0.trim(), expected, "{user:?}");
    }
    let mut with = exec(root, &["id"]);
    with.user = "nobody-here".into();
    assert_eq!(
        machine.exec(&with).unwrap_err().remote().unwrap().kind,
        lcow_uvm::ErrorKind::NoSuchUser
    );

    // What can't be started.
    for (command, code) in [
        ("no-such", 127),
        ("/no/such", 127),
        ("/plain", 126),
        ("/etc", 126),
    ] {
        let error = machine.exec(&exec(root, &[command])).unwrap_err();
        assert_eq!(error.shell_exit_code(), Some(code), "{command}: {error}");
        assert!(
            error.bundle().is_none(),
            "a mistyped command is no failure of the machine"
        );
        assert!(error.to_string().contains(command), "{error}");
    }

    // Namespaces, host name, and the files of /etc.
    let mut with = exec(
        root,
        &[
            "dash",
            "-c",
            "hostname; cat /etc/hosts /etc/hostname; cat /etc/resolv.conf; echo $$; ls /proc | head -2; ls -d /dev/pts /dev/shm /sys/kernel",
        ],
    );
    with.hostname = "boxy".into();
    with.resolv_conf = b"nameserver 10.0.2.3\n".to_vec();
    let text = run(&machine, &with).0;
    assert!(text.starts_with("boxy\n127.0.0.1\tlocalhost\n"), "{text}");
    assert!(text.contains("\nboxy\nnameserver 10.0.2.3\n"), "{text}");
    assert!(text.contains("/dev/pts\n/dev/shm\n/sys/kernel\n"), "{text}");
    assert_eq!(
        sh(
            &machine,
            root,
            "stat -c %a /tmp; cat /proc/sys/kernel/hostname"
        )
        .0,
        "1777\n(none)\n"
    );

    // The writable disk holds what was written, and nothing that was only mounted.
    let list = "cd /; for d in proc sys dev etc tmp; do echo $d; done; echo kept > /tmp/kept";
    assert_eq!(sh(&machine, root, list).1, ExitStatus::Code(0));
    machine.power_off().unwrap();
    let debugfs = std::process::Command::new("debugfs")
        .args(["-R", "ls -p /upper"])
        .arg(dir.path().join("sandbox"))
        .output()
        .unwrap();
    let names = String::from_utf8_lossy(&debugfs.stdout);
    let mut names: Vec<_> = names
        .lines()
        .filter_map(|line| line.split('/').nth(5))
        .collect();
    names.sort_unstable();
    assert_eq!(names, [".", "..", "made", "tmp"]);
}

#[test]
fn streams_move_both_ways_at_once_and_signals_arrive() {
    need_qemu!();
    const SIZE: usize = 6 << 20;
    let dir = tempfile::tempdir().unwrap();
    let (machine, root) = shell(&dir, false);

    // Far more than all buffers hold, in and out at once.
    let mut with = exec(root, &["cat"]);
    with.stdin = true;
    let mut process = machine.exec(&with).unwrap();
    let mut stdin = process.take_stdin().unwrap();
    let sent: Vec<u8> = (0..SIZE).map(|i| (i * 31 % 251) as u8).collect();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || {
        stdin.write_all(&copy).unwrap();
        stdin.finish().unwrap();
    });
    let mut got = Vec::new();
    process
        .take_stdout()
        .unwrap()
        .read_to_end(&mut got)
        .unwrap();
    writer.join().unwrap();
    assert!(got == sent, "{} bytes came back of {SIZE}", got.len());
    assert_eq!(process.wait().unwrap(), ExitStatus::Code(0));
    drop(process);

    // A reader that leaves: the writer in the guest gets SIGPIPE, as in a pipeline.
    let mut process = machine.exec(&exec(root, &["cat", "/dev/zero"])).unwrap();
    let mut some = [0; 1000];
    let mut stdout = process.take_stdout().unwrap();
    stdout.read_exact(&mut some).unwrap();
    drop(stdout);
    assert_eq!(
        process.wait_timeout(Duration::from_secs(60)).unwrap(),
        Some(ExitStatus::Signal(13))
    );
    drop(process);

    // Signals, to a process that handles one and to one that doesn't.
    let script = "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done";
    let mut process = machine.exec(&exec(root, &["dash", "-c", script])).unwrap();
    let mut stdout = process.take_stdout().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    process.signal(10).unwrap();
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(
        (text.as_str(), process.wait().unwrap()),
        ("caught\n", ExitStatus::Code(5))
    );
    drop(process);
    for (signal, status) in [(2, 2), (15, 15), (9, 9), (34, 34)] {
        let process = machine.exec(&exec(root, &["sleep", "1000"])).unwrap();
        assert_eq!(
            process.wait_timeout(Duration::from_millis(50)).unwrap(),
            None
        );
        process.signal(signal).unwrap();
        assert_eq!(process.wait().unwrap(), ExitStatus::Signal(status));
    }

    // What a process leaves behind ends with it, and so does one that is let go of.
    let (_, status) = sh(&machine, root, "sleep 1000 & echo $! > /dev/null; exit 0");
    assert_eq!(status, ExitStatus::Code(0));
    drop(machine.exec(&exec(root, &["sleep", "1000"])).unwrap());
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while machine.statistics().unwrap().processes != 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "a process outlives its handle"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    machine.remove_union(root).unwrap();

    // Sixteen at once would need a root: without one there is only what the agent has, which is nothing to run.
    let error = machine.exec(&ProcessSpec::new(None, ["sh"])).unwrap_err();
    assert_eq!(error.shell_exit_code(), Some(127));
    machine.power_off().unwrap();
}

#[test]
fn several_processes_run_at_once() {
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let (machine, root) = shell(&dir, false);
    let running: Vec<_> = (0..8)
        .map(|i| {
            machine
                .exec(&exec(
                    root,
                    &["dash", "-c", &format!("sleep 0.2; echo {i}; exit {i}")],
                ))
                .unwrap()
        })
        .collect();
    for (i, process) in running.into_iter().enumerate() {
        let code = i32::try_from(i).unwrap();
        assert_eq!(output(process), (format!("{i}\n"), ExitStatus::Code(code)));
    }
    // Dropped without power-off: nothing to assert but that it returns, and that the process is gone.
    let pid = machine.process_id().unwrap();
    drop(machine);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}
