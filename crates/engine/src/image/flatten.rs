//! Flatten: making an image independent of its parent, together with its snapshots.
//!
//! Where the parent lies in the same pool, the image's roots name every segment that they need, so only the
//! head changes. Data in other pools is copied first, in parts. Between the parts, the image serves its
//! users. An interrupted flatten leaves a valid clone with less left to copy.
//!
//! - Without snapshots, blocks are copied as ordinary writes of the same content. Then they belong to the
//!   image, and their space comes back as after any write.
//! - With snapshots, the segments are copied ([`super::copies`]), so that all states go on sharing what they
//!   share. Snapshots are handled from the oldest on, each compared with the one before it, and then the
//!   head. A block that ten of them share is copied once.
//!
//! Clones of the image's snapshots go on naming the originals. Where these are gone, the clones find the
//! copies ([`crate::root`]). An image without the feature `deep-flatten` leaves its snapshots with the
//! parent, as with RBD.

use std::sync::Arc;

use marcot_format::record::{HeadRecord, ParentRecord, RootRecord, SnapshotRecord};
use marcot_format::segment::SegmentKind;
use marcot_format::{
    BLOCK_BYTES, IMAGE_BYTES_MAX, ImageId, MapEntry, PoolId, SegmentIndex, SnapId,
};

use super::copies::{Copies, runs};
use super::{Image, OwnedRoot, Source, empty_root};
use crate::catalog::Pool;
use crate::error::{ErrorKind, Result, fail};
use crate::fault::{self, Fault};
use crate::map::{Link, TOP_LEVEL, Visitor, visit, visit_unshared};
use crate::table::{Place, SegmentTable};

/// Blocks copied at a time (4 MiB).
const COPY_BLOCKS: usize = 1024;
/// Mapped blocks looked at in one walk.
const STRETCH_BLOCKS: usize = 64 * COPY_BLOCKS;
/// The same where states are compared. Each of these walks begins at the tops of two maps.
const COMPARED_BLOCKS: usize = 8 * COPY_BLOCKS;

/// Which data is copied into the image's own pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Scope {
    /// That of all other pools: the image becomes independent.
    #[default]
    Flatten,
    /// That of the pool of the source of a migration. What the image has from a parent elsewhere stays there.
    Migration(PoolId),
}

impl Scope {
    /// True for a place from which data is copied to the pool `own`.
    fn takes(self, from: PoolId, own: PoolId) -> bool {
        match self {
            Self::Flatten => from != own,
            Self::Migration(source) => from == source && from != own,
        }
    }
}

/// How far copying has come, in this process.
#[derive(Default)]
pub(super) struct Flattening {
    /// What is copied. Work on another scope begins anew.
    scope: Scope,
    /// Blocks below this one lie in this pool, except those that cannot be read.
    own_below: u64,
    /// The first block that could not be copied, and of which state.
    unreadable: Option<(String, u64)>,
    /// All blocks of the head were looked at.
    done: bool,
    /// With snapshots: the copies, and how far the comparison of states has come.
    deep: Option<Deep>,
}

/// Copying for an image with snapshots.
#[derive(Default)]
struct Deep {
    copies: Copies,
    /// Snapshots with numbers up to here are done.
    done_snap: u64,
    /// The snapshot that is being looked at; `None`: the head.
    at: Option<u64>,
    /// Blocks of that state below this one are done.
    below: u64,
    /// Everything is copied, durably.
    done: bool,
    /// About how many blocks there are to copy.
    total: u64,
    /// Blocks that were handled so far.
    copied: u64,
}

impl Image {
    /// Makes the image independent of its parent. What [`Self::flatten_part`] has not copied yet
    /// is copied now.
    pub(super) fn flatten_all(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let parents = self.parents()?;
        self.check_may_change()?;
        let mut total = 0;
        loop {
            let (left, more) = match fault::is(Fault::FlattenWithoutCopy) {
                true => (0, false),
                false => self.flatten_some()?,
            };
            total = total.max(left);
            if !more {
                break;
            }
            progress(total - left, total.max(1));
        }
        let state = self.end_of_copying()?;
        let deep = self.flattens_snapshots();
        let set = match state.deep {
            Some(Deep { copies, .. }) => copies.set,
            None if deep && fault::is(Fault::FlattenWithoutCopy) => self.identity.pool.unique(),
            None => 0,
        };
        if set == 0 && self.names_foreign()? && !fault::is(Fault::FlattenWithoutCopy) {
            self.begin_writing()?;
            self.rewrite_foreign_pages(Scope::Flatten)?;
        }
        let here = Place { pool: self.identity.pool.id(), copies: set };
        for parent in &parents {
            self.mark_heir_of(parent)?;
        }
        self.checkpoint_with(|head| {
            head.parent = None;
            if deep {
                head.copying = 0;
                head.snapshots.iter_mut().for_each(|snapshot| snapshot.parent = None);
                move_to(head, here, Scope::Flatten);
            }
        })?;
        if set != 0 {
            self.state.table.move_to(here, |_| true);
        }
        parents.iter().try_for_each(|parent| self.leave_parent(parent))
    }

    /// Copies some of the data that lies in other pools. Returns how many blocks are left by the table's
    /// counts, and whether more is to be looked at.
    pub(super) fn flatten_some(&mut self) -> Result<(u64, bool)> {
        self.parents()?;
        self.copy_some(Scope::Flatten)
    }

    /// What copying has left behind. Fails where a block could not be read.
    fn end_of_copying(&mut self) -> Result<Flattening> {
        let state = std::mem::take(&mut self.state.flattening);
        if let Some((label, block)) = &state.unreadable {
            let of = match state.scope {
                Scope::Flatten => "parent",
                Scope::Migration(_) => "source",
            };
            let message = format!(
                "block {block} of {label} cannot be read from its {of}, so the image still needs it"
            );
            return fail(ErrorKind::Corrupt, message);
        }
        Ok(state)
    }

    /// As [`Self::flatten_some`], for data of this scope.
    pub(super) fn copy_some(&mut self, scope: Scope) -> Result<(u64, bool)> {
        self.check_may_change()?;
        if self.state.flattening.scope != scope {
            self.state.flattening = Flattening { scope, ..Flattening::default() };
        }
        let has_snapshots = match scope {
            Scope::Flatten => self.flattens_snapshots(),
            Scope::Migration(_) => true,
        };
        if self.state.flattening.deep.is_some() || (has_snapshots && self.snapshots_need(scope)?) {
            return self.deep_part();
        }
        if self.state.flattening.done || !self.head_needs(scope)? {
            return Ok((0, false));
        }
        self.begin_writing()?;
        let (foreign, next) = self.foreign_blocks(self.state.flattening.own_below)?;
        if let Some(block) = self.copy_blocks(&foreign)? {
            self.state
                .flattening
                .unreadable
                .get_or_insert_with(|| (self.identity.label.clone(), block));
        }
        match next {
            Some(next) => self.state.flattening.own_below = next,
            None => self.state.flattening.done = true,
        }
        if self.journal.bytes() >= self.limits().checkpoint_log_bytes {
            self.checkpoint()?;
            self.evict(self.limits().map_memory_bytes_soft());
        }
        Ok((self.foreign_live(scope)?.0, !self.state.flattening.done))
    }

    /// The snapshots that the image was cloned from and, where its snapshots are flattened too, those that
    /// they were cloned from.
    fn parents(&self) -> Result<Vec<ParentRecord>> {
        let mut parents: Vec<ParentRecord> = self.head.parent.iter().cloned().collect();
        if self.flattens_snapshots() {
            for parent in self.head.snapshots.iter().filter_map(|s| s.parent.as_ref()) {
                if !parents.iter().any(|known| same(known, parent)) {
                    parents.push(parent.clone());
                }
            }
        }
        match parents.is_empty() {
            true => fail(ErrorKind::NoParent, format!("{} has no parent", self.identity.label)),
            false => Ok(parents),
        }
    }

    /// True for the target of a migration with `flatten` that still has a parent.
    pub(super) fn is_to_be_flattened(&self) -> bool {
        self.head.migration.as_ref().is_some_and(|migration| migration.flatten)
            && self.parents().is_ok()
    }

    /// RBD's `deep-flatten` feature, which images have by default.
    fn flattens_snapshots(&self) -> bool {
        let features = &self.head.features;
        features.is_empty() || features.split(',').any(|f| f == "deep-flatten")
    }

    /// True where a snapshot may need files of another pool that are copied.
    fn snapshots_need(&self, scope: Scope) -> Result<bool> {
        let own = self.identity.pool.id();
        for snapshot in &self.head.snapshots {
            if scope == Scope::Flatten && snapshot.parent.is_none() {
                continue;
            }
            let root = snapshot.root.clone().unwrap_or_else(empty_root);
            if !root.pools.iter().any(|pool| scope.takes(PoolId(*pool), own)) {
                continue;
            }
            let mut table = self.root_of(Some(snapshot.id)).table(&root)?;
            if needs(&mut table, &self.identity.pool, scope)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True where the head may need files of another pool that are copied.
    fn head_needs(&mut self, scope: Scope) -> Result<bool> {
        needs(&mut self.state.table, &self.identity.pool, scope)
    }

    /// True where the image or one of its snapshots may need files of this pool.
    pub(super) fn needs_pool(&mut self, pool: PoolId) -> Result<bool> {
        let scope = Scope::Migration(pool);
        Ok(self.head_needs(scope)? || self.snapshots_need(scope)?)
    }

    /// Ends the copying for a migration: what [`Self::copy_some`] has not copied yet is copied now. `change` goes into
    /// the head that names nothing of the pool `source` any more.
    pub(super) fn end_migration_copy(
        &mut self,
        source: PoolId,
        progress: &mut dyn FnMut(u64, u64),
        change: impl FnOnce(&mut HeadRecord),
    ) -> Result<()> {
        let scope = Scope::Migration(source);
        let mut total = 0;
        loop {
            let (left, more) = self.copy_some(scope)?;
            total = total.max(left);
            if !more {
                break;
            }
            progress(total - left, total.max(1));
        }
        let set = self.end_of_copying()?.deep.map_or(0, |deep| deep.copies.set);
        if set == 0 && self.head_needs(scope)? {
            self.begin_writing()?;
            self.rewrite_foreign_pages(scope)?;
        }
        let here = Place { pool: self.identity.pool.id(), copies: set };
        self.checkpoint_with(|head| {
            if set != 0 {
                head.copying = 0;
                move_to(head, here, scope);
            }
            change(head);
        })?;
        if set != 0 {
            self.state.table.move_to(here, |pool| scope.takes(pool, here.pool));
        }
        Ok(())
    }

    /// As [`Self::flatten_some`], for an image with snapshots.
    fn deep_part(&mut self) -> Result<(u64, bool)> {
        let mut deep = match self.state.flattening.deep.take() {
            Some(deep) => deep,
            None => self.begin_deep()?,
        };
        if !deep.done {
            // Where this fails, the next part starts again, and skips what the medium has already.
            deep.done = self.copy_states(&mut deep)?;
        }
        let left = match deep.done {
            true => 0,
            false => deep.total.saturating_sub(deep.copied).max(1),
        };
        let more = !deep.done;
        self.state.flattening.deep = Some(deep);
        Ok((left, more))
    }

    /// Notes in the head which set of copies is being made, before the first copy exists.
    fn begin_deep(&mut self) -> Result<Deep> {
        if self.head.copying == 0 {
            let set = self.identity.pool.unique();
            self.publish(|head| head.copying = set)?;
        }
        let mut deep = Deep::default();
        deep.copies.set = self.head.copying;
        // An estimate: blocks that only a state between the oldest and the head has are not counted.
        let scope = self.state.flattening.scope;
        let (in_head, _) = self.foreign_live(scope)?;
        let taken = |s: &&SnapshotRecord| scope != Scope::Flatten || s.parent.is_some();
        let oldest = self.head.snapshots.iter().find(taken);
        let in_oldest = match oldest.map(|s| (s.id, s.root.clone().unwrap_or_else(empty_root))) {
            Some((id, root)) => {
                let mut table = self.root_of(Some(id)).table(&root)?;
                foreign_in(&mut table, &self.identity.pool, scope)?.0
            }
            None => 0,
        };
        deep.total = in_head.max(in_oldest);
        Ok(deep)
    }

    /// Copies some of the next state; true where nothing is left to copy.
    fn copy_states(&mut self, deep: &mut Deep) -> Result<bool> {
        let next = self.head.snapshots.iter().map(|s| s.id).find(|id| *id > deep.done_snap);
        if deep.at != next {
            (deep.at, deep.below) = (next, 0);
        }
        // The last snapshot that is done has the most in common with the next state.
        let before = self.head.snapshots.iter().rfind(|s| s.id <= deep.done_snap);
        let before = before.map(|s| (Some(s.id), s.root.clone().unwrap_or_else(empty_root)));
        let (id, root) = before.unwrap_or_else(|| (None, empty_root()));
        let before = OwnedRoot { of: self.root_of(id), root };
        let (state, label) = match next {
            None => (None, self.identity.label.clone()),
            Some(id) => {
                let snapshot = self.head.snapshots.iter().find(|s| s.id == id);
                let name = snapshot.map(|s| s.name.clone()).unwrap_or_default();
                let root = snapshot.and_then(|s| s.root.clone()).unwrap_or_else(empty_root);
                let state = OwnedRoot { of: self.root_of(Some(id)), root };
                (Some(state), format!("{}@{name}", self.identity.label))
            }
        };
        let mut opened = state.as_ref().map(|state| state.of.open(&state.root)).transpose()?;
        let pool = self.identity.pool.clone();
        let (top, table) = match &mut opened {
            Some((map, table)) => (map.top().clone(), table),
            None => (self.state.map.top().clone(), &mut self.state.table),
        };
        let scope = self.state.flattening.scope;
        let mut found = unshared(&before, (&top, table), deep.below, pool.files())?;
        for page in &found.pages {
            let lies_in = table.recorded_pool({ page.address }.index(), pool.files())?;
            if scope.takes(lies_in, pool.id()) {
                deep.copies.copy_map_page(&pool, table, *page)?;
            }
        }
        let mut foreign = Vec::new();
        let mut names = SegmentNames::default();
        let mut looked_at = found.blocks.len();
        for (i, (block, entry)) in found.blocks.drain(..).enumerate() {
            let lies_in = names.pool_of(table, { entry.address }.index(), pool.files())?;
            if scope.takes(lies_in, pool.id()) {
                foreign.push((block, entry));
                if foreign.len() == COPY_BLOCKS {
                    (looked_at, found.next) = (i + 1, Some(block + 1));
                    break;
                }
            }
        }
        debug_assert!(looked_at <= COMPARED_BLOCKS);
        deep.copied += foreign.len() as u64;
        for run in runs(foreign) {
            if let Some(block) = deep.copies.copy_run(&pool, table, &run)? {
                self.state.flattening.unreadable.get_or_insert((label.clone(), block));
            }
        }
        if let Some(next) = found.next {
            deep.below = next;
            return Ok(false);
        }
        deep.copies.copy_table(&pool, table, |from| scope.takes(from, pool.id()))?;
        match deep.at {
            Some(id) => (deep.done_snap, deep.below) = (id, 0),
            None => deep.copies.sync()?,
        }
        Ok(deep.at.is_none())
    }

    /// Data blocks in other pools, by the table's counts, and whether pages lie there.
    fn foreign_live(&mut self, scope: Scope) -> Result<(u64, bool)> {
        foreign_in(&mut self.state.table, &self.identity.pool, scope)
    }

    /// True where the image may need files of another pool.
    fn names_foreign(&mut self) -> Result<bool> {
        self.head_needs(Scope::Flatten)
    }

    /// Blocks in other pools among the next mapped blocks from `from` on, at most [`COPY_BLOCKS`] and maybe
    /// none, and where to look next; `None` when all were looked at.
    fn foreign_blocks(&mut self, from: u64) -> Result<(Vec<u64>, Option<u64>)> {
        let (own, scope) = (self.identity.pool.id(), self.state.flattening.scope);
        let top = self.state.map.top().clone();
        let mut names = SegmentNames::default();
        let mut found = Vec::new();
        let stretch = self.mapped_stretch(&top, from)?;
        for (block, segment) in &stretch {
            let lies_in =
                names.pool_of(&mut self.state.table, *segment, self.identity.pool.files())?;
            if scope.takes(lies_in, own) {
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
    fn mapped_stretch(&mut self, top: &Link, from: u64) -> Result<Vec<(u64, SegmentIndex)>> {
        struct Stretch(Vec<(u64, SegmentIndex)>);
        impl Visitor for Stretch {
            /// There is nothing to copy, and nothing of the parent is named.
            fn lost(&mut self, _: u64, _: u64) -> Result<bool> {
                Ok(true)
            }
            fn block(&mut self, block: u64, entry: MapEntry) -> Result<bool> {
                self.0.push((block, { entry.address }.index()));
                Ok(self.0.len() < STRETCH_BLOCKS)
            }
        }
        let (_, mut source) = self.state.parts();
        let range = (from, IMAGE_BYTES_MAX / BLOCK_BYTES);
        let mut stretch = Stretch(Vec::new());
        visit(top, TOP_LEVEL, 0, range, &mut source, &mut stretch)?;
        Ok(stretch.0)
    }

    /// Rewrites the pages of map and table that lie in other pools. All blocks that they name lie in this
    /// pool.
    fn rewrite_foreign_pages(&mut self, scope: Scope) -> Result<()> {
        struct Foreign<'a> {
            scope: Scope,
            table: SegmentTable,
            pool: &'a Pool,
            pages: Vec<(MapEntry, u32, u64)>,
        }
        impl Visitor for Foreign<'_> {
            fn page(&mut self, entry: MapEntry, level: u32, base: u64) -> Result<bool> {
                if entry.is_hole() {
                    return Ok(false);
                }
                let address = entry.address;
                let pool = self.table.recorded_pool(address.index(), self.pool.files())?;
                if self.scope.takes(pool, self.pool.id()) {
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
        let pool = self.identity.pool.clone();
        let of = self.root_of(None);
        let (map, mut table) = of.open(&root)?;
        let names = of.table(&root)?;
        let mut foreign = Foreign { scope, table: names, pool: &pool, pages: Vec::new() };
        let mut source = Source::new(&mut table, Arc::clone(pool.files()));
        let all = (0, IMAGE_BYTES_MAX / BLOCK_BYTES);
        visit(map.top(), TOP_LEVEL, 0, all, &mut source, &mut foreign)?;
        for (entry, level, base) in foreign.pages {
            let (map, mut source) = self.state.parts();
            map.rewrite_page(entry.address, level, base, &mut source)?;
        }
        self.state.table.rewrite(self.identity.pool.files())?;
        self.state.changed = true;
        Ok(())
    }

    /// Marks the image as an heir of the parent, whose segments it goes on naming in the same pool. To be
    /// called before a head is published that may drop the link to the parent.
    pub(super) fn mark_heir_of(&self, parent: &ParentRecord) -> Result<()> {
        if parent.pool_id != self.identity.pool.id().0 {
            return Ok(());
        }
        self.identity.pool.mark_heir(Some(ImageId(parent.image_id)), self.identity.id)
    }

    /// Removes the record of this image as a child, unless a head or snapshot still needs it.
    pub(super) fn leave_parent(&mut self, parent: &ParentRecord) -> Result<()> {
        let links = self.head.snapshots.iter().filter_map(|s| s.parent.as_ref());
        let needed = links.chain(&self.head.parent).any(|link| same(link, parent));
        if needed {
            return Ok(());
        }
        super::forget_child(&self.identity.pool, parent, SnapId(parent.snap_id), self.identity.id)
    }
}

/// Data blocks that lie in other pools than an image's own, by the table's counts, and whether map pages do.
///
/// This goes by the list of places in the image's roots. Copies that an ancestor's flatten has made in the
/// image's pool count as foreign: they belong to the ancestor and may be removed with it.
fn foreign_in(table: &mut SegmentTable, pool: &Pool, scope: Scope) -> Result<(u64, bool)> {
    let own = pool.id();
    let pools = table.recorded_pools();
    let (mut data, mut pages) = (0u64, false);
    table.for_each(pool.files(), |_, entry, name| {
        let foreign = pools.get(usize::from(entry.pool)).is_none_or(|from| scope.takes(*from, own));
        if foreign && name.kind == SegmentKind::Data {
            data += u64::from(entry.live);
        }
        pages |= foreign && name.kind == SegmentKind::Map && entry.live > 0;
        Ok(())
    })?;
    Ok((data, pages))
}

/// True where a root may need files that are copied: data, or pages of its map or table.
fn needs(table: &mut SegmentTable, pool: &Pool, scope: Scope) -> Result<bool> {
    let (data, pages) = foreign_in(table, pool, scope)?;
    let own = pool.id();
    Ok(data > 0 || pages || table.has_pages_in(|from| scope.takes(from, own))?)
}

/// True where two links lead to the same snapshot.
pub(super) fn same(a: &ParentRecord, b: &ParentRecord) -> bool {
    (a.pool_id, a.image_id, a.snap_id) == (b.pool_id, b.image_id, b.snap_id)
}

/// Changes a head to say that what its roots name in other pools, as far as it was copied, lies `here`.
fn move_to(head: &mut HeadRecord, here: Place, scope: Scope) {
    let snapshots = head.snapshots.iter_mut().filter_map(|snapshot| snapshot.root.as_mut());
    for root in snapshots.chain(&mut head.root) {
        move_root(root, here, scope);
    }
}

fn move_root(root: &mut RootRecord, here: Place, scope: Scope) {
    let mut places = Place::all(root);
    if here.copies != 0 {
        let moved = |place: &&mut Place| scope.takes(place.pool, here.pool);
        places.iter_mut().filter(moved).for_each(|place| *place = here);
    }
    Place::put_all(&places, root);
}

/// What a state names and the state before it does not, from some block on.
#[derive(Default)]
struct Unshared {
    pages: Vec<MapEntry>,
    blocks: Vec<(u64, MapEntry)>,
    /// The block to go on from, if there is more.
    next: Option<u64>,
}

impl Visitor for Unshared {
    fn page(&mut self, entry: MapEntry, _: u32, _: u64) -> Result<bool> {
        self.pages.push(entry);
        Ok(true)
    }

    /// There is nothing to copy, and nothing of the parent is named.
    fn lost(&mut self, _: u64, _: u64) -> Result<bool> {
        Ok(true)
    }

    fn block(&mut self, block: u64, entry: MapEntry) -> Result<bool> {
        self.blocks.push((block, entry));
        self.next = (self.blocks.len() == COMPARED_BLOCKS).then_some(block + 1);
        Ok(self.next.is_none())
    }
}

fn unshared(
    before: &OwnedRoot,
    (top, table): (&Link, &mut SegmentTable),
    from: u64,
    files: &Arc<crate::segment::Files>,
) -> Result<Unshared> {
    let (map, mut earlier) = before.of.open(&before.root)?;
    let mut earlier = Source::new(&mut earlier, Arc::clone(files));
    let mut later = Source::new(table, Arc::clone(files));
    let (tops, range) = ((map.top(), top), (from, IMAGE_BYTES_MAX / BLOCK_BYTES));
    let mut found = Unshared::default();
    visit_unshared(&mut earlier, &mut later, tops, TOP_LEVEL, 0, range, &mut found)?;
    Ok(found)
}

/// Remembers the pool of the segment asked for last.
#[derive(Default)]
struct SegmentNames {
    last: Option<(SegmentIndex, marcot_format::PoolId)>,
}

impl SegmentNames {
    fn pool_of(
        &mut self,
        table: &mut SegmentTable,
        segment: SegmentIndex,
        files: &crate::segment::Files,
    ) -> Result<marcot_format::PoolId> {
        match self.last {
            Some((known, pool)) if known == segment => Ok(pool),
            _ => {
                let pool = table.recorded_pool(segment, files)?;
                self.last = Some((segment, pool));
                Ok(pool)
            }
        }
    }
}
