//! Map segments that are dead for the most part: their live pages are made dirty, so that the next checkpoint moves
//! them.

use marcot_format::address::MAP_UNIT_BYTES;
use marcot_format::page::{PAGE_READ_BYTES, decode_page, peek_page};
use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentKind};
use marcot_format::{BlockAddress, MapUnit};

use super::super::Image;
use super::LIVE_PERCENT_MIN;
use super::survey::Survey;
use crate::error::{IoContext, Result};

/// Dead bytes of map segments that are left alone: one part in this many of `dead_bytes_min`.
const DEAD_MAP_PART: u64 = 16;
/// The same for an idle image: 1 MiB with the default limits.
const DEAD_MAP_IDLE_PART: u64 = 64;
/// Pages of a map segment that are looked at in one go while the image is in use: a guest waits meanwhile.
pub(super) const MAP_PAGES_MAX: usize = 128;
/// In an idle image, live map pages are moved where they are a smaller part of their segments than this.
const LIVE_PERCENT_IDLE: u64 = 50;

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
            self.compact_map_segment(&survey, usize::MAX)?;
            self.state.changed = true;
        }
        Ok(())
    }

    /// As [`Self::compact_map_while_idle`], for an image in use: the open segment is left alone, and more may
    /// be dead before anything is moved.
    pub(super) fn compact_map(&mut self) -> Result<()> {
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
            let length = peek_page(&bytes[..n]).unwrap_or(1) as u64;
            offset += length.div_ceil(MAP_UNIT_BYTES) * MAP_UNIT_BYTES;
        }
    }
}
