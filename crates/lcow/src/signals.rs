//! Signals as a cancellation, and dying of them in the end.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

use lcow_driver::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

static RECEIVED: AtomicI32 = AtomicI32::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Lets SIGINT, SIGTERM and SIGHUP set the flag. The third one ends the process at once; what it leaves is cleaned up by the
/// next command in the same data root.
pub(crate) fn cancel(flag: &Cancel) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let flag = flag.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                RECEIVED.store(signal, Ordering::Relaxed);
                flag.cancel();
                match COUNT.fetch_add(1, Ordering::Relaxed) {
                    0 => {}
                    1 => eprintln!("lcow: cleaning up; once more to stop without"),
                    _ => die_of(signal),
                }
            }
        })?;
    Ok(())
}

/// Hands over signals as they come, for a command that decides itself what each means.
pub(crate) fn receive() -> io::Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2])?;
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if sender.send(signal).is_err() {
                    die_of(signal);
                }
            }
        })?;
    Ok(receiver)
}

/// Remembers the signal that the process is to die of once it has cleaned up.
pub(crate) fn remember(signal: i32) {
    RECEIVED.store(signal, Ordering::Relaxed);
}

/// The signal that set the cancellation, if one did.
pub(crate) fn received() -> Option<i32> {
    match RECEIVED.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

/// Ends the process the way the signal would have, so that whoever waits for it sees that.
pub(crate) fn die_of(signal: i32) -> ! {
    // It fails only for signals that don't exist.
    let _ = emulate_default_handler(signal);
    std::process::exit(128 + signal)
}
