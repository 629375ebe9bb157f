//! Which image or snapshot a root belongs to, and where the data lies that it names in other pools.
//!
//! A clone's root names segments of its ancestors by positions in a list of pools. This list begins
//! like that of the parent snapshot. When an ancestor is flattened, the data that its snapshots name in
//! other pools is copied into its own pool, under the same names, and the lists of its roots are changed
//! to say so. The lists of the clones below stay as they are: nobody rewrites another image's head. A
//! clone that cannot read something reads the lists of its ancestors and finds the copy. It does not
//! look earlier, so opening does not depend on the number of generations.
//!
//! A position that stands for a root's own pool never moves: that root itself keeps the data there. Nor does, in the
//! target of a migration, one that stands for the pool of the source, which keeps all of it until the migration ends.

use std::collections::HashMap;
use std::sync::Arc;

use marcot_format::record::{HeadRecord, MigrationRecord, ParentRecord, RootRecord};
use marcot_format::{BlockAddress, ImageId, MapEntry, PoolId, SnapId};

use crate::catalog::Pool;
use crate::error::Result;
use crate::map::Map;
use crate::table::{Guide, Place, SegmentTable, Whereabouts};

/// Limit on the ancestors that are read. It ends a chain of heads that was forged to go in a circle.
const ANCESTORS_MAX: usize = 4096;

/// What a root belongs to: an image, or one of its snapshots.
#[derive(Clone)]
pub(crate) struct RootOf {
    pub pool: Pool,
    pub image: ImageId,
    pub snap: Option<SnapId>,
}

/// A root, and what it belongs to.
pub(crate) struct OwnedRoot {
    pub of: RootOf,
    pub root: RootRecord,
}

impl RootOf {
    /// The snapshot that a clone was made from; `None` where its pool is out of reach.
    pub(crate) fn parent(pool: &Pool, parent: &ParentRecord) -> Option<Self> {
        let pool = pool.store().pool_by_id(PoolId(parent.pool_id)).ok()?;
        let (image, snap) = (ImageId(parent.image_id), Some(SnapId(parent.snap_id)));
        Some(Self { pool, image, snap })
    }

    /// The table of the root.
    pub(crate) fn table(&self, root: &RootRecord) -> Result<SegmentTable> {
        SegmentTable::open(root, self.pool.id(), self.pool.files(), self.guide())
    }

    /// The guide that tells a table of the root where its data lies.
    pub(crate) fn guide(&self) -> Guide {
        Guide(Arc::new(self.clone()))
    }

    /// Map and table of the root on disk.
    pub(crate) fn open(&self, root: &RootRecord) -> Result<(Map, SegmentTable)> {
        let entry = MapEntry { address: BlockAddress(root.map_address), crc: root.map_crc };
        Ok((Map::open(entry, root.mapped_blocks), self.table(root)?))
    }

    /// The roots of a head: its own and those of its snapshots.
    pub(crate) fn all(pool: &Pool, head: &HeadRecord) -> Vec<OwnedRoot> {
        let of = |snap| Self { pool: pool.clone(), image: ImageId(head.image_id), snap };
        let own = head.root.clone().map(|root| OwnedRoot { of: of(None), root });
        let snapshots = head.snapshots.iter().filter_map(|s| {
            s.root.clone().map(|root| OwnedRoot { of: of(Some(SnapId(s.id))), root })
        });
        own.into_iter().chain(snapshots).collect()
    }
}

impl RootOf {
    /// The places of a root as its head lists them.
    fn list(&self, root: &RootRecord) -> Vec<Place> {
        let mut places = Place::all(root);
        for place in &mut places {
            // Another user's ancestor must not lead to data that this user may not read.
            if !self.pool.files().check_named(self.pool.id(), place.pool).unwrap_or(false) {
                *place = Place::UNKNOWN;
            }
        }
        places
    }
}

/// The pools in which nothing moves that the roots of an image name.
#[derive(Clone, Copy)]
struct Fixed {
    own: PoolId,
    /// Where the source of a migration lies whose target the image is.
    source: Option<PoolId>,
}

impl Fixed {
    fn of(own: PoolId, migration: Option<&MigrationRecord>) -> Self {
        let source = migration.filter(|migration| !migration.is_source);
        Self { own, source: source.map(|migration| PoolId(migration.pool_id)) }
    }

    fn has(&self, pool: PoolId) -> bool {
        pool == self.own || Some(pool) == self.source
    }
}

/// Replaces the places that may have moved by those of the ancestor above.
fn put_above(fixed: Fixed, places: &mut [Place], above: &[Place]) {
    for (place, above) in places.iter_mut().zip(above).filter(|(p, _)| !fixed.has(p.pool)) {
        *place = *above;
    }
}

/// Where the data lies that the roots of one image have from their ancestors. As
/// [`Whereabouts::places`], but the heads above each parent are read once, and the image's own head is
/// not read at all: the caller has it, with all its snapshots, and these may be thousands.
#[derive(Default)]
pub(crate) struct AncestorPlaces(HashMap<(u64, u64, u64), Option<Vec<Place>>>);

impl AncestorPlaces {
    /// The places of a root that has this parent.
    pub(crate) fn places(
        &mut self,
        of: &RootOf,
        root: &RootRecord,
        parent: Option<&ParentRecord>,
        migration: Option<&MigrationRecord>,
    ) -> Vec<Place> {
        let mut places = of.list(root);
        if let Some(parent) = parent {
            let key = (parent.pool_id, parent.image_id, parent.snap_id);
            let of_parent = || RootOf::parent(&of.pool, parent)?.places();
            if let Some(above) = self.0.entry(key).or_insert_with(of_parent) {
                put_above(Fixed::of(of.pool.id(), migration), &mut places, above);
            }
        }
        places
    }
}

impl Whereabouts for RootOf {
    fn places(&self) -> Option<Vec<Place>> {
        let known = self.pool.store().open_pools().unwrap_or_default();
        // From the root itself up to the eldest ancestor: where its data does not move, and its list.
        let mut lists: Vec<(Fixed, Vec<Place>)> = Vec::new();
        let mut at = Some(self.clone());
        while let Some(of) = at.take().filter(|_| lists.len() < ANCESTORS_MAX) {
            let Ok(head) = of.pool.read_head(of.image) else { break };
            let fixed = Fixed::of(of.pool.id(), head.migration.as_ref());
            let (root, parent) = match of.snap {
                None => (head.root, head.parent),
                Some(snap) => match head.snapshots.into_iter().find(|s| s.id == snap.0) {
                    Some(snapshot) => (snapshot.root, snapshot.parent),
                    None => break,
                },
            };
            lists.push((fixed, of.list(&root.unwrap_or_default())));
            at = parent.and_then(|parent| {
                let pool = known.iter().find(|pool| pool.id().0 == parent.pool_id)?.clone();
                let (image, snap) = (ImageId(parent.image_id), Some(SnapId(parent.snap_id)));
                Some(Self { pool, image, snap })
            });
        }
        let eldest_first = lists.into_iter().rev();
        let nearest = eldest_first.reduce(|(_, above), (fixed, mut places)| {
            put_above(fixed, &mut places, &above);
            (fixed, places)
        });
        nearest.map(|(_, places)| places)
    }
}
