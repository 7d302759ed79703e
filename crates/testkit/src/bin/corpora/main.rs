//! `make corpora`: every file of the corpora through the real program, as whole processes.
//!
//! ```text
//! corpora LCOW     the program to try
//! ```
//!
//! Each file must end as its class demands (the README beside the archive says how), in at most 10 seconds and 64 MiB and four
//! times the file's size of memory, with a typed error or a result that equals what reference programs found, and
//! nothing left behind. Prints a table by class and every file that ended wrong, and exits with 1 if one did.

mod disks;
mod images;
mod process;
mod tars;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use lcow_testkit::{Corpora, Tree};
use process::{Failure, Lab};

/// What became of a file, in a word.
type Outcome = &'static str;

impl Failure {
    /// The error's kind, for the table.
    fn outcome(&self) -> Outcome {
        match self.kind.as_str() {
            "corrupt" => "corrupt",
            "unsupported" => "unsupported",
            "refused" => "refused",
            "not-a-tar" => "not a tar",
            _ => "other error",
        }
    }
}

/// A file of the corpora.
struct Case {
    /// `image`, `tar`, `no tar` or `disk`.
    group: &'static str,
    /// The class that the index puts it in.
    class: String,
    /// Its path below the corpora's folder.
    name: String,
    /// Its line in the index.
    columns: Vec<String>,
}

/// How it went.
struct Verdict {
    case: Case,
    outcome: Outcome,
    slowest: f64,
    peak: u64,
    wrong: Vec<String>,
}

/// The files of a tar that `lcow` wrote.
fn read_tar(path: &Path, hash: &dyn Fn(&[u8]) -> bool) -> io::Result<Tree> {
    lcow_testkit::read_tar(BufReader::with_capacity(1 << 18, File::open(path)?), hash)
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    let result = match first {
        Some(word) if word == process::HELPER => process::helper(args).map(|()| true),
        Some(lcow) => run(&PathBuf::from(lcow)),
        None => Err(io::Error::other("usage: corpora LCOW")),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("corpora: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(lcow: &Path) -> io::Result<bool> {
    let Some(corpora) = Corpora::find() else {
        lcow_testkit::report_skip("corpora", "no corpora");
        return Ok(true);
    };
    let lcow = lcow.canonicalize()?;
    let started = Instant::now();
    let expectations = tars::expectations(corpora)?;
    let mut cases = images::cases(corpora)?;
    cases.extend(tars::cases(corpora)?);
    cases.extend(disks::cases(corpora)?);
    if cases.is_empty() {
        return Err(io::Error::other("the indexes are empty"));
    }
    let cases: Vec<Mutex<Option<Case>>> = cases.into_iter().map(|c| Mutex::new(Some(c))).collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let verdicts = std::thread::scope(|scope| {
        let work = || {
            let mut verdicts = Vec::new();
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                let case = case.lock().ok().and_then(|mut case| case.take());
                if let Some(case) = case {
                    verdicts.push(judge(&lcow, corpora, &expectations, case)?);
                }
            }
            io::Result::Ok(verdicts)
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| io::Error::other("a thread"))??);
        }
        io::Result::Ok(all)
    })?;
    Ok(report(&verdicts, started.elapsed().as_secs_f64()))
}

fn judge(
    lcow: &Path,
    corpora: &Corpora,
    expectations: &tars::Expectations,
    case: Case,
) -> io::Result<Verdict> {
    let bytes = std::fs::metadata(corpora.files.join(&case.name))?.len();
    let mut lab = Lab::new(lcow, bytes)?;
    let outcome = match case.group {
        "image" => images::judge(corpora, &case, &mut lab),
        "disk" => disks::judge(corpora, &case, &mut lab),
        "tar" => tars::judge(corpora, expectations, &case, &mut lab),
        _ => tars::judge_nontar(corpora, &case, &mut lab),
    };
    let outcome = outcome.unwrap_or_else(|error| {
        lab.complain(format!("the result can't be read: {error}"));
        "?"
    });
    Ok(Verdict {
        case,
        outcome,
        slowest: lab.slowest,
        peak: lab.peak,
        wrong: lab.wrong,
    })
}

/// Prints the table and what is wrong; whether nothing is.
fn report(verdicts: &[Verdict], seconds: f64) -> bool {
    let mut classes: BTreeMap<(&str, &str), Vec<&Verdict>> = BTreeMap::new();
    for verdict in verdicts {
        let class = (verdict.case.group, verdict.case.class.as_str());
        classes.entry(class).or_default().push(verdict);
    }
    println!(
        "{:<48} {:>5} {:>5} {:>5} {:>9} {:>9}  how they end",
        "class", "files", "right", "wrong", "slowest", "peak"
    );
    for ((group, class), members) in &classes {
        let wrong = members.iter().filter(|v| !v.wrong.is_empty()).count();
        let slowest = members.iter().map(|v| v.slowest).fold(0.0, f64::max);
        let peak = members.iter().map(|v| v.peak).max().unwrap_or(0) >> 20;
        let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
        for verdict in members {
            *ends.entry(verdict.outcome).or_default() += 1;
        }
        let ends: Vec<_> = ends.iter().map(|(end, n)| format!("{n} {end}")).collect();
        println!(
            "{:<48} {:>5} {:>5} {wrong:>5} {slowest:>7.2} s {peak:>5} MiB  {}",
            format!("{group} {class}"),
            members.len(),
            members.len() - wrong,
            ends.join(", "),
        );
    }
    let wrong: Vec<_> = verdicts.iter().filter(|v| !v.wrong.is_empty()).collect();
    for verdict in &wrong {
        println!("\nwrong: {} ({})", verdict.case.name, verdict.case.class);
        for what in &verdict.wrong {
            println!("  {what}");
        }
    }
    println!(
        "\n{} of {} files end as they should ({seconds:.0} s)",
        verdicts.len() - wrong.len(),
        verdicts.len(),
    );
    wrong.is_empty()
}
