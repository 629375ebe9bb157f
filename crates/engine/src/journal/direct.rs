//! Direct writes: streams bypass the page cache, and the image goes on meanwhile.
//!
//! A program that writes a large part of an image in one go (an import, a restore, a guest that installs
//! itself) does not read it back at once, and has a cache of its own. A long group of adjacent blocks is
//! therefore written from the memory of the process straight to the medium. No page of the cache has to be
//! found or cleaned for it, and what others have cached stays (docs/decisions/0010).
//!
//! Invariants:
//! - A write is acknowledged when its group and all groups before it are in the page cache or on the medium,
//!   in the order of the log. So the end of the process loses no acknowledged write.
//! - The map names a group from the moment when its write starts. The journal therefore waits for direct
//!   writes before it syncs the log, appends through the page cache or ends the log, and before anything
//!   reads the slots ([`super::Journal::await_slots`]).
//! - The room of a direct write is preallocated before the write starts, so that no accepted write meets a
//!   full medium. This holds as far as the file system keeps its word; one that copies on write may not.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use marcot_format::{SegmentIndex, Slot};
use marcot_store::{AlignedBytes, AsyncWrite, DiskFile};

use crate::error::{Error, ErrorKind, Result};
use crate::fault::{self, Fault};

/// Most memory of all groups in flight, in bytes; a writer that would exceed it waits. Four requests of 1 MiB
/// keep the medium busy.
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// Most memory that is kept for the next groups, in bytes, until the image is idle: new memory costs as much
/// as the pages of the cache that a direct write saves. Enough for the longest group.
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
    /// The write has ended. Its writer gets the completion when the writes of all groups before it have ended
    /// too.
    pub completed: bool,
}

/// The groups in flight, in the order of the log.
#[derive(Default)]
pub(super) struct DirectWrites {
    groups: VecDeque<GroupInFlight>,
    bytes: usize,
    spare: Vec<AlignedBytes>,
    spare_bytes: usize,
    /// A writer waits for completions.
    awaited: bool,
    /// A group could not be written. No write is acknowledged any more.
    failed: Option<String>,
    /// The file system takes no direct writes or no preallocation, or a direct write has failed.
    pub refused: bool,
}

impl DirectWrites {
    /// True where nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.groups.iter().all(|group| group.completed)
    }

    /// True where a write of `bytes` more has to wait.
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

    /// Takes the completion of a write. `label` names the image in messages.
    pub(super) fn completed(&mut self, write: AsyncWrite, label: &str) {
        let AsyncWrite { number, offset, data, result, .. } = write;
        let bytes = data.as_slice().len();
        let Some(group) = self.groups.iter_mut().find(|g| g.group == number) else { return };
        group.completed = true;
        self.bytes -= group.bytes;
        if !result.as_ref().is_ok_and(|n| *n == bytes) {
            // The file system did not take the direct write. It may take the data through the page cache all
            // the same.
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

    /// Nothing is in flight any more. Completed groups are forgotten, unless a writer waits for completions.
    pub(super) fn forget_completed(&mut self) {
        if !self.awaited {
            self.groups.clear();
        }
    }

    /// True where a writer has to wait for completions; [`Self::is_awaited`] is true from then on.
    pub(super) fn begin_to_await(&mut self) -> bool {
        if self.is_idle() && !self.awaited {
            self.groups.clear();
            return false;
        }
        self.awaited = true;
        true
    }

    /// True where a writer waits for completions.
    pub(super) fn is_awaited(&self) -> bool {
        self.awaited
    }

    /// No completion is reported any more.
    pub(super) fn end_awaiting(&mut self) {
        self.awaited = false;
    }

    /// The number below which all groups are stored, where there are more of them than were reported before.
    /// `group_next` is the number of the next group of the log.
    pub(super) fn newly_stored_below(&mut self, group_next: u64) -> Option<u64> {
        let stored = |group: &&GroupInFlight| group.completed || fault::is(Fault::ToldUnderWay);
        let completed = self.groups.iter().take_while(stored).count();
        if completed == 0 {
            return None;
        }
        self.groups.drain(..completed);
        self.awaited = !self.groups.is_empty();
        Some(self.groups.front().map_or(group_next, |group| group.group))
    }

    /// A buffer with room for `bytes` bytes.
    pub(super) fn take_buffer(&mut self, bytes: usize) -> AlignedBytes {
        // The buffer that was used last is most likely still in the processor's cache.
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
        // The oldest are dropped: nothing has needed them for long.
        while self.spare_bytes > SPARE_BYTES_MAX {
            self.spare_bytes -= self.spare.remove(0).capacity();
        }
    }

    /// Frees the spare buffers. Returns their size in bytes.
    pub(super) fn drop_spare(&mut self) -> u64 {
        self.spare = Vec::new();
        std::mem::take(&mut self.spare_bytes) as u64
    }
}
