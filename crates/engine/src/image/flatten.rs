//! Flatten: making an image independent of its parent.
//!
//! In the parent's pool the image's root already names every segment it needs, so only the head
//! changes. Blocks that lie in other pools are copied first, as ordinary writes of the same
//! content: an interrupted flatten leaves a valid clone with less left to copy. Snapshots of the
//! image that need another pool keep their parent.

use std::sync::Arc;

use marcot_format::record::{ParentRecord, RootRecord};
use marcot_format::segment::SegmentKind;
use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX, MapEntry, SnapId};

use super::{Image, Source, open_root};
use crate::error::{ErrorKind, Result, fail};
use crate::map::{Link, TOP_LEVEL, visit};
use crate::table::SegmentTable;

/// Blocks copied at a time (4 MiB).
const COPY_BLOCKS: usize = 1024;
/// Mapped blocks looked at in one walk.
const STRETCH_BLOCKS: usize = 64 * COPY_BLOCKS;

impl Image {
    pub(super) fn flatten(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.check_owner()?;
        let Some(parent) = self.head.parent.clone() else {
            return fail(ErrorKind::NoParent, format!("{} has no parent", self.label));
        };
        self.copy_foreign(progress)?;
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

    /// RBD's `deep-flatten` feature, which images have by default.
    fn flattens_snapshots(&self) -> bool {
        let features = &self.head.features;
        features.is_empty() || features.split(',').any(|f| f == "deep-flatten")
    }

    /// True where a root names data of this pool only.
    fn only_own_pool(&self, root: &RootRecord) -> Result<bool> {
        let mut table = SegmentTable::open(root, self.pool.files())?;
        let own = self.pool.id();
        let mut only = table.page_segments()?.iter().all(|n| n.pool == own);
        table.for_each(self.pool.files(), |_, entry, name| {
            only &= entry.live == 0 || name.pool == own;
            Ok(())
        })?;
        Ok(only)
    }

    /// Copies every block, and with it every page, that lies in another pool.
    fn copy_foreign(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
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
        let table_foreign = self.table.page_segments()?.iter().any(|n| n.pool != own);
        if data == 0 && !pages && !table_foreign {
            return Ok(());
        }
        self.begin_writing()?;
        let (mut from, mut done) = (0, 0u64);
        loop {
            let batch = self.foreign_blocks(from)?;
            let Some(last) = batch.last() else { break };
            from = last + 1;
            self.copy_blocks(&batch)?;
            done += batch.len() as u64;
            progress(done.min(data), data.max(1));
            if self.log_bytes >= super::write::CHECKPOINT_LOG_BYTES {
                self.checkpoint()?;
                self.evict(super::MAP_MEMORY_BYTES_MAX / 2);
            }
        }
        if let Some(block) = self.foreign_blocks(0)?.first() {
            let message = format!(
                "block {block} of {} cannot be read from its parent, so the image still needs it",
                self.label
            );
            return fail(ErrorKind::Corrupt, message);
        }
        self.rewrite_foreign_pages()
    }

    /// The next blocks from `from` on that lie in another pool, at most [`COPY_BLOCKS`].
    fn foreign_blocks(&mut self, mut from: u64) -> Result<Vec<u64>> {
        let own = self.pool.id();
        let files = Arc::clone(self.pool.files());
        let top = self.map.top().clone();
        let mut names = SegmentNames::default();
        let mut found = Vec::new();
        loop {
            let stretch = self.mapped_stretch(&top, from)?;
            for (block, segment) in &stretch {
                if names.pool_of(&mut self.table, *segment, &files)? != own {
                    found.push(*block);
                    if found.len() == COPY_BLOCKS {
                        return Ok(found);
                    }
                }
            }
            match stretch.last() {
                // Only own blocks in this stretch: look further.
                Some((block, _)) if found.is_empty() => from = block + 1,
                _ => return Ok(found),
            }
        }
    }

    /// Mapped blocks from `from` on, with their segments.
    fn mapped_stretch(&mut self, top: &Link, from: u64) -> Result<Vec<(u64, u32)>> {
        let mut blocks: Vec<(u64, u32)> = Vec::new();
        let mut source = Source::new(&mut self.table, Arc::clone(self.pool.files()));
        let mut show = |block: u64, entry: MapEntry| {
            blocks.push((block, { entry.address }.segment()));
            Ok(blocks.len() < STRETCH_BLOCKS)
        };
        let range = (from, IMAGE_BYTES_MAX / BLOCK_BYTES);
        visit(top, TOP_LEVEL, 0, range, &mut source, &mut show)?;
        Ok(blocks)
    }

    /// Pages in other pools whose blocks are all ours (or that name other pages only).
    fn rewrite_foreign_pages(&mut self) -> Result<()> {
        struct Foreign<'a> {
            table: SegmentTable,
            pool: &'a crate::catalog::Pool,
            pages: Vec<(MapEntry, u32, u64)>,
        }
        impl crate::map::Visitor for Foreign<'_> {
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
            fn block(&mut self, _: u64, _: MapEntry) -> Result<bool> {
                Ok(true)
            }
        }
        self.checkpoint()?;
        let root = self.head.root.clone().unwrap_or_default();
        let pool = self.pool.clone();
        let (map, mut table) = open_root(&pool, &root)?;
        let names = SegmentTable::open(&root, pool.files())?;
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
