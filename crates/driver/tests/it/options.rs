//! Options: what they take, and what their errors name.

use std::time::Duration;

use lcow_driver::{Accel, DiskFormat, DriverError, MounterKind, Options, SandboxOptions};

fn parse(options: &[&str]) -> Result<Options, DriverError> {
    Options::parse_with(options, |_| None)
}

#[test]
fn defaults_are_those_of_the_table() {
    let o = parse(&[]).unwrap();
    assert_eq!(o, Options::default());
    assert!(!o.global_mode && !o.verity);
    assert_eq!(o.sandbox_size, 20 << 30);
    assert_eq!(o.sandbox_format, DiskFormat::Vhd);
    assert_eq!(o.timeout, Duration::from_secs(300));
    assert_eq!((o.memory_mib, o.cpus), (256, 1));
    assert_eq!((o.accel, o.mounter), (Accel::Auto, MounterKind::Uvm));
    assert_eq!(
        (o.kernel, o.initrd, o.vhdx, o.boot_parameters),
        (None, None, None, None)
    );
}

#[test]
fn every_key_is_read_in_any_case_and_the_last_of_two_counts() {
    let o = parse(&[
        "LCOW.GlobalMode=TRUE",
        "lcow.sandboxsize=20",
        "lcow.sandboxsize=40",
        "lcow.sandboxformat=VHDX",
        "lcow.kirdpath=/kird",
        "lcow.kernel=vmlinuz",
        "lcow.initrd=/boot/initrd.img",
        "lcow.vhdx=/root.vhdx",
        "lcow.bootparameters=a=b c",
        "lcow.timeout=17",
        "lcow.memory=512",
        "lcow.cpus=2",
        "lcow.accel=tcg",
        "lcow.mounter=host",
        "lcow.verity=true",
    ])
    .unwrap();
    assert!(o.global_mode && o.verity);
    assert_eq!(o.sandbox_size, 40 << 30);
    assert_eq!(o.sandbox_format, DiskFormat::Vhdx);
    assert_eq!(o.kernel_path().unwrap().to_str(), Some("/kird/vmlinuz"));
    assert_eq!(o.initrd_path().unwrap().to_str(), Some("/boot/initrd.img"));
    assert_eq!(o.vhdx.unwrap().to_str(), Some("/root.vhdx"));
    assert_eq!(o.boot_parameters.as_deref(), Some("a=b c"));
    assert_eq!(o.timeout, Duration::from_secs(17));
    assert_eq!((o.memory_mib, o.cpus), (512, 2));
    assert_eq!((o.accel, o.mounter), (Accel::Tcg, MounterKind::Host));
}

#[test]
fn the_timeout_comes_from_the_option_then_the_environment_then_the_default() {
    let table = [
        (&["lcow.timeout=5"][..], Some("9"), 5),
        (&["lcow.timeout=0"][..], Some("9"), 9),
        (&["lcow.timeout=0"][..], None, 300),
        (&[][..], Some("9"), 9),
        (&[][..], Some("0"), 300),
        (&[][..], None, 300),
    ];
    for (options, variable, seconds) in table {
        let o = Options::parse_with(options, |name| {
            assert_eq!(name, "LCOW_TIMEOUT_SECONDS");
            variable.map(str::to_owned)
        });
        assert_eq!(
            o.unwrap().timeout,
            Duration::from_secs(seconds),
            "{options:?} {variable:?}"
        );
    }
    let e = Options::parse_with::<&str>([], |_| Some("soon".into()))
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("LCOW_TIMEOUT_SECONDS") && e.contains("soon"),
        "{e}"
    );
}

#[test]
fn errors_name_the_key_the_value_and_what_is_allowed() {
    let table = [
        ("lcow.sandboxsize=19", &["lcow.sandboxsize", "19", "20"][..]),
        ("lcow.sandboxsize=20G", &["lcow.sandboxsize", "20G", "GB"]),
        (
            "lcow.sandboxsize=99999999999999999999",
            &["lcow.sandboxsize", "16384"],
        ),
        (
            "lcow.sandboxformat=qcow2",
            &["lcow.sandboxformat", "qcow2", "vhd, vhdx"],
        ),
        (
            "lcow.globalmode=maybe",
            &["lcow.globalmode", "maybe", "true, false"],
        ),
        ("lcow.timeout=-1", &["lcow.timeout", "-1", "0"]),
        ("lcow.memory=0", &["lcow.memory", "0", "MiB"]),
        ("lcow.cpus=many", &["lcow.cpus", "many", "1"]),
        ("lcow.accel=hvf", &["lcow.accel", "hvf", "auto, kvm, tcg"]),
        ("lcow.mounter=fuse", &["lcow.mounter", "fuse", "uvm, host"]),
        ("lcow.kernel=", &["lcow.kernel", "path"]),
        ("lcow.kernal=x", &["lcow.kernal", "x", "lcow.kernel"]),
        ("size=10G", &["size", "lcow.sandboxsize"]),
        ("lcow.globalmode", &["lcow.globalmode", "=", "key=value"]),
    ];
    for (option, words) in table {
        let e = parse(&[option]).unwrap_err();
        assert_eq!(e.kind(), lcow_driver::ErrorKind::Invalid);
        let text = e.to_string();
        for word in words {
            assert!(text.contains(word), "{option}: {word:?} is not in {text:?}");
        }
    }
}

#[test]
fn a_sandbox_takes_two_spellings_of_its_size() {
    let size = |option: &str| SandboxOptions::parse([option]).map(|o| o.size.unwrap());
    let table = [
        ("size=16M", 16 << 20),
        ("size=512m", 512 << 20),
        ("SIZE=10G", 10 << 30),
        ("size=10GB", 10 << 30),
        ("size=1TiB", 1 << 40),
        ("size=16777217", (16 << 20) + 4096),
        ("size=16T", 16 << 40),
        ("lcow.sandboxsize=21", 21 << 30),
    ];
    for (option, bytes) in table {
        assert_eq!(size(option).unwrap(), bytes, "{option}");
    }
    for bad in [
        "size=15M",
        "size=17T",
        "size=",
        "size=G",
        "size=1.5G",
        "size=10X",
        "size=-1",
        "lcow.sandboxsize=1",
        "sise=1G",
    ] {
        assert!(size(bad).is_err(), "{bad}");
    }
    let none = SandboxOptions::parse::<&str>([]).unwrap();
    assert_eq!(none, SandboxOptions::default());
    assert!(none.journal);
    assert!(!SandboxOptions::parse(["journal=false"]).unwrap().journal);
}
