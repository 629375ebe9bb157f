//! Waking a thread that sleeps in epoll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// An event that any thread raises and one thread waits for.
///
/// However often it is raised before it is taken, it costs one system call. Values published before a
/// [`Wake::raise`] are visible after the [`Wake::take`] that follows it.
#[derive(Debug)]
pub(crate) struct Wake {
    fd: OwnedFd,
    raised: AtomicBool,
}

impl Wake {
    /// # Errors
    /// When the process has no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd, raised: AtomicBool::new(false) })
    }

    /// Wakes the waiting thread.
    pub(crate) fn raise(&self) {
        if !self.raised.swap(true, Ordering::SeqCst) {
            // This cannot fail: the counter is far from its limit.
            let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        }
    }

    /// Resets the event. Look for published values after this call, not before.
    pub(crate) fn take(&self) {
        let mut count = [0; 8];
        // This fails only if the event was not raised, which is no error.
        let _ = rustix::io::read(&self.fd, &mut count);
        self.raised.store(false, Ordering::SeqCst);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
