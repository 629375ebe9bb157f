//! Images whose size is no multiple of a sector.
//!
//! An import keeps the exact number of bytes, but disks consist of sectors. QEMU and the kernel round the
//! size up or down, and their guests cannot use the last sector, or do not see it. So an image that can be
//! written is shown in whole sectors. Bytes behind the image's end read as zeros. Zeros written there change
//! nothing. Any other byte written there makes the image grow to whole sectors, so that no acknowledged
//! write is lost. Read-only images are shown with their exact size, except to kernels
//! ([`super::ImageHost::start_for_kernel`]).
//!
//! This is a layer above the device, because every way to reach an image needs it.

use std::os::fd::BorrowedFd;

use marcot::{BlockDevice, Completion, Extent, Housekeeping, IdleOutcome, Read, Result, Write};

use super::HostDevice;
use crate::control::{Command, Execute, Reply};

/// The unit of disks, in bytes.
const SECTOR_BYTES: u64 = 512;

/// A device of whole sectors.
pub(super) struct Padded {
    device: Box<dyn HostDevice>,
    /// The image's name in logs.
    name: String,
    sectors: Sectors,
}

/// Which images are shown in whole sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sectors {
    WhereWritable,
    Always,
}

/// The runs of what is stored, and behind them the padding, from byte `padding.start` of the range at `offset` on.
fn padded(
    mut extents: Vec<Extent>,
    offset: u64,
    padding: std::ops::Range<u64>,
    extents_max: usize,
) -> Vec<Extent> {
    let told: u64 = extents.iter().map(|extent| extent.length).sum();
    if !padding.is_empty() && told == padding.start && extents.len() < extents_max {
        let length = padding.end - padding.start;
        extents.push(Extent { offset: offset + padding.start, length, data: false });
    }
    extents
}

impl Padded {
    /// Shows `device`, which logs call `name`.
    pub(super) fn new(device: Box<dyn HostDevice>, name: &str, sectors: Sectors) -> Self {
        let padded = Self { device, name: name.to_owned(), sectors };
        let (size_bytes, shown_bytes) = (padded.device.size_bytes(), padded.size_bytes());
        if size_bytes != shown_bytes {
            tracing::info!(
                image = name,
                size_bytes,
                shown_bytes,
                "the size is no multiple of 512: whole sectors are shown, the rest reads as zeros, \
                 and the image grows when something is written there"
            );
        }
        padded
    }

    /// How many of `length` bytes lie on the device, where the range reaches into the padding; `None`
    /// where it does not, and where the range is beyond the end altogether.
    fn cut(&self, offset: u64, length: u64) -> Option<u64> {
        let size_bytes = self.device.size_bytes();
        let end = offset.checked_add(length)?;
        if end <= size_bytes || end > self.size_bytes() {
            return None;
        }
        Some(size_bytes.saturating_sub(offset).min(length))
    }

    /// Makes a writable image grow where one of `writes` puts other bytes than zeros behind its end.
    fn grow_for(&mut self, writes: &[Write<'_>]) -> Result<()> {
        let says_something = |write: &Write<'_>| {
            let cut = self.cut(write.offset, write.data.len() as u64);
            cut.is_some_and(|cut| write.data[cut as usize..].iter().any(|byte| *byte != 0))
        };
        if !writes.iter().any(says_something) {
            return Ok(());
        }
        let size_bytes = self.size_bytes();
        let resize = Command::Resize { size_bytes, allow_shrink: false };
        self.device.execute(&resize, &mut |_, _| {})?;
        tracing::info!(image = self.name, size_bytes, "grown to whole sectors");
        Ok(())
    }

    /// `writes` without the bytes in the padding; `None` where none of them has any.
    fn writes_on_device<'a>(&mut self, writes: &[Write<'a>]) -> Result<Option<Vec<Write<'a>>>> {
        let reaches = |write: &Write<'_>| self.cut(write.offset, write.data.len() as u64).is_some();
        if self.device.read_only() || !writes.iter().any(reaches) {
            return Ok(None);
        }
        self.grow_for(writes)?;
        let cut = |write: &Write<'a>| {
            let bytes = self.cut(write.offset, write.data.len() as u64);
            let bytes = bytes.map_or(write.data.len(), |bytes| bytes as usize);
            Write { offset: write.offset, data: &write.data[..bytes] }
        };
        Ok(Some(writes.iter().map(cut).filter(|write| !write.data.is_empty()).collect()))
    }
}

impl BlockDevice for Padded {
    fn size_bytes(&self) -> u64 {
        let size_bytes = self.device.size_bytes();
        match self.device.read_only() && self.sectors == Sectors::WhereWritable {
            true => size_bytes,
            // The largest image is far smaller than the largest number.
            false => size_bytes.next_multiple_of(SECTOR_BYTES),
        }
    }

    fn read_only(&self) -> bool {
        self.device.read_only()
    }

    fn write_batch(&mut self, writes: &[Write<'_>]) -> Result<()> {
        match self.writes_on_device(writes)? {
            None => self.device.write_batch(writes),
            Some(writes) if writes.is_empty() => Ok(()),
            Some(writes) => self.device.write_batch(&writes),
        }
    }

    fn write_batch_async(&mut self, writes: &[Write<'_>]) -> Result<Option<u64>> {
        match self.writes_on_device(writes)? {
            None => self.device.write_batch_async(writes),
            Some(writes) if writes.is_empty() => Ok(None),
            Some(writes) => self.device.write_batch_async(&writes),
        }
    }

    fn may_park(&self) -> bool {
        self.device.may_park()
    }

    fn park_write(&mut self, write: Write<'_>) -> Option<u64> {
        // The image may have to grow for one that reaches into the padding.
        let cut = self.cut(write.offset, write.data.len() as u64);
        cut.is_none().then(|| self.device.park_write(write)).flatten()
    }

    fn park_discard(&mut self, offset: u64, length: u64) -> Option<u64> {
        let cut = self.cut(offset, length);
        cut.is_none().then(|| self.device.park_discard(offset, length)).flatten()
    }

    fn read_batch(&mut self, reads: &mut [Read<'_>]) {
        let cut = |read: &Read<'_>| self.cut(read.offset, read.buf.len() as u64);
        let cuts: Vec<_> = match reads.iter().any(|read| cut(read).is_some()) {
            true => reads.iter().map(cut).collect(),
            false => return self.device.read_batch(reads),
        };
        let mut inner: Vec<Read<'_>> = Vec::with_capacity(reads.len());
        for (read, cut) in reads.iter_mut().zip(&cuts) {
            // A read that ends in the padding is finished here, so it must not stay in flight.
            let in_flight = read.in_flight.filter(|_| cut.is_none());
            let bytes = cut.map_or(read.buf.len(), |bytes| bytes as usize);
            let (stored, padding) = read.buf.split_at_mut(bytes);
            padding.fill(0);
            inner.push(Read { in_flight, ..Read::new(read.offset, stored) });
        }
        self.device.read_batch(&mut inner);
        let ends: Vec<_> = inner.into_iter().map(|read| (read.result, read.in_flight)).collect();
        for (read, (result, in_flight)) in reads.iter_mut().zip(ends) {
            (read.result, read.in_flight) = (result, in_flight);
        }
    }

    fn take_completion(&mut self) -> Option<Completion> {
        self.device.take_completion()
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.completion_fd()
    }

    fn discard(&mut self, offset: u64, length: u64) -> Result<()> {
        match self.cut(offset, length) {
            None => self.device.discard(offset, length),
            Some(0) => Ok(()),
            Some(length) => self.device.discard(offset, length),
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.device.flush()
    }

    fn flush_async(&mut self) -> Result<Option<u64>> {
        self.device.flush_async()
    }

    fn awaits_flush(&self) -> bool {
        self.device.awaits_flush()
    }

    fn extents(&mut self, offset: u64, length: u64, extents_max: usize) -> Result<Vec<Extent>> {
        let stored = self.cut(offset, length).unwrap_or(length);
        let extents = match stored {
            0 => Vec::new(),
            _ => self.device.extents(offset, stored, extents_max)?,
        };
        Ok(padded(extents, offset, stored..length, extents_max))
    }

    fn extents_at_hand(
        &mut self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>> {
        let stored = self.cut(offset, length).unwrap_or(length);
        let extents = match stored {
            0 => Vec::new(),
            _ => self.device.extents_at_hand(offset, stored, extents_max)?,
        };
        Ok(padded(extents, offset, stored..length, extents_max))
    }

    fn cache(&mut self, offset: u64, length: u64) -> Result<()> {
        match self.cut(offset, length) {
            None => self.device.cache(offset, length),
            Some(0) => Ok(()),
            Some(length) => self.device.cache(offset, length),
        }
    }
}

impl Housekeeping for Padded {
    fn background_step(&mut self) -> Result<bool> {
        self.device.background_step()
    }

    fn give_space_back(&mut self) {
        self.device.give_space_back();
    }

    fn rest(&mut self) -> Result<IdleOutcome> {
        self.device.rest()
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.device.close()
    }
}

impl Execute for Padded {
    fn execute(&mut self, command: &Command, progress: &mut dyn FnMut(u64, u64)) -> Result<Reply> {
        self.device.execute(command, progress)
    }
}
