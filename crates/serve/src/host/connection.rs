//! An NBD client in the transmission phase, as a lane of its image's rounds.
//!
//! Payloads of writes stay where the socket put them and reads land where they will be sent from.
//! A client's share of memory is bounded whatever it sends: one request with its payload in the
//! receive buffer, and [`REPLY_BYTES_MAX`] or one reply, whichever is more, in the send buffer. A
//! client that does not take its replies is not read from until it does.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use marcot::{BlockDevice, ErrorKind, Read, Result, Write};

use super::buffer::{Progress, ReceiveBuffer, SendBuffer};
use super::operation::{Failure, Operation, OperationKind, Stages};
use super::read_layout;
use super::round::{Lane, ReadEnd};
use crate::nbd::NbdConnection;
use crate::nbd::reply;
use crate::nbd::request::{self, Limits, Parsed, REQUEST_BYTES, Refusal, Request};
use crate::nbd::wire::{command, command_flag};

/// Requests taken from one connection in one round, so that it cannot starve the others.
const REQUESTS_PER_ROUND_MAX: usize = 256;

/// Replies kept for a connection before no more requests are taken from it, in bytes.
const REPLY_BYTES_MAX: usize = 4 << 20;

/// Runs told in one reply to BLOCK_STATUS.
const STATUS_RUNS_MAX: usize = 4096;

/// Room for a reply besides its data: headers of all chunks, or an error with its message.
const REPLY_OVERHEAD_BYTES: usize = 2048;

/// What a connection is going to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Takes requests.
    Open,
    /// Takes no more requests; closes once its replies are sent.
    Closing,
    /// Over: the socket failed or the stream makes no sense.
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
    /// Its read is under way by this number, or its write is with the batch of this number.
    late: Option<u64>,
    answered: bool,
}

/// A READ that is under way.
struct LateExchange {
    cookie: u64,
    /// What goes before the data in the reply.
    head: Vec<u8>,
    bytes: usize,
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
    late: HashMap<u64, LateExchange>,
    /// Bytes that the replies to those will take.
    late_bytes: usize,
    /// Writes that are under way, by the number of their batch: their cookies.
    late_writes: Vec<(u64, u64)>,
    /// Number of the next read.
    next_read: u64,
    /// A refused write whose payload is still to be skipped, and how much of it.
    skipping: Option<(Request, Refusal, u64)>,
    /// Bytes the next complete message needs in the receive buffer.
    message_bytes: usize,
    /// Bytes that the replies of the round may take.
    planned_reply_bytes: usize,
    /// The next request waits until replies have been sent.
    lacks_reply_room: bool,
    life: Life,
    /// Used since the last look of the housekeeping.
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
    ) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let receive = ReceiveBuffer::new(&settings.received)?;
        Ok(Self {
            socket,
            settings: NbdConnection { received: Vec::new(), ..settings },
            receive,
            send: SendBuffer::new(),
            exchanges: Vec::new(),
            pieces: Vec::new(),
            stages: Stages::default(),
            late: HashMap::new(),
            late_bytes: 0,
            late_writes: Vec::new(),
            next_read: first_read,
            skipping: None,
            message_bytes: REQUEST_BYTES,
            planned_reply_bytes: 0,
            lacks_reply_room: false,
            life: Life::Open,
            used: true,
        })
    }

    /// Who is at the other end, for logs.
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

    /// True if nothing more will come of it.
    pub(super) fn is_over(&self) -> bool {
        let late = !self.late.is_empty() || !self.late_writes.is_empty();
        let answered = self.send.is_drained() && !late;
        self.life == Life::Dead || (self.life == Life::Closing && answered)
    }

    /// True if more bytes are wanted from the client.
    pub(super) fn wants_to_receive(&self) -> bool {
        self.life == Life::Open && self.reply_bytes() < REPLY_BYTES_MAX && !self.has_request()
    }

    /// Bytes that replies take, or will take.
    fn reply_bytes(&self) -> usize {
        self.send.used_bytes() + self.late_bytes
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
        self.has_request() && (!self.lacks_reply_room || self.reply_bytes() == 0)
    }

    /// True if [`Self::plan`] has found something to do.
    pub(super) fn has_plan(&self) -> bool {
        !self.exchanges.is_empty()
    }

    /// Takes no more requests.
    pub(super) fn close_after_replies(&mut self) {
        if self.life == Life::Open {
            self.life = Life::Closing;
        }
    }

    /// The client has closed the socket: of what it has sent the rest is still carried out, and
    /// then nobody waits for answers.
    pub(super) fn hung_up(&mut self) {
        if self.life == Life::Closing {
            self.life = Life::Dead;
        }
    }

    /// Reads the socket once.
    pub(super) fn receive(&mut self) {
        self.used = true;
        match self.receive.receive(self.socket.as_fd(), self.message_bytes) {
            Ok(Progress::Moved | Progress::Blocked) => {}
            Ok(Progress::Closed) => {
                // Complete requests received before are still carried out, and then the socket
                // tells again that it is closed.
                if !self.has_request() {
                    self.close_after_replies();
                }
            }
            Err(error) => self.fail("cannot receive", &error),
        }
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

    /// Turns what has been received into operations of the coming round.
    pub(super) fn plan(&mut self, device: &dyn BlockDevice) {
        let limits = Limits {
            size_bytes: device.size_bytes(),
            read_only: device.read_only(),
            structured_replies: self.settings.structured_replies,
            allocation_context: self.settings.allocation_context,
        };
        while self.life == Life::Open && self.exchanges.len() < REQUESTS_PER_ROUND_MAX {
            if self.skipping.is_some() && !self.skip() {
                break;
            }
            if !self.plan_one(&limits) {
                break;
            }
        }
    }

    /// Takes one request; false if there is none, or no room for its reply.
    fn plan_one(&mut self, limits: &Limits) -> bool {
        self.message_bytes = REQUEST_BYTES;
        let request = match request::parse(self.receive.unread()) {
            Parsed::Incomplete => return false,
            Parsed::BadMagic(magic) => {
                let peer = self.peer();
                tracing::warn!(peer, "not an nbd request (magic {magic:#010x}); closing");
                self.life = Life::Closing;
                return false;
            }
            Parsed::Request(request) => request,
        };
        if let Err(refusal) = request.check(limits) {
            self.receive.consume(REQUEST_BYTES);
            self.skipping = Some((request, refusal, u64::from(request.payload_bytes())));
            return self.skip();
        }
        if request.command == command::DISC {
            self.life = Life::Closing;
            return false;
        }
        // Checked above: at most 32 MiB.
        let payload_bytes = request.payload_bytes() as usize;
        self.message_bytes = REQUEST_BYTES + payload_bytes;
        if self.receive.unread().len() < self.message_bytes || !self.takes_reply_room(&request) {
            return false;
        }
        self.receive.consume(REQUEST_BYTES);
        let payload = self.receive.consume(payload_bytes);
        self.message_bytes = REQUEST_BYTES;
        self.push(&request, payload, None);
        true
    }

    /// Drops what is here of a refused payload; true once it is all gone and the refusal queued.
    fn skip(&mut self) -> bool {
        let Some((request, refusal, left)) = self.skipping else { return true };
        let here = self.receive.unread().len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.receive.consume(here);
        let left = left - here as u64;
        if left > 0 {
            self.skipping = Some((request, refusal, left));
            return false;
        }
        self.skipping = None;
        self.push(&request, 0..0, Some(refusal));
        true
    }

    /// Counts the reply to `request` in, if there is room for it.
    fn takes_reply_room(&mut self, request: &Request) -> bool {
        let used = self.reply_bytes() + self.planned_reply_bytes;
        let bytes = reply_bytes_max(request);
        self.lacks_reply_room = used > 0 && used + bytes > REPLY_BYTES_MAX;
        if self.lacks_reply_room {
            return false;
        }
        self.planned_reply_bytes += bytes;
        true
    }

    fn push(&mut self, request: &Request, payload: Range<usize>, refusal: Option<Refusal>) {
        let fua = request.has(command_flag::FUA);
        let kind = kind_of(request.command);
        let mut operation = Operation::new(kind, request.offset, u64::from(request.length), fua);
        match refusal {
            Some(refusal) => {
                operation.outcome = Err(Failure::new(ErrorKind::Invalid, refusal.message));
                operation.length = 0;
            }
            None => {
                let earlier = self.exchanges.iter().rev().map(|e| &e.operation);
                self.stages.place(&mut operation, earlier);
            }
        }
        self.exchanges.push(Exchange {
            operation,
            cookie: request.cookie,
            flags: request.flags,
            refused: refusal.map(|r| r.errno),
            payload,
            reply: 0..0,
            late: None,
            answered: false,
        });
    }

    /// Gives buffers back if the client has been quiet since the last call.
    pub(super) fn tidy(&mut self) {
        if !self.used {
            self.receive.release_if_empty();
            self.send.release_if_empty();
        }
        self.used = false;
    }

    /// True if [`Self::tidy`] may have something to give back.
    pub(super) fn holds_memory(&self) -> bool {
        self.receive.capacity() + self.send.capacity() > 0
    }

    fn answer(&mut self, index: usize) {
        let exchange = &mut self.exchanges[index];
        if std::mem::replace(&mut exchange.answered, true) {
            return;
        }
        if let (Some(number), Ok(())) = (exchange.late, &exchange.operation.outcome) {
            if exchange.operation.kind == OperationKind::Write {
                self.late_writes.push((number, exchange.cookie));
                return;
            }
            let bytes = exchange.operation.length as usize;
            let head = exchange.reply.start..exchange.reply.end - bytes;
            let (cookie, head) = (exchange.cookie, self.send.bytes_mut()[head].to_vec());
            self.late_bytes += head.len() + bytes;
            self.late.insert(number, LateExchange { cookie, head, bytes });
            return;
        }
        let sent = match &exchange.operation.outcome {
            Ok(()) if exchange.reply.is_empty() => {
                self.send.append(&reply::simple(exchange.cookie, 0))
            }
            Ok(()) => {
                self.send.commit(exchange.reply.clone());
                Ok(())
            }
            Err(failure) => {
                let errno = exchange.refused.unwrap_or_else(|| reply::errno_of(failure.kind));
                let structured = self.settings.structured_replies;
                append_error(&mut self.send, structured, exchange.cookie, errno, &failure.message)
            }
        };
        if let Err(error) = sent {
            self.fail("no memory for a reply", &error);
        }
    }

    /// Answers a read that was under way.
    pub(super) fn answer_late(&mut self, number: u64, result: Result<Vec<u8>>) {
        let Some(LateExchange { cookie, head, bytes }) = self.late.remove(&number) else { return };
        self.late_bytes -= head.len() + bytes;
        let sent = match result {
            Ok(data) => self.send.append(&head).and_then(|()| self.send.append(&data)),
            Err(error) => {
                let errno = reply::errno_of(error.kind());
                let structured = self.settings.structured_replies;
                append_error(&mut self.send, structured, cookie, errno, &error.to_string())
            }
        };
        if let Err(error) = sent {
            self.fail("no memory for a reply", &error);
        }
    }

    /// Answers the writes that are stored, or never will be; true if there were any.
    pub(super) fn answer_written(&mut self, written: &Result<u64, Failure>) -> bool {
        let before = self.late_writes.len();
        for (number, cookie) in std::mem::take(&mut self.late_writes) {
            let sent = match written {
                Ok(below) if number >= *below => {
                    self.late_writes.push((number, cookie));
                    continue;
                }
                Ok(_) => self.send.append(&reply::simple(cookie, 0)),
                Err(failure) => {
                    let errno = reply::errno_of(failure.kind);
                    let structured = self.settings.structured_replies;
                    append_error(&mut self.send, structured, cookie, errno, &failure.message)
                }
            };
            if let Err(error) = sent {
                self.fail("no memory for a reply", &error);
            }
        }
        self.late_writes.len() < before
    }

    fn end_round(&mut self) {
        self.exchanges.clear();
        self.stages = Stages::default();
        self.planned_reply_bytes = 0;
    }

    fn lay_out_read(&mut self, index: usize, device: &mut dyn BlockDevice) {
        let exchange = &mut self.exchanges[index];
        let Operation { offset, length, .. } = exchange.operation;
        let layout = read_layout::Request {
            exchange: index,
            cookie: exchange.cookie,
            offset,
            // A READ is at most 32 MiB.
            length: length as u32,
            structured: self.settings.structured_replies,
            whole: exchange.flags & command_flag::DF != 0,
        };
        match layout.lay_out(device, &mut self.send, &mut self.pieces) {
            Ok(place) => exchange.reply = place,
            Err(error) => exchange.operation.outcome = Err(no_memory(&error)),
        }
    }

    fn tell_status(&mut self, index: usize, device: &mut dyn BlockDevice) {
        let exchange = &mut self.exchanges[index];
        let runs_max =
            if exchange.flags & command_flag::REQ_ONE != 0 { 1 } else { STATUS_RUNS_MAX };
        let Operation { offset, length, .. } = exchange.operation;
        let outcome = match device.extents(offset, length, runs_max) {
            Ok(extents) => {
                let chunk = reply::status_chunk(exchange.cookie, &extents, runs_max);
                self.send.reserve(chunk.len()).map_err(|e| no_memory(&e)).map(|place| {
                    self.send.bytes_mut()[place.clone()].copy_from_slice(&chunk);
                    exchange.reply = place;
                })
            }
            Err(error) => Err(Failure::from(error)),
        };
        exchange.operation.outcome = outcome;
    }
}

fn append_error(
    send: &mut SendBuffer,
    structured: bool,
    cookie: u64,
    errno: u32,
    message: &str,
) -> io::Result<()> {
    match structured {
        true => send.append(&reply::error_chunk(cookie, errno, message)),
        false => send.append(&reply::simple(cookie, errno)),
    }
}

fn no_memory(error: &io::Error) -> Failure {
    Failure::new(ErrorKind::Io, &format!("no memory for a reply: {error}"))
}

fn kind_of(command: u16) -> OperationKind {
    match command {
        command::READ => OperationKind::Read,
        command::WRITE => OperationKind::Write,
        // A discarded range reads as zeros, which is all that WRITE_ZEROES promises. NO_HOLE asks
        // for space that later writes need not allocate; every write of a log takes new space, so
        // storing zeros would not give that either.
        command::TRIM | command::WRITE_ZEROES => OperationKind::Discard,
        command::BLOCK_STATUS => OperationKind::Status,
        command::CACHE => OperationKind::Cache,
        // Only refused requests have other numbers, and those are never carried out.
        _ => OperationKind::Flush,
    }
}

fn reply_bytes_max(request: &Request) -> usize {
    match request.command {
        command::READ => request.length as usize + REPLY_OVERHEAD_BYTES,
        command::BLOCK_STATUS => 8 * STATUS_RUNS_MAX + REPLY_OVERHEAD_BYTES,
        _ => reply::SIMPLE_BYTES,
    }
}

impl Lane for Connection {
    fn stages(&self) -> u32 {
        if self.exchanges.is_empty() { 0 } else { self.stages.count() }
    }

    fn prepare(&mut self, stage: u32, device: &mut dyn BlockDevice) {
        self.pieces.clear();
        for index in 0..self.exchanges.len() {
            let operation = &mut self.exchanges[index].operation;
            if operation.runs_in(stage, OperationKind::Read) {
                self.lay_out_read(index, device);
            } else if operation.runs_in(stage, OperationKind::Status) {
                self.tell_status(index, device);
            } else if operation.runs_in(stage, OperationKind::Cache) {
                let outcome = device.cache(operation.offset, operation.length);
                operation.outcome = outcome.map_err(Failure::from);
            }
        }
    }

    fn reads<'a>(&'a mut self, _stage: u32, batch: &mut Vec<Read<'a>>) {
        let mut rest = self.send.bytes_mut();
        let mut position = 0;
        for piece in &self.pieces {
            // Pieces were laid out one after another, so each lies behind the one before.
            let (_, tail) = rest.split_at_mut(piece.place.start - position);
            let (buf, tail) = tail.split_at_mut(piece.place.len());
            // A reply of one piece can follow later.
            let exchange = &self.exchanges[piece.exchange];
            let whole = piece.place.len() as u64 == exchange.operation.length;
            let late = whole.then_some(self.next_read);
            self.next_read += u64::from(whole);
            batch.push(Read { late, ..Read::new(piece.offset, buf) });
            rest = tail;
            position = piece.place.end;
        }
    }

    fn reads_done(&mut self, _stage: u32, ends: &mut dyn Iterator<Item = ReadEnd>) {
        // The pieces come first: `zip` must not take an end that belongs to another lane.
        for (piece, end) in self.pieces.iter().zip(ends) {
            let exchange = &mut self.exchanges[piece.exchange];
            match end {
                ReadEnd::Done(Ok(())) => {}
                ReadEnd::Done(Err(error)) => exchange.operation.outcome = Err(error.into()),
                ReadEnd::Late(number) => exchange.late = Some(number),
            }
        }
        self.pieces.clear();
    }

    fn writes<'a>(&'a self, stage: u32, batch: &mut Vec<Write<'a>>) {
        for exchange in &self.exchanges {
            if exchange.operation.runs_in(stage, OperationKind::Write) {
                let data = self.receive.at(exchange.payload.clone());
                batch.push(Write { offset: exchange.operation.offset, data });
            }
        }
    }

    fn writes_late(&mut self, stage: u32, number: u64) {
        for exchange in &mut self.exchanges {
            if exchange.operation.runs_in(stage, OperationKind::Write) {
                exchange.late = Some(number);
            }
        }
    }

    fn writes_failed(&mut self, stage: u32, failure: &Failure) {
        for exchange in &mut self.exchanges {
            if exchange.operation.runs_in(stage, OperationKind::Write) {
                exchange.operation.outcome = Err(failure.clone());
            }
        }
    }

    fn discard(&mut self, stage: u32, device: &mut dyn BlockDevice) -> Result<(), Failure> {
        let mut fatal = Ok(());
        for exchange in &mut self.exchanges {
            if exchange.operation.runs_in(stage, OperationKind::Discard) {
                fatal = fatal.and(exchange.operation.discard(device));
            }
        }
        fatal
    }

    fn waits_for_flush(&self) -> bool {
        self.exchanges.iter().any(|e| e.operation.waits_for_flush())
    }

    fn answer_unflushed(&mut self) {
        let mut waiting = false;
        for index in 0..self.exchanges.len() {
            if self.exchanges[index].operation.waits_for_flush() {
                waiting = true;
            } else {
                self.answer(index);
            }
        }
        if !waiting {
            self.end_round();
        }
        self.transmit();
    }

    fn answer_flushed(&mut self, outcome: &Result<(), Failure>) {
        if self.exchanges.is_empty() {
            return;
        }
        for index in 0..self.exchanges.len() {
            if self.exchanges[index].operation.waits_for_flush() {
                self.exchanges[index].operation.outcome = outcome.clone();
                // A flush waits for what is under way.
                self.exchanges[index].late = None;
            }
            self.answer(index);
        }
        self.end_round();
        self.transmit();
    }
}
