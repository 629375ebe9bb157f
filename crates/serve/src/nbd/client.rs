//! A client in negotiation: its socket, its input, and the answer that it waits for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::NbdConnection;
use super::exports::Lease;
use super::negotiation::{Negotiation, Next, OPTION_BYTES_MAX};
use super::peer::{Peer, PeerKey};
use super::permits::Permit;
use crate::buffer::{Progress, ReceiveBuffer, SendBuffer};
use crate::poll::Interest;

/// Bytes of input that must fit, so that any option can be received.
const INPUT_BYTES_MAX: usize = OPTION_BYTES_MAX + 64;

/// Work that must be done for a client before its negotiation goes on.
pub(super) enum Job {
    List,
    /// Open the export that the client has named.
    Open(String),
}

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    List,
    Export,
}

/// Limit on the log lines about refused exports in [`REFUSALS_INTERVAL`]. A client may ask as often as it
/// likes.
const REFUSALS_TOLD_MAX: u32 = 100;

/// See [`REFUSALS_TOLD_MAX`].
const REFUSALS_INTERVAL: Duration = Duration::from_secs(10);

/// Counts refusals, so that clients cannot fill the log.
#[derive(Default)]
pub(super) struct Refusals {
    count: u32,
    until: Option<Instant>,
}

impl Refusals {
    fn may_be_told(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
        self.count <= REFUSALS_TOLD_MAX
    }

    /// Called from time to time: logs how many refusals were not logged.
    pub(super) fn tell(&mut self, now: Instant) {
        if self.until.is_some_and(|until| now < until) {
            return;
        }
        let untold = self.count.saturating_sub(REFUSALS_TOLD_MAX);
        if untold > 0 {
            tracing::warn!(untold, "more exports were refused");
        }
        (self.count, self.until) = (0, Some(now + REFUSALS_INTERVAL));
    }
}

pub(super) struct Client {
    pub(super) socket: OwnedFd,
    permit: Permit,
    /// The peer's name in logs.
    pub(super) peer: String,
    pub(super) peer_key: PeerKey,
    negotiation: Negotiation,
    receive: ReceiveBuffer,
    send: SendBuffer,
    /// A list to be sent after the content of `send`, and how much of it has been sent.
    list: Option<(Arc<[u8]>, usize)>,
    pub(super) deadline: Instant,
    /// Tells a client from an earlier one of the same number.
    pub(super) generation: u64,
    pub(super) interest: Interest,
    asked: Option<(Asked, Instant)>,
    /// The name by which it asked for the export that it waits for.
    export: String,
    /// Close the connection once everything is sent.
    closing: bool,
    /// Keeps the export open that it is going to use.
    pub(super) lease: Option<Lease>,
    /// The result of the negotiation. The client goes to its image once everything is sent.
    pub(super) settled: Option<NbdConnection>,
}

impl Client {
    /// A client that has just connected.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn greet(
        socket: OwnedFd,
        peer: &Peer,
        permit: Permit,
        generation: u64,
        deadline: Instant,
    ) -> io::Result<Self> {
        let mut greeting = Vec::new();
        let negotiation = Negotiation::new(&mut greeting);
        let mut send = SendBuffer::new();
        send.append(&greeting)?;
        Ok(Self {
            socket,
            permit,
            peer: peer.to_string(),
            peer_key: peer.key(),
            negotiation,
            receive: ReceiveBuffer::new(&[])?,
            send,
            list: None,
            deadline,
            generation,
            interest: Interest::READABLE,
            asked: None,
            export: String::new(),
            closing: false,
            lease: None,
            settled: None,
        })
    }

    /// The answer that it waits for.
    pub(super) fn asked(&self) -> Option<Asked> {
        self.asked.map(|(asked, _)| asked)
    }

    /// Since when it waits for the answer.
    pub(super) fn asked_at(&self) -> Option<Instant> {
        self.asked.map(|(_, at)| at)
    }

    /// The list that has not been sent completely.
    pub(super) fn list(&self) -> Option<&Arc<[u8]>> {
        self.list.as_ref().map(|(list, _)| list)
    }

    /// True if the server reads from it now.
    pub(super) fn receives(&self) -> bool {
        self.asked.is_none() && !self.closing && self.settled.is_none() && self.is_drained()
    }

    fn is_drained(&self) -> bool {
        self.send.is_drained() && self.list.is_none()
    }

    pub(super) fn is_over(&self) -> bool {
        self.closing && self.is_drained()
    }

    /// True if its negotiation is over and all output is sent.
    pub(super) fn is_settled(&self) -> bool {
        self.settled.is_some() && self.is_drained()
    }

    pub(super) fn interest_wanted(&self) -> Interest {
        Interest { readable: self.receives(), writable: !self.is_drained() }
    }

    pub(super) fn receive(&mut self) {
        let socket = self.socket.as_fd();
        match self.receive.receive_with(socket, INPUT_BYTES_MAX, INPUT_BYTES_MAX) {
            Ok(Progress::Moved | Progress::Blocked) => {}
            Ok(Progress::Closed) => self.closing = true,
            Err(error) => {
                tracing::debug!(peer = self.peer, %error, "nbd client lost");
                self.closing = true;
            }
        }
    }

    /// Sends what the socket takes. Returns true if that was the end of a list.
    pub(super) fn transmit(&mut self) -> bool {
        let sent = self.send.send(self.socket.as_fd()).and_then(|_| self.transmit_list());
        match sent {
            Ok(ended) => {
                // Most silent clients have taken the greeting. They then hold no buffer.
                self.send.release_if_empty();
                ended
            }
            Err(_) => {
                (self.send, self.list) = (SendBuffer::new(), None);
                self.closing = true;
                false
            }
        }
    }

    fn transmit_list(&mut self) -> io::Result<bool> {
        while self.send.is_drained()
            && let Some((list, sent)) = &mut self.list
        {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, &list[*sent..], flags) {
                Ok(bytes) => *sent += bytes,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if *sent == list.len() {
                self.list = None;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Handles the received bytes. Returns the work that must be done for the client.
    pub(super) fn negotiate(&mut self) -> Option<Job> {
        let waits = self.asked.is_some() || self.list.is_some();
        if waits || self.closing || self.settled.is_some() {
            return None;
        }
        let mut output = Vec::new();
        let (taken, next) = self.negotiation.advance(self.receive.unread(), &mut output);
        self.receive.consume(taken);
        self.queue(&output);
        match next {
            Next::List => {
                self.asked = Some((Asked::List, Instant::now()));
                Some(Job::List)
            }
            Next::Export(name) => {
                self.asked = Some((Asked::Export, Instant::now()));
                self.export.clone_from(&name);
                Some(Job::Open(name))
            }
            Next::Close => {
                self.closing = true;
                None
            }
            Next::Receive | Next::Transmit { .. } => None,
        }
    }

    fn queue(&mut self, output: &[u8]) {
        if self.send.append(output).is_err() {
            self.closing = true;
        }
    }

    /// Answers with the list that it waits for.
    pub(super) fn answer_list(&mut self, list: Result<&Arc<[u8]>, &Error>) {
        self.asked = None;
        let mut output = Vec::new();
        match list {
            Ok(list) => {
                self.negotiation.list_is_answered();
                self.list = Some((Arc::clone(list), 0));
            }
            Err(error) => self.negotiation.refuse_list(error, &mut output),
        }
        self.queue(&output);
    }

    /// Answers with the export that it waits for.
    pub(super) fn answer_export(&mut self, lease: Result<Lease>, refusals: &mut Refusals) {
        self.asked = None;
        let mut output = Vec::new();
        let info = lease.as_ref().map(|lease| &lease.info);
        let next = self.negotiation.answer_export(info, &mut output);
        if let Err(error) = &lease
            && refusals.may_be_told()
        {
            // The client gets only the kind of the error. The error itself is logged.
            let (peer, export, text) = (&*self.peer, &*self.export, error.sentence().to_string());
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Interrupted => {
                    tracing::info!(peer, export, error = text, "export refused");
                }
                // The administrator may have to act on these.
                _ => tracing::warn!(peer, export, error = text, "export refused"),
            }
        }
        self.queue(&output);
        match next {
            Next::Transmit { structured_replies, allocation_context } => {
                self.lease = lease.ok();
                self.settled = Some(NbdConnection {
                    structured_replies,
                    allocation_context,
                    received: self.receive.unread().to_vec(),
                    peer: self.peer.clone(),
                    permit: Some(self.permit.clone()),
                });
            }
            Next::Close => self.closing = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_do_not_fill_the_log() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        refusals.tell(now);
        let told = |refusals: &mut Refusals| (0..1000).filter(|_| refusals.may_be_told()).count();
        assert_eq!(told(&mut refusals), REFUSALS_TOLD_MAX as usize);
        refusals.tell(now);
        assert_eq!(told(&mut refusals), 0);
        refusals.tell(now + REFUSALS_INTERVAL);
        assert_eq!(told(&mut refusals), REFUSALS_TOLD_MAX as usize);
    }
}
