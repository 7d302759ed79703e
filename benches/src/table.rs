//! Runs the rows of a table in turn and prints it.

use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::measure::{self, Usage, median};

/// A row: a command that makes a file of a file.
pub(crate) struct Way {
    pub(crate) name: String,
    /// For `sh`: `$1` is the input, `$2` the output, `$3` the program.
    pub(crate) script: &'static str,
    /// `$3`.
    pub(crate) program: String,
    /// Runs once, whatever the number of rounds: it takes that long.
    pub(crate) slow: bool,
    /// Makes no file.
    pub(crate) discards: bool,
}

impl Way {
    pub(crate) fn new(name: &str, script: &'static str, program: impl ToString) -> Self {
        Self {
            name: name.to_owned(),
            script,
            program: program.to_string(),
            slow: false,
            discards: false,
        }
    }

    pub(crate) fn slow(mut self) -> Self {
        self.slow = true;
        self
    }

    pub(crate) fn discards(mut self) -> Self {
        self.discards = true;
        self
    }
}

/// What a row came to, as medians.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) cpu: f64,
    pub(crate) wall: f64,
    /// The least CPU time of any run: what is left when others use the machine too.
    pub(crate) least: f64,
    pub(crate) peak: f64,
    /// The size of what was made, in bytes.
    pub(crate) made: u64,
}

/// Runs all rows, interleaved, and prints the table. Round 0 warms the page cache and is not counted; slow rows have only that.
pub(crate) fn run(title: &str, input: &Path, rounds: usize, ways: &[Way]) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir_in(input.parent().context("the input has no folder")?)?;
    let out = dir.path().join("out");
    let mut runs: Vec<Vec<Usage>> = vec![Vec::new(); ways.len()];
    let mut made = vec![0; ways.len()];
    for round in 0..=rounds {
        for (i, way) in ways.iter().enumerate() {
            if way.slow && round > 0 {
                continue;
            }
            let command = [
                "sh".to_owned(),
                "-c".to_owned(),
                way.script.to_owned(),
                "sh".to_owned(),
                input.display().to_string(),
                out.display().to_string(),
                way.program.clone(),
            ];
            let usage = measure::run(&command).with_context(|| way.name.clone())?;
            if !way.discards {
                made[i] = std::fs::metadata(&out)
                    .with_context(|| format!("{} made nothing", way.name))?
                    .len();
                std::fs::remove_file(&out)?;
            }
            if round > 0 || way.slow {
                runs[i].push(usage);
            }
        }
    }
    let rows: Vec<Row> = runs
        .iter()
        .zip(made)
        .map(|(runs, made)| Row {
            cpu: median(runs.iter().map(Usage::cpu)),
            wall: median(runs.iter().map(|u| u.wall)),
            least: runs.iter().map(Usage::cpu).fold(f64::INFINITY, f64::min),
            peak: median(runs.iter().map(|u| u.peak_bytes as f64)),
            made,
        })
        .collect();
    let size = std::fs::metadata(input)?.len();
    println!(
        "\n{title}: {:.0} MB, medians of {rounds} interleaved runs\n",
        size as f64 / 1e6
    );
    let names = ways.iter().map(|way| match way.slow {
        true => format!("{} (once)", way.name),
        false => way.name.clone(),
    });
    print(names, &rows);
    Ok(rows)
}

/// Prints rows with ratios to the first.
fn print(names: impl Iterator<Item = String>, rows: &[Row]) {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "", "CPU s", "least", "wall s", "peak MB", "made MB", "CPU ×", "least ×", "wall ×",
    ]);
    for (name, row) in names.zip(rows) {
        let ratio = |of: fn(&Row) -> f64| format!("{:.2}", of(row) / of(&rows[0]));
        let figures = [
            format!("{:.3}", row.cpu),
            format!("{:.3}", row.least),
            format!("{:.3}", row.wall),
            format!("{:.0}", row.peak / 1e6),
            match row.made {
                0 => String::new(),
                made => format!("{:.0}", made as f64 / 1e6),
            },
            ratio(|r| r.cpu),
            ratio(|r| r.least),
            ratio(|r| r.wall),
        ];
        let mut cells = vec![Cell::new(name)];
        cells.extend(figures.map(|f| Cell::new(f).set_alignment(CellAlignment::Right)));
        table.add_row(cells);
    }
    println!("{table}");
}
