//! One round: everything that was ready when the thread woke up, in as few engine calls as possible.
//!
//! ```text
//!   lanes:   connection   connection   ...   in-process requests
//!   stage 0: reads of all lanes -> one read_batch; writes of all -> one write_batch; discards
//!   stage 1: only where a lane's order asks for it
//!   answers that do not wait for a flush, nor for a service
//!   one flush for every FLUSH and FUA of the round, then their answers, or later where the flush ends later
//! ```
//!
//! Invariant: a flush comes after every write of this round and of all rounds before it. So it covers every
//! write that has been acknowledged on any connection, as CAN_MULTI_CONN promises.

use marcot::{BlockDevice, Error, Read, Result, Write};

use super::tally::Tally;

/// The outcome of a read in a round.
pub(crate) enum ReadEnd {
    /// It has been carried out.
    Done(Result<()>),
    /// It is in flight. Its lane gets the outcome when it completes.
    InFlight(u64),
}

/// A source of operations: a connection, or the in-process queue.
pub(crate) trait Lane {
    /// Number of stages needed; 0 if there is nothing to do.
    fn stages(&self) -> u32;

    /// Makes room for the reads of `stage` and carries out what cannot be batched before them.
    fn prepare(&mut self, stage: u32, device: &mut dyn BlockDevice);

    /// Adds the reads of `stage`.
    fn reads<'a>(&'a mut self, stage: u32, batch: &mut Vec<Read<'a>>);

    /// Takes the outcomes of the reads that [`Self::reads`] added, in the same order.
    fn reads_done(&mut self, stage: u32, ends: &mut dyn Iterator<Item = ReadEnd>);

    /// Lets the device park those writes of `stage` that would have to wait for a service.
    fn park_writes(&mut self, stage: u32, device: &mut dyn BlockDevice);

    /// Adds the writes of `stage` that are not parked.
    fn writes<'a>(&'a self, stage: u32, batch: &mut Vec<Write<'a>>);

    /// The batch with the writes of `stage` is in flight and has this number. It is stored when the device
    /// says that all batches below a larger number are.
    fn writes_in_flight(&mut self, stage: u32, number: u64);

    /// Notes that the batch with the writes of `stage` has failed.
    fn writes_failed(&mut self, stage: u32, failure: &Error);

    /// Carries out the discards of `stage`. Fails if the image cannot be used any more.
    fn discard(&mut self, stage: u32, device: &mut dyn BlockDevice) -> Result<()>;

    /// True if an answer waits for a flush.
    fn waits_for_flush(&self) -> bool;

    /// Gives the answers that do not wait for a flush.
    fn answer_unflushed(&mut self);

    /// Gives the other answers, with the flush's outcome.
    fn answer_flushed(&mut self, outcome: &Result<()>);

    /// The flush that the other answers wait for ends later. It has this number: it has ended when the device
    /// says that all flushes below a larger number have.
    fn flush_in_flight(&mut self, number: u64);
}

/// Carries out and answers everything in `lanes`.
///
/// # Errors
/// A failure after which the image cannot be used. Every answer has been given all the same.
pub(crate) fn run(
    device: &mut dyn BlockDevice,
    lanes: &mut [&mut dyn Lane],
    tally: &Tally,
) -> Result<()> {
    if lanes.is_empty() {
        return Ok(());
    }
    let mut fatal = Ok(());
    let stages = lanes.iter().map(|lane| lane.stages()).max().unwrap_or(0);
    for stage in 0..stages {
        read(device, lanes, stage);
        fatal = fatal.and(write(device, lanes, stage));
        for lane in lanes.iter_mut() {
            let discarded = lane.discard(stage, device);
            fatal = fatal.and(discarded);
        }
    }
    tally.device_is_done();
    let flush = lanes.iter().any(|lane| lane.waits_for_flush());
    for lane in lanes.iter_mut() {
        lane.answer_unflushed();
    }
    if flush {
        match device.flush_async() {
            Ok(Some(number)) => lanes.iter_mut().for_each(|lane| lane.flush_in_flight(number)),
            outcome => {
                let outcome = outcome.map(drop);
                tally.device_is_done();
                for lane in lanes.iter_mut() {
                    lane.answer_flushed(&outcome);
                }
                fatal = fatal.and(only_fatal(outcome));
            }
        }
    }
    fatal
}

/// Keeps a failure only if it concerns the image and not a request.
pub(super) fn only_fatal(outcome: Result<()>) -> Result<()> {
    outcome.or_else(|failure| if failure.kind().ends_writing() { Err(failure) } else { Ok(()) })
}

fn read(device: &mut dyn BlockDevice, lanes: &mut [&mut dyn Lane], stage: u32) {
    let mut batch = Vec::new();
    for lane in lanes.iter_mut() {
        lane.prepare(stage, device);
    }
    for lane in lanes.iter_mut() {
        lane.reads(stage, &mut batch);
    }
    if batch.is_empty() {
        return;
    }
    device.read_batch(&mut batch);
    let end = |read: Read<'_>| read.in_flight.map_or(ReadEnd::Done(read.result), ReadEnd::InFlight);
    let ends: Vec<ReadEnd> = batch.into_iter().map(end).collect();
    let mut ends = ends.into_iter();
    for lane in lanes.iter_mut() {
        lane.reads_done(stage, &mut ends);
    }
}

fn write(device: &mut dyn BlockDevice, lanes: &mut [&mut dyn Lane], stage: u32) -> Result<()> {
    let mut batch = Vec::new();
    if device.may_park() {
        for lane in lanes.iter_mut() {
            lane.park_writes(stage, device);
        }
    }
    for lane in lanes.iter() {
        lane.writes(stage, &mut batch);
    }
    if batch.is_empty() {
        return Ok(());
    }
    let outcome = device.write_batch_async(&batch);
    drop(batch);
    for lane in lanes.iter_mut() {
        match &outcome {
            Ok(None) => {}
            Ok(Some(number)) => lane.writes_in_flight(stage, *number),
            Err(failure) => lane.writes_failed(stage, failure),
        }
    }
    only_fatal(outcome.map(drop))
}
