//! Keeping the image compact: copying live blocks out of mostly dead private segments, so that these segments
//! can be removed.
//!
//! Copies go to a data segment beside the log, the *target*. A worker reads and writes ([`super::move_job`]), so
//! that guests do not wait. The image's thread decides which blocks are live, and lets the map name the copies.
//! The log says nothing about that, because the content of the image does not change: until a checkpoint has
//! stored the new places, recovery finds the blocks at their old ones. The old segment is removed once a head is
//! durable that no longer names it. Segments that snapshots or clones may name are left to `gc`.
//!
//! Invariants:
//! - The map names a copy only if it still named the block that was copied.
//! - Copies are durable before a head names them ([`crate::journal::Journal::sync_beside`]).
//! - While the target is written, it counts as open, in heads too: nobody may empty, punch or remove it.

mod map_pages;
mod moves;
mod survey;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use marcot_format::segment::SegmentKind;
use marcot_format::{BLOCK_BYTES, SegmentIndex};
use marcot_store::DiskFile;

use super::Image;
use super::move_job::{Cut, MoveJob, PART_SLOTS};
use crate::device::Read;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::Group;
use crate::segment::SegmentName;

use map_pages::MapCompaction;
use moves::{Move, Target};
use survey::Survey;

/// Compaction starts when live slots are a smaller part of the private segments than this.
const LIVE_PERCENT_MIN: u64 = 78;
/// A writer waits for the worker once compaction is behind by this many slots (32 MiB). It is ahead by at most as many.
const OWED_SLOTS_MAX: i64 = 16 * PART_SLOTS as i64;
/// The counts are surveyed this many times while as much is written as may be dead before compaction begins.
const SURVEYS: u64 = 8;
/// In large images, the counts are surveyed at most this many times while as much is written as they hold.
const SURVEYS_LARGE: u64 = 256;

/// A segment being emptied.
struct Victim {
    index: SegmentIndex,
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    /// Slot where the next group to be looked at starts.
    slot: usize,
}

/// What compaction is doing.
#[derive(Default)]
pub(super) struct Compaction {
    /// The counts have changed enough to survey them again.
    pub due: bool,
    victim: Option<Victim>,
    target: Option<Target>,
    /// What the worker does.
    job: Option<MoveJob>,
    /// The blocks that it copies.
    moves: Vec<Move>,
    /// Some copies could not be written. Nothing may come behind them, because no walk over the groups goes on
    /// there.
    has_gap: bool,
    /// What it has to cut off the target before.
    cut: Option<Cut>,
    pub map: MapCompaction,
    /// Segments that could not be emptied, because a block in them is damaged.
    stuck: HashSet<SegmentIndex>,
    /// Slots written since the last survey.
    written: u64,
    /// Live slots by that survey.
    live: u64,
    /// Slots to be written before the next survey, if they are more than [`SURVEYS`] asks for.
    survey_after: u64,
    /// Slots that are looked at for each slot that a writer writes, in percent.
    price_percent: u64,
    /// Slots that compaction has to look at before it has kept up with the writers; negative where it is ahead.
    owed: i64,
    /// What the write that is being done has added to that.
    charged: i64,
}

impl Compaction {
    /// Counts what was appended to the log.
    pub(super) fn appended(&mut self, slots: u32) {
        self.written += u64::from(slots);
        self.map.appended(u64::from(slots));
        let charge = (u64::from(slots) * self.price_percent / 100) as i64;
        self.owed += charge;
        self.charged += charge;
    }

    /// Counts slots that were looked at. Work that was done ahead of the writers counts up to a limit: otherwise they
    /// would pay for nothing for a long time afterwards, while dead slots grow.
    fn looked_at(&mut self, slots: usize) {
        self.owed = (self.owed - slots as i64).max(-OWED_SLOTS_MAX);
    }

    /// Live slots of the data segments that were surveyed last.
    pub(super) fn live_slots(&self) -> u64 {
        self.live
    }

    /// True while a worker cuts off what lies behind the copies in a target.
    pub(super) fn is_cutting(&mut self) -> bool {
        self.cut.is_some() || self.job.as_mut().is_some_and(MoveJob::is_cutting)
    }

    /// Slot where the next copies go, where a segment for copies is open.
    pub(super) fn target_slot(&self) -> Option<u32> {
        self.target.as_ref().map(|target| target.slot)
    }

    /// True where this data segment is being emptied.
    fn is_emptying(&self, name: SegmentName) -> bool {
        self.victim.as_ref().is_some_and(|victim| victim.name == name)
    }

    /// The segment that copies go to.
    pub(super) fn open_name(&self) -> Option<SegmentName> {
        self.target.as_ref().map(|target| target.name)
    }

    /// A segment could not be emptied. It is left alone from now on, unless it may work later.
    fn give_up(&mut self, index: SegmentIndex, error: &Error) {
        if error.kind() != ErrorKind::NoSpace && !error.kind().is_obstacle() {
            self.stuck.insert(index);
        }
    }

    /// Waits for the worker, and forgets what it was doing.
    pub(super) fn abandon(&mut self) {
        self.victim = None;
        if let Some(job) = self.job.take() {
            self.has_gap |= job.wait().written.is_err();
        }
        if let Some(cut) = self.cut.take() {
            cut.make();
        }
        self.moves.clear();
    }
}

impl Image {
    /// Does one step of compaction; true if more is left to do. Where the worker is busy, it waits if `waits`
    /// is true, and else does nothing and returns false.
    pub(super) fn compact_step(&mut self, waits: bool) -> Result<bool> {
        let busy = self.state.compaction.job.as_mut().is_some_and(|job| !job.is_finished());
        if busy && !waits {
            return Ok(false);
        }
        if std::mem::take(&mut self.state.compaction.due) {
            self.look_for_work()?;
        }
        let Some(mut victim) = self.state.compaction.victim.take() else { return Ok(false) };
        // It may be gone by now: overwritten whole, or rolled back.
        let found = self.state.table.name(victim.index, self.identity.pool.files());
        let named = found.is_ok_and(|name| name == victim.name);
        match if named { self.move_some(&mut victim) } else { Ok(false) } {
            Ok(true) => {
                self.state.compaction.victim = Some(victim);
                return Ok(true);
            }
            Ok(false) => {}
            Err(error) => {
                self.state.compaction.abandon();
                self.state.compaction.give_up(victim.index, &error);
                return Err(error);
            }
        }
        self.state.compaction.abandon();
        self.state.compaction.due = true;
        let entry = self.state.table.get(victim.index, self.identity.pool.files());
        if named && entry.is_ok_and(|entry| entry.live > 0) {
            self.state.compaction.stuck.insert(victim.index);
        }
        Ok(true)
    }

    /// True while the worker copies blocks.
    pub(super) fn is_copying(&mut self) -> bool {
        self.state.compaction.job.as_mut().is_some_and(|job| !job.is_finished())
    }

    /// Lets compaction go on as writers make garbage, where the background work has fallen behind. A writer
    /// waits for the worker only where it is far behind.
    pub(super) fn pay_for_space(&mut self) -> Result<()> {
        let survey_after = self.state.compaction.survey_after.max(self.dead_slots_min() / SURVEYS);
        if self.state.compaction.written >= survey_after {
            self.state.compaction.written = 0;
            self.look_for_work()?;
        }
        self.pay_for_map()?;
        // A write waits for as much work as it has made, and not for all that is owed.
        let mut charge = std::mem::take(&mut self.state.compaction.charged);
        while self.state.compaction.owed > 0 {
            let owed = self.state.compaction.owed;
            let waits = charge > 0 && owed >= OWED_SLOTS_MAX;
            if !waits && self.is_copying() {
                return Ok(());
            }
            let stepped = self.compact_step(waits);
            if !matches!(stepped, Ok(true)) {
                // Also where there is no space: the next write must not try again at once.
                self.state.compaction.owed = 0;
            }
            stepped?;
            charge -= owed - self.state.compaction.owed;
        }
        Ok(())
    }

    fn dead_slots_min(&self) -> u64 {
        self.limits().dead_bytes_min / BLOCK_BYTES
    }

    fn look_for_work(&mut self) -> Result<()> {
        let dead_min = self.dead_slots_min();
        let survey = self.survey(SegmentKind::Data)?;
        self.state.compaction.live = survey.live;
        self.state.compaction.price_percent = survey.price_percent(dead_min);
        // A survey takes longer the more segments there are.
        self.state.compaction.survey_after = survey.used / SURVEYS_LARGE;
        // A map segment that cannot be opened must not keep data segments from being emptied.
        let chosen = self.choose_victim(&survey);
        chosen.and(self.data_surveyed(survey.used))
    }

    fn choose_victim(&mut self, survey: &Survey) -> Result<()> {
        let wasteful = survey.wasteful(self.dead_slots_min(), LIVE_PERCENT_MIN);
        if self.state.compaction.victim.is_none()
            && wasteful
            && let Some((index, name, ..)) = survey.emptiest
        {
            let file = self.open_victim(index, name)?;
            self.empty(index, name, file);
        }
        Ok(())
    }

    /// Opens a segment that is to be emptied. One that cannot be opened is left alone from now on: the next survey chooses
    /// another.
    fn open_victim(&mut self, index: SegmentIndex, name: SegmentName) -> Result<Arc<dyn DiskFile>> {
        let opened = self.identity.pool.files().get(name);
        if let Err(error) = &opened {
            self.state.compaction.give_up(index, error);
        }
        opened
    }

    /// Compacts until nothing more is worth it, then makes the result durable.
    pub(super) fn compact_fully(&mut self) -> Result<()> {
        self.begin_writing()?;
        self.checkpoint()?;
        self.state.compaction.due = true;
        while self.compact_step(true)? {
            self.keep_within_bounds()?;
        }
        self.close_target();
        self.checkpoint()
    }

    /// Begins to empty a segment.
    pub(super) fn empty(
        &mut self,
        index: SegmentIndex,
        name: SegmentName,
        file: Arc<dyn DiskFile>,
    ) {
        self.state.compaction.abandon();
        self.state.compaction.victim = Some(Victim { index, name, file, slot: 1 });
    }

    /// True while a segment is being emptied.
    pub(super) fn is_emptying(&self) -> bool {
        self.state.compaction.victim.is_some()
    }

    /// Appends the present content of blocks, at most as many as fit into a group. Blocks that are damaged
    /// stay where they are; returns the first of them. Where one cannot be looked at now, nothing is appended.
    pub(super) fn copy_blocks(&mut self, blocks: &[u64]) -> Result<Option<u64>> {
        if blocks.is_empty() {
            return Ok(None);
        }
        self.begin_writing()?;
        let mut data = vec![0; blocks.len() * BLOCK_BYTES as usize];
        let mut reads: Vec<Read<'_>> = data
            .chunks_exact_mut(BLOCK_BYTES as usize)
            .zip(blocks)
            .map(|(buf, block)| Read::new(block * BLOCK_BYTES, buf))
            .collect();
        self.read_checked(&mut reads);
        let is_obstacle =
            |result: &Result<()>| result.as_ref().is_err_and(|error| error.kind().is_obstacle());
        if let Some(read) = reads.iter_mut().find(|read| is_obstacle(&read.result)) {
            // The block may be intact.
            std::mem::replace(&mut read.result, Ok(()))?;
        }
        let intact: Vec<bool> = reads.iter().map(|r| r.result.is_ok()).collect();
        let mut group = Group::default();
        let mut unreadable = None;
        for ((block, bytes), intact) in
            blocks.iter().zip(data.chunks_exact(BLOCK_BYTES as usize)).zip(intact)
        {
            // A damaged block stays where it is: a copy would get a new checksum, which would hide the
            // damage.
            if intact {
                self.state.prepare(*block, 1)?;
                group.write(*block, Cow::Borrowed(bytes));
            } else {
                unreadable = unreadable.or(Some(*block));
            }
        }
        self.append(group)?;
        Ok(unreadable)
    }
}
