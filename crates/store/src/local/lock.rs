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

/// Locks are held for moments. Who waits for longer is told whom for.
const QUIET_TIME: Duration = Duration::from_secs(3);

/// How often that is told again: for the log of a server, which somebody reads later.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

struct LocalLock(#[expect(dead_code, reason = "closing it lets go of the lock")] OwnedFd);

impl Lock for LocalLock {}

/// Locks an open file, whose path is for people; `None` where somebody else holds it and `wait` is
/// false.
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
            let _waits = tell_later(&file, path);
            rustix::io::retry_on_intr(|| fs::flock(&file, patiently))?;
        }
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    Ok(Some(Box::new(LocalLock(file))))
}

/// Tells whom this thread waits for, as long as what it returns exists. The kernel lets nobody wait
/// for a lock with a bound, and serves who waits in turn, which asking again and again would not; so
/// telling is another thread's work. Without one the lock is waited for all the same.
fn tell_later(file: &OwnedFd, path: &Path) -> Option<Sender<()>> {
    let stat = fs::fstat(file).ok()?;
    let path = path.to_owned();
    let (waits, over) = channel();
    let tell_at_times = move || {
        let mut time = QUIET_TIME;
        while over.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
            tell(&stat, &path);
            time = TELL_INTERVAL;
        }
    };
    thread::Builder::new().name("lock".to_owned()).spawn(tell_at_times).ok()?;
    Some(waits)
}

fn tell(stat: &Stat, path: &Path) {
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
