//! Turns received bytes into the operations of a round: decides which requests are taken now, as a whole or
//! in parts.

use std::ops::Range;

use marcot::{BlockDevice, Error, ErrorKind};

use super::{Connection, Exchange, Life, REPLY_BYTES_MAX, REPLY_BYTES_MIN, STATUS_RUNS_MAX};
use crate::host::looking::{self, Looking};
use crate::host::operation::{Operation, OperationKind};
use crate::host::parts::{self, Parted, Place};
use crate::nbd::reply;
use crate::nbd::request::{self, Limits, Parsed, REQUEST_BYTES, Refusal, Request};
use crate::nbd::wire::{command, command_flag, errno};

/// Limit on the requests taken from one connection in one round, so that it cannot starve the others.
const REQUESTS_PER_ROUND_MAX: usize = 256;

/// Room for a reply besides its data: headers of all chunks, or an error with its message.
const REPLY_OVERHEAD_BYTES: usize = 2048;

/// Longest payload of a WRITE that is received as a whole, in bytes.
const WRITE_WHOLE_BYTES_MAX: usize = 4 << 20;

/// Bytes that a READ in one chunk (flag DF) must be able to ask for, by the protocol.
const WHOLE_CHUNK_BYTES_MIN: u32 = 64 << 10;

/// Whether there is room for a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyRoom {
    /// There is room, and it is taken.
    Taken,
    /// There will be room when replies have been sent.
    Later,
    /// There is room only for one part of the reply at a time.
    InParts,
}

impl Connection {
    /// Turns received requests into operations of the coming round.
    pub(in crate::host) fn plan(&mut self, device: &dyn BlockDevice, looking: &mut Looking) {
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
            let goes_on = match (&self.reading, &self.writing) {
                (Some(_), _) => self.plan_read_part(),
                (None, Some(_)) => self.plan_write_part(),
                (None, None) => self.plan_one(&limits, looking),
            };
            if !goes_on {
                break;
            }
        }
    }

    /// Takes one request. Returns false if there is none, if there is no room for its reply, or if it has
    /// to wait for the next round.
    fn plan_one(&mut self, limits: &Limits, looking: &mut Looking) -> bool {
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
        if !looking.admits(&request) {
            return false;
        }
        // Checked above: at most 32 MiB.
        let payload_bytes = request.payload_bytes() as usize;
        if !self.affords_payload(payload_bytes) {
            self.receive.consume(REQUEST_BYTES);
            self.writing = Some(Parted::new(request));
            return true;
        }
        self.message_bytes = REQUEST_BYTES + payload_bytes;
        if self.receive.unread().len() < self.message_bytes {
            return false;
        }
        match self.take_reply_room(&request) {
            ReplyRoom::Taken => {}
            ReplyRoom::Later => return false,
            ReplyRoom::InParts => return self.begin_read_in_parts(request),
        }
        looking.take(&request);
        self.receive.consume(REQUEST_BYTES);
        let payload = self.receive.consume(payload_bytes);
        self.message_bytes = REQUEST_BYTES;
        self.push(&request, payload, None);
        true
    }

    /// True if a WRITE with this payload can be received as a whole.
    fn affords_payload(&mut self, bytes: usize) -> bool {
        let message_bytes = REQUEST_BYTES + bytes;
        message_bytes <= self.receive.unread().len()
            || (bytes <= WRITE_WHOLE_BYTES_MAX && self.affords(message_bytes, 0))
    }

    /// Takes the next part of a WRITE. Returns false if the part has not been received yet, or if it was
    /// the last.
    fn plan_write_part(&mut self) -> bool {
        let bytes_max = parts::part_bytes(|bytes| self.affords(bytes, 0));
        let Some(mut writing) = self.writing else { return true };
        let part = writing.take(bytes_max);
        let request = Request { offset: part.offset, length: part.bytes, ..writing.request };
        self.message_bytes = part.bytes as usize;
        if self.receive.unread().len() < self.message_bytes {
            return false;
        }
        if part.place.last && self.take_reply_room(&request) != ReplyRoom::Taken {
            return false;
        }
        self.writing = (!part.place.last).then_some(writing);
        let payload = self.receive.consume(self.message_bytes);
        self.message_bytes = REQUEST_BYTES;
        self.push_part(&request, payload, None, part.place);
        !part.place.last
    }

    /// Begins a READ whose reply is too long for the memory of the client.
    fn begin_read_in_parts(&mut self, request: Request) -> bool {
        self.receive.consume(REQUEST_BYTES);
        self.message_bytes = REQUEST_BYTES;
        if request.has(command_flag::DF) && request.length > WHOLE_CHUNK_BYTES_MIN {
            let message = "too long for one chunk as long as the server is short of memory";
            self.push(&request, 0..0, Some(Refusal { errno: errno::EOVERFLOW, message }));
            return true;
        }
        self.reading = Some(Parted::new(request));
        true
    }

    /// Asks for the next part of a READ when everything before it has been sent.
    fn plan_read_part(&mut self) -> bool {
        if !self.is_answered() {
            return false;
        }
        let bytes_max = parts::part_bytes(|bytes| self.affords(0, bytes + REPLY_OVERHEAD_BYTES));
        let Some(mut reading) = self.reading else { return true };
        let part = reading.take(bytes_max);
        let request = Request { offset: part.offset, length: part.bytes, ..reading.request };
        self.reading = (!part.place.last).then_some(reading);
        self.planned_reply_bytes += reply_bytes_max(&request);
        self.push_part(&request, 0..0, None, part.place);
        false
    }

    /// Drops the received part of a refused payload. Returns true once all of it is dropped and the refusal
    /// is queued.
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

    /// Takes room for the reply to `request`, if there is any.
    fn take_reply_room(&mut self, request: &Request) -> ReplyRoom {
        let used = self.reply_bytes() + self.planned_reply_bytes;
        let bytes = reply_bytes_max(request);
        // A reply in chunks loses nothing by coming in parts.
        let whole = used + bytes <= REPLY_BYTES_MAX
            || (used == 0 && (!self.settings.structured_replies || request.has(command_flag::DF)));
        let affordable =
            whole && (used + bytes <= REPLY_BYTES_MIN || self.affords(0, used + bytes));
        self.lacks_reply_room = !affordable && used > 0;
        if affordable {
            self.planned_reply_bytes += bytes;
            return ReplyRoom::Taken;
        }
        if self.lacks_reply_room { ReplyRoom::Later } else { ReplyRoom::InParts }
    }

    fn push(&mut self, request: &Request, payload: Range<usize>, refusal: Option<Refusal>) {
        self.push_part(request, payload, refusal, Place::WHOLE);
    }

    fn push_part(
        &mut self,
        request: &Request,
        payload: Range<usize>,
        refusal: Option<Refusal>,
        place: Place,
    ) {
        let fua = request.has(command_flag::FUA) && place.last;
        let kind = kind_of(request.command);
        let length = looking::range_bytes(request);
        let mut operation = Operation::new(kind, request.offset, length, fua);
        match refusal {
            Some(refusal) => {
                operation.outcome = Err(Error::new(ErrorKind::Invalid, refusal.message));
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
            place,
            in_flight: None,
            in_flush: None,
            answered: false,
        });
    }
}

fn kind_of(command: u16) -> OperationKind {
    match command {
        command::READ => OperationKind::Read,
        command::WRITE => OperationKind::Write,
        // A discarded range reads as zeros, which is all that WRITE_ZEROES promises. NO_HOLE asks for
        // space that later writes need not allocate. But every write takes new space in the log, so
        // storing zeros would not help.
        command::TRIM | command::WRITE_ZEROES => OperationKind::Discard,
        command::BLOCK_STATUS => OperationKind::Status,
        command::CACHE => OperationKind::Cache,
        // Requests with other numbers are refused, and never carried out.
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
