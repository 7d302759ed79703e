//! Standard output: results as text, tables or JSON.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// Whether standard output was closed by whoever read it: then there is nothing to report, and the end is a quiet one.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether writing to standard output failed because nobody reads it any more.
pub(crate) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Standard output, whose closing is remembered.
pub(crate) struct Stdout(StdoutLock<'static>);

/// Standard output.
pub(crate) fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

fn mark(error: io::Error) -> io::Error {
    // The error itself may be turned into others on its way.
    if error.kind() == io::ErrorKind::BrokenPipe {
        CLOSED.store(true, Ordering::Relaxed);
    }
    error
}

impl Write for Stdout {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf).map_err(mark)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(mark)
    }
}

/// One line of text.
pub(crate) fn line(text: impl fmt::Display) -> Result<()> {
    let mut out = stdout();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// A value as JSON.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    // Standard output is written out at each line's end, and a listing has many.
    let mut out = BufWriter::new(stdout());
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

/// A table; `right` are the columns of numbers. On a terminal it fits the width.
pub(crate) fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec());
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut out = stdout();
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()?;
    Ok(())
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().si().to_string()
}

/// How long ago a time was, for people.
pub(crate) fn ago(time: Option<&str>) -> String {
    let Some(time) = time else {
        return "-".to_owned();
    };
    let Ok(then) = time.parse::<Timestamp>() else {
        return time.to_owned();
    };
    let seconds = SignedDuration::as_secs(&Timestamp::now().duration_since(then));
    let (count, unit) = match seconds {
        ..0 => return then.strftime("%Y-%m-%d").to_string(),
        0..60 => return "just now".to_owned(),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        86_400..2_592_000 => (seconds / 86_400, "day"),
        2_592_000..31_536_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// The time now, or what `SOURCE_DATE_EPOCH` says it is, in RFC 3339
/// (<https://reproducible-builds.org/specs/source-date-epoch/>).
pub(crate) fn now() -> String {
    let fixed = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse::<i64>().ok())
        .and_then(|seconds| Timestamp::from_second(seconds).ok());
    let time = fixed.unwrap_or_else(Timestamp::now);
    time.to_string()
}

/// Bytes as text on one line: what is not printable, or would be mistaken for an escape, is escaped.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\r' => text.push_str("\\r"),
                c if c.is_control() => text.extend(c.escape_unicode()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_on_their_line() {
        assert_eq!(printable(b"a b/\xc3\xa9"), "a b/\u{e9}");
        assert_eq!(printable(b"a\nb\\\x1b[0m\xff"), "a\\nb\\\\\\u{1b}[0m\\xff");
    }

    #[test]
    fn times_for_people() {
        assert_eq!(ago(None), "-");
        assert_eq!(ago(Some("not a time")), "not a time");
        let hours = Timestamp::now() - SignedDuration::from_secs(7_300);
        assert_eq!(ago(Some(&hours.to_string())), "2 hours ago");
    }
}
