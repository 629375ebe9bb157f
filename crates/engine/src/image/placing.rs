//! Placing the dirty pages of a root: which page goes to which place in which segment.
//!
//! A place is fixed before the page is written, so that a checkpoint knows its root while the image goes on.
//! Placing creates segments and may read pages of the table, but writes no page.

use marcot_format::address::MAP_UNIT_BYTES;
use marcot_format::page::{PAGE_READ_BYTES, encode_page};
use marcot_format::record::RootRecord;
use marcot_format::segment::SegmentKind;
use marcot_format::table::{PagePointer, TABLE_PAGE_BYTES};
use marcot_format::{BlockAddress, MAP_FANOUT, MapEntry, MapUnit};

use super::head::Head;
use super::pages::Pages;
use super::state::State;
use crate::catalog::Identity;
use crate::error::{ErrorKind, Result, fail};
use crate::journal::take_or_create;
use crate::map::PageSink;
use crate::segment::{SegmentName, Series};
use crate::table::{SegmentTable, TableSink};

/// Bytes of a table segment; small, because a table is rewritten whole now and then.
const TABLE_SEGMENT_BYTES: u64 = 4 << 20;
/// The table is rewritten when its open segment holds more than this many times the table's pages.
const TABLE_REWRITE_FACTOR: u64 = 8;
/// Pages that a table segment may hold before a rewrite is considered.
const TABLE_REWRITE_PAGES_MIN: u64 = 64;

/// The image that the pages belong to, and the head and the open data segment, which say what has to stay.
pub(super) struct Owner<'a> {
    pub image: &'a Identity,
    pub head: &'a Head,
    /// Segments that may not be dropped, though nothing in them may be live: see [`Image::open_segments`].
    pub open: &'a [SegmentName],
}

/// Places map pages, and counts them in the table.
struct MapSink<'a> {
    owner: &'a Owner<'a>,
    pages: &'a mut Pages,
    table: &'a mut SegmentTable,
    series: &'a mut Series,
}

impl PageSink for MapSink<'_> {
    fn write(
        &mut self,
        level: u32,
        base: u64,
        entries: &[MapEntry; MAP_FANOUT],
    ) -> Result<MapEntry> {
        let Owner { image, head, .. } = *self.owner;
        let files = image.pool.files();
        let segment_bytes = image.pool.store().limits().segment_bytes();
        if self.pages.map.needs_segment(PAGE_READ_BYTES as u64, segment_bytes) {
            let (prepared, kind) = (self.pages.take_prepared_map(), SegmentKind::Map);
            let (name, file) =
                take_or_create(image, self.series, kind, head.epoch, prepared, None)?;
            close_map_segment(self.pages, self.table, image);
            self.pages.map_index = self.table.add(name, files)?;
            self.pages.map.start_segment(name, file);
        }
        let encode = |out: &mut Vec<u8>| {
            let before = out.len();
            let crc = encode_page(level as u8, image.id.0, base, entries, out);
            (crc, (out.len() - before) as u64)
        };
        let Some((offset, (crc, bytes))) = self.pages.map.place(encode) else {
            return fail(ErrorKind::Io, "no map segment is open");
        };
        self.pages.placed_map_bytes += bytes;
        let (index, units) = (self.pages.map_index, (bytes / MAP_UNIT_BYTES) as u32);
        self.table.count(index, i64::from(units), units, files)?;
        let address = BlockAddress::of_page(index, MapUnit::at(offset));
        Ok(MapEntry { address, crc })
    }
}

/// Closes the open map segment. The next checkpoint removes it if nothing in it is live.
fn close_map_segment(pages: &mut Pages, table: &mut SegmentTable, image: &Identity) {
    if pages.map.open_segment().is_none() {
        return;
    }
    pages.map.close_segment();
    table.close_segment(pages.map_index, image.pool.files(), &image.label);
}

/// Places table pages.
struct TablePages<'a> {
    owner: &'a Owner<'a>,
    pages: &'a mut Pages,
    series: &'a mut Series,
    /// The position of the image's own pool in the root's list of places.
    position: u16,
}

impl TableSink for TablePages<'_> {
    fn place(&mut self, encode: &mut dyn FnMut(&mut Vec<u8>) -> u32) -> Result<PagePointer> {
        let bytes = TABLE_PAGE_BYTES as u64;
        let writer = &mut self.pages.table;
        if writer.needs_segment(bytes, TABLE_SEGMENT_BYTES) {
            let (name, file) = self.series.create(SegmentKind::Table, self.owner.head.epoch)?;
            writer.start_segment(name, file);
        }
        let placed = writer.place(|out| encode(out));
        let (Some((offset, crc)), Some((name, _))) = (placed, writer.open_segment()) else {
            return fail(ErrorKind::Io, "no table segment is open");
        };
        Ok(PagePointer {
            author: self.owner.image.id.0,
            sequence: name.sequence,
            pool: self.position,
            page: (offset / bytes) as u32,
            crc,
        })
    }
}

impl State {
    /// Closes the open map segment. The next checkpoint removes it if nothing in it is live.
    pub(super) fn close_map_segment(&mut self, image: &Identity) {
        close_map_segment(&mut self.pages, &mut self.table, image);
    }

    /// Closes the open segments of both kinds of pages.
    pub(super) fn close_page_segments(&mut self, image: &Identity) {
        self.close_map_segment(image);
        self.pages.table.close_segment();
    }

    /// Gives every dirty page its place and returns the root that names them. The pages are pending
    /// afterwards, even where this fails half-way.
    ///
    /// # Errors
    /// Those of [`Series::create`] and of reading the table.
    pub(super) fn place_root(
        &mut self,
        owner: &Owner<'_>,
        series: &mut Series,
    ) -> Result<RootRecord> {
        let mut root = RootRecord {
            size_bytes: self.size_bytes,
            mapped_blocks: self.map.mapped_blocks(),
            ..RootRecord::default()
        };
        self.pages.note_unwritten(&self.table, series);
        let placed = self.place_pages(owner, series, &mut root);
        self.pages.gather();
        placed.map(|()| root)
    }

    /// Gives every dirty page of the map its place, and writes all placed pages. No head names them yet.
    ///
    /// # Errors
    /// Those of [`Series::create`] and of writing.
    fn store_map(&mut self, owner: &Owner<'_>, series: &mut Series) -> Result<()> {
        self.pages.note_unwritten(&self.table, series);
        let placed = self.place_map(owner, series);
        self.pages.gather();
        placed?;
        self.pages.write_pending()
    }

    fn place_map(&mut self, owner: &Owner<'_>, series: &mut Series) -> Result<MapEntry> {
        let (pages, table) = (&mut self.pages, &mut self.table);
        self.map.store(&mut MapSink { owner, pages, table, series })
    }

    fn place_pages(
        &mut self,
        owner: &Owner<'_>,
        series: &mut Series,
        root: &mut RootRecord,
    ) -> Result<()> {
        let Owner { image, head, open } = *owner;
        let entry = self.place_map(owner, series)?;
        root.map_address = { entry.address }.0;
        root.map_crc = entry.crc;
        if entry.is_hole() {
            // The root has no map page any more, so the map segment can be removed.
            self.close_map_segment(image);
        }
        let open_map = self.pages.open_map();
        let dropped = self
            .table
            .drop_dead(|name| open.contains(name) || Some(*name) == open_map || head.keeps(name))?;
        self.pages.add_dead(dropped.into_iter().filter(|name| head.is_private(name)));
        self.rewrite_table_if_due(owner)?;
        let position = self.table.pool_position(image.pool.id());
        let before = self.own_table_segments(image)?;
        let pages = &mut self.pages;
        self.table.store(image.id, &mut TablePages { owner, pages, series, position }, root)?;
        let after = self.own_table_segments(image)?;
        let gone = before.into_iter().filter(|n| !after.contains(n) && head.is_private(n));
        self.pages.add_dead(gone);
        Ok(())
    }

    /// Segments of the image's own that hold pages of the table, without the one that is being written.
    fn own_table_segments(&self, image: &Identity) -> Result<Vec<SegmentName>> {
        let open = self.pages.open_table();
        let mut names = self.table.page_segments()?;
        names.retain(|n| n.author == image.id && Some(*n) != open);
        Ok(names)
    }

    fn rewrite_table_if_due(&mut self, owner: &Owner<'_>) -> Result<()> {
        let Some((name, end)) = self.pages.table.open_segment() else { return Ok(()) };
        let pages = end / TABLE_PAGE_BYTES as u64;
        let due =
            TABLE_REWRITE_PAGES_MIN.max(TABLE_REWRITE_FACTOR * self.table.page_count() as u64);
        if pages > due {
            self.table.rewrite(owner.image.pool.files())?;
            self.pages.table.close_segment();
            if owner.head.is_private(&name) {
                self.pages.add_dead([name]);
            }
        }
        Ok(())
    }

    /// Writes changed pages to new places, so that they can be dropped from memory. This is needed while a
    /// log is replayed that touches more of the map than the memory holds. No head names these places before
    /// the next checkpoint. Where the medium has no room, the pages stay in memory.
    ///
    /// # Errors
    /// `Exists` as [`Series::create`]; `Poisoned`, `Fenced`.
    pub(super) fn spill(
        &mut self,
        owner: &Owner<'_>,
        series: &mut Series,
        bytes_max: u64,
    ) -> Result<()> {
        let image = owner.image;
        self.evict(bytes_max, image.id);
        if self.memory_bytes() <= bytes_max || self.pages.spill_failed {
            return Ok(());
        }
        let spilled = image.pool.create_own_set(image.id);
        match spilled.and_then(|()| self.store_map(owner, series)) {
            Err(error) if error.kind().ends_writing() || error.kind() == ErrorKind::Exists => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(image = %image.label, error = %error.sentence(), "the log is replayed in memory alone");
                self.pages.spill_failed = true;
            }
            Ok(()) => self.evict(bytes_max, image.id),
        }
        Ok(())
    }
}
