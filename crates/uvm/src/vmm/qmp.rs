//! A client of the QEMU Machine Protocol (docs/interop/qmp-spec.txt in QEMU): JSON objects, one a line, both ways.

use crate::UvmError;
use crate::diagnostics::Ring;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest line taken from QEMU; what it says is short.
const LINE_LIMIT: u64 = 1 << 20;

#[derive(Default)]
struct Inbox {
    greeted: bool,
    closed: bool,
    replies: HashMap<u64, Result<Value, String>>,
    deleted: HashSet<String>,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection. Commands of several threads may be under way at once.
pub(super) struct Qmp {
    writer: Mutex<(UnixStream, u64)>,
    shared: Arc<Shared>,
    trace: Arc<Ring>,
}

fn gone(operation: &str) -> UvmError {
    UvmError::Gone {
        status: format!("its monitor closed during {operation}"),
    }
}

impl Qmp {
    /// Takes over our end of the socket. Nothing is sent before the first command.
    pub(super) fn new(socket: UnixStream, trace: Arc<Ring>) -> Result<Self, UvmError> {
        let reader = socket
            .try_clone()
            .map_err(UvmError::io("duplicate", "QMP socket"))?;
        let shared = Arc::new(Shared::default());
        let (theirs, log) = (shared.clone(), trace.clone());
        std::thread::Builder::new()
            .name("lcow-qmp".into())
            .spawn(move || read_all(BufReader::new(reader), &theirs, &log))
            .map_err(UvmError::io("start thread", "lcow-qmp"))?;
        Ok(Self {
            writer: Mutex::new((socket, 0)),
            shared,
            trace,
        })
    }

    /// Waits for the greeting and leaves negotiation mode. QEMU greets when it starts to read.
    pub(super) fn negotiate(&self, deadline: Instant) -> Result<(), UvmError> {
        self.wait("greet", deadline, |inbox| inbox.greeted.then_some(()))?;
        self.run("qmp_capabilities", json!({}), deadline).map(drop)
    }

    fn send(&self, command: &str, arguments: Value, fd: Option<&File>) -> Result<u64, UvmError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.1 += 1;
        let id = writer.1;
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        self.trace.append(format!("> {line}\n").as_bytes());
        line.push('\n');
        let sent = match fd {
            None => writer.0.write_all(line.as_bytes()),
            Some(fd) => send_with(&mut writer.0, line.as_bytes(), fd),
        };
        sent.map_err(|_| gone(command))?;
        Ok(id)
    }

    /// Waits until `found` finds something in what arrived.
    fn wait<T>(
        &self,
        operation: &str,
        deadline: Instant,
        mut found: impl FnMut(&mut Inbox) -> Option<T>,
    ) -> Result<T, UvmError> {
        let began = Instant::now();
        let mut inbox = self.shared.lock();
        loop {
            if let Some(found) = found(&mut inbox) {
                return Ok(found);
            }
            if inbox.closed {
                return Err(gone(operation));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let operation = format!("the monitor's {operation}");
                return Err(UvmError::TimedOut {
                    operation,
                    after: began.elapsed(),
                });
            }
            inbox = match self
                .shared
                .arrived
                .wait_timeout(inbox, left.min(Duration::from_secs(3600)))
            {
                Ok((inbox, _)) => inbox,
                Err(poison) => poison.into_inner().0,
            };
        }
    }

    fn reply(&self, command: &str, id: u64, deadline: Instant) -> Result<Value, UvmError> {
        self.wait(command, deadline, |inbox| inbox.replies.remove(&id))?
            .map_err(|detail| UvmError::Vmm {
                operation: command.to_owned(),
                detail,
            })
    }

    /// Runs one command.
    pub(super) fn run(
        &self,
        command: &str,
        arguments: Value,
        deadline: Instant,
    ) -> Result<Value, UvmError> {
        let id = self.send(command, arguments, None)?;
        self.reply(command, id, deadline)
    }

    /// Hands a descriptor over; QEMU finds it as `/dev/fdset/<set>`.
    ///
    /// One at a time: QEMU keeps only the last descriptor received until a command takes it.
    pub(super) fn add_fd(&self, set: u32, fd: &File, deadline: Instant) -> Result<(), UvmError> {
        let id = self.send("add-fd", json!({"fdset-id": set}), Some(fd))?;
        self.reply("add-fd", id, deadline).map(drop)
    }

    /// Sends all commands, then waits for all answers: one round trip for many.
    pub(super) fn run_all(
        &self,
        commands: Vec<(&'static str, Value)>,
        deadline: Instant,
    ) -> Vec<Result<Value, UvmError>> {
        let sent: Vec<_> = commands
            .into_iter()
            .map(|(command, arguments)| (command, self.send(command, arguments, None)))
            .collect();
        sent.into_iter()
            .map(|(command, id)| self.reply(command, id?, deadline))
            .collect()
    }

    /// Waits until the device named `id` is gone from the machine.
    pub(super) fn wait_deleted(&self, id: &str, deadline: Instant) -> Result<(), UvmError> {
        self.wait("removal of a device", deadline, |inbox| {
            inbox.deleted.remove(id).then_some(())
        })
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        // Ends the reading thread, whether or not QEMU is still there.
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writer.0.shutdown(std::net::Shutdown::Both);
    }
}

/// Sends `line` with one descriptor attached to its first byte.
fn send_with(socket: &mut UnixStream, line: &[u8], fd: &File) -> std::io::Result<()> {
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(std::io::ErrorKind::OutOfMemory.into());
    }
    let sent = rustix::net::sendmsg(
        &*socket,
        &[IoSlice::new(line)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    socket.write_all(&line[sent..])
}

fn read_all(mut reader: BufReader<UnixStream>, shared: &Shared, trace: &Ring) {
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader
            .by_ref()
            .take(LINE_LIMIT)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        trace.append(b"< ");
        trace.append(&line);
        // What is not JSON is in the trace; whoever waits for it runs into the deadline.
        if let Ok(message) = serde_json::from_slice::<Value>(&line) {
            sort(&message, &mut shared.lock());
            shared.arrived.notify_all();
        }
    }
    shared.lock().closed = true;
    shared.arrived.notify_all();
}

fn sort(message: &Value, inbox: &mut Inbox) {
    if message.get("QMP").is_some() {
        inbox.greeted = true;
    } else if let Some(event) = message.get("event").and_then(Value::as_str) {
        if event == "DEVICE_DELETED"
            && let Some(device) = message.pointer("/data/device").and_then(Value::as_str)
        {
            inbox.deleted.insert(device.to_owned());
        }
    } else if let Some(id) = message.get("id").and_then(Value::as_u64) {
        let result = match (message.get("return"), message.pointer("/error/desc")) {
            (Some(value), _) => Ok(value.clone()),
            (None, Some(text)) => Err(text.as_str().unwrap_or_default().to_owned()),
            (None, None) => Err(message.to_string()),
        };
        inbox.replies.insert(id, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Qmp, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Qmp::new(ours, Arc::default()).unwrap(), theirs)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn answers_are_matched_by_id_and_events_kept() {
        let (qmp, mut peer) = pair();
        let server = std::thread::spawn(move || {
            peer.write_all(b"{\"QMP\": {}}\n").unwrap();
            let mut lines = BufReader::new(peer.try_clone().unwrap()).lines();
            let mut ids = Vec::new();
            for expected in ["qmp_capabilities", "a", "b"] {
                let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
                assert_eq!(line["execute"], expected);
                ids.push(line["id"].as_u64().unwrap());
                if expected == "qmp_capabilities" {
                    writeln!(peer, "{}", json!({"return": {}, "id": ids[0]})).unwrap();
                }
            }
            writeln!(
                peer,
                "{}",
                json!({"event": "DEVICE_DELETED", "data": {"device": "d1"}})
            )
            .unwrap();
            writeln!(
                peer,
                "{}",
                json!({"error": {"class": "X", "desc": "no"}, "id": ids[2]})
            )
            .unwrap();
            writeln!(peer, "{}", json!({"return": 7, "id": ids[1]})).unwrap();
        });
        qmp.negotiate(soon()).unwrap();
        let mut answers = qmp.run_all(vec![("a", json!({})), ("b", json!({}))], soon());
        assert!(matches!(answers.pop(), Some(Err(UvmError::Vmm { detail, .. })) if detail == "no"));
        assert_eq!(answers.pop().unwrap().unwrap(), json!(7));
        qmp.wait_deleted("d1", soon()).unwrap();
        server.join().unwrap();
        assert!(matches!(
            qmp.run("c", json!({}), soon()),
            Err(UvmError::Gone { .. })
        ));
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let (qmp, _peer) = pair();
        let error = qmp
            .negotiate(Instant::now() + Duration::from_millis(30))
            .unwrap_err();
        assert!(matches!(error, UvmError::TimedOut { .. }));
    }
}
