//! Reads that go on while their thread does other things: an `io_uring` whose completions are
//! looked at now and then, and whose descriptor tells `epoll` when it is worth looking.

use std::collections::{HashMap, VecDeque};
use std::io;

use io_uring::{IoUring, opcode, types};

use crate::{LateRead, LateReads};

/// Reads under way at once, a power of two.
const RING_ENTRIES: u32 = 128;

pub(super) struct RingReads {
    ring: IoUring,
    /// The kernel may write into these buffers until it says that it has ended.
    under_way: HashMap<u64, LateRead>,
    landed: VecDeque<LateRead>,
    /// Keys of what the kernel has not been told of yet, oldest first.
    queued: VecDeque<u64>,
    next_key: u64,
    /// The kernel takes no more.
    broken: bool,
}

impl RingReads {
    /// # Errors
    /// Where the kernel refuses a ring.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::new(RING_ENTRIES)?,
            under_way: HashMap::new(),
            landed: VecDeque::new(),
            queued: VecDeque::new(),
            next_key: 0,
            broken: false,
        })
    }

    fn reap(&mut self) {
        for completion in self.ring.completion() {
            let Some(mut read) = self.under_way.remove(&completion.user_data()) else { continue };
            read.result = match completion.result() {
                n if n >= 0 => Ok(n as usize),
                errno => Err(io::Error::from_raw_os_error(-errno)),
            };
            self.landed.push_back(read);
        }
    }

    /// Ends what the kernel was never told of.
    fn give_up(&mut self, error: &io::Error) {
        self.broken = true;
        for key in std::mem::take(&mut self.queued) {
            if let Some(mut read) = self.under_way.remove(&key) {
                read.result = Err(io::Error::new(error.kind(), error.to_string()));
                self.landed.push_back(read);
            }
        }
    }
}

impl LateReads for RingReads {
    fn has_room(&self) -> bool {
        !self.broken && self.under_way.len() < RING_ENTRIES as usize
    }

    fn start(&mut self, mut read: LateRead) {
        let length = u32::try_from(read.buf.len());
        let (Some(fd), Ok(length), true) = (read.file.raw_fd(), length, self.has_room()) else {
            read.result = Err(io::ErrorKind::Unsupported.into());
            return self.landed.push_back(read);
        };
        let key = self.next_key;
        self.next_key += 1;
        let entry = opcode::Read::new(types::Fd(fd), read.buf.as_mut_ptr(), length)
            .offset(read.offset)
            .build()
            .user_data(key);
        // SAFETY: buffer and file stay in `under_way`, where nothing touches them, until the
        // completion is here or the entry is known never to be submitted; `drop` waits for the rest.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // Not with room for all of them, as checked above.
            read.result = Err(io::ErrorKind::QuotaExceeded.into());
            return self.landed.push_back(read);
        }
        self.under_way.insert(key, read);
        self.queued.push_back(key);
    }

    fn submit(&mut self) {
        while !self.queued.is_empty() && !self.broken {
            match self.ring.submit() {
                Ok(taken) => drop(self.queued.drain(..taken.min(self.queued.len()))),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    _ => self.give_up(&error),
                },
            }
        }
    }

    fn take(&mut self) -> Option<LateRead> {
        if self.landed.is_empty() && !self.under_way.is_empty() {
            self.reap();
        }
        self.landed.pop_front()
    }

    fn raw_fd(&self) -> Option<i32> {
        Some(std::os::fd::AsRawFd::as_raw_fd(&self.ring))
    }
}

impl Drop for RingReads {
    fn drop(&mut self) {
        self.give_up(&io::ErrorKind::Interrupted.into());
        while !self.under_way.is_empty() {
            match self.ring.submitter().submit_and_wait(1) {
                Ok(_) => self.reap(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // Better lost than written into after they were given to somebody else.
                    std::mem::forget(std::mem::take(&mut self.under_way));
                }
            }
        }
    }
}
