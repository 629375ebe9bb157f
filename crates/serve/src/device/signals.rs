//! Waiting for the signals that end a process, without handlers.
//!
//! `unsafe` is here for three C calls on a signal set.

use std::mem::MaybeUninit;
use std::time::Duration;

/// What a service manager, a terminal or `unmap` sends.
const SIGNALS: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];

/// The signals that end a process, held back until they are waited for.
pub struct Termination(libc::sigset_t);

impl Termination {
    /// Holds the signals back in this thread and in those that it starts from now on: to be called
    /// before any is started.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn hold() -> std::io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initializes the set it is given; the numbers are valid signals, so
        // that neither call fails; the last argument may be null.
        let (set, error) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in SIGNALS {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let set = set.assume_init();
            (set, libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))
        };
        if error == 0 { Ok(Self(set)) } else { Err(std::io::Error::from_raw_os_error(error)) }
    }

    /// True if a signal came; waits at most `limit`.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        let limit = libc::timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        // SAFETY: set and time are initialized; no information about the signal is asked for.
        let signal = unsafe {
            libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), &raw const limit)
        };
        signal > 0
    }
}
