//! What every command has at hand: the global options, the store, the cancellation.

use std::path::PathBuf;

use anyhow::Result;
use lcow_driver::{Access, Cancel, OpenOptions, Options, Store};
use lcow_image::Images;

use crate::args::Global;
use crate::errors::hinted;
use crate::signals;

/// The global options, resolved.
#[derive(Debug)]
pub(crate) struct Context {
    pub json: bool,
    pub quiet: bool,
    root: Option<PathBuf>,
    options: Vec<String>,
    config: Option<PathBuf>,
    cancel: Cancel,
}

impl Context {
    pub(crate) fn new(global: Global) -> Self {
        let Global {
            root,
            options,
            config,
            json,
            quiet,
            debug: _,
        } = global;
        Self {
            json,
            quiet,
            root,
            options,
            config,
            cancel: Cancel::new(),
        }
    }

    /// The data root: as given, else by who asks.
    pub(crate) fn root(&self) -> Result<PathBuf> {
        if let Some(root) = &self.root {
            if root.as_os_str().is_empty() {
                return Err(hinted(
                    "the data root is an empty path",
                    "name a directory with --root or LCOW_ROOT",
                ));
            }
            return Ok(root.clone());
        }
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/lcow"));
        }
        let variable = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        if let Some(data) = variable("XDG_DATA_HOME") {
            return Ok(data.join("lcow"));
        }
        match variable("HOME") {
            Some(home) => Ok(home.join(".local/share/lcow")),
            None => Err(hinted(
                "there is no place for the data root: neither XDG_DATA_HOME nor HOME is set",
                "name a directory with --root or LCOW_ROOT",
            )),
        }
    }

    /// The `lcow.*` options, by `--opt`, the environment and the configuration file.
    pub(crate) fn options(&self) -> Result<Options> {
        let settings = crate::config::settings(&self.options, self.config.as_deref())?;
        Ok(Options::resolve(&settings)?)
    }

    /// Opens the store, shared with other commands.
    pub(crate) fn store(&self) -> Result<Store> {
        let open = OpenOptions {
            access: Access::Shared,
            options: self.options()?,
            ..OpenOptions::default()
        };
        let store = Store::open(&self.root()?, open)?;
        let recovery = store.recovery();
        if !recovery.is_empty() {
            tracing::info!(?recovery, "finished what a dead process left undone");
        }
        Ok(store)
    }

    /// Opens the store, and the images in it.
    pub(crate) fn images(&self) -> Result<Images> {
        Ok(Images::open(&self.store()?)?)
    }

    /// A cancellation that SIGINT, SIGTERM and SIGHUP set from now on. For commands that have something to clean up: others
    /// simply die of the signal.
    pub(crate) fn cancel_on_signals(&self) -> Result<Cancel> {
        signals::cancel(&self.cancel)?;
        Ok(self.cancel.clone())
    }

    /// A cancellation that nothing sets.
    pub(crate) fn no_cancel(&self) -> Cancel {
        self.cancel.clone()
    }
}
