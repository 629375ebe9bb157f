//! The root of an open image in memory, with everything that refers to it.
//!
//! A root is a block map, a segment table and a size. Whatever holds indices of that table, or places of
//! those pages, belongs to the root: it is in [`State`], and is replaced together with the root. So a
//! rollback cannot forget any of it.

use std::sync::Arc;

use marcot_format::group::RecordKind;
use marcot_format::record::RootRecord;
use marcot_format::{BLOCK_BYTES, BlockAddress, ImageId, MAP_FANOUT, MapEntry, SegmentIndex};

use super::compact::Compaction;
use super::flatten::Flattening;
use super::idle::Idle;
use super::pages::Pages;
use crate::error::Result;
use crate::journal::Placed;
use crate::map::{Map, PageSource, position};
use crate::root::{RootOf, Source};
use crate::segment::Files;
use crate::table::SegmentTable;

/// The segment table gets one part in this many of the memory for pages. It is far denser than the map: a
/// page of the table (3 KiB) describes 4 GiB of data, a leaf of the map (6 KiB) describes 2 MiB.
const TABLE_PART: u64 = 4;

/// What a group does about map pages that are damaged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DamagedPages {
    /// Fails.
    Refuse,
    /// Gives them up, because a group of the log must not be given up.
    GiveUp,
}

/// See the module.
pub(super) struct State {
    files: Arc<Files>,
    pub map: Map,
    pub table: SegmentTable,
    pub size_bytes: u64,
    /// The root in memory is newer than the durable root.
    pub changed: bool,
    /// Where its pages go.
    pub pages: Pages,
    pub compaction: Compaction,
    pub flattening: Flattening,
    /// How far copying from a source outside the store has come, in this process: blocks below this one are here.
    pub copied_below: u64,
    pub idle: Idle,
}

impl State {
    /// Opens a root as the medium has it.
    ///
    /// # Errors
    /// Those of reading its top page and its table.
    pub(super) fn open(of: &RootOf, root: &RootRecord) -> Result<Self> {
        let (map, table) = of.open(root)?;
        Ok(Self {
            files: Arc::clone(of.pool.files()),
            map,
            table,
            size_bytes: root.size_bytes,
            changed: false,
            pages: Pages::default(),
            compaction: Compaction::default(),
            flattening: Flattening::default(),
            copied_below: 0,
            idle: Idle::default(),
        })
    }

    /// The map, and what it reads its pages through.
    pub(super) fn parts(&mut self) -> (&mut Map, Source<'_>) {
        (&mut self.map, Source::new(&mut self.table, Arc::clone(&self.files)))
    }

    /// As [`Self::parts`], for callers that go on without damaged pages.
    pub(super) fn lenient_parts(&mut self) -> (&mut Map, Source<'_>) {
        (&mut self.map, Source::lenient(&mut self.table, Arc::clone(&self.files)))
    }

    /// Loads what changing the map of these blocks will touch, so that a damaged page fails the
    /// write before anything is logged.
    pub(super) fn prepare(&mut self, block: u64, count: u64) -> Result<()> {
        let (map, mut source) = self.parts();
        let mut at = block;
        while at < block + count {
            let end = (block + count).min((at | (MAP_FANOUT as u64 - 1)) + 1);
            map.prepare(at, 0, &mut source)?;
            if let Some(leaf) = map.leaf(at, &mut source)? {
                let first = position(at, 0);
                let mut last = SegmentIndex::default();
                for entry in &leaf[first..first + (end - at) as usize] {
                    let address = entry.address;
                    let named = !address.is_hole() && !address.is_nowhere();
                    if named && address.index() != last {
                        last = address.index();
                        source.touch(address)?;
                    }
                }
            }
            at = end;
        }
        Ok(())
    }

    /// Changes the map as a group says.
    pub(super) fn apply(&mut self, placed: &Placed, damaged: DamagedPages) -> Result<()> {
        let Placed { header, index, data_slot } = placed;
        self.changed = true;
        let data_blocks = header.crcs.len();
        // The blocks are counted before the map names them: a block that the group writes twice is released
        // again at once.
        self.table.count(*index, data_blocks as i64, data_blocks as u32, &self.files)?;
        let (map, mut source) = match damaged {
            DamagedPages::Refuse => self.parts(),
            DamagedPages::GiveUp => self.lenient_parts(),
        };
        let mut entries = Vec::with_capacity(MAP_FANOUT);
        let mut done = 0usize;
        for record in &header.records {
            let end = record.block + record.count;
            if record.kind == RecordKind::Discard {
                map.clear(record.block, end, &mut source)?;
                continue;
            }
            let mut block = record.block;
            while block < end {
                let stop = end.min((block | (MAP_FANOUT as u64 - 1)) + 1);
                entries.clear();
                for _ in block..stop {
                    let address = BlockAddress::of_block(*index, data_slot.after(done as u32));
                    entries.push(MapEntry { address, crc: header.crcs[done] });
                    done += 1;
                }
                map.set_run(block, &entries, &mut source)?;
                block = stop;
            }
        }
        Ok(())
    }

    /// The parts of a range by blocks, without those that are holes: offset and length of each.
    pub(super) fn mapped_parts(&self, range: std::ops::Range<u64>) -> Vec<(u64, usize)> {
        let mut parts = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let block = at / BLOCK_BYTES;
            let stop = range.end.min((block + 1) * BLOCK_BYTES);
            if self.map.may_map(block, block + 1) {
                parts.push((at, (stop - at) as usize));
            }
            at = stop;
        }
        parts
    }

    /// Memory of loaded pages in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.map.resident_bytes() + self.table.resident_bytes()
    }

    /// Where more than `bytes_max` of pages are loaded, drops clean ones until about half of that is
    /// left. `author`: the image's number.
    pub(super) fn evict(&mut self, bytes_max: u64, author: ImageId) {
        if self.memory_bytes() <= bytes_max {
            return;
        }
        let unwritten = self.pages.unwritten_from();
        let left_bytes = bytes_max / 2;
        let part_bytes = left_bytes / TABLE_PART;
        self.table.evict(part_bytes, &|page| {
            let place = (page.sequence, page.page);
            unwritten.is_none_or(|from| page.author != author.0 || place < from.table)
        });
        // While much of the table is dirty, the map has to live with little, but not with nothing.
        let map_bytes = left_bytes.saturating_sub(self.table.resident_bytes()).max(part_bytes);
        self.map.evict(map_bytes, &|entry| {
            let address = entry.address;
            unwritten.is_none_or(|from| (address.index(), address.unit()) < from.map)
        });
    }
}
