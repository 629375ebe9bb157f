//! Keeping the log compact: copying live blocks out of mostly dead private segments, so that these segments
//! can be removed.
//!
//! A copy is an ordinary group of the log, so recovery knows nothing of it. The old segment is removed once a
//! head is durable that no longer names it. Segments that snapshots or clones may name are left to `gc`.

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
/// Slots of a segment that one step looks at, unless a group is larger.
const STEP_SLOTS: usize = 64;
/// Slots of a segment that are read ahead at a time (1 MiB).
const READ_AHEAD_SLOTS: usize = 256;
/// The counts are surveyed this many times while as much is written as may be dead before compaction begins.
const SURVEYS: u64 = 8;
/// In large images, the counts are surveyed at most this many times while as much is written as they hold.
const SURVEYS_LARGE: u64 = 256;
/// Most slots that a writer looks at for each slot that it writes, in percent: writers must go on.
const PRICE_PERCENT_MAX: u64 = 800;

/// A segment being emptied.
struct Victim {
    index: SegmentIndex,
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    /// Slot where the next group to be looked at starts.
    slot: usize,
    /// Slot up to which the system was asked to read.
    read_to: usize,
}

impl Victim {
    /// Asks the system to read the next slots, so that no step waits for the medium.
    fn read_ahead(&mut self) {
        while self.read_to < self.slot + READ_AHEAD_SLOTS {
            let bytes = READ_AHEAD_SLOTS as u64 * BLOCK_BYTES;
            self.file.advise(self.read_to as u64 * BLOCK_BYTES, bytes);
            self.read_to += READ_AHEAD_SLOTS;
        }
    }
}

/// What compaction is doing.
#[derive(Default)]
pub(super) struct Compaction {
    /// The counts have changed enough to survey them again.
    pub due: bool,
    victim: Option<Victim>,
    /// Table index of a map segment, and the offset in bytes of its page that is to be looked at next.
    map_at: Option<(SegmentIndex, u64)>,
    /// Table index of a map segment whose live pages are all dirty by now, and the version of the head then: the
    /// next checkpoint moves them.
    map_done: Option<(SegmentIndex, u64)>,
    /// Segments that could not be emptied, because a block in them is damaged.
    stuck: HashSet<SegmentIndex>,
    /// Slots written since the last survey.
    written: u64,
    /// Slots to be written before the next survey, if they are more than [`SURVEYS`] asks for.
    survey_after: u64,
    /// Slots that a writer looks at for each slot that it writes, in percent.
    price_percent: u64,
    /// Slots that writers still have to look at.
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

/// Live and used slots of the private segments of a series, and the emptiest of these segments. Segments with
/// nothing live are left out: the next checkpoint removes them.
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

    /// Slots that a writer has to look at for each slot that it writes, in percent, so that the dead slots do
    /// not grow. Emptying a segment of `used` slots gives back the slots that are not live. Writers look at
    /// 20 % more than that, to catch up.
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
    /// Does one step of compaction; true if more is left to do.
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
                if !matches!(error.kind(), ErrorKind::NoSpace) {
                    self.state.compaction.stuck.insert(victim.index);
                }
                return Err(error);
            }
        }
        self.state.compaction.due = true;
        let entry = self.state.table.get(victim.index, self.identity.pool.files());
        if named && entry.is_ok_and(|entry| entry.live > 0) {
            self.state.compaction.stuck.insert(victim.index);
        }
        Ok(true)
    }

    /// Lets a writer do a part of the compaction where the background work has fallen behind, so that the
    /// dead slots do not grow.
    pub(super) fn pay_for_space(&mut self) -> Result<()> {
        let survey_after = self.state.compaction.survey_after.max(self.dead_slots_min() / SURVEYS);
        if self.state.compaction.written >= survey_after {
            self.state.compaction.written = 0;
            self.look_for_work()?;
        }
        while self.state.compaction.owed >= STEP_SLOTS as u64 {
            self.state.compaction.owed -= STEP_SLOTS as u64;
            let stepped = self.compact_step();
            if !matches!(stepped, Ok(true)) {
                // Also where there is no space: the next write must not try again at once.
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
        // A survey takes longer the more segments there are.
        self.state.compaction.survey_after = survey.used / SURVEYS_LARGE;
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
            // Group headers take slots too, and are removed with their segment. So a closed data segment
            // counts as full.
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
        let files = self.identity.pool.files();
        let open = self.open_segments();
        let mut found = Vec::new();
        self.state.table.for_each(files, |index, entry, name| {
            if name.kind == kind && !open.contains(&Some(name)) {
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
        let mut victim = Victim { index, name, file, slot: 1, read_to: 0 };
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
        // Even where something fails from here on, the next step starts behind these groups.
        victim.slot += at;
        victim.read_ahead();
        let written = (self.state.compaction.written, self.state.compaction.owed);
        let moved = self.append_copies(&live, &bytes);
        (self.state.compaction.written, self.state.compaction.owed) = written;
        self.state.compaction.buffer = bytes;
        moved.map(|()| at > 0)
    }

    /// Adds those blocks of a group that the map still names, and where they lie in `bytes`.
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
                        // It stays where it is: a copy would get a new checksum, which would hide the damage.
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

    /// Appends the present content of blocks, at most as many as fit into a group. Blocks that cannot be read
    /// stay where they are; returns the first of them.
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

    /// An image of 1 GiB in a store of its own.
    fn new_image(directory: &std::path::Path, dead_bytes_min: u64) -> (crate::Pool, Image) {
        let limits = Limits { dead_bytes_min, ..Limits::default() };
        let store = Store::open_with(World::system(), directory, limits).unwrap();
        let pool = store.pool("rbd").unwrap();
        let id = pool.create("image", &CreateOptions::sized(1 << 30)).unwrap();
        let image = pool.open(id).unwrap();
        (pool, image)
    }

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
    fn a_rollback_forgets_which_segments_could_not_be_emptied() {
        let directory = tempfile::tempdir().unwrap();
        let (pool, mut image) = new_image(directory.path(), 1 << 20);
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
        assert_eq!(gone, Some(ErrorKind::NotFound), "the segment was emptied and removed");
        let mut blocks = [0; 2 * BLOCK];
        image.read_at(0, &mut blocks).unwrap();
        assert!(blocks[..BLOCK].iter().all(|b| *b == 2) && blocks[BLOCK..].iter().all(|b| *b == 3));
    }

    /// Looking through a map segment takes tens of milliseconds, and guests wait for it.
    #[test]
    fn a_map_segment_is_looked_through_once_before_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (pool, mut image) = new_image(directory.path(), 64 << 10);
        let leaves = 2 * MAP_PAGES_MAX as u64;
        for round in 0..3 {
            for leaf in (0..leaves).filter(|leaf| round == 0 || leaf % 4 != 0) {
                image.write_at(leaf << 21, &[round; BLOCK]).unwrap();
            }
            image.checkpoint().unwrap();
        }
        let emptied = image.state.pages.open_map().unwrap();
        image.state.close_map_segment(&image.identity);
        for looks in 0.. {
            assert_eq!(image.state.compaction.map_done, None, "look {looks}");
            image.compact_map().unwrap();
            if image.state.compaction.map_at.is_none() {
                assert!(looks > 0, "more pages than are looked at in one go");
                break;
            }
        }
        let done = image.state.compaction.map_done.unwrap();
        assert_eq!(image.state.table.name(done.0, pool.files()).unwrap(), emptied);
        image.compact_map().unwrap();
        assert!(image.state.compaction.map_at.is_none(), "it is not looked at again");
        image.state.changed = true;
        image.checkpoint().unwrap();
        let gone = pool.files().open_as_it_is(emptied, false).err().map(|error| error.kind());
        assert_eq!(gone, Some(ErrorKind::NotFound));
    }
}
