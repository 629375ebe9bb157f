//! Map segments that are dead for the most part: their live pages are made dirty, so that the next checkpoint moves
//! them.
//!
//! Invariants:
//! - Only pages that are on disk are looked at.
//! - As long as map segments waste room, twice as much of them is looked at as checkpoints write. Each checkpoint of
//!   an image that is overwritten writes a page for nearly every leaf, and where the writer works in order, each map
//!   segment keeps the pages of a few leaves for as long as the writer needs for the whole image.

use std::collections::HashSet;
use std::sync::Arc;

use marcot_format::address::MAP_UNIT_BYTES;
use marcot_format::page::peek_place;
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentKind};
use marcot_format::{BLOCK_BYTES, BlockAddress, MapUnit, SegmentIndex};
use marcot_store::DiskFile;

use super::super::Image;
use super::LIVE_PERCENT_MIN;
use super::survey::Survey;
use crate::error::{IoContext, Result};
use crate::segment::SegmentName;

/// Dead bytes of map segments that are left alone: one part in this many of `dead_bytes_min`.
const DEAD_MAP_PART: u64 = 16;
/// The same for an idle image: 1 MiB with the default limits.
const DEAD_MAP_IDLE_PART: u64 = 64;
/// While an image is in use, as many dead bytes are left alone as one part in this many of its data.
const DEAD_MAP_DATA_PART: u64 = 128;
/// Live pages that are made dirty in one go while the image is in use: a guest waits meanwhile.
pub(super) const MAP_PAGES_MAX: usize = 128;
/// Bytes of a map segment that are looked at in one go while the image is in use.
const MAP_BYTES_MAX: u64 = 1 << 20;
/// A writer does one go for each of these slots that it writes, at most (512 KiB).
const SLOTS_PER_GO: u64 = 128;
/// Bytes that are looked at for each byte of map pages that a checkpoint writes.
const LOOKED_AT_PER_WRITTEN: u64 = 2;
/// Bytes that are read in one go.
const CHUNK_BYTES: usize = 64 << 10;
/// In an idle image, live map pages are moved where they are a smaller part of their segments than this.
const LIVE_PERCENT_IDLE: u64 = 50;

/// A map segment being emptied.
struct Victim {
    index: SegmentIndex,
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    /// Offset in bytes of what is to be looked at next.
    offset: u64,
}

/// What compaction does with map segments.
#[derive(Default)]
pub(in crate::image) struct MapCompaction {
    victim: Option<Victim>,
    /// Table indices of segments whose live pages are all dirty by now, and the last version of the head that may
    /// name pages in them. The checkpoint after that head moves them.
    done: (HashSet<SegmentIndex>, u64),
    /// Bytes that have to be looked at before compaction has kept up with the checkpoints.
    owed_bytes: u64,
    /// Slots written since the last go.
    written: u64,
    /// Dead bytes that are left alone, by the last survey of data segments.
    dead_bytes_min: u64,
}

impl MapCompaction {
    /// Counts what was appended to the log.
    pub(super) fn appended(&mut self, slots: u64) {
        self.written += slots;
    }

    /// Forgets the segment that is being emptied: an open file keeps the room of one that is removed.
    pub(in crate::image) fn forget_victim(&mut self) {
        self.victim = None;
    }

    /// True while a segment is being looked through.
    #[cfg(test)]
    pub(super) fn is_at_work(&self) -> bool {
        self.victim.is_some()
    }

    /// True where all live pages of a segment are dirty, and the head is of this version.
    pub(super) fn is_done(&self, index: SegmentIndex, version: u64) -> bool {
        version <= self.done.1 && self.done.0.contains(&index)
    }

    fn set_done(&mut self, index: SegmentIndex, version: u64) {
        if self.done.1 != version {
            self.done = (HashSet::new(), version);
        }
        self.done.0.insert(index);
    }
}

impl Image {
    /// Has the next checkpoint move the live pages of the emptiest map segment, where map segments are dead
    /// for the most part. An open map segment that is mostly dead is closed first.
    pub(in crate::image) fn compact_map_while_idle(&mut self) -> Result<()> {
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
            self.choose_map_victim(&survey)?;
            self.look_through_map(usize::MAX, u64::MAX)?;
            self.state.changed = true;
        }
        Ok(())
    }

    /// Chooses a map segment to be emptied, where map segments waste room. As
    /// [`Self::compact_map_while_idle`], for an image in use: the open segment is left alone, and more may be dead
    /// before anything is moved.
    fn look_for_map_work(&mut self) -> Result<()> {
        let map = &mut self.state.compaction.map;
        map.owed_bytes += self.state.pages.take_placed_map_bytes() * LOOKED_AT_PER_WRITTEN;
        if map.victim.is_some() {
            return Ok(());
        }
        let dead_min = map.dead_bytes_min / MAP_UNIT_BYTES;
        let survey = self.survey(SegmentKind::Map)?;
        if survey.wasteful(dead_min, LIVE_PERCENT_MIN) {
            self.choose_map_victim(&survey)?;
        }
        let map = &mut self.state.compaction.map;
        if map.victim.is_none() {
            map.owed_bytes = 0;
        }
        Ok(())
    }

    /// Takes in a survey of the data segments, which take `slots`.
    pub(super) fn data_surveyed(&mut self, slots: u64) -> Result<()> {
        let dead_bytes_min = self.limits().dead_bytes_min / DEAD_MAP_PART;
        let part = slots * BLOCK_BYTES / DEAD_MAP_DATA_PART;
        self.state.compaction.map.dead_bytes_min = dead_bytes_min.max(part);
        self.look_for_map_work()
    }

    fn choose_map_victim(&mut self, survey: &Survey) -> Result<()> {
        let Some((index, name, ..)) = survey.emptiest else { return Ok(()) };
        let same = self.state.compaction.map.victim.as_ref().is_some_and(|v| v.index == index);
        if !same {
            let file = self.open_victim(index, name)?;
            let offset = SEGMENT_HEADER_BYTES as u64;
            self.state.compaction.map.victim = Some(Victim { index, name, file, offset });
        }
        Ok(())
    }

    /// Looks through a part of the map segment that is being emptied, where compaction has not kept up with the
    /// checkpoints.
    pub(super) fn pay_for_map(&mut self) -> Result<()> {
        let map = &mut self.state.compaction.map;
        if map.written < SLOTS_PER_GO {
            return Ok(());
        }
        map.written = 0;
        if map.owed_bytes == 0 || map.victim.is_none() {
            return Ok(());
        }
        let looked_at = self.look_through_map(MAP_PAGES_MAX, MAP_BYTES_MAX)?;
        let map = &mut self.state.compaction.map;
        map.owed_bytes = map.owed_bytes.saturating_sub(looked_at);
        if map.victim.is_none() && map.owed_bytes > 0 {
            return self.look_for_map_work();
        }
        Ok(())
    }

    /// Makes live pages of the segment that is being emptied dirty, so that the next checkpoint moves them, in as
    /// much of it as may be looked at, or as the memory for pages allows. Returns how many bytes it has looked at.
    fn look_through_map(&mut self, pages_max: usize, bytes_max: u64) -> Result<u64> {
        let Some(mut victim) = self.state.compaction.map.victim.take() else { return Ok(0) };
        // It may be gone by now, dead or rolled back, or a snapshot may have come to name it.
        let found = self.state.table.name(victim.index, self.identity.pool.files());
        if !found.is_ok_and(|name| name == victim.name) || !self.head.is_private(&victim.name) {
            return Ok(0);
        }
        let from = victim.offset;
        match self.rewrite_pages(&mut victim, pages_max, bytes_max) {
            Ok(true) => {
                // What a checkpoint under way writes is frozen. Only the next one moves these pages.
                let version = self.head.version + u64::from(self.checkpoint_job.is_some());
                self.state.compaction.map.set_done(victim.index, version);
                Ok(victim.offset - from)
            }
            Ok(false) => {
                let looked_at = victim.offset - from;
                self.state.compaction.map.victim = Some(victim);
                Ok(looked_at)
            }
            Err(error) => {
                self.state.compaction.give_up(victim.index, &error);
                Err(error)
            }
        }
    }

    /// See [`Self::look_through_map`]; true at the end of the segment.
    fn rewrite_pages(
        &mut self,
        victim: &mut Victim,
        pages_max: usize,
        bytes_max: u64,
    ) -> Result<bool> {
        let memory_max = self.limits().map_memory_bytes_soft();
        let end = victim.offset.saturating_add(bytes_max);
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut pages = 0;
        while victim.offset < end {
            let name = victim.name;
            let read = victim.file.read_at(victim.offset, &mut chunk);
            let n = read.at(|| format!("cannot read segment {name}"))?;
            if n == 0 {
                return Ok(true);
            }
            // A damaged page may say any length. So a page is looked for in every place where one may start.
            for unit in chunk[..n].chunks(MAP_UNIT_BYTES as usize) {
                let offset = victim.offset;
                if let Some((level, base)) = peek_place(unit) {
                    let address = BlockAddress::of_page(victim.index, MapUnit::at(offset));
                    let (map, mut source) = self.state.parts();
                    pages += usize::from(map.rewrite_page(
                        address,
                        u32::from(level),
                        base,
                        &mut source,
                    )?);
                    self.evict(memory_max);
                }
                victim.offset += MAP_UNIT_BYTES;
                if pages == pages_max || self.state.memory_bytes() > memory_max {
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }
}
