//! Runs every seed and every input that once found something.

use std::path::Path;

use lcow_fuzz::TARGETS;

#[test]
fn seeds_and_regressions_pass() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for target in TARGETS {
        let mut count = 0;
        for kind in ["seeds", "regressions"] {
            let Ok(folder) = std::fs::read_dir(root.join(kind).join(target.name)) else {
                continue;
            };
            let mut files: Vec<_> = folder.map(|file| file.unwrap().path()).collect();
            files.sort();
            for file in files {
                let input = std::fs::read(&file).unwrap();
                if std::panic::catch_unwind(|| target.run(&input)).is_err() {
                    panic!("{}: {}", target.name, file.display());
                }
                count += 1;
            }
        }
        assert!(count > 0, "{} has no seeds", target.name);
        println!("{}: {count} inputs", target.name);
    }
}
