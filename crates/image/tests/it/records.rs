use lcow_driver::{Cancel, SandboxOptions};
use lcow_image::{CommitOptions, ImageError, Name};
use lcow_layer::digest::Digest;

use crate::archive::{ImageSpec, archive, docker, oci, tar, two_layers};
use crate::support::Bench;

#[test]
fn saved_is_what_was_loaded() {
    let spec = ImageSpec::new("demo:1", two_layers());
    let bench = Bench::new();
    bench
        .file(&archive(&oci(std::slice::from_ref(&spec))))
        .unwrap();
    let saved = bench.save("demo:1");
    assert_eq!(saved, bench.save(&spec.id()), "the same bytes every time");

    let mut blobs = Vec::new();
    for entry in tar::Archive::new(saved.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        blobs.push((path, bytes));
    }
    for layer in &spec.layers {
        let path = format!("blobs/sha256/{}", Digest::of(layer).hex());
        let found = blobs.iter().find(|(p, _)| *p == path);
        assert!(
            found.is_some_and(|(_, bytes)| bytes == layer),
            "{path} came back byte for byte"
        );
    }
    let path = format!("blobs/sha256/{}", Digest::of(&spec.config_bytes()).hex());
    let found = blobs.iter().find(|(p, _)| *p == path);
    assert!(
        found.is_some_and(|(_, bytes)| *bytes == spec.config_bytes()),
        "the configuration as it was"
    );

    // And in again, elsewhere: from the one form and from the other that it holds.
    let other = Bench::new();
    let loaded = other.stream(saved.clone()).unwrap();
    assert_eq!(loaded[0].image.id.to_string(), spec.id());
    assert_eq!(other.save("demo:1"), saved);
    let old_form: Vec<_> = blobs
        .iter()
        .filter(|(p, _)| p != "index.json" && !p.ends_with('/'))
        .cloned()
        .collect();
    assert_eq!(
        Bench::new().stream(archive(&old_form)).unwrap()[0]
            .image
            .id
            .to_string(),
        spec.id()
    );
}

#[test]
fn names_prefixes_and_ambiguity() {
    let bench = Bench::new();
    let specs = [
        ImageSpec::new("alpha:1", vec![tar(&[("a", b"1")])]),
        ImageSpec::new("alpha:2", vec![tar(&[("a", b"2")])]),
        ImageSpec::new("beta", vec![tar(&[("b", b"")])]),
    ];
    bench.file(&archive(&oci(&specs))).unwrap();
    let find = |query: &str| bench.images.find(query).map(|i| i.display_name());
    for (query, name) in [
        ("alpha:1", "alpha:1"),
        ("docker.io/library/alpha:2", "alpha:2"),
        ("beta", "beta:latest"),
        ("be", "beta:latest"),
        (specs[2].id().as_str(), "beta:latest"),
        (&specs[2].id()[7..27], "beta:latest"),
        (&specs[2].id()[..27], "beta:latest"),
    ] {
        assert_eq!(find(query).unwrap(), name, "{query}");
    }
    match find("alpha").unwrap_err() {
        ImageError::Ambiguous { candidates, .. } => {
            assert_eq!(candidates.len(), 2);
            assert!(
                candidates.iter().any(|c| c.starts_with("alpha:1 (")),
                "{candidates:?}"
            );
        }
        other => panic!("{other}"),
    }
    for query in ["gamma", "", "sha256:", "alpha:3"] {
        assert!(
            matches!(find(query), Err(ImageError::NotFound { .. })),
            "{query:?}"
        );
    }
}

#[test]
fn removal_keeps_what_others_need() {
    let bench = Bench::new();
    let base = two_layers()[0].clone();
    let one = ImageSpec::new("one", two_layers());
    let two = ImageSpec::new("two", vec![base.clone(), tar(&[("two", b"")])]);
    bench.file(&archive(&oci(&[one, two.clone()]))).unwrap();
    assert_eq!(bench.store().layers().unwrap().len(), 3);

    let removed = bench.images.remove("one").unwrap();
    assert_eq!(
        removed.layers.len(),
        1,
        "the base stays for the other image"
    );
    assert!(removed.id.is_some());
    assert_eq!(bench.store().layers().unwrap().len(), 2);

    // A container keeps the layers, though the image goes.
    let image = bench.images.find("two").unwrap();
    let sandbox = lcow_driver::LayerId::new("container").unwrap();
    let options = SandboxOptions {
        size: Some(16 << 20),
        ..SandboxOptions::default()
    };
    bench
        .store()
        .create_read_write(&sandbox, image.top(), &options)
        .unwrap();
    assert_eq!(bench.images.remove(&two.id()).unwrap().layers, []);
    assert_eq!(bench.store().layers().unwrap().len(), 3);
    bench.store().remove(&sandbox).unwrap();
    assert_eq!(bench.images.collect(&image.layers).unwrap().len(), 2);
    assert_eq!(bench.store().layers().unwrap(), []);
    let blobs = bench.store().images_dir().join("blobs/sha256");
    assert_eq!(
        std::fs::read_dir(blobs).unwrap().count(),
        0,
        "no document stays behind"
    );
}

#[test]
fn a_name_moves_to_the_newer_image() {
    let bench = Bench::new();
    let old = ImageSpec::new("demo", vec![tar(&[("old", b"")])]);
    let new = ImageSpec::new("demo", vec![tar(&[("new", b"")])]);
    bench.file(&archive(&docker(&old))).unwrap();
    bench.file(&archive(&docker(&new))).unwrap();
    let images = bench.images.list().unwrap();
    assert_eq!(images.len(), 2);
    assert_eq!(images[0].id.to_string(), new.id());
    assert_eq!(
        (images[1].id.to_string(), images[1].names.len()),
        (old.id(), 0),
        "the old one has lost its name"
    );

    // With two names only the one that is named goes.
    let options = lcow_image::LoadOptions {
        name: Some("second".parse().unwrap()),
        ..Default::default()
    };
    bench.stream_with(archive(&docker(&new)), &options).unwrap();
    let removed = bench.images.remove("demo").unwrap();
    assert_eq!((removed.names.len(), removed.id), (1, None));
    assert_eq!(
        bench.images.find("second").unwrap().id.to_string(),
        new.id()
    );
    assert_eq!(bench.images.remove(&old.id()[7..]).unwrap().layers.len(), 1);
}

#[test]
fn a_commit_adds_a_layer() {
    let bench = Bench::new();
    let spec = ImageSpec::new("demo", two_layers());
    bench.file(&archive(&oci(&[spec]))).unwrap();
    let base = bench.images.find("demo").unwrap();
    let sandbox = lcow_driver::LayerId::new("container").unwrap();
    let options = SandboxOptions {
        size: Some(16 << 20),
        ..SandboxOptions::default()
    };
    bench
        .store()
        .create_read_write(&sandbox, base.top(), &options)
        .unwrap();
    let name: Name = "changed".parse().unwrap();
    let options = CommitOptions {
        name: Some(name.clone()),
        created: "2024-01-01T00:00:00Z".to_owned(),
        created_by: Some("a test".to_owned()),
        ..CommitOptions::default()
    };
    let commit = || {
        bench
            .images
            .commit(&sandbox, &base, &options, &Cancel::new())
            .unwrap()
    };
    let image = commit();
    assert_eq!(image.layers.len(), 3);
    assert_eq!(image.layers[..2], base.layers);
    assert_eq!(image.config.history.len(), 3);
    assert_eq!(
        image.config.created.as_deref(),
        Some("2024-01-01T00:00:00Z")
    );
    assert_eq!(image.config.config, base.config.config);
    assert_eq!(
        commit().id,
        image.id,
        "the same changes at the same time are the same image"
    );
    assert_eq!(bench.images.find("changed").unwrap().id, image.id);
    bench.assert_clean();
}

#[test]
fn two_loads_at_once() {
    let bench = Bench::new();
    let bytes = archive(&oci(&[ImageSpec::new("demo", two_layers())]));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| bench.stream(bytes.clone())))
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap().unwrap()[0].image.layers.len(), 2);
        }
    });
    assert_eq!(bench.images.list().unwrap().len(), 1);
    assert_eq!(bench.store().layers().unwrap().len(), 2);
    bench.assert_clean();
}
