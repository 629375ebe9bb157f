//! Interruption by SIGINT and SIGTERM: the first asks for an orderly end, the second kills.
//!
//! A command that creates something checks for a signal between its steps, and then removes what is half
//! done. But a step can take forever: a pipe that nobody reads, a disk or another process that does not
//! answer. So a thread watches: if the command has not seen the signal after a moment, or has not
//! cleaned up after a while, the thread removes the unfinished file and the process dies of the
//! signal, as it would have without a handler. A partial image that is left is removed by the next import.
//! Servers are not watched: they make everything durable first, however long that takes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::pipe::PipeFlags;

/// How often a waiting server checks for a signal.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A command that has not seen the signal after this time is stuck.
const NOTICE_TIME_MAX: Duration = Duration::from_millis(500);
/// How long a command may take to clean up after it has seen the signal.
const CLEAR_TIME_MAX: Duration = Duration::from_secs(10);
/// What shells add to the number of the signal that ended a process.
const STATUS_SIGNAL: i32 = 128;

/// The first signal that has come; 0 before.
static CAME: AtomicI32 = AtomicI32::new(0);
/// True once the command has seen the signal.
static NOTICED: AtomicBool = AtomicBool::new(false);
/// The pipe by which the handler wakes the watching thread.
static WAKES: OnceLock<OwnedFd> = OnceLock::new();
/// The file that is removed if the watching thread ends the process.
static HALF_DONE: Mutex<Option<PathBuf>> = Mutex::new(None);

extern "C" fn on_signal(signal: libc::c_int) {
    CAME.store(signal, Ordering::Relaxed);
    if let Some(wakes) = WAKES.get() {
        // SAFETY: `write` is safe in a signal handler, the byte lives through the call, and the
        // descriptor is never closed. The pipe never fills: there are at most two signals. What the
        // call changes in `errno` is restored.
        unsafe {
            let errno = *libc::__errno_location();
            libc::write(wakes.as_raw_fd(), [0u8].as_ptr().cast(), 1);
            *libc::__errno_location() = errno;
        }
    }
}

/// From now on, the first SIGINT and the first SIGTERM are noted instead of killing the process. For servers.
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

/// As [`catch`], for commands: a stuck command is ended all the same.
pub fn catch_and_watch() {
    // Without a pipe or a thread, signals still kill the process, which ends the command too.
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
    // SAFETY: plain calls. The first signal has removed the handler, so this one kills the process.
    unsafe { libc::raise(signal) };
    std::process::exit(STATUS_SIGNAL + signal);
}

fn half_done() -> std::sync::MutexGuard<'static, Option<PathBuf>> {
    HALF_DONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stands for an unfinished file. If the process is ended while it is stuck and this exists, the
/// file is removed.
pub struct HalfDone(());

impl HalfDone {
    /// Registers the file. Only one at a time.
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

/// True once a signal has come. A caller that gets true has to end soon.
pub fn stop_asked() -> bool {
    let asked = CAME.load(Ordering::Relaxed) != 0;
    if asked {
        NOTICED.store(true, Ordering::Relaxed);
    }
    asked
}

/// Exit status of a command that a signal has ended, as in shells.
pub fn status() -> i32 {
    match CAME.load(Ordering::Relaxed) {
        0 => STATUS_SIGNAL + libc::SIGINT,
        signal => STATUS_SIGNAL + signal,
    }
}

/// Waits for a signal, or until `over` returns true.
pub fn wait(mut over: impl FnMut() -> bool) {
    while !stop_asked() && !over() {
        std::thread::sleep(POLL_INTERVAL);
    }
}
