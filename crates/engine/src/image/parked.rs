//! Writes that are put aside while something that they need comes from a service.
//!
//! A write is logged only when the pages that it changes are in memory: a page that cannot be read must fail the
//! write, and not the image. Where the write covers a block in part, the rest of the block is needed too. In an image
//! that was just cloned from a template in a bucket, all of that may have to be fetched. And the first write after
//! opening needs a head that says where the log begins. In the target of a migration from a source outside the store,
//! the rest of a block may have to come from there: for such an image, that source is a service too.
//!
//! Meanwhile the image's thread goes on: the write is *parked*, and so is what comes after it and overlaps it. What
//! is missing is fetched by a worker, as for reads (room `fetches`). Then the write is tried again from the start.
//!
//! Invariants:
//! - A parked request is not acknowledged, and nothing of it is in the log. So a flush does not cover it.
//! - Of two requests that overlap, the one that came first is carried out first.
//! - At most [`PARKED_BYTES_MAX`] of data are parked. What exceeds that is waited for by the thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use marcot_format::{BLOCK_BYTES, MAP_FANOUT};

use super::Image;
use super::starting::Start;
use crate::device::{CompletedRead, Completion, Write};
use crate::error::{Error, ErrorKind, Result};
use crate::fault::{self, Fault};
use crate::fetches::LeftRead;
use crate::journal::Shipped;
use crate::segment::Need;

/// Limit on the data of parked writes of an image, in bytes.
const PARKED_BYTES_MAX: usize = 32 << 20;
/// Longest discard that is parked, in bytes. The map pages of a longer one would take too much memory at once.
const DISCARD_BYTES_MAX: u64 = 1 << 30;

/// What is to be done.
enum What {
    Read,
    Write(Vec<u8>),
    Discard,
}

struct Request {
    offset: u64,
    length: u64,
    what: What,
    /// When it was parked.
    since: Duration,
    /// Its number, and what was fetched for it. For a read, the number is the caller's.
    fetch: LeftRead,
    /// Something is being fetched for it.
    fetching: bool,
}

impl Request {
    fn is_read(&self) -> bool {
        matches!(self.what, What::Read)
    }

    fn bytes(&self) -> usize {
        match &self.what {
            What::Write(data) => data.len(),
            What::Read | What::Discard => 0,
        }
    }

    /// True where this and a request for a range must not be swapped.
    fn conflicts(&self, offset: u64, length: u64, is_read: bool) -> bool {
        let overlaps = self.offset < offset + length && offset < self.offset + self.length;
        overlaps && !(is_read && self.is_read())
    }
}

/// The parked requests of an image, in the order in which they came.
#[derive(Default)]
pub(super) struct Parked {
    requests: VecDeque<Request>,
    bytes: usize,
    next: u64,
    /// How the log is being begun.
    pub(super) start: Option<Start>,
    /// Why the log could not be begun.
    pub(super) start_failed: Option<Error>,
    /// Something has come for which requests may wait.
    pub(super) due: bool,
    ended: VecDeque<Completion>,
}

impl Parked {
    fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// True where a request that would come now has to wait for one of the first `before` requests.
    fn conflicts(&self, before: usize, offset: u64, length: u64, is_read: bool) -> bool {
        let mut earlier = self.requests.iter().take(before);
        earlier.any(|request| request.conflicts(offset, length, is_read))
            && !fault::is(Fault::ParkedOvertaken)
    }

    fn take(&mut self, at: usize) -> Option<Request> {
        let request = self.requests.remove(at)?;
        self.bytes -= request.bytes();
        Some(request)
    }

    /// True while the log is being begun.
    pub(super) fn is_starting(&self) -> bool {
        self.start.is_some()
    }

    /// True while the log is being begun by a checkpoint.
    pub(super) fn starts_with_checkpoint(&self) -> bool {
        matches!(self.start, Some(Start::Checkpoint))
    }

    /// Something was fetched for a request.
    pub(super) fn fetched(&mut self, number: u64) {
        self.due = true;
        let of = |r: &&mut Request| !r.is_read() && r.fetch.number == number;
        if let Some(request) = self.requests.iter_mut().find(of) {
            request.fetching = false;
        }
    }
}

impl Image {
    /// Parks a write that would have to wait for a service, or for a request that is parked. Returns its number.
    pub(super) fn park_write(&mut self, offset: u64, data: &[u8]) -> Option<u64> {
        let fits = self.parked.bytes + data.len() <= PARKED_BYTES_MAX;
        match fits && self.must_park(offset, data.len() as u64, false) {
            true => self.park(offset, data.len() as u64, What::Write(data.to_vec())),
            false => None,
        }
    }

    /// As [`Self::park_write`], for a discard.
    pub(super) fn park_discard(&mut self, offset: u64, length: u64) -> Option<u64> {
        match length <= DISCARD_BYTES_MAX && self.must_park(offset, length, true) {
            true => self.park(offset, length, What::Discard),
            false => None,
        }
    }

    /// Parks a read with this number where it has to wait for a request that is parked.
    pub(super) fn park_read(&mut self, number: u64, offset: u64, length: u64) -> bool {
        let waits = self.parked.conflicts(usize::MAX, offset, length, true);
        if waits {
            self.push(Request {
                offset,
                length,
                what: What::Read,
                since: self.uptime(),
                fetch: LeftRead::new(number, offset, length as usize),
                fetching: false,
            });
        }
        waits
    }

    /// True where parked requests are in the way of one that cannot be parked.
    pub(super) fn is_behind_parked(&self, offset: u64, length: u64, is_read: bool) -> bool {
        !self.parked.is_empty() && self.parked.conflicts(usize::MAX, offset, length, is_read)
    }

    /// False where nothing has to wait for a service, nor for something that is parked.
    pub(super) fn may_park_any(&self) -> bool {
        !self.parked.is_empty()
            || self.external.is_some()
            || self.identity.pool.files().has_service()
    }

    fn must_park(&mut self, offset: u64, length: u64, discards: bool) -> bool {
        if !self.may_park_any() || length == 0 {
            return false;
        }
        let disk = Arc::clone(&self.identity.pool.files().world().disk);
        if self.check_owner().is_err()
            || self.check_range(offset, length).is_err()
            || !self.in_flight.takes_fetches(&*disk)
        {
            return false;
        }
        self.parked.conflicts(usize::MAX, offset, length, false)
            || self.what_is_missing(offset, length, discards).is_some()
            || self.begins_log()
    }

    fn park(&mut self, offset: u64, length: u64, what: What) -> Option<u64> {
        let number = self.parked.next;
        self.parked.next += 1;
        let fetch = LeftRead::parked(number);
        self.push(Request { offset, length, what, since: self.uptime(), fetch, fetching: false });
        self.go_on_with_parked();
        Some(number)
    }

    fn push(&mut self, request: Request) {
        self.parked.bytes += request.bytes();
        self.parked.requests.push_back(request);
    }

    fn uptime(&self) -> Duration {
        self.identity.pool.files().world().clock.uptime()
    }

    /// What a write or discard needs that is not at hand.
    fn what_is_missing(&mut self, offset: u64, length: u64, discards: bool) -> Option<Need> {
        self.state.table.refuse_waiting();
        // An error without a need comes again when the request is carried out.
        let _ = match discards {
            true => self.load_for_discard(offset, length),
            false => self.load_for_write(offset, length),
        };
        self.state.table.allow_waiting()
    }

    /// Carries out those requests that nothing keeps waiting any more.
    pub(super) fn go_on_with_parked(&mut self) {
        self.parked.due = false;
        match self.parked.start_failed.take() {
            // The thread has ways to find room.
            Some(error) if error.kind() == ErrorKind::NoSpace => return self.finish_parked(),
            Some(error) => return self.fail_parked(&error),
            None => {}
        }
        let mut at = 0;
        while let Some(request) = self.parked.requests.get(at) {
            let (offset, length) = (request.offset, request.length);
            let waits =
                request.fetching || self.parked.conflicts(at, offset, length, request.is_read());
            // What comes behind a request that has ended is at its place now.
            if waits || !self.try_parked(at) {
                at += 1;
            }
        }
    }

    /// True where the request has ended.
    fn try_parked(&mut self, at: usize) -> bool {
        let Some(request) = self.parked.requests.get(at) else { return false };
        if request.is_read() {
            let Some(request) = self.parked.take(at) else { return false };
            // Where it has to wait for a service itself, it is in flight now.
            if let Some(result) = self.read_on(request.fetch) {
                let number = request.fetch.number;
                let read = Completion::Read(CompletedRead { number, result });
                self.parked.ended.push_back(read);
            }
            return true;
        }
        let (offset, length, fetch) = (request.offset, request.length, request.fetch);
        let discards = matches!(request.what, What::Discard);
        if let Some(need) = self.what_is_missing(offset, length, discards)
            && !fetch.has_to_wait(&need)
        {
            let fetch = self.in_flight.meet(fetch, need, self.identity.pool.files());
            if let Some(request) = self.parked.requests.get_mut(at) {
                (request.fetch, request.fetching) = (fetch, true);
            }
            return false;
        }
        if self.begins_log() {
            return false;
        }
        if let Some(request) = self.parked.take(at) {
            self.carry_out(request);
        }
        true
    }

    fn carry_out(&mut self, request: Request) {
        let Request { offset, length, what, fetch, .. } = request;
        let number = fetch.number;
        let ended = match what {
            What::Read => {
                let mut buf = vec![0; length as usize];
                let result = self.read_now(offset, &mut buf).map(|()| buf);
                Completion::Read(CompletedRead { number, result })
            }
            What::Write(data) => {
                Completion::Parked(number, self.write_now(&[Write { offset, data: &data }]))
            }
            What::Discard => Completion::Parked(number, self.discard_now(offset, length)),
        };
        self.parked.ended.push_back(ended);
    }

    /// Carries out all parked requests, and waits for what they need.
    pub(super) fn finish_parked(&mut self) {
        while let Some(request) = self.parked.take(0) {
            self.carry_out(request);
        }
    }

    fn fail_parked(&mut self, error: &Error) {
        for request in std::mem::take(&mut self.parked.requests) {
            match request.is_read() {
                true => self.carry_out(request),
                false => {
                    let failed = Completion::Parked(request.fetch.number, Err(error.clone()));
                    self.parked.ended.push_back(failed);
                }
            }
        }
        self.parked.bytes = 0;
    }

    /// Takes the next request that was parked and has ended.
    pub(super) fn take_ended(&mut self) -> Option<Completion> {
        if self.has_begun_log() {
            // A failure is told to those who wait for the log.
            let _ = self.settle_start();
        }
        if self.parked.due {
            self.go_on_with_parked();
        }
        self.end_what_is_late();
        self.parked.ended.pop_front()
    }

    /// Where guests wait for a limited time only: fails the requests that were parked for longer.
    fn end_what_is_late(&mut self) {
        let Some(shipped) = self.journal.shipped().filter(|shipped| shipped.has_timeout()) else {
            return;
        };
        let now = self.uptime();
        let mut late = self.parked.requests.iter().filter(|request| !request.is_read());
        if let Some(error) = late.find_map(|r| shipped.check_time(r.since, now).err()) {
            self.fail_parked(&error);
        }
    }

    /// True where it has to be looked now and then whether requests were parked for too long.
    pub(super) fn parked_may_be_late(&self) -> bool {
        !self.parked.is_empty() && self.journal.shipped().is_some_and(Shipped::has_timeout)
    }

    /// Loads what a write needs before it can be logged.
    fn load_for_write(&mut self, offset: u64, length: u64) -> Result<()> {
        let end = offset + length;
        let (first, last) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        self.state.table.prepare_add(self.identity.pool.files())?;
        self.state.prepare(first, last - first)?;
        if !offset.is_multiple_of(BLOCK_BYTES) {
            self.load_block(first)?;
        }
        if !end.is_multiple_of(BLOCK_BYTES) {
            self.load_block(last - 1)?;
        }
        Ok(())
    }

    fn load_for_discard(&mut self, offset: u64, length: u64) -> Result<()> {
        self.state.table.prepare_add(self.identity.pool.files())?;
        let cut = self.cut_discard(offset, length);
        for (at, bytes) in cut.edges {
            self.load_for_write(at, bytes as u64)?;
        }
        // The counts of what the pages name go down.
        let step = MAP_FANOUT as u64;
        let mut at = cut.first;
        while cut.whole && at < cut.last {
            let stop = cut.last.min(at - at % step + step);
            if self.state.map.may_map(at, stop) {
                self.state.prepare(at, stop - at)?;
            }
            at = stop;
        }
        Ok(())
    }
}
