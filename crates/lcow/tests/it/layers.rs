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
