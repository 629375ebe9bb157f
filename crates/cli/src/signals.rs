//! Interruption by SIGINT and SIGTERM: the first asks for an orderly end, the second kills.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Exit status of a command that was interrupted, as shells tell it.
pub const STATUS_INTERRUPTED: i32 = 130;
/// How often a waiting server looks for a signal.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

static ASKED_TO_STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_signal: libc::c_int) {
    ASKED_TO_STOP.store(true, Ordering::Relaxed);
}

/// From now on SIGINT and SIGTERM are noted rather than deadly, once each.
pub fn catch() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: an all-zero `sigaction` is valid; the handler only stores to an atomic, which is
        // safe in a signal handler; SA_RESETHAND restores the default action for the next signal.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESETHAND;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// True once a signal has come.
pub fn stop_asked() -> bool {
    ASKED_TO_STOP.load(Ordering::Relaxed)
}

/// Waits for a signal, or until `over` says that there is nothing left to wait for.
pub fn wait(mut over: impl FnMut() -> bool) {
    while !stop_asked() && !over() {
        std::thread::sleep(POLL_INTERVAL);
    }
}
