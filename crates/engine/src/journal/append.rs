//! How groups reach the log: through the page cache or as direct writes, and what is known of them then.

use std::ops::Range;
use std::sync::Arc;

use marcot_format::group::GroupHeader;
use marcot_format::{BLOCK_BYTES, SEGMENT_SLOTS, SegmentIndex, Slot, crc32c};
use marcot_store::AsyncWrite;

use super::direct::GroupInFlight;
use super::preallocation::Preallocation;
use super::{Group, Journal, Log, Placed};
use crate::error::{ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};
use crate::in_flight::InFlight;

/// Room is preallocated for this many of the shortest direct writes.
const RESERVED_GROUPS: u64 = 16;

impl Journal {
    /// Appends a group. The caller has found room for it ([`Self::find_room`]).
    ///
    /// # Errors
    /// `NoSpace`, `Io`, `Poisoned`: the group is not in the log.
    pub(crate) fn append(&mut self, group: Group<'_>, in_flight: &mut InFlight) -> Result<Placed> {
        let Some(mut log) = self.log.take() else {
            return fail(ErrorKind::Io, "the log is not open");
        };
        let slots = group.slots();
        let crcs: Vec<u32> = group
            .parts
            .iter()
            .flat_map(|part| part.chunks_exact(BLOCK_BYTES as usize))
            .map(crc32c)
            .collect();
        let header = GroupHeader {
            author: self.image.id.0,
            epoch: log.epoch,
            sequence: log.name.sequence,
            group: self.group_next,
            durable_below: match () {
                () if fault::is(Fault::DurableTooFar) => self.group_next,
                () if fault::is(Fault::DurableUntold) => 0,
                () => log.durable_below,
            },
            records: group.records,
            crcs,
        };
        let data_slot = Slot(log.slot).after(header.header_blocks() as u32);
        let mut header_bytes = std::mem::take(&mut log.header);
        header.encode_into(&mut header_bytes);
        let mut parts: Vec<&[u8]> = Vec::with_capacity(group.parts.len() + 1);
        parts.push(&header_bytes);
        parts.extend(group.parts.iter().map(|part| &**part));
        let written = self.write(&mut log, &header, &parts, in_flight);
        log.header = header_bytes;
        let index = log.index;
        self.log = Some(log);
        written?;
        self.group_next += 1;
        self.bytes += u64::from(slots) * BLOCK_BYTES;
        Ok(Placed { header, index, data_slot })
    }

    /// Writes a group at the end of the log. Where that fails, the log is not longer than before. `parts` are
    /// whole blocks: the header, then the data.
    fn write(
        &mut self,
        log: &mut Log,
        header: &GroupHeader,
        parts: &[&[u8]],
        in_flight: &mut InFlight,
    ) -> Result<()> {
        log.dirty = true;
        let before = log.slot;
        let after = before + header.blocks() as u32;
        if self.start_direct(log, header, parts, in_flight)? {
            log.slot = after;
            self.write_behind.end_stretch(&log.file, before, after, &*self.workers());
            return Ok(());
        }
        // The pages of this group may share a folio with the end of a direct write. When that write
        // completes, the kernel drops the folio from the page cache, and no page of it may be dirty then.
        self.finish(in_flight)?;
        self.write_cached(log, parts)?;
        log.slot = after;
        self.write_behind.appended(&header.records);
        if self.write_behind.is_complete(after) {
            self.write_behind.end_stretch(&log.file, after, after, &*self.workers());
        }
        Ok(())
    }

    fn write_cached(&mut self, log: &mut Log, parts: &[&[u8]]) -> Result<()> {
        let offset = u64::from(log.slot) * BLOCK_BYTES;
        let Err(error) = log.file.write_at(offset, parts) else { return Ok(()) };
        // A part of the group may have been written. It must not become a group when the file grows again,
        // nor after a power loss: a header that ends in zeros is whole once its first bytes are there.
        let undone = log.file.set_length(offset);
        let undone = match fault::is(Fault::FailedAppendStays) {
            true => undone,
            false => undone.and_then(|()| log.file.sync()),
        };
        self.poisoned |= undone.is_err();
        log.preallocation = Preallocation::default();
        Err(error).at(|| format!("cannot write to {}", self.image.label))
    }

    /// Starts a direct write of a group; false where the group has to go through the page cache.
    fn start_direct(
        &mut self,
        log: &mut Log,
        header: &GroupHeader,
        parts: &[&[u8]],
        in_flight: &mut InFlight,
    ) -> Result<bool> {
        let stream_bytes_min = self.image.pool.store().limits().stream_bytes_min;
        // Blocks that lie together are one record.
        let bytes_min = header.records.len() as u64 * stream_bytes_min;
        if self.direct.refused || (header.crcs.len() as u64 * BLOCK_BYTES) < bytes_min {
            return Ok(false);
        }
        let disk = Arc::clone(&self.image.pool.files().world().disk);
        if log.direct.is_none() {
            log.direct = log.file.direct().ok();
        }
        let (Some(file), true) = (log.direct.clone(), in_flight.takes_writes(&*disk)) else {
            self.direct.refused = log.direct.is_none();
            return Ok(false);
        };
        let slots = log.slot..log.slot + header.blocks() as u32;
        if !log.preallocation.has_room(slots.end) {
            let ahead = (RESERVED_GROUPS * stream_bytes_min / BLOCK_BYTES) as u32;
            let to = (slots.start + ahead).min(SEGMENT_SLOTS).max(slots.end);
            let room = u64::from(to - slots.start) * BLOCK_BYTES;
            if let Err(error) = log.file.reserve(u64::from(slots.start) * BLOCK_BYTES, room) {
                // The write through the page cache may still find room, or says why it does not.
                self.direct.refused = error.kind() == std::io::ErrorKind::Unsupported;
                return Ok(false);
            }
            log.preallocation.took_room(to);
        }
        let mut data = self.direct.take_buffer(header.blocks() * BLOCK_BYTES as usize);
        parts.iter().for_each(|part| data.extend_from_slice(part));
        let bytes = data.capacity();
        while self.direct.is_full(bytes) {
            self.wait_for_one(in_flight)?;
        }
        let (number, index) = (header.group, log.index);
        let offset = u64::from(slots.start) * BLOCK_BYTES;
        let write = AsyncWrite { number, file, offset, data, result: Ok(0) };
        if let Err(AsyncWrite { data, .. }) = in_flight.start_write(&*disk, write) {
            self.direct.keep_buffer(data);
            return Ok(false);
        }
        let file = Arc::clone(&log.file);
        let slots = Slot(slots.start)..Slot(slots.end);
        let group = GroupInFlight { group: number, index, slots, file, bytes, completed: false };
        self.direct.started(group);
        Ok(true)
    }

    /// Takes the completion of a direct write.
    pub(crate) fn completed(&mut self, write: AsyncWrite) {
        self.direct.completed(write, &self.image.label);
        self.poisoned |= self.direct.check().is_err();
    }

    /// Waits until one direct write has completed.
    fn wait_for_one(&mut self, in_flight: &mut InFlight) -> Result<()> {
        match in_flight.wait_for_write() {
            Some(write) => self.completed(write),
            None => {
                // No disk should do this. The data of the writes is gone.
                self.poisoned = true;
                let label = &self.image.label;
                self.direct.fail(format!("writes to {label} did not complete; reopen it"));
            }
        }
        self.direct.check()
    }

    /// Waits until all groups are in the page cache or on the medium.
    ///
    /// # Errors
    /// `Poisoned` where one could not be written.
    pub(crate) fn finish(&mut self, in_flight: &mut InFlight) -> Result<()> {
        while !self.direct.is_idle() {
            self.wait_for_one(in_flight)?;
        }
        self.direct.forget_completed();
        self.direct.check()
    }

    /// Waits until these slots of a segment can be read. `index`: that of the segment in the table.
    pub(crate) fn await_slots(
        &mut self,
        index: SegmentIndex,
        slots: &Range<Slot>,
        in_flight: &mut InFlight,
    ) {
        if self.direct.touch(index, slots) {
            // Where a write has failed, the checksums show it.
            let _ = self.finish(in_flight);
        }
    }

    /// True where no direct write is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.direct.is_idle()
    }

    /// Number of the last group, where its writer has to wait for [`Self::newly_stored`]: this group or one
    /// before it is in flight, or has completed and was not reported yet.
    ///
    /// # Errors
    /// `Poisoned` where no completion will be reported any more.
    pub(crate) fn unstored_group(&mut self) -> Result<Option<u64>> {
        self.direct.check()?;
        Ok(self.direct.begin_to_await().then(|| self.group_next - 1))
    }

    /// True where writers wait for [`Self::newly_stored`].
    pub(crate) fn is_awaited(&self) -> bool {
        self.direct.is_awaited()
    }

    /// The next completion for writers that wait: the number below which all groups are stored. `usable`
    /// says whether the image can be used at all.
    pub(crate) fn newly_stored(&mut self, usable: Result<()>) -> Option<Result<u64>> {
        // Nothing is acknowledged any more, whatever made the image unusable.
        if let Err(error) = self.direct.check().and(usable) {
            self.direct.end_awaiting();
            return Some(Err(error));
        }
        self.direct.newly_stored_below(self.group_next).map(Ok)
    }
}
