use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::oracle::run;

/// The workspace's root: the folder that holds `Cargo.lock`.
///
/// # Panics
/// If the crate was moved out of `crates/`.
#[must_use]
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/testkit lies two levels down")
        .to_owned()
}

/// Images and tars that other projects made, unpacked; see the README beside the archive for what each class means.
#[derive(Debug)]
pub struct Corpora {
    /// The unpacked files, in one folder per origin.
    pub files: PathBuf,
    /// The folder of the archive itself, with the `INDEX.*.tsv` and `tar-expect.json.zst`.
    pub index: PathBuf,
}

impl Corpora {
    /// Finds the archive in `$LCOW_CORPORA` or `../shared/corpora` beside the workspace, and unpacks it once for all tests.
    /// `None`: it is not on this machine.
    ///
    /// # Panics
    /// If the archive is there but can't be unpacked.
    #[must_use]
    pub fn find() -> Option<&'static Self> {
        static FOUND: OnceLock<Option<Corpora>> = OnceLock::new();
        FOUND.get_or_init(Self::unpack).as_ref()
    }

    fn unpack() -> Option<Self> {
        let index = std::env::var_os("LCOW_CORPORA")
            .map_or_else(|| workspace_root().join("../shared/corpora"), PathBuf::from);
        let archive = index.join("public.tar.zst");
        let length = std::fs::metadata(&archive).ok()?.len();
        let place = std::env::temp_dir().join(format!(
            "lcow-corpora-{}-{length}",
            rustix::process::getuid().as_raw()
        ));
        if !place.is_dir() {
            // Several test binaries may do this at once: each unpacks for itself, and the first rename wins.
            let dir = tempfile::tempdir_in(std::env::temp_dir()).expect("a temporary directory");
            run(
                "tar",
                [
                    "--zstd".as_ref(),
                    "-xSf".as_ref(),
                    archive.as_os_str(),
                    "-C".as_ref(),
                    dir.path().as_ref(),
                ],
            );
            if let Err(e) = std::fs::rename(dir.path(), &place) {
                assert!(place.is_dir(), "{}: {e}", place.display());
            } else {
                let _ = dir.keep();
            }
        }
        Some(Self {
            files: place,
            index,
        })
    }
}
