//! Asynchronous reads and writes by an `io_uring`. Its owner asks for completions now and then. The ring's
//! descriptor is readable for `epoll` when there may be some.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use super::wake::Event;
use crate::{AsyncIo, AsyncRead, AsyncWrite, IoCompletion, Waker};

/// Limit on operations in flight; a power of two.
const RING_ENTRIES: u32 = 128;
/// Time between two looks for completions where the kernel refuses to wait for them.
const WAIT_STEP: Duration = Duration::from_millis(1);

/// Key of the operation that waits for the event.
const EVENT_KEY: u64 = u64::MAX;

pub(super) struct RingIo {
    ring: IoUring,
    /// Operations in flight. The kernel may use their buffers until their completion.
    in_flight: HashMap<u64, IoCompletion>,
    completed: VecDeque<IoCompletion>,
    /// Keys of operations that the kernel has not taken yet, oldest first.
    queued: VecDeque<u64>,
    next_key: u64,
    /// The kernel takes no more operations.
    broken: bool,
    /// Wakes the owner. From then on the ring waits for it.
    event: Option<Event>,
    /// The ring does not wait for the event.
    unwatched: bool,
}

impl IoCompletion {
    fn set_result(&mut self, result: io::Result<usize>) {
        match self {
            Self::Read(read) => read.result = result,
            Self::Write(write) => write.result = result,
        }
    }
}

impl RingIo {
    /// # Errors
    /// Where the kernel refuses a ring.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::new(RING_ENTRIES)?,
            in_flight: HashMap::new(),
            completed: VecDeque::new(),
            queued: VecDeque::new(),
            next_key: 0,
            broken: false,
            event: None,
            unwatched: false,
        })
    }

    fn reap(&mut self) {
        for completion in self.ring.completion() {
            if completion.user_data() == EVENT_KEY {
                self.unwatched = true;
                continue;
            }
            let Some(mut ended) = self.in_flight.remove(&completion.user_data()) else { continue };
            ended.set_result(match completion.result() {
                n if n >= 0 => Ok(n as usize),
                errno => Err(io::Error::from_raw_os_error(-errno)),
            });
            self.completed.push_back(ended);
        }
    }

    /// Lets the ring wait for the event, if it does not.
    fn watch(&mut self) {
        if self.event.is_none() || !self.unwatched {
            return;
        }
        // What is queued is counted when it is submitted, so this operation must not be among it.
        self.submit();
        let Some(event) = self.event.as_ref().filter(|_| !self.broken) else { return };
        // Whoever raises it from now on ends the wait that begins here.
        event.take();
        let entry = opcode::PollAdd::new(types::Fd(event.raw_fd()), libc::POLLIN as u32).build();
        // SAFETY: the operation uses no memory, and the descriptor is open as long as the ring is: `event` is dropped
        // after it.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(EVENT_KEY)) };
        self.unwatched = pushed.is_err();
        while pushed.is_ok() && !self.broken {
            match self.ring.submit() {
                Ok(_) => return,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    _ => self.give_up(&error),
                },
            }
        }
    }

    /// Completes, with an error, the operations that the kernel has not taken.
    fn give_up(&mut self, error: &io::Error) {
        self.broken = true;
        for key in std::mem::take(&mut self.queued) {
            if let Some(mut ended) = self.in_flight.remove(&key) {
                ended.set_result(Err(io::Error::new(error.kind(), error.to_string())));
                self.completed.push_back(ended);
            }
        }
    }

    /// Queues an operation. Where it has no entry, because the ring cannot do it, it completes with an
    /// error.
    fn queue(&mut self, mut operation: IoCompletion, entry: Option<squeue::Entry>) {
        let Some(entry) = entry.filter(|_| self.has_room()) else {
            operation.set_result(Err(io::ErrorKind::Unsupported.into()));
            return self.completed.push_back(operation);
        };
        let key = self.next_key;
        self.next_key += 1;
        // SAFETY: buffer and file stay in `in_flight`, where nothing touches them, until the
        // completion is here or the entry is known never to be submitted; `drop` waits for the rest.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(key)) };
        if pushed.is_err() {
            // This does not happen: the check above has left room for it.
            operation.set_result(Err(io::ErrorKind::QuotaExceeded.into()));
            return self.completed.push_back(operation);
        }
        self.in_flight.insert(key, operation);
        self.queued.push_back(key);
    }
}

impl AsyncIo for RingIo {
    fn has_room(&self) -> bool {
        !self.broken && self.in_flight.len() < RING_ENTRIES as usize
    }

    fn takes_writes(&self) -> bool {
        true
    }

    fn start(&mut self, mut read: AsyncRead) {
        let length = u32::try_from(read.buf.len()).ok();
        let entry = read.file.raw_fd().zip(length).map(|(fd, length)| {
            let read_into = opcode::Read::new(types::Fd(fd), read.buf.as_mut_ptr(), length);
            read_into.offset(read.offset).build()
        });
        self.queue(IoCompletion::Read(read), entry);
    }

    fn start_write(&mut self, write: AsyncWrite) {
        let data = write.data.as_slice();
        let length = u32::try_from(data.len()).ok();
        let entry = write.file.raw_fd().zip(length).map(|(fd, length)| {
            let write_from = opcode::Write::new(types::Fd(fd), data.as_ptr(), length);
            write_from.offset(write.offset).build()
        });
        self.queue(IoCompletion::Write(write), entry);
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

    fn take(&mut self) -> Option<IoCompletion> {
        if self.completed.is_empty() && (!self.in_flight.is_empty() || self.event.is_some()) {
            self.reap();
            self.watch();
        }
        self.completed.pop_front()
    }

    fn wait(&mut self) {
        self.submit();
        while self.completed.is_empty() && !self.in_flight.is_empty() {
            match self.ring.submitter().submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    // Completions still arrive, so look for them from time to time.
                    _ => std::thread::sleep(WAIT_STEP),
                },
            }
            self.reap();
        }
    }

    fn raw_fd(&self) -> Option<i32> {
        Some(std::os::fd::AsRawFd::as_raw_fd(&self.ring))
    }

    fn waker(&mut self) -> Option<Waker> {
        if self.event.is_none() {
            self.event = Some(Event::new().ok()?);
            self.unwatched = true;
            self.watch();
        }
        self.event.as_ref().map(Event::waker)
    }
}

impl Drop for RingIo {
    fn drop(&mut self) {
        self.give_up(&io::ErrorKind::Interrupted.into());
        while !self.in_flight.is_empty() {
            match self.ring.submitter().submit_and_wait(1) {
                Ok(_) => self.reap(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The kernel may still write into these buffers, so their memory must not be used
                    // again. It is leaked.
                    std::mem::forget(std::mem::take(&mut self.in_flight));
                }
            }
        }
    }
}
