//! Locks of whole files, against other processes and other holders in this one.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::fs::{self, FlockOperation, Stat};
use rustix::io::Errno;

use super::holder::holder_of;
use crate::{Lock, LockMode};

/// Locks are normally held for moments. After this time of waiting, a warning names the holder.
const QUIET_TIME: Duration = Duration::from_secs(3);

/// Time between further warnings, for people who read a server's log later.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

struct LocalLock(#[expect(dead_code, reason = "closing it lets go of the lock")] OwnedFd);

impl Lock for LocalLock {}

/// Locks an open file; `None` where somebody else holds the lock and `wait` is false. `path` is for messages.
pub(super) fn flock(
    file: OwnedFd,
    path: &Path,
    mode: LockMode,
    wait: bool,
) -> io::Result<Option<Box<dyn Lock>>> {
    let (at_once, patiently) = match mode {
        LockMode::Shared => (FlockOperation::NonBlockingLockShared, FlockOperation::LockShared),
        LockMode::Exclusive => {
            (FlockOperation::NonBlockingLockExclusive, FlockOperation::LockExclusive)
        }
    };
    match rustix::io::retry_on_intr(|| fs::flock(&file, at_once)) {
        Err(Errno::WOULDBLOCK) if wait => {
            let _waits = warn_later(&file, path);
            rustix::io::retry_on_intr(|| fs::flock(&file, patiently))?;
        }
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    Ok(Some(Box::new(LocalLock(file))))
}

/// Warns, until the returned value is dropped, that this thread waits for a lock. The kernel offers no wait
/// with a time limit. Polling would lose the place in the kernel's queue. So another thread warns. Where
/// that thread cannot be started, there is no warning.
fn warn_later(file: &OwnedFd, path: &Path) -> Option<Sender<()>> {
    let stat = fs::fstat(file).ok()?;
    let path = path.to_owned();
    let (waits, over) = channel();
    let warn_from_time_to_time = move || {
        let mut time = QUIET_TIME;
        while over.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
            warn(&stat, &path);
            time = WARN_INTERVAL;
        }
    };
    thread::Builder::new().name("lock".to_owned()).spawn(warn_from_time_to_time).ok()?;
    Some(waits)
}

fn warn(stat: &Stat, path: &Path) {
    let path = path.display();
    match holder_of(stat, "FLOCK") {
        Some(holder) => tracing::warn!("waiting for {path}, which is locked by {holder}"),
        None => {
            tracing::warn!(
                "waiting for {path}, which another process has locked; 'lslocks' may tell which"
            )
        }
    }
}
