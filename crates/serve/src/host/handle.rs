//! The handle by which other threads reach an image's thread.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};

use super::attendant::Attendant;
use super::local::{Completion, DeviceRequest};
use super::tally::Tally;
use crate::control::{Command, Reply};
use crate::nbd::NbdConnection;
use crate::wake::Wake;

/// A message to an image's thread.
pub(super) enum Message {
    /// Block I/O.
    Submit(DeviceRequest, Completion),
    /// Serve a client whose negotiation is over.
    AttachNbd(OwnedFd, NbdConnection),
    /// A management command.
    Execute(Command, Sender<Event>),
    /// How the image is used, for `status`.
    SetUsage(Option<String>),
    /// Sets the attendant of commands.
    SetAttendant(Arc<dyn Attendant>),
    /// As `Stop`, if nobody uses the image. The answer says whether it stops.
    StopIfUnused(Sender<bool>),
    /// Finish what was received, flush, close.
    Stop,
}

/// What a command sends back.
pub(super) enum Event {
    Progress(u64, u64),
    Done(Result<Reply>),
}

/// State shared by both sides.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) connections: AtomicUsize,
    pub(super) control_clients: AtomicUsize,
    pub(super) size_bytes: AtomicU64,
    pub(super) read_only: AtomicBool,
    pub(super) tally: Arc<Tally>,
    /// [`Hold`]s that exist.
    holds: Mutex<Holds>,
    over: AtomicBool,
    end: Mutex<Option<Result<()>>>,
    ended: Condvar,
}

#[derive(Default)]
struct Holds {
    count: usize,
    /// The image is being closed.
    refused: bool,
}

impl Shared {
    /// Notes that nobody is served any more. Closing the image may still take a while.
    pub(super) fn set_over(&self) {
        self.over.store(true, Ordering::Release);
    }

    fn holds(&self) -> MutexGuard<'_, Holds> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses new holds, if none exists. Returns false where one does.
    pub(super) fn refuse_holds(&self) -> bool {
        let mut holds = self.holds();
        holds.refused |= holds.count == 0;
        holds.refused
    }

    /// Refuses new holds. A client that wants the image opens it again when this host is over.
    pub(super) fn end_holds(&self) {
        self.holds().refused = true;
    }

    /// Notes that the image is no longer served, and wakes everyone who waits for that.
    pub(super) fn set_end(&self, outcome: Result<()>) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if end.is_none() {
            *end = Some(outcome);
        }
        self.set_over();
        self.ended.notify_all();
    }

    /// Waits for the end of the host; `None` if the image is still served after `limit`.
    fn wait_end(&self, limit: Option<Duration>) -> Option<Result<()>> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = &*end {
                return Some(outcome.as_ref().copied().map_err(Error::clone));
            }
            end = match deadline {
                None => self.ended.wait(end).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    let woken = self.ended.wait_timeout(end, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

pub(super) struct Inner {
    sender: Sender<Message>,
    wake: Arc<Wake>,
    shared: Arc<Shared>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.sender.send(Message::Stop);
        self.wake.raise();
    }
}

/// While this exists, the image counts as in use and does not give way. A client is about to be attached.
pub struct Hold(Arc<Shared>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds().count -= 1;
    }
}

/// Reaches an image that is served by its own thread. When the last clone is dropped, the image is
/// flushed and closed.
#[derive(Clone)]
pub struct HostHandle(Arc<Inner>);

impl HostHandle {
    pub(super) fn new(sender: Sender<Message>, wake: Arc<Wake>, shared: Arc<Shared>) -> Self {
        Self(Arc::new(Inner { sender, wake, shared }))
    }

    fn send(&self, message: Message) -> Result<()> {
        self.0.sender.send(message).map_err(|_| gone())?;
        self.0.wake.raise();
        Ok(())
    }

    /// Size of the image in bytes; changes when it is resized.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.shared.size_bytes.load(Ordering::Acquire)
    }

    /// True if nothing can be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.0.shared.read_only.load(Ordering::Acquire)
    }

    /// NBD clients served now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.shared.connections.load(Ordering::Acquire)
    }

    /// Connections of other processes to its control socket.
    #[must_use]
    pub fn control_clients(&self) -> usize {
        self.0.shared.control_clients.load(Ordering::Acquire)
    }

    /// Keeps the image from giving way; `None` if it is being closed, which [`Self::wait`] waits for.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        let mut holds = self.0.shared.holds();
        if holds.refused || self.is_over() {
            return None;
        }
        holds.count += 1;
        Some(Hold(Arc::clone(&self.0.shared)))
    }

    /// Hands over a client's socket after the negotiation.
    ///
    /// # Errors
    /// `Fenced` if the image is no longer served.
    pub fn attach_nbd(&self, socket: OwnedFd, connection: NbdConnection) -> Result<()> {
        // Count the client now, so that the image does not look unused in between.
        self.0.shared.connections.fetch_add(1, Ordering::AcqRel);
        self.send(Message::AttachNbd(socket, connection)).inspect_err(|_| {
            self.0.shared.connections.fetch_sub(1, Ordering::AcqRel);
        })
    }

    /// Queues block I/O; `done` is called with the outcome, in any case and exactly once.
    ///
    /// Requests that are queued together are carried out together; a flush covers what was
    /// completed before it was queued.
    pub fn submit(&self, request: DeviceRequest, done: Completion) {
        // A message that cannot be sent is dropped, and its completion reports that.
        let _ = self.send(Message::Submit(request, done));
    }

    /// Does block I/O and waits for it. A read returns its bytes.
    ///
    /// # Errors
    /// Those of the engine; `Fenced` if the image is no longer served.
    pub fn submit_and_wait(&self, request: DeviceRequest) -> Result<Vec<u8>> {
        let (sender, receiver) = mpsc::channel();
        self.submit(request, Completion::new(move |outcome| drop(sender.send(outcome))));
        receiver.recv().map_err(|_| gone())?
    }

    /// Runs a management command and waits for it, passing on its progress (done, total).
    ///
    /// # Errors
    /// Those of the command; `Fenced` if the image is no longer served.
    pub fn execute(&self, command: Command, progress: &mut dyn FnMut(u64, u64)) -> Result<Reply> {
        let (sender, receiver) = mpsc::channel();
        self.send(Message::Execute(command, sender))?;
        loop {
            match receiver.recv().map_err(|_| gone())? {
                Event::Progress(done, total) => progress(done, total),
                Event::Done(outcome) => return outcome,
            }
        }
    }

    /// Sets how `status` describes the use of the image, such as `device /dev/nbd0`. With `None` it
    /// shows the number of NBD connections.
    ///
    /// # Errors
    /// `Fenced` if the image is no longer served.
    pub fn set_usage(&self, usage: Option<String>) -> Result<()> {
        self.send(Message::SetUsage(usage))
    }

    /// Sets the attendant of commands on the image. A command is answered when the attendant's work is
    /// done.
    ///
    /// # Errors
    /// `Fenced` if the image is no longer served.
    pub fn set_attendant(&self, attendant: Arc<dyn Attendant>) -> Result<()> {
        self.send(Message::SetAttendant(attendant))
    }

    /// True once the image is no longer served. It may still be closing; [`Self::wait`] waits for that.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.shared.over.load(Ordering::Acquire)
    }

    /// Waits until the image is no longer served and closed. Returns `Ok` after a stop.
    ///
    /// # Errors
    /// The error that made the image unusable, or that of closing it.
    pub fn wait(&self) -> Result<()> {
        self.0.shared.wait_end(None).unwrap_or(Ok(()))
    }

    /// As [`Self::wait`], but returns `None` after `limit`.
    #[must_use]
    pub fn wait_timeout(&self, limit: Duration) -> Option<Result<()>> {
        self.0.shared.wait_end(Some(limit))
    }

    /// As [`Self::stop`], if nobody uses the image: no client, no hold, no process with a connection to
    /// its control socket. `None` if somebody does.
    #[must_use]
    pub fn stop_if_unused(&self) -> Option<Result<()>> {
        let (sender, receiver) = mpsc::channel();
        // If it cannot be sent, the end has been recorded or is about to be.
        let _ = self.send(Message::StopIfUnused(sender));
        match receiver.recv() {
            Ok(false) => None,
            Ok(true) | Err(_) => Some(self.wait()),
        }
    }

    /// Answers what has been received, disconnects every client, makes everything durable, closes
    /// the image and waits for that.
    ///
    /// # Errors
    /// Those of closing the image, or the error that had ended it before.
    pub fn stop(&self) -> Result<()> {
        // If it cannot be sent, the end has been recorded or is about to be.
        let _ = self.send(Message::Stop);
        self.wait()
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Fenced, "the image is no longer served")
}
