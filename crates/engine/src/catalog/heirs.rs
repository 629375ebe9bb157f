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

use marcot_backend::{HeirKey, Key, Listed, Prefix, SegmentSet};
use marcot_format::ImageId;
use marcot_format::record::HeadRecord;

use super::pool::Pool;
use crate::error::{IoContext, Result};
use crate::fault::{self, Fault};

/// Who was cloned from whom in a pool, by records and marks.
#[derive(Default)]
pub(crate) struct Heirs {
    pub below: HashMap<ImageId, Vec<ImageId>>,
    /// By marks alone.
    pub above: HashMap<ImageId, Vec<ImageId>>,
    /// Segments of authors that are gone.
    pub waiting: Vec<SegmentSet>,
}

/// Stands for a parent in another pool: of its heirs it is not known whose segments they name here.
pub(crate) const UNKNOWN: ImageId = ImageId(0);

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
    pub(crate) fn living(
        &self,
        pool: &Pool,
        author: ImageId,
        count_max: usize,
    ) -> Option<Vec<ImageId>> {
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
    pub(crate) fn line(&self, image: ImageId) -> Vec<ImageId> {
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

impl Pool {
    pub(crate) fn has_head(&self, image: ImageId) -> bool {
        // What cannot be looked at is taken to be there.
        self.records().exists(&Key::Head(image)).unwrap_or(true)
    }

    /// Makes a mark, durably.
    pub(crate) fn note_heir(&self, mark: HeirKey) -> Result<()> {
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
    pub(crate) fn remove_mark(&self, mark: HeirKey) -> Result<()> {
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
    pub(crate) fn keep_heirs(&self, image: ImageId, head: &HeadRecord) -> Result<()> {
        let Some(parent) = head.parent.as_ref().filter(|p| p.pool_id == self.id().0) else {
            return Ok(());
        };
        if self.marks()?.below.contains_key(&image) {
            self.mark_heir(Some(ImageId(parent.image_id)), image)?;
        }
        Ok(())
    }

    pub(crate) fn marks(&self) -> Result<Heirs> {
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
    pub(crate) fn heirs(&self) -> Result<Heirs> {
        let own = self.id();
        let records = self.child_keys(|key| key.parent_pool == own && key.child_pool == own)?;
        let mut heirs = self.marks()?;
        for key in records {
            heirs.below.entry(key.parent_image).or_default().push(key.child_image);
        }
        Ok(heirs)
    }
}
