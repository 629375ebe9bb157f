//! The face of an open image that front ends serve: a block device with bytes, not blocks.

use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};

/// One write of a batch. `offset` and length are in bytes and need no alignment.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// First byte on the device.
    pub offset: u64,
    /// What to store there.
    pub data: &'a [u8],
}

/// One read of a batch. `offset` and length are in bytes and need no alignment.
#[derive(Debug)]
pub struct Read<'a> {
    /// First byte on the device.
    pub offset: u64,
    /// Filled on success.
    pub buf: &'a mut [u8],
    /// Outcome of this read alone: a damaged block fails only the reads that touch it.
    pub result: Result<()>,
    /// The caller's number for the read, where the caller can take it later. A device that would have to
    /// wait for the medium or for a service may leave such a read in flight: then the number is still set afterwards, `buf`
    /// was not filled, and [`BlockDevice::take_completion`] gives the data. Else the device clears it.
    pub in_flight: Option<u64>,
}

impl<'a> Read<'a> {
    /// A read that is finished at once.
    pub fn new(offset: u64, buf: &'a mut [u8]) -> Self {
        Self { offset, buf, result: Ok(()), in_flight: None }
    }
}

/// A read that was finished later.
#[derive(Debug)]
pub struct CompletedRead {
    /// The caller's number.
    pub number: u64,
    /// What was asked for.
    pub result: Result<Vec<u8>>,
}

/// What a device has finished since it was asked for it.
#[derive(Debug)]
pub enum Completion {
    /// A read.
    Read(CompletedRead),
    /// Every batch of writes with a smaller number than this is stored. With an error the device cannot be
    /// used any more, and no batch is stored that has not been told of before.
    Written(Result<u64>),
    /// Every flush with a smaller number than this has ended. With an error the device cannot be used any more,
    /// and no flush has ended that has not been told of before.
    Flushed(Result<u64>),
    /// A write or discard that was parked has ended; see [`BlockDevice::park_write`]. Where it has not failed, it is
    /// stored.
    Parked(u64, Result<()>),
    /// The flushes with smaller numbers than this of which nothing was told have not ended in the time that
    /// guests wait. The device goes on, and a later flush covers what these should have made durable.
    Unflushed(u64, Error),
}

/// A run of the device that is of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// True where blocks are mapped; false for a hole, which reads as zeros.
    pub data: bool,
}

/// What a device gave back when it was told to rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IdleOutcome {
    /// Memory in bytes.
    pub freed_bytes: u64,
    /// More can be given back later, when what has been begun is done.
    pub unfinished: bool,
}

/// The data plane of an open image: what a front end needs to serve reads and writes. Implemented by
/// [`crate::Image`].
///
/// All calls come from the one thread that serves the image.
pub trait BlockDevice: Send {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;

    /// True for snapshots and images opened read-only.
    fn read_only(&self) -> bool;

    /// Stores `writes` in order, so that a later read sees them; durable after [`Self::flush`].
    ///
    /// # Errors
    /// `ReadOnly`, `OutOfRange`, `NoSpace`, `Poisoned`, `Fenced`, `Io`. Writes of a failed batch
    /// may or may not be visible; none has been promised.
    fn write_batch(&mut self, writes: &[Write<'_>]) -> Result<()>;

    /// As [`Self::write_batch`], but writes may still be under way: then it returns a number, and
    /// the batch is stored when [`Self::take_completion`] tells of it. A later read sees it all the same,
    /// and a later flush makes it durable. After such a batch each later one is told of too, as long
    /// as that one is not stored: what is acknowledged must not depend on what is not.
    ///
    /// # Errors
    /// As [`Self::write_batch`].
    fn write_batch_async(&mut self, writes: &[Write<'_>]) -> Result<Option<u64>> {
        self.write_batch(writes).map(|()| None)
    }

    /// False where nothing has to wait for a service, so that [`Self::park_write`] and [`Self::park_discard`] park
    /// nothing.
    fn may_park(&self) -> bool {
        false
    }

    /// Takes a write now that would have to wait for a service, so that the device can go on meanwhile. Returns its
    /// number among the parked requests: it has ended when [`Self::take_completion`] tells of it. Until then it is
    /// not acknowledged: flushes do not cover it. Later reads, writes and discards that overlap it come after it.
    /// `None`: it has to be given to [`Self::write_batch_async`].
    fn park_write(&mut self, write: Write<'_>) -> Option<u64> {
        let _ = write;
        None
    }

    /// As [`Self::park_write`], for a discard.
    fn park_discard(&mut self, offset: u64, length: u64) -> Option<u64> {
        let _ = (offset, length);
        None
    }

    /// Performs every read of `reads`, leaving each outcome in its `result`.
    fn read_batch(&mut self, reads: &mut [Read<'_>]);

    /// Something of an earlier batch that has been finished meanwhile.
    fn take_completion(&mut self) -> Option<Completion> {
        None
    }

    /// Readable when there may be some; `None` as long as nothing has been left in flight. A flush, a read or a
    /// command may finish things too, and then it does not tell.
    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Makes a range read as zeros and gives its space back.
    ///
    /// # Errors
    /// As [`Self::write_batch`].
    fn discard(&mut self, offset: u64, length: u64) -> Result<()>;

    /// Makes everything acknowledged before durable.
    ///
    /// # Errors
    /// `Poisoned` when stable storage refused; nothing is promised afterwards until reopened.
    fn flush(&mut self) -> Result<()>;

    /// As [`Self::flush`], but it may end later, while the device goes on: then it returns a number, and the flush
    /// has ended when [`Self::take_completion`] tells of it.
    ///
    /// # Errors
    /// As [`Self::flush`].
    fn flush_async(&mut self) -> Result<Option<u64>> {
        self.flush().map(|()| None)
    }

    /// True while a flush is under way, or something else of which [`Self::completion_fd`] does not show when it ends, so
    /// that [`Self::take_completion`] has to be called now and then.
    fn awaits_flush(&self) -> bool {
        false
    }

    /// The kinds of the runs of `[offset, offset + length)`, at most `extents_max` of them,
    /// in order and without gaps, from `offset` on.
    ///
    /// # Errors
    /// `OutOfRange`, `Corrupt`, `Io`.
    fn extents(&mut self, offset: u64, length: u64, extents_max: usize) -> Result<Vec<Extent>>;

    /// As [`Self::extents`], but never waits for a service.
    ///
    /// # Errors
    /// As [`Self::extents`]; `Unreachable` where it would have to wait.
    fn extents_at_hand(
        &mut self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>> {
        self.extents(offset, length, extents_max)
    }

    /// Asks the operating system to read a range ahead; a hint that may do nothing.
    ///
    /// # Errors
    /// `OutOfRange`.
    fn cache(&mut self, offset: u64, length: u64) -> Result<()>;
}

/// What an open image does for itself while nobody waits for it. Implemented by [`crate::Image`].
///
/// Who has an image open calls this between requests, from the thread that serves it.
pub trait Housekeeping: Send {
    /// Does a small piece of background work (checkpoint, space reclaim); true if more waits.
    ///
    /// # Errors
    /// Those of the work; the device stays usable unless `Poisoned` or `Fenced`.
    fn background_step(&mut self) -> Result<bool>;

    /// Begins to give space back to the medium, because nobody has asked for anything for a moment.
    /// [`Self::background_step`] goes on with it.
    fn give_space_back(&mut self);

    /// Gives memory back, because nobody has asked for anything for a while. What it held is read
    /// again when it is needed.
    ///
    /// # Errors
    /// As [`Self::background_step`].
    fn rest(&mut self) -> Result<IdleOutcome> {
        Ok(IdleOutcome::default())
    }

    /// Makes everything durable and lets go of the image.
    ///
    /// # Errors
    /// As [`BlockDevice::flush`].
    fn close(self: Box<Self>) -> Result<()>;
}
