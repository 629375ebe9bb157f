//! The segment table of a root in memory: index to segment, with counts of what the root names.
//!
//! Invariants:
//! - Index 0 is never used; an index is never used twice in the life of a lineage of roots.
//! - `live` of an entry is the number of slots (units, for map segments) that the root names; an
//!   entry with none is dropped at the next checkpoint, unless it is still being written.
//! - Every page above the lowest level is in memory: for an image of 64 TiB that was written
//!   sequentially, they are a MiB.
//! - A page of the lowest level leaves memory only in [`SegmentTable::evict`], and only where it is
//!   the same as on disk. An image evicts between writes and not within one. So a page that a write
//!   has loaded, in order that a later change of it cannot fail, stays until that write is done.

mod at_hand;
mod places;
mod store;

use marcot_format::record::{RootRecord, TablePointer};
use marcot_format::segment::SegmentKind;
use marcot_format::table::{
    PagePointer, SegmentEntry, TABLE_FANOUT, TABLE_LEVELS_MAX, TABLE_PAGE_BYTES, TablePage,
    decode_table,
};
use marcot_format::{ImageId, PoolId, SegmentIndex};

use at_hand::Waiting;
pub(crate) use places::{Guide, Place, Whereabouts};
pub(crate) use store::TableSink;

use crate::error::{Error, ErrorKind, Result, fail};
use crate::segment::{Authors, Files, SegmentName};

type Entries = Box<[Option<SegmentEntry>]>;

/// Memory of a loaded page of the lowest level, in bytes.
const LEAF_BYTES: u64 = (TABLE_FANOUT * size_of::<Option<SegmentEntry>>()) as u64 + 16;

/// A page of the lowest level.
#[derive(Debug, Default)]
struct Leaf {
    stored: Option<PagePointer>,
    entries: Option<Entries>,
    dirty: bool,
}

/// A page above the lowest level. Its content is the `stored` pointers of the pages below it.
#[derive(Debug, Default, Clone)]
struct Upper {
    stored: Option<PagePointer>,
    dirty: bool,
}

/// The table of one root.
#[derive(Debug)]
pub(crate) struct SegmentTable {
    /// The places that the root records. They are stored with the table again. Data in other pools
    /// gets a new place here only when a flatten of this image has copied it.
    recorded: Vec<Place>,
    /// Where segments are read: the recorded place, or where an ancestor's flatten has copied them.
    places: Vec<Place>,
    guide: Option<Guide>,
    /// The authors of all segments that were asked for.
    authors: Authors,
    /// The author asked for last: saves a look into `authors`.
    author: Option<(PoolId, ImageId)>,
    next: u32,
    leaves: Vec<Leaf>,
    /// Levels above the leaves, lowest first; the last has one page, if there is any.
    upper: Vec<Vec<Upper>>,
    waiting: Waiting,
    /// Leaves that are loaded.
    loaded: usize,
    /// The leaf that eviction looked at last. Eviction goes round, so that the leaves it looked at
    /// last stay longest.
    evict_at: usize,
}

impl SegmentTable {
    /// A table with no segments.
    pub(crate) fn new() -> Self {
        Self {
            recorded: Vec::new(),
            places: Vec::new(),
            guide: None,
            authors: Authors::new(),
            author: None,
            next: 1,
            leaves: Vec::new(),
            upper: Vec::new(),
            waiting: Waiting::default(),
            loaded: 0,
            evict_at: 0,
        }
    }

    /// Opens the table of a root that a head of the pool `reader` holds. Reads all pages except those
    /// of the lowest level.
    ///
    /// # Errors
    /// `Corrupt`; `PermissionDenied` where the root names data that the pool `reader` may not name.
    pub(crate) fn open(
        root: &RootRecord,
        reader: PoolId,
        files: &Files,
        guide: Guide,
    ) -> Result<Self> {
        let mut table = Self::new();
        table.guide = Some(guide);
        table.recorded = Place::all(root);
        table.places = table.recorded.clone();
        table.next = root.segment_next.max(1);
        let levels = root.table_levels;
        if levels > TABLE_LEVELS_MAX || table.places.len() > usize::from(u16::MAX) {
            return fail(ErrorKind::Corrupt, "the head names an impossible segment table");
        }
        for place in &mut table.places {
            if !files.check_named(reader, place.pool)? {
                *place = Place::UNKNOWN;
            }
        }
        let Some(top) = root.table.filter(|_| levels > 0) else {
            if table.next as usize >= TABLE_FANOUT {
                return fail(ErrorKind::Corrupt, "the head lacks its segment table");
            }
            return Ok(table);
        };
        let pool = u16::try_from(top.pool).unwrap_or(u16::MAX);
        let TablePointer { author, sequence, page, crc, .. } = top;
        let mut pointers = vec![Some(PagePointer { author, sequence, pool, page, crc })];
        for level in (1..levels).rev() {
            let uppers = pointers.iter().map(|p| Upper { stored: *p, dirty: false }).collect();
            table.upper.insert(0, uppers);
            let mut below = Vec::with_capacity(pointers.len() * TABLE_FANOUT);
            for (i, pointer) in pointers.iter().enumerate() {
                below.extend(table.read_pointers(files, *pointer, level, i as u64)?);
            }
            while below.last() == Some(&None) {
                below.pop();
            }
            // Tables grow at their end only, so a gap is damage. If gaps were accepted, each would stand
            // for 126 pages at every level below it, and a few hostile bytes could take up all memory.
            if below.contains(&None) {
                return fail(ErrorKind::Corrupt, "the segment table lacks pages in its middle");
            }
            pointers = below;
        }
        table.leaves =
            pointers.into_iter().map(|stored| Leaf { stored, ..Leaf::default() }).collect();
        if table.next as usize / TABLE_FANOUT > table.leaves.len() {
            return fail(ErrorKind::Corrupt, "the head names an impossible segment table");
        }
        Ok(table)
    }

    /// Asks the guide where the data lies now and uses those places from now on. Returns false where
    /// nothing has moved.
    pub(crate) fn follow(&mut self) -> bool {
        let Some(now) = self.guide.as_ref().and_then(|guide| guide.0.places()) else {
            return false;
        };
        let moved = self.look_in(now);
        if moved {
            tracing::info!("data was moved to another pool by the flatten of an ancestor");
        }
        moved
    }

    /// Looks for segments in these places from now on. Returns false where they are the same as before.
    pub(crate) fn look_in(&mut self, now: Vec<Place>) -> bool {
        let mut moved = false;
        for (place, now) in self.places.iter_mut().zip(now) {
            moved |= *place != now;
            *place = now;
        }
        moved
    }

    /// Where its segments are looked for, by position.
    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    /// Sets the guide that knows where data lies, because the table belongs to another root now.
    pub(crate) fn set_guide(&mut self, guide: Guide) {
        self.guide = Some(guide);
    }

    /// Records that the data that lay in other pools, as far as `moved` says so, lies in the place `here` from now on.
    pub(crate) fn move_to(&mut self, here: Place, moved: impl Fn(PoolId) -> bool) {
        for (recorded, place) in self.recorded.iter_mut().zip(&mut self.places) {
            if recorded.pool != here.pool && moved(recorded.pool) {
                (*recorded, *place) = (here, here);
            }
        }
    }

    fn read_page(
        &mut self,
        files: &Files,
        pointer: PagePointer,
        level: u32,
        number: u64,
    ) -> Result<TablePage> {
        match self.read_page_here(files, pointer, level, number) {
            // What cannot be looked at now has not moved because of that.
            Err(error) if !error.kind().is_obstacle() && self.follow() => {
                self.read_page_here(files, pointer, level, number)
            }
            page => page,
        }
    }

    fn read_page_here(
        &mut self,
        files: &Files,
        pointer: PagePointer,
        level: u32,
        number: u64,
    ) -> Result<TablePage> {
        let name = self.name_of_page(pointer)?;
        let mut bytes = vec![0; TABLE_PAGE_BYTES];
        let offset = u64::from(pointer.page) * TABLE_PAGE_BYTES as u64;
        let n = self.read_segment(files, name, offset, &mut bytes)?;
        let base = number * (TABLE_FANOUT as u64).pow(level + 1);
        let damaged = || format!("page {} of table segment {name} is damaged", pointer.page);
        let (page, crc) = decode_table(&bytes[..n], level as u8, base)
            .map_err(|e| Error::from_format(damaged(), e))?;
        if crc != pointer.crc {
            return fail(ErrorKind::Corrupt, damaged());
        }
        Ok(page)
    }

    fn read_pointers(
        &mut self,
        files: &Files,
        pointer: Option<PagePointer>,
        level: u32,
        number: u64,
    ) -> Result<Vec<Option<PagePointer>>> {
        let Some(pointer) = pointer else { return Ok(vec![None; TABLE_FANOUT]) };
        match self.read_page(files, pointer, level, number)? {
            TablePage::Pointers(pointers) => Ok(pointers),
            TablePage::Segments(_) => fail(ErrorKind::Corrupt, "a table page of the wrong level"),
        }
    }

    fn name_of_page(&self, pointer: PagePointer) -> Result<SegmentName> {
        let Place { pool, copies } = self.place_at(pointer.pool)?;
        Ok(SegmentName {
            pool,
            copies,
            author: ImageId(pointer.author),
            kind: SegmentKind::Table,
            sequence: pointer.sequence,
        })
    }

    fn place_at(&self, position: u16) -> Result<Place> {
        let place = self.places.get(usize::from(position)).copied();
        place.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "the head lacks a pool that it refers to")
        })
    }

    /// Position in the root's list of the place for new segments in a pool. Adds the place if it is new.
    pub(crate) fn pool_position(&mut self, pool: PoolId) -> u16 {
        let place = Place { pool, copies: 0 };
        let at = self.recorded.iter().position(|p| *p == place).unwrap_or_else(|| {
            self.recorded.push(place);
            self.places.push(place);
            self.places.len() - 1
        });
        at as u16
    }

    fn entries(&mut self, number: usize, files: &Files) -> Result<&mut Entries> {
        if self.leaves.len() <= number {
            self.leaves.resize_with(number + 1, Leaf::default);
        }
        if self.leaves[number].entries.is_none() {
            let entries = match self.leaves[number].stored {
                None => vec![None; TABLE_FANOUT],
                Some(pointer) => match self.read_page(files, pointer, 0, number as u64)? {
                    TablePage::Segments(entries) => entries,
                    TablePage::Pointers(_) => {
                        return fail(ErrorKind::Corrupt, "a table page of the wrong level");
                    }
                },
            };
            self.leaves[number].entries = Some(entries.into_boxed_slice());
            self.loaded += 1;
        }
        match &mut self.leaves[number].entries {
            Some(entries) => Ok(entries),
            None => unreachable!("loaded above"),
        }
    }

    /// Fails for an index beyond the table, so that a hostile index cannot make the table grow.
    fn check_index(&self, index: SegmentIndex) -> Result<()> {
        if index.0 as usize / TABLE_FANOUT >= self.leaves.len() {
            let message = format!("the map names segment index {}, which the table lacks", index.0);
            return fail(ErrorKind::Corrupt, message);
        }
        Ok(())
    }

    /// The segment at an index.
    ///
    /// # Errors
    /// `Corrupt` where the index is not in use, or the page is damaged.
    pub(crate) fn get(&mut self, index: SegmentIndex, files: &Files) -> Result<SegmentEntry> {
        self.check_index(index)?;
        let entries = self.entries(index.0 as usize / TABLE_FANOUT, files)?;
        entries[index.0 as usize % TABLE_FANOUT].ok_or_else(|| {
            let message = format!("the map names segment index {}, which the table lacks", index.0);
            Error::new(ErrorKind::Corrupt, message)
        })
    }

    /// The name of the segment at an index.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn name(&mut self, index: SegmentIndex, files: &Files) -> Result<SegmentName> {
        let entry = self.get(index, files)?;
        let name = self.name_of(&entry)?;
        let author = Some((name.pool, name.author));
        if self.author != author {
            self.author = author;
            self.authors.extend(author);
        }
        Ok(name)
    }

    /// Authors whose segments may have been opened through this table.
    pub(crate) fn authors(&self) -> Authors {
        let pages = self.page_segments().unwrap_or_default();
        let of_pages = pages.into_iter().map(|name| (name.pool, name.author));
        self.authors.iter().copied().chain(of_pages).collect()
    }

    /// The name of an entry's segment.
    pub(crate) fn name_of(&self, entry: &SegmentEntry) -> Result<SegmentName> {
        let Place { pool, copies } = self.place_at(entry.pool)?;
        Ok(SegmentName {
            pool,
            copies,
            author: ImageId(entry.author),
            kind: entry.kind,
            sequence: entry.sequence,
        })
    }

    /// The pool that the root records for a segment, even where the segment is read elsewhere now.
    pub(crate) fn recorded_pool(&mut self, index: SegmentIndex, files: &Files) -> Result<PoolId> {
        let position = self.get(index, files)?.pool;
        self.recorded_pool_at(position)
    }

    /// As [`Self::recorded_pool`], by the position in an entry.
    pub(crate) fn recorded_pool_at(&self, position: u16) -> Result<PoolId> {
        let place = self.recorded.get(usize::from(position));
        place.map(|place| place.pool).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                "a segment table names a pool that its root does not have",
            )
        })
    }

    /// Pools that the root records, by position.
    pub(crate) fn recorded_pools(&self) -> Vec<PoolId> {
        self.recorded.iter().map(|place| place.pool).collect()
    }

    /// True where the root records a page of this table in a pool for which `takes` is true.
    pub(crate) fn has_pages_in(&self, takes: impl Fn(PoolId) -> bool) -> Result<bool> {
        let leaves = self.leaves.iter().filter_map(|l| l.stored);
        let upper = self.upper.iter().flatten().filter_map(|u| u.stored);
        for pointer in leaves.chain(upper) {
            if takes(self.recorded_pool_at(pointer.pool)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Loads what [`Self::add`] will change, so that it cannot fail.
    ///
    /// # Errors
    /// `NoSpace` where the table is full; those of reading a page.
    pub(crate) fn prepare_add(&mut self, files: &Files) -> Result<()> {
        if self.next == u32::MAX {
            return fail(ErrorKind::NoSpace, "the segment table of the image is full");
        }
        self.entries(self.next as usize / TABLE_FANOUT, files).map(drop)
    }

    /// Adds a segment and returns its index.
    pub(crate) fn add(&mut self, name: SegmentName, files: &Files) -> Result<SegmentIndex> {
        let index = SegmentIndex(self.next);
        self.prepare_add(files)?;
        let entry = SegmentEntry {
            author: name.author.0,
            sequence: name.sequence,
            pool: self.pool_position(name.pool),
            kind: name.kind,
            live: 0,
            used: 0,
        };
        let number = index.0 as usize / TABLE_FANOUT;
        self.entries(number, files)?[index.0 as usize % TABLE_FANOUT] = Some(entry);
        self.leaves[number].dirty = true;
        self.next += 1;
        Ok(index)
    }

    /// Changes the counts of the segment at an index.
    pub(crate) fn count(
        &mut self,
        index: SegmentIndex,
        live: i64,
        used: u32,
        files: &Files,
    ) -> Result<()> {
        self.check_index(index)?;
        let number = index.0 as usize / TABLE_FANOUT;
        let slot = &mut self.entries(number, files)?[index.0 as usize % TABLE_FANOUT];
        let Some(entry) = slot else {
            let message = format!("the map names segment index {}, which the table lacks", index.0);
            return fail(ErrorKind::Corrupt, message);
        };
        // Wrong counts of a damaged table must not stop the owner. `check` finds them.
        entry.live = u32::try_from((i64::from(entry.live) + live).max(0)).unwrap_or(u32::MAX);
        entry.used = entry.used.saturating_add(used);
        self.leaves[number].dirty = true;
        Ok(())
    }

    /// Shows every segment with its index.
    pub(crate) fn for_each(
        &mut self,
        files: &Files,
        mut show: impl FnMut(SegmentIndex, SegmentEntry, SegmentName) -> Result<()>,
    ) -> Result<()> {
        (0..self.leaves.len()).try_for_each(|number| self.for_each_of(number, files, &mut show))
    }

    /// Shows the segments of one page of the lowest level; none where the table lacks that page.
    pub(crate) fn for_each_of(
        &mut self,
        number: usize,
        files: &Files,
        mut show: impl FnMut(SegmentIndex, SegmentEntry, SegmentName) -> Result<()>,
    ) -> Result<()> {
        let Some(leaf) = self.leaves.get(number) else { return Ok(()) };
        let loaded = leaf.entries.is_some();
        let entries = self.entries(number, files)?.clone();
        if !loaded {
            self.leaves[number].entries = None;
            self.loaded -= 1;
        }
        for (i, entry) in entries.iter().enumerate() {
            if let Some(entry) = entry {
                let name = self.name_of(entry)?;
                show(SegmentIndex((number * TABLE_FANOUT + i) as u32), *entry, name)?;
            }
        }
        Ok(())
    }

    /// Number of pages of the lowest level.
    pub(crate) fn leaf_count(&self) -> usize {
        self.leaves.len()
    }

    /// True where page `number` of the lowest level is the same page on disk in both tables, and this
    /// table has not changed it since.
    pub(crate) fn has_leaf_of(&self, other: &Self, number: usize) -> bool {
        let stored = |table: &Self| {
            let leaf = table.leaves.get(number).filter(|leaf| !leaf.dirty);
            leaf.and_then(|leaf| leaf.stored)
        };
        stored(self).is_some_and(|page| stored(other) == Some(page))
    }

    /// Drops the entries of segments that the root names nothing of, except those that `keep` wants.
    /// Returns the segments. Only pages changed since the last checkpoint are looked at, because counts
    /// fall nowhere else. So an entry that was kept is looked at again only after [`Self::look_again`].
    pub(crate) fn drop_dead(
        &mut self,
        keep: impl Fn(&SegmentName) -> bool,
    ) -> Result<Vec<SegmentName>> {
        let mut dead = Vec::new();
        for number in 0..self.leaves.len() {
            if !self.leaves[number].dirty {
                continue;
            }
            for i in 0..TABLE_FANOUT {
                let entry = self.leaves[number].entries.as_ref().and_then(|e| e[i]);
                let Some(entry) = entry.filter(|e| e.live == 0) else { continue };
                let name = self.name_of(&entry)?;
                if !keep(&name) {
                    dead.push(name);
                    if let Some(entries) = &mut self.leaves[number].entries {
                        entries[i] = None;
                    }
                }
            }
        }
        Ok(dead)
    }

    /// Makes the next [`Self::drop_dead`] look at an entry that was kept, if the root names nothing of
    /// its segment.
    pub(crate) fn look_again(&mut self, index: SegmentIndex, files: &Files) -> Result<()> {
        match self.get(index, files)?.live {
            0 => self.count(index, 0, 0, files),
            _ => Ok(()),
        }
    }

    /// As [`Self::look_again`], for a segment of the image `label` that is not appended to any more. Where its
    /// entry cannot be read, the segment may be left behind.
    pub(crate) fn close_segment(&mut self, index: SegmentIndex, files: &Files, label: &str) {
        if let Err(error) = self.look_again(index, files) {
            tracing::warn!(image = %label, error = %error.sentence(), "a segment may be left behind");
        }
    }

    /// True where [`Self::drop_dead`] would drop a segment for which `goes` is true.
    pub(crate) fn has_dead(&self, goes: impl Fn(&SegmentName) -> bool) -> bool {
        let looked_at = self.leaves.iter().filter(|leaf| leaf.dirty);
        let entries = looked_at.filter_map(|leaf| leaf.entries.as_ref());
        let mut dead = entries.flat_map(|e| e.iter().flatten()).filter(|entry| entry.live == 0);
        dead.any(|entry| self.name_of(entry).is_ok_and(|name| goes(&name)))
    }

    /// Pages of this table that are on disk: segment, page number and checksum.
    pub(crate) fn pages(&self) -> Result<Vec<(SegmentName, u32, u32)>> {
        let leaves = self.leaves.iter().filter_map(|l| l.stored);
        let upper = self.upper.iter().flatten().filter_map(|u| u.stored);
        leaves.chain(upper).map(|p| Ok((self.name_of_page(p)?, p.page, p.crc))).collect()
    }

    /// As [`Self::pages`], only the pages that the root records in pools for which `takes` is true.
    pub(crate) fn pages_in(
        &self,
        takes: impl Fn(PoolId) -> bool,
    ) -> Result<Vec<(SegmentName, u32, u32)>> {
        let leaves = self.leaves.iter().filter_map(|l| l.stored);
        let upper = self.upper.iter().flatten().filter_map(|u| u.stored);
        let mut found = Vec::new();
        for pointer in leaves.chain(upper) {
            if takes(self.recorded_pool_at(pointer.pool)?) {
                found.push((self.name_of_page(pointer)?, pointer.page, pointer.crc));
            }
        }
        Ok(found)
    }

    /// The table segments that hold pages of this table.
    pub(crate) fn page_segments(&self) -> Result<Vec<SegmentName>> {
        let mut names: Vec<_> = self.pages()?.into_iter().map(|(name, ..)| name).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Number of pages of the table, on all levels.
    pub(crate) fn page_count(&self) -> usize {
        self.leaves.len() + self.upper.iter().map(Vec::len).sum::<usize>()
    }

    /// Index that the next segment will get.
    pub(crate) fn next_index(&self) -> SegmentIndex {
        SegmentIndex(self.next)
    }

    /// Memory of loaded pages of the lowest level, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.loaded as u64 * LEAF_BYTES
    }

    /// Drops loaded pages until at most `bytes_max` stay in memory, or no more can be dropped. A page
    /// is dropped only where it is clean and `on_disk` says that it has reached the disk.
    pub(crate) fn evict(&mut self, bytes_max: u64, on_disk: &dyn Fn(PagePointer) -> bool) {
        for _ in 0..self.leaves.len() {
            if self.resident_bytes() <= bytes_max {
                return;
            }
            self.evict_at = (self.evict_at + 1) % self.leaves.len();
            let leaf = &mut self.leaves[self.evict_at];
            let clean = !leaf.dirty && leaf.stored.is_some_and(on_disk);
            if clean && leaf.entries.take().is_some() {
                self.loaded -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
