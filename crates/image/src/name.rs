//! Names of images: `repository[:tag]`, normalised the way the field does.

use std::fmt;
use std::str::FromStr;

use crate::ImageError;

/// The longest name, tag included, in bytes: the distribution specification's bound on a repository plus its tag.
const MAX_REPOSITORY: usize = 255;
/// The longest tag, in bytes (distribution specification: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`).
const MAX_TAG: usize = 128;
/// What a name without a tag means.
pub const DEFAULT_TAG: &str = "latest";

/// An image's name, with its tag.
///
/// `demo`, `demo:latest`, `docker.io/library/demo` and `index.docker.io/library/demo:latest` are the same name and are
/// shown as `demo:latest`.
///
/// ```
/// use lcow_image::Name;
///
/// let name: Name = "docker.io/library/demo".parse()?;
/// assert_eq!(name.to_string(), "demo:latest");
/// assert_eq!(name.full(), "docker.io/library/demo:latest");
/// # Ok::<(), lcow_image::ImageError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    repository: String,
    tag: String,
}

impl Name {
    /// The part before the tag, without the default registry's name.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The name with the registry that is meant when none is given, as other programs store it.
    #[must_use]
    pub fn full(&self) -> String {
        let Self { repository, tag } = self;
        match repository.split_once('/') {
            Some((host, _)) if is_host(host) => format!("{repository}:{tag}"),
            Some(_) => format!("docker.io/{repository}:{tag}"),
            None => format!("docker.io/library/{repository}:{tag}"),
        }
    }

    /// Whether a word is a tag rather than a repository: `latest`, or a version such as `3.12` or `v1.0-rc1`.
    pub(crate) fn looks_like_tag(word: &str) -> bool {
        let version = word.strip_prefix('v').unwrap_or(word);
        word == DEFAULT_TAG || version.starts_with(|c: char| c.is_ascii_digit())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

impl FromStr for Name {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let refuse = |reason| ImageError::InvalidName {
            name: text.to_owned(),
            reason,
        };
        if text.contains('@') {
            return Err(refuse("a name given to an image has a tag and no digest"));
        }
        // A colon before the last slash is a registry's port.
        let (repository, tag) = match text.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (text, DEFAULT_TAG),
        };
        let mut tag_bytes = tag.bytes();
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if tag.is_empty() {
            return Err(refuse("there is nothing after the colon"));
        }
        if tag.len() > MAX_TAG {
            return Err(refuse("a tag has at most 128 characters"));
        }
        if !tag_bytes.next().is_some_and(word)
            || !tag_bytes.all(|b| word(b) || b == b'.' || b == b'-')
        {
            return Err(refuse(
                "a tag is made of letters, digits and _ . - and starts with none of . -",
            ));
        }
        let mut repository = repository;
        for host in ["docker.io/", "index.docker.io/"] {
            if let Some(rest) = repository.strip_prefix(host) {
                repository = rest.strip_prefix("library/").unwrap_or(rest);
            }
        }
        if repository.is_empty() {
            return Err(refuse("it is empty"));
        }
        if repository.len() > MAX_REPOSITORY {
            return Err(refuse("a name has at most 255 characters"));
        }
        let path = match repository.split_once('/') {
            Some((host, path)) if is_host(host) => {
                if !valid_host(host) {
                    return Err(refuse(
                        "the registry before the first slash is not a host[:port]",
                    ));
                }
                path
            }
            _ => repository,
        };
        if !path.split('/').all(valid_component) {
            return Err(refuse(
                "a name is made of lower-case letters and digits, separated by single . _ - or /",
            ));
        }
        Ok(Self {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
        })
    }
}

/// The first component is a registry if it could not be anything else (distribution/reference).
fn is_host(component: &str) -> bool {
    component.contains(['.', ':'])
        || component == "localhost"
        || component.bytes().any(|b| b.is_ascii_uppercase())
}

fn valid_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.split('.').all(label) && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn valid_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !plain(*first) || !plain(*last) {
        return false;
    }
    component
        .split(|c: char| plain(u8::try_from(c).unwrap_or(0)))
        .all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalised() {
        for (given, shown, full) in [
            ("demo", "demo:latest", "docker.io/library/demo:latest"),
            ("demo:1.0", "demo:1.0", "docker.io/library/demo:1.0"),
            (
                "docker.io/library/demo",
                "demo:latest",
                "docker.io/library/demo:latest",
            ),
            (
                "docker.io/me/demo",
                "me/demo:latest",
                "docker.io/me/demo:latest",
            ),
            (
                "library/demo",
                "library/demo:latest",
                "docker.io/library/demo:latest",
            ),
            (
                "localhost:5000/a/b",
                "localhost:5000/a/b:latest",
                "localhost:5000/a/b:latest",
            ),
            (
                "quay.io/a__b/c-d.e:V_1",
                "quay.io/a__b/c-d.e:V_1",
                "quay.io/a__b/c-d.e:V_1",
            ),
        ] {
            let name: Name = given.parse().unwrap();
            if given != "library/demo" {
                assert_eq!(name.full(), full, "{given}");
            }
            assert_eq!(name.to_string(), shown, "{given}");
            assert_eq!(name.to_string().parse::<Name>().unwrap(), name, "{given}");
        }
    }

    #[test]
    fn refused() {
        let long = "a".repeat(256);
        for bad in [
            "",
            ":",
            "demo:",
            "Demo",
            "de mo",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a_",
            "../a",
            "a:.x",
            "a@sha256:00",
            "ho_st.x/a",
            "localhost:99999/a",
            "é",
            long.as_str(),
        ] {
            let error = bad.parse::<Name>().unwrap_err();
            assert!(
                matches!(error, ImageError::InvalidName { .. }),
                "{bad}: {error}"
            );
        }
        assert!(format!("a:{}", "t".repeat(129)).parse::<Name>().is_err());
    }

    #[test]
    fn tags_told_from_names() {
        for tag in ["latest", "3.12", "v1", "1.0-rc1"] {
            assert!(Name::looks_like_tag(tag), "{tag}");
        }
        for name in ["demo", "vault", "alpine"] {
            assert!(!Name::looks_like_tag(name), "{name}");
        }
    }
}
