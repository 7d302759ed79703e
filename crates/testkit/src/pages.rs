use crate::workspace_root;

/// The rows of the first table in a page under `docs/`, without its heading and rule; cells trimmed, back-quotes removed.
///
/// For tests that hold a format's page against its constants.
///
/// # Panics
/// If the page can't be read or has no table.
#[must_use]
pub fn page_table(page: &str) -> Vec<Vec<String>> {
    page_tables(page).swap_remove(0)
}

/// All tables of a page, each as [`page_table`] gives the first.
///
/// # Panics
/// If the page can't be read or has no table.
#[must_use]
pub fn page_tables(page: &str) -> Vec<Vec<Vec<String>>> {
    let path = workspace_root().join("docs").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let lines: Vec<&str> = text.lines().collect();
    let tables: Vec<_> = lines
        .split(|line| !line.starts_with('|'))
        .filter(|lines| lines.len() > 2)
        .map(|lines| lines.iter().skip(2).map(|line| cells(line)).collect())
        .collect();
    assert!(!tables.is_empty(), "{} has no table", path.display());
    tables
}

fn cells(line: &str) -> Vec<String> {
    line.trim_matches('|')
        .split('|')
        .map(|cell| cell.trim().replace('`', ""))
        .collect()
}
