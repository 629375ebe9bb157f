//! The process that serves a device, found by the lock that it holds.
//!
//! A process number in a file may be forged, or may belong to another process meanwhile. For a record lock
//! the kernel names the process that holds it, and the lock ends with that process.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{
    Flock, FlockOffsetType, FlockType, Pid, PidfdFlags, Signal, fcntl_getlk, pidfd_open,
    pidfd_send_signal,
};

/// How often the holder is looked for at most. It may change meanwhile.
const ATTEMPTS_MAX: u32 = 3;

/// A process that serves a device. Signals and waits reach only this process, even if another process gets
/// its number later.
pub struct ServerProcess {
    pid: Pid,
    fd: OwnedFd,
}

impl ServerProcess {
    /// The process that holds the lock on `lock`, if there is one.
    pub(super) fn holding(lock: &OwnedFd) -> Result<Option<Self>> {
        let failed = |e: Errno| Error::from_io("cannot tell who serves the device", e.into());
        for _ in 0..ATTEMPTS_MAX {
            let Some(pid) = holder(lock)? else { return Ok(None) };
            let fd = match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(fd) => fd,
                // The process has ended meanwhile.
                Err(Errno::SRCH) => continue,
                Err(error) => return Err(failed(error)),
            };
            // The number still holds the lock. So the descriptor is of that process, and not of one that got
            // its number later.
            if holder(lock)? == Some(pid) {
                return Ok(Some(Self { pid, fd }));
            }
        }
        Ok(None)
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Asks it to end in good order.
    ///
    /// # Errors
    /// What the operating system says. It is no error if the process has ended.
    pub fn terminate(&self) -> Result<()> {
        match pidfd_send_signal(&self.fd, Signal::TERM) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => {
                let context = format!("cannot end process {}", self.pid());
                Err(Error::from_io(context, error.into()))
            }
        }
    }

    /// Waits for its end. Returns false where it has not ended after `limit`.
    #[must_use]
    pub fn wait_end(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                ended => return ended.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

/// Makes this process the one that serves. Returns false while another process does. This ends when `lock`,
/// or any other descriptor of this file in this process, is closed.
pub(super) fn hold(lock: &OwnedFd) -> Result<bool> {
    match rustix::fs::fcntl_lock(lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(error) => Err(Error::from_io("cannot lock the device's record", error.into())),
    }
}

fn holder(lock: &OwnedFd) -> Result<Option<Pid>> {
    let whole = Flock {
        start: 0,
        length: 0,
        pid: None,
        typ: FlockType::WriteLock,
        offset_type: FlockOffsetType::Set,
    };
    let found = fcntl_getlk(lock, &whole)
        .map_err(|e| Error::from_io("cannot tell who serves the device", e.into()))?;
    match found {
        None => Ok(None),
        Some(held) => {
            held.pid.filter(|pid| pid.as_raw_nonzero().get() > 0).map(Some).ok_or_else(|| {
                let message = "the device is served from another container; unmap it there";
                Error::new(ErrorKind::Busy, message)
            })
        }
    }
}
