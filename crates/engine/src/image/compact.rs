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
use marcot_format::{BLOCK_BYTES, BlockAddress};

use super::Image;
use super::log::{Group, SEGMENT_SLOTS};
use crate::device::Read;
use crate::error::{IoContext, Result};
use crate::gc;
use crate::map::position;
use crate::segment::SegmentName;

/// Compaction starts when live slots are a smaller part of the private segments than this.
const LIVE_PERCENT_MIN: u64 = 80;
/// Dead slots that are not worth the trouble.
const DEAD_SLOTS_MIN: u64 = 2 * SEGMENT_SLOTS as u64;
/// Dead units of map segments that are not worth the trouble (4 MiB).
const DEAD_UNITS_MIN: u64 = (4 << 20) / MAP_UNIT_BYTES;

/// A segment being emptied.
struct Victim {
    index: u32,
    groups: std::vec::IntoIter<(usize, GroupHeader)>,
}

/// What compaction is doing.
#[derive(Default)]
pub(super) struct State {
    /// Counts have changed enough to look for a victim.
    pub due: bool,
    victim: Option<Victim>,
    /// Segments that could not be emptied, because a block in them is damaged.
    stuck: HashSet<u32>,
}

/// Live and written slots of the private segments of a series, and the emptiest of them.
#[derive(Default)]
struct Survey {
    live: u64,
    used: u64,
    emptiest: Option<(u32, SegmentName, u64, u64)>,
}

impl Survey {
    fn add(&mut self, index: u32, name: SegmentName, live: u32, used: u32) {
        let (live, used) = (u64::from(live), u64::from(used));
        self.live += live;
        self.used += used;
        let emptier = self.emptiest.is_none_or(|(.., l, u)| live * u < l * used);
        if live < used && emptier {
            self.emptiest = Some((index, name, live, used));
        }
    }

    fn wasteful(&self, dead_min: u64) -> bool {
        self.used - self.live >= dead_min && self.live * 100 < self.used * LIVE_PERCENT_MIN
    }
}

impl Image {
    /// Does one piece of compaction; true if more waits.
    pub(super) fn compact_step(&mut self) -> Result<bool> {
        if self.compaction.victim.is_none() {
            if !std::mem::take(&mut self.compaction.due) {
                return Ok(false);
            }
            self.compact_map()?;
            self.compaction.victim = self.choose_victim(DEAD_SLOTS_MIN)?;
            return Ok(self.compaction.victim.is_some());
        }
        let Some(victim) = &mut self.compaction.victim else { return Ok(false) };
        let index = victim.index;
        match victim.groups.next() {
            Some((slot, header)) => self.move_live(index, slot, &header)?,
            None => {
                self.compaction.victim = None;
                self.compaction.due = true;
                let files = Arc::clone(self.pool.files());
                if self.table.get(index, &files).is_ok_and(|entry| entry.live > 0) {
                    self.compaction.stuck.insert(index);
                }
            }
        }
        Ok(true)
    }

    /// Compacts until nothing more is worth it, then makes the result durable.
    pub(super) fn compact_fully(&mut self) -> Result<()> {
        self.begin_writing()?;
        self.checkpoint()?;
        self.compaction.due = true;
        while self.compact_step()? {}
        self.checkpoint()
    }

    fn survey(&mut self, kind: SegmentKind) -> Result<Survey> {
        let files = Arc::clone(self.pool.files());
        let open_data = self.log.as_ref().map(|l| l.name);
        let open_map = self.map_pages.open_segment().map(|(name, _)| name);
        let mut found = Vec::new();
        self.table.for_each(&files, |index, entry, name| {
            if name.kind == kind && Some(name) != open_data && Some(name) != open_map {
                found.push((index, entry, name));
            }
            Ok(())
        })?;
        let mut survey = Survey::default();
        found.retain(|(index, ..)| !self.compaction.stuck.contains(index));
        for (index, entry, name) in found.into_iter().filter(|(.., n)| self.is_private(n)) {
            survey.add(index, name, entry.live, entry.used);
        }
        Ok(survey)
    }

    fn choose_victim(&mut self, dead_min: u64) -> Result<Option<Victim>> {
        let survey = self.survey(SegmentKind::Data)?;
        let Some((index, name, live, _)) = survey.emptiest.filter(|_| survey.wasteful(dead_min))
        else {
            return Ok(None);
        };
        if live == 0 {
            // Nothing to move: the next checkpoint drops it.
            return Ok(None);
        }
        let file = self.pool.files().get(name)?;
        Ok(Some(Victim { index, groups: gc::groups(&*file)?.into_iter() }))
    }

    /// Writes those blocks of a group again that the map still finds there.
    fn move_live(&mut self, index: u32, slot: usize, header: &GroupHeader) -> Result<()> {
        let mut live = Vec::new();
        let mut at = (slot + header.header_blocks()) as u32;
        for record in header.records.iter().filter(|r| r.kind == RecordKind::Write) {
            for block in record.block..record.block + record.count {
                let (map, mut source) = self.parts();
                let entry = map.leaf(block, &mut source)?.map(|leaf| leaf[position(block, 0)]);
                if entry.is_some_and(|e| { e.address } == BlockAddress::new(index, at)) {
                    live.push(block);
                }
                at += 1;
            }
        }
        self.copy_blocks(&live).map(drop)
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
            .map(|(buf, block)| Read { offset: block * BLOCK_BYTES, buf, result: Ok(()) })
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
                self.prepare(*block, 1)?;
                group.write(*block, Cow::Borrowed(bytes));
            } else {
                unreadable = unreadable.or(Some(*block));
            }
        }
        self.append(group)?;
        Ok(unreadable)
    }

    /// Makes the pages of mostly dead map segments dirty, so that the next checkpoint moves them.
    fn compact_map(&mut self) -> Result<()> {
        let survey = self.survey(SegmentKind::Map)?;
        let Some((index, name, ..)) = survey.emptiest.filter(|_| survey.wasteful(DEAD_UNITS_MIN))
        else {
            return Ok(());
        };
        let file = self.pool.files().get(name)?;
        let mut offset = SEGMENT_HEADER_BYTES as u64;
        let mut bytes = vec![0; PAGE_READ_BYTES];
        loop {
            let n =
                file.read_at(offset, &mut bytes).at(|| format!("cannot read segment {name}"))?;
            if n == 0 {
                return Ok(());
            }
            let Ok((page, _)) = decode_page(&bytes[..n]) else {
                offset += MAP_UNIT_BYTES;
                continue;
            };
            let address = BlockAddress::new(index, (offset / MAP_UNIT_BYTES) as u32);
            let (map, mut source) = self.parts();
            map.rewrite_page(address, u32::from(page.level), page.base, &mut source)?;
            let length = marcot_format::page::peek_page(&bytes[..n]).unwrap_or(1) as u64;
            offset += length.div_ceil(MAP_UNIT_BYTES) * MAP_UNIT_BYTES;
        }
    }
}
