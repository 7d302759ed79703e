//! The configuration file: options as TOML, under the names that they have on the command line.
//!
//! ```toml
//! lcow.memory = 512
//! lcow.sandboxformat = "vhdx"
//! ```

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lcow_driver::{Origin, Setting};
use toml::{Table, Value};

use crate::errors::hinted;

/// The file's name in a directory of configuration.
const NAME: &str = "lcow/config.toml";

/// All options, from wherever they were given.
pub(crate) fn settings(given: &[String], file: Option<&Path>) -> Result<Vec<Setting>> {
    let mut settings = match file {
        Some(path) => {
            let read = std::fs::read_to_string(path);
            parse(
                path,
                &read.with_context(|| format!("reading {}", path.display()))?,
            )?
        }
        None => match place(std::env::var_os) {
            Some(path) => match std::fs::read_to_string(&path) {
                Ok(text) => parse(&path, &text)?,
                // Nobody needs one.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
            },
            None => Vec::new(),
        },
    };
    // What is not UTF-8 is no option's name, and no option's value.
    let variables = std::env::vars_os().map(|(name, value)| {
        (
            name.to_string_lossy().into(),
            value.to_string_lossy().into(),
        )
    });
    settings.extend(Setting::from_environment(variables));
    for option in given {
        settings.push(Setting::parse(option)?);
    }
    Ok(settings)
}

/// Where the file is if none is named: `/etc` for root, else where the XDG base directory specification has it.
fn place(variable: impl Fn(&'static str) -> Option<OsString>) -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(Path::new("/etc").join(NAME));
    }
    let directory = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let config = directory("XDG_CONFIG_HOME").or_else(|| Some(directory("HOME")?.join(".config")));
    Some(config?.join(NAME))
}

fn parse(path: &Path, text: &str) -> Result<Vec<Setting>> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        hinted(
            format!(
                "{} is no TOML: {}",
                path.display(),
                error.to_string().trim()
            ),
            "options are given as in `lcow.memory = 512`",
        )
    })?;
    let mut settings = Vec::new();
    collect(path, "", &table, &mut settings)?;
    Ok(settings)
}

/// Tables only spell the dots in keys differently.
fn collect(path: &Path, before: &str, table: &Table, into: &mut Vec<Setting>) -> Result<()> {
    for (name, value) in table {
        let key = format!("{before}{name}");
        let value = match value {
            Value::Table(table) => {
                collect(path, &format!("{key}."), table, into)?;
                continue;
            }
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Boolean(truth) => truth.to_string(),
            other => {
                return Err(hinted(
                    format!("option {key} in {} is {}", path.display(), other.type_str()),
                    "an option is a string, a whole number, true or false",
                ));
            }
        };
        into.push(Setting {
            key,
            value,
            origin: Origin::File(path.to_owned()),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let settings = parse(Path::new("f.toml"), text).unwrap();
        settings.into_iter().map(|s| (s.key, s.value)).collect()
    }

    #[test]
    fn tables_and_dots_are_the_same() {
        let expected = [
            ("lcow.cpus", "2"),
            ("lcow.kernel", "k"),
            ("lcow.verity", "true"),
        ];
        let expected = expected.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let dotted = "lcow.verity = true\nlcow.cpus = 2\nlcow.kernel = \"k\"";
        let table = "[lcow]\nverity = true\ncpus = 2\nkernel = 'k' # a comment";
        for text in [dotted, table] {
            let mut found = pairs(text);
            found.sort();
            assert_eq!(found, expected);
        }
        assert!(pairs("").is_empty());
        for bad in [
            "lcow.memory = [1]",
            "lcow.memory = 1.5",
            "lcow.memory",
            "= 3",
        ] {
            let error = parse(Path::new("f.toml"), bad).unwrap_err().to_string();
            assert!(error.contains("f.toml"), "{error}");
        }
    }
}
