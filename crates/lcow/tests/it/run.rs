use std::io::Write;
use std::process::Stdio;

use crate::support::{Lab, busybox, stderr, stdout, str};

/// A data root with an image that has a shell, or a skip.
macro_rules! shell {
    () => {{
        if !lcow_testkit::have("qemu-system-x86_64") {
            lcow_testkit::skip!("QEMU is not installed");
        }
        let Some(spec) = busybox() else {
            lcow_testkit::skip!("busybox-static is not installed")
        };
        let lab = Lab::new();
        let path = lab.image("busybox.tar", &crate::archive::oci(&[spec]));
        lab.ok(&["load", str(&path)]);
        lab
    }};
}

#[test]
fn a_process_as_the_image_and_the_options_say() {
    let lab = shell!();
    let script =
        "cat; pwd; id -u; id -g; echo $FROM $MORE $PASSED; cat /etc/motd; echo oops >&2; exit 42";
    let mut command = lab.command(&[
        "run",
        "--rm",
        "-e",
        "MORE=option",
        "-e",
        "PASSED",
        "-u",
        "me",
        "busybox",
        script,
    ]);
    let mut child = command
        .env("PASSED", "on")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"from standard input\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        stdout(&output),
        "from standard input\n/srv\n1234\n2345\nimage option on\nfrom the second layer\n",
        "{}",
        stderr(&output)
    );
    assert_eq!(stderr(&output), "oops\n");
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(lab.json(&["ps", "-a"]), serde_json::json!([]), "--rm");
    lab.assert_clean();
}

#[test]
fn the_images_own_command() {
    let lab = shell!();
    assert_eq!(lab.ok(&["run", "--rm", "busybox"]), "default command\n");
    lab.assert_clean();
}

#[test]
fn commands_that_do_not_start() {
    let lab = shell!();
    let error = lab.fails(
        127,
        &["run", "--entrypoint", "", "busybox", "no-such-command"],
    );
    assert!(error.contains("no-such-command"), "{error}");
    let error = lab.fails(126, &["run", "--entrypoint", "/etc", "busybox"]);
    assert!(error.contains("/etc"), "{error}");
    assert_eq!(
        lab.json(&["ps", "-a"]),
        serde_json::json!([]),
        "containers that never ran are gone"
    );
    lab.assert_clean();
}

#[test]
fn run_diff_commit_save() {
    let lab = shell!();
    let script = "echo hello >/srv/new; rm /etc/doomed; chmod 600 /etc/motd; mkdir -p /srv/deep/er";
    lab.ok(&["run", "--name", "work", "busybox", script]);
    let listed = lab.json(&["ps", "-a"]);
    assert_eq!(
        (&listed[0]["name"], &listed[0]["exit_code"]),
        (&"work".into(), &0.into())
    );
    let error = lab.fails(125, &["run", "--name", "work", "busybox"]);
    assert!(error.contains("taken"), "{error}");

    let expected =
        "C /etc\nD /etc/doomed\nC /etc/motd\nC /srv\nA /srv/deep\nA /srv/deep/er\nA /srv/new\n";
    assert_eq!(lab.ok(&["diff", "wo"]), expected);
    let error = lab.fails(1, &["rmi", "busybox"]);
    assert!(error.contains("work"), "{error}");
    let commit = |name: &str| {
        let mut command = lab.command(&["commit", "-m", "a test", "work", name]);
        let output = command
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), format!("{name}\n"));
        lab.json(&["images", name])[0]["id"].clone()
    };
    assert_eq!(
        commit("changed:1"),
        commit("changed:2"),
        "the same changes are the same image"
    );
    assert_eq!(
        lab.json(&["images", "changed"])[0]["created"],
        "2023-11-14T22:13:20Z"
    );
    assert_eq!(lab.ok(&["layer", "changes", "changed:1"]), expected);

    lab.ok(&["rm", "work"]);
    lab.ok(&["save", "changed:1", "-o", "changed.tar"]);
    lab.ok(&["rmi", "-f", "changed:1", "changed:2", "busybox"]);
    assert_eq!(lab.ok(&["layer", "ls", "-q"]), "");
    lab.ok(&["load", "changed.tar"]);
    let script = "cat /srv/new; test ! -e /etc/doomed && echo gone";
    assert_eq!(
        lab.ok(&["run", "--rm", "changed:1", script]),
        "hello\ngone\n"
    );
    lab.assert_clean();
}
