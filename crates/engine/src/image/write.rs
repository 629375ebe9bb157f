//! Writing and discarding: splitting at block edges, gathering groups, changing the map.

use std::borrow::Cow;

use marcot_format::{BLOCK_BYTES, MAP_FANOUT};

use super::Image;
use super::checkpoint_job::CheckpointJob;
use crate::device::Write;
use crate::error::Result;
use crate::journal::{Group, Shipped};

const BLOCK: usize = BLOCK_BYTES as usize;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What a discard does.
pub(super) struct DiscardCut {
    /// The blocks from `first` to before `last` are covered whole.
    pub first: u64,
    pub last: u64,
    /// Some of them may be mapped.
    pub whole: bool,
    /// What becomes zeros in blocks that are covered in part: offset and length in bytes.
    pub edges: Vec<(u64, usize)>,
}

impl Image {
    pub(super) fn write_all(&mut self, writes: &[Write<'_>]) -> Result<()> {
        self.keep_order(writes);
        self.write_now(writes)
    }

    /// Carries out what is parked and has to come before these writes.
    fn keep_order(&mut self, writes: &[Write<'_>]) {
        let waits = |w: &Write<'_>| self.is_behind_parked(w.offset, w.data.len() as u64, false);
        if writes.iter().any(waits) {
            self.finish_parked();
        }
    }

    /// As [`Self::write_all`], where nothing that is parked has to come first.
    pub(super) fn write_now(&mut self, writes: &[Write<'_>]) -> Result<()> {
        self.after_making_room(|image| image.append_all(writes))?;
        self.journal.finish(&mut self.in_flight)
    }

    /// As [`Self::write_all`], but direct writes may still be in flight; then it returns the number of the
    /// last group.
    pub(super) fn write_all_async(&mut self, writes: &[Write<'_>]) -> Result<Option<u64>> {
        self.keep_order(writes);
        self.after_making_room(|image| image.append_all(writes))?;
        self.journal.unstored_group()
    }

    fn append_all(&mut self, writes: &[Write<'_>]) -> Result<()> {
        self.check_may_change()?;
        for write in writes {
            self.check_range(write.offset, write.data.len() as u64)?;
        }
        if self.log_is_long() && self.journal.shipped().is_some_and(Shipped::has_timeout) {
            // A write that fails must not make the log longer still.
            self.settle_in_time()?;
        }
        self.begin_writing()?;
        let mut group = Group::default();
        for write in writes {
            group = self.gather_write(group, write.offset, write.data)?;
        }
        self.append(group)?;
        self.after_write()
    }

    /// Adds a write to a group, after appending the group first where the write would not fit whole:
    /// recovery keeps a group or drops it, so a write that fits into one is never torn.
    fn gather_write<'a>(
        &mut self,
        group: Group<'a>,
        offset: u64,
        data: &'a [u8],
    ) -> Result<Group<'a>> {
        let end = offset + data.len() as u64;
        let (first, last) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        // The rest of a partly written block is read, so a write to this block must not wait in the group.
        let partly = |block: u64, edge: u64| !edge.is_multiple_of(BLOCK_BYTES) && group.has(block);
        let fits = (last - first) as usize <= group.room_blocks();
        if fits && !partly(first, offset) && !partly(end / BLOCK_BYTES, end) {
            return self.gather(group, offset, data);
        }
        self.append(group)?;
        self.gather(Group::default(), offset, data)
    }

    fn gather<'a>(
        &mut self,
        mut group: Group<'a>,
        mut offset: u64,
        mut data: &'a [u8],
    ) -> Result<Group<'a>> {
        while !data.is_empty() {
            let within = (offset % BLOCK_BYTES) as usize;
            let whole = data.len() / BLOCK;
            if within != 0 || whole == 0 {
                // A part of a block is written: the rest is read.
                if group.room_blocks() == 0 {
                    self.append(std::mem::take(&mut group))?;
                }
                let n = (BLOCK - within).min(data.len());
                let mut bytes = vec![0; BLOCK];
                self.read_exact_block(offset / BLOCK_BYTES, &mut bytes)?;
                bytes[within..within + n].copy_from_slice(&data[..n]);
                self.state.prepare(offset / BLOCK_BYTES, 1)?;
                group.write(offset / BLOCK_BYTES, Cow::Owned(bytes));
                (offset, data) = (offset + n as u64, &data[n..]);
                continue;
            }
            if group.room_blocks() == 0 {
                self.append(std::mem::take(&mut group))?;
            }
            let blocks = whole.min(group.room_blocks());
            let (now, rest) = data.split_at(blocks * BLOCK);
            self.state.prepare(offset / BLOCK_BYTES, blocks as u64)?;
            group.write(offset / BLOCK_BYTES, Cow::Borrowed(now));
            (offset, data) = (offset + now.len() as u64, rest);
        }
        Ok(group)
    }

    /// Makes a range read as zeros. Blocks that are covered whole become holes. This works on a full disk
    /// too, because it is how a guest makes room.
    pub(super) fn discard_range(&mut self, offset: u64, length: u64) -> Result<()> {
        if self.is_behind_parked(offset, length, false) {
            self.finish_parked();
        }
        self.discard_now(offset, length)
    }

    /// As [`Self::discard_range`], where nothing that is parked has to come first.
    pub(super) fn discard_now(&mut self, offset: u64, length: u64) -> Result<()> {
        let discard = |image: &mut Self| image.discard_once(offset, length);
        self.after_making_room(|image| image.for_room(discard))
    }

    fn discard_once(&mut self, offset: u64, length: u64) -> Result<()> {
        self.check_may_change()?;
        self.check_range(offset, length)?;
        let DiscardCut { first, last, whole, edges } = self.cut_discard(offset, length);
        if !whole && edges.is_empty() {
            return self.journal.finish(&mut self.in_flight);
        }
        self.begin_writing()?;
        // All of it in one group: recovery keeps it or drops it.
        let mut group = Group::default();
        for (at, bytes) in edges {
            group = self.gather(group, at, &ZEROS[..bytes])?;
        }
        if whole {
            // Only the leaves at both ends keep other entries. They must be loaded before the group is
            // logged.
            for (block, edge) in [(first, first), (last - 1, last)] {
                if edge.is_multiple_of(MAP_FANOUT as u64) {
                    let (map, mut source) = self.state.parts();
                    map.prepare(block, 1, &mut source)?;
                } else {
                    self.state.prepare(block, 1)?;
                }
            }
            group.discard(first, last - first);
        }
        self.append(group)?;
        self.after_write()?;
        // The discard is acknowledged now, so everything before it must be stored too.
        self.journal.finish(&mut self.in_flight)
    }

    /// Divides a discard at block edges.
    pub(super) fn cut_discard(&self, offset: u64, length: u64) -> DiscardCut {
        let end = offset + length;
        let first = offset.div_ceil(BLOCK_BYTES);
        // The last block of the image is whole when the range reaches the image's end.
        let last = if end == self.state.size_bytes {
            end.div_ceil(BLOCK_BYTES)
        } else {
            end / BLOCK_BYTES
        };
        let whole = first < last && self.state.map.may_map(first, last);
        let edges = match first < last {
            true => [offset..first * BLOCK_BYTES, last * BLOCK_BYTES..end],
            false => [offset..end, end..end],
        };
        let edges = edges.into_iter().flat_map(|e| self.state.mapped_parts(e)).collect();
        DiscardCut { first, last, whole, edges }
    }

    /// Lets compaction go on, and keeps log and memory within their bounds. The write itself is done: a
    /// checkpoint that finds no space is tried again later.
    fn after_write(&mut self) -> Result<()> {
        match self.pay_for_space() {
            Err(error) if !error.kind().ends_writing() => {
                tracing::warn!(image = %self.identity.label, error = %error.sentence(), "compaction put off");
            }
            paid => paid?,
        }
        self.keep_within_bounds()
    }

    /// True where the log is as long as it may be.
    fn log_is_long(&self) -> bool {
        let behind = self.checkpoint_job.as_ref().map_or(0, CheckpointJob::log_bytes);
        self.journal.bytes() + behind >= self.limits().log_bytes_max()
    }

    /// Keeps log and memory within their bounds.
    pub(super) fn keep_within_bounds(&mut self) -> Result<()> {
        let limits = self.limits();
        self.evict(limits.map_memory_bytes_soft());
        let crowded = self.state.memory_bytes() > limits.map_memory_bytes_soft();
        let long = self.log_is_long();
        if !crowded && !long {
            return Ok(());
        }
        let full = self.state.memory_bytes() > limits.map_memory_bytes;
        if full || (long && self.checkpoint_job.is_some()) {
            self.settle_in_time()?;
            self.evict(limits.map_memory_bytes_soft());
        }
        match self.begin_checkpoint() {
            Err(error) if !error.kind().ends_writing() => {
                tracing::warn!(image = %self.identity.label, error = %error.sentence(), "checkpoint put off");
                self.journal.count_at_most(limits.checkpoint_log_bytes);
            }
            begun => begun?,
        }
        if self.state.memory_bytes() > limits.map_memory_bytes {
            self.settle_in_time()?;
            self.evict(limits.map_memory_bytes_soft());
        }
        Ok(())
    }
}
