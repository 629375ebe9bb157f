//! Appending to the journal: making the image ready for it, and applying completions.

use marcot_format::group::LOG_SEGMENTS_MAX;
use marcot_format::segment::SegmentKind;

use super::Image;
use super::state::DamagedPages;
use crate::device::{CompletedRead, Completion};
use crate::error::{ErrorKind, IoContext, Result, fail};
use crate::fetches::{Fetched, LeftRead};
use crate::in_flight::{Ended, EndedRead};
use crate::journal::{Flushes, Group};
use crate::segment::SegmentName;

/// No owner creates more segments than this that no head names.
const LEFTOVERS_MAX: u32 = 1 << 16;

impl Image {
    /// Makes the image ready to append: a new epoch, a fresh data segment, and a head that names
    /// both, durable before the first group.
    ///
    /// # Errors
    /// As [`Self::publish`]; `Unreachable` where a worker begins the log, and that takes longer than guests wait.
    pub(super) fn begin_writing(&mut self) -> Result<()> {
        self.check_owner()?;
        // Its log is open while it is being begun, but nothing may be appended yet.
        if self.parked.is_starting() || !self.journal.is_open() {
            self.settle_in_time()?;
        }
        if self.journal.is_open() {
            return Ok(());
        }
        self.head.check_not_fenced()?;
        self.remove_leftovers()?;
        let epoch = self.open_log()?;
        let started = self.publish_start(epoch);
        if let Err(error) = started {
            self.state.pages.add_dead(self.journal.abandon_start());
            if error.kind() == ErrorKind::NoSpace
                && self.room.spends_reserve
                && self.may_store_in_parts()
            {
                self.store_log_in_parts()?;
                self.checkpoint()?;
                return self.begin_writing();
            }
            return Err(error);
        }
        self.remove_strays_once();
        Ok(())
    }

    /// Starts a log with a fresh data segment. Returns its epoch, which no head names yet.
    pub(super) fn open_log(&mut self) -> Result<u64> {
        if !self.room.spends_reserve {
            self.identity.pool.keep_reserve();
        }
        self.identity.pool.create_own_set(self.identity.id)?;
        let epoch = self.head.epoch + 1;
        self.with_free_names(&[SegmentKind::Data], |image| {
            image.journal.start(epoch, &mut image.series, &mut image.state.table)
        })?;
        Ok(epoch)
    }

    fn publish_start(&mut self, epoch: u64) -> Result<()> {
        if self.state.changed {
            return self.checkpoint_with(|head| head.epoch = epoch);
        }
        let progress = self.progress();
        self.publish(|head| {
            head.epoch = epoch;
            progress.begin_log(head);
        })
    }

    /// Removes segments that a crashed owner created and no head names. Their numbers are not given again: the
    /// owner may still be running, and other images of its process may read by the name.
    ///
    /// In a bucket, this owner gives no numbers that an owner before could give. What was left there is found as
    /// segments are that no head names.
    fn remove_leftovers(&mut self) -> Result<()> {
        if self.is_shipped() {
            return Ok(());
        }
        let marks = self.series.marks();
        let left = self.remove_unnamed(|name| name.sequence >= marks.of(name.kind))?;
        let near = |name: &&SegmentName| name.sequence - marks.of(name.kind) < LEFTOVERS_MAX;
        left.iter().filter(near).for_each(|name| self.series.used(*name));
        Ok(())
    }

    /// Removes own segments for which `unnamed` is true, because no head names them. A previous owner may
    /// have created them and may still be running, so it is fenced first. Returns the segments.
    pub(super) fn remove_unnamed(
        &mut self,
        unnamed: impl Fn(&SegmentName) -> bool,
    ) -> Result<Vec<SegmentName>> {
        let files = self.identity.pool.files();
        let mut left = files.list(self.identity.pool.id(), self.identity.own_set())?;
        left.retain(unnamed);
        if !left.is_empty() {
            self.fence()?;
        }
        for name in &left {
            self.identity.pool.files().remove(*name)?;
        }
        Ok(left)
    }

    /// Appends a group and applies it to the map. The pages and table entries it touches must be
    /// loaded (see [`super::state::State::prepare`]), so that nothing but the append itself can fail.
    pub(super) fn append(&mut self, group: Group<'_>) -> Result<()> {
        if group.is_empty() {
            return Ok(());
        }
        let slots = group.slots();
        if self.journal.needs_segment(slots) {
            self.check_log_length()?;
        }
        // This also loads the segment's entry in the table. Its counts change once the group is written, when
        // it is too late to fail.
        self.with_free_names(&[SegmentKind::Data], |image| {
            let Self { journal, series, state, in_flight, .. } = image;
            journal.find_room(slots, series, &mut state.table, in_flight)
        })?;
        let placed = self.journal.append(group, &mut self.in_flight)?;
        self.state.compaction.appended(slots);
        self.state.idle.appended(placed.header.crcs.len());
        self.state.apply(&placed, DamagedPages::Refuse).inspect_err(|error| {
            tracing::error!(image = %self.identity.label, error = %error.sentence(), "a logged write could not be mapped");
            self.poisoned = true;
        })?;
        self.journal.prepare_segments(&self.series, self.state.compaction.target_slot());
        Ok(())
    }

    /// Fails where the log has become so long that replay would not read its next segment. This happens only
    /// where no checkpoint has succeeded for a long time.
    fn check_log_length(&mut self) -> Result<()> {
        if self.is_log_too_long() {
            self.settle_in_time()?;
        }
        if !self.is_log_too_long() {
            return Ok(());
        }
        let message = format!(
            "the log of {} is as long as a log can be, because no checkpoint succeeds; the messages of \
             the process that serves it say why",
            self.identity.label
        );
        fail(ErrorKind::NoSpace, message)
    }

    fn is_log_too_long(&self) -> bool {
        let next = self.series.marks().data;
        let first = self.head.log.unwrap_or_default().sequence;
        next - first.min(next) >= LOG_SEGMENTS_MAX
    }

    /// Takes the next completion that a caller waits for.
    pub(super) fn take_completion(&mut self) -> Option<Completion> {
        loop {
            match self.journal.newly_flushed(&mut self.in_flight) {
                Some(Flushes::Ended(outcome)) => return Some(Completion::Flushed(outcome)),
                Some(Flushes::Late(below, error)) => {
                    return Some(Completion::Unflushed(below, error));
                }
                None => {}
            }
            if self.journal.is_awaited()
                && let Some(stored) = self.journal.newly_stored(self.check_owner())
            {
                return Some(Completion::Written(stored));
            }
            if let Some(ended) = self.take_ended() {
                return Some(ended);
            }
            match self.in_flight.take(self.identity.pool.files().world())? {
                Ended::Read(read) => return Some(Completion::Read(self.finish_read(read))),
                Ended::Write(write) => self.journal.completed(write),
                Ended::Fetched(request, _) if request.is_parked => {
                    self.parked.fetched(request.number);
                }
                Ended::Fetched(read, fetched) => {
                    if let Some(completed) = self.finish_fetch(read, fetched) {
                        return Some(Completion::Read(completed));
                    }
                }
            }
        }
    }

    /// Completes a read. Where its bytes did not match the checksums, they are read again: the blocks may
    /// have moved meanwhile.
    fn finish_read(&mut self, read: EndedRead) -> CompletedRead {
        let EndedRead { number, offset, mut buf, is_whole } = read;
        let result = match is_whole {
            true => Ok(buf),
            false => self.read_now(offset, &mut buf).map(|()| buf),
        };
        CompletedRead { number, result }
    }

    /// Goes on with a read for which something was fetched. `None`: it needs more.
    fn finish_fetch(&mut self, read: LeftRead, fetched: Fetched) -> Option<CompletedRead> {
        let LeftRead { number, offset, bytes, .. } = read;
        let result = match fetched {
            Fetched::Met => self.read_on(read)?,
            Fetched::Data(Ok(Some(data))) => Ok(data),
            Fetched::Data(Ok(None)) => {
                let mut buf = vec![0; bytes];
                self.read_now(offset, &mut buf).map(|()| buf)
            }
            Fetched::Data(Err(error)) => {
                Err(error).at(|| format!("{} cannot be read", self.identity.label))
            }
        };
        Some(CompletedRead { number, result })
    }
}
