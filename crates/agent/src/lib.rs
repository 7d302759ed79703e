//! The guest agent: PID 1 of a utility VM, and nothing else runs there but what the host asks for.
//!
//! Life: the kernel starts the binary from the initrd ([`linux::boot`]: modules, mounts, port), the agent answers the host's
//! handshake, and [`server::serve`] answers requests until the connection ends; then it powers the machine off. A process is
//! started through a second copy of the same binary that becomes PID 1 of the process's own namespaces ([`container`]).
//!
//! ```text
//!   virtio-serial ── yamux ── server ── trait GuestOs ──┬─ linux::Linux   mounts, processes, clock
//!                                                       └─ fake::FakeOs   the same, in memory, for tests
//! ```
//!
//! I/O: one asynchronous thread moves bytes; everything that may block runs on other threads. Errors are
//! [`RemoteError`](lcow_protocol::RemoteError)s with errno, operation and path; a bad request never ends the agent, a dead
//! host always does.
//!
//! ```
//! use lcow_agent::{GuestOs, fake::FakeOs};
//! let os = FakeOs::new();
//! assert_eq!(os.info().kernel, "fake");
//! ```

pub mod container;
pub mod fake;
pub mod linux;
pub mod log;
mod os;
pub mod server;
mod stream;

pub use os::{Deadline, GuestOs, GuestProcess, Memory, Spawned, UnionMount};
