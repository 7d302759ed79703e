use crate::archive::{noise, tar, two_layers};
use crate::support::{Lab, str};

#[test]
fn layers_by_hand() {
    let lab = Lab::new();
    assert_eq!(lab.ok(&["layer", "create", "base"]), "base\n");
    assert_eq!(
        lab.ok(&["layer", "create", "top", "--parent", "base"]),
        "top\n"
    );
    let layers = two_layers();
    let base = lab.write("base.tar", &layers[0]);
    let top = lab.write("top.tar", &layers[1]);
    lab.ok(&["layer", "apply", "base", "-i", str(&base)]);
    lab.ok(&["layer", "apply", "top", "-i", str(&top)]);

    assert_eq!(
        lab.run(&["layer", "diff", "top"]).stdout,
        layers[1],
        "byte for byte"
    );
    assert_eq!(
        lab.ok(&["layer", "changes", "top"]),
        "C /etc\nD /etc/one\nC /etc/two\nA /new\n"
    );
    let all = lab.run(&["layer", "export", "top"]).stdout;
    let mut names: Vec<_> = tar::Archive::new(all.as_slice())
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect();
    names.retain(|n| n != "./" && n != ".");
    assert_eq!(names, ["big", "etc/", "etc/two", "new"]);

    let name = lab.ok(&["layer", "flatten", "top", "-o", "flat.vhd", "--vhd"]);
    assert!(name.starts_with("sha256:"), "{name}");
    assert_eq!(
        lab.ok(&["disk", "ls", "flat.vhd", "-R"]),
        "big\netc/\nnew\netc/two\n"
    );
    lcow_testkit::e2fsck(&lab.path("flat.vhd"));

    let lines = lab.json(&["layer", "ls"]);
    assert_eq!(lines.as_array().unwrap().len(), 2);
    assert_eq!(
        (&lines[0]["id"], &lines[1]["parent"]),
        (&"base".into(), &"base".into())
    );
    assert_eq!(lines[0]["size"], layers[0].len());
    let inspected = lab.json(&["layer", "inspect", "top"]);
    assert_eq!(inspected[0]["parents"], serde_json::json!(["base"]));
    assert_eq!(lab.ok(&["layer", "tree"]).lines().count(), 2);
    lab.ok(&["layer", "verify", "--all"]);
    lab.ok(&["check"]);

    let error = lab.fails(1, &["layer", "rm", "base"]);
    assert!(error.contains("top") && error.contains("hint:"), "{error}");
    lab.fails(1, &["layer", "apply", "top", "-i", str(&top)]);
    lab.ok(&["layer", "rm", "top", "base"]);
    assert_eq!(lab.json(&["layer", "ls"]), serde_json::json!([]));
    lab.assert_clean();
}

#[test]
fn images_layers_answer_to_its_name() {
    let lab = Lab::new();
    let spec = lab.demo();
    let inspected = lab.json(&["layer", "inspect", "demo"]);
    assert_eq!(inspected[0]["applied"]["diff_id"], spec.diff_ids()[1]);
    let tree = lab.ok(&["layer", "tree"]);
    assert!(
        tree.lines().nth(1).unwrap().starts_with("└─ ") && tree.contains("demo:latest"),
        "{tree}"
    );
    assert_eq!(lab.run(&["layer", "diff", "demo"]).stdout, spec.layers[1]);
    let error = lab.fails(1, &["layer", "rm", "demo"]);
    assert!(error.contains("belongs to image demo:latest"), "{error}");
    let error = lab.fails(1, &["layer", "inspect", "nothing"]);
    assert!(error.contains("there is no layer nothing"), "{error}");
}

#[test]
fn a_damaged_layer_is_found() {
    let lab = Lab::new();
    lab.ok(&["layer", "create", "one"]);
    let tar = lab.write("one.tar", &tar(&[("file", &noise(200_000, 9))]));
    lab.ok(&["layer", "apply", "one", "-i", str(&tar)]);
    let disk = lab.root().join("one/layer.vhd");
    let mut bytes = std::fs::read(&disk).unwrap();
    let needle = &noise(200_000, 9)[100_000..100_032];
    let at = bytes.windows(32).position(|w| w == needle).unwrap();
    bytes[at] ^= 0x40;
    std::fs::write(&disk, bytes).unwrap();
    lab.fails(1, &["check"]);
    let error = lab.fails(1, &["layer", "verify", "one"]);
    assert!(error.contains("1 of 1 layers are damaged"), "{error}");
    let out = lab.path("out.tar");
    lab.fails(1, &["layer", "diff", "one", "-o", str(&out)]);
    assert!(!out.exists(), "a failed diff leaves no file");
}

#[test]
fn spec_operations_are_all_there_by_hand() {
    let lab = Lab::new();
    let layers = two_layers();
    lab.ok(&["layer", "create", "base"]);
    lab.fails(1, &["layer", "exists", "top"]);
    lab.ok(&["layer", "create", "top", "--parent", "base"]);
    lab.ok(&["layer", "exists", "top"]);
    assert_eq!(
        lab.fails(1, &["layer", "exists", "to"]),
        "lcow: there is no layer to\n"
    );
    for (name, bytes) in [("base", &layers[0]), ("top", &layers[1])] {
        let file = lab.write("layer.tar", bytes);
        lab.ok(&["layer", "apply", name, "-i", str(&file)]);
    }
    let path = lab.ok(&["layer", "path", "top"]);
    assert!(
        std::path::Path::new(path.trim())
            .join("layer.vhd")
            .is_file(),
        "{path}"
    );
    assert_eq!(lab.json(&["layer", "path", "top"])["path"], path.trim());
    assert_eq!(lab.json(&["layer", "metadata", "top"])[0]["kind"], "layer");

    // Files of the union, and of the layer alone.
    assert_eq!(lab.ok(&["layer", "files", "top"]), "big\netc/\nnew\n");
    assert_eq!(lab.ok(&["layer", "files", "top", "etc"]), "two\n");
    let files = lab.json(&["layer", "files", "top", "-R"]);
    let names: Vec<_> = files
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["path"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["big", "etc", "new", "etc/two"]);
    let two = lab.ok(&["layer", "cat", "top", "/etc/two"]);
    assert_eq!(
        lab.ok(&["layer", "cat", "top", "etc/../etc/two", "--own"]),
        two
    );
    assert!(lab.run(&["layer", "cat", "top", "big"]).stdout.len() > 10_000);
    lab.fails(1, &["layer", "cat", "top", "big", "--own"]);
    lab.fails(1, &["layer", "cat", "top", "/etc/one"]);
    let etc = lab.run(&["layer", "export", "top", "/etc"]).stdout;
    let names: Vec<_> = tar::Archive::new(etc.as_slice())
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["./", "two"]);

    let size: u64 = lab
        .ok(&["layer", "diff-size", "top"])
        .trim()
        .parse()
        .unwrap();
    assert_eq!(lab.json(&["layer", "diff-size", "top"])["size"], size);
    assert_eq!(
        lab.ok(&["layer", "diff-size", "top", "--against", "top"]),
        "0\n"
    );

    // Sandboxes of both formats, committed as they are.
    for (format, file) in [("vhd", "sandbox.vhd"), ("vhdx", "sandbox.vhdx")] {
        let option = format!("lcow.sandboxformat={format}");
        let size = ["--storage-opt", "size=16M"];
        let create = [
            "layer",
            "create-rw",
            format,
            "--parent",
            "top",
            "--storage-opt",
            &option,
        ];
        assert_eq!(
            lab.ok(&[&create[..], &size].concat()),
            format!("{format}\n")
        );
        let inspected = lab.json(&["layer", "inspect", format]);
        assert_eq!(inspected[0]["format"], format);
        assert!(lab.root().join(format).join(file).is_file());
        assert_eq!(lab.ok(&["layer", "changes", format]), "");
        let new = format!("{format}-layer");
        lab.ok(&["layer", "commit", format, &new]);
        assert_eq!(
            lab.json(&["layer", "inspect", &new])[0]["parents"][0],
            "top"
        );
        let removed = lab.json(&["layer", "remove", &new, format]);
        assert_eq!(removed["removed"], serde_json::json!([new, format]));
    }
    let error = lab.fails(1, &["layer", "create-rw", "x", "--storage-opt", "size=1M"]);
    assert!(
        error.contains("size=\"1M\"") && error.contains("16M"),
        "{error}"
    );
}

#[test]
fn spec_options_come_from_the_command_line_the_environment_and_a_file() {
    let lab = Lab::new();
    let format = |id: &str, options: &[&str], environment: &[(&str, &str)]| {
        let create = ["layer", "create-rw", id, "--storage-opt", "size=16M"];
        let mut command = lab.command(&[&create[..], options].concat());
        let output = command.envs(environment.iter().copied()).output().unwrap();
        match output.status.code() {
            Some(0) => Ok(lab.json(&["layer", "inspect", id])[0]["format"]
                .as_str()
                .unwrap()
                .to_owned()),
            code => Err((code, crate::support::stderr(&output))),
        }
    };
    let file = lab.write(
        "lcow.toml",
        b"[lcow]\nsandboxformat = \"vhdx\"\nmemory = 512\n",
    );
    let config = ["--config", str(&file)];
    let variable = [("LCOW_OPT_SANDBOXFORMAT", "vhdx")];
    assert_eq!(format("default", &[], &[]).unwrap(), "vhd");
    assert_eq!(format("file", &config, &[]).unwrap(), "vhdx");
    assert_eq!(format("variable", &[], &variable).unwrap(), "vhdx");
    assert_eq!(
        format("both", &config, &[("LCOW_OPT_SANDBOXFORMAT", "vhd")]).unwrap(),
        "vhd"
    );
    assert_eq!(
        format("option", &["--opt", "lcow.sandboxformat=vhd"], &variable).unwrap(),
        "vhd"
    );
    assert_eq!(
        format("named", &[], &[("LCOW_CONFIG", str(&file))]).unwrap(),
        "vhdx"
    );

    let bad = lab.write("bad.toml", b"lcow.memory = 1\n");
    let missing = lab.path("missing.toml");
    let table = [
        (
            &["--config", str(&bad)][..],
            &[][..],
            &["lcow.memory", "\"1\"", "bad.toml", "MiB"][..],
        ),
        (&["--config", str(&missing)], &[], &["missing.toml"]),
        (
            &[],
            &[("LCOW_OPT_MEMROY", "512")],
            &["LCOW_OPT_MEMROY", "512", "lcow.memory"],
        ),
        (
            &[],
            &[("LCOW_TIMEOUT_SECONDS", "soon")],
            &["LCOW_TIMEOUT_SECONDS", "soon", "seconds"],
        ),
        (
            &["--opt", "lcow.memory"],
            &[],
            &["lcow.memory", "key=value"],
        ),
    ];
    for (options, environment, words) in table {
        let (code, error) = format("bad", options, environment).unwrap_err();
        assert_eq!(code, Some(1));
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    }
    // What is not there yet is said to be so, and not taken for something else.
    let error = lab.fails(1, &["status", "--opt", "lcow.mounter=host"]);
    assert!(
        error.contains("lcow.mounter=host is not supported"),
        "{error}"
    );
}

#[test]
fn spec_status_is_complete() {
    let lab = Lab::new();
    lab.ok(&["layer", "create", "empty"]);
    lab.ok(&["layer", "create-rw", "box", "--storage-opt", "size=16M"]);
    let status = lab.json(&["status", "--opt", "lcow.accel=tcg"]);
    let expected = serde_json::json!({
        "driver": "lcow", "version": env!("CARGO_PKG_VERSION"), "mode": "safe", "mounter": "uvm",
        "root": str(&lab.root()), "accelerator": "tcg", "accelerator_reason": "told to by lcow.accel=tcg",
        "images": 0, "containers": 0, "running": 0, "machines": [], "layers": 0, "sandboxes": 1, "empty": 1,
        "damaged": [],
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&status[key], value, "{key}");
    }
    assert!(
        status["kernel"].is_string() || status["problem"].is_string(),
        "{status}"
    );
    assert_eq!(status["cache"][0]["name"], "sandbox-16777216.vhd");
    for bytes in ["disk_size", "apparent_size", "cache_size"] {
        assert!(status[bytes].as_u64().unwrap() > 0, "{bytes}");
    }
    let text = lab.ok(&["status", "--opt", "lcow.globalmode=true"]);
    assert!(text.contains("Mode        global, mounter uvm"), "{text}");
}

#[test]
fn spec_apply_diff_keeps_isolated_in_a_child_process_unless_told_not_to() {
    if !lcow_testkit::have("strace") {
        lcow_testkit::skip!("strace is not installed");
    }
    let lab = Lab::new();
    let file = lab.write("layer.tar", &two_layers()[0]);
    for (layer, variable, programs) in [("child", "0", 2), ("alone", "1", 1)] {
        lab.ok(&["layer", "create", layer]);
        let trace = lab.path("trace");
        let output = std::process::Command::new("strace")
            .args([
                "-f",
                "-e",
                "trace=execve",
                "-e",
                "signal=none",
                "-o",
                str(&trace),
            ])
            .arg(env!("CARGO_BIN_EXE_lcow"))
            .args(["layer", "apply", layer, "-i", str(&file)])
            .env("LCOW_ROOT", lab.root())
            .env("LCOW_NO_REEXEC", variable)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            crate::support::stderr(&output)
        );
        let trace = std::fs::read_to_string(trace).unwrap();
        let started = trace.lines().filter(|line| line.ends_with(" = 0")).count();
        assert_eq!(started, programs, "{trace}");
    }
}
