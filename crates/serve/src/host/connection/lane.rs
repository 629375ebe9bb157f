//! A connection as a lane of a round: its operations and its answers.

use std::io;
use std::time::{Duration, Instant};

use marcot::{BlockDevice, Error, ErrorKind, Read, Result, Write};

use super::{Answer, Awaiting, Connection, Exchange, InFlightExchange, Life, STATUS_RUNS_MAX};
use crate::host::local::after_parked;
use crate::host::operation::{Operation, OperationKind, Stages};
use crate::host::parts::Place;
use crate::host::read_layout;
use crate::host::round::{Lane, ReadEnd};
use crate::nbd::reply;
use crate::nbd::wire::command_flag;

/// Least time between two log lines about failed requests of a connection. A guest may repeat a failing
/// request all the time.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

impl Connection {
    fn answer(&mut self, index: usize) {
        let exchange = &mut self.exchanges[index];
        if std::mem::replace(&mut exchange.answered, true) {
            return;
        }
        let (kind, is_part) = (exchange.operation.kind, exchange.place != Place::WHOLE);
        if is_part && kind == OperationKind::Write {
            return self.end_write_part(index);
        }
        if is_part && !self.goes_on_reading(index) {
            return;
        }
        let exchange = &mut self.exchanges[index];
        let cookie = exchange.cookie;
        let begun = self.tally.begun(&exchange.operation, exchange.place.last);
        if self.is_answered_later(index, Answer { cookie, begun }, None) {
            return;
        }
        let exchange = &mut self.exchanges[index];
        if let (Some(number), Ok(())) = (exchange.in_flight, &exchange.operation.outcome) {
            let bytes = exchange.operation.length as usize;
            let head = exchange.reply.start..exchange.reply.end - bytes;
            let head = self.send.bytes_mut()[head].to_vec();
            self.in_flight_bytes += head.len() + bytes;
            self.in_flight.insert(number, InFlightExchange { cookie, head, bytes, begun });
            return;
        }
        if exchange.operation.outcome.is_ok() {
            self.tally.done(&begun);
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
                let failure = failure.clone();
                match exchange.refused {
                    // A sentence of this server, not of the engine.
                    Some(errno) => self.append_error(cookie, errno, failure.message()),
                    None => self.append_failure(cookie, &failure),
                }
            }
        };
        if let Err(error) = sent {
            self.fail("no memory for a reply", &error);
        }
    }

    /// Notes what the answer of an operation waits for, where it does. A read in flight is another matter.
    fn is_answered_later(&mut self, index: usize, answer: Answer, part_of: Option<u64>) -> bool {
        let Exchange { operation, in_flight, in_flush, .. } = &self.exchanges[index];
        let awaiting = |number: u64| Awaiting { number, answer, part_of };
        if let Some(number) = operation.parked {
            self.parked.insert(number, (awaiting(number), operation.fua));
        } else if operation.outcome.is_err() {
            return false;
        } else if let Some(number) = *in_flush {
            self.async_flushes.push(awaiting(number));
        } else if let Some(number) = in_flight.filter(|_| operation.kind == OperationKind::Write) {
            self.async_writes.push(awaiting(number));
        } else {
            return false;
        }
        true
    }

    /// A part of a WRITE was carried out, or ends later. The WRITE is answered when all of its parts have ended.
    fn end_write_part(&mut self, index: usize) {
        let Exchange { operation, place, cookie, .. } = &self.exchanges[index];
        let (place, cookie) = (*place, *cookie);
        let answer = Answer { cookie, begun: self.tally.begun(operation, place.last) };
        let (is_parked, fua) = (operation.parked.is_some(), operation.fua);
        let write = self.parted_writes.write_of(place);
        if self.is_answered_later(index, answer, Some(write)) {
            self.parted_writes.ends_later(write, is_parked);
        } else {
            let outcome = &self.exchanges[index].operation.outcome;
            self.parted_writes.note(write, outcome);
            if outcome.is_ok() && !place.last {
                self.tally.done(&answer.begun);
            }
        }
        if place.last {
            self.parted_writes.has_all(write, (answer, fua));
            self.answer_parted(write);
        }
    }

    /// Answers a WRITE in parts, if all of them have ended.
    fn answer_parted(&mut self, write: u64) {
        if let Some(((answer, _), outcome)) = self.parted_writes.take_ended(write) {
            self.send_simple(answer, &outcome);
        }
    }

    /// Answers what waited, or notes that a part of a WRITE has ended.
    fn answer_awaiting(&mut self, awaiting: Awaiting, outcome: &Result<()>) {
        let Some(write) = awaiting.part_of else {
            return self.send_simple(awaiting.answer, outcome);
        };
        self.parted_writes.ended(write, false, outcome);
        self.count_part(&awaiting, outcome);
        self.answer_parted(write);
    }

    /// Counts a part that has ended. The last one counts with the answer.
    fn count_part(&self, awaiting: &Awaiting, outcome: &Result<()>) {
        if outcome.is_ok() && !awaiting.answer.begun.counts() {
            self.tally.done(&awaiting.answer.begun);
        }
    }

    /// Answers a request that returns no data.
    fn send_simple(&mut self, Answer { cookie, begun }: Answer, outcome: &Result<()>) {
        let sent = match outcome {
            Ok(()) => {
                self.tally.done(&begun);
                self.send.append(&reply::simple(cookie, 0))
            }
            Err(failure) => self.append_failure(cookie, failure),
        };
        if let Err(error) = sent {
            self.fail("no memory for a reply", &error);
        }
    }

    /// Notes the outcome of a part of a READ. Returns false if the connection has to be broken off.
    fn goes_on_reading(&mut self, index: usize) -> bool {
        let Exchange { operation, place, .. } = &self.exchanges[index];
        if let Err(failure) = &operation.outcome {
            // No data follows an error.
            self.reading = None;
            if !place.first && !self.settings.structured_replies {
                let (peer, message) = (&self.settings.peer, failure.sentence().to_string());
                tracing::warn!(peer, message, "a reply and its connection are broken off");
                self.life = Life::Dead;
                return false;
            }
        }
        true
    }

    /// Answers a read that was in flight.
    pub(in crate::host) fn answer_completed(&mut self, number: u64, result: Result<Vec<u8>>) {
        let Some(exchange) = self.in_flight.remove(&number) else { return };
        let InFlightExchange { cookie, head, bytes, begun } = exchange;
        self.in_flight_bytes -= head.len() + bytes;
        let sent = match result {
            Ok(data) => {
                self.tally.done(&begun);
                self.send.append(&head).and_then(|()| self.send.append(&data))
            }
            Err(error) => self.append_failure(cookie, &error),
        };
        if let Err(error) = sent {
            self.fail("no memory for a reply", &error);
        }
    }

    /// Answers a request that was parked, or lets it wait for a flush. False where there is none with this number.
    pub(in crate::host) fn answer_parked(
        &mut self,
        number: u64,
        result: &Result<()>,
        device: &mut dyn BlockDevice,
    ) -> bool {
        let Some((awaiting, mut fua)) = self.parked.remove(&number) else { return false };
        if let Some(write) = awaiting.part_of {
            self.parted_writes.ended(write, true, result);
            // The flush that follows the last one covers all of them.
            let answer = self.parted_writes.unparked(write);
            fua = answer.is_some_and(|(_, fua)| *fua);
        }
        match (after_parked(fua, result, device), awaiting.part_of) {
            (Ok(Some(flush)), part_of) => {
                if let Some(write) = part_of {
                    self.parted_writes.ends_later(write, false);
                }
                self.async_flushes.push(Awaiting { number: flush, ..awaiting });
            }
            (outcome, None) => self.send_simple(awaiting.answer, &outcome.map(drop)),
            (outcome, Some(write)) => {
                let outcome = outcome.map(drop);
                self.parted_writes.note(write, &outcome);
                // Where a flush follows, the part counts when that has ended.
                self.count_part(&awaiting, &outcome);
                self.answer_parted(write);
            }
        }
        true
    }

    /// Answers the writes that have completed or have failed. Returns true if there were any.
    pub(in crate::host) fn answer_written(&mut self, written: &Result<u64>) -> bool {
        let waiting = std::mem::take(&mut self.async_writes);
        let before = waiting.len();
        self.async_writes = self.answer_ended(waiting, written);
        self.async_writes.len() < before
    }

    /// Answers the requests whose flush has ended or has failed. Returns true if there were any.
    pub(in crate::host) fn answer_flushes(&mut self, flushed: &Result<u64>) -> bool {
        let waiting = std::mem::take(&mut self.async_flushes);
        let before = waiting.len();
        self.async_flushes = self.answer_ended(waiting, flushed);
        self.async_flushes.len() < before
    }

    /// Answers the requests with this error whose flush has a smaller number than `below`. Returns true if there
    /// were any.
    pub(in crate::host) fn fail_flushes(&mut self, below: u64, failure: &Error) -> bool {
        let waiting = std::mem::take(&mut self.async_flushes);
        let (late, left): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|awaiting| awaiting.number < below);
        self.async_flushes = left;
        self.answer_ended(late.clone(), &Err(failure.clone()));
        !late.is_empty()
    }

    /// Answers the requests with numbers below the one of `ended`; with an error all of them. Returns
    /// the others.
    fn answer_ended(&mut self, waiting: Vec<Awaiting>, ended: &Result<u64>) -> Vec<Awaiting> {
        let mut left = Vec::new();
        let outcome = ended.as_ref().map(drop).map_err(Error::clone);
        for awaiting in waiting {
            match ended {
                Ok(below) if awaiting.number >= *below => left.push(awaiting),
                _ => self.answer_awaiting(awaiting, &outcome),
            }
        }
        left
    }

    /// Answers with an error of the engine. The client gets only its kind; the error itself is logged.
    fn append_failure(&mut self, cookie: u64, failure: &Error) -> io::Result<()> {
        let now = Instant::now();
        if self.tell_after.is_none_or(|after| now >= after) {
            self.tell_after = Some(now + TELL_INTERVAL);
            let (peer, error) = (self.peer(), failure.sentence().to_string());
            tracing::warn!(peer, error, "a request of an nbd client failed");
        }
        self.append_error(
            cookie,
            reply::errno_of(failure.kind()),
            reply::message_of(failure.kind()),
        )
    }

    fn append_error(&mut self, cookie: u64, errno: u32, message: &str) -> io::Result<()> {
        match self.settings.structured_replies {
            true => self.send.append(&reply::error_chunk(cookie, errno, message)),
            false => self.send.append(&reply::simple(cookie, errno)),
        }
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
            place: exchange.place,
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
            Err(error) => Err(error),
        };
        exchange.operation.outcome = outcome;
    }
}

fn no_memory(error: &io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("no memory for a reply: {error}"))
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
                operation.outcome = outcome;
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
            // Only a reply of one piece can be sent later.
            let exchange = &self.exchanges[piece.exchange];
            let whole = piece.place.len() as u64 == exchange.operation.length
                && exchange.place == Place::WHOLE;
            let in_flight = whole.then_some(self.next_read);
            self.next_read += u64::from(whole);
            batch.push(Read { in_flight, ..Read::new(piece.offset, buf) });
            rest = tail;
            position = piece.place.end;
        }
    }

    fn reads_done(&mut self, _stage: u32, ends: &mut dyn Iterator<Item = ReadEnd>) {
        // The pieces come first, so that `zip` does not take an end that belongs to another lane.
        for (piece, end) in self.pieces.iter().zip(ends) {
            let exchange = &mut self.exchanges[piece.exchange];
            match end {
                ReadEnd::Done(Ok(())) => {}
                ReadEnd::Done(Err(error)) => exchange.operation.outcome = Err(error),
                ReadEnd::InFlight(number) => exchange.in_flight = Some(number),
            }
        }
        self.pieces.clear();
    }

    fn park_writes(&mut self, stage: u32, device: &mut dyn BlockDevice) {
        for Exchange { operation, payload, .. } in &mut self.exchanges {
            if operation.runs_in(stage, OperationKind::Write) {
                operation.park_write(self.receive.at(payload.clone()), device);
            }
        }
    }

    fn writes<'a>(&'a self, stage: u32, batch: &mut Vec<Write<'a>>) {
        for exchange in &self.exchanges {
            if exchange.operation.runs_in(stage, OperationKind::Write) {
                let data = self.receive.at(exchange.payload.clone());
                batch.push(Write { offset: exchange.operation.offset, data });
            }
        }
    }

    fn writes_in_flight(&mut self, stage: u32, number: u64) {
        for exchange in &mut self.exchanges {
            if exchange.operation.runs_in(stage, OperationKind::Write) {
                exchange.in_flight = Some(number);
            }
        }
    }

    fn writes_failed(&mut self, stage: u32, failure: &Error) {
        for exchange in &mut self.exchanges {
            if exchange.operation.runs_in(stage, OperationKind::Write) {
                exchange.operation.outcome = Err(failure.clone());
            }
        }
    }

    fn discard(&mut self, stage: u32, device: &mut dyn BlockDevice) -> Result<()> {
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

    fn flush_in_flight(&mut self, number: u64) {
        for index in 0..self.exchanges.len() {
            let exchange = &mut self.exchanges[index];
            if exchange.operation.waits_for_flush() {
                exchange.in_flush = Some(number);
                // The flush has waited for the write.
                exchange.in_flight = None;
            }
            self.answer(index);
        }
        self.end_round();
        self.transmit();
    }

    fn answer_flushed(&mut self, outcome: &Result<()>) {
        if self.exchanges.is_empty() {
            return;
        }
        for index in 0..self.exchanges.len() {
            if self.exchanges[index].operation.waits_for_flush() {
                self.exchanges[index].operation.outcome = outcome.clone();
                // The flush has waited for everything in flight.
                self.exchanges[index].in_flight = None;
            }
            self.answer(index);
        }
        self.end_round();
        self.transmit();
    }
}
