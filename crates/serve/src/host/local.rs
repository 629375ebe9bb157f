//! Requests from inside this process: FUSE, and commands that read or write a mapped image.

use std::collections::HashMap;
use std::sync::Arc;

use marcot::{BlockDevice, Error, ErrorKind, Read, Result, Write};

use super::operation::{Operation, OperationKind, Stages};
use super::round::{Lane, ReadEnd};
use super::tally::{Begun, Tally};

/// Largest read or write of one in-process request, in bytes.
pub const LOCAL_BYTES_MAX: usize = 32 << 20;

/// A block operation handed to an image's thread by another thread.
#[derive(Debug)]
pub enum DeviceRequest {
    /// Read bytes; they come with the completion.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most [`LOCAL_BYTES_MAX`].
        length: usize,
    },
    /// Write bytes.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes to write.
        data: Vec<u8>,
        /// Acknowledge only when durable.
        fua: bool,
    },
    /// Make a range read as zeros and give its space back. Serves write-zeroes as well.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Acknowledge only when durable.
        fua: bool,
    },
    /// Make everything durable that was acknowledged before.
    Flush,
}

type Callback = Box<dyn FnOnce(Result<Vec<u8>>) + Send>;

/// A callback for the outcome of a request. It is called exactly once, on the image's thread, and must not
/// block. If the image is closed first, the outcome is an error of kind `Fenced`.
pub struct Completion(Option<Callback>);

impl Completion {
    /// Calls `callback` when the request is done, with the bytes of a read, and with none otherwise.
    pub fn new(callback: impl FnOnce(Result<Vec<u8>>) + Send + 'static) -> Self {
        Self(Some(Box::new(callback)))
    }

    /// Calls the callback with an error, for a request that is not handed over.
    pub fn fail(self, error: Error) {
        self.call(Err(error));
    }

    /// The same; what succeeds is counted.
    fn counted(self, tally: Arc<Tally>, begun: Begun) -> Self {
        Self::new(move |outcome| {
            if outcome.is_ok() {
                tally.done(&begun);
            }
            self.call(outcome);
        })
    }

    fn call(mut self, outcome: Result<Vec<u8>>) {
        if let Some(callback) = self.0.take() {
            callback(outcome);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback(Err(Error::new(ErrorKind::Fenced, "the image is no longer served")));
        }
    }
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Completion")
    }
}

/// Number of the first read, behind the numbers of all clients.
pub(super) const FIRST_READ: u64 = u64::MAX << 40;

struct Entry {
    operation: Operation,
    /// The bytes to write, or the bytes read.
    data: Vec<u8>,
    /// Number of the read, or of the batch that it was written with, while that is in flight.
    in_flight: Option<u64>,
    done: Option<Completion>,
}

/// The in-process requests of one round, and writes of earlier rounds that are in flight.
pub(super) struct LocalLane {
    tally: Arc<Tally>,
    entries: Vec<Entry>,
    stages: Stages,
    in_flight: Vec<(u64, Completion)>,
    /// Reads that are in flight, and how many there were.
    reads_in_flight: HashMap<u64, Completion>,
    reads: u64,
    /// Requests that wait for a flush with this number.
    in_flush: Vec<(u64, Completion)>,
    /// Requests that the device has parked, and whether they are acknowledged only when durable.
    parked: HashMap<u64, (bool, Completion)>,
}

impl LocalLane {
    /// Without requests. What it carries out is counted in `tally`.
    pub(super) fn new(tally: Arc<Tally>) -> Self {
        Self {
            tally,
            entries: Vec::new(),
            stages: Stages::default(),
            in_flight: Vec::new(),
            parked: HashMap::new(),
            reads_in_flight: HashMap::new(),
            reads: 0,
            in_flush: Vec::new(),
        }
    }

    /// Adds a request to the coming round. A request that cannot be carried out is answered at once.
    pub(super) fn push(&mut self, request: DeviceRequest, done: Completion, size_bytes: u64) {
        let (operation, data) = split(request);
        let end = operation.offset.checked_add(operation.length);
        let flush = operation.kind == OperationKind::Flush;
        if !flush && end.is_none_or(|end| end > size_bytes) {
            let message = "the range ends beyond the image";
            return done.call(Err(Error::new(ErrorKind::OutOfRange, message)));
        }
        if operation.kind == OperationKind::Read && operation.length > LOCAL_BYTES_MAX as u64 {
            return done.call(Err(Error::new(ErrorKind::Invalid, "the read is too long")));
        }
        let done = done.counted(Arc::clone(&self.tally), self.tally.begun(&operation, true));
        let mut operation = operation;
        self.stages.place(&mut operation, self.entries.iter().rev().map(|e| &e.operation));
        self.entries.push(Entry { operation, data, in_flight: None, done: Some(done) });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Answers the writes of earlier rounds that have completed or have failed.
    pub(super) fn answer_written(&mut self, written: &Result<u64>) {
        answer_ended(&mut self.in_flight, written);
    }

    /// Answers a request that was parked, or lets it wait for a flush. False where there is none with this number.
    pub(super) fn answer_parked(
        &mut self,
        number: u64,
        result: &Result<()>,
        device: &mut dyn BlockDevice,
    ) -> bool {
        let Some((fua, done)) = self.parked.remove(&number) else { return false };
        match after_parked(fua, result, device) {
            Ok(Some(flush)) => self.in_flush.push((flush, done)),
            outcome => done.call(outcome.map(|_| Vec::new())),
        }
        true
    }

    /// Answers a read that was in flight.
    pub(super) fn answer_read(&mut self, number: u64, result: Result<Vec<u8>>) {
        if let Some(done) = self.reads_in_flight.remove(&number) {
            done.call(result);
        }
    }

    /// Answers the requests of earlier rounds whose flush has ended or has failed.
    pub(super) fn answer_flushes(&mut self, flushed: &Result<u64>) {
        answer_ended(&mut self.in_flush, flushed);
    }

    /// Answers the requests of earlier rounds with this error whose flush has a smaller number than `below`.
    pub(super) fn fail_flushes(&mut self, below: u64, failure: &Error) {
        let waiting = std::mem::take(&mut self.in_flush);
        let (mut late, left): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(number, _)| *number < below);
        self.in_flush = left;
        answer_ended(&mut late, &Err(failure.clone()));
    }

    /// True where nobody waits for an answer.
    pub(super) fn is_settled(&self) -> bool {
        let no_reads = self.reads_in_flight.is_empty();
        let no_writes = self.in_flight.is_empty() && self.parked.is_empty();
        self.entries.is_empty() && no_writes && self.in_flush.is_empty() && no_reads
    }

    fn of(&mut self, stage: u32, kind: OperationKind) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().filter(move |e| e.operation.runs_in(stage, kind))
    }
}

/// What a request waits for after it was parked: the flush with this number, if it has to be durable and is not yet.
///
/// # Errors
/// That of the request, or of the flush.
pub(super) fn after_parked(
    fua: bool,
    result: &Result<()>,
    device: &mut dyn BlockDevice,
) -> Result<Option<u64>> {
    result.clone()?;
    if fua { device.flush_async() } else { Ok(None) }
}

/// Answers the requests with numbers below the one of `ended`; with an error all of them.
fn answer_ended(waiting: &mut Vec<(u64, Completion)>, ended: &Result<u64>) {
    let has_ended = |number: u64| ended.as_ref().map_or(true, |below| number < *below);
    let (done, left): (Vec<_>, Vec<_>) =
        std::mem::take(waiting).into_iter().partition(|(number, _)| has_ended(*number));
    *waiting = left;
    for (_, completion) in done {
        let outcome = ended.as_ref().map(|_| Vec::new());
        completion.call(outcome.map_err(Error::clone));
    }
}

fn split(request: DeviceRequest) -> (Operation, Vec<u8>) {
    use OperationKind::{Discard, Flush, Read, Write};
    match request {
        DeviceRequest::Read { offset, length } => {
            (Operation::new(Read, offset, length as u64, false), Vec::new())
        }
        DeviceRequest::Write { offset, data, fua } => {
            (Operation::new(Write, offset, data.len() as u64, fua), data)
        }
        DeviceRequest::Discard { offset, length, fua } => {
            (Operation::new(Discard, offset, length, fua), Vec::new())
        }
        DeviceRequest::Flush => (Operation::new(Flush, 0, 0, false), Vec::new()),
    }
}

impl Entry {
    fn answer(&mut self) {
        let Some(done) = self.done.take() else { return };
        done.call(match &self.operation.outcome {
            Err(failure) => Err(failure.clone()),
            Ok(()) if self.operation.kind == OperationKind::Read => {
                Ok(std::mem::take(&mut self.data))
            }
            Ok(()) => Ok(Vec::new()),
        });
    }
}

impl Lane for LocalLane {
    fn stages(&self) -> u32 {
        if self.entries.is_empty() { 0 } else { self.stages.count() }
    }

    fn prepare(&mut self, stage: u32, _device: &mut dyn BlockDevice) {
        for entry in self.of(stage, OperationKind::Read) {
            // `push` has bounded the length by LOCAL_BYTES_MAX.
            entry.data = vec![0; entry.operation.length as usize];
        }
    }

    fn reads<'a>(&'a mut self, stage: u32, batch: &mut Vec<Read<'a>>) {
        let first = FIRST_READ + self.reads;
        self.reads += self.of(stage, OperationKind::Read).count() as u64;
        for (entry, number) in self.of(stage, OperationKind::Read).zip(first..) {
            let read = Read::new(entry.operation.offset, &mut entry.data);
            batch.push(Read { in_flight: Some(number), ..read });
        }
    }

    fn reads_done(&mut self, stage: u32, ends: &mut dyn Iterator<Item = ReadEnd>) {
        // The entries come first, so that `zip` does not take an end that belongs to another lane.
        for (entry, end) in self.of(stage, OperationKind::Read).zip(ends) {
            match end {
                ReadEnd::Done(result) => entry.operation.outcome = result,
                ReadEnd::InFlight(number) => entry.in_flight = Some(number),
            }
        }
    }

    fn park_writes(&mut self, stage: u32, device: &mut dyn BlockDevice) {
        for entry in self.of(stage, OperationKind::Write) {
            entry.operation.park_write(&entry.data, device);
        }
    }

    fn writes<'a>(&'a self, stage: u32, batch: &mut Vec<Write<'a>>) {
        let entries = self.entries.iter();
        let entries = entries.filter(|e| e.operation.runs_in(stage, OperationKind::Write));
        batch.extend(entries.map(|e| Write { offset: e.operation.offset, data: &e.data }));
    }

    fn writes_in_flight(&mut self, stage: u32, number: u64) {
        for entry in self.of(stage, OperationKind::Write) {
            entry.in_flight = Some(number);
        }
    }

    fn writes_failed(&mut self, stage: u32, failure: &Error) {
        for entry in self.of(stage, OperationKind::Write) {
            entry.operation.outcome = Err(failure.clone());
        }
    }

    fn discard(&mut self, stage: u32, device: &mut dyn BlockDevice) -> Result<()> {
        let mut fatal = Ok(());
        for entry in self.of(stage, OperationKind::Discard) {
            fatal = fatal.and(entry.operation.discard(device));
        }
        fatal
    }

    fn waits_for_flush(&self) -> bool {
        self.entries.iter().any(|e| e.operation.waits_for_flush())
    }

    fn answer_unflushed(&mut self) {
        for entry in self.entries.iter_mut().filter(|e| !e.operation.waits_for_flush()) {
            if let Some(number) = entry.operation.parked {
                let done = entry.done.take();
                self.parked.extend(done.map(|done| (number, (entry.operation.fua, done))));
                continue;
            }
            match entry.in_flight.filter(|_| entry.operation.outcome.is_ok()) {
                Some(number) if entry.operation.kind == OperationKind::Read => {
                    self.reads_in_flight.extend(entry.done.take().map(|done| (number, done)));
                }
                Some(number) => self.in_flight.extend(entry.done.take().map(|done| (number, done))),
                None => entry.answer(),
            }
        }
        self.entries.retain(|e| e.done.is_some());
        if self.entries.is_empty() {
            self.stages = Stages::default();
        }
    }

    fn flush_in_flight(&mut self, number: u64) {
        for mut entry in self.entries.drain(..) {
            match &entry.operation.outcome {
                Ok(()) => self.in_flush.extend(entry.done.take().map(|done| (number, done))),
                Err(_) => entry.answer(),
            }
        }
        self.stages = Stages::default();
    }

    fn answer_flushed(&mut self, outcome: &Result<()>) {
        for mut entry in self.entries.drain(..) {
            entry.operation.outcome = outcome.clone();
            entry.answer();
        }
        self.stages = Stages::default();
    }
}
