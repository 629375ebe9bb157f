//! What of the log other hosts can find: parts of it that were shipped, and what is to be shipped next.
//!
//! Only images in pools of which several hosts may be owners have this ([`Shipping`]). A worker ships, so that
//! the image goes on meanwhile. One shipment is under way at a time, and serves all flushes that were asked for
//! before it began.
//!
//! Invariants:
//! - The parts together are a prefix of the log behind the head's position.
//! - A part is shipped only after the part before was stored.
//! - The header of a segment is shipped together with its first group. So a head whose log begins at that group does not
//!   leave the header in a part that is not needed any more.
//! - A flush ends after everything was stored that had been appended when it was asked for.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use marcot_backend::{Recovered, ShipError, Shipping};
use marcot_format::record::{LogPiece, ShippedLog};
use marcot_format::{BLOCK_BYTES, ImageId};
use marcot_store::{DiskFile, Running, Task, Workers};

use crate::error::{Error, ErrorKind, Result};
use crate::fault::{self, Fault};

/// Longest part of a log, in bytes, without its frame.
const PART_BYTES_MAX: u64 = 8 << 20;

/// Where flushes end on the owner's host, the log is shipped behind them: when this many bytes were not shipped, or what
/// was not shipped is this old. What comes until it is looked at mostly fits into the same part.
const BEHIND_BYTES_MAX: u64 = PART_BYTES_MAX - (1 << 20);
const BEHIND_TIME_MAX: Duration = Duration::from_secs(10);

/// The parts that were stored. A shipment that is under way has it.
struct Parts {
    shipping: Arc<dyn Shipping>,
    image: ImageId,
    label: String,
    term: u64,
    /// Number of the next part.
    next: u64,
    /// Numbers of the parts that were not removed.
    stored: Vec<u64>,
}

/// Bytes of a segment that are to be shipped.
struct Stretch {
    sequence: u32,
    file: Arc<dyn DiskFile>,
    bytes: Range<u64>,
    /// The segment is closed, all that was ever written to it belongs to the log, and nothing of it was shipped.
    is_whole: bool,
}

/// What a shipment leaves.
type Ended = (Parts, Result<()>);

/// A shipment that is under way.
struct Shipment {
    task: Task<Ended>,
    /// Flushes with numbers below this one end with it.
    flushes: u64,
    /// Groups with numbers below this one are stored then.
    groups: u64,
}

/// The end of the open segment.
pub(super) struct OpenEnd<'a> {
    pub sequence: u32,
    pub file: &'a Arc<dyn DiskFile>,
    /// Slot where the next group starts.
    pub slot: u32,
    /// Number of the next group.
    pub group: u64,
}

impl OpenEnd<'_> {
    /// True where something lies behind the header.
    fn has_groups(&self) -> bool {
        self.slot > 1
    }

    fn end_bytes(&self) -> u64 {
        u64::from(self.slot) * BLOCK_BYTES
    }
}

/// See the module.
pub(crate) struct Shipped {
    shipping: Arc<dyn Shipping>,
    image: ImageId,
    label: String,
    /// `None` while a shipment is under way, and after one that has failed.
    parts: Option<Parts>,
    shipment: Option<Shipment>,
    /// Number of the next part, as far as it is known.
    next: u64,
    /// What lies in closed segments and was not shipped.
    closed: Vec<Stretch>,
    /// First byte of the open segment that was not shipped.
    open_from: u64,
    /// When something was noticed first that was not shipped, where flushes end on this host.
    behind_since: Option<Duration>,
    /// Number of the next flush, and the number below which all have ended.
    flush_next: u64,
    flushed_below: u64,
    /// The number below which the ends of flushes were reported, or that they last too long.
    told_below: u64,
    /// When the flushes were asked for whose end was not told. Empty where guests wait as long as it takes.
    asked: VecDeque<(u64, Duration)>,
    /// Groups with numbers below this one are stored.
    stored_below: u64,
    /// Parts with numbers below this one may be removed.
    forget_below: u64,
    /// The first data segment of the log in a durable head.
    log_from: u32,
    /// A worker that removes parts.
    forgetting: Option<Box<dyn Running>>,
    failed: Option<Error>,
}

impl Shipped {
    /// For an owner with this term, which has found these parts.
    pub(crate) fn new(
        shipping: Arc<dyn Shipping>,
        image: ImageId,
        label: &str,
        term: u64,
        recovered: Recovered,
    ) -> Self {
        let Recovered { next, parts: stored } = recovered;
        let label = label.to_owned();
        let (way, name) = (Arc::clone(&shipping), label.clone());
        let parts = Parts { shipping: way, image, label: name, term, next, stored };
        Self {
            shipping,
            image,
            label,
            parts: Some(parts),
            shipment: None,
            next,
            closed: Vec::new(),
            open_from: 0,
            behind_since: None,
            flush_next: 0,
            flushed_below: 0,
            told_below: 0,
            asked: VecDeque::new(),
            stored_below: 0,
            forget_below: 0,
            log_from: 0,
            forgetting: None,
            failed: None,
        }
    }

    /// True where a flush has to ship the log. Otherwise it ends when the log is durable on this host.
    pub(super) fn ships_flushes(&self) -> bool {
        self.shipping.ships_flushes()
    }

    /// A number that the next part has, or a part before it that is under way.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Groups with numbers below this one are stored.
    pub(super) fn stored_below(&self) -> u64 {
        self.stored_below
    }

    /// The log begins again, in a segment of its own. A root covers what was before.
    pub(super) fn start(&mut self) {
        self.closed.clear();
        self.open_from = 0;
    }

    /// The log goes on in another segment: nothing more is appended to this one.
    pub(super) fn closed(&mut self, sequence: u32, file: Arc<dyn DiskFile>, slot: u32) {
        let bytes = self.open_from..u64::from(slot) * BLOCK_BYTES;
        let is_whole = bytes.start == 0;
        if !bytes.is_empty() {
            self.closed.push(Stretch { sequence, file, bytes, is_whole });
        }
        self.open_from = 0;
    }

    /// The log has passed through a segment beside it: its header and the passage belong to the log.
    pub(super) fn passed(&mut self, sequence: u32, file: Arc<dyn DiskFile>) {
        self.closed.push(Stretch { sequence, file, bytes: 0..2 * BLOCK_BYTES, is_whole: false });
    }

    /// A head is durable whose log begins at this segment and part: what was before is not needed any more.
    pub(super) fn covered(&mut self, sequence: u32, part: u64, workers: &dyn Workers) {
        self.closed.retain(|closed| closed.sequence >= sequence);
        (self.forget_below, self.log_from) = (part, sequence);
        self.forget(workers);
    }

    /// Removes parts that a head does not need any more, on a worker.
    fn forget(&mut self, workers: &dyn Workers) {
        let Some(parts) = &mut self.parts else { return };
        let below = self.forget_below;
        let (gone, left) =
            std::mem::take(&mut parts.stored).into_iter().partition::<Vec<_>, _>(|n| *n < below);
        parts.stored = left;
        let (shipping, image, log_from) = (Arc::clone(&self.shipping), self.image, self.log_from);
        let forgetting = workers.start(Box::new(move || {
            shipping.forget_log(image, log_from, &mut gone.into_iter());
        }));
        if let Some(before) = self.forgetting.replace(forgetting) {
            before.wait();
        }
    }

    /// Asks for a flush. Returns its number where it has not ended yet. `now`: the time since the start.
    ///
    /// # Errors
    /// `Fenced`, `Poisoned`: as an earlier shipment has failed.
    pub(super) fn flush(
        &mut self,
        open: Option<&OpenEnd<'_>>,
        workers: &dyn Workers,
        now: Duration,
    ) -> Result<Option<u64>> {
        self.check()?;
        if self.shipment.is_none() && self.bytes_behind(open) == 0 {
            return Ok(None);
        }
        let number = self.flush_next;
        self.flush_next += 1;
        if self.has_timeout() {
            self.asked.push_back((number, now));
        }
        if self.shipment.is_none() {
            self.start_shipment(open, workers);
        }
        Ok(Some(number))
    }

    /// Bytes of the log that no shipment has.
    fn bytes_behind(&self, open: Option<&OpenEnd<'_>>) -> u64 {
        let end = open.filter(|open| open.has_groups()).map_or(0, OpenEnd::end_bytes);
        let closed = self.closed.iter().map(|closed| closed.bytes.end - closed.bytes.start);
        closed.sum::<u64>() + end.saturating_sub(self.open_from)
    }

    /// Where flushes end on this host: true where [`Self::ship_behind`] has something to do. Takes in a shipment that
    /// has ended.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub(super) fn is_behind(
        &mut self,
        open: Option<&OpenEnd<'_>>,
        workers: &dyn Workers,
        now: Duration,
    ) -> Result<bool> {
        if self.is_ready() {
            self.settle(workers);
        }
        self.check()?;
        let bytes = self.bytes_behind(open);
        if self.shipment.is_some() || bytes == 0 {
            return Ok(false);
        }
        let since = *self.behind_since.get_or_insert(now);
        Ok(bytes >= BEHIND_BYTES_MAX || now.saturating_sub(since) >= BEHIND_TIME_MAX)
    }

    /// Ships what was not shipped yet, on a worker.
    pub(super) fn ship_behind(&mut self, open: Option<&OpenEnd<'_>>, workers: &dyn Workers) {
        self.behind_since = None;
        self.start_shipment(open, workers);
    }

    fn start_shipment(&mut self, open: Option<&OpenEnd<'_>>, workers: &dyn Workers) {
        let Some(mut parts) = self.parts.take() else { return };
        let mut stretches = std::mem::take(&mut self.closed);
        let mut groups = self.stored_below;
        if let Some(OpenEnd { sequence, file, slot, group }) = open.filter(|open| open.has_groups())
        {
            let bytes = self.open_from..u64::from(*slot) * BLOCK_BYTES;
            self.open_from = bytes.end;
            let (sequence, file) = (*sequence, Arc::clone(file));
            stretches.push(Stretch { sequence, file, bytes, is_whole: false });
            groups = *group;
        }
        let task = Task::start(workers, move || {
            let outcome = parts.ship(stretches);
            (parts, outcome)
        });
        self.shipment = Some(Shipment { task, flushes: self.flush_next, groups });
    }

    /// True where [`Self::poll`] takes in a shipment.
    pub(super) fn is_ready(&mut self) -> bool {
        self.shipment.as_mut().is_some_and(|shipment| shipment.task.is_finished())
    }

    /// Takes in a shipment that has ended, and starts the next one where flushes wait for it.
    pub(super) fn poll(&mut self, open: Option<&OpenEnd<'_>>, workers: &dyn Workers) {
        if self.is_ready() {
            self.settle(workers);
            if self.failed.is_none() && self.flushed_below < self.flush_next {
                self.start_shipment(open, workers);
            }
        }
    }

    /// Waits for the shipment that is under way, if there is one.
    fn settle(&mut self, workers: &dyn Workers) {
        let Some(Shipment { task, flushes, groups }) = self.shipment.take() else { return };
        let outcome = match task.wait() {
            Some((parts, outcome)) => {
                self.next = parts.next;
                self.parts = Some(parts);
                outcome
            }
            None => Err(Error::new(ErrorKind::Poisoned, "a flush ended without an outcome")),
        };
        match outcome {
            Ok(()) => {
                self.flushed_below = flushes;
                self.stored_below = groups;
                if fault::is(Fault::LogForgottenEarly) {
                    self.forget_below = self.next;
                }
                self.forget(workers);
            }
            Err(error) => self.failed = Some(error),
        }
    }

    /// Waits for the shipment that is under way. Then [`Self::next`] is the number behind all parts that are stored or
    /// may be stored yet.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub(super) fn end(&mut self, workers: &dyn Workers) -> Result<()> {
        self.settle(workers);
        self.check()
    }

    /// Ships everything, and waits for it.
    ///
    /// # Errors
    /// As [`Self::flush`]; `Unreachable` where the service does not answer in the time that guests wait.
    pub(super) fn flush_now(
        &mut self,
        open: Option<&OpenEnd<'_>>,
        workers: &dyn Workers,
        now: Duration,
    ) -> Result<()> {
        self.await_service()?;
        self.settle(workers);
        if self.flush(open, workers, now)?.is_some() {
            self.settle(workers);
        } else {
            // Nothing was appended since.
            self.flushed_below = self.flush_next;
        }
        self.check()
    }

    /// Where guests wait for a limited time: waits for the service, before something without a time-out waits.
    ///
    /// # Errors
    /// `Unreachable` where the service does not answer in that time.
    pub(crate) fn await_service(&self) -> Result<()> {
        if !self.has_timeout() {
            return Ok(());
        }
        let answered = self.shipping.await_service();
        answered.map_err(|error| self.timed_out(&error.to_string()))
    }

    /// True where guests wait for the service for a limited time only.
    pub(crate) fn has_timeout(&self) -> bool {
        self.shipping.io_timeout().is_some()
    }

    /// True where something that waits for the service since `since` has waited for as long as guests do.
    fn is_over(&self, since: Duration, now: Duration) -> bool {
        let Some(limit) = self.shipping.io_timeout() else { return false };
        now.saturating_sub(since) >= limit
            || self.shipping.trouble().is_some_and(|trouble| trouble.lasts >= limit)
    }

    /// Fails where something that waits for the service since `since` has waited for as long as guests do.
    ///
    /// # Errors
    /// `Unreachable`.
    pub(crate) fn check_time(&self, since: Duration, now: Duration) -> Result<()> {
        if !self.is_over(since, now) {
            return Ok(());
        }
        let why = self.shipping.trouble().map(|trouble| trouble.why);
        let why = why.unwrap_or_else(|| "the service takes longer than guests wait".to_owned());
        Err(self.timed_out(&why))
    }

    fn timed_out(&self, why: &str) -> Error {
        Error::new(ErrorKind::Unreachable, format!("{} waits for its bucket: {why}", self.label))
    }

    fn check(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// True where a flush waits, or its end was not told yet.
    pub(super) fn is_awaited(&self) -> bool {
        self.told_below < self.flush_next
    }

    /// Which flushes have ended, or last too long, where that was not told yet.
    pub(super) fn newly_flushed(&mut self, now: Duration) -> Option<Flushes> {
        if !self.is_awaited() {
            return None;
        }
        if let Err(error) = self.check() {
            self.told_below = self.flush_next;
            return Some(Flushes::Ended(Err(error)));
        }
        let below = self.flushed_below;
        while self.asked.pop_front_if(|(number, _)| *number < below).is_some() {}
        if self.told_below < below {
            self.told_below = below;
            return Some(Flushes::Ended(Ok(below)));
        }
        let (number, since) = *self.asked.front()?;
        let error = self.check_time(since, now).err()?;
        self.asked.pop_front();
        self.told_below = number + 1;
        Some(Flushes::Late(self.told_below, error))
    }

    /// Waits until nothing is under way. For an image that is dropped.
    pub(super) fn abandon(&mut self) {
        if let Some(shipment) = self.shipment.take() {
            let _ = shipment.task.wait();
        }
        if let Some(forgetting) = self.forgetting.take() {
            forgetting.wait();
        }
    }
}

/// What has become of flushes.
pub(crate) enum Flushes {
    /// All with numbers below this one have ended.
    Ended(Result<u64>),
    /// Those below this one last longer than guests wait. They go on.
    Late(u64, Error),
}

/// What is gathered for the next part.
#[derive(Default)]
struct Pieces {
    list: Vec<LogPiece>,
    bytes: u64,
}

impl Parts {
    /// Ships stretches of the log, in their order.
    fn ship(&mut self, stretches: Vec<Stretch>) -> Result<()> {
        let mut pieces = Pieces::default();
        for stretch in stretches {
            if stretch.is_whole {
                let sealed = self.shipping.seal_data(self.image, stretch.sequence);
                sealed.map_err(|error| self.failed(error))?;
                let sequence = stretch.sequence;
                pieces.list.push(LogPiece { sequence, offset: 0, bytes: Vec::new() });
            } else {
                self.add(&mut pieces, &stretch)?;
            }
        }
        self.store(&mut pieces)
    }

    /// Adds the bytes of a stretch, and stores parts that are full.
    fn add(&mut self, pieces: &mut Pieces, stretch: &Stretch) -> Result<()> {
        let Range { start: mut offset, end } = stretch.bytes;
        while offset < end {
            let bytes = (end - offset).min(PART_BYTES_MAX - pieces.bytes);
            let mut piece = vec![0; bytes as usize];
            let read = stretch.file.read_at(offset, &mut piece);
            if read.map_err(|error| self.failed(error))? < piece.len() {
                return Err(self.failed(std::io::ErrorKind::UnexpectedEof.into()));
            }
            pieces.list.push(LogPiece { sequence: stretch.sequence, offset, bytes: piece });
            pieces.bytes += bytes;
            offset += bytes;
            if pieces.bytes == PART_BYTES_MAX {
                self.store(pieces)?;
            }
        }
        Ok(())
    }

    fn store(&mut self, pieces: &mut Pieces) -> Result<()> {
        if pieces.list.is_empty() {
            return Ok(());
        }
        let part = ShippedLog {
            image_id: self.image.0,
            number: self.next,
            term: self.term,
            fence: false,
            pieces: std::mem::take(&mut pieces.list),
        };
        pieces.bytes = 0;
        match self.shipping.ship(&part) {
            Ok(()) => {
                self.stored.push(self.next);
                self.next += 1;
                Ok(())
            }
            Err(ShipError::Fenced) => {
                let message = format!("{} was taken over by another host", self.label);
                Err(Error::new(ErrorKind::Fenced, message))
            }
            Err(ShipError::Io(error)) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: std::io::Error) -> Error {
        let message = format!("flushing {} failed; reopen it", self.label);
        Error::above(ErrorKind::Poisoned, message, error)
    }
}
