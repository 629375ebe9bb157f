//! Streams go past the page cache, and the image goes on meanwhile.
//!
//! Who writes a large part of an image in one go (an import, a restore, a guest that installs
//! itself) does not read it back at once, and has a cache of its own. A group that is long, and lies
//! together, is therefore written from memory of the process straight to the medium: no page has to
//! be found for it, none has to be cleaned, and what others have cached stays (docs/decisions/0010).
//!
//! Invariants:
//! - A write is acknowledged when its group and all groups before it are in the page cache or on
//!   the medium, so that the end of the process loses none that was: in the order of the log.
//! - The map names a group from its start on, so whatever reads its slots, syncs the log, appends to it
//!   through the page cache, or ends it waits for it first: [`Image::finish_direct`].
//! - Its room was taken before, so that no write that was accepted meets a full medium, as far as the
//!   file system keeps its word (one that copies on write may not).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use marcot_format::group::GroupHeader;
use marcot_format::{BLOCK_BYTES, SEGMENT_SLOTS};
use marcot_store::{AlignedBytes, AsyncRead, AsyncWrite, DiskFile, IoCompletion};

use super::Image;
use super::log::Log;
use crate::device::Completion;
use crate::error::{Error, ErrorKind, Result};
use crate::fault::{self, Fault};

/// Room is taken for so many of the shortest groups ahead.
const RESERVED_GROUPS: u64 = 16;
/// Memory of what is under way at once, in bytes; a writer that is ahead so far waits. Four requests of
/// 1 MiB keep the medium busy.
const UNDER_WAY_BYTES_MAX: usize = 8 << 20;
/// Memory kept for the next groups, in bytes, until the image is idle: new memory costs as much as the
/// pages of the cache that this saves. Enough for the longest group.
const SPARE_BYTES_MAX: usize = 12 << 20;

/// A group that is being written.
struct UnderWay {
    group: u64,
    /// Its segment's index in the table, and the slots of its data and header.
    segment: u32,
    slots: Range<u32>,
    /// Its segment through the page cache.
    file: Arc<dyn DiskFile>,
    /// Memory that it takes, in bytes.
    bytes: usize,
    /// It is on the medium, and waits for groups before it to be told of.
    completed: bool,
}

/// Groups under way, in the order of the log.
#[derive(Default)]
pub(super) struct State {
    groups: VecDeque<UnderWay>,
    bytes: usize,
    spare: Vec<AlignedBytes>,
    spare_bytes: usize,
    /// Reads that ended while a group was waited for.
    reads: VecDeque<AsyncRead>,
    /// Somebody waits to be told of groups.
    asked: bool,
    /// What made the image unusable.
    failed: Option<String>,
    /// A file system that takes no such writes, or has no room to take ahead.
    refused: bool,
}

impl State {
    pub(super) fn take_read(&mut self) -> Option<AsyncRead> {
        self.reads.pop_front()
    }

    fn touches(&self, segment: u32, slots: &Range<u32>) -> bool {
        let meets = |g: &UnderWay| g.slots.start < slots.end && slots.start < g.slots.end;
        self.groups.iter().any(|g| !g.completed && g.segment == segment && meets(g))
    }

    /// A buffer for so many bytes.
    fn take_buffer(&mut self, bytes: usize) -> AlignedBytes {
        // The last one used is the one that the processor has.
        match self.spare.iter().rposition(|spare| spare.capacity() >= bytes) {
            Some(at) => {
                let spare = self.spare.remove(at);
                self.spare_bytes -= spare.capacity();
                spare
            }
            None => AlignedBytes::with_capacity(bytes),
        }
    }

    fn keep_buffer(&mut self, mut buffer: AlignedBytes) {
        buffer.clear();
        self.spare_bytes += buffer.capacity();
        self.spare.push(buffer);
        // The oldest go: they are those that nobody has needed for long.
        while self.spare_bytes > SPARE_BYTES_MAX {
            self.spare_bytes -= self.spare.remove(0).capacity();
        }
    }

    /// Gives the memory of buffers back; how much that was, in bytes.
    pub(super) fn drop_spare(&mut self) -> u64 {
        self.spare = Vec::new();
        std::mem::take(&mut self.spare_bytes) as u64
    }

    /// True where nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.groups.iter().all(|group| group.completed)
    }
}

impl Image {
    /// Starts writing a group at the end of the log past the page cache; false where it has to go
    /// through it. `parts` are whole blocks: the header, then the data.
    pub(super) fn start_direct(
        &mut self,
        log: &mut Log,
        header: &GroupHeader,
        parts: &[&[u8]],
    ) -> Result<bool> {
        let stream_bytes_min = self.limits().stream_bytes_min;
        // Blocks that lie together are one record.
        let bytes_min = header.records.len() as u64 * stream_bytes_min;
        if self.direct.refused || (header.crcs.len() as u64 * BLOCK_BYTES) < bytes_min {
            return Ok(false);
        }
        let disk = Arc::clone(&self.pool.files().world().disk);
        if log.direct.is_none() {
            log.direct = log.file.direct().ok();
        }
        let takes_writes = self.in_flight.io(&*disk).is_some_and(|io| io.takes_writes());
        let (Some(file), true) = (log.direct.clone(), takes_writes) else {
            self.direct.refused = log.direct.is_none();
            return Ok(false);
        };
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let end = log.slot + (bytes as u64 / BLOCK_BYTES) as u32;
        if !log.preallocation.has_room(end) {
            let ahead = (RESERVED_GROUPS * stream_bytes_min / BLOCK_BYTES) as u32;
            let to = (log.slot + ahead).min(SEGMENT_SLOTS).max(end);
            let room = u64::from(to - log.slot) * BLOCK_BYTES;
            if let Err(error) = log.file.reserve(u64::from(log.slot) * BLOCK_BYTES, room) {
                // The page cache may still find room, or say why not.
                self.direct.refused = error.kind() == std::io::ErrorKind::Unsupported;
                return Ok(false);
            }
            log.preallocation.took_room(to);
        }
        let mut data = self.direct.take_buffer(bytes);
        parts.iter().for_each(|part| data.extend_from_slice(part));
        let bytes = data.capacity();
        while !self.direct.is_idle() && self.direct.bytes + bytes > UNDER_WAY_BYTES_MAX {
            self.wait_direct()?;
        }
        let number = header.group;
        let offset = u64::from(log.slot) * BLOCK_BYTES;
        let Some(io) = self.in_flight.io(&*disk) else {
            self.direct.keep_buffer(data);
            return Ok(false);
        };
        io.start_write(AsyncWrite { number, file, offset, data, result: Ok(0) });
        io.submit();
        let (segment, slots) = (log.index, log.slot..end);
        let file = Arc::clone(&log.file);
        let group = UnderWay { group: number, segment, slots, file, bytes, completed: false };
        self.direct.groups.push_back(group);
        self.direct.bytes += bytes;
        Ok(true)
    }

    /// Takes in a write that has ended.
    pub(super) fn direct_completed(&mut self, write: AsyncWrite) {
        let AsyncWrite { number, offset, data, result, .. } = write;
        let bytes = data.as_slice().len();
        let Some(group) = self.direct.groups.iter_mut().find(|g| g.group == number) else { return };
        group.completed = true;
        self.direct.bytes -= group.bytes;
        if !result.as_ref().is_ok_and(|n| *n == bytes) {
            // The file system would not, or not just now; the page cache may all the same.
            tracing::debug!(image = %self.label, ?result, "a group goes through the page cache");
            self.direct.refused = true;
            if let Err(error) = group.file.write_at(offset, &[data.as_slice()]) {
                tracing::error!(image = %self.label, %error, "the log cannot be written");
                self.poisoned = true;
                let message = format!("cannot write to {}; reopen it: {error}", self.label);
                self.direct.failed.get_or_insert(message);
            }
        }
        self.direct.keep_buffer(data);
    }

    fn failed_direct(&self) -> Result<()> {
        match &self.direct.failed {
            Some(message) => Err(Error::new(ErrorKind::Poisoned, message.clone())),
            None => Ok(()),
        }
    }

    /// Waits for one group.
    fn wait_direct(&mut self) -> Result<()> {
        match self.in_flight.wait() {
            Some(IoCompletion::Write(write)) => self.direct_completed(write),
            Some(IoCompletion::Read(read)) => self.direct.reads.push_back(read),
            None => {
                // Not what a disk does: what it was given is gone.
                self.poisoned = true;
                let message = format!("writes to {} came to no end; reopen it", self.label);
                self.direct.failed.get_or_insert(message);
            }
        }
        self.failed_direct()
    }

    /// Waits until no group is under way.
    ///
    /// # Errors
    /// `Poisoned` where one could not be written.
    pub(super) fn finish_direct(&mut self) -> Result<()> {
        while !self.direct.is_idle() {
            self.wait_direct()?;
        }
        if !self.direct.asked {
            self.direct.groups.clear();
        }
        self.failed_direct()
    }

    /// Waits until nothing is being written, however it ends: when the image is let go of.
    pub(super) fn abandon_direct(&mut self) {
        while !self.direct.is_idle() {
            match self.in_flight.wait() {
                Some(IoCompletion::Write(write)) => self.direct_completed(write),
                Some(IoCompletion::Read(_)) => {}
                None => break,
            }
        }
    }

    /// Gives back the room that was taken ahead, where nothing is being written there.
    pub(super) fn give_room_back(&mut self) {
        if self.direct.is_idle()
            && let Some(log) = &mut self.log
        {
            log.preallocation.cut(&*log.file, log.slot);
        }
    }

    /// Waits for what is being written, if that is among these slots of a segment.
    pub(super) fn finish_touching(&mut self, segment: u32, slots: &Range<u32>) {
        if self.direct.touches(segment, slots) {
            // Where that failed, checksums tell.
            let _ = self.finish_direct();
        }
    }

    /// Number of the last group, where it or one before it has not completed yet, or has not been told
    /// of. Its writer is told by [`Self::tell_written`].
    ///
    /// # Errors
    /// `Poisoned` where nothing will be told any more.
    pub(super) fn unwritten_group(&mut self) -> Result<Option<u64>> {
        self.failed_direct()?;
        if self.direct.is_idle() && !self.direct.asked {
            self.direct.groups.clear();
            return Ok(None);
        }
        self.direct.asked = true;
        Ok(Some(self.group_next - 1))
    }

    /// What writers who wait may be told now.
    pub(super) fn tell_written(&mut self) -> Option<Completion> {
        if !self.direct.asked {
            return None;
        }
        // Nothing is acknowledged any more, whatever made the image unusable.
        if let Err(error) = self.failed_direct().and_then(|()| self.check_owner()) {
            self.direct.asked = false;
            return Some(Completion::Written(Err(error)));
        }
        let told = |group: &&UnderWay| group.completed || fault::is(Fault::ToldUnderWay);
        let completed = self.direct.groups.iter().take_while(told).count();
        if completed == 0 {
            return None;
        }
        self.direct.groups.drain(..completed);
        // All groups before the next one that is under way.
        let below = self.direct.groups.front().map_or(self.group_next, |group| group.group);
        self.direct.asked = !self.direct.groups.is_empty();
        Some(Completion::Written(Ok(below)))
    }
}
