//! What one call may cost: an allocator that counts, and the processor's time.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn more(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed).wrapping_add(bytes);
    PEAK.fetch_max(now, Relaxed);
}

fn less(bytes: usize) {
    NOW.fetch_sub(bytes, Relaxed);
}

// SAFETY: every call goes to the system's allocator with the same arguments; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        less(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        more(size);
        less(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Processor time that one call may take. Most take milliseconds; tests run unoptimised.
const TIME: Duration = Duration::from_secs(8);

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// What `work` returns, if it took no more than `memory` bytes beyond what was in use before, and a bounded time.
pub(crate) fn bounded<T>(what: &str, memory: usize, work: impl FnOnce() -> T) -> T {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let start = processor_time();
    let result = work();
    let took = processor_time().saturating_sub(start);
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    assert!(peak <= memory, "{what} took {peak} bytes of memory");
    assert!(took <= TIME, "{what} took {took:?} of processor time");
    result
}

/// Keeps what is written up to a limit, and fails past it.
pub(crate) struct Capped {
    pub(crate) bytes: Vec<u8>,
    limit: usize,
}

impl Capped {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
        }
    }
}

impl Write for Capped {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(buf.len()) > self.limit {
            return Err(io::Error::other(TOO_MUCH));
        }
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const TOO_MUCH: &str = "more output than the target looks at";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_seen() {
        // Another test may set the peak back meanwhile.
        let seen = (0..100).any(|_| {
            let result = std::panic::catch_unwind(|| {
                bounded("it", 16 << 20, || {
                    std::hint::black_box(vec![1_u8; 64 << 20]).len()
                })
            });
            result.is_err_and(|panic| {
                let message = panic.downcast_ref::<String>();
                message.is_some_and(|message| message.ends_with("bytes of memory"))
            })
        });
        assert!(seen);
    }
}
