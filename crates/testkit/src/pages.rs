use crate::workspace_root;

/// The rows of the first table in a page under `docs/`, without its heading and rule; cells trimmed, back-quotes removed.
///
/// For tests that hold a format's page against its constants.
///
/// # Panics
/// If the page can't be read or has no table.
#[must_use]
pub fn page_table(page: &str) -> Vec<Vec<String>> {
    let path = workspace_root().join("docs").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let rows: Vec<Vec<String>> = text
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().replace('`', ""))
                .collect()
        })
        .collect();
    assert!(!rows.is_empty(), "{} has no table", path.display());
    rows
}
