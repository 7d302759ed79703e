//! Containers: `containers/<id>.json` in the data root, beside the sandbox of the same id.
//!
//! The record is written by the process that runs the container. Whether that process still lives is never taken from the
//! record alone: a process id counts only with the time the process started, and the boot that was.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use lcow_driver::{DriverError, LayerId, Store};
use lcow_image::{Image, Images};
use lcow_layer::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::errors::hinted;

/// What a container is, and how it went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Container {
    /// 64 hexadecimal digits; also the id of its sandbox.
    pub id: LayerId,
    pub name: String,
    /// The image's name at the time.
    pub image: String,
    pub image_id: Digest,
    /// The image's layers, base first, to give up with the last container that needs them.
    pub layers: Vec<LayerId>,
    pub command: Vec<String>,
    /// RFC 3339.
    pub created: String,
    #[serde(default)]
    pub started: Option<String>,
    #[serde(default)]
    pub finished: Option<String>,
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The process that runs it.
    #[serde(default)]
    pub runner: Option<Runner>,
}

/// A process, told apart from a later one of the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Runner {
    pub pid: u32,
    /// Clock ticks since boot (proc_pid_stat(5), field 22).
    pub start: u64,
    /// Which boot.
    pub boot: String,
}

impl Runner {
    /// This process.
    pub(crate) fn this() -> Option<Self> {
        Self::of(std::process::id())
    }

    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command may hold spaces and parentheses; what follows the last one does not.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        if fields.next() == Some("Z") {
            return None;
        }
        let start = fields.nth(18)?.parse().ok()?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Some(Self {
            pid,
            start,
            boot: boot.trim().to_owned(),
        })
    }

    pub(crate) fn lives(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now == *self)
    }
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its process is being prepared.
    Starting,
    Running,
    Exited,
    /// Who ran it died before it ended.
    Lost,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Lost => "lost",
        }
    }

    pub(crate) fn is_alive(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }
}

impl Container {
    pub(crate) fn state(&self) -> State {
        let lives = self.runner.as_ref().is_some_and(Runner::lives);
        match (lives, &self.started, &self.finished) {
            (_, _, Some(_)) => State::Exited,
            (true, Some(_), None) => State::Running,
            (true, None, None) => State::Starting,
            (false, _, None) => State::Lost,
        }
    }

    pub(crate) fn short_id(&self) -> &str {
        self.id.as_str().get(..12).unwrap_or(self.id.as_str())
    }
}

/// The containers of a store.
pub(crate) struct Containers<'a> {
    store: &'a Store,
}

impl<'a> Containers<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self { store }
    }

    /// All containers, newest first.
    pub(crate) fn list(&self) -> Result<Vec<Container>> {
        let directory = self.store.containers_dir();
        let mut all = Vec::new();
        let entries =
            fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("listing {}", directory.display()))?
                .path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                // Removed meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
            };
            match serde_json::from_slice::<Container>(&bytes) {
                Ok(container) => all.push(container),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a damaged container's record is left out");
                }
            }
        }
        all.sort_by(|a, b| (&b.created, &b.id).cmp(&(&a.created, &a.id)));
        Ok(all)
    }

    /// The container that a name, an id, or the unique beginning of either means.
    pub(crate) fn find(&self, query: &str) -> Result<Container> {
        let all = self.list()?;
        if let Some(exact) = all
            .iter()
            .find(|c| c.name == query || c.id.as_str() == query)
        {
            return Ok(exact.clone());
        }
        let begins = |c: &&Container| {
            !query.is_empty() && (c.id.as_str().starts_with(query) || c.name.starts_with(query))
        };
        let found: Vec<_> = all.iter().filter(begins).collect();
        match found.as_slice() {
            [] => Err(hinted(
                format!("there is no container {query}"),
                "`lcow ps -a` lists the containers there are",
            )),
            [one] => Ok((*one).clone()),
            several => {
                let list: Vec<_> = several
                    .iter()
                    .map(|c| format!("{} ({})", c.name, c.short_id()))
                    .collect();
                Err(hinted(
                    format!("{query} could be any of {}", list.join(", ")),
                    "give more of the name or of the id",
                ))
            }
        }
    }

    /// Takes a name for a new container: the one given, or one that is free.
    pub(crate) fn free_name(&self, wanted: Option<&str>) -> Result<String> {
        let taken: Vec<_> = self.list()?.into_iter().map(|c| (c.name, c.id)).collect();
        let Some(wanted) = wanted else {
            loop {
                let name = random_name()?;
                if !taken.iter().any(|(t, _)| *t == name) {
                    return Ok(name);
                }
            }
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if !wanted.chars().all(plain) || !wanted.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(hinted(
                format!("{wanted:?} can't be a container's name"),
                "use letters, digits, _ . - and begin with a letter or a digit",
            ));
        }
        if let Some((_, id)) = taken.iter().find(|(t, _)| t == wanted) {
            return Err(hinted(
                format!(
                    "the name {wanted} is taken by container {}",
                    id.as_str().get(..12).unwrap_or_default()
                ),
                format!("remove it with `lcow rm {wanted}`, or choose another name"),
            ));
        }
        Ok(wanted.to_owned())
    }

    pub(crate) fn save(&self, container: &Container) -> Result<()> {
        let mut bytes =
            serde_json::to_vec_pretty(container).context("writing the container's record")?;
        bytes.push(b'\n');
        Ok(self.store.replace_file(&self.path(&container.id), &bytes)?)
    }

    /// Removes the sandbox, the record, and the image's layers that only this container still needed.
    pub(crate) fn remove(&self, container: &Container) -> Result<()> {
        self.store.remove(&container.id)?;
        self.store.remove_file(&self.path(&container.id))?;
        Images::open(self.store)?.collect(&container.layers)?;
        Ok(())
    }

    /// The containers made from an image.
    pub(crate) fn of_image(&self, image: &Image) -> Result<Vec<Container>> {
        Ok(self
            .list()?
            .into_iter()
            .filter(|c| c.image_id == image.id)
            .collect())
    }

    fn path(&self, id: &LayerId) -> PathBuf {
        self.store.containers_dir().join(format!("{id}.json"))
    }
}

/// Says of a container that runs what can be done, where the store only says that its disk is in use.
pub(crate) fn explain_in_use(container: &Container, error: DriverError) -> anyhow::Error {
    match error {
        DriverError::InUse { .. } if container.state().is_alive() => hinted(
            format!(
                "container {} is running, and only the process that runs it reaches its utility VM",
                container.name
            ),
            "wait until it ends, or stop it with `lcow rm --force`",
        ),
        e => e.into(),
    }
}

/// 64 random hexadecimal digits.
pub(crate) fn random_id() -> Result<LayerId> {
    let mut bytes = [0; 32];
    if let Err(error) = getrandom::fill(&mut bytes) {
        bail!("getting random bytes: {error}");
    }
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    Ok(LayerId::new(&hex)?)
}

fn random_name() -> Result<String> {
    const FIRST: [&str; 32] = [
        "amber", "bold", "brisk", "calm", "clear", "crisp", "deep", "early", "fair", "fine",
        "fresh", "glad", "green", "keen", "kind", "late", "light", "lively", "loud", "mild",
        "neat", "plain", "prime", "quick", "quiet", "rapid", "sharp", "steady", "still", "swift",
        "warm", "wide",
    ];
    const SECOND: [&str; 32] = [
        "alder", "ash", "bay", "beech", "birch", "brook", "cedar", "cliff", "cove", "creek",
        "dale", "dune", "elm", "fern", "field", "fir", "glen", "grove", "hill", "lake", "larch",
        "maple", "marsh", "moor", "oak", "peak", "pine", "reed", "ridge", "river", "spruce",
        "willow",
    ];
    let mut bytes = [0; 2];
    if let Err(error) = getrandom::fill(&mut bytes) {
        bail!("getting random bytes: {error}");
    }
    Ok(format!(
        "{}_{}",
        FIRST[usize::from(bytes[0]) % FIRST.len()],
        SECOND[usize::from(bytes[1]) % SECOND.len()]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_another_of_its_id_does_not() {
        let this = Runner::this().unwrap();
        assert!(this.lives());
        assert!(
            !Runner {
                start: this.start + 1,
                ..this.clone()
            }
            .lives()
        );
        assert!(
            !Runner {
                boot: "another".to_owned(),
                ..this
            }
            .lives()
        );
    }

    #[test]
    fn ids_are_layer_ids() {
        let id = random_id().unwrap();
        assert_eq!(id.as_str().len(), 64);
        assert_ne!(id, random_id().unwrap());
    }
}
