//! Streams go past the page cache, and the image goes on meanwhile.
//!
//! A program that writes a large part of an image in one go (an import, a restore, a guest that installs
//! itself) does not read it back at once, and has a cache of its own. A group that is long and lies together
//! is therefore written from the memory of the process straight to the medium. No page has to be found for
//! it, none has to be cleaned, and what others have cached stays (docs/decisions/0010).
//!
//! Invariants:
//! - A write is acknowledged when its group and all groups before it are in the page cache or on the medium,
//!   in the order of the log. So the end of the process loses no acknowledged write.
//! - The map names a group from the moment when its write starts. The journal therefore waits for direct
//!   writes before it syncs the log, appends through the page cache or ends the log, and before somebody reads
//!   the slots ([`super::Journal::await_slots`]).
//! - The room of a direct write is taken before it starts, so that no accepted write meets a full medium, as
//!   far as the file system keeps its word (one that copies on write may not).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use marcot_format::{SegmentIndex, Slot};
use marcot_store::{AlignedBytes, AsyncWrite, DiskFile};

use crate::error::{Error, ErrorKind, Result};
use crate::fault::{self, Fault};

/// Memory of the groups in flight together, in bytes; a writer that is ahead so far waits. Four requests of
/// 1 MiB keep the medium busy.
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// Memory kept for the next groups, in bytes, until the image is idle: new memory costs as much as the
/// pages of the cache that this saves. Enough for the longest group.
const SPARE_BYTES_MAX: usize = 12 << 20;

/// A group in flight.
pub(super) struct GroupInFlight {
    pub group: u64,
    /// Its segment's index in the table, and the slots of its header and data.
    pub index: SegmentIndex,
    pub slots: Range<Slot>,
    /// Its segment, through the page cache.
    pub file: Arc<dyn DiskFile>,
    /// Memory that it takes, in bytes.
    pub bytes: usize,
    /// It is on the medium. Its writer is told when the groups before it are, too.
    pub completed: bool,
}

/// The groups in flight, in the order of the log.
#[derive(Default)]
pub(super) struct DirectWrites {
    groups: VecDeque<GroupInFlight>,
    bytes: usize,
    spare: Vec<AlignedBytes>,
    spare_bytes: usize,
    /// A writer waits until it is told of groups.
    awaited: bool,
    /// A group could not be written. No write is acknowledged any more.
    failed: Option<String>,
    /// The file system takes no direct writes, or has no room to take ahead.
    pub refused: bool,
}

impl DirectWrites {
    /// True where nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.groups.iter().all(|group| group.completed)
    }

    /// True where so many bytes more have to wait.
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        !self.is_idle() && self.bytes + bytes > IN_FLIGHT_BYTES_MAX
    }

    /// True where a group in flight lies in these slots of the segment with this index in the table.
    pub(super) fn touch(&self, index: SegmentIndex, slots: &Range<Slot>) -> bool {
        let meets = |g: &GroupInFlight| g.slots.start < slots.end && slots.start < g.slots.end;
        self.groups.iter().any(|g| !g.completed && g.index == index && meets(g))
    }

    pub(super) fn started(&mut self, group: GroupInFlight) {
        self.bytes += group.bytes;
        self.groups.push_back(group);
    }

    /// Takes in a write that has ended. `label` names the image in messages.
    pub(super) fn completed(&mut self, write: AsyncWrite, label: &str) {
        let AsyncWrite { number, offset, data, result, .. } = write;
        let bytes = data.as_slice().len();
        let Some(group) = self.groups.iter_mut().find(|g| g.group == number) else { return };
        group.completed = true;
        self.bytes -= group.bytes;
        if !result.as_ref().is_ok_and(|n| *n == bytes) {
            // The file system would not, or not just now; the page cache may all the same.
            tracing::debug!(image = %label, ?result, "a group goes through the page cache");
            self.refused = true;
            if let Err(error) = group.file.write_at(offset, &[data.as_slice()]) {
                tracing::error!(image = %label, %error, "the log cannot be written");
                self.fail(format!("cannot write to {label}; reopen it: {error}"));
            }
        }
        self.keep_buffer(data);
    }

    /// Nothing is acknowledged from now on.
    pub(super) fn fail(&mut self, message: String) {
        self.failed.get_or_insert(message);
    }

    /// # Errors
    /// `Poisoned` where a group could not be written.
    pub(super) fn check(&self) -> Result<()> {
        match &self.failed {
            Some(message) => Err(Error::new(ErrorKind::Poisoned, message.clone())),
            None => Ok(()),
        }
    }

    /// Nothing is in flight any more, so that nobody has to be told, unless somebody waits for it.
    pub(super) fn forget_completed(&mut self) {
        if !self.awaited {
            self.groups.clear();
        }
    }

    /// True where a writer has to wait until it is told; from then on somebody waits.
    pub(super) fn begin_to_await(&mut self) -> bool {
        if self.is_idle() && !self.awaited {
            self.groups.clear();
            return false;
        }
        self.awaited = true;
        true
    }

    /// True where a writer waits until it is told of groups.
    pub(super) fn is_awaited(&self) -> bool {
        self.awaited
    }

    /// Nobody is told any more.
    pub(super) fn end_awaiting(&mut self) {
        self.awaited = false;
    }

    /// The number below which all groups are stored, where there are more of them than were told before.
    /// `group_next` is the number of the next group of the log.
    pub(super) fn newly_stored_below(&mut self, group_next: u64) -> Option<u64> {
        let told = |group: &&GroupInFlight| group.completed || fault::is(Fault::ToldUnderWay);
        let completed = self.groups.iter().take_while(told).count();
        if completed == 0 {
            return None;
        }
        self.groups.drain(..completed);
        self.awaited = !self.groups.is_empty();
        Some(self.groups.front().map_or(group_next, |group| group.group))
    }

    /// A buffer for so many bytes.
    pub(super) fn take_buffer(&mut self, bytes: usize) -> AlignedBytes {
        // The last one used is the one that the processor has in its cache.
        match self.spare.iter().rposition(|spare| spare.capacity() >= bytes) {
            Some(at) => {
                let spare = self.spare.remove(at);
                self.spare_bytes -= spare.capacity();
                spare
            }
            None => AlignedBytes::with_capacity(bytes),
        }
    }

    pub(super) fn keep_buffer(&mut self, mut buffer: AlignedBytes) {
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
}
