//! Interruption by SIGINT and SIGTERM: the first asks for an orderly end, the second kills.
//!
//! A command that makes something looks for the signal between its steps, and takes away what is half
//! done. But a step can take for ever: a pipe that nobody reads, a disk or another process that does not
//! answer. So a thread watches: where the command has not seen the signal after a moment, or is not
//! done with clearing up after a while, the file it has begun is removed and the process dies of the
//! signal, as it would have without us. A partial image that is left is removed by the next import.
//! Servers are not watched: they make everything durable first, however long that takes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::pipe::PipeFlags;

/// How often a waiting server looks for a signal.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A command that has not seen the signal by then is stuck.
const NOTICE_TIME_MAX: Duration = Duration::from_millis(500);
/// So long may a command take that has seen it, to remove what is half done.
const CLEAR_TIME_MAX: Duration = Duration::from_secs(10);
/// What shells add to the number of the signal that ended a process.
const STATUS_SIGNAL: i32 = 128;

/// The first signal that has come; 0 before.
static CAME: AtomicI32 = AtomicI32::new(0);
/// The command has seen it.
static NOTICED: AtomicBool = AtomicBool::new(false);
/// Where the handler wakes the watching thread.
static WAKES: OnceLock<OwnedFd> = OnceLock::new();
/// To be removed if the process is ended by the watching thread.
static HALF_DONE: Mutex<Option<PathBuf>> = Mutex::new(None);

extern "C" fn on_signal(signal: libc::c_int) {
    CAME.store(signal, Ordering::Relaxed);
    if let Some(wakes) = WAKES.get() {
        // SAFETY: `write` is safe in a signal handler, the byte lives through the call, and the
        // descriptor is never closed. The pipe never fills: there are at most two signals. What the
        // call does to `errno` is put back.
        unsafe {
            let errno = *libc::__errno_location();
            libc::write(wakes.as_raw_fd(), [0u8].as_ptr().cast(), 1);
            *libc::__errno_location() = errno;
        }
    }
}

/// From now on SIGINT and SIGTERM are noted rather than deadly, once each. For servers.
pub fn catch() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: an all-zero `sigaction` is valid; the handler does only what is safe in a signal
        // handler; SA_RESETHAND restores the default action for the next signal.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESETHAND;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// As [`catch`], for commands: one that is stuck is ended all the same.
pub fn catch_and_watch() {
    // Without a pipe or a thread signals stay deadly, which ends the command too.
    let Ok((woken, wakes)) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC) else { return };
    if WAKES.set(wakes).is_err() {
        return;
    }
    let watch = std::thread::Builder::new().name("signals".to_owned()).spawn(move || watch(&woken));
    if watch.is_ok() {
        catch();
    }
}

fn watch(woken: &OwnedFd) {
    while matches!(rustix::io::read(woken.as_fd(), &mut [0; 1]), Err(rustix::io::Errno::INTR)) {}
    let came = Instant::now();
    let left = || if NOTICED.load(Ordering::Relaxed) { CLEAR_TIME_MAX } else { NOTICE_TIME_MAX };
    while came.elapsed() < left() {
        std::thread::sleep(POLL_INTERVAL / 5);
    }
    if let Some(path) = half_done().take() {
        let _ = std::fs::remove_file(path);
    }
    let signal = CAME.load(Ordering::Relaxed);
    // SAFETY: plain calls. The handler has gone with the first signal, so this one is deadly.
    unsafe { libc::raise(signal) };
    std::process::exit(STATUS_SIGNAL + signal);
}

fn half_done() -> std::sync::MutexGuard<'static, Option<PathBuf>> {
    HALF_DONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that is not whole, for as long as this exists. If the process is ended while it is stuck, the
/// file is removed.
pub struct HalfDone(());

impl HalfDone {
    /// One file at a time.
    pub fn file(path: &Path) -> Self {
        *half_done() = Some(path.to_owned());
        Self(())
    }
}

impl Drop for HalfDone {
    fn drop(&mut self) {
        half_done().take();
    }
}

/// True once a signal has come. Who asks is expected to end soon.
pub fn stop_asked() -> bool {
    let asked = CAME.load(Ordering::Relaxed) != 0;
    if asked {
        NOTICED.store(true, Ordering::Relaxed);
    }
    asked
}

/// Exit status of a command that a signal has ended, as shells tell it.
pub fn status() -> i32 {
    match CAME.load(Ordering::Relaxed) {
        0 => STATUS_SIGNAL + libc::SIGINT,
        signal => STATUS_SIGNAL + signal,
    }
}

/// Waits for a signal, or until `over` says that there is nothing left to wait for.
pub fn wait(mut over: impl FnMut() -> bool) {
    while !stop_asked() && !over() {
        std::thread::sleep(POLL_INTERVAL);
    }
}
