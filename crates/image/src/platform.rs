//! Which of an index's images is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ImageError;

/// An operating system and an architecture, in the spelling of images (Go's `GOOS` and `GOARCH`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// As `linux`.
    #[serde(default)]
    pub os: String,
    /// As `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// As `v8`; only some architectures have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this machine's architecture.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// Whether an image for `offered` runs where `self` is asked for. A missing variant on either side fits any.
    #[must_use]
    pub fn accepts(&self, offered: &Self) -> bool {
        self.os == offered.os
            && self.architecture == offered.architecture
            && match (&self.variant, &offered.variant) {
                (Some(wanted), Some(offered)) => wanted == offered,
                _ => true,
            }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = ImageError;

    /// `OS/ARCHITECTURE[/VARIANT]`, or the architecture alone.
    fn from_str(text: &str) -> Result<Self, ImageError> {
        let mut parts = text.split('/').map(str::to_ascii_lowercase);
        let all: Vec<_> = parts.by_ref().collect();
        if all.iter().any(String::is_empty) {
            return Err(ImageError::InvalidPlatform {
                platform: text.to_owned(),
            });
        }
        let (os, architecture, variant) = match all.as_slice() {
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os.as_str(), architecture, None),
            [os, architecture, variant] => (os.as_str(), architecture, Some(variant.clone())),
            _ => {
                return Err(ImageError::InvalidPlatform {
                    platform: text.to_owned(),
                });
            }
        };
        // What people call them, beside Go's names.
        let architecture = match architecture.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted() {
        let arm: Platform = "linux/arm64/v8".parse().unwrap();
        assert!(arm.accepts(&"arm64".parse().unwrap()));
        assert!(arm.accepts(&"linux/aarch64/v8".parse().unwrap()));
        assert!(!arm.accepts(&"linux/arm64/v9".parse().unwrap()));
        assert!(!arm.accepts(&"linux/amd64".parse().unwrap()));
        assert!(!arm.accepts(&"windows/arm64".parse().unwrap()));
        for bad in ["", "linux/", "/amd64", "a/b/c/d"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
