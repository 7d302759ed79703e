//! Disks that nothing may change for a while.
//!
//! ```text
//!   Freeze ──► frozen ──┬── the host ends its side of the stream ──► thawed: Done
//!                       ├── the limit passes ──────────────────────► thawed: timed out
//!                       └── the machine goes down ─────────────────► thawed: refused
//! ```
//! Whoever takes the disk out of the table thaws it, so it is thawed once, and nobody who is gone can leave it frozen.

use super::{Server, disk_path, refused};
use crate::stream::{read_frame, write_frame};
use crate::{GuestOs, log};
use futures::io::AsyncWriteExt;
use lcow_protocol::{
    DiskId, ErrorKind, MAX_FREEZE_MS, ProcessControl, RemoteError, Reply, RequestId, Response,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;

const OPERATION: &str = "freeze";

impl<O: GuestOs> Server<O> {
    pub(super) async fn hold_frozen(
        self: Arc<Self>,
        mut stream: yamux::Stream,
        id: RequestId,
        disk: DiskId,
        limit_ms: u32,
    ) -> io::Result<()> {
        let server = self.clone();
        let began = blocking(move || server.freeze(disk, limit_ms)).await;
        let frozen = began.is_ok();
        let result = began.map(|()| Reply::Done);
        let answered = write_frame(&mut stream, &Response { id, result }).await;
        if !frozen {
            answered?;
            return stream.close().await;
        }
        // What the host sends does not matter, and if it can't be answered it is gone.
        let until_told = async {
            if answered.is_ok() {
                while let Ok(Some(_)) = read_frame::<ProcessControl, _>(&mut stream).await {}
            }
        };
        let limit = Duration::from_millis(limit_ms.into());
        let in_time = tokio::time::timeout(limit, until_told).await.is_ok();
        let server = self.clone();
        let thawed = blocking(move || server.thaw(disk)).await;
        let result = match thawed {
            Ok(()) if !in_time => {
                log::info(format_args!(
                    "disk {disk} was frozen for {limit_ms} ms: thawed"
                ));
                Err(RemoteError::new(ErrorKind::TimedOut, OPERATION)
                    .because(format!("disk {disk} was thawed after {limit_ms} ms")))
            }
            result => result.map(|()| Reply::Done),
        };
        write_frame(&mut stream, &Response { id, result }).await?;
        stream.close().await
    }

    fn freeze(&self, disk: DiskId, limit_ms: u32) -> Result<(), RemoteError> {
        if limit_ms == 0 || limit_ms > MAX_FREEZE_MS {
            let why = format!("a limit of {limit_ms} ms: 1 to {MAX_FREEZE_MS} are possible");
            return Err(refused(OPERATION, why));
        }
        self.require_disk(OPERATION, disk, true)?;
        {
            let mut tables = self.tables();
            if tables.powering_off || !tables.frozen.insert(disk) {
                let why = format!("disk {disk} is frozen already, or going");
                return Err(RemoteError::new(ErrorKind::Busy, OPERATION).because(why));
            }
        }
        let result = self.os.freeze(&disk_path(disk));
        if result.is_err() {
            self.tables().frozen.remove(&disk);
        }
        result
    }

    fn thaw(&self, disk: DiskId) -> Result<(), RemoteError> {
        if !self.tables().frozen.remove(&disk) {
            return Err(refused("thaw", format!("disk {disk} was thawed before")));
        }
        self.os.thaw(&disk_path(disk))
    }

    /// Thaws all, so that what waits for them goes on.
    pub(super) fn thaw_all(&self) {
        let frozen = std::mem::take(&mut self.tables().frozen);
        for disk in frozen {
            if let Err(error) = self.os.thaw(&disk_path(disk)) {
                log::fault(format_args!("thaw: {error}"));
            }
        }
    }
}

async fn blocking(
    body: impl FnOnce() -> Result<(), RemoteError> + Send + 'static,
) -> Result<(), RemoteError> {
    tokio::task::spawn_blocking(body)
        .await
        .unwrap_or_else(|panic| {
            Err(RemoteError::new(ErrorKind::Internal, OPERATION).because(panic.to_string()))
        })
}
