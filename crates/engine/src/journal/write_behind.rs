//! The medium follows the log closely, and streams leave the page cache.
//!
//! Left to the system, what was appended stays in memory until a flush, a snapshot or a checkpoint
//! asks for it, which then waits for all of it. The log is never written twice, so nothing is saved by
//! that. A worker therefore begins with the writing as soon as a stretch of it is complete.
//!
//! Who writes a large part of an image in one go (an import, a restore, a guest that installs
//! itself) does not read it back at once, and has a cache of its own. Such a stream would fill memory
//! with pages that somebody else's data has to make room for, and every page would be a new one. What
//! it wrote is forgotten as soon as the medium has it: the stream goes on in the same few pages
//! (docs/decisions/0009).
//!
//! Nothing is promised by this: only a sync makes anything durable, and only a sync hears of errors.

use std::collections::VecDeque;
use std::sync::Arc;

use marcot_format::BLOCK_BYTES;
use marcot_format::group::{Record, RecordKind};
use marcot_store::{DiskFile, Running, Workers};

/// Slots of the log that are looked at together (8 MiB).
const STRETCH_SLOTS: u32 = 2048;
/// Blocks that a stream writes in one go, on average, at the least (512 KiB).
const RUN_BLOCKS_MIN: u32 = 128;
/// Stretches of a stream that are told of again, because they were not written when they were told
/// of before; and that wait for a worker, at the most.
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

/// What was appended lately.
#[derive(Default)]
pub(super) struct WriteBehind {
    /// The stretch that is being appended: where it starts, its blocks, and how often one did not
    /// follow the block before.
    first: u32,
    blocks: u32,
    jumps: u32,
    next_block: u64,
    /// To be told of, the oldest first.
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

    /// Lets go of what was appended before, so that a segment that goes is not kept open.
    pub(super) fn forget(&mut self) {
        self.stretches.clear();
    }

    /// True where the stretch is complete, now that the log has grown to `slot`.
    pub(super) fn is_complete(&self, slot: u32) -> bool {
        slot >= self.first + STRETCH_SLOTS
    }

    /// Has the unfinished stretch, up to `slot`, written out now.
    pub(super) fn hurry(&self, file: &dyn DiskFile, slot: u32) {
        let (from, slots) = (u64::from(self.first), u64::from(slot.saturating_sub(self.first)));
        if slots > 0 {
            file.write_out(from * BLOCK_BYTES, slots * BLOCK_BYTES);
        }
    }

    /// Ends the stretch at `slot` of `file`; the next one starts at `next`, behind what went past the
    /// page cache, if anything did.
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

    /// Keeps what it was told of: offset and length in stretches, and whether it may forget them.
    #[derive(Default)]
    struct Told(Mutex<Vec<(u64, u64, bool)>>);

    impl Told {
        fn note(&self, offset: u64, length: u64, forget: bool) {
            let stretch = u64::from(STRETCH_SLOTS) * BLOCK_BYTES;
            let entry = (offset / stretch, length / stretch, forget);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        }

        fn take(&self) -> Vec<(u64, u64, bool)> {
            std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }

    impl DiskFile for Told {
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

    /// Appends one stretch of records of so many blocks, each `step` blocks behind the one before.
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
        let told = Arc::new(Told::default());
        let file: Arc<dyn DiskFile> = Arc::clone(&told) as _;
        let mut behind = WriteBehind::default();
        append_stretch(&mut behind, &file, 1, 77);
        append_stretch(&mut behind, &file, 16, 160);
        assert_eq!(told.take(), [(0, 1, false), (1, 1, false)]);
    }

    #[test]
    fn a_stream_is_forgotten_and_told_of_until_it_has_been_written() {
        let told = Arc::new(Told::default());
        let file: Arc<dyn DiskFile> = Arc::clone(&told) as _;
        let mut behind = WriteBehind::default();
        for stretch in 0..STRETCHES_MAX as u64 + 1 {
            append_stretch(&mut behind, &file, 16, 16);
            let oldest = (stretch + 1).saturating_sub(STRETCHES_MAX as u64);
            let expected: Vec<_> = (oldest..=stretch).map(|at| (at, 1, true)).collect();
            assert_eq!(told.take(), expected);
        }
        append_stretch(&mut behind, &file, 1, 77);
        let last = told.take().pop();
        assert_eq!(last, Some((5, 1, false)), "what comes after the stream is none of it");
    }

    #[test]
    fn large_writes_at_random_places_are_streams() {
        let told = Arc::new(Told::default());
        let file: Arc<dyn DiskFile> = Arc::clone(&told) as _;
        let mut behind = WriteBehind::default();
        append_stretch(&mut behind, &file, 256, 10_000);
        assert_eq!(told.take(), [(0, 1, true)]);
    }
}
