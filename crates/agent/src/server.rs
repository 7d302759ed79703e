//! Answers the host's requests, whatever operating system is under it.
//!
//! Who owns what: a disk is *mounting → mounted → unmounting*, a union likewise, and only a mounted one can be used; a union
//! holds its disks, a process holds its union. Taking away what something else holds is refused, naming the holder.

mod freeze;

use crate::log;
use crate::stream::{end_chunks, read_chunk, read_frame, write_chunk, write_frame};
use crate::{Deadline, GuestOs, GuestProcess, UnionMount};
use futures::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use lcow_protocol::{
    Call, DiskId, DiskMount, ErrorKind, ExecSpec, ExitStatus, Lower, MAX_STREAMS, ProcessControl,
    ProcessEvent, ProcessId, RemoteError, Reply, Request, Response, Statistics, Stdio, UnionId,
    UnionSpec, chunk,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;

/// Most of the kernel's log that fits an answer, in bytes.
const KERNEL_LOG_LIMIT: usize = 512 * 1024;
/// Most disks, unions, or processes at a time, each.
const TABLE_LIMIT: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Coming,
    Up,
    Going,
}

struct DiskEntry {
    stage: Stage,
    mount: DiskMount,
}

struct UnionEntry {
    stage: Stage,
    disks: Vec<DiskId>,
}

struct ProcessEntry {
    union: Option<UnionId>,
    process: Arc<dyn GuestProcess>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

#[derive(Default)]
struct Tables {
    disks: BTreeMap<DiskId, DiskEntry>,
    unions: BTreeMap<UnionId, UnionEntry>,
    processes: BTreeMap<ProcessId, ProcessEntry>,
    /// Processes being started, per union: they hold it before they have an entry.
    starting: BTreeMap<UnionId, u32>,
    /// Disks that nothing may change.
    frozen: BTreeSet<DiskId>,
    next_process: u32,
    powering_off: bool,
}

struct Server<O> {
    os: O,
    tables: Mutex<Tables>,
}

/// How long the last unmounts may take when the machine goes down, in milliseconds.
const POWER_OFF_MS: u32 = 60_000;

fn disk_path(disk: DiskId) -> PathBuf {
    PathBuf::from(format!("/d/{disk}"))
}

fn lower_path(lower: &Lower) -> PathBuf {
    let disk = disk_path(lower.disk);
    if lower.sandbox {
        disk.join("upper")
    } else {
        disk
    }
}

fn union_path(union: UnionId) -> PathBuf {
    PathBuf::from(format!("/u/{union}"))
}

fn refused(operation: &str, why: String) -> RemoteError {
    RemoteError::new(ErrorKind::Refused, operation).because(why)
}

/// Serves the host on `socket` until it goes away, then powers the machine off.
pub async fn serve<O: GuestOs, S: AsyncRead + AsyncWrite + Unpin + Send>(os: O, socket: S) {
    let server = Arc::new(Server {
        os,
        tables: Mutex::new(Tables::default()),
    });
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(Some(MAX_STREAMS * 256 * 1024));
    config.set_split_send_size(chunk::MAX_CHUNK);
    let mut connection = yamux::Connection::new(socket, config, yamux::Mode::Server);
    loop {
        match futures::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await {
            Some(Ok(stream)) => {
                let server = server.clone();
                tokio::spawn(async move {
                    if let Err(error) = server.stream(stream).await {
                        log::info(format_args!("stream ended: {error}"));
                    }
                });
            }
            Some(Err(error)) => {
                log::fault(format_args!("connection to the host failed: {error}"));
                break;
            }
            None => break,
        }
    }
    log::info(format_args!("the host is gone"));
    let down = server.clone();
    // Whatever fails now has nobody to hear of it.
    let _ = tokio::task::spawn_blocking(move || {
        let _ = down.take_down(Deadline::after_ms(POWER_OFF_MS));
        down.os.power_off();
    })
    .await;
}

impl<O: GuestOs> Server<O> {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn stream(self: Arc<Self>, mut stream: yamux::Stream) -> io::Result<()> {
        let Some(request) = read_frame::<Request, _>(&mut stream).await? else {
            return Ok(());
        };
        let id = request.id;
        let deadline = Deadline::after_ms(request.deadline_ms);
        match request.call {
            Call::Exec(spec) => self.exec(stream, id, spec).await,
            Call::AttachStdio { process, stdio } => self.attach(stream, id, process, stdio).await,
            Call::FollowLog => follow_log(stream, id).await,
            Call::Freeze { disk, limit_ms } => self.hold_frozen(stream, id, disk, limit_ms).await,
            call => {
                let server = self.clone();
                let result = tokio::task::spawn_blocking(move || server.call(call, deadline))
                    .await
                    .unwrap_or_else(|panic| {
                        Err(RemoteError::new(ErrorKind::Internal, "request")
                            .because(panic.to_string()))
                    });
                write_frame(&mut stream, &Response { id, result }).await?;
                stream.close().await
            }
        }
    }

    fn call(&self, call: Call, deadline: Deadline) -> Result<Reply, RemoteError> {
        match call {
            Call::Info => Ok(Reply::Info(self.os.info())),
            Call::MountDisks(mounts) => self.mount_disks(mounts, deadline),
            Call::UnmountDisks(disks) => self.unmount_disks(&disks, deadline),
            Call::MakeUnion(spec) => self.make_union(&spec),
            Call::RemoveUnion(union) => self.remove_union(union, deadline),
            Call::Sync => {
                self.os.sync();
                Ok(Reply::Done)
            }
            Call::Trim(disk) => {
                self.require_disk("trim", disk, true)?;
                self.require_thawed("trim", disk, &self.tables())?;
                self.os.trim(&disk_path(disk)).map(Reply::Trimmed)
            }
            Call::KernelLog => self.os.kernel_log(KERNEL_LOG_LIMIT).map(Reply::Text),
            Call::Statistics => {
                let memory = self.os.memory()?;
                let tables = self.tables();
                let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                Ok(Reply::Statistics(Statistics {
                    uptime_s: memory.uptime_s,
                    memory_total: memory.total,
                    memory_available: memory.available,
                    disks: count(tables.disks.len()),
                    unions: count(tables.unions.len()),
                    processes: count(tables.processes.len()),
                }))
            }
            Call::SetClock {
                seconds,
                nanoseconds,
            } => self
                .os
                .set_clock(seconds, nanoseconds)
                .map(|()| Reply::Done),
            Call::PowerOff => self.take_down(deadline).map(|()| Reply::Done),
            // The streams handled before this point, and calls of a later version.
            _ => Err(refused("request", "not a call this agent knows".into())),
        }
    }

    fn require_disk(
        &self,
        operation: &str,
        disk: DiskId,
        writable: bool,
    ) -> Result<(), RemoteError> {
        match self.tables().disks.get(&disk) {
            Some(entry) if entry.stage == Stage::Up && !(writable && entry.mount.read_only) => {
                Ok(())
            }
            Some(entry) if entry.stage == Stage::Up => {
                Err(refused(operation, format!("disk {disk} is read-only")))
            }
            Some(_) => Err(refused(
                operation,
                format!("disk {disk} is coming or going"),
            )),
            None => Err(refused(operation, format!("there is no disk {disk}"))),
        }
    }

    /// Whoever changed a frozen disk, or let go of it, would wait until it is thawed.
    fn require_thawed(
        &self,
        operation: &str,
        disk: DiskId,
        tables: &Tables,
    ) -> Result<(), RemoteError> {
        if tables.frozen.contains(&disk) {
            return Err(RemoteError::new(ErrorKind::Busy, operation)
                .because(format!("disk {disk} is frozen")));
        }
        Ok(())
    }

    fn mount_disks(
        &self,
        mounts: Vec<DiskMount>,
        deadline: Deadline,
    ) -> Result<Reply, RemoteError> {
        {
            let mut tables = self.tables();
            if tables.powering_off || tables.disks.len() + mounts.len() > TABLE_LIMIT {
                return Err(refused(
                    "mount disks",
                    "too many disks, or going down".into(),
                ));
            }
            for (index, mount) in mounts.iter().enumerate() {
                if tables.disks.contains_key(&mount.disk)
                    || mounts[..index].iter().any(|other| other.disk == mount.disk)
                {
                    return Err(refused(
                        "mount disks",
                        format!("disk {} exists", mount.disk),
                    ));
                }
            }
            for mount in &mounts {
                let entry = DiskEntry {
                    stage: Stage::Coming,
                    mount: mount.clone(),
                };
                tables.disks.insert(mount.disk, entry);
            }
        }
        let mut done = 0;
        let result = mounts.iter().try_for_each(|mount| {
            self.os
                .mount_disk(mount, &disk_path(mount.disk), deadline)?;
            done += 1;
            Ok(())
        });
        if result.is_err() {
            for mount in &mounts[..done] {
                let undo = Deadline::after_ms(POWER_OFF_MS);
                if let Err(error) = self.os.unmount_disk(mount, &disk_path(mount.disk), undo) {
                    log::fault(format_args!("undoing a batch of disks: {error}"));
                }
            }
        }
        let mut tables = self.tables();
        for mount in &mounts {
            if result.is_err() {
                tables.disks.remove(&mount.disk);
            } else if let Some(entry) = tables.disks.get_mut(&mount.disk) {
                entry.stage = Stage::Up;
            }
        }
        result.map(|()| Reply::Done)
    }

    fn unmount_disks(&self, disks: &[DiskId], deadline: Deadline) -> Result<Reply, RemoteError> {
        let mounts: Vec<DiskMount> = {
            let mut tables = self.tables();
            for disk in disks {
                match tables.disks.get(disk) {
                    None => {
                        return Err(refused("unmount disks", format!("there is no disk {disk}")));
                    }
                    Some(entry) if entry.stage != Stage::Up => {
                        return Err(refused(
                            "unmount disks",
                            format!("disk {disk} is coming or going"),
                        ));
                    }
                    Some(_) => {}
                }
                self.require_thawed("unmount disks", *disk, &tables)?;
                if let Some((union, _)) = tables.unions.iter().find(|(_, u)| u.disks.contains(disk))
                {
                    return Err(RemoteError::new(ErrorKind::Busy, "unmount disks")
                        .because(format!("disk {disk} is part of union {union}")));
                }
            }
            disks
                .iter()
                .filter_map(|disk| {
                    let entry = tables.disks.get_mut(disk)?;
                    entry.stage = Stage::Going;
                    Some(entry.mount.clone())
                })
                .collect()
        };
        let mut first = Ok(Reply::Done);
        for mount in &mounts {
            let at = disk_path(mount.disk);
            if !mount.read_only {
                // A disk that can't discard only stays larger on the host.
                if let Err(error) = self.os.trim(&at) {
                    log::info(format_args!("trim: {error}"));
                }
            }
            let result = self.os.unmount_disk(mount, &at, deadline);
            let mut tables = self.tables();
            match result {
                Ok(()) => {
                    tables.disks.remove(&mount.disk);
                }
                Err(error) => {
                    if let Some(entry) = tables.disks.get_mut(&mount.disk) {
                        entry.stage = Stage::Up;
                    }
                    first = first.and(Err(error));
                }
            }
        }
        first
    }

    fn make_union(&self, spec: &UnionSpec) -> Result<Reply, RemoteError> {
        const OPERATION: &str = "make union";
        if spec.lowers.is_empty() && spec.upper.is_none() && !spec.mount_points {
            return Err(refused(OPERATION, "a union needs a disk".into()));
        }
        let disks: Vec<DiskId> = spec
            .lowers
            .iter()
            .map(|lower| lower.disk)
            .chain(spec.upper)
            .collect();
        {
            let mut tables = self.tables();
            if tables.powering_off || tables.unions.len() >= TABLE_LIMIT {
                return Err(refused(OPERATION, "too many unions, or going down".into()));
            }
            if tables.unions.contains_key(&spec.union) {
                return Err(refused(OPERATION, format!("union {} exists", spec.union)));
            }
            for disk in &disks {
                match tables.disks.get(disk) {
                    Some(entry) if entry.stage == Stage::Up => {
                        if spec.upper == Some(*disk) && entry.mount.read_only {
                            return Err(refused(OPERATION, format!("disk {disk} is read-only")));
                        }
                    }
                    Some(_) => {
                        return Err(refused(
                            OPERATION,
                            format!("disk {disk} is coming or going"),
                        ));
                    }
                    None => return Err(refused(OPERATION, format!("there is no disk {disk}"))),
                }
                self.require_thawed(OPERATION, *disk, &tables)?;
            }
            if let Some(upper) = spec.upper
                && let Some((other, _)) =
                    tables.unions.iter().find(|(_, u)| u.disks.contains(&upper))
            {
                return Err(
                    RemoteError::new(ErrorKind::Busy, OPERATION).because(format!(
                        "disk {upper} already takes the changes of union {other}"
                    )),
                );
            }
            tables.unions.insert(
                spec.union,
                UnionEntry {
                    stage: Stage::Coming,
                    disks,
                },
            );
        }
        let mount = UnionMount {
            lowers: spec.lowers.iter().map(lower_path).collect(),
            upper: spec.upper.map(disk_path),
            mount_points: spec.mount_points,
        };
        let result = self.os.mount_union(&mount, &union_path(spec.union));
        let mut tables = self.tables();
        if result.is_err() {
            tables.unions.remove(&spec.union);
        } else if let Some(entry) = tables.unions.get_mut(&spec.union) {
            entry.stage = Stage::Up;
        }
        result.map(|()| Reply::Done)
    }

    fn remove_union(&self, union: UnionId, deadline: Deadline) -> Result<Reply, RemoteError> {
        const OPERATION: &str = "remove union";
        {
            let mut tables = self.tables();
            if let Some((process, _)) = tables
                .processes
                .iter()
                .find(|(_, p)| p.union == Some(union))
            {
                return Err(RemoteError::new(ErrorKind::Busy, OPERATION)
                    .because(format!("process {process} runs in union {union}")));
            }
            if tables.starting.contains_key(&union) {
                return Err(RemoteError::new(ErrorKind::Busy, OPERATION)
                    .because(format!("a process is being started in union {union}")));
            }
            match tables.unions.get_mut(&union) {
                Some(entry) if entry.stage == Stage::Up => entry.stage = Stage::Going,
                Some(_) => {
                    return Err(refused(
                        OPERATION,
                        format!("union {union} is coming or going"),
                    ));
                }
                None => return Err(refused(OPERATION, format!("there is no union {union}"))),
            }
        }
        let result = self.os.unmount_union(&union_path(union), deadline);
        let mut tables = self.tables();
        if result.is_ok() {
            tables.unions.remove(&union);
        } else if let Some(entry) = tables.unions.get_mut(&union) {
            entry.stage = Stage::Up;
        }
        result.map(|()| Reply::Done)
    }

    /// Takes everything down, carrying on through errors; the first one is returned.
    fn take_down(&self, deadline: Deadline) -> Result<(), RemoteError> {
        let running: Vec<Arc<dyn GuestProcess>> = {
            let mut tables = self.tables();
            tables.powering_off = true;
            tables
                .processes
                .values()
                .map(|entry| entry.process.clone())
                .collect()
        };
        self.thaw_all();
        for process in running {
            process.kill();
        }
        let mut first = Ok(());
        // The tasks that wait for the processes remove them from the table.
        while !self
            .tables()
            .processes
            .values()
            .all(|entry| entry.union.is_none())
        {
            if let Err(error) = deadline.check("end processes") {
                first = first.and(Err(error));
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let unions: Vec<UnionId> = self.tables().unions.keys().copied().collect();
        for union in unions {
            first = first.and(self.remove_union(union, deadline).map(drop));
        }
        let disks: Vec<DiskId> = self.tables().disks.keys().copied().collect();
        for disk in disks {
            first = first.and(self.unmount_disks(&[disk], deadline).map(drop));
        }
        self.os.sync();
        first
    }

    fn start(&self, spec: &ExecSpec) -> Result<ProcessId, RemoteError> {
        const OPERATION: &str = "exec";
        {
            let mut tables = self.tables();
            if tables.powering_off || tables.processes.len() >= TABLE_LIMIT {
                return Err(refused(
                    OPERATION,
                    "too many processes, or going down".into(),
                ));
            }
            if let Some(union) = spec.root {
                match tables.unions.get(&union) {
                    Some(entry) if entry.stage == Stage::Up => {}
                    _ => return Err(refused(OPERATION, format!("there is no union {union}"))),
                }
                *tables.starting.entry(union).or_default() += 1;
            }
        }
        let spawned = self.os.spawn(spec, spec.root.map(union_path).as_deref());
        let mut tables = self.tables();
        if let Some(union) = spec.root
            && let Some(count) = tables.starting.get_mut(&union)
        {
            *count -= 1;
            if *count == 0 {
                tables.starting.remove(&union);
            }
        }
        let spawned = spawned?;
        if tables.powering_off {
            spawned.process.kill();
        }
        tables.next_process = tables.next_process.wrapping_add(1);
        let id = ProcessId(tables.next_process);
        tables.processes.insert(
            id,
            ProcessEntry {
                union: spec.root,
                process: spawned.process,
                stdin: spawned.stdin,
                stdout: Some(spawned.stdout),
                stderr: Some(spawned.stderr),
            },
        );
        Ok(id)
    }

    async fn exec(
        self: Arc<Self>,
        mut stream: yamux::Stream,
        id: lcow_protocol::RequestId,
        spec: ExecSpec,
    ) -> io::Result<()> {
        let server = self.clone();
        let started = tokio::task::spawn_blocking(move || server.start(&spec))
            .await
            .unwrap_or_else(|panic| {
                Err(RemoteError::new(ErrorKind::Internal, "exec").because(panic.to_string()))
            });
        let process_id = match started {
            Ok(process_id) => process_id,
            Err(error) => {
                write_frame(
                    &mut stream,
                    &Response {
                        id,
                        result: Err(error),
                    },
                )
                .await?;
                return stream.close().await;
            }
        };
        let Some(process) = self
            .tables()
            .processes
            .get(&process_id)
            .map(|p| p.process.clone())
        else {
            return Ok(());
        };
        let waiter = process.clone();
        let mut exit = tokio::task::spawn_blocking(move || waiter.wait());
        let answer = Response {
            id,
            result: Ok(Reply::Started(process_id)),
        };
        let outcome = async {
            write_frame(&mut stream, &answer).await?;
            loop {
                tokio::select! {
                    status = &mut exit => {
                        // No status means that waiting panicked: the process is then killed below.
                        return Ok(status.ok());
                    }
                    control = read_frame::<ProcessControl, _>(&mut stream) => match control? {
                        Some(ProcessControl::Signal(signal)) => {
                            if let Err(error) = process.signal(signal) {
                                log::info(format_args!("signal {signal}: {error}"));
                            }
                        }
                        Some(_) => process.kill(),
                        None => return io::Result::Ok(None),
                    }
                }
            }
        }
        .await;
        let status = match outcome {
            Ok(Some(status)) => Some(status),
            _ => {
                // The host let go of the process: so it ends.
                process.kill();
                if !exit.is_finished() {
                    let _ = (&mut exit).await;
                }
                None
            }
        };
        if let Some(entry) = self.tables().processes.get_mut(&process_id) {
            entry.union = None;
        }
        let result = match status {
            Some(status) => self.finish(&mut stream, status).await,
            None => outcome.map(drop),
        };
        self.tables().processes.remove(&process_id);
        result
    }

    /// Reports the end, then keeps the process's streams until the host closes its side: what the process wrote is read after
    /// it is gone.
    async fn finish(&self, stream: &mut yamux::Stream, status: ExitStatus) -> io::Result<()> {
        write_frame(stream, &ProcessEvent::Exited(status)).await?;
        while read_frame::<ProcessControl, _>(stream).await?.is_some() {}
        stream.close().await
    }

    async fn attach(
        self: Arc<Self>,
        mut stream: yamux::Stream,
        id: lcow_protocol::RequestId,
        process: ProcessId,
        stdio: Stdio,
    ) -> io::Result<()> {
        let taken = {
            let mut tables = self.tables();
            tables
                .processes
                .get_mut(&process)
                .and_then(|entry| match stdio {
                    Stdio::In => entry.stdin.take(),
                    Stdio::Out => entry.stdout.take(),
                    Stdio::Err => entry.stderr.take(),
                })
        };
        let Some(fd) = taken else {
            let why = format!("process {process} has no such stream, or it is taken");
            let result = Err(refused("attach", why));
            write_frame(&mut stream, &Response { id, result }).await?;
            return stream.close().await;
        };
        write_frame(
            &mut stream,
            &Response {
                id,
                result: Ok(Reply::Done),
            },
        )
        .await?;
        match stdio {
            Stdio::In => {
                let mut pipe = pipe::Sender::from_owned_fd(fd)?;
                let mut buffer = Box::new([0; chunk::MAX_CHUNK]);
                loop {
                    match read_chunk(&mut stream, &mut buffer).await? {
                        0 => break,
                        n => pipe.write_all(&buffer[..n]).await?,
                    }
                }
                drop(pipe);
                stream.close().await
            }
            Stdio::Out | Stdio::Err => {
                let mut pipe = pipe::Receiver::from_owned_fd(fd)?;
                let mut framed = vec![0; chunk::CHUNK_HEADER + chunk::MAX_CHUNK];
                // The host says nothing on this stream; when it lets go, waiting for the process to write must end too, so
                // that its next write fails as it would in a shell's pipeline.
                let (mut from_host, mut stream) = {
                    let (read, write) = tokio::io::split(stream.compat());
                    (
                        read,
                        tokio_util::compat::TokioAsyncWriteCompatExt::compat_write(write),
                    )
                };
                let mut nothing = [0; 1];
                loop {
                    let n = tokio::select! {
                        n = pipe.read(&mut framed[chunk::CHUNK_HEADER..]) => n?,
                        _ = from_host.read(&mut nothing) => return Ok(()),
                    };
                    if n == 0 {
                        return end_chunks(&mut stream).await;
                    }
                    write_chunk(&mut stream, &mut framed[..chunk::CHUNK_HEADER + n]).await?;
                }
            }
        }
    }
}

async fn follow_log(mut stream: yamux::Stream, id: lcow_protocol::RequestId) -> io::Result<()> {
    write_frame(
        &mut stream,
        &Response {
            id,
            result: Ok(Reply::Done),
        },
    )
    .await?;
    let mut watch = log::global().watch();
    let mut position = 0;
    loop {
        watch.borrow_and_update();
        let (bytes, end) = log::global().read_from(position);
        position = end;
        for piece in bytes.chunks(chunk::MAX_CHUNK) {
            let mut framed = vec![0; chunk::CHUNK_HEADER];
            framed.extend_from_slice(piece);
            write_chunk(&mut stream, &mut framed).await?;
        }
        if watch.changed().await.is_err() {
            return end_chunks(&mut stream).await;
        }
    }
}
