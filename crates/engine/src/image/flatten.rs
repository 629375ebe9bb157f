//! Flatten: making an image independent of its parent.
//!
//! In the parent's pool the image's root already names every segment it needs, so only the head
//! changes. Blocks that lie in other pools are copied first, as ordinary writes of the same
//! content: an interrupted flatten leaves a valid clone with less left to copy. Copying is done in
//! parts, between which the image serves its users. Snapshots of the image that need another pool
//! keep their parent.

use std::sync::Arc;

use marcot_format::record::{ParentRecord, RootRecord};
use marcot_format::segment::SegmentKind;
use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX, MapEntry, SnapId};

use super::{Image, Source, open_root};
use crate::error::{Error, ErrorKind, Result, fail};
use crate::fault::{self, Fault};
use crate::map::{Link, TOP_LEVEL, Visitor, visit};
use crate::table::SegmentTable;

/// Blocks copied at a time (4 MiB).
const COPY_BLOCKS: usize = 1024;
/// Mapped blocks looked at in one walk.
const STRETCH_BLOCKS: usize = 64 * COPY_BLOCKS;

/// How far flatten has come with copying, in this process.
#[derive(Default)]
pub(super) struct State {
    /// Blocks below lie in this pool, but for one that cannot be read.
    own_below: u64,
    /// The first block that could not be copied.
    unreadable: Option<u64>,
    /// Everything was looked at.
    done: bool,
}

impl Image {
    /// Makes the image independent of its parent. What [`Self::flatten_part`] has not copied yet
    /// is copied now.
    pub(super) fn flatten(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.check_owner()?;
        let parent = self.parent()?;
        let mut total = 0;
        loop {
            let (left, more) = match fault::is(Fault::FlattenWithoutCopy) {
                true => (0, false),
                false => self.flatten_part()?,
            };
            total = total.max(left);
            if !more {
                break;
            }
            progress(total - left, total.max(1));
        }
        if let Some(block) = std::mem::take(&mut self.flattening).unreadable {
            let message = format!(
                "block {block} of {} cannot be read from its parent, so the image still needs it",
                self.label
            );
            return fail(ErrorKind::Corrupt, message);
        }
        if self.names_foreign()? && !fault::is(Fault::FlattenWithoutCopy) {
            self.begin_writing()?;
            self.rewrite_foreign_pages()?;
        }
        let mut free = Vec::new();
        for snapshot in self.head.snapshots.iter().filter(|_| self.flattens_snapshots()) {
            let root = snapshot.root.clone().unwrap_or_default();
            if self.only_own_pool(&root)? {
                free.push(snapshot.id);
            }
        }
        self.checkpoint_with(|head| {
            head.parent = None;
            for snapshot in head.snapshots.iter_mut().filter(|s| free.contains(&s.id)) {
                snapshot.parent = None;
            }
        })?;
        self.leave_parent(&parent)
    }

    /// Copies some of what lies in other pools. Returns how many blocks are left, by count, and
    /// whether there is more to look at.
    pub(super) fn flatten_part(&mut self) -> Result<(u64, bool)> {
        self.check_owner()?;
        self.parent()?;
        if self.flattening.done || !self.names_foreign()? {
            return Ok((0, false));
        }
        self.begin_writing()?;
        let (foreign, next) = self.foreign_blocks(self.flattening.own_below)?;
        let uncopied = self.copy_blocks(&foreign)?;
        self.flattening.unreadable = self.flattening.unreadable.or(uncopied);
        match next {
            Some(next) => self.flattening.own_below = next,
            None => self.flattening.done = true,
        }
        if self.log_bytes >= self.limits().checkpoint_log_bytes {
            self.checkpoint()?;
            self.evict(self.limits().map_memory_bytes_soft());
        }
        Ok((self.foreign_live()?.0, !self.flattening.done))
    }

    fn parent(&self) -> Result<ParentRecord> {
        self.head
            .parent
            .clone()
            .ok_or_else(|| Error::new(ErrorKind::NoParent, format!("{} has no parent", self.label)))
    }

    /// RBD's `deep-flatten` feature, which images have by default.
    fn flattens_snapshots(&self) -> bool {
        let features = &self.head.features;
        features.is_empty() || features.split(',').any(|f| f == "deep-flatten")
    }

    /// True where a root names data of this pool only.
    fn only_own_pool(&self, root: &RootRecord) -> Result<bool> {
        let mut table = SegmentTable::open(root, self.pool.id(), self.pool.files())?;
        let own = self.pool.id();
        let mut only = table.page_segments()?.iter().all(|n| n.pool == own);
        table.for_each(self.pool.files(), |_, entry, name| {
            only &= entry.live == 0 || name.pool == own;
            Ok(())
        })?;
        Ok(only)
    }

    /// Data blocks in other pools, by the table's counts, and whether pages lie there.
    fn foreign_live(&mut self) -> Result<(u64, bool)> {
        let own = self.pool.id();
        let files = Arc::clone(self.pool.files());
        let (mut data, mut pages) = (0u64, false);
        self.table.for_each(&files, |_, entry, name| {
            if name.pool != own && name.kind == SegmentKind::Data {
                data += u64::from(entry.live);
            }
            pages |= name.pool != own && name.kind == SegmentKind::Map && entry.live > 0;
            Ok(())
        })?;
        Ok((data, pages))
    }

    /// True where the image may need files of another pool.
    fn names_foreign(&mut self) -> Result<bool> {
        let own = self.pool.id();
        let (data, pages) = self.foreign_live()?;
        Ok(data > 0 || pages || self.table.page_segments()?.iter().any(|n| n.pool != own))
    }

    /// Some of the next blocks from `from` on that lie in another pool, at most [`COPY_BLOCKS`] and
    /// maybe none, and where to look next; `None` when all were looked at.
    fn foreign_blocks(&mut self, from: u64) -> Result<(Vec<u64>, Option<u64>)> {
        let own = self.pool.id();
        let files = Arc::clone(self.pool.files());
        let top = self.map.top().clone();
        let mut names = SegmentNames::default();
        let mut found = Vec::new();
        let stretch = self.mapped_stretch(&top, from)?;
        for (block, segment) in &stretch {
            if names.pool_of(&mut self.table, *segment, &files)? != own {
                found.push(*block);
                if found.len() == COPY_BLOCKS {
                    return Ok((found, Some(block + 1)));
                }
            }
        }
        let next = stretch.last().filter(|_| stretch.len() == STRETCH_BLOCKS);
        Ok((found, next.map(|(block, _)| block + 1)))
    }

    /// Mapped blocks from `from` on, with their segments.
    fn mapped_stretch(&mut self, top: &Link, from: u64) -> Result<Vec<(u64, u32)>> {
        struct Stretch(Vec<(u64, u32)>);
        impl Visitor for Stretch {
            /// Nothing can be copied, and nothing of the parent is named.
            fn lost(&mut self, _: u64, _: u64) -> Result<bool> {
                Ok(true)
            }
            fn block(&mut self, block: u64, entry: MapEntry) -> Result<bool> {
                self.0.push((block, { entry.address }.segment()));
                Ok(self.0.len() < STRETCH_BLOCKS)
            }
        }
        let mut source = Source::new(&mut self.table, Arc::clone(self.pool.files()));
        let range = (from, IMAGE_BYTES_MAX / BLOCK_BYTES);
        let mut stretch = Stretch(Vec::new());
        visit(top, TOP_LEVEL, 0, range, &mut source, &mut stretch)?;
        Ok(stretch.0)
    }

    /// Pages in other pools whose blocks are all ours (or that name other pages only).
    fn rewrite_foreign_pages(&mut self) -> Result<()> {
        struct Foreign<'a> {
            table: SegmentTable,
            pool: &'a crate::catalog::Pool,
            pages: Vec<(MapEntry, u32, u64)>,
        }
        impl Visitor for Foreign<'_> {
            fn page(&mut self, entry: MapEntry, level: u32, base: u64) -> Result<bool> {
                if entry.is_hole() {
                    return Ok(false);
                }
                let address = entry.address;
                let name = self.table.name(address.segment(), self.pool.files())?;
                if name.pool != self.pool.id() {
                    self.pages.push((entry, level, base));
                }
                Ok(level > 0)
            }
            fn lost(&mut self, _: u64, _: u64) -> Result<bool> {
                Ok(true)
            }
            fn block(&mut self, _: u64, _: MapEntry) -> Result<bool> {
                Ok(true)
            }
        }
        self.checkpoint()?;
        let root = self.head.root.clone().unwrap_or_default();
        let pool = self.pool.clone();
        let (map, mut table) = open_root(&pool, &root)?;
        let names = SegmentTable::open(&root, pool.id(), pool.files())?;
        let mut foreign = Foreign { table: names, pool: &pool, pages: Vec::new() };
        let mut source = Source::new(&mut table, Arc::clone(pool.files()));
        let all = (0, IMAGE_BYTES_MAX / BLOCK_BYTES);
        visit(map.top(), TOP_LEVEL, 0, all, &mut source, &mut foreign)?;
        for (entry, level, base) in foreign.pages {
            let (map, mut source) = self.parts();
            map.rewrite_page(entry.address, level, base, &mut source)?;
        }
        let files = Arc::clone(self.pool.files());
        self.table.rewrite(&files)?;
        self.changed = true;
        Ok(())
    }

    /// Removes the record of this image as a child, unless a head or snapshot still needs it.
    pub(super) fn leave_parent(&mut self, parent: &ParentRecord) -> Result<()> {
        let same = |p: &ParentRecord| {
            (p.pool_id, p.image_id, p.snap_id) == (parent.pool_id, parent.image_id, parent.snap_id)
        };
        let needed = self.head.parent.as_ref().is_some_and(same)
            || self.head.snapshots.iter().filter_map(|s| s.parent.as_ref()).any(same);
        if needed {
            return Ok(());
        }
        self.pool.remove_child_record(parent, SnapId(parent.snap_id), self.id)
    }
}

/// Remembers the pool of the segment asked for last.
#[derive(Default)]
struct SegmentNames {
    last: Option<(u32, marcot_format::PoolId)>,
}

impl SegmentNames {
    fn pool_of(
        &mut self,
        table: &mut SegmentTable,
        segment: u32,
        files: &crate::segment::Files,
    ) -> Result<marcot_format::PoolId> {
        match self.last {
            Some((known, pool)) if known == segment => Ok(pool),
            _ => {
                let pool = table.name(segment, files)?.pool;
                self.last = Some((segment, pool));
                Ok(pool)
            }
        }
    }
}
