//! Checkpoints: writing a root's dirty pages out and moving the head to it.
//!
//! Order, each step durable before the next:
//! 1. the log up to now; 2. map and table pages; 3. the head (this is the commit: its rename);
//! 4. removal of segments that no head needs any more.
//!
//! The image's thread gives every dirty page its place, which needs no I/O but creating segments.
//! Steps 1 to 3 are the *checkpoint job*: a worker does them while the image goes on, or the image's
//! thread itself where somebody waits for the result. At most one is under way, and every change
//! of the head waits for it.
//!
//! A failure before step 3 changes nothing that a reader would see. Pages that found no room are
//! kept and written first at the next try, because nodes in memory already point to them.

use std::sync::Arc;

use marcot_backend::Stamp;
use marcot_format::address::MAP_UNIT_BYTES;
use marcot_format::page::{PAGE_READ_BYTES, encode_page};
use marcot_format::record::{HeadRecord, RootRecord, SegmentMarks};
use marcot_format::segment::SegmentKind;
use marcot_format::table::{PagePointer, TABLE_PAGE_BYTES};
use marcot_format::{BlockAddress, MAP_FANOUT, MapEntry, SEGMENT_BYTES};
use marcot_store::DiskFile;

use super::Image;
use super::checkpoint_job::{self, CheckpointJob, CheckpointOutcome, CheckpointWork, Covered};
use super::memory::Unwritten;
use crate::error::{ErrorKind, Result, fail};
use crate::fault::{self, Fault};
use crate::map::PageSink;
use crate::segment::{PageWriter, SegmentName};
use crate::table::TableSink;

/// Bytes of a table segment; small, because a table is rewritten whole now and then.
const TABLE_SEGMENT_BYTES: u64 = 4 << 20;
/// The table is rewritten when its open segment holds this many times the table's pages.
const TABLE_REWRITE_FACTOR: u64 = 8;
/// Pages that a table segment may hold before a rewrite is considered.
const TABLE_REWRITE_PAGES_MIN: u64 = 64;

struct MapSink<'a>(&'a mut Image);

impl PageSink for MapSink<'_> {
    fn write(
        &mut self,
        level: u32,
        base: u64,
        entries: &[MapEntry; MAP_FANOUT],
    ) -> Result<MapEntry> {
        let image = &mut *self.0;
        let files = Arc::clone(image.pool.files());
        if image.map_pages.needs_segment(PAGE_READ_BYTES as u64, SEGMENT_BYTES) {
            let (name, file) = image.create_segment(SegmentKind::Map, image.head.epoch)?;
            image.close_map_segment();
            image.map_index = image.table.add(name, &files)?;
            image.map_pages.start_segment(name, file);
        }
        let author = image.id.0;
        let encode = |out: &mut Vec<u8>| {
            let before = out.len();
            let crc = encode_page(level as u8, author, base, entries, out);
            (crc, (out.len() - before) as u64)
        };
        let Some((offset, (crc, bytes))) = image.map_pages.place(encode) else {
            return fail(ErrorKind::Io, "no map segment is open");
        };
        let units = (bytes / MAP_UNIT_BYTES) as u32;
        image.table.count(image.map_index, i64::from(units), units, &files)?;
        let address = BlockAddress::new(image.map_index, (offset / MAP_UNIT_BYTES) as u32);
        Ok(MapEntry { address, crc })
    }
}

struct TablePages<'a>(&'a mut Image, u16);

impl TableSink for TablePages<'_> {
    fn place(&mut self, encode: &mut dyn FnMut(&mut Vec<u8>) -> u32) -> Result<PagePointer> {
        let image = &mut *self.0;
        let bytes = TABLE_PAGE_BYTES as u64;
        if image.table_pages.needs_segment(bytes, TABLE_SEGMENT_BYTES) {
            let (name, file) = image.create_segment(SegmentKind::Table, image.head.epoch)?;
            image.table_pages.start_segment(name, file);
        }
        let placed = image.table_pages.place(|out| encode(out));
        let (Some((offset, crc)), Some((name, _))) = (placed, image.table_pages.open_segment())
        else {
            return fail(ErrorKind::Io, "no table segment is open");
        };
        Ok(PagePointer {
            author: image.id.0,
            sequence: name.sequence,
            pool: self.1,
            slot: (offset / bytes) as u32,
            crc,
        })
    }
}

impl Image {
    /// Makes the state in memory the durable one.
    ///
    /// # Errors
    /// `NoSpace` and other I/O errors leave the durable state as it was; `Poisoned` and `Fenced`
    /// end writing.
    pub(crate) fn checkpoint(&mut self) -> Result<()> {
        self.checkpoint_with(|_| {})
    }

    /// As [`Self::checkpoint`], with a change of the head that becomes durable together with it.
    pub(super) fn checkpoint_with(&mut self, change: impl FnOnce(&mut HeadRecord)) -> Result<()> {
        self.check_owner()?;
        self.settle()?;
        self.check_not_fenced()?;
        // The medium takes the end of the log while the pages are made and written.
        self.finish_direct()?;
        self.write_out_log();
        let loaded =
            self.write_pending().and_then(|()| self.prepare_checkpoint(Vec::new(), change));
        let mut work = match loaded {
            Ok(work) => work,
            // What a command changed before it found no room is there to stay.
            Err(error) => return self.sync_log().and(Err(error)),
        };
        if fault::is(Fault::RemoveBeforeHead) {
            self.remove_dead();
        }
        let covered = self.covered();
        let written = work.pages.write();
        let outcome = match self.sync_log().and(written) {
            Ok(()) => work.run(),
            Err(error) => CheckpointOutcome::Failed { error, pages: Some(work.pages) },
        };
        self.end_checkpoint(outcome, covered)
    }

    /// Starts a checkpoint in the background, unless one is under way.
    ///
    /// # Errors
    /// As [`Self::checkpoint`], as far as they are known by now.
    pub(super) fn begin_checkpoint(&mut self) -> Result<()> {
        self.check_owner()?;
        if self.checkpoint_job.is_some() {
            return Ok(());
        }
        let started = self.start_checkpoint_job();
        self.note_lack_of_room(started.as_ref().err());
        started
    }

    fn start_checkpoint_job(&mut self) -> Result<()> {
        self.finish_direct()?;
        self.write_pending()?;
        let log = self.log_to_sync()?;
        let work = self.prepare_checkpoint(log, |_| {})?;
        let covered = self.covered();
        let workers = Arc::clone(&self.pool.files().world().workers);
        self.checkpoint_job = Some(CheckpointJob::start(&*workers, work, covered));
        Ok(())
    }

    /// Notes what the checkpoint that is about to begin covers, and counts anew.
    fn covered(&mut self) -> Covered {
        self.changed = false;
        let dead = self.take_dead();
        let unsynced = self.log.iter().flat_map(|log| &log.unsynced);
        Covered {
            dead,
            left: unsynced.map(|(name, _)| *name).collect(),
            log_bytes: std::mem::take(&mut self.log_bytes),
            group: self.group_next,
        }
    }

    /// Takes in a checkpoint that has ended in the background; true if one had.
    pub(super) fn take_finished_checkpoint(&mut self) -> Result<bool> {
        if !self.checkpoint_job.as_mut().is_some_and(CheckpointJob::is_finished) {
            return Ok(false);
        }
        self.settle().map(|()| true)
    }

    /// Waits for the checkpoint that is under way, if there is one.
    ///
    /// # Errors
    /// `Poisoned` and `Fenced`. That it found no space, say, is for the next one to tell.
    pub(super) fn settle(&mut self) -> Result<()> {
        let Some(checkpoint_job) = self.checkpoint_job.take() else { return Ok(()) };
        let (outcome, covered) = checkpoint_job.wait();
        match self.end_checkpoint(outcome, covered) {
            Err(error) if !error.kind().ends_writing() => {
                tracing::warn!(image = %self.label, %error, "checkpoint put off");
                self.note_lack_of_room(Some(&error));
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Takes in the outcome of a checkpoint.
    fn end_checkpoint(&mut self, outcome: CheckpointOutcome, covered: Covered) -> Result<()> {
        match outcome {
            CheckpointOutcome::Done(head, pages) => {
                self.head = *head;
                self.map_pages.reuse(pages);
                self.unwritten_from = None;
                if let Some(log) = &mut self.log {
                    log.durable_below = log.durable_below.max(covered.group);
                    log.unsynced.retain(|(name, _)| !covered.left.contains(name));
                }
                let died_since = std::mem::replace(&mut self.dead, covered.dead);
                self.remove_dead();
                self.dead.extend(died_since);
                Ok(())
            }
            CheckpointOutcome::Failed { error, pages } => {
                self.pending = pages;
                self.dead.extend(covered.dead);
                self.changed = true;
                // Not so much that every write would try again.
                let log_bytes = self.log_bytes + covered.log_bytes;
                self.log_bytes = log_bytes.min(self.limits().checkpoint_log_bytes);
                self.poisoned |= error.kind() == ErrorKind::Poisoned;
                Err(error)
            }
        }
    }

    /// Gives every dirty page its place, and gathers what must be written and synced.
    fn prepare_checkpoint(
        &mut self,
        log: Vec<Arc<dyn DiskFile>>,
        change: impl FnOnce(&mut HeadRecord),
    ) -> Result<CheckpointWork> {
        self.pool.create_own_set(self.id)?;
        let root = self.place_root()?;
        let mut head = self.head.clone();
        head.root = Some(root);
        head.log = Some(self.log_position());
        head.marks = Some(self.next);
        change(&mut head);
        let head = self.next_head(head);
        let pages = self.pending.take().unwrap_or_default();
        let (pool, id, label) = (self.pool.clone(), self.id, self.label.clone());
        let before = Stamp::of(&self.head);
        let log_lost = self.log_lost.clone();
        Ok(CheckpointWork { pool, id, label, before, log, log_lost, pages, head })
    }

    /// While a log is replayed that touches more of the map than memory is for: writes changed pages to
    /// new places, which no head names before the next checkpoint, so that they can be dropped. Where
    /// the medium has no room, they stay.
    pub(super) fn spill(&mut self) -> Result<()> {
        let bytes_max = self.limits().map_memory_bytes_soft();
        self.evict(bytes_max);
        if self.memory_bytes() <= bytes_max || self.spill_failed {
            return Ok(());
        }
        let spilled = self.pool.create_own_set(self.id).and_then(|()| {
            self.note_unwritten();
            let mut map = std::mem::take(&mut self.map);
            let stored = map.store(&mut MapSink(self));
            self.map = map;
            let pages = self.map_pages.take();
            self.pending.get_or_insert_default().extend(pages);
            stored.and_then(|_| self.write_pending())
        });
        match spilled {
            Err(error) if error.kind().ends_writing() => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(image = %self.label, %error, "the log is replayed in memory alone");
                self.spill_failed = true;
            }
            Ok(()) => self.evict(bytes_max),
        }
        Ok(())
    }

    /// Notes from where on pages may not be on disk yet.
    fn note_unwritten(&mut self) {
        if self.unwritten_from.is_some() {
            return;
        }
        let map = match self.map_pages.open_segment() {
            Some((_, end)) => (self.map_index, (end / MAP_UNIT_BYTES) as u32),
            None => (self.table.next_index(), 0),
        };
        let table = match self.table_pages.open_segment() {
            Some((name, end)) => (name.sequence, (end / TABLE_PAGE_BYTES as u64) as u32),
            None => (self.next.table, 0),
        };
        self.unwritten_from = Some(Unwritten { map, table });
    }

    /// Forgets the pages that were placed for a root in memory that is given up for one on the medium, and
    /// what was to be removed after it.
    pub(super) fn forget_pages(&mut self) {
        self.map_pages.close_segment();
        self.table_pages.close_segment();
        self.map_pages.take();
        self.table_pages.take();
        (self.pending, self.unwritten_from) = (None, None);
        self.dead.clear();
    }

    fn write_pending(&mut self) -> Result<()> {
        if let Some(pages) = &mut self.pending {
            pages.write_and_sync()?;
            (self.pending, self.unwritten_from) = (None, None);
        }
        Ok(())
    }

    /// Gives every dirty page its place and returns the root that names them; the pages are
    /// pending afterwards, even where this fails half-way.
    fn place_root(&mut self) -> Result<RootRecord> {
        let mut root = RootRecord {
            size_bytes: self.size_bytes,
            mapped_blocks: self.map.mapped_blocks(),
            ..RootRecord::default()
        };
        self.note_unwritten();
        let placed = self.place_pages(&mut root);
        let mut pages = self.map_pages.take();
        pages.extend(self.table_pages.take());
        self.pending.get_or_insert_default().extend(pages);
        placed.map(|()| root)
    }

    fn place_pages(&mut self, root: &mut RootRecord) -> Result<()> {
        let mut map = std::mem::take(&mut self.map);
        let stored = map.store(&mut MapSink(self));
        self.map = map;
        let entry = stored?;
        root.map_address = { entry.address }.0;
        root.map_crc = entry.crc;
        if entry.is_hole() {
            // No page is left in its segment, which goes.
            self.close_map_segment();
        }
        let open_data = self.log.as_ref().map(|l| l.name);
        let open_map = self.map_pages.open_segment().map(|(name, _)| name);
        let in_log = self.kept_log();
        let dropped = self.table.drop_dead(|name| {
            Some(*name) == open_data || Some(*name) == open_map || in_log(name)
        })?;
        let private: Vec<SegmentName> =
            dropped.into_iter().filter(|name| self.is_private(name)).collect();
        self.dead.extend(private);
        self.rewrite_table_if_due()?;
        let own = self.pool.id();
        let position = self.table.pool_position(own);
        let before = self.own_table_segments()?;
        let mut table = std::mem::replace(&mut self.table, crate::table::SegmentTable::new());
        let id = self.id;
        let stored = table.store(id, &mut TablePages(self, position), root);
        self.table = table;
        stored?;
        let after = self.own_table_segments()?;
        let gone = before.into_iter().filter(|n| !after.contains(n) && self.is_private(n));
        self.dead.extend(gone.collect::<Vec<_>>());
        Ok(())
    }

    /// Leaves the open map segment. It goes with the next checkpoint, if nothing in it is live.
    pub(super) fn close_map_segment(&mut self) {
        if self.map_pages.open_segment().is_some() {
            self.map_pages.close_segment();
            self.leave_segment(self.map_index);
        }
    }

    /// A segment is not appended to any more, so that it may go when it is dead.
    pub(super) fn leave_segment(&mut self, index: u32) {
        if let Err(error) = self.table.look_again(index, self.pool.files()) {
            tracing::warn!(image = %self.label, %error, "a segment may be left behind");
        }
    }

    fn own_table_segments(&self) -> Result<Vec<SegmentName>> {
        let open = self.table_pages.open_segment().map(|(name, _)| name);
        let mut names = self.table.page_segments()?;
        names.retain(|n| n.author == self.id && Some(*n) != open);
        Ok(names)
    }

    fn rewrite_table_if_due(&mut self) -> Result<()> {
        let Some((name, end)) = self.table_pages.open_segment() else { return Ok(()) };
        let pages = end / TABLE_PAGE_BYTES as u64;
        let due =
            TABLE_REWRITE_PAGES_MIN.max(TABLE_REWRITE_FACTOR * self.table.page_count() as u64);
        if pages > due {
            let files = Arc::clone(self.pool.files());
            self.table.rewrite(&files)?;
            self.table_pages.close_segment();
            if self.is_private(&name) {
                self.dead.push(name);
            }
        }
        Ok(())
    }

    /// True where only this image's head can name the segment (I5).
    pub(super) fn is_private(&self, name: &SegmentName) -> bool {
        let own = name.author == self.id && name.pool == self.pool.id() && name.copies == 0;
        own && name.sequence >= self.private_from(name.kind)
    }

    /// First number of a series that no snapshot and no clone names.
    fn private_from(&self, kind: SegmentKind) -> u32 {
        let of = |marks: &SegmentMarks| marks.of(kind);
        let shared = self.head.shared_below.as_ref().map_or(0, of);
        let snapshots = self.head.snapshots.iter().filter_map(|s| s.marks.as_ref()).map(of);
        snapshots.max().unwrap_or(0).max(shared)
    }

    /// Removes the segments that only a head before named.
    pub(super) fn remove_dead(&mut self) {
        let dead = self.take_dead();
        self.dead = checkpoint_job::remove_dead(&self.pool, self.id, &self.label, dead);
    }

    /// Segments to be removed once the next head is durable. A snapshot may have been taken since
    /// they died: then they stay.
    fn take_dead(&mut self) -> Vec<SegmentName> {
        let mut dead = std::mem::take(&mut self.dead);
        dead.retain(|name| self.is_private(name));
        dead
    }

    /// See [`checkpoint_job::postponed_for_readers`].
    pub(super) fn postponed_for_readers(&self) -> bool {
        checkpoint_job::postponed_for_readers(&self.pool, self.id, &self.label)
    }

    /// The first segment of each series that may still be appended to.
    pub(super) fn open_from(&self) -> SegmentMarks {
        let open = |writer: &PageWriter| writer.open_segment().map(|(name, _)| name.sequence);
        SegmentMarks {
            data: self.log.as_ref().map_or(self.next.data, |l| l.name.sequence),
            map: open(&self.map_pages).unwrap_or(self.next.map),
            table: open(&self.table_pages).unwrap_or(self.next.table),
        }
    }

    /// Fails where a later owner has taken the image over (I6).
    pub(super) fn check_not_fenced(&self) -> Result<()> {
        checkpoint_job::check_not_fenced(&self.pool, self.id, Stamp::of(&self.head))
    }

    /// Changes the head, durably. Where the disk is full, such a change works all the same: see
    /// [`Self::publish_over_log`].
    pub(super) fn publish(&mut self, change: impl Fn(&mut HeadRecord)) -> Result<()> {
        self.settle()?;
        if self.log.is_none() && self.changed {
            // The log that was replayed ends with this head, so its content goes with it.
            return match self.checkpoint_with(&change) {
                Err(error) if error.kind() == ErrorKind::NoSpace => self.publish_over_log(change),
                published => published,
            };
        }
        self.publish_root(change)
    }

    /// Changes a head whose log was replayed and finds no room for a checkpoint: root, log and epoch
    /// stay as they are, so that the log is replayed again by the next owner.
    ///
    /// An owner that was replaced cannot publish any more, because the version has changed. What it
    /// still appends is accepted until the log is left, with the next checkpoint.
    fn publish_over_log(&mut self, change: impl FnOnce(&mut HeadRecord)) -> Result<()> {
        let mut head = self.head.clone();
        change(&mut head);
        head.version += 1;
        head.modified_s = self.pool.files().world().clock.now_s();
        self.replace_head(head)
    }

    /// As [`Self::publish`]; what is only in memory is stored, or is to be forgotten.
    pub(super) fn publish_root(&mut self, change: impl FnOnce(&mut HeadRecord)) -> Result<()> {
        self.settle()?;
        let mut head = self.head.clone();
        change(&mut head);
        let head = self.next_head(head);
        self.replace_head(head)
    }

    /// Writes a head that names nothing new: this is how snapshots go, also where the disk is full.
    fn replace_head(&mut self, head: HeadRecord) -> Result<()> {
        let from = Stamp::of(&self.head);
        let written = self.pool.with_reserve(|| self.pool.swap_head(self.id, from, &head));
        self.poisoned |= written.as_ref().is_err_and(|e| e.kind() == ErrorKind::Poisoned);
        written?;
        self.head = head;
        Ok(())
    }

    /// Makes whoever owned the image before fail at its next head. To be called before anything is
    /// removed that it may have made for one: where locks do not hold, it may still be at work.
    pub(super) fn fence(&mut self) -> Result<()> {
        self.settle()?;
        let mut head = self.head.clone();
        head.version += 1;
        self.replace_head(head)
    }

    /// A head that is to follow the one on disk.
    ///
    /// While no log is open, it says that one begins behind all that is there, in an epoch of its
    /// own: what an owner that was replaced still appends to the one before is accepted by nobody
    /// (I6).
    fn next_head(&self, mut head: HeadRecord) -> HeadRecord {
        if self.log.is_none() && !self.keeps_log {
            head.epoch += 1;
            head.log = Some(self.log_position());
            head.marks = Some(self.next);
        }
        head.open_from = Some(self.open_from());
        head.version += 1;
        head.modified_s = self.pool.files().world().clock.now_s();
        head
    }
}
