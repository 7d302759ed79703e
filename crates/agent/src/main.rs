//! The guest's PID 1, or, under another name, PID 1 of a process's own namespaces. See the library.

use lcow_agent::{container, linux, log, server};
use std::fs::File;
use std::io::{Read, Write};
use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::compat::TokioAsyncReadCompatExt as _;

fn main() -> ExitCode {
    if std::env::args_os()
        .next()
        .is_some_and(|name| name == container::ARGV0)
    {
        return container::main();
    }
    if std::process::id() != 1 {
        eprintln!("lcow-agent is the first process of a utility VM and does nothing elsewhere");
        return ExitCode::FAILURE;
    }
    // Taken before anything else: how long the kernel took.
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let boot_ns = u64::try_from(boot.tv_sec)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        + u64::try_from(boot.tv_nsec).unwrap_or(0);
    if let Err(error) = run(boot_ns) {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            message = format!("{message}: {inner}");
            source = inner.source();
        }
        log::fault(format_args!("can't go on: {message}"));
    }
    // PID 1 must not end before the machine does: the kernel would panic.
    if let Err(errno) = rustix::system::reboot(rustix::system::RebootCommand::PowerOff) {
        log::fault(format_args!("power off: {errno}"));
    }
    ExitCode::FAILURE
}

fn run(boot_ns: u64) -> Result<(), Box<dyn std::error::Error>> {
    let port = linux::boot::boot()?;
    std::panic::set_hook(Box::new(|panic| log::fault(format_args!("{panic}"))));
    let os = linux::Linux::new(boot_ns);
    log::info(format_args!(
        "agent {} is up {} ms after the kernel",
        env!("CARGO_PKG_VERSION"),
        boot_ns / 1_000_000
    ));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // SAFETY: a `File` gives the same open descriptor as long as it lives, and nobody replaces the one inside.
        #[allow(unsafe_code)]
        let port = Port(unsafe { AsyncFd::register(port) }?);
        server::serve(os, port.compat()).await;
        Ok(())
    })
}

/// The virtio-serial port as an asynchronous stream.
struct Port(AsyncFd<File>);

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let room = buffer.initialize_unfilled();
            if let Ok(result) = guard.try_io(|port| port.get_ref().read(room)) {
                return Poll::Ready(result.map(|n| buffer.advance(n)));
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|port| port.get_ref().write(bytes)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
