//! Waking the owner of asynchronous I/O from any thread.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::{AsyncIo, AsyncRead, AsyncWrite, IoCompletion, Waker};

/// An event that any thread raises. Clones are the same event.
#[derive(Clone)]
pub(super) struct Event(Arc<OwnedFd>);

impl Event {
    /// # Errors
    /// When the process has no descriptors left.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    pub(super) fn waker(&self) -> Waker {
        let event = self.clone();
        Arc::new(move || {
            // This cannot fail: the counter is far from its limit.
            let _ = rustix::io::write(&*event.0, &1_u64.to_ne_bytes());
        })
    }

    /// Resets the event.
    pub(super) fn take(&self) {
        // This fails only if the event was not raised, which is no error.
        let _ = rustix::io::read(&*self.0, &mut [0; 8]);
    }

    pub(super) fn raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// For where the kernel refuses a ring: no operation can be started, but the owner can be woken.
pub(super) struct OnlyWoken(pub Event);

impl AsyncIo for OnlyWoken {
    fn has_room(&self) -> bool {
        false
    }

    fn start(&mut self, _: AsyncRead) {}

    fn start_write(&mut self, _: AsyncWrite) {}

    fn submit(&mut self) {}

    fn take(&mut self) -> Option<IoCompletion> {
        self.0.take();
        None
    }

    fn wait(&mut self) {}

    fn raw_fd(&self) -> Option<i32> {
        Some(self.0.raw_fd())
    }

    fn waker(&mut self) -> Option<Waker> {
        Some(self.0.waker())
    }
}
