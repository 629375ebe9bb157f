//! Checkpoints: making the root in memory the durable one.
//!
//! Order, each step durable before the next:
//! 1. the log up to now;
//! 2. map and table pages;
//! 3. the head (this is the commit: its rename);
//! 4. removal of segments that no head needs any more.
//!
//! The image's thread gives every dirty page its place ([`super::placing`]). Steps 1 to 3 are the *checkpoint
//! job* ([`super::checkpoint_job`]). A worker runs the job while the image goes on; where a caller waits for
//! the result, the image's thread runs it itself. The job gets a frozen root and touches nothing of the
//! image. At most one job is running, and every change of the head waits for it.
//!
//! A failure before step 3 changes nothing that a reader would see.

use std::sync::Arc;
use std::time::Duration;

use marcot_format::record::{HeadRecord, RootRecord, SegmentMarks};
use marcot_format::segment::SegmentKind;
use marcot_store::DiskFile;

use super::Image;
use super::checkpoint_job::{self, CheckpointJob, CheckpointOutcome, CheckpointWork, Covered};
use super::head::Progress;
use super::placing::Owner;
use crate::error::{ErrorKind, Result};
use crate::fault::{self, Fault};
use crate::journal::{Shipped, SparesWanted};

/// The series that pages go to.
const PAGES: [SegmentKind; 2] = [SegmentKind::Map, SegmentKind::Table];
/// How often it is looked whether what guests wait for has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

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
        self.await_service()?;
        self.settle()?;
        self.head.check_not_fenced()?;
        self.close_for_shipping()?;
        // The end of the log goes to the medium while the pages are encoded and written.
        self.journal.hurry(&mut self.in_flight)?;
        let loaded = self
            .state
            .pages
            .write_pending()
            .and_then(|()| self.prepare_checkpoint(Vec::new(), change));
        let mut work = match loaded {
            Ok(work) => work,
            // What a command has changed stays, although there is no room for the checkpoint. The log makes
            // it durable.
            Err(error) => return self.sync_log().and(Err(error)),
        };
        if fault::is(Fault::RemoveBeforeHead) {
            self.remove_dead();
        }
        let covered = self.begin_to_cover();
        let written = work.pages.write();
        // The segments are uploaded, so that the log need not be shipped.
        let synced = self.journal.sync_here(&mut self.in_flight);
        let synced = synced.and_then(|()| self.journal.sync_beside(&covered.log));
        let outcome = match synced.and(written) {
            Ok(()) => work.run(),
            Err(error) => CheckpointOutcome::Failed { error, pages: Some(work.pages) },
        };
        self.end_checkpoint(outcome, covered)
    }

    /// Starts a checkpoint in the background, unless one is running.
    ///
    /// # Errors
    /// As [`Self::checkpoint`], as far as they are known by now.
    pub(super) fn begin_checkpoint(&mut self) -> Result<()> {
        self.check_owner()?;
        if self.checkpoint_job.is_some() || self.parked.is_starting() {
            return Ok(());
        }
        let started = self.start_checkpoint_job();
        self.note_lack_of_room(started.as_ref().err());
        started
    }

    fn start_checkpoint_job(&mut self) -> Result<()> {
        self.start_checkpoint_with(|_| {}, || {})?;
        self.state.pages.prepare_map(&self.identity, &self.series, self.head.epoch);
        Ok(())
    }

    /// Starts a checkpoint in the background, with a change of the head that becomes durable together with it. `tell` is
    /// called when it has ended.
    ///
    /// # Errors
    /// As [`Self::checkpoint`], as far as they are known by now.
    pub(super) fn start_checkpoint_with(
        &mut self,
        change: impl FnOnce(&mut HeadRecord),
        tell: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        self.close_for_shipping()?;
        self.state.pages.write_pending()?;
        let log = self.journal.files_to_sync(&mut self.in_flight)?;
        let work = self.prepare_checkpoint(log, change)?;
        let covered = self.begin_to_cover();
        let workers = Arc::clone(&self.identity.pool.files().world().workers);
        self.checkpoint_job = Some(CheckpointJob::start(&*workers, work, covered, tell));
        Ok(())
    }

    /// Notes what the next checkpoint covers, and starts the counts of what comes after it.
    fn begin_to_cover(&mut self) -> Covered {
        self.state.changed = false;
        let mut dead = self.state.pages.take_dead(&self.head);
        let wanted = self.spares_wanted();
        if fault::is(Fault::ReuseBeforeHead) {
            self.journal.add_spares(wanted.choose(&self.identity, &mut dead));
        }
        Covered { dead, wanted, spares: Vec::new(), log: self.journal.begin_to_cover() }
    }

    /// Which dead segments may be kept, to be used again: none while one of them may still be shortened.
    fn spares_wanted(&mut self) -> SparesWanted {
        let compaction = &mut self.state.compaction;
        if compaction.is_cutting() || self.journal.is_cutting() {
            return SparesWanted::default();
        }
        self.journal.spares_wanted(compaction.live_slots())
    }

    /// Takes in a checkpoint that has ended in the background; true if one had.
    pub(super) fn take_finished_checkpoint(&mut self) -> Result<bool> {
        if !self.checkpoint_job.as_mut().is_some_and(CheckpointJob::is_finished) {
            return Ok(false);
        }
        self.settle().map(|()| true)
    }

    /// Where guests wait for the service for a limited time: waits until it answers. To be called before the
    /// image's thread waits for what has no time-out.
    ///
    /// # Errors
    /// `Unreachable` where it does not answer in that time.
    pub(super) fn await_service(&self) -> Result<()> {
        self.journal.shipped().map_or(Ok(()), Shipped::await_service)
    }

    /// As [`Self::settle`], for a guest, who may wait for a limited time only.
    ///
    /// # Errors
    /// As [`Self::settle`]; `Unreachable` where the service does not answer in that time. What is under way goes on.
    pub(super) fn settle_in_time(&mut self) -> Result<()> {
        let clock = Arc::clone(&self.identity.pool.files().world().clock);
        let mut since = None;
        while self.would_wait_to_settle()
            && let Some(shipped) = self.journal.shipped().filter(|shipped| shipped.has_timeout())
        {
            let now = clock.uptime();
            shipped.check_time(*since.get_or_insert(now), now)?;
            clock.pause(LOOK_INTERVAL);
        }
        self.settle()
    }

    /// True where a checkpoint, or the head that begins the log, is under way.
    fn would_wait_to_settle(&mut self) -> bool {
        let begins_log = self.parked.is_starting() && !self.has_begun_log();
        begins_log || self.checkpoint_job.as_mut().is_some_and(|job| !job.is_finished())
    }

    /// Waits for the checkpoint that is running, and takes it in.
    ///
    /// # Errors
    /// Why it has failed.
    pub(super) fn take_in_checkpoint(&mut self) -> Result<()> {
        let Some(checkpoint_job) = self.checkpoint_job.take() else { return Ok(()) };
        let (outcome, covered) = checkpoint_job.wait();
        self.end_checkpoint(outcome, covered)
    }

    /// Waits for the checkpoint that is running, if there is one, and for the head that begins the log.
    ///
    /// # Errors
    /// `Poisoned` and `Fenced`. Other errors, such as no space, are logged, and the next checkpoint tries
    /// again.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.settle_start()?;
        match self.take_in_checkpoint() {
            Err(error) if !error.kind().ends_writing() => {
                tracing::warn!(image = %self.identity.label, error = %error.sentence(), "checkpoint put off");
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
                self.head.was_replaced(*head);
                self.note_reserved();
                // A log that is stored in parts is not stored by the first of them.
                self.replayed_here &= self.head.keeps_log;
                self.state.pages.written(pages);
                self.journal.covered(&covered.log);
                let first = self.head.log.unwrap_or_default().sequence;
                self.journal.forget_shipped(first, self.head.log_first);
                self.journal.add_spares(covered.spares);
                let mut dead = covered.dead;
                // This head may have taken a snapshot. Segments that the snapshot may name stay.
                dead.retain(|name| self.head.is_private(name));
                checkpoint_job::remove_dead(&self.identity, dead, &mut self.state.pages);
                Ok(())
            }
            CheckpointOutcome::Failed { error, pages } => {
                self.state.pages.not_written(pages);
                self.state.pages.add_dead(covered.dead);
                self.state.changed = true;
                let bytes_max = self.limits().checkpoint_log_bytes;
                self.journal.not_covered(&covered.log, bytes_max);
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
        self.identity.pool.create_own_set(self.identity.id)?;
        let root = self.place_root()?;
        if self.is_shipped() {
            self.state.close_page_segments(&self.identity);
        }
        let progress = self.progress();
        let mut head = self.head.clone();
        head.root = Some(root);
        progress.begin_log(&mut head);
        change(&mut head);
        let head = self.head.following(head, progress);
        let pages = self.state.pages.take_pending();
        let (image, before) = (Arc::clone(&self.identity), self.head.stamp());
        let log_lost = self.journal.lost().clone();
        Ok(CheckpointWork { image, before, log, log_lost, pages, head })
    }

    /// Gives every dirty page its place and returns the root that names them.
    fn place_root(&mut self) -> Result<RootRecord> {
        self.with_free_names(&PAGES, |image| {
            let open = image.open_segments();
            let Self { identity, head, state, series, .. } = image;
            state.place_root(&Owner { image: identity, head, open: &open }, series)
        })
    }

    /// See [`super::state::State::spill`].
    pub(super) fn spill(&mut self) -> Result<()> {
        let bytes_max = self.limits().map_memory_bytes_soft();
        self.with_free_names(&PAGES, |image| {
            let open = image.open_segments();
            let Self { identity, head, state, series, .. } = image;
            state.spill(&Owner { image: identity, head, open: &open }, series, bytes_max)
        })
    }

    /// Runs `create`, which creates segments of these series. Where a segment with one of the next names
    /// exists already, fences the owner that has created it, removes it and tries once more. If the head is
    /// still ours, only an owner that was replaced or has crashed can have created it.
    ///
    /// Other series are left alone, because workers of this process may have created the next segments of them.
    pub(super) fn with_free_names<T>(
        &mut self,
        kinds: &[SegmentKind],
        create: impl Fn(&mut Self) -> Result<T>,
    ) -> Result<T> {
        match create(self) {
            Err(error) if error.kind() == ErrorKind::Exists => {
                self.fence()?;
                if kinds.contains(&SegmentKind::Map)
                    && let Some(prepared) = self.state.pages.take_prepared_map()
                {
                    // It has the next name, and is removed with what has it.
                    prepared.wait();
                }
                for kind in kinds {
                    self.identity.pool.files().remove(self.series.next_name(*kind))?;
                }
                create(self)
            }
            created => created,
        }
    }

    /// Removes the segments that only earlier heads named.
    pub(super) fn remove_dead(&mut self) {
        let dead = self.state.pages.take_dead(&self.head);
        checkpoint_job::remove_dead(&self.identity, dead, &mut self.state.pages);
    }

    /// See [`checkpoint_job::postponed_for_readers`].
    pub(super) fn postponed_for_readers(&self) -> bool {
        checkpoint_job::postponed_for_readers(&self.identity)
    }

    /// Where the journal and the series stand.
    pub(super) fn progress(&self) -> Progress {
        let marks = self.series.marks();
        // A segment that is closed by now counts too, where the durable root lacks copies in it.
        let copies =
            self.state.compaction.open_name().into_iter().chain(self.journal.beside_from());
        let open = self.journal.open_name().into_iter().chain(copies);
        let open = open.min_by_key(|name| name.sequence);
        let (map, table) = (self.state.pages.open_map(), self.state.pages.open_table());
        let open_from = SegmentMarks {
            data: open.map_or(marks.data, |name| name.sequence),
            map: map.map_or(marks.map, |name| name.sequence),
            table: table.map_or(marks.table, |name| name.sequence),
        };
        let log_is_open = self.journal.is_open();
        let next_part = self.journal.next_part();
        Progress { log: self.log_position(), log_is_open, marks, open_from, next_part }
    }

    /// Changes the head, durably. Where the disk is full, such a change works all the same: see
    /// [`Self::publish_over_log`].
    pub(super) fn publish(&mut self, change: impl Fn(&mut HeadRecord)) -> Result<()> {
        self.await_service()?;
        self.settle()?;
        if !self.journal.is_open() && self.state.changed {
            // This head ends the log that was replayed, so it has to name what the log has written.
            return match self.checkpoint_with(&change) {
                Err(error) if error.kind() == ErrorKind::NoSpace => self.publish_over_log(change),
                published => published,
            };
        }
        self.publish_root(change)
    }

    /// Changes the head although a replayed log finds no room for a checkpoint. Root, log and epoch stay as
    /// they are, so that the next owner replays the log again.
    ///
    /// An owner that was replaced cannot publish any more, because the version has changed. What it still
    /// appends is accepted until the next checkpoint leaves the log behind.
    fn publish_over_log(&mut self, change: impl FnOnce(&mut HeadRecord)) -> Result<()> {
        let mut head = self.head.clone();
        change(&mut head);
        let head = self.head.next_version(head);
        self.replace_head(head)
    }

    /// As [`Self::publish`], but never with a checkpoint: the changes in memory are in the log, or are to be
    /// forgotten.
    pub(super) fn publish_root(&mut self, change: impl FnOnce(&mut HeadRecord)) -> Result<()> {
        self.settle()?;
        let mut head = self.head.clone();
        change(&mut head);
        let head = self.head.following(head, self.progress());
        self.replace_head(head)
    }

    /// See [`super::head::Head::replace`].
    fn replace_head(&mut self, head: HeadRecord) -> Result<()> {
        let written = self.head.replace(head);
        self.note_reserved();
        self.poisoned |= written.as_ref().is_err_and(|e| e.kind() == ErrorKind::Poisoned);
        written
    }

    /// Makes a previous owner fail when it publishes its next head. To be called before segments are removed
    /// that such an owner may have created: where locks do not work, it may still be running.
    pub(super) fn fence(&mut self) -> Result<()> {
        self.settle()?;
        let mut head = self.head.clone();
        head.version += 1;
        self.replace_head(head)
    }
}
