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

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use marcot_format::address::MAP_UNIT_BYTES;
use marcot_format::group::{
    GROUP_BESIDE_LOG, GROUP_DATA_BLOCKS_MAX, GROUP_RECORDS_MAX, GroupHeader, Record, RecordKind,
    header_blocks,
};
use marcot_format::page::{PAGE_READ_BYTES, decode_page};
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentKind};
use marcot_format::table::SegmentEntry;
use marcot_format::{
    BLOCK_BYTES, BlockAddress, MapEntry, MapUnit, SEGMENT_SLOTS, SegmentIndex, Slot,
};
use marcot_store::DiskFile;

use super::Image;
use super::move_job::{CopiesToWrite, Cut, MoveJob, MoveWork, PART_SLOTS, Part, PartToRead};
use crate::device::Read;
use crate::error::{ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};
use crate::journal::Group;
use crate::map::position;
use crate::segment::SegmentName;

/// Compaction starts when live slots are a smaller part of the private segments than this.
const LIVE_PERCENT_MIN: u64 = 79;
/// Where live slots are a smaller part than this, every write does a part of the compaction
/// ([`Image::pay_for_space`]).
const LIVE_PERCENT_PAID: u64 = 77;
/// Dead bytes of map segments that are left alone: one part in this many of `dead_bytes_min`.
const DEAD_MAP_PART: u64 = 16;
/// The same for an idle image: 1 MiB with the default limits.
const DEAD_MAP_IDLE_PART: u64 = 64;
/// Pages of a map segment that are looked at in one go while the image is in use: a guest waits meanwhile.
const MAP_PAGES_MAX: usize = 128;
/// In an idle image, live map pages are moved where they are a smaller part of their segments than this.
const LIVE_PERCENT_IDLE: u64 = 50;
/// A writer waits for the worker once compaction is behind by this many slots (32 MiB).
const OWED_SLOTS_MAX: i64 = 16 * PART_SLOTS as i64;
/// First slot of copies in a target. The slot before is the journal's: see
/// [`crate::journal::Journal::take_segment_beside`].
const COPIES_SLOT: u32 = 2;
/// The counts are surveyed this many times while as much is written as may be dead before compaction begins.
const SURVEYS: u64 = 8;
/// In large images, the counts are surveyed at most this many times while as much is written as they hold.
const SURVEYS_LARGE: u64 = 256;
/// Most slots that are looked at for each slot that a writer writes, in percent: writers must go on.
const PRICE_PERCENT_MAX: u64 = 800;

/// A segment being emptied.
struct Victim {
    index: SegmentIndex,
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    /// Slot where the next group to be looked at starts.
    slot: usize,
}

/// The segment that copies go to.
struct Target {
    index: SegmentIndex,
    name: SegmentName,
    epoch: u64,
    file: Arc<dyn DiskFile>,
    /// Slot where the next group starts.
    slot: u32,
}

/// A block that is moved.
struct Move {
    block: u64,
    from: BlockAddress,
    to: MapEntry,
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
    /// Table index of a map segment, and the offset in bytes of its page that is to be looked at next.
    map_at: Option<(SegmentIndex, u64)>,
    /// Table index of a map segment whose live pages are all dirty by now, and the version of the head then: the
    /// next checkpoint moves them.
    map_done: Option<(SegmentIndex, u64)>,
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
        let charge = (u64::from(slots) * self.price_percent / 100) as i64;
        self.owed += charge;
        self.charged += charge;
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

    /// The segment that copies go to.
    pub(super) fn open_name(&self) -> Option<SegmentName> {
        self.target.as_ref().map(|target| target.name)
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

/// Live and used slots of the private segments of a series, and the emptiest of these segments. Segments with
/// nothing live are left out: the next checkpoint removes them.
#[derive(Default)]
struct Survey {
    live: u64,
    used: u64,
    emptiest: Option<(SegmentIndex, SegmentName, u64, u64)>,
}

impl Survey {
    fn add(&mut self, index: SegmentIndex, name: SegmentName, live: u64, used: u64) {
        if live == 0 {
            return;
        }
        self.live += live;
        self.used += used;
        let emptier = self.emptiest.is_none_or(|(.., l, u)| live * u < l * used);
        if live < used && emptier {
            self.emptiest = Some((index, name, live, used));
        }
    }

    fn wasteful(&self, dead_min: u64, live_percent: u64) -> bool {
        // Counts of a damaged table may say anything.
        let dead = self.used.saturating_sub(self.live);
        dead >= dead_min && self.live * 100 < self.used * live_percent
    }

    /// Slots that have to be looked at for each slot that a writer writes, in percent, so that the dead slots do
    /// not grow. Emptying a segment of `used` slots gives back the slots that are not live. 20 % more than that
    /// are looked at, to catch up.
    fn price_percent(&self, dead_min: u64) -> u64 {
        match self.emptiest {
            Some((.., live, used)) if self.wasteful(dead_min, LIVE_PERCENT_PAID) => {
                (used * 120 / (used - live)).min(PRICE_PERCENT_MAX)
            }
            _ => 0,
        }
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
                if !matches!(error.kind(), ErrorKind::NoSpace) {
                    self.state.compaction.stuck.insert(victim.index);
                }
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
        if self.checkpoint_job.is_none() {
            self.compact_map()?;
        }
        let survey = self.survey(SegmentKind::Data)?;
        self.state.compaction.live = survey.live;
        self.state.compaction.price_percent = survey.price_percent(dead_min);
        // A survey takes longer the more segments there are.
        self.state.compaction.survey_after = survey.used / SURVEYS_LARGE;
        if self.state.compaction.victim.is_some() || !survey.wasteful(dead_min, LIVE_PERCENT_MIN) {
            return Ok(());
        }
        if let Some((index, name, ..)) = survey.emptiest {
            let file = self.identity.pool.files().get(name)?;
            self.empty(index, name, file);
        }
        Ok(())
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

    fn survey(&mut self, kind: SegmentKind) -> Result<Survey> {
        let mut survey = Survey::default();
        let slots_max = u64::from(self.limits().segment_slots - 1);
        if kind == SegmentKind::Data {
            survey.used = self.journal.spare_count() * slots_max;
        }
        for (index, name, entry) in self.closed_private_segments(kind)? {
            // Group headers take slots too, and are removed with their segment. So a closed data segment
            // counts as full.
            let used = u64::from(entry.used);
            let used = if kind == SegmentKind::Data { used.max(slots_max) } else { used };
            survey.add(index, name, u64::from(entry.live), used);
        }
        Ok(survey)
    }

    /// The private segments of a kind that are not appended to, without those that could not be emptied.
    pub(super) fn closed_private_segments(
        &mut self,
        kind: SegmentKind,
    ) -> Result<Vec<(SegmentIndex, SegmentName, SegmentEntry)>> {
        let files = self.identity.pool.files();
        let open = self.open_segments();
        let mut found = Vec::new();
        self.state.table.for_each(files, |index, entry, name| {
            if name.kind == kind && !open.contains(&name) {
                found.push((index, name, entry));
            }
            Ok(())
        })?;
        found.retain(|(index, name, _)| {
            !self.state.compaction.stuck.contains(index) && self.head.is_private(name)
        });
        Ok(found)
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

    /// Takes in what the worker has done, and has it do more; false at the end of the segment.
    fn move_some(&mut self, victim: &mut Victim) -> Result<bool> {
        let mut work = MoveWork::default();
        if let Some(job) = self.state.compaction.job.take() {
            let outcome = job.wait();
            let label = &self.identity.label;
            self.state.compaction.has_gap |= outcome.written.is_err();
            outcome.written.at(|| format!("cannot copy blocks of {label}"))?;
            work.buffer = outcome.buffer;
            self.finish_moves()?;
            if let Some(part) = outcome.part {
                let part = part.at(|| format!("cannot read segment {}", victim.name))?;
                if part.groups.is_empty() {
                    return Ok(false);
                }
                victim.slot += part.blocks;
                self.state.compaction.owed -= part.blocks as i64;
                work.write = self.begin_moves(victim, part)?;
            }
        }
        // No group of the segment may be on its way to the medium.
        let all = Slot(0)..Slot(SEGMENT_SLOTS);
        self.journal.await_slots(victim.index, &all, &mut self.in_flight);
        work.cut = self.state.compaction.cut.take();
        work.read = Some(PartToRead {
            file: Arc::clone(&victim.file),
            sequence: victim.name.sequence,
            slot: victim.slot,
        });
        let workers = Arc::clone(&self.identity.pool.files().world().workers);
        self.state.compaction.job = Some(MoveJob::start(&*workers, work));
        Ok(true)
    }

    /// Finds the live blocks of a part, and gives their copies places.
    fn begin_moves(&mut self, victim: &Victim, part: Part) -> Result<Option<CopiesToWrite>> {
        let mut live = Vec::new();
        for (at, header) in &part.groups {
            self.find_live(victim, &part, *at, header, &mut live)?;
        }
        if live.is_empty() {
            return Ok(None);
        }
        let (author, groups) = (self.identity.id.0, in_groups(&live));
        let slots: u32 =
            groups.iter().map(|group| group.header_slots() + group.blocks() as u32).sum();
        let target = self.target_for(slots)?;
        let (offset, mut slot) = (u64::from(target.slot) * BLOCK_BYTES, target.slot);
        target.slot += slots;
        let (mut moves, mut written) = (Vec::with_capacity(live.len()), Vec::new());
        for group in groups {
            slot += group.header_slots();
            let mut blocks = Vec::with_capacity(group.blocks());
            for block in &live[group.live.clone()] {
                let address = BlockAddress::of_block(target.index, Slot(slot));
                let to = MapEntry { address, crc: block.crc };
                moves.push(Move { block: block.block, from: block.address, to });
                blocks.push(block.at);
                slot += 1;
            }
            let header = GroupHeader {
                author,
                epoch: target.epoch,
                sequence: target.name.sequence,
                group: GROUP_BESIDE_LOG,
                durable_below: 0,
                crcs: live[group.live.clone()].iter().map(|block| block.crc).collect(),
                records: group.records,
            };
            let mut bytes = Vec::new();
            header.encode_into(&mut bytes);
            written.push((bytes, blocks));
        }
        let file = Arc::clone(&target.file);
        self.state.compaction.moves = moves;
        Ok(Some(CopiesToWrite { file, offset, groups: written, bytes: part.bytes }))
    }

    /// Lets the map name the copies that were written, of those blocks that have not changed meanwhile.
    fn finish_moves(&mut self) -> Result<()> {
        let moves = std::mem::take(&mut self.state.compaction.moves);
        let Some(target) = self.state.compaction.target.as_ref().filter(|_| !moves.is_empty())
        else {
            return Ok(());
        };
        let (name, index, file) = (target.name, target.index, Arc::clone(&target.file));
        // Even where something fails below, some copies may be named.
        self.state.changed = true;
        self.journal.wrote_beside(name, file, moves.len() as u64 * BLOCK_BYTES);
        let files = Arc::clone(self.identity.pool.files());
        self.state.table.count(index, 0, moves.len() as u32, &files)?;
        for Move { block, from, to } in moves {
            self.state.prepare(block, 1)?;
            let (map, mut source) = self.state.parts();
            let entry = map.leaf(block, &mut source)?.map(|leaf| leaf[position(block, 0)]);
            let same = entry.is_some_and(|entry| { entry.address } == from);
            if same || fault::is(Fault::CompactDead) {
                // The copy is counted before the map names it: a block may be released at once.
                self.state.table.count(index, 1, 0, &files)?;
                let (map, mut source) = self.state.parts();
                map.set_run(block, &[to], &mut source)?;
            }
        }
        Ok(())
    }

    /// A target with room for that many slots.
    fn target_for(&mut self, slots: u32) -> Result<&mut Target> {
        self.begin_writing()?;
        let epoch = self.head.epoch;
        let slots_max = self.limits().segment_slots;
        let fits = |target: &Target| {
            let room = target.slot == COPIES_SLOT || target.slot + slots <= slots_max;
            room && target.slot + slots <= SEGMENT_SLOTS && target.epoch == epoch
        };
        let has_gap = self.state.compaction.has_gap;
        if has_gap || !self.state.compaction.target.as_ref().is_some_and(fits) {
            self.state.compaction.cut = self.end_target();
            let (name, file, index) = self.with_free_names(&[SegmentKind::Data], |image| {
                let Self { journal, series, state, .. } = image;
                journal.take_segment_beside(epoch, series, &mut state.table)
            })?;
            self.state.compaction.target =
                Some(Target { index, name, epoch, file, slot: COPIES_SLOT });
        }
        match &mut self.state.compaction.target {
            Some(target) => Ok(target),
            None => fail(ErrorKind::Io, "no segment for copies"),
        }
    }

    /// Nothing is copied to the present target any more.
    pub(super) fn close_target(&mut self) {
        if let Some(cut) = self.end_target() {
            cut.make();
        }
    }

    /// As [`Self::close_target`], but what an earlier segment left behind the copies is not cut off yet.
    fn end_target(&mut self) -> Option<Cut> {
        self.state.compaction.has_gap = false;
        let target = self.state.compaction.target.take()?;
        let Self { identity, state, .. } = self;
        state.table.close_segment(target.index, identity.pool.files(), &identity.label);
        let bytes = u64::from(target.slot) * BLOCK_BYTES;
        let cut = Cut { file: target.file, bytes };
        let limits = self.limits();
        (target.slot + limits.cut_slots_min() <= limits.segment_slots).then_some(cut)
    }

    /// Adds those blocks of a group that the map still names. `start`: where the group starts in the part.
    fn find_live(
        &mut self,
        victim: &Victim,
        part: &Part,
        start: usize,
        header: &GroupHeader,
        live: &mut Vec<LiveBlock>,
    ) -> Result<()> {
        let mut at = start + header.header_blocks();
        for record in header.records.iter().filter(|r| r.kind == RecordKind::Write) {
            for block in record.block..record.block + record.count {
                let address = BlockAddress::of_block(victim.index, Slot((part.slot + at) as u32));
                let crc = header.crcs[at - start - header.header_blocks()];
                let (map, mut source) = self.state.parts();
                let entry = map.leaf(block, &mut source)?.map(|leaf| leaf[position(block, 0)]);
                let current =
                    |e: &MapEntry| { e.address } == address || fault::is(Fault::CompactDead);
                if let Some(entry) = entry.filter(current) {
                    let right = entry.crc == crc && !part.damaged.contains(&at);
                    if right || fault::is(Fault::CompactDead) {
                        live.push(LiveBlock { block, at, address: entry.address, crc });
                    } else {
                        // It stays where it is: a copy would hide the damage.
                        let (image, segment) = (&self.identity.label, &victim.name);
                        let slot = part.slot + at;
                        tracing::error!(%image, block, %segment, slot, "a block is damaged");
                    }
                }
                at += 1;
            }
        }
        Ok(())
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

    /// Has the next checkpoint move the live pages of the emptiest map segment, where map segments are dead
    /// for the most part. An open map segment that is mostly dead is closed first.
    pub(super) fn compact_map_while_idle(&mut self) -> Result<()> {
        let dead_min = self.limits().dead_bytes_min / DEAD_MAP_IDLE_PART / MAP_UNIT_BYTES;
        if let Some(index) = self.state.pages.open_map_index() {
            let entry = self.state.table.get(index, self.identity.pool.files())?;
            let (live, used) = (u64::from(entry.live), u64::from(entry.used));
            if used >= (2 * live).max(live + dead_min) {
                self.state.close_map_segment(&self.identity);
            }
        }
        let survey = self.survey(SegmentKind::Map)?;
        if survey.wasteful(dead_min, LIVE_PERCENT_IDLE) {
            self.compact_map_segment(&survey, usize::MAX)?;
            self.state.changed = true;
        }
        Ok(())
    }

    /// As [`Self::compact_map_while_idle`], for an image in use: the open segment is left alone, and more may
    /// be dead before anything is moved.
    fn compact_map(&mut self) -> Result<()> {
        let survey = self.survey(SegmentKind::Map)?;
        let dead_min = self.limits().dead_bytes_min / DEAD_MAP_PART / MAP_UNIT_BYTES;
        match survey.wasteful(dead_min, LIVE_PERCENT_MIN) {
            true => self.compact_map_segment(&survey, MAP_PAGES_MAX),
            false => Ok(()),
        }
    }

    /// Makes the live pages of the emptiest map segment dirty, so that the next checkpoint moves them. Takes
    /// `pages_max` at a time, or as many as the memory for pages allows, and goes on at `map_at`.
    fn compact_map_segment(&mut self, survey: &Survey, pages_max: usize) -> Result<()> {
        let Some((index, name, ..)) = survey.emptiest else { return Ok(()) };
        if self.state.compaction.map_done == Some((index, self.head.version)) {
            return Ok(());
        }
        let file = self.identity.pool.files().get(name)?;
        let mut offset = match self.state.compaction.map_at.take() {
            Some((segment, offset)) if segment == index => offset,
            _ => SEGMENT_HEADER_BYTES as u64,
        };
        let memory_max = self.limits().map_memory_bytes_soft();
        let mut bytes = vec![0; PAGE_READ_BYTES];
        let mut pages = 0;
        loop {
            self.evict(memory_max);
            if self.state.memory_bytes() > memory_max || pages == pages_max {
                self.state.compaction.map_at = Some((index, offset));
                return Ok(());
            }
            pages += 1;
            let n =
                file.read_at(offset, &mut bytes).at(|| format!("cannot read segment {name}"))?;
            if n == 0 {
                self.state.compaction.map_done = Some((index, self.head.version));
                return Ok(());
            }
            let Ok((page, _)) = decode_page(&bytes[..n]) else {
                offset += MAP_UNIT_BYTES;
                continue;
            };
            let address = BlockAddress::of_page(index, MapUnit::at(offset));
            let (map, mut source) = self.state.parts();
            map.rewrite_page(address, u32::from(page.level), page.base, &mut source)?;
            let length = marcot_format::page::peek_page(&bytes[..n]).unwrap_or(1) as u64;
            offset += length.div_ceil(MAP_UNIT_BYTES) * MAP_UNIT_BYTES;
        }
    }
}

/// A block to be copied.
struct LiveBlock {
    block: u64,
    /// Where it lies in the part, in blocks.
    at: usize,
    address: BlockAddress,
    crc: u32,
}

/// A group of copies.
struct CopyGroup {
    records: Vec<Record>,
    /// Its blocks, among those to be copied.
    live: Range<usize>,
}

impl CopyGroup {
    fn blocks(&self) -> usize {
        self.live.len()
    }

    fn header_slots(&self) -> u32 {
        header_blocks(self.records.len(), self.blocks()) as u32
    }
}

/// Divides blocks into groups, as many as are needed.
fn in_groups(live: &[LiveBlock]) -> Vec<CopyGroup> {
    let mut groups: Vec<CopyGroup> = Vec::new();
    for (i, LiveBlock { block, .. }) in live.iter().enumerate() {
        let full =
            |group: &CopyGroup| group.blocks() == GROUP_RECORDS_MAX.min(GROUP_DATA_BLOCKS_MAX);
        if groups.last().is_none_or(full) {
            groups.push(CopyGroup { records: Vec::new(), live: i..i });
        }
        let Some(group) = groups.last_mut() else { continue };
        group.live.end = i + 1;
        match group.records.last_mut() {
            Some(record) if record.block + record.count == *block => record.count += 1,
            _ => group.records.push(Record { kind: RecordKind::Write, block: *block, count: 1 }),
        }
    }
    groups
}
