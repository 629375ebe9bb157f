//! Estates: the shared segments that removed images leave. They are freed when no heir names them any more.

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

/// Limit on the heads that a removal reads for one author, to free what they do not name. Where an author
/// has more heirs, its segments wait for `gc`, or for a later removal when there are fewer.
const HEADS_MAX: usize = 16;

/// How often a removal tries to take the lock for collecting the pool, at most.
const GC_LOCK_ATTEMPTS: u32 = 50;
/// The time between two attempts.
const GC_LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// An estate that may be freed, and the heads that may name segments of it.
struct Freeing {
    estate: SegmentSet,
    heads: Vec<HeadRecord>,
}

impl Pool {
    /// Frees the segments that a just removed image had shared, and those of its ancestors that were
    /// removed earlier, as far as no heir names them. `own` are the sets that the image made. The cost grows
    /// with the number of heirs, up to [`HEADS_MAX`] for each author, and not with the number of images.
    pub(crate) fn free_estates(&self, image: ImageId, own: &[SegmentSet]) -> Result<()> {
        if own.is_empty() && !self.marks()?.above.contains_key(&image) {
            return Ok(());
        }
        let (freeing, heirs) = self.collect_estates(image, own)?;
        for Freeing { estate, heads } in freeing {
            // The mark lets the next removal of an heir find the estate, if this one is interrupted.
            let noted = self.note_heir(HeirKey::Waiting(estate));
            if let Err(error) = self.free_estate(estate, &heads).and(noted) {
                tracing::info!(author = %estate.author, error = %error.sentence(), "the space of a removed image is left for gc");
            }
        }
        let line = heirs.line(image);
        self.remove_dead_marks(heirs, &line)
    }

    fn collect_estates(&self, image: ImageId, own: &[SegmentSet]) -> Result<(Vec<Freeing>, Heirs)> {
        let _catalogue = self.lock(LockMode::Exclusive)?;
        // The removed head must not come back, after a crash, when its segments are freed.
        self.settle(&Key::Head(image))?;
        let heirs = self.heirs()?;
        let line = heirs.line(image);
        let mut estates = own.to_vec();
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

    /// The sets of copies that an image has made or begun. This is asked before the image is removed,
    /// because another process may remove the marks of an image that is gone.
    ///
    /// Sets that the image names since it was cloned belong to its ancestors, which may be alive. Where it
    /// was cloned from an image that may name sets of this pool, its own sets cannot be told from those.
    /// They are left for `gc`.
    pub(crate) fn own_copies(&self, image: ImageId, head: &HeadRecord) -> Result<Vec<SegmentSet>> {
        let own = self.id().0;
        let root = head.root.clone().unwrap_or_default();
        let mut sets: Vec<u64> = crate::table::Place::all(&root)
            .into_iter()
            .filter(|place| place.pool.0 == own)
            .map(|place| place.copies)
            .filter(|set| *set != 0)
            .collect();
        let is_clone = head.parent.as_ref().is_some_and(|p| p.pool_id == own);
        if !sets.is_empty() && (is_clone || self.marks()?.above.contains_key(&image)) {
            sets.clear();
        }
        sets.extend(Some(head.copying).filter(|set| *set != 0));
        sets.sort_unstable();
        sets.dedup();
        Ok(sets.into_iter().map(|copies| SegmentSet { author: image, copies }).collect())
    }

    /// Frees the segments of an estate that none of these heads names. Holds the lock of `gc` meanwhile.
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

    /// The segments of an author, or of a set of copies with all its authors.
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
                // This fails while something is left.
                let _ = self.segments().remove_set(set);
            }
            found.extend(segments);
        }
        Ok(found)
    }

    /// Removes the marks of images in `line` that are gone and have no living heirs.
    fn remove_dead_marks(&self, mut heirs: Heirs, line: &[ImageId]) -> Result<()> {
        // Images cloned from another pool count as heirs of every author, and would keep every mark.
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

    /// Removes marks that are not needed any more. Called by `gc` after it has freed segments.
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

    /// Takes the lock for collecting the pool, without waiting; `None` where somebody has it.
    pub(crate) fn lock_gc(&self) -> Result<Option<Box<dyn Lock>>> {
        self.try_lease(Lease::Collection)
    }

    /// As [`Self::lock_gc`], but waits a short time, because another removal may hold it for a moment.
    fn lock_gc_soon(&self) -> Result<Option<Box<dyn Lock>>> {
        for _ in 1..GC_LOCK_ATTEMPTS {
            if let Some(lock) = self.lock_gc()? {
                return Ok(Some(lock));
            }
            self.store().inner.world.clock.pause(GC_LOCK_INTERVAL);
        }
        self.lock_gc()
    }

    /// True where an image of another pool is read by a head that may be older than the one on disk. That
    /// head may name segments of a parent in this pool.
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
        // Only durable roots decide what is freed (I5).
        self.settle(&Key::Head(image))?;
        Ok(head)
    }
}
