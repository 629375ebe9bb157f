//! The pages of a root in memory: the segments that they go to, and those that still have to be written.
//!
//! Pages that found no room are kept and written first at the next try, because nodes in memory already point
//! to them.

use marcot_format::segment::SegmentKind;
use marcot_format::table::TABLE_PAGE_BYTES;
use marcot_format::{MapUnit, SegmentIndex};

use super::head::Head;
use crate::catalog::Identity;
use crate::error::Result;
use crate::journal::Prepared;
use crate::segment::{PageWriter, SegmentName, Series, WrittenPages};
use crate::table::SegmentTable;

/// The first places of pages that may not be on disk yet. Table indices, the numbers of an author's segments
/// and places within one segment only grow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unwritten {
    /// Map pages.
    pub map: (SegmentIndex, MapUnit),
    /// Table pages of this image: number of the segment, and page.
    pub table: (u32, u32),
}

/// Where the pages of a root in memory go.
#[derive(Default)]
pub(super) struct Pages {
    pub map: PageWriter,
    /// Table index of the open map segment.
    pub map_index: SegmentIndex,
    /// Bytes of map pages that were placed since [`Self::take_placed_map_bytes`].
    pub placed_map_bytes: u64,
    pub table: PageWriter,
    /// The next map segment, which a worker creates.
    prepared_map: Option<Prepared>,
    /// Pages that were placed and still have to be written.
    pending: Option<WrittenPages>,
    /// Pages placed from here on may not be on disk yet.
    unwritten_from: Option<Unwritten>,
    /// Segments to be removed once the next head is durable.
    dead: Vec<SegmentName>,
    /// Spilling pages found no room, so it is not tried again.
    pub spill_failed: bool,
}

impl Pages {
    /// The first places of pages that may not be on disk yet; `None`: all pages are on disk.
    pub(super) fn unwritten_from(&self) -> Option<Unwritten> {
        self.unwritten_from
    }

    /// The map segment that is being written.
    pub(super) fn open_map(&self) -> Option<SegmentName> {
        self.map.open_segment().map(|(name, _)| name)
    }

    /// The table segment that is being written.
    pub(super) fn open_table(&self) -> Option<SegmentName> {
        self.table.open_segment().map(|(name, _)| name)
    }

    /// Table index of the map segment that is being written.
    pub(super) fn open_map_index(&self) -> Option<SegmentIndex> {
        self.map.open_segment().map(|_| self.map_index)
    }

    /// True where pages were placed that no checkpoint has taken over.
    pub(super) fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Writes and syncs the pages that an earlier checkpoint could not write.
    pub(super) fn write_pending(&mut self) -> Result<()> {
        if let Some(pages) = &mut self.pending {
            pages.write_and_sync()?;
            (self.pending, self.unwritten_from) = (None, None);
        }
        Ok(())
    }

    /// Bytes of map pages that were placed since the last call.
    pub(super) fn take_placed_map_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.placed_map_bytes)
    }

    /// Hands over the pages that a checkpoint has to write.
    pub(super) fn take_pending(&mut self) -> WrittenPages {
        self.pending.take().unwrap_or_default()
    }

    /// All pages are on disk. Their buffers are used for the next pages.
    pub(super) fn written(&mut self, pages: WrittenPages) {
        self.map.reuse(pages);
        self.unwritten_from = None;
    }

    /// A checkpoint has failed, and these pages still have to be written.
    pub(super) fn not_written(&mut self, pages: Option<WrittenPages>) {
        self.pending = pages;
    }

    /// Has the next map segment created, once the open one is half full.
    pub(super) fn prepare_map(&mut self, image: &Identity, series: &Series, epoch: u64) {
        let half = image.pool.store().limits().segment_bytes() / 2;
        let half_full = |(_, end): (_, u64)| end >= half;
        if self.prepared_map.is_none() && self.map.open_segment().is_some_and(half_full) {
            let name = series.next_name(SegmentKind::Map);
            if !series.may_give(name) {
                return;
            }
            self.prepared_map = Some(Prepared::start(image, name, epoch, None));
        }
    }

    /// The map segment that was prepared.
    pub(super) fn take_prepared_map(&mut self) -> Option<Prepared> {
        self.prepared_map.take()
    }

    /// Segments are to be removed once the next head is durable.
    pub(super) fn add_dead(&mut self, names: impl IntoIterator<Item = SegmentName>) {
        self.dead.extend(names);
    }

    /// True where segments are to be removed once the next head is durable.
    pub(super) fn has_dead(&self) -> bool {
        !self.dead.is_empty()
    }

    /// Segments to be removed once the next head is durable. Those that a snapshot may name that was taken
    /// meanwhile are left out: they stay.
    pub(super) fn take_dead(&mut self, head: &Head) -> Vec<SegmentName> {
        let mut dead = std::mem::take(&mut self.dead);
        dead.retain(|name| head.is_private(name));
        dead
    }

    /// Frees the buffers for the next pages. Returns their size in bytes.
    pub(super) fn drop_spare(&mut self) -> u64 {
        self.map.drop_spare()
    }

    /// Takes over what was placed since the last call.
    pub(super) fn gather(&mut self) {
        let mut pages = self.map.take();
        pages.extend(self.table.take());
        self.pending.get_or_insert_default().extend(pages);
    }

    /// Notes the places from which on pages may not be on disk yet.
    pub(super) fn note_unwritten(&mut self, table: &SegmentTable, series: &Series) {
        if self.unwritten_from.is_some() {
            return;
        }
        let map = match self.map.open_segment() {
            Some((_, end)) => (self.map_index, MapUnit::at(end)),
            None => (table.next_index(), MapUnit::default()),
        };
        let table = match self.table.open_segment() {
            Some((name, end)) => (name.sequence, (end / TABLE_PAGE_BYTES as u64) as u32),
            None => (series.marks().table, 0),
        };
        self.unwritten_from = Some(Unwritten { map, table });
    }
}
