//! Errors for people.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use lcow_disk::ContainerError;
use lcow_disk::verity::VerityError;
use lcow_disk::vhd::VhdError;
use lcow_disk::vhdx::VhdxError;
use lcow_driver::DriverError;
use lcow_ext4::reader::{ReadError, ReadErrorKind};
use lcow_image::ImageError;
use lcow_layer::ErrorKind;
use lcow_layer::apply::ApplyError;
use lcow_layer::export::{ExactError, ExportError};
use lcow_layer::tree::TreeError;
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

/// A library's error on one line, with what to do next; it keeps its kind.
pub(crate) fn explained(source: anyhow::Error, hint: &str) -> anyhow::Error {
    Hinted {
        message: text(&source),
        hint: Some(hint.to_owned()).filter(|h| !h.is_empty()),
        code: None,
        source: Some(source),
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

/// Shows an error, and gives the exit code that goes with it. `json`: as one line, `{"error": {kind, message, hint}}`.
pub(crate) fn report(error: &anyhow::Error, json: bool, debug: bool, in_run: bool) -> ExitCode {
    if output::is_closed() {
        signals::die_of(signal_hook::consts::SIGPIPE);
    }
    if let Some(signal) = signals::received()
        && is_cancelled(error)
    {
        eprintln!("lcow: interrupted");
        signals::die_of(signal);
    }
    if json {
        let error = serde_json::json!({
            "kind": kind(error),
            "message": text(error),
            "hint": hint(error),
        });
        eprintln!("{}", serde_json::json!({ "error": error }));
    } else {
        eprintln!("lcow: {}", text(error));
        if let Some(hint) = hint(error) {
            eprintln!("hint: {hint}");
        }
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

/// The class of an error, for programs: that of the outermost cause that has one, else `failed`.
fn kind(error: &anyhow::Error) -> &'static str {
    error.chain().find_map(kind_of).unwrap_or("failed")
}

fn kind_of(error: &(dyn Error + 'static)) -> Option<&'static str> {
    use lcow_driver::ErrorKind as Store;
    use lcow_image::ErrorKind as Image;
    let layer = |kind| match kind {
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Refused => "refused",
        ErrorKind::Io => "io",
    };
    if let Some(e) = error.downcast_ref::<ApplyError>() {
        return Some(match e {
            ApplyError::NotATar { .. } => "not-a-tar",
            e => layer(e.kind()),
        });
    }
    if let Some(e) = error.downcast_ref::<ReadError>() {
        return Some(match e.kind() {
            ReadErrorKind::Corrupt => "corrupt",
            ReadErrorKind::Unsupported => "unsupported",
            ReadErrorKind::Usage => "not-found",
            _ => "io",
        });
    }
    if let Some(e) = error.downcast_ref::<TreeError>() {
        return Some(match e {
            TreeError::NotFound { .. } => "not-found",
            e => layer(e.kind()),
        });
    }
    if let Some(e) = error.downcast_ref::<ExportError>() {
        return Some(layer(e.kind()));
    }
    if let Some(e) = error.downcast_ref::<ExactError>() {
        return Some(layer(e.kind()));
    }
    let vhd = |e: &VhdError| match e {
        VhdError::Corrupt { .. } => "corrupt",
        VhdError::Unsupported { .. } => "unsupported",
        VhdError::Differencing | VhdError::Size { .. } => "refused",
        VhdError::Io { .. } => "io",
    };
    let vhdx = |e: &VhdxError| match e {
        VhdxError::Corrupt { .. } => "corrupt",
        VhdxError::Unsupported { .. } => "unsupported",
        VhdxError::Differencing | VhdxError::Refused { .. } => "refused",
        VhdxError::Io { .. } => "io",
    };
    if let Some(e) = error.downcast_ref::<VhdError>() {
        return Some(vhd(e));
    }
    if let Some(e) = error.downcast_ref::<VhdxError>() {
        return Some(vhdx(e));
    }
    if let Some(e) = error.downcast_ref::<ContainerError>() {
        return Some(match e {
            ContainerError::Vhd(e) => vhd(e),
            ContainerError::Vhdx(e) => vhdx(e),
        });
    }
    if let Some(e) = error.downcast_ref::<VerityError>() {
        return Some(match e {
            VerityError::Corrupt { .. }
            | VerityError::Mismatch { .. }
            | VerityError::Root { .. } => "corrupt",
            VerityError::Unsupported { .. } => "unsupported",
            VerityError::Size { .. } | VerityError::Salt { .. } => "refused",
            VerityError::Io { .. } => "io",
        });
    }
    if let Some(e) = error.downcast_ref::<ImageError>() {
        return match e.kind() {
            Image::NotAnImage => Some("not-an-image"),
            Image::Corrupt | Image::Truncated => Some("corrupt"),
            Image::Unsupported => Some("unsupported"),
            Image::Refused => Some("refused"),
            Image::NotFound => Some("not-found"),
            Image::Io => Some("io"),
            // The store's own error comes further down the chain.
            _ => None,
        };
    }
    if let Some(e) = error.downcast_ref::<DriverError>() {
        return match e.kind() {
            Store::NotFound => Some("not-found"),
            Store::Corrupt => Some("corrupt"),
            Store::Unsupported => Some("unsupported"),
            Store::Refused => Some("refused"),
            Store::DiskFull | Store::Io => Some("io"),
            _ => None,
        };
    }
    let e = error.downcast_ref::<io::Error>()?;
    // Reading from a container fails with the container's error in it.
    e.get_ref().and_then(|e| kind_of(e)).or(Some("io"))
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
