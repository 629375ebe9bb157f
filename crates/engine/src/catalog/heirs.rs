//! The *heirs* of an author: the images that may name its segments. They are found without reading all
//! heads of a pool.
//!
//! A clone names segments of its ancestors. It goes on doing so after a flatten, if the ancestor lies in
//! the same pool. While the clone is a child, its record shows the relation (see `children`). Before its
//! head drops a parent in the same pool, a mark of the same relation is made. The mark stays as long as
//! the image lives, or any image that was cloned from it. An image gains names of old segments only at its
//! creation, from a snapshot of its parent (I10). So all images that may name a segment of an author can be
//! found by following records and marks from the author.
//!
//! [`HeirKey`] describes the marks.
//!
//! Invariants:
//! - A mark is durable before the head without the parent is durable. Records are listed before marks, so
//!   a relation that changes from a record to a mark meanwhile is seen.
//! - The mark of an image that is gone stays while an heir of that image lives.
//! - An image whose head does not say `leaves_marks` was made before there were marks. What it shared is
//!   freed by comparing all heads of the pool.

use std::collections::{HashMap, HashSet};

use marcot_backend::{HeirKey, Key, Listed, Prefix, SegmentSet};
use marcot_format::ImageId;
use marcot_format::record::HeadRecord;

use super::pool::Pool;
use crate::error::{IoContext, Result};
use crate::fault::{self, Fault};

/// Which images of a pool were cloned from which, by records and marks.
#[derive(Default)]
pub(crate) struct Heirs {
    /// The images cloned from an image.
    pub below: HashMap<ImageId, Vec<ImageId>>,
    /// The images that an image was cloned from, by marks alone.
    pub above: HashMap<ImageId, Vec<ImageId>>,
    /// Sets of segments whose author is gone, and that wait to be freed.
    pub waiting: Vec<SegmentSet>,
}

/// Stands for a parent in another pool. Its heirs may name segments of any author of this pool.
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

    /// The living heirs of an author; `None` where there are more than `count_max`.
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

    /// The image and its ancestors, as far as marks show them.
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
        // Where that cannot be found out, the head counts as present.
        self.records().exists(&Key::Head(image)).unwrap_or(true)
    }

    /// Makes a mark, durably.
    pub(crate) fn note_heir(&self, mark: HeirKey) -> Result<()> {
        let key = Key::Heir(mark);
        let context = || format!("cannot make {}", self.records().show(&key));
        self.with_reserve(|| match self.records().create(&key, &[]) {
            // The process that made it may have been killed before the mark was durable.
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

    /// Notes that an image of this pool may name segments of `parent` even when it is no longer its child.
    /// `None` stands for a parent in another pool whose snapshot names segments of this pool.
    pub(crate) fn mark_heir(&self, parent: Option<ImageId>, image: ImageId) -> Result<()> {
        if fault::is(Fault::FlattenLeavesNoMark) {
            return Ok(());
        }
        self.note_heir(HeirKey::Mark { parent: parent.unwrap_or(UNKNOWN), image })
    }

    /// Called before an image is removed. If the image has heirs, these may name segments of the image's
    /// parent, so a mark keeps the relation.
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

    /// The relations by records and by marks. Records are listed first. The pool's lock is held, so no clone
    /// appears meanwhile.
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

#[cfg(test)]
mod tests {
    use super::super::{CreateOptions, PoolOptions, Store};
    use super::*;
    use crate::operations::CloneOptions;

    #[test]
    fn heirs_are_children_in_the_same_pool_and_images_that_a_mark_names() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let pool = store.pool("rbd").unwrap();
        let other = store.pool_create("other", &PoolOptions::default()).unwrap();
        let parent = |pool: &Pool| {
            let id = pool.create("parent", &CreateOptions::sized(1 << 20)).unwrap();
            let mut image = pool.open(id).unwrap();
            image.snapshot("s").and_then(|_| image.protect("s")).unwrap();
            image.close().unwrap();
            id
        };
        let clone = |from: &Pool, image: ImageId, to: &Pool, name: &str| {
            from.snapshot(image, "s").clone_to(to, name, &CloneOptions::default()).unwrap()
        };
        let (here, there) = (parent(&pool), parent(&other));
        let child = clone(&pool, here, &pool, "child");
        clone(&pool, here, &other, "away");
        clone(&other, there, &pool, "from-there");
        clone(&other, there, &other, "there");
        pool.mark_heir(Some(child), ImageId(7)).unwrap();
        let heirs = pool.heirs().unwrap();
        let wanted = [(here, vec![child]), (child, vec![ImageId(7)])];
        assert_eq!(heirs.below, HashMap::from(wanted));
        assert_eq!(heirs.above, HashMap::from([(ImageId(7), vec![child])]));
    }
}
