use lcow_image::{ErrorKind, Event, ImageError, Input, LoadOptions};
use lcow_layer::digest::Digest;

use crate::archive::{
    Files, ImageSpec, archive, docker, gzip, noise, oci, sorted, tar, two_layers, write_directory,
};
use crate::support::Bench;

#[test]
fn every_form_gives_the_same_image() {
    let spec = ImageSpec::new("demo", two_layers());
    let plain = ImageSpec {
        gzip: false,
        ..spec.clone()
    };
    let forms: Vec<(&str, Files)> = vec![
        ("oci", oci(std::slice::from_ref(&spec))),
        ("oci, sorted", sorted(oci(std::slice::from_ref(&spec)))),
        ("oci, plain layers", oci(&[plain])),
        ("docker", docker(&spec)),
        ("docker, sorted", sorted(docker(&spec))),
        ("docker in oci", {
            let mut both = oci(&[ImageSpec {
                gzip: false,
                ..spec.clone()
            }]);
            let layers: Vec<_> = spec
                .layers
                .iter()
                .map(|t| format!("blobs/sha256/{}", Digest::of(t).hex()))
                .collect();
            let config = format!("blobs/sha256/{}", Digest::of(&spec.config_bytes()).hex());
            let manifest = serde_json::json!([{ "Config": config, "RepoTags": ["demo:latest"], "Layers": layers }]);
            both.push((
                "manifest.json".to_owned(),
                serde_json::to_vec(&manifest).unwrap(),
            ));
            sorted(both)
        }),
    ];
    for (form, files) in forms {
        let bytes = archive(&files);
        for (way, loaded) in [
            ("file", Bench::new().keep(|b| b.file(&bytes))),
            ("stream", Bench::new().keep(|b| b.stream(bytes.clone()))),
            ("gzip", Bench::new().keep(|b| b.file(&gzip(&bytes)))),
            (
                "directory",
                Bench::new().keep(|b| {
                    let layout = b.directory.path().join("layout");
                    write_directory(&files, &layout);
                    b.path(&layout)
                }),
            ),
        ] {
            let what = format!("{form} as a {way}");
            assert_eq!(loaded.len(), 1, "{what}");
            let image = &loaded[0].image;
            assert_eq!(image.id.to_string(), spec.id(), "{what}");
            assert_eq!(image.names[0].to_string(), "demo:latest", "{what}");
            assert_eq!(image.layers.len(), 2, "{what}");
            assert_eq!(loaded[0].new_layers, 2, "{what}");
            assert_eq!(image.config.config.cmd, ["/bin/sh"], "{what}");
        }
    }
}

impl Bench {
    fn keep(
        self,
        load: impl FnOnce(&Self) -> Result<Vec<lcow_image::Loaded>, ImageError>,
    ) -> Vec<lcow_image::Loaded> {
        let loaded = load(&self).unwrap();
        self.assert_clean();
        loaded
    }
}

#[test]
fn layers_convert_as_they_stream_when_they_can() {
    // Over the size up to which blobs are kept in memory.
    let layers = vec![
        tar(&[("a", &noise(5 << 20, 1))]),
        tar(&[("b", &noise(5 << 20, 2))]),
    ];
    let files = oci(&[ImageSpec::new("demo", layers)]);
    let waiting = |files: &Files| {
        let bench = Bench::new();
        let reader = Box::new(std::io::Cursor::new(archive(files)));
        let input = Input::Stream {
            name: "the stream".to_owned(),
            reader,
        };
        let (loaded, events) = bench.load(input, &LoadOptions::default());
        loaded.unwrap();
        bench.assert_clean();
        events
            .iter()
            .filter(|e| matches!(e, Event::Waiting { .. }))
            .count()
    };
    assert_eq!(waiting(&files), 0, "documents first, layers in order");
    assert_eq!(waiting(&sorted(files)), 2, "documents last");
}

#[test]
fn layers_that_are_there_are_not_read() {
    let bench = Bench::new();
    let spec = ImageSpec::new("demo", two_layers());
    let mut files = oci(std::slice::from_ref(&spec));
    assert_eq!(bench.file(&archive(&files)).unwrap()[0].new_layers, 2);
    // Without the layers' blobs at all.
    files.truncate(4);
    assert_eq!(bench.file(&archive(&files)).unwrap()[0].new_layers, 0);

    let more = ImageSpec {
        layers: [two_layers(), vec![tar(&[("third", b"3")])]].concat(),
        ..ImageSpec::new("more", Vec::new())
    };
    assert_eq!(
        bench.file(&archive(&oci(&[more]))).unwrap()[0].new_layers,
        1
    );
    assert_eq!(bench.store().layers().unwrap().len(), 3);
}

#[test]
fn a_root_file_system_becomes_an_image() {
    let rootfs = tar(&[
        ("./", b""),
        ("./bin/", b""),
        ("./bin/sh", b"#!"),
        ("./etc/", b""),
    ]);
    let name: lcow_image::Name = "mine:1".parse().unwrap();
    let options = LoadOptions {
        name: Some(name.clone()),
        ..LoadOptions::default()
    };
    let ids: Vec<_> = [rootfs.clone(), gzip(&rootfs)]
        .into_iter()
        .map(|bytes| {
            let bench = Bench::new();
            let loaded = bench.stream_with(bytes, &options).unwrap();
            assert_eq!(loaded[0].names, std::slice::from_ref(&name));
            assert_eq!(
                loaded[0].image.config.rootfs.diff_ids,
                [Digest::of(&rootfs)]
            );
            bench.assert_clean();
            loaded[0].image.id
        })
        .collect();
    assert_eq!(
        ids[0], ids[1],
        "the same tar gives the same image, however it is compressed"
    );
}

#[test]
fn a_corrupt_blob_is_named_and_leaves_nothing() {
    for gzip in [false, true] {
        let spec = ImageSpec {
            gzip,
            ..ImageSpec::new("demo", two_layers())
        };
        let files = oci(std::slice::from_ref(&spec));
        for (index, (path, bytes)) in files.iter().enumerate().skip(2) {
            let mut bad = files.clone();
            let middle = bytes.len() / 2;
            bad[index].1[middle] ^= 1;
            let expected = format!("sha256:{}", path.rsplit('/').next().unwrap());
            for bytes in [archive(&bad), archive(&sorted(bad.clone()))] {
                let bench = Bench::new();
                for result in [bench.file(&bytes), bench.stream(bytes.clone())] {
                    let error = result.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{path}: {error}");
                    assert!(error.to_string().contains(&expected), "{path}: {error}");
                    bench.assert_empty();
                }
            }
        }
    }
}

#[test]
fn a_layer_that_is_not_the_configurations_is_refused() {
    let spec = ImageSpec::new("demo", two_layers());
    let mut files = docker(&spec);
    files[1].1 = tar(&[("other", b"")]);
    let bench = Bench::new();
    let error = bench.file(&archive(&files)).unwrap_err();
    match &error {
        ImageError::DiffId {
            index: 2,
            total: 2,
            expected,
            ..
        } => {
            assert_eq!(expected.to_string(), spec.diff_ids()[1]);
        }
        other => panic!("{other}"),
    }
    bench.assert_empty();
}

#[test]
fn truncation_is_named_by_its_offset() {
    let spec = ImageSpec {
        gzip: false,
        ..ImageSpec::new("demo", two_layers())
    };
    let bytes = archive(&oci(&[spec]));
    let cut = bytes.len() - 6000;
    for bytes in [bytes[..cut].to_vec()] {
        let bench = Bench::new();
        for result in [bench.file(&bytes), bench.stream(bytes.clone())] {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Truncated, "{error}");
            assert!(error.to_string().contains(&cut.to_string()), "{error}");
            bench.assert_empty();
        }
        let error = bench.stream(gzip(&bytes)[..9000].to_vec()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated, "{error}");
        bench.assert_empty();
    }
}

#[test]
fn missing_parts_are_named() {
    let files = oci(&[ImageSpec::new("demo", two_layers())]);
    for index in 2..files.len() {
        let mut without = files.clone();
        let (path, _) = without.remove(index);
        let bench = Bench::new();
        let error = bench.file(&archive(&without)).unwrap_err();
        assert!(matches!(error, ImageError::Missing { .. }), "{error}");
        assert!(
            error.to_string().contains(path.rsplit('/').next().unwrap()),
            "{error}"
        );
        bench.assert_empty();
    }
}

#[test]
fn what_is_no_image_says_so() {
    let bench = Bench::new();
    let directory = bench.directory.path().join("empty");
    std::fs::create_dir(&directory).unwrap();
    let cases: Vec<(&str, Result<_, ImageError>)> = vec![
        ("nothing", bench.stream(Vec::new())),
        ("zeros", bench.stream(vec![0; 10_240])),
        ("text", bench.stream(b"hello ".repeat(1000))),
        (
            "compressed text",
            bench.stream(gzip(&b"hello ".repeat(1000))),
        ),
        (
            "an archive of blobs alone",
            bench.stream(tar(&[("blobs/sha256/x", b"x")])),
        ),
        ("an empty index", bench.file(&archive(&oci(&[])))),
        ("an empty directory", bench.path(&directory)),
    ];
    for (what, result) in cases {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAnImage, "{what}: {error}");
        assert!(
            error.to_string().contains("is not a container image"),
            "{what}: {error}"
        );
    }
    bench.assert_empty();
}

#[test]
fn the_platform_decides() {
    let amd = ImageSpec {
        name: None,
        ..ImageSpec::new("", vec![tar(&[("amd", b"")])])
    };
    let arm = ImageSpec {
        architecture: "arm64".to_owned(),
        layers: vec![tar(&[("arm", b"")])],
        ..amd.clone()
    };
    let bytes = archive(&oci(&[arm.clone(), amd.clone()]));
    let load = |platform: &str| {
        let options = LoadOptions {
            platform: Some(platform.parse().unwrap()),
            ..LoadOptions::default()
        };
        Bench::new().stream_with(bytes.clone(), &options)
    };
    assert_eq!(
        load("linux/arm64").unwrap()[0].image.id.to_string(),
        arm.id()
    );
    assert_eq!(load("amd64").unwrap()[0].image.id.to_string(), amd.id());
    let error = load("riscv64").unwrap_err();
    assert!(
        error.to_string().contains("linux/amd64, linux/arm64"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--platform"), "{error}");
    if std::env::consts::ARCH == "x86_64" {
        let loaded = Bench::new().stream(bytes.clone()).unwrap();
        assert_eq!(
            loaded[0].image.id.to_string(),
            amd.id(),
            "this machine's by default"
        );
    }
}

#[test]
fn several_images_in_one_archive() {
    let one = ImageSpec::new("one", two_layers());
    let two = ImageSpec::new("quay.io/me/two:2", vec![two_layers()[0].clone()]);
    let bytes = archive(&oci(&[one, two]));
    for bytes in [bytes.clone(), gzip(&bytes)] {
        let bench = Bench::new();
        let loaded = bench.stream(bytes).unwrap();
        let names: Vec<_> = loaded.iter().map(|l| l.names[0].to_string()).collect();
        assert_eq!(names, ["one:latest", "quay.io/me/two:2"]);
        assert_eq!(
            bench.store().layers().unwrap().len(),
            2,
            "the layer they share is there once"
        );
    }
    let options = LoadOptions {
        name: Some("x".parse().unwrap()),
        ..LoadOptions::default()
    };
    let bench = Bench::new();
    assert!(
        bench.stream_with(bytes, &options).is_err(),
        "one name does not fit two images"
    );
    bench.assert_empty();
}

#[test]
fn hostile_archives_are_bounded() {
    let bench = Bench::new();
    let files = oci(&[ImageSpec::new("demo", two_layers())]);
    let with = |path: &str, bytes: Vec<u8>| {
        let mut files = files.clone();
        match files.iter_mut().find(|(p, _)| p == path) {
            Some(file) => file.1 = bytes,
            None => files.push((path.to_owned(), bytes)),
        }
        archive(&files)
    };
    let refused = |bytes: Vec<u8>| {
        let error = bench.file(&bytes).unwrap_err();
        bench.assert_empty();
        error
    };
    let error = refused(with("index.json", vec![b' '; (4 << 20) + 1]));
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let error = refused(with("index.json", b"{".to_vec()));
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("index.json"), "{error}");
    let error = refused(with(
        "oci-layout",
        br#"{"imageLayoutVersion":"2.0"}"#.to_vec(),
    ));
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");

    let many = ImageSpec {
        layers: vec![tar(&[("a", b"")]); 501],
        ..ImageSpec::new("many", Vec::new())
    };
    let error = refused(archive(&oci(&[many])));
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");

    // An index that holds itself, by a digest that can't be right.
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": Digest::of(b"x").to_string(), "size": 1u64 << 40,
    }] });
    let bytes = serde_json::to_vec(&index).unwrap();
    let path = format!("blobs/sha256/{}", Digest::of(b"x").hex());
    let mut loops = with("index.json", bytes.clone());
    loops.truncate(loops.len() - 1024);
    loops.extend(archive(&vec![(path, bytes)]));
    let error = refused(loops);
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");

    // Links that lead in a circle.
    let mut builder = tar::Builder::new(Vec::new());
    for (name, target) in [
        ("index.json", "manifest.json"),
        ("manifest.json", "index.json"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, name, target).unwrap();
    }
    let error = refused(builder.into_inner().unwrap());
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn cancelling_leaves_nothing() {
    let bench = Bench::new();
    let bytes = archive(&oci(&[ImageSpec::new("demo", two_layers())]));
    let cancel = lcow_driver::Cancel::new();
    let reader = Box::new(std::io::Cursor::new(bytes));
    let input = Input::Stream {
        name: "the stream".to_owned(),
        reader,
    };
    // In the second layer, when the first is whole.
    let result = bench
        .images
        .load(input, &LoadOptions::default(), &cancel, &|event| {
            if matches!(event, Event::Layer { index: 2, .. }) {
                cancel.cancel();
            }
        });
    assert!(matches!(result, Err(ImageError::Cancelled)), "{result:?}");
    bench.assert_empty();
}
