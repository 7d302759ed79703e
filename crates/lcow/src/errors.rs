//! Errors for people.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use lcow_driver::DriverError;
use lcow_image::ImageError;
use lcow_uvm::UvmError;

use crate::output;
use crate::signals;

/// An error of the command itself, with what to do next.
#[derive(Debug)]
pub(crate) struct Hinted {
    message: String,
    hint: Option<String>,
    code: Option<u8>,
    source: Option<anyhow::Error>,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Hinted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}

/// An error that says what to do next.
pub(crate) fn hinted(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    let hint = Some(hint.into()).filter(|h: &String| !h.is_empty());
    Hinted {
        message: message.into(),
        hint,
        code: None,
        source: None,
    }
    .into()
}

/// An error that ends the process with a code of its own.
pub(crate) fn coded(
    code: u8,
    source: impl Into<anyhow::Error>,
    message: impl Into<String>,
) -> anyhow::Error {
    Hinted {
        message: message.into(),
        hint: None,
        code: Some(code),
        source: Some(source.into()),
    }
    .into()
}

/// Shows an error, and gives the exit code that goes with it.
pub(crate) fn report(error: &anyhow::Error, debug: bool, in_run: bool) -> ExitCode {
    if output::is_closed() {
        signals::die_of(signal_hook::consts::SIGPIPE);
    }
    if let Some(signal) = signals::received()
        && is_cancelled(error)
    {
        eprintln!("lcow: interrupted");
        signals::die_of(signal);
    }
    eprintln!("lcow: {}", text(error));
    if let Some(hint) = hint(error) {
        eprintln!("hint: {hint}");
    }
    if debug {
        for (depth, cause) in error.chain().enumerate() {
            eprintln!("  {depth}: {cause:?}");
        }
        if let Some(bundle) = error
            .chain()
            .find_map(|e| e.downcast_ref::<UvmError>()?.bundle())
        {
            eprintln!("  diagnostics: {}", bundle.display());
        }
    }
    let code = error.chain().find_map(|e| e.downcast_ref::<Hinted>()?.code);
    ExitCode::from(code.unwrap_or(if in_run { 125 } else { 1 }))
}

/// The error and its causes on one line, none of them twice.
pub(crate) fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let next = cause.to_string();
        let next = next.trim();
        if next.is_empty() || text.contains(next) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(next);
    }
    text
}

fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|e| {
        if let Some(own) = e.downcast_ref::<Hinted>() {
            return own.hint.clone();
        }
        if let Some(e) = e.downcast_ref::<ImageError>() {
            return match e {
                ImageError::NotFound { .. } => Some(
                    "`lcow images` lists the images there are; `lcow load FILE` adds one"
                        .to_owned(),
                ),
                ImageError::Ambiguous { .. } => {
                    Some("give more of the name or of the id".to_owned())
                }
                e => e.hint(),
            };
        }
        if let Some(e) = e.downcast_ref::<DriverError>() {
            return e.hint();
        }
        if let Some(e) = e.downcast_ref::<UvmError>() {
            return e.hint().map(str::to_owned);
        }
        match e.downcast_ref::<io::Error>()?.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Some("free some space on that file system and try again".to_owned())
            }
            _ => None,
        }
    })
}

fn is_cancelled(error: &anyhow::Error) -> bool {
    error.chain().any(|e| {
        matches!(e.downcast_ref(), Some(DriverError::Cancelled))
            || matches!(e.downcast_ref(), Some(ImageError::Cancelled))
            || e.downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::Interrupted)
    })
}
