//! What the tests of every room share: skipping out loud, the programs that serve as oracles, and the test corpora.
//!
//! Nothing here is part of the product. An oracle runs the real program (`e2fsck`, `mount`, `qemu-img`, GNU tar) and
//! panics with all of its output when it disagrees, since a test is the only caller.

mod ager;
mod archive;
mod corpora;
mod oracle;
mod original;
mod pages;
mod tree;

pub use ager::Ager;
pub use archive::read_tar;
pub use corpora::{Corpora, workspace_root};
pub use oracle::{LoopMount, e2fsck, e2fsck_aged, have, is_root, run};
pub use original::{original_layer, original_sandbox};
pub use pages::{page_table, page_tables};
pub use tree::{Entry, Tree, differences, hex, kernel_tree};

/// Ends the test with a line that says why it can't run here.
///
/// `make test` collects these lines and fails on any that the machine must not give; see `scripts/test.sh`.
///
/// ```no_run
/// fn needs_root() {
///     if !lcow_testkit::is_root() {
///         lcow_testkit::skip!("not root: can't mount");
///     }
/// }
/// ```
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        $crate::report_skip(module_path!(), &format!($($why)*));
        return;
    }};
}

/// Writes a skip to standard error and, if `LCOW_SKIPS` names a file, adds it there: the test harness hides the output of
/// tests that pass, and a skip must not be hidden.
pub fn report_skip(place: &str, why: &str) {
    use std::io::Write;
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("skipped: {place}: {test}: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("LCOW_SKIPS")
        && let Ok(mut file) = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path)
    {
        // A lost line only weakens the report of a test that did not run anyway.
        let _ = file.write_all(line.as_bytes());
    }
}
