//! The image as a block device.

use std::os::fd::BorrowedFd;

use super::Image;
use crate::device::{BlockDevice, Completion, Extent, Housekeeping, IdleOutcome, Read, Write};
use crate::error::Result;

impl Image {
    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.state.size_bytes
    }

    /// Fills `buf` from `offset` on. Holes read as zeros.
    ///
    /// # Errors
    /// `OutOfRange`; `Corrupt` where a block does not match its checksum; `Io`.
    pub fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut reads = [Read::new(offset, buf)];
        self.read_all(&mut reads);
        let [read] = reads;
        read.result
    }

    /// Stores `data` from `offset` on; durable after [`Image::flush`].
    ///
    /// # Errors
    /// `OutOfRange`, `ReadOnly`, `NoSpace`, `Poisoned`, `Fenced`, `Io`.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_all(&[Write { offset, data }])
    }

    /// Makes a range read as zeros and gives its space back.
    ///
    /// # Errors
    /// As [`Image::write_at`].
    pub fn discard(&mut self, offset: u64, length: u64) -> Result<()> {
        self.discard_range(offset, length)
    }

    /// Makes everything acknowledged durable.
    ///
    /// # Errors
    /// `Poisoned` where the medium refused: close the image and open it again.
    pub fn flush(&mut self) -> Result<()> {
        if !self.is_owner() {
            return Ok(());
        }
        self.check_owner()?;
        self.store_replayed()?;
        self.sync_log()
    }
}

impl BlockDevice for Image {
    fn size_bytes(&self) -> u64 {
        self.state.size_bytes
    }

    fn read_only(&self) -> bool {
        !self.is_owner()
    }

    fn write_batch(&mut self, writes: &[Write<'_>]) -> Result<()> {
        self.write_all(writes)
    }

    fn write_batch_async(&mut self, writes: &[Write<'_>]) -> Result<Option<u64>> {
        self.write_all_async(writes)
    }

    fn may_park(&self) -> bool {
        self.may_park_any()
    }

    fn park_write(&mut self, write: Write<'_>) -> Option<u64> {
        Image::park_write(self, write.offset, write.data)
    }

    fn park_discard(&mut self, offset: u64, length: u64) -> Option<u64> {
        Image::park_discard(self, offset, length)
    }

    fn read_batch(&mut self, reads: &mut [Read<'_>]) {
        self.read_all(reads);
    }

    fn take_completion(&mut self) -> Option<Completion> {
        Image::take_completion(self)
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        self.in_flight.fd()
    }

    fn discard(&mut self, offset: u64, length: u64) -> Result<()> {
        self.discard_range(offset, length)
    }

    fn flush(&mut self) -> Result<()> {
        Image::flush(self)
    }

    fn flush_async(&mut self) -> Result<Option<u64>> {
        if !self.is_owner() {
            return Ok(None);
        }
        self.check_owner()?;
        self.store_replayed()?;
        self.journal.flush(&mut self.in_flight)
    }

    fn awaits_flush(&self) -> bool {
        self.journal.awaits_flush() || self.parked_may_be_late()
    }

    fn extents(&mut self, offset: u64, length: u64, extents_max: usize) -> Result<Vec<Extent>> {
        self.extents_of(offset, length, extents_max)
    }

    fn extents_at_hand(
        &mut self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>> {
        Image::extents_at_hand(self, offset, length, extents_max)
    }

    fn cache(&mut self, offset: u64, length: u64) -> Result<()> {
        self.advise(offset, length)
    }
}

impl Housekeeping for Image {
    fn background_step(&mut self) -> Result<bool> {
        self.identity.pool.files().sweep();
        if !self.is_owner() || self.is_poisoned() {
            return Ok(false);
        }
        if self.parked.is_starting() {
            return Ok(false);
        }
        self.journal.ship_behind(&mut self.in_flight)?;
        if self.checkpoint_job.is_some() {
            self.state.compaction.due |= self.take_finished_checkpoint()?;
            return Ok(false);
        }
        if self.room.wanted {
            return self.make_room();
        }
        if self.journal.is_open() && self.journal.bytes() >= self.limits().checkpoint_log_bytes {
            self.begin_checkpoint()?;
            return Ok(true);
        }
        let compacts = self.journal.is_open() || self.is_emptying();
        if compacts && !self.is_punching() {
            // An idle image has time to wait for the worker.
            let more = self.compact_step(self.state.idle.is_at_work());
            if more.is_err() {
                self.end_emptying();
            }
            if more? {
                self.keep_within_bounds()?;
                return Ok(true);
            }
            if self.is_copying() {
                return Ok(false);
            }
        }
        self.idle_step()
    }

    fn give_space_back(&mut self) {
        self.begin_idle_work();
    }

    fn rest(&mut self) -> Result<IdleOutcome> {
        self.give_memory_back()
    }

    fn close(self: Box<Self>) -> Result<()> {
        Image::close(*self)
    }
}
