//! An NBD client in the transmission phase, as a lane of its image's rounds.
//!
//! Payloads of writes stay where the socket put them, and data is read to where it will be sent from.
//! A client's memory is limited whatever it sends: [`RECEIVE_BYTES_MIN`] for requests and
//! [`REPLY_BYTES_MIN`] for replies; beyond that what its [`Grant`] covers, at most
//! `WRITE_WHOLE_BYTES_MAX`, and [`REPLY_BYTES_MAX`] or one reply. A longer request is carried out in parts
//! (module `parts`). So no client waits for memory that another client holds. From a client that does not
//! take its replies nothing is read until it does.

mod lane;
mod plan;

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::operation::{Operation, Stages};
use super::parts::{PART_BYTES_MIN, Parted, PartedWrites, Place};
use super::tally::{Begun, Tally};
use crate::buffer::{Progress, RECEIVE_BYTES, ReceiveBuffer, SendBuffer};
use crate::nbd::request::{REQUEST_BYTES, Refusal, Request};
use crate::nbd::{Grant, NbdConnection};
use crate::pages::capacity_for;

/// With this many bytes of replies waiting for a connection, no more requests are taken from it.
const REPLY_BYTES_MAX: usize = 4 << 20;

/// Bytes that a connection may always use to receive: a part and its header.
const RECEIVE_BYTES_MIN: usize = 64 << 10;

/// Bytes that a connection may always use for replies: a part, or a whole READ of 64 KiB.
const REPLY_BYTES_MIN: usize = 128 << 10;

/// Limit on the runs in one reply to BLOCK_STATUS.
const STATUS_RUNS_MAX: usize = 4096;

/// What a connection is going to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Takes requests.
    Open,
    /// Takes no more requests; closes once its replies are sent.
    Closing,
    /// Closed, because the socket failed or the stream makes no sense.
    Dead,
}

/// A request of the round.
struct Exchange {
    operation: Operation,
    cookie: u64,
    flags: u16,
    /// Error number of the protocol for a request refused before the engine saw it.
    refused: Option<u32>,
    /// Where a write's data lies in the receive buffer.
    payload: Range<usize>,
    /// Where a successful reply lies in the send buffer; empty for a simple one.
    reply: Range<usize>,
    /// Which part of its request it is.
    place: Place,
    /// Its read is in flight with this number, or its write is in the batch with this number.
    in_flight: Option<u64>,
    /// Number of the flush that it waits for, where that ends later.
    in_flush: Option<u64>,
    answered: bool,
}

/// A READ in flight.
struct InFlightExchange {
    cookie: u64,
    /// The part of the reply before the data.
    head: Vec<u8>,
    bytes: usize,
    begun: Begun,
}

/// How a request is answered.
#[derive(Debug, Clone, Copy)]
struct Answer {
    cookie: u64,
    begun: Begun,
}

/// Who waits for a batch of writes or a flush with this number.
#[derive(Debug, Clone, Copy)]
struct Awaiting {
    number: u64,
    answer: Answer,
    /// The WRITE of which it is a part, where it is one.
    part_of: Option<u64>,
}

/// A piece of a read whose bytes come from the device.
pub(super) struct ReadPiece {
    /// Index of its exchange.
    pub(super) exchange: usize,
    /// First byte on the device.
    pub(super) offset: u64,
    /// Where it goes in the send buffer.
    pub(super) place: Range<usize>,
}

/// One client.
pub(super) struct Connection {
    socket: OwnedFd,
    settings: NbdConnection,
    receive: ReceiveBuffer,
    send: SendBuffer,
    exchanges: Vec<Exchange>,
    pieces: Vec<ReadPiece>,
    stages: Stages,
    in_flight: HashMap<u64, InFlightExchange>,
    /// Bytes that the replies to the reads in flight will take.
    in_flight_bytes: usize,
    /// Writes in flight.
    async_writes: Vec<Awaiting>,
    /// Requests that wait for a flush.
    async_flushes: Vec<Awaiting>,
    /// Writes and discards that the device has parked, by its number, and whether they are acknowledged only when
    /// durable.
    parked: HashMap<u64, (Awaiting, bool)>,
    tally: Arc<Tally>,
    /// Number of the next read.
    next_read: u64,
    /// A refused write whose payload is still to be skipped, and how much of it.
    skipping: Option<(Request, Refusal, u64)>,
    /// A WRITE that is carried out in parts.
    writing: Option<Parted>,
    /// What has become of its parts, and of those of WRITEs before it. With how they are answered, and whether they
    /// are acknowledged only when durable.
    parted_writes: PartedWrites<(Answer, bool)>,
    /// A READ that is answered in parts. No other request is answered before its end.
    reading: Option<Parted>,
    /// Memory that the buffers may have beyond the minimum.
    grant: Grant,
    /// When a failed request may be logged again.
    tell_after: Option<Instant>,
    /// Bytes that the next complete message needs in the receive buffer.
    message_bytes: usize,
    /// Bytes that the replies of the round may take.
    planned_reply_bytes: usize,
    /// The next request waits until replies have been sent.
    lacks_reply_room: bool,
    life: Life,
    /// It was used since the last [`Self::tidy`].
    pub(super) used: bool,
}

impl Connection {
    /// Takes over a socket after the negotiation. Its reads are numbered from `first_read` on.
    ///
    /// # Errors
    /// When there is no memory, or the socket refuses to be non-blocking.
    pub(super) fn new(
        socket: OwnedFd,
        settings: NbdConnection,
        first_read: u64,
        tally: Arc<Tally>,
    ) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let receive = ReceiveBuffer::new(&settings.received)?;
        let grant = Grant::new(settings.permit.clone());
        Ok(Self {
            socket,
            settings: NbdConnection { received: Vec::new(), ..settings },
            receive,
            send: SendBuffer::new(),
            exchanges: Vec::new(),
            pieces: Vec::new(),
            stages: Stages::default(),
            in_flight: HashMap::new(),
            in_flight_bytes: 0,
            async_writes: Vec::new(),
            async_flushes: Vec::new(),
            parked: HashMap::new(),
            tally,
            next_read: first_read,
            skipping: None,
            writing: None,
            parted_writes: PartedWrites::default(),
            reading: None,
            grant,
            tell_after: None,
            message_bytes: REQUEST_BYTES,
            planned_reply_bytes: 0,
            lacks_reply_room: false,
            life: Life::Open,
            used: true,
        })
    }

    /// The peer's name in logs.
    pub(super) fn peer(&self) -> &str {
        &self.settings.peer
    }

    /// Number of its next read.
    pub(super) fn next_read(&self) -> u64 {
        self.next_read
    }

    /// The socket.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// True if the connection is over.
    pub(super) fn is_over(&self) -> bool {
        let waiting = !self.in_flight.is_empty() || self.has_promised_answers();
        let answered = self.send.is_drained() && !waiting;
        self.life == Life::Dead || (self.life == Life::Closing && answered)
    }

    /// True if more bytes are wanted from the client.
    pub(super) fn wants_to_receive(&self) -> bool {
        self.life == Life::Open
            && self.reply_bytes() < REPLY_BYTES_MAX
            && self.reading.is_none()
            && !self.has_request()
    }

    /// Bytes that replies take, or will take.
    fn reply_bytes(&self) -> usize {
        self.send.used_bytes() + self.in_flight_bytes
    }

    /// True if replies wait for the socket.
    pub(super) fn wants_to_send(&self) -> bool {
        self.life != Life::Dead && !self.send.is_drained()
    }

    /// True if a request could be taken without receiving anything.
    pub(super) fn has_request(&self) -> bool {
        self.life == Life::Open
            && self.skipping.is_none()
            && self.receive.unread().len() >= self.message_bytes
    }

    /// True if [`Self::plan`] would make progress now.
    pub(super) fn can_plan(&self) -> bool {
        if self.reading.is_some() {
            return self.life == Life::Open && self.is_answered();
        }
        self.has_request() && (!self.lacks_reply_room || self.reply_bytes() == 0)
    }

    /// True if no reply waits to be sent, and none will without another request.
    fn is_answered(&self) -> bool {
        self.reply_bytes() == 0 && !self.has_promised_answers() && self.exchanges.is_empty()
    }

    /// True where requests wait for writes or flushes that are under way, or for a service.
    fn has_promised_answers(&self) -> bool {
        let under_way = !self.async_writes.is_empty() || !self.async_flushes.is_empty();
        under_way || !self.parked.is_empty()
    }

    /// True if [`Self::plan`] has found something to do.
    pub(super) fn has_plan(&self) -> bool {
        !self.exchanges.is_empty()
    }

    /// Takes no more requests.
    pub(super) fn close_after_replies(&mut self) {
        if self.life == Life::Open && self.reading.is_none() {
            self.life = Life::Closing;
        }
    }

    /// The client has closed the socket. The requests that it has sent are still carried out. Nobody waits
    /// for the answers.
    pub(super) fn hung_up(&mut self) {
        if self.life == Life::Closing {
            self.life = Life::Dead;
        }
    }

    /// Reads the socket once.
    pub(super) fn receive(&mut self) {
        self.used = true;
        let room = self.receive_room();
        match self.receive.receive_with(self.socket.as_fd(), room, usize::MAX) {
            Ok(Progress::Moved | Progress::Blocked) => {}
            Ok(Progress::Closed) => {
                // Complete requests received before are still carried out. After that the
                // socket reports again that it is closed.
                if !self.has_request() {
                    self.close_after_replies();
                }
            }
            Err(error) => self.fail("cannot receive", &error),
        }
    }

    /// Bytes to offer to the next read of the socket.
    fn receive_room(&mut self) -> usize {
        let offered = if self.receive.was_filled() { RECEIVE_BYTES } else { RECEIVE_BYTES_MIN };
        let wanted = offered.max(self.message_bytes);
        if self.affords(wanted, 0) {
            return wanted;
        }
        if self.message_bytes > RECEIVE_BYTES_MIN && !self.affords(self.message_bytes, 0) {
            // The memory that was free when the request was parsed is not free any more.
            self.message_bytes = match &self.writing {
                Some(writing) => { *writing }.take(PART_BYTES_MIN).bytes as usize,
                None => REQUEST_BYTES,
            };
        }
        self.message_bytes.max(RECEIVE_BYTES_MIN)
    }

    /// True if the buffers may grow to these sizes. Sizes that were allowed stay allowed until
    /// [`Self::tidy`].
    fn affords(&mut self, receive_bytes: usize, reply_bytes: usize) -> bool {
        let (receive, send) = (self.receive.capacity(), self.send.capacity());
        if receive_bytes <= receive && reply_bytes <= send {
            return true;
        }
        let beyond = |bytes: usize, now: usize, min: usize| {
            let capacity = if bytes <= now { now } else { capacity_for(bytes).unwrap_or(bytes) };
            capacity.saturating_sub(min)
        };
        // The buffers' sizes, or larger ones that were promised.
        let receive_bytes = receive_bytes.max(self.message_bytes);
        let reply_bytes = reply_bytes.max(self.reply_bytes() + self.planned_reply_bytes);
        let receive = beyond(receive_bytes, receive, RECEIVE_BYTES_MIN);
        let send = beyond(reply_bytes, send, REPLY_BYTES_MIN);
        receive.saturating_add(send) == 0 || self.grant.covers(receive.saturating_add(send))
    }

    /// Sends what the socket takes.
    pub(super) fn transmit(&mut self) {
        self.used = true;
        if self.life == Life::Dead {
            return;
        }
        if let Err(error) = self.send.send(self.socket.as_fd()) {
            self.fail("cannot send", &error);
        }
        if self.exchanges.is_empty() {
            self.send.reclaim();
        }
    }

    fn fail(&mut self, what: &str, error: &io::Error) {
        let peer = self.peer();
        tracing::debug!(peer, %error, "nbd connection lost: {what}");
        self.life = Life::Dead;
    }

    /// Gives buffers back if the client has been quiet since the last call, or if another client was
    /// refused memory.
    pub(super) fn tidy(&mut self) {
        let short = self.grant.memory_was_short();
        if (!self.used || short) && self.in_flight.is_empty() {
            self.receive.release_if_empty();
            self.send.release_if_empty();
            let receive = self.receive.capacity().saturating_sub(RECEIVE_BYTES_MIN);
            let send = self.send.capacity().saturating_sub(REPLY_BYTES_MIN);
            self.grant.keep(receive + send);
        }
        self.used = false;
    }

    /// True if [`Self::tidy`] may have something to give back.
    pub(super) fn holds_memory(&self) -> bool {
        self.receive.capacity() + self.send.capacity() > 0
    }
}
