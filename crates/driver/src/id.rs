//! Layer ids: names that can't leave the data root.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::DriverError;

/// Names in the data root that are not layers.
pub const RESERVED: &[&str] = &[
    "cache",
    "scratch",
    "uvm",
    "lock",
    "store.json",
    "images",
    "containers",
    "quarantine",
    "tmp",
];

/// The ending of a layer directory whose removal is in progress.
pub const REMOVING: &str = "-removing";

/// The longest id, in bytes: a directory's name.
pub const MAX_ID: usize = 255;

/// A layer's id, which is also the name of its directory in the data root.
///
/// Given as a path, in Windows or Unix form, the final component counts, as it did in the original driver; so an id
/// can't point anywhere but into the data root.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId(String);

impl LayerId {
    /// Takes an id, or the final component of a path to a layer.
    ///
    /// # Errors
    /// [`DriverError::InvalidId`] for an empty one, `.`, `..`, one over 255 bytes or with a NUL, and the data root's own
    /// names.
    pub fn new(id: &str) -> Result<Self, DriverError> {
        let refuse = |reason| {
            Err(DriverError::InvalidId {
                id: id.to_owned(),
                reason,
            })
        };
        // Trailing separators are not a component: "C:\layers\abc\" names abc.
        let name = id.trim_end_matches(['/', '\\']);
        let name = name.rsplit(['/', '\\']).next().unwrap_or(name);
        if name.is_empty() {
            return refuse("it is empty");
        }
        if name == "." || name == ".." {
            return refuse("it names a directory, not a layer");
        }
        if name.len() > MAX_ID {
            return refuse("it is longer than 255 bytes");
        }
        if name.contains('\0') {
            return refuse("it contains a NUL");
        }
        if RESERVED.contains(&name) {
            return refuse("the data root uses that name itself");
        }
        if name.ends_with(REMOVING) {
            return refuse("the ending \"-removing\" marks removals in progress");
        }
        Ok(Self(name.to_owned()))
    }

    /// Takes a parent's id: an empty string is no parent.
    ///
    /// # Errors
    /// As [`LayerId::new`], but for the empty string.
    pub fn parent(id: &str) -> Result<Option<Self>, DriverError> {
        if id.is_empty() {
            Ok(None)
        } else {
            Self::new(id).map(Some)
        }
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for LayerId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for LayerId {
    type Err = DriverError;
    fn from_str(s: &str) -> Result<Self, DriverError> {
        Self::new(s)
    }
}

impl TryFrom<String> for LayerId {
    type Error = DriverError;
    fn try_from(s: String) -> Result<Self, DriverError> {
        Self::new(&s)
    }
}

impl From<LayerId> for String {
    fn from(id: LayerId) -> Self {
        id.0
    }
}
