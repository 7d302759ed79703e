//! Options: what they take, and what their errors name.

use std::time::Duration;

use lcow_driver::{
    Accel, DiskFormat, DriverError, MounterKind, Options, Origin, SandboxOptions, Setting,
};

fn parse(options: &[&str]) -> Result<Options, DriverError> {
    Options::parse(options)
}

#[test]
fn spec_options_defaults_are_those_of_the_table() {
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
fn spec_options_every_key_is_read_in_any_case_and_the_last_of_two_counts() {
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

fn setting(key: &str, value: &str, origin: Origin) -> Setting {
    Setting {
        key: key.to_owned(),
        value: value.to_owned(),
        origin,
    }
}

fn file(key: &str, value: &str) -> Setting {
    setting(key, value, Origin::File("/etc/lcow/config.toml".into()))
}

fn environment(variables: &[(&str, &str)]) -> Vec<Setting> {
    let owned = variables
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    Setting::from_environment(owned).collect()
}

#[test]
fn spec_options_timeout_comes_from_the_option_then_the_environment_then_the_default() {
    let table = [
        (&["lcow.timeout=5"][..], Some("9"), None, 5),
        (&["lcow.timeout=0"][..], Some("9"), None, 9),
        (&["lcow.timeout=0"][..], None, None, 300),
        (&[][..], Some("9"), None, 9),
        (&[][..], Some("0"), None, 300),
        (&[][..], None, None, 300),
        (&[][..], None, Some("7"), 7),
        (&[][..], Some("9"), Some("7"), 9),
        (&["lcow.timeout=0"][..], Some("0"), Some("7"), 7),
    ];
    for (options, variable, in_file, seconds) in table {
        let mut settings: Vec<_> = options.iter().map(|o| Setting::parse(o).unwrap()).collect();
        settings.extend(
            variable
                .iter()
                .flat_map(|v| environment(&[("LCOW_TIMEOUT_SECONDS", v)])),
        );
        settings.extend(in_file.map(|v| file("lcow.timeout", v)));
        assert_eq!(
            Options::resolve(&settings).unwrap().timeout,
            Duration::from_secs(seconds),
            "{settings:?}"
        );
    }
}

#[test]
fn spec_options_come_from_the_call_the_environment_and_a_file_in_this_order() {
    let mut settings = vec![
        setting("LCOW.memory", "1000", Origin::Call),
        file("lcow.memory", "100"),
        file("lcow.cpus", "4"),
        file("lcow.accel", "kvm"),
    ];
    settings.extend(environment(&[
        ("LCOW_OPT_MEMORY", "500"),
        ("LCOW_OPT_CPUS", "2"),
        ("LCOW_OPT_TIMEOUT", "11"),
        ("LCOW_TIMEOUT_SECONDS", "12"),
        ("LCOW_ROOT", "/none/of/these"),
        ("HOME", "/root"),
    ]));
    let o = Options::resolve(&settings).unwrap();
    assert_eq!((o.memory_mib, o.cpus, o.accel), (1000, 2, Accel::Kvm));
    assert_eq!(o.timeout, Duration::from_secs(11));

    // What does not count is held against the table all the same, and the error says where it is.
    let table = [
        (
            file("lcow.memory", "1"),
            &["lcow.memory", "\"1\"", "/etc/lcow/config.toml", "MiB"][..],
        ),
        (
            file("lcow.kernal", "x"),
            &["lcow.kernal", "config.toml", "lcow.kernel"],
        ),
        (
            environment(&[("LCOW_OPT_CPUS", "many")]).remove(0),
            &["LCOW_OPT_CPUS", "many", "1 to 256"],
        ),
        (
            environment(&[("LCOW_OPT_KERNAL", "x")]).remove(0),
            &["LCOW_OPT_KERNAL", "lcow.kernel"],
        ),
        (
            environment(&[("LCOW_TIMEOUT_SECONDS", "soon")]).remove(0),
            &["LCOW_TIMEOUT_SECONDS", "soon"],
        ),
    ];
    for (bad, words) in table {
        let settings = [setting("lcow.memory", "1000", Origin::Call), bad];
        let e = Options::resolve(&settings).unwrap_err();
        assert_eq!(e.kind(), lcow_driver::ErrorKind::Invalid);
        let text = e.to_string();
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
    }
}

#[test]
fn spec_options_errors_name_the_key_the_value_and_what_is_allowed() {
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
fn spec_options_a_sandbox_takes_two_spellings_of_its_size() {
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

#[test]
fn spec_options_page_has_the_keys_and_the_defaults() {
    let tables = lcow_testkit::page_tables("options.md");
    let [options, storage] = tables.as_slice() else {
        panic!("{} tables", tables.len())
    };
    let known = |error: DriverError| -> Vec<String> {
        let text = error.to_string();
        let list = text.split("known are ").nth(1).unwrap();
        list.split(", ").map(str::to_owned).collect()
    };
    let keys =
        |table: &[Vec<String>]| -> Vec<String> { table.iter().map(|row| row[0].clone()).collect() };
    assert_eq!(keys(options), known(parse(&["lcow.none=1"]).unwrap_err()));
    let mut of_sandboxes = known(SandboxOptions::parse(["none=1"]).unwrap_err());
    let mut listed = keys(storage);
    of_sandboxes.sort();
    listed.sort();
    assert_eq!(listed, of_sandboxes);
    // What the page says is the default gives the default.
    let text =
        std::fs::read_to_string(lcow_testkit::workspace_root().join("docs/options.md")).unwrap();
    let mut given = 0;
    for line in text.lines().take_while(|line| !line.starts_with("## ")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let [_, key, _, default, _] = cells[..]
            && let Some(default) = default.strip_prefix('`').and_then(|d| d.strip_suffix('`'))
        {
            let option = format!("{}={default}", key.trim_matches('`'));
            assert_eq!(parse(&[&option]).unwrap(), Options::default(), "{option}");
            given += 1;
        }
    }
    assert_eq!(given, 9);
}
