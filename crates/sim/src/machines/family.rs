//! The images of the pools, as the oracle knows them, and what must hold between parents and children.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use marcot::{ImageId, Pool, SnapId, Store};

use super::lineage::Lineage;
use crate::model::Bytes;
use crate::rules::{Rule, Violation, violation};

/// Blocks of an image, and bytes of a block.
pub(super) const BLOCKS: u64 = 40;
pub(super) const BLOCK: u64 = 4096;
/// The pools.
pub(super) const POOLS: [&str; 2] = ["rbd", "other"];

/// An image.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its pool.
    pub pool: &'static str,
    /// Its number; `None` until its creation was acknowledged.
    pub id: Option<ImageId>,
    /// Its history.
    pub lineage: Lineage,
    /// Snapshots that were acknowledged and are not being removed, with their contents.
    pub snaps: Vec<(u64, Bytes)>,
    /// It was cloned.
    pub is_clone: bool,
    /// Removals that have begun, and that were not refused.
    pub removals: u64,
    /// A removal was acknowledged.
    pub is_gone: bool,
}

impl Known {
    /// The number of an image that exists for sure.
    #[must_use]
    pub fn existing(&self) -> Option<ImageId> {
        self.id.filter(|_| self.removals == 0 && !self.is_gone)
    }
}

/// All images. It is shared by all machines, and nobody holds it while a request is under way.
#[derive(Debug, Clone, Default)]
pub struct Family(Arc<Mutex<Images>>);

/// The images by number, as they are in names.
#[derive(Debug, Default)]
pub struct Images {
    /// The images.
    pub all: BTreeMap<u64, Known>,
    /// Numbers of images, of snapshots and of contents that were given.
    given: u64,
}

impl Images {
    /// A number that nobody else has.
    pub fn give(&mut self) -> u64 {
        self.given += 1;
        self.given
    }

    /// Images that may exist.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.values().filter(|known| !known.is_gone).count()
    }
}

impl Family {
    /// The images.
    pub fn images(&self) -> MutexGuard<'_, Images> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An image.
    #[must_use]
    pub fn get(&self, image: u64) -> Option<Known> {
        self.images().all.get(&image).cloned()
    }

    /// Changes what is known of an image.
    pub fn note(&self, image: u64, change: impl FnOnce(&mut Known)) {
        if let Some(known) = self.images().all.get_mut(&image) {
            change(known);
        }
    }
}

/// The parent of an image, where it has one, is there, keeps the snapshot, and knows the image as a child (I7).
///
/// # Errors
/// A violation of I7.
pub fn check_parent(store: &Store, pool: &Pool, name: &str, id: ImageId) -> Result<(), Violation> {
    let failed = |what: &'static str| {
        move |e: marcot::Error| Violation {
            rule: Rule::I7,
            message: format!("{what} {name}: {}", e.sentence()),
        }
    };
    let info = pool.info(id).map_err(failed("info of"))?;
    let Some(parent) = info.parent else { return Ok(()) };
    let pool_of_parent = store.pool(&parent.pool).map_err(failed("the parent's pool of"))?;
    let known = pool_of_parent.info(parent.image_id).map_err(failed("the parent of"))?;
    let Some(snap) = known.snapshots.iter().find(|snap| snap.id == parent.snap_id) else {
        return violation(Rule::I7, format!("the parent of {name} is gone"));
    };
    if parent.clone_format == 1 && !snap.protected {
        violation(Rule::I7, format!("the parent of {name} is not protected"))?;
    }
    let children = store.children(&pool_of_parent, parent.image_id, None);
    let children = children.map_err(failed("the parent's children of"))?;
    let is_it =
        |snap: SnapId| children.iter().any(|child| child.image_id == id && child.snap_id == snap);
    if !is_it(parent.snap_id) {
        violation(Rule::I7, format!("{name} is not among the children of its parent"))?;
    }
    Ok(())
}
