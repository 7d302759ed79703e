//! A disk that nothing changes for a while.

use std::sync::Arc;
use std::time::Duration;

use futures::io::AsyncWriteExt;
use lcow_protocol::{Call, DiskId, MAX_FREEZE_MS, Response};

use crate::UvmError;
use crate::machine::Inner;
use crate::session::{FrameFailure, read_frame, within};

/// A frozen disk, until it is thawed or dropped. A guest thaws it by itself when the limit has passed, or its host is gone.
pub struct Frozen {
    machine: Arc<Inner>,
    disk: DiskId,
    stream: yamux::Stream,
}

impl std::fmt::Debug for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frozen")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl Frozen {
    pub(crate) fn new(
        machine: &Arc<Inner>,
        disk: DiskId,
        limit: Duration,
    ) -> Result<Self, UvmError> {
        let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let call = Call::Freeze {
            disk,
            limit_ms: limit_ms.clamp(1, MAX_FREEZE_MS),
        };
        let (_, stream) = machine.ask("freeze a disk", call)?;
        Ok(Self {
            machine: Arc::clone(machine),
            disk,
            stream,
        })
    }

    /// Lets the disk be changed again.
    ///
    /// # Errors
    /// It was not frozen all the time: the limit passed, or the machine went down. What was read meanwhile counts for nothing.
    pub fn thaw(mut self) -> Result<(), UvmError> {
        let timeout = self.machine.timeout();
        let stream = &mut self.stream;
        let answer = self.machine.with_session(|session| {
            within(session, timeout, async {
                stream.close().await?;
                read_frame::<Response, _>(stream).await
            })
        });
        match answer {
            Some(Some(Ok(Some(response)))) => response
                .result
                .map(drop)
                .map_err(|error| self.machine.diagnose(UvmError::Guest(error))),
            Some(Some(Err(FrameFailure::Frame(error)))) => {
                Err(self.machine.diagnose(UvmError::Protocol {
                    detail: error.to_string(),
                    source: Some(error),
                }))
            }
            Some(None) => Err(self
                .machine
                .failed("thaw a disk", crate::session::Failure::TimedOut)),
            _ => Err(self
                .machine
                .failed("thaw a disk", crate::session::Failure::Closed)),
        }
    }
}
