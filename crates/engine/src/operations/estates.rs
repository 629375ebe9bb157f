//! What a removed image had shared: it goes when no heir names it any more.

use std::time::Duration;

use marcot_backend::{HeirKey, Key, Lease, SegmentSet};
use marcot_format::ImageId;
use marcot_format::record::HeadRecord;
use marcot_store::{Lock, LockMode};

use super::collect::roots_of;
use crate::catalog::Pool;
use crate::catalog::heirs::{Heirs, UNKNOWN};
use crate::error::Result;
use crate::gc;
use crate::root::OwnedRoot;
use crate::segment::SegmentName;

/// Heads that a removal reads at the most, to free what they do not name. Where an author has more heirs,
/// its segments wait for `gc`, or until there are fewer.
const HEADS_MAX: usize = 16;

/// How often a removal tries whether it may free something, and how long apart.
const GC_LOCK_ATTEMPTS: u32 = 50;
const GC_LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// What may be freed, and the heads that may name it.
struct Freeing {
    estate: SegmentSet,
    heads: Vec<HeadRecord>,
}

impl Pool {
    /// Frees what an image that was just removed had shared, and what authors had that went before it, as
    /// far as their heirs name it no more. Costs by the number of heirs, up to [`HEADS_MAX`] of them, and not
    /// by that of images.
    pub(crate) fn free_estates(
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
        let line = heirs.line(image);
        self.remove_dead_marks(heirs, &line)
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
    pub(crate) fn made_copies(&self, head: &HeadRecord) -> bool {
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
    fn remove_dead_marks(&self, mut heirs: Heirs, line: &[ImageId]) -> Result<()> {
        // Whoever was cloned from another pool is no heir of theirs alone.
        heirs.below.remove(&UNKNOWN);
        for image in line.iter().filter(|image| !self.has_head(**image)) {
            if heirs.living(self, *image, 0).is_none() {
                continue;
            }
            for parent in heirs.above.get(image).into_iter().flatten() {
                self.remove_mark(HeirKey::Mark { parent: *parent, image: *image })?;
            }
        }
        Ok(())
    }

    /// For `gc`, which has freed what nobody names: removes marks that nobody needs.
    pub(crate) fn tidy_heirs(&self) -> Result<()> {
        let _catalogue = self.lock(LockMode::Exclusive)?;
        let heirs = self.heirs()?;
        for estate in &heirs.waiting {
            if self.estate(*estate)?.is_empty() {
                let _ = self.remove_mark(HeirKey::Waiting(*estate));
            }
        }
        let marked: Vec<ImageId> = heirs.above.keys().copied().collect();
        self.remove_dead_marks(heirs, &marked)
    }

    /// Keeps others from collecting the pool; `None` where somebody does.
    pub(crate) fn lock_gc(&self) -> Result<Option<Box<dyn Lock>>> {
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
