//! The agent's log: a bounded ring in memory that the host follows; faults go to the console too.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::watch;

/// Bytes kept.
const CAPACITY: usize = 64 * 1024;

struct Ring {
    bytes: VecDeque<u8>,
    /// Position in the whole log of the first byte kept.
    start: u64,
}

/// A log with any number of followers.
pub struct Log {
    ring: Mutex<Ring>,
    end: watch::Sender<u64>,
}

impl Log {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ring: Mutex::new(Ring {
                bytes: VecDeque::new(),
                start: 0,
            }),
            end: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes, dropping the oldest.
    pub fn append(&self, bytes: &[u8]) {
        let mut ring = self.lock();
        ring.bytes.extend(bytes);
        let excess = ring.bytes.len().saturating_sub(CAPACITY);
        ring.bytes.drain(..excess);
        ring.start += excess as u64;
        let end = ring.start + ring.bytes.len() as u64;
        self.end.send_replace(end);
    }

    /// What is there from `position` on, and the position after it. Bytes already dropped are skipped.
    #[must_use]
    pub fn read_from(&self, position: u64) -> (Vec<u8>, u64) {
        let ring = self.lock();
        let skip = usize::try_from(position.saturating_sub(ring.start)).unwrap_or(usize::MAX);
        let bytes: Vec<u8> = ring.bytes.iter().skip(skip).copied().collect();
        let end = ring.start + ring.bytes.len() as u64;
        (bytes, end)
    }

    /// Tells when the log grows.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

/// The agent's own log.
pub fn global() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(Log::new)
}

/// Notes something for whoever reads the log later.
pub fn info(message: fmt::Arguments<'_>) {
    global().append(format!("{message}\n").as_bytes());
}

/// Notes a fault: in the log and on the console, which the host keeps even if the agent dies of it.
pub fn fault(message: fmt::Arguments<'_>) {
    let line = format!("lcow-agent: {message}\n");
    global().append(line.as_bytes());
    if let Ok(mut console) = std::fs::File::options().write(true).open("/dev/console") {
        // Nobody is left to tell if the console is gone.
        let _ = console.write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_bytes_go_first_and_positions_stay() {
        let log = Log::new();
        log.append(&vec![b'a'; CAPACITY]);
        log.append(b"tail");
        let (all, end) = log.read_from(0);
        assert_eq!(all.len(), CAPACITY);
        assert!(all.ends_with(b"atail"));
        assert_eq!(end, CAPACITY as u64 + 4);
        assert_eq!(log.read_from(end - 4).0, b"tail");
        assert_eq!(log.read_from(end).0, b"");
        assert_eq!(*log.watch().borrow(), end);
    }
}
