//! Who may name an author's segments: its *heirs*, found without looking at all heads of a pool.
//!
//! A clone names segments of its ancestors, and goes on doing so when it has been flattened in their pool.
//! While it is a child, its record tells (see `children`). Before its head lets go of a parent in the same
//! pool, a mark of the same relation is made, which stays for as long as the image lives or anybody does who
//! was cloned from it. An image gains names of old segments only at its creation, from a snapshot of its
//! parent (I10). So whoever may name a segment of an author is found from the author on, by records and marks.
//!
//! What a mark says is told in [`HeirKey`].
//!
//! Invariants:
//! - A mark is durable before the head that lacks the parent is. Records are listed before marks, so that
//!   whoever turns from one into the other meanwhile is seen.
//! - The mark of an image that is gone stays while an heir of that image lives.
//! - An image whose head does not say `leaves_marks` is older than marks are: what it shared is freed by
//!   comparing all heads of the pool.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use marcot_backend::{HeirKey, Key, Lease, Listed, Prefix, SegmentSet};
use marcot_format::ImageId;
use marcot_format::record::HeadRecord;
use marcot_store::{Lock, LockMode};

use super::collect::roots_of;
use super::pool::Pool;
use crate::error::{IoContext, Result};
use crate::fault::{self, Fault};
use crate::gc;
use crate::image::OwnedRoot;
use crate::segment::SegmentName;

/// Heads that a removal reads at the most, to free what they do not name. Where an author has more heirs,
/// its segments wait for `gc`, or until there are fewer.
const HEADS_MAX: usize = 16;

/// How often a removal tries whether it may free something, and how long apart.
const GC_LOCK_ATTEMPTS: u32 = 50;
const GC_LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// Who was cloned from whom in a pool, by records and marks.
#[derive(Default)]
struct Heirs {
    below: HashMap<ImageId, Vec<ImageId>>,
    /// By marks alone.
    above: HashMap<ImageId, Vec<ImageId>>,
    /// Segments of authors that are gone.
    waiting: Vec<SegmentSet>,
}

/// Stands for a parent in another pool: of its heirs it is not known whose segments they name here.
const UNKNOWN: ImageId = ImageId(0);

impl Heirs {
    fn add_mark(&mut self, mark: HeirKey) {
        match mark {
            HeirKey::Mark { parent, image } => {
                self.below.entry(parent).or_default().push(image);
                self.above.entry(image).or_default().push(parent);
            }
            HeirKey::Waiting(set) => self.waiting.push(set),
        }
    }

    /// The living heirs of an author; `None` where there are more than so many.
    fn living(&self, pool: &Pool, author: ImageId, count_max: usize) -> Option<Vec<ImageId>> {
        let (mut living, mut seen) = (Vec::new(), HashSet::new());
        let mut next = vec![author, UNKNOWN];
        while let Some(at) = next.pop() {
            for image in self.below.get(&at).into_iter().flatten().copied() {
                if !seen.insert(image) {
                    continue;
                }
                next.push(image);
                if pool.has_head(image) {
                    living.push(image);
                    if living.len() > count_max {
                        return None;
                    }
                }
            }
        }
        Some(living)
    }

    /// The image and those it was cloned from, as far as marks tell.
    fn line(&self, image: ImageId) -> Vec<ImageId> {
        let mut line = vec![image];
        let mut at = 0;
        while let Some(image) = line.get(at).copied() {
            at += 1;
            for parent in self.above.get(&image).into_iter().flatten() {
                if *parent != UNKNOWN && !line.contains(parent) {
                    line.push(*parent);
                }
            }
        }
        line
    }
}

/// What may be freed, and the heads that may name it.
struct Freeing {
    estate: SegmentSet,
    heads: Vec<HeadRecord>,
}

impl Pool {
    fn has_head(&self, image: ImageId) -> bool {
        // What cannot be looked at is taken to be there.
        self.records().exists(&Key::Head(image)).unwrap_or(true)
    }

    /// Makes a mark, durably.
    fn note_heir(&self, mark: HeirKey) -> Result<()> {
        let key = Key::Heir(mark);
        let context = || format!("cannot make {}", self.records().show(&key));
        self.with_reserve(|| match self.records().create(&key, &[]) {
            // Whoever made it may have been killed before it was durable.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                self.records().settle(&key).at(context)
            }
            made => made.at(context),
        })
    }

    /// Removes a mark. One that is gone is no error.
    fn remove_mark(&self, mark: HeirKey) -> Result<()> {
        let key = Key::Heir(mark);
        match self.records().remove(&key) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.at(|| format!("cannot remove {}", self.records().show(&key))),
        }
    }

    /// Notes that an image of this pool may name what a parent in this pool does, when it is its child no
    /// more. `None`: a parent in another pool, whose snapshots name segments of this one.
    pub(crate) fn mark_heir(&self, parent: Option<ImageId>, image: ImageId) -> Result<()> {
        if fault::is(Fault::FlattenLeavesNoMark) {
            return Ok(());
        }
        self.note_heir(HeirKey::Mark { parent: parent.unwrap_or(UNKNOWN), image })
    }

    /// Before an image goes that heirs of its own lead to: they may name what its parent does.
    pub(super) fn keep_heirs(&self, image: ImageId, head: &HeadRecord) -> Result<()> {
        let Some(parent) = head.parent.as_ref().filter(|p| p.pool_id == self.id().0) else {
            return Ok(());
        };
        if self.marks()?.below.contains_key(&image) {
            self.mark_heir(Some(ImageId(parent.image_id)), image)?;
        }
        Ok(())
    }

    fn marks(&self) -> Result<Heirs> {
        let mut heirs = Heirs::default();
        let listed = self.records().list(&Prefix::Heirs, &mut |listed| {
            if let Listed::Key(Key::Heir(mark)) = listed {
                heirs.add_mark(*mark);
            }
            true
        });
        match listed {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            listed => listed.at(|| format!("cannot list the heirs in pool '{}'", self.name()))?,
        }
        Ok(heirs)
    }

    /// By records first, then by marks. The pool's lock is held, so that no clone appears meanwhile.
    fn heirs(&self) -> Result<Heirs> {
        let own = self.id();
        let records = self.child_keys(|key| key.parent_pool == own && key.child_pool == own)?;
        let mut heirs = self.marks()?;
        for key in records {
            heirs.below.entry(key.parent_image).or_default().push(key.child_image);
        }
        Ok(heirs)
    }

    /// Frees what an image that was just removed had shared, and what authors had that went before it, as
    /// far as their heirs name it no more. Costs by the number of heirs, up to [`HEADS_MAX`] of them, and not
    /// by that of images.
    pub(super) fn free_estates(
        &self,
        image: ImageId,
        head: &HeadRecord,
        shares: bool,
    ) -> Result<()> {
        if !shares && !self.marks()?.above.contains_key(&image) {
            return Ok(());
        }
        let (freeing, heirs) = self.collect_estates(image, head, shares)?;
        for Freeing { estate, heads } in freeing {
            // So that the next removal below the author finds it, where this one is cut off.
            let noted = self.note_heir(HeirKey::Waiting(estate));
            if let Err(error) = self.free_estate(estate, &heads).and(noted) {
                tracing::info!(author = %estate.author, %error, "the space of a removed image is left for gc");
            }
        }
        self.remove_dead_marks(&heirs, &heirs.line(image))
    }

    fn collect_estates(
        &self,
        image: ImageId,
        head: &HeadRecord,
        shares: bool,
    ) -> Result<(Vec<Freeing>, Heirs)> {
        let _catalogue = self.lock(LockMode::Exclusive)?;
        // Who is gone must not come back after what it named.
        self.settle(&Key::Head(image))?;
        let heirs = self.heirs()?;
        let line = heirs.line(image);
        let mut estates: Vec<SegmentSet> = Vec::new();
        if shares {
            let of = |copies| SegmentSet { author: image, copies };
            estates.push(of(0));
            estates.extend(self.own_sets(head, line.len() > 1).map(of));
        }
        let unknown = heirs.above.get(&image).is_some_and(|above| above.contains(&UNKNOWN));
        let above = |estate: &&SegmentSet| unknown || line.contains(&estate.author);
        estates.extend(heirs.waiting.iter().filter(above));
        estates.sort_unstable();
        estates.dedup();
        let mut freeing = Vec::new();
        for estate in estates {
            match heirs.living(self, estate.author, HEADS_MAX) {
                Some(living) => {
                    let heads: Result<_> =
                        living.into_iter().map(|heir| self.durable_head(heir)).collect();
                    freeing.push(Freeing { estate, heads: heads? });
                }
                None => self.note_heir(HeirKey::Waiting(estate))?,
            }
        }
        Ok((freeing, heirs))
    }

    /// True for an image that made copies, or began to.
    pub(super) fn made_copies(&self, head: &HeadRecord) -> bool {
        self.own_sets(head, false).next().is_some()
    }

    /// The sets of copies that a removed image made. Those that it has from a parent are the parent's.
    fn own_sets(&self, head: &HeadRecord, cloned_here: bool) -> impl Iterator<Item = u64> + use<> {
        let own = self.id().0;
        let inherited = cloned_here || head.parent.as_ref().is_some_and(|p| p.pool_id == own);
        let root = head.root.clone().filter(|_| !inherited).unwrap_or_default();
        let mut sets: Vec<u64> = crate::table::Place::all(&root)
            .into_iter()
            .filter(|place| place.pool.0 == own)
            .map(|place| place.copies)
            .chain([head.copying])
            .filter(|set| *set != 0)
            .collect();
        sets.sort_unstable();
        sets.dedup();
        sets.into_iter()
    }

    /// Frees what no head of these names. `gc` does nothing meanwhile.
    fn free_estate(&self, estate: SegmentSet, heads: &[HeadRecord]) -> Result<()> {
        let Some(_lock) = self.lock_gc_soon()? else { return Ok(()) };
        for head in heads {
            if self.being_read(ImageId(head.image_id))? {
                return Ok(());
            }
        }
        if self.is_read_elsewhere()? {
            return Ok(());
        }
        let roots: Vec<OwnedRoot> = heads.iter().flat_map(|head| roots_of(self, head)).collect();
        let freed = gc::reclaim(self, &roots, &self.estate(estate)?, &mut |_, _| {})?;
        tracing::info!(author = %estate.author, freed, "freed what a removed image had shared");
        if self.estate(estate)?.is_empty() {
            let _ = self.remove_mark(HeirKey::Waiting(estate));
        }
        Ok(())
    }

    /// The segments of an author, or of a set of copies, whoever wrote what was copied.
    fn estate(&self, estate: SegmentSet) -> Result<Vec<SegmentName>> {
        let sets = match estate.copies {
            0 => vec![estate],
            copies => {
                let mut sets = self.segment_sets()?;
                sets.retain(|set| set.copies == copies);
                sets
            }
        };
        let mut found = Vec::new();
        for set in sets {
            let segments = self.files().list(self.id(), set)?;
            if segments.is_empty() {
                // Refused while something is left.
                let _ = self.segments().remove_set(set);
            }
            found.extend(segments);
        }
        Ok(found)
    }

    /// Removes the marks of those of `line` that are gone and have no living heirs.
    fn remove_dead_marks(&self, heirs: &Heirs, line: &[ImageId]) -> Result<()> {
        for image in line.iter().filter(|image| !self.has_head(**image)) {
            // Whoever was cloned from another pool is no heir of theirs alone.
            let below = Heirs { below: without_unknown(&heirs.below), ..Heirs::default() };
            if below.living(self, *image, 0).is_none() {
                continue;
            }
            for parent in heirs.above.get(image).into_iter().flatten() {
                self.remove_mark(HeirKey::Mark { parent: *parent, image: *image })?;
            }
        }
        Ok(())
    }

    /// For `gc`, which has freed what nobody names: removes marks that nobody needs.
    pub(super) fn tidy_heirs(&self) -> Result<()> {
        let _catalogue = self.lock(LockMode::Exclusive)?;
        let heirs = self.heirs()?;
        for estate in &heirs.waiting {
            if self.estate(*estate)?.is_empty() {
                let _ = self.remove_mark(HeirKey::Waiting(*estate));
            }
        }
        let marked: Vec<ImageId> = heirs.above.keys().copied().collect();
        self.remove_dead_marks(&heirs, &marked)
    }

    /// Keeps others from collecting the pool; `None` where somebody does.
    pub(super) fn lock_gc(&self) -> Result<Option<Box<dyn Lock>>> {
        self.try_lease(Lease::Collection)
    }

    /// The same; another removal has it for a moment.
    fn lock_gc_soon(&self) -> Result<Option<Box<dyn Lock>>> {
        for _ in 1..GC_LOCK_ATTEMPTS {
            if let Some(lock) = self.lock_gc()? {
                return Ok(Some(lock));
            }
            self.store().inner.world.clock.pause(GC_LOCK_INTERVAL);
        }
        self.lock_gc()
    }

    /// True where an image of another pool is being read by a head that may be older than the one on disk,
    /// and so may name what a parent in this pool had.
    fn is_read_elsewhere(&self) -> Result<bool> {
        for pool in self.store().open_pools()? {
            if pool.id() != self.id() && !pool.read_only() && pool.any_reader()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn durable_head(&self, image: ImageId) -> Result<HeadRecord> {
        let head = self.read_head(image)?;
        // Only a durable root may be what lets something go (I5).
        self.settle(&Key::Head(image))?;
        Ok(head)
    }
}

fn without_unknown(below: &HashMap<ImageId, Vec<ImageId>>) -> HashMap<ImageId, Vec<ImageId>> {
    below.iter().filter(|(parent, _)| **parent != UNKNOWN).map(|(k, v)| (*k, v.clone())).collect()
}
