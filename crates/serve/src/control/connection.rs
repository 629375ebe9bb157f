//! A control client, as its image's thread sees it: nothing here blocks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};

use super::command::{Command, Reply};
use super::frame::{self, Decoded, HEADER_BYTES};
use super::message::{self, Answer, Request};
use crate::buffer::{Progress, ReceiveBuffer, SendBuffer};
use crate::credentials::Credentials;

/// Progress is told no more often than this.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Invariant: a command is taken only when all answers before it have been sent.
pub(crate) struct ControlConnection {
    socket: Arc<OwnedFd>,
    peer: Credentials,
    /// Commands for another one are refused.
    image: String,
    /// Its last command was to give way: it wants the image for itself, and does not use it.
    wants_image: bool,
    receive: ReceiveBuffer,
    send: SendBuffer,
    frame_bytes: usize,
    progress_told: Option<Instant>,
    over: bool,
}

impl ControlConnection {
    pub(super) fn new(socket: OwnedFd, peer: Credentials, image: &str) -> io::Result<Self> {
        Ok(Self {
            socket: Arc::new(socket),
            peer,
            image: image.to_owned(),
            wants_image: false,
            receive: ReceiveBuffer::new(&[])?,
            send: SendBuffer::new(),
            frame_bytes: HEADER_BYTES,
            progress_told: None,
            over: false,
        })
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The socket, for signs of life while its thread is busy.
    pub(crate) fn shared_socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// The process that uses the image by this connection; `None` if it is not in use by it.
    pub(crate) fn user(&self) -> Option<u32> {
        (!self.over && !self.wants_image).then_some(self.peer.pid)
    }

    pub(crate) fn wants_to_receive(&self) -> bool {
        !self.over && self.send.is_drained()
    }

    pub(crate) fn wants_to_send(&self) -> bool {
        !self.over && !self.send.is_drained()
    }

    /// Reads the socket once.
    pub(crate) fn receive(&mut self) {
        if !self.send.is_drained() {
            return;
        }
        match self.receive.receive(self.socket.as_fd(), self.frame_bytes) {
            Ok(Progress::Moved | Progress::Blocked) => {}
            Ok(Progress::Closed) => self.over = true,
            Err(error) => self.fail(&error),
        }
    }

    /// Sends what the socket takes.
    pub(crate) fn transmit(&mut self) {
        if let Err(error) = self.send.send(self.socket.as_fd()) {
            self.fail(&error);
        }
        self.send.release_if_empty();
    }

    fn fail(&mut self, error: &dyn std::fmt::Display) {
        tracing::debug!(%error, "control connection lost");
        self.over = true;
    }

    /// The next complete command.
    pub(crate) fn next_command(&mut self) -> Option<Command> {
        if self.over || !self.send.is_drained() {
            return None;
        }
        let (command, bytes) = match frame::decode(self.receive.unread()) {
            Ok(Decoded::Incomplete(bytes)) => {
                self.frame_bytes = bytes;
                return None;
            }
            Ok(Decoded::Complete(frame)) => (message::decode_command(&frame), frame.bytes()),
            Err(error) => {
                tracing::warn!("{}; closing the connection", error.sentence());
                self.over = true;
                return None;
            }
        };
        self.receive.consume(bytes);
        self.receive.release_if_empty();
        self.frame_bytes = HEADER_BYTES;
        match command.and_then(|request| self.check(request)) {
            Ok(command) => {
                self.wants_image = matches!(command, Command::GiveWay);
                Some(command)
            }
            Err(error) => {
                // Its frame was sound: the client may be of another version and can go on.
                self.answer(Err(error));
                None
            }
        }
    }

    fn check(&self, request: Request) -> Result<Command> {
        if request.image == self.image {
            return Ok(request.command);
        }
        let message = format!(
            "process {} has the image {} open, and not {}, which the command is for",
            std::process::id(),
            self.image,
            if request.image.is_empty() { "a nameless one" } else { &request.image }
        );
        Err(Error::new(ErrorKind::PermissionDenied, message))
    }

    /// Tells that the command taken last is being carried out; false if nobody waits for it any more,
    /// so that it must not be.
    pub(crate) fn begin(&mut self) -> bool {
        self.say(&Answer::Begun);
        !self.over
    }

    /// Reports how far a command is, if the last report is old enough.
    pub(crate) fn tell_progress(&mut self, done: u64, total: u64) {
        let now = Instant::now();
        let recently = self.progress_told.is_some_and(|told| now < told + PROGRESS_INTERVAL);
        if !recently && self.send.is_drained() {
            self.progress_told = Some(now);
            self.say(&Answer::Progress { done, total });
        }
    }

    /// Ends a command.
    pub(crate) fn answer(&mut self, outcome: Result<Reply>) {
        self.progress_told = None;
        self.say(&match outcome {
            Ok(reply) => Answer::Reply { reply },
            Err(error) => Answer::from(&error),
        });
    }

    fn say(&mut self, answer: &Answer) {
        let mut bytes = Vec::new();
        if let Err(error) = message::encode_answer(answer, &mut bytes) {
            bytes.clear();
            if message::encode_answer(&Answer::from(&error), &mut bytes).is_err() {
                self.over = true;
                return;
            }
        }
        if let Err(error) = self.send.append(&bytes) {
            self.fail(&error);
        }
        self.transmit();
    }
}
