//! The memory that an image takes for pages of its map and of its segment table.
//!
//! Invariants:
//! - Pages are dropped between requests, and never between [`super::state::State::prepare`] and the append of
//!   what was prepared: what a logged group changes is in memory already.
//! - A page is dropped only where it can be read again: it is clean, and known to be on disk.

use super::Image;
use crate::device::IdleOutcome;
use crate::error::Result;

/// An idle image keeps one part in this many of the memory for pages: 1 MiB with the default limits. So a
/// thousand idle images take 1 GiB at most, and the first request afterwards may still find the upper levels
/// in memory.
const IDLE_PART: u64 = 64;

impl Image {
    /// Drops nearly all pages, and buffers, and gives back room on the medium that was preallocated. Where
    /// too many pages are dirty for that, begins a checkpoint first, so that they can be dropped once it has
    /// ended.
    pub(super) fn give_memory_back(&mut self) -> Result<IdleOutcome> {
        self.state.compaction.due |= self.take_finished_checkpoint()?;
        let before = self.state.memory_bytes();
        let bytes_max = self.limits().map_memory_bytes / IDLE_PART;
        self.evict(bytes_max);
        let spare_bytes = self.journal.give_back() + self.state.pages.drop_spare();
        let freed_bytes = before.saturating_sub(self.state.memory_bytes()) + spare_bytes;
        if self.state.memory_bytes() > bytes_max && self.is_owner() && !self.is_poisoned() {
            match self.begin_checkpoint() {
                Err(error) if !error.kind().ends_writing() => {
                    tracing::warn!(image = %self.identity.label, error = %error.sentence(), "checkpoint put off");
                }
                begun => begun?,
            }
        }
        Ok(IdleOutcome { freed_bytes, unfinished: self.checkpoint_job.is_some() })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use marcot_format::segment::SegmentKind;
    use marcot_format::table::{TABLE_FANOUT, TABLE_PAGE_BYTES, decode_table};
    use marcot_format::{BLOCK_BYTES, BlockAddress, MAP_FANOUT, MapEntry, crc32c};

    use super::*;
    use crate::segment::SegmentName;
    use crate::{CreateOptions, ErrorKind, Housekeeping, Limits, Store};
    use marcot_format::{SegmentIndex, Slot};
    use marcot_store::{Job, LocalDisk, Running, SystemClock, SystemRandom, Workers, World};

    const MEMORY_BYTES_MAX: u64 = 256 << 10;
    /// Segments whose table pages take half a MiB.
    const SEGMENTS: u32 = 170 * TABLE_FANOUT as u32;

    /// Workers that begin a job when somebody asks whether it has ended.
    struct LazyWorkers;

    struct LazyJob(Option<Job>);

    impl Workers for LazyWorkers {
        fn start(&self, job: Job) -> Box<dyn Running> {
            Box::new(LazyJob(Some(job)))
        }
    }

    impl Running for LazyJob {
        fn is_finished(&mut self) -> bool {
            if let Some(job) = self.0.take() {
                job();
            }
            true
        }

        fn wait(mut self: Box<Self>) {
            self.is_finished();
        }
    }

    fn world() -> World {
        World {
            disk: Arc::new(LocalDisk::plain()),
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom),
            workers: Arc::new(LazyWorkers),
        }
    }

    /// An image whose table has [`SEGMENTS`] entries that are not stored yet. For each page of the table, one
    /// segment exists. It holds a block of zeros, which is mapped under a leaf of its own.
    fn image_of_many_segments(directory: &Path) -> Image {
        let limits = Limits { map_memory_bytes: MEMORY_BYTES_MAX, ..Limits::default() };
        let store = Store::open_with(world(), directory, limits).unwrap();
        let pool = store.pool("rbd").unwrap();
        let options = CreateOptions::sized(1 << 40);
        let id = pool.create("many", &options).unwrap();
        let mut image = pool.open(id).unwrap();
        image.begin_writing().unwrap();
        let files = Arc::clone(pool.files());
        let zeros = crc32c(&[0; BLOCK_BYTES as usize]);
        for number in 0..SEGMENTS {
            let kind = SegmentKind::Data;
            let sequence = 1000 + number;
            let name = SegmentName { pool: pool.id(), copies: 0, author: id, kind, sequence };
            let index = image.state.table.add(name, &files).unwrap();
            image.state.table.count(index, 1, 1, &files).unwrap();
            if number % TABLE_FANOUT as u32 == 0 {
                let file = files.create(name, 1).unwrap();
                file.set_length(2 * BLOCK_BYTES).unwrap();
                let entry =
                    MapEntry { address: BlockAddress::of_block(index, Slot(1)), crc: zeros };
                let block = u64::from(number / TABLE_FANOUT as u32) * MAP_FANOUT as u64;
                let (map, mut source) = image.state.parts();
                map.set_run(block, &[entry], &mut source).unwrap();
            }
        }
        image.state.changed = true;
        image
    }

    #[test]
    fn reading_everywhere_keeps_the_segment_table_under_the_cap() {
        let directory = tempfile::tempdir().unwrap();
        let mut image = image_of_many_segments(directory.path());
        image.checkpoint().unwrap();
        let mut block = [1; BLOCK_BYTES as usize];
        for leaf in 0..u64::from(SEGMENTS) / TABLE_FANOUT as u64 {
            image.read_at(leaf * MAP_FANOUT as u64 * BLOCK_BYTES, &mut block).unwrap();
            assert_eq!(block, [0; BLOCK_BYTES as usize]);
            let bytes = image.state.memory_bytes();
            assert!(bytes <= MEMORY_BYTES_MAX, "{bytes} bytes at leaf {leaf}");
        }
    }

    #[test]
    fn an_idle_image_drops_what_it_can_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut image = image_of_many_segments(directory.path());
        let full = image.state.memory_bytes();
        let outcome = image.rest().unwrap();
        assert!(outcome.unfinished, "what is dirty goes to disk first");
        let outcome = image.rest().unwrap();
        assert!(!outcome.unfinished);
        assert!(
            image.state.memory_bytes() <= MEMORY_BYTES_MAX / IDLE_PART,
            "{}",
            image.state.memory_bytes()
        );
        assert!(outcome.freed_bytes > full / 2, "{} of {full}", outcome.freed_bytes);
        assert!(image.head.root.is_some());
        let mut block = [1; BLOCK_BYTES as usize];
        image.read_at(0, &mut block).unwrap();
        assert_eq!(block, [0; BLOCK_BYTES as usize]);
    }

    #[test]
    fn counts_that_are_not_stored_yet_stay_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        let mut image = image_of_many_segments(directory.path());
        image.evict(0);
        let files = Arc::clone(image.pool().files());
        for index in [2, SEGMENTS / 2, SEGMENTS] {
            assert_eq!(image.state.table.get(SegmentIndex(index), &files).unwrap().live, 1);
        }
        image.checkpoint().unwrap();
        image.evict(0);
        assert_eq!(image.state.table.resident_bytes(), 0, "now they can be read again");
        image.state.table.count(SegmentIndex(2), 1, 0, &files).unwrap();
        image.evict(0);
        assert_eq!(image.state.table.get(SegmentIndex(2), &files).unwrap().live, 2);
    }

    #[test]
    fn pages_of_a_running_checkpoint_job_stay_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        let mut image = image_of_many_segments(directory.path());
        let before = image.state.memory_bytes();
        image.begin_checkpoint().unwrap();
        image.evict(0);
        assert!(image.state.memory_bytes() >= before, "nothing of it is on disk yet");
        let files = Arc::clone(image.pool().files());
        assert_eq!(image.state.table.get(SegmentIndex(2), &files).unwrap().live, 1);
        image.settle().unwrap();
        image.evict(0);
        assert!(image.state.memory_bytes() < before / 10, "{} bytes", image.state.memory_bytes());
        assert_eq!(image.state.table.get(SegmentIndex(2), &files).unwrap().live, 1);
    }

    /// The counts of the log's segment change once the group is written, when it is too late to fail.
    #[test]
    fn a_write_fails_unlogged_where_the_table_page_of_the_log_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let mut image = image_of_many_segments(directory.path());
        image.checkpoint().unwrap();
        image.evict(0);
        let files = Arc::clone(image.pool().files());
        let mut damaged = 0;
        for name in image.state.table.page_segments().unwrap() {
            let file = files.open_as_it_is(name, true).unwrap();
            let mut page = [0; TABLE_PAGE_BYTES];
            for at in (0..file.length().unwrap()).step_by(TABLE_PAGE_BYTES) {
                file.read_at(at, &mut page).unwrap();
                // The first page of the table; the others hold what the map needs.
                if decode_table(&page, 0, 0).is_ok() {
                    file.write_at(at, &[&[0x55; TABLE_PAGE_BYTES]]).unwrap();
                    damaged += 1;
                }
            }
        }
        assert_eq!(damaged, 1);
        let group = image.journal.group_next();
        // Nothing is mapped there, so no other page is needed.
        let error = image.write_at(1 << 39, &[1; BLOCK_BYTES as usize]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(image.journal.group_next(), group, "nothing was logged");
        image.check_owner().unwrap();
    }
}
