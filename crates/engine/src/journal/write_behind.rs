//! Write-behind: the log is written to the medium soon after it was appended, and streams leave the page
//! cache.
//!
//! Without this, appended data stays in the page cache until a flush, a snapshot or a checkpoint needs it on
//! the medium, which then waits for all of it. No slot of the log is written twice, so it saves nothing to
//! wait. A worker therefore starts writing a *stretch* of the log as soon as that is complete.
//!
//! A program that writes a large part of an image in one go (an import, a restore, a guest that installs
//! itself) does not read it back at once, and has a cache of its own. Such a stream would fill memory with
//! new pages, for which other data has to leave the cache. Its pages are therefore dropped as soon as they
//! are on the medium, and the stream goes on in the same few pages (docs/decisions/0009).
//!
//! This promises nothing: only a sync makes anything durable, and only a sync reports errors.

use std::collections::VecDeque;
use std::sync::Arc;

use marcot_format::BLOCK_BYTES;
use marcot_format::group::{Record, RecordKind};
use marcot_store::{DiskFile, Running, Workers};

/// Slots of a stretch (8 MiB): they are written together.
const STRETCH_SLOTS: u32 = 2048;
/// Blocks that a stream writes to one place, on average, at the least (512 KiB).
const RUN_BLOCKS_MIN: u32 = 128;
/// Most stretches that are kept. They wait for a worker. Those of a stream are kept after that, and dropped
/// from the page cache once more with each of the next stretches, because pages that were not on the medium
/// yet stayed there.
const STRETCHES_MAX: usize = 4;

/// A part of a segment.
#[derive(Clone)]
struct Stretch {
    file: Arc<dyn DiskFile>,
    offset: u64,
    bytes: u64,
    is_stream: bool,
}

impl Stretch {
    fn write_out(&self) {
        match self.is_stream {
            true => self.file.drop_cached(self.offset, self.bytes),
            false => self.file.write_out(self.offset, self.bytes),
        }
    }
}

/// The stretches that were appended last.
#[derive(Default)]
pub(super) struct WriteBehind {
    /// The stretch that is being appended: its first slot, its blocks, and how many records did not follow
    /// the block before.
    first: u32,
    blocks: u32,
    jumps: u32,
    next_block: u64,
    /// Stretches for the worker, the oldest first.
    stretches: VecDeque<Stretch>,
    running: Option<Box<dyn Running>>,
}

impl WriteBehind {
    /// To be called with the records of each group.
    pub(super) fn appended(&mut self, records: &[Record]) {
        for record in records.iter().filter(|record| record.kind == RecordKind::Write) {
            self.jumps += u32::from(record.block != self.next_block);
            self.blocks += record.count as u32;
            self.next_block = record.block + record.count;
        }
    }

    /// Closes the files of earlier stretches, so that they do not keep the space of removed segments.
    pub(super) fn forget(&mut self) {
        self.stretches.clear();
    }

    /// True where the stretch is complete, now that the log has grown to `slot`.
    pub(super) fn is_complete(&self, slot: u32) -> bool {
        slot >= self.first + STRETCH_SLOTS
    }

    /// Starts writing the unfinished stretch, up to `slot`.
    pub(super) fn hurry(&self, file: &dyn DiskFile, slot: u32) {
        let (from, slots) = (u64::from(self.first), u64::from(slot.saturating_sub(self.first)));
        if slots > 0 {
            file.write_out(from * BLOCK_BYTES, slots * BLOCK_BYTES);
        }
    }

    /// Ends the stretch at `slot` of `file`. The next one starts at `next`, which lies behind a direct write
    /// if there was one.
    pub(super) fn end_stretch(
        &mut self,
        file: &Arc<dyn DiskFile>,
        slot: u32,
        next: u32,
        workers: &dyn Workers,
    ) {
        if slot == self.first {
            self.first = next;
            return;
        }
        let (offset, slots) = (u64::from(self.first), u64::from(slot - self.first));
        let stretch = Stretch {
            file: Arc::clone(file),
            offset: offset * BLOCK_BYTES,
            bytes: slots * BLOCK_BYTES,
            is_stream: self.jumps.saturating_mul(RUN_BLOCKS_MIN) <= self.blocks,
        };
        (self.first, self.blocks, self.jumps) = (next, 0, 0);
        if self.stretches.len() == STRETCHES_MAX {
            self.stretches.pop_front();
        }
        self.stretches.push_back(stretch);
        if self.running.as_mut().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let stretches = self.stretches.clone();
        self.stretches.retain(|stretch| stretch.is_stream);
        self.running = Some(workers.start(Box::new(move || {
            stretches.iter().for_each(Stretch::write_out);
        })));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Mutex, PoisonError};

    use marcot_store::InPlace;

    use super::*;

    /// Records the calls: offset and length in stretches, and whether the pages may be dropped.
    #[derive(Default)]
    struct Calls(Mutex<Vec<(u64, u64, bool)>>);

    impl Calls {
        fn note(&self, offset: u64, length: u64, drops: bool) {
            let stretch = u64::from(STRETCH_SLOTS) * BLOCK_BYTES;
            let entry = (offset / stretch, length / stretch, drops);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        }

        fn take(&self) -> Vec<(u64, u64, bool)> {
            std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }

    impl DiskFile for Calls {
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
        fn write_at(&self, _: u64, _: &[&[u8]]) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn length(&self) -> io::Result<u64> {
            Ok(0)
        }
        fn allocated_bytes(&self) -> io::Result<u64> {
            Ok(0)
        }
        fn set_length(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn punch(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn advise(&self, _: u64, _: u64) {}
        fn write_out(&self, offset: u64, length: u64) {
            self.note(offset, length, false);
        }
        fn drop_cached(&self, offset: u64, length: u64) {
            self.note(offset, length, true);
        }
    }

    /// Appends one stretch of records of `count` blocks, each `step` blocks behind the one before.
    fn append_stretch(behind: &mut WriteBehind, file: &Arc<dyn DiskFile>, count: u32, step: u64) {
        let (start, mut block) = (behind.first, 1_000_000);
        let mut slot = start;
        while !behind.is_complete(slot) {
            let kind = RecordKind::Write;
            behind.appended(&[Record { kind, block, count: count.into() }]);
            (slot, block) = (slot + count, block + step);
        }
        behind.end_stretch(file, slot, slot, &InPlace);
    }

    #[test]
    fn scattered_writes_are_written_out_once_and_stay_in_memory() {
        let calls = Arc::new(Calls::default());
        let file: Arc<dyn DiskFile> = Arc::clone(&calls) as _;
        let mut behind = WriteBehind::default();
        append_stretch(&mut behind, &file, 1, 77);
        append_stretch(&mut behind, &file, 16, 160);
        assert_eq!(calls.take(), [(0, 1, false), (1, 1, false)]);
    }

    #[test]
    fn each_stretch_of_a_stream_drops_those_before_it_from_the_page_cache_again() {
        let calls = Arc::new(Calls::default());
        let file: Arc<dyn DiskFile> = Arc::clone(&calls) as _;
        let mut behind = WriteBehind::default();
        for stretch in 0..STRETCHES_MAX as u64 + 1 {
            append_stretch(&mut behind, &file, 16, 16);
            let oldest = (stretch + 1).saturating_sub(STRETCHES_MAX as u64);
            let expected: Vec<_> = (oldest..=stretch).map(|at| (at, 1, true)).collect();
            assert_eq!(calls.take(), expected);
        }
        append_stretch(&mut behind, &file, 1, 77);
        let last = calls.take().pop();
        assert_eq!(
            last,
            Some((5, 1, false)),
            "scattered writes after a stream stay in the page cache"
        );
    }

    #[test]
    fn large_writes_at_random_places_are_streams() {
        let calls = Arc::new(Calls::default());
        let file: Arc<dyn DiskFile> = Arc::clone(&calls) as _;
        let mut behind = WriteBehind::default();
        append_stretch(&mut behind, &file, 256, 10_000);
        assert_eq!(calls.take(), [(0, 1, true)]);
    }
}
