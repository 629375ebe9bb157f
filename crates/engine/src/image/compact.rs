//! Keeping the log compact: copying live blocks out of mostly dead private segments, so that the
//! segments can go.
//!
//! A copy is an ordinary group of the log, so recovery knows nothing of it. The segment goes when
//! a head is durable that no longer names it. Segments that snapshots or clones may name are left
//! to `gc`.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use marcot_format::address::MAP_UNIT_BYTES;
use marcot_format::group::{GroupHeader, RecordKind};
use marcot_format::page::{PAGE_READ_BYTES, decode_page};
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentKind};
use marcot_format::table::SegmentEntry;
use marcot_format::{
    BLOCK_BYTES, BlockAddress, MapEntry, MapUnit, SEGMENT_SLOTS, SegmentIndex, Slot, crc32c,
};
use marcot_store::DiskFile;

use super::Image;
use crate::device::Read;
use crate::error::{ErrorKind, IoContext, Result};
use crate::fault::{self, Fault};
use crate::journal::Group;
use crate::map::position;
use crate::segment::SegmentName;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Compaction starts when live slots are a smaller part of the private segments than this.
const LIVE_PERCENT_MIN: u64 = 80;
/// Where live slots are a smaller part than this, every write pays for the space that it takes.
const LIVE_PERCENT_PAID: u64 = 77;
/// Dead map pages that are left alone, as a part of the dead data that is.
const DEAD_MAP_PART: u64 = 16;
/// The same for an image at rest: a MiB, if nothing else was asked for.
const DEAD_MAP_IDLE_PART: u64 = 64;
/// At rest, live map pages are moved that are a smaller part of their segments than this.
const LIVE_PERCENT_IDLE: u64 = 50;
/// Slots of a segment that one step looks at, unless a group is larger.
const STEP_SLOTS: usize = 64;
/// Slots of a segment that the system is asked to read before they are looked at (1 MiB).
const AHEAD_SLOTS: usize = 256;
/// How often the counts are looked at while as much is written as may be dead before compaction begins.
const LOOKS: u64 = 8;
/// The same for large images, while all that they hold is written once.
const LOOKS_LARGE: u64 = 256;
/// Slots looked at for a slot written, at the most, in percent: writers must go on.
const PRICE_PERCENT_MAX: u64 = 800;

/// A segment being emptied.
struct Victim {
    index: SegmentIndex,
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    /// Where the next group to be looked at starts.
    slot: usize,
    /// Up to there the system has been asked to read.
    ahead: usize,
}

impl Victim {
    /// Keeps the medium ahead of the looks, so that none of them waits for it.
    fn read_ahead(&mut self) {
        while self.ahead < self.slot + AHEAD_SLOTS {
            let bytes = AHEAD_SLOTS as u64 * BLOCK_BYTES;
            self.file.advise(self.ahead as u64 * BLOCK_BYTES, bytes);
            self.ahead += AHEAD_SLOTS;
        }
    }
}

/// What compaction is doing.
#[derive(Default)]
pub(super) struct Compaction {
    /// Counts have changed enough to look for a victim.
    pub due: bool,
    victim: Option<Victim>,
    /// Table index of a map segment, and where the next of its pages is to be looked at.
    map_at: Option<(SegmentIndex, u64)>,
    /// Segments that could not be emptied, because a block in them is damaged.
    stuck: HashSet<SegmentIndex>,
    /// Slots written since the last look at the counts.
    written: u64,
    /// So many of them before the next one, if that is more than [`LOOKS`] asks for.
    look_after: u64,
    /// Slots that a writer looks at for each slot that it writes, in percent.
    price_percent: u64,
    /// Slots that writers have yet to look at.
    owed: u64,
    buffer: Vec<u8>,
}

impl Compaction {
    /// Counts what was appended to the log.
    pub(super) fn appended(&mut self, slots: u32) {
        self.written += u64::from(slots);
        self.owed += u64::from(slots) * self.price_percent / 100;
    }
}

/// Live and taken slots of the private segments of a series, and the emptiest of them. Those with
/// nothing live are left out: they go with the next checkpoint.
#[derive(Default)]
struct Survey {
    live: u64,
    used: u64,
    emptiest: Option<(SegmentIndex, SegmentName, u64, u64)>,
}

impl Survey {
    fn add(&mut self, index: SegmentIndex, name: SegmentName, live: u32, used: u32) {
        let (live, used) = (u64::from(live), u64::from(used));
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

    /// What keeps the dead from growing: emptying a segment of `used` slots gives back those that
    /// are not live, and a little more is asked for, to catch up.
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
    /// Does one piece of compaction; true if more waits.
    pub(super) fn compact_step(&mut self) -> Result<bool> {
        if std::mem::take(&mut self.state.compaction.due) {
            self.look_for_work()?;
        }
        let Some(mut victim) = self.state.compaction.victim.take() else { return Ok(false) };
        self.journal.await_slots(
            victim.index,
            &(Slot(0)..Slot(SEGMENT_SLOTS)),
            &mut self.in_flight,
        );
        let files = Arc::clone(self.identity.pool.files());
        // It may be gone by now: overwritten whole, or rolled back.
        let named =
            self.state.table.name(victim.index, &files).is_ok_and(|name| name == victim.name);
        match if named { self.move_some(&mut victim) } else { Ok(false) } {
            Ok(true) => {
                self.state.compaction.victim = Some(victim);
                return Ok(true);
            }
            Ok(false) => {}
            Err(error) => {
                if !matches!(error.kind(), ErrorKind::NoSpace) {
                    self.state.compaction.stuck.insert(victim.index);
                }
                return Err(error);
            }
        }
        self.state.compaction.due = true;
        if named && self.state.table.get(victim.index, &files).is_ok_and(|entry| entry.live > 0) {
            self.state.compaction.stuck.insert(victim.index);
        }
        Ok(true)
    }

    /// Lets a writer do as much of compaction as keeps what is dead from growing, where background
    /// work has fallen behind.
    pub(super) fn pay_for_space(&mut self) -> Result<()> {
        let look_after = self.state.compaction.look_after.max(self.dead_slots_min() / LOOKS);
        if self.state.compaction.written >= look_after {
            self.state.compaction.written = 0;
            self.look_for_work()?;
        }
        while self.state.compaction.owed >= STEP_SLOTS as u64 {
            self.state.compaction.owed -= STEP_SLOTS as u64;
            let stepped = self.compact_step();
            if !matches!(stepped, Ok(true)) {
                // Also where there is no space: not every write is to try again.
                self.state.compaction.owed = 0;
            }
            stepped?;
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
        self.state.compaction.price_percent = survey.price_percent(dead_min);
        // A look takes as long as there are segments.
        self.state.compaction.look_after = survey.used / LOOKS_LARGE;
        if self.state.compaction.victim.is_some() || !survey.wasteful(dead_min, LIVE_PERCENT_MIN) {
            return Ok(());
        }
        match survey.emptiest {
            Some((index, name, ..)) => {
                let file = self.identity.pool.files().get(name)?;
                self.empty(index, name, file);
            }
            None => self.state.compaction.buffer = Vec::new(),
        }
        Ok(())
    }

    /// Compacts until nothing more is worth it, then makes the result durable.
    pub(super) fn compact_fully(&mut self) -> Result<()> {
        self.begin_writing()?;
        self.checkpoint()?;
        self.state.compaction.due = true;
        while self.compact_step()? {}
        self.checkpoint()
    }

    fn survey(&mut self, kind: SegmentKind) -> Result<Survey> {
        let mut survey = Survey::default();
        for (index, name, entry) in self.closed_private_segments(kind)? {
            // Headers of groups take slots too, and go with the groups.
            let used = if kind == SegmentKind::Data { SEGMENT_SLOTS - 1 } else { entry.used };
            survey.add(index, name, entry.live, used);
        }
        Ok(survey)
    }

    /// The private segments of a kind that are not appended to, without those that could not be emptied.
    pub(super) fn closed_private_segments(
        &mut self,
        kind: SegmentKind,
    ) -> Result<Vec<(SegmentIndex, SegmentName, SegmentEntry)>> {
        let files = Arc::clone(self.identity.pool.files());
        let open_data = self.journal.open_segment().map(|open| open.name);
        let open_map = self.state.pages.open_map();
        let mut found = Vec::new();
        self.state.table.for_each(&files, |index, entry, name| {
            if name.kind == kind && Some(name) != open_data && Some(name) != open_map {
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
        let mut victim = Victim { index, name, file, slot: 1, ahead: 0 };
        victim.read_ahead();
        self.state.compaction.victim = Some(victim);
    }

    /// True while a segment is being emptied.
    pub(super) fn is_emptying(&self) -> bool {
        self.state.compaction.victim.is_some()
    }

    /// Writes the live blocks of the next groups of a segment again; false at its end.
    fn move_some(&mut self, victim: &mut Victim) -> Result<bool> {
        let mut bytes = std::mem::take(&mut self.state.compaction.buffer);
        let (from, file) = (victim.slot as u64 * BLOCK_BYTES, Arc::clone(&victim.file));
        let read = |bytes: &mut Vec<u8>, slots: usize| {
            bytes.resize(slots * BLOCK, 0);
            let n = file.read_at(from, bytes).at(|| "cannot read a segment".to_owned())?;
            bytes.truncate(n);
            Ok(())
        };
        read(&mut bytes, STEP_SLOTS)?;
        let Some(first) = header_at(&bytes, 0) else { return Ok(false) };
        if first.blocks() * BLOCK > bytes.len() {
            read(&mut bytes, first.blocks())?;
        }
        let mut live = Vec::new();
        let mut at = 0;
        while let Some(header) = header_at(&bytes, at) {
            let next = at + header.blocks();
            if next * BLOCK > bytes.len() {
                break;
            }
            self.find_live(victim, &header, at, &bytes, &mut live)?;
            at = next;
        }
        // Whatever fails from here on, the next step goes on behind it.
        victim.slot += at;
        victim.read_ahead();
        let written = (self.state.compaction.written, self.state.compaction.owed);
        let moved = self.append_copies(&live, &bytes);
        (self.state.compaction.written, self.state.compaction.owed) = written;
        self.state.compaction.buffer = bytes;
        moved.map(|()| at > 0)
    }

    /// Adds the blocks of a group that the map still finds there, and where they lie in `bytes`.
    fn find_live(
        &mut self,
        victim: &Victim,
        header: &GroupHeader,
        at: usize,
        bytes: &[u8],
        live: &mut Vec<(u64, usize)>,
    ) -> Result<()> {
        let mut at = at + header.header_blocks();
        for record in header.records.iter().filter(|r| r.kind == RecordKind::Write) {
            for block in record.block..record.block + record.count {
                let address = BlockAddress::of_block(victim.index, Slot((victim.slot + at) as u32));
                let (map, mut source) = self.state.parts();
                let entry = map.leaf(block, &mut source)?.map(|leaf| leaf[position(block, 0)]);
                let current =
                    |e: &MapEntry| { e.address } == address || fault::is(Fault::CompactDead);
                if let Some(entry) = entry.filter(current) {
                    let right = crc32c(&bytes[at * BLOCK..(at + 1) * BLOCK]) == entry.crc;
                    if right || fault::is(Fault::CompactDead) {
                        live.push((block, at * BLOCK));
                    } else {
                        // It stays where it is: a copy would make the damage look whole.
                        let (image, segment) = (&self.identity.label, &victim.name);
                        let slot = victim.slot + at;
                        tracing::error!(%image, block, %segment, slot, "a block is damaged");
                    }
                }
                at += 1;
            }
        }
        Ok(())
    }

    fn append_copies(&mut self, live: &[(u64, usize)], bytes: &[u8]) -> Result<()> {
        if live.is_empty() {
            return Ok(());
        }
        self.begin_writing()?;
        let mut group = Group::default();
        for (block, at) in live {
            if group.room_blocks() == 0 {
                self.append(std::mem::take(&mut group))?;
            }
            self.state.prepare(*block, 1)?;
            group.write(*block, Cow::Borrowed(&bytes[*at..*at + BLOCK]));
        }
        self.append(group)
    }

    /// Appends the present content of blocks, at most a group of them. Returns the first that
    /// cannot be read, and so stays where it is.
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
        let intact: Vec<bool> = reads.iter().map(|r| r.result.is_ok()).collect();
        let mut group = Group::default();
        let mut unreadable = None;
        for ((block, bytes), intact) in
            blocks.iter().zip(data.chunks_exact(BLOCK_BYTES as usize)).zip(intact)
        {
            // A damaged block stays where it is: a copy would make the damage look whole.
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

    /// Has the next checkpoint move the live pages of map segments that are dead for the most part,
    /// also of the open one.
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
            self.compact_map_segment(&survey)?;
            self.state.changed = true;
        }
        Ok(())
    }

    /// Makes the pages of mostly dead map segments dirty, so that the next checkpoint moves them; as
    /// many at a time as the memory for the map takes.
    fn compact_map(&mut self) -> Result<()> {
        let survey = self.survey(SegmentKind::Map)?;
        let dead_min = self.limits().dead_bytes_min / DEAD_MAP_PART / MAP_UNIT_BYTES;
        match survey.wasteful(dead_min, LIVE_PERCENT_MIN) {
            true => self.compact_map_segment(&survey),
            false => Ok(()),
        }
    }

    /// The same, for the emptiest segment.
    fn compact_map_segment(&mut self, survey: &Survey) -> Result<()> {
        let Some((index, name, ..)) = survey.emptiest else { return Ok(()) };
        let file = self.identity.pool.files().get(name)?;
        let mut offset = match self.state.compaction.map_at.take() {
            Some((segment, offset)) if segment == index => offset,
            _ => SEGMENT_HEADER_BYTES as u64,
        };
        let memory_max = self.limits().map_memory_bytes_soft();
        let mut bytes = vec![0; PAGE_READ_BYTES];
        loop {
            self.evict(memory_max);
            if self.state.memory_bytes() > memory_max {
                self.state.compaction.map_at = Some((index, offset));
                return Ok(());
            }
            let n =
                file.read_at(offset, &mut bytes).at(|| format!("cannot read segment {name}"))?;
            if n == 0 {
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

/// The header of the group that starts at block `at` of `bytes`, if a whole one does.
fn header_at(bytes: &[u8], at: usize) -> Option<GroupHeader> {
    let rest = bytes.get(at * BLOCK..).filter(|rest| rest.len() >= BLOCK)?;
    let blocks = GroupHeader::peek(&rest[..BLOCK]).ok()?;
    GroupHeader::decode(rest.get(..blocks * BLOCK)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateOptions, Limits, Store};
    use marcot_store::World;

    fn compact_all(image: &mut Image) {
        image.state.compaction.due = true;
        while image.compact_step().unwrap() {}
    }

    /// Ends the log, so that its segment can be emptied; returns the segment's index in the table.
    fn close_segment(image: &mut Image) -> SegmentIndex {
        let index = image.journal.open_segment().unwrap().index;
        image.end_log().unwrap();
        image.checkpoint().unwrap();
        index
    }

    /// A rollback brings another table, in which an index may stand for another segment.
    #[test]
    fn what_was_known_of_segments_does_not_outlive_a_rollback() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits { dead_bytes_min: 1 << 20, ..Limits::default() };
        let store = Store::open_with(World::system(), directory.path(), limits).unwrap();
        let pool = store.pool("rbd").unwrap();
        let id = pool.create("image", &CreateOptions::sized(1 << 30)).unwrap();
        let mut image = pool.open(id).unwrap();
        image.snap_create("empty").unwrap();
        image.write_at(0, &[1; BLOCK]).unwrap();
        let index = close_segment(&mut image);
        let name = image.state.table.name(index, pool.files()).unwrap();
        let file = pool.files().open_as_it_is(name, true).unwrap();
        file.write_at(2 * BLOCK_BYTES, &[&[9; BLOCK]]).unwrap();
        compact_all(&mut image);
        assert!(image.state.compaction.stuck.contains(&index), "a block in it is damaged");

        image.snap_rollback("empty").unwrap();
        image.write_at(0, &[2; BLOCK]).unwrap();
        image.write_at(BLOCK_BYTES, &[3; BLOCK]).unwrap();
        assert_eq!(close_segment(&mut image), index, "the index is used again");
        let name = image.state.table.name(index, pool.files()).unwrap();
        compact_all(&mut image);
        image.checkpoint().unwrap();
        let gone = pool.files().open_as_it_is(name, false).err().map(|error| error.kind());
        assert_eq!(gone, Some(ErrorKind::NotFound), "it was emptied, and removed");
        let mut blocks = [0; 2 * BLOCK];
        image.read_at(0, &mut blocks).unwrap();
        assert!(blocks[..BLOCK].iter().all(|b| *b == 2) && blocks[BLOCK..].iter().all(|b| *b == 3));
    }
}
