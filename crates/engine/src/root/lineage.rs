//! Whose root it is, and where what it names in other pools lies now.
//!
//! A clone's root names segments of its ancestors by their positions in a list of pools, which
//! begins as the parent snapshot's does. When an ancestor is flattened, what its snapshots name
//! elsewhere is copied into its pool, under the same names, and their lists say so. Those of the
//! clones below stay as they are: nobody rewrites the heads of others. Who cannot read something
//! there looks at the lists of the ancestors, and finds the copy; nobody looks before that, so that
//! opening does not depend on the number of generations.
//!
//! Positions that stand for a root's own pool never move: what lies there is kept by that root.

use std::collections::HashMap;
use std::sync::Arc;

use marcot_format::record::{HeadRecord, ParentRecord, RootRecord};
use marcot_format::{BlockAddress, ImageId, MapEntry, PoolId, SnapId};

use crate::catalog::Pool;
use crate::error::Result;
use crate::map::Map;
use crate::table::{Guide, Place, SegmentTable, Whereabouts};

/// Most ancestors that are asked. A chain of heads that somebody made to go round has an end so.
const ANCESTORS_MAX: usize = 4096;

/// Whose root it is: that of an image, or of one of its snapshots.
#[derive(Clone)]
pub(crate) struct RootOf {
    pub pool: Pool,
    pub image: ImageId,
    pub snap: Option<SnapId>,
}

/// A root and whose it is.
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

    /// Tells a table of the root where its data is.
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
    /// The list of a root as its head has it.
    fn list(&self, root: &RootRecord) -> Vec<Place> {
        let mut places = Place::all(root);
        for place in &mut places {
            // Another user's ancestor may not lead to what that user may not read.
            if !self.pool.files().check_named(self.pool.id(), place.pool).unwrap_or(false) {
                *place = Place::UNKNOWN;
            }
        }
        places
    }
}

/// What lies in other pools than `own` lies where the list of the ancestor above says.
fn put_above(own: PoolId, places: &mut [Place], above: &[Place]) {
    for (place, above) in places.iter_mut().zip(above).filter(|(p, _)| p.pool != own) {
        *place = *above;
    }
}

/// Where data lies that roots of one image have from their ancestors. As [`Whereabouts::places`], but
/// each ancestor's heads are read once, and those of the image not at all: an image may have thousands
/// of snapshots, and its head tells of all.
#[derive(Default)]
pub(crate) struct AncestorPlaces(HashMap<(u64, u64, u64), Option<Vec<Place>>>);

impl AncestorPlaces {
    /// The places of a root with that parent.
    pub(crate) fn places(
        &mut self,
        of: &RootOf,
        root: &RootRecord,
        parent: Option<&ParentRecord>,
    ) -> Vec<Place> {
        let mut places = of.list(root);
        if let Some(parent) = parent {
            let key = (parent.pool_id, parent.image_id, parent.snap_id);
            let of_parent = || RootOf::parent(&of.pool, parent)?.places();
            if let Some(above) = self.0.entry(key).or_insert_with(of_parent) {
                put_above(of.pool.id(), &mut places, above);
            }
        }
        places
    }
}

impl Whereabouts for RootOf {
    fn places(&self) -> Option<Vec<Place>> {
        let known = self.pool.store().open_pools().unwrap_or_default();
        // From the root itself up to the eldest: the pool it lies in, and its list.
        let mut lists: Vec<(PoolId, Vec<Place>)> = Vec::new();
        let mut at = Some(self.clone());
        while let Some(of) = at.take().filter(|_| lists.len() < ANCESTORS_MAX) {
            let Ok(head) = of.pool.read_head(of.image) else { break };
            let (root, parent) = match of.snap {
                None => (head.root, head.parent),
                Some(snap) => match head.snapshots.into_iter().find(|s| s.id == snap.0) {
                    Some(snapshot) => (snapshot.root, snapshot.parent),
                    None => break,
                },
            };
            lists.push((of.pool.id(), of.list(&root.unwrap_or_default())));
            at = parent.and_then(|parent| {
                let pool = known.iter().find(|pool| pool.id().0 == parent.pool_id)?.clone();
                let (image, snap) = (ImageId(parent.image_id), Some(SnapId(parent.snap_id)));
                Some(Self { pool, image, snap })
            });
        }
        let eldest_first = lists.into_iter().rev();
        let nearest = eldest_first.reduce(|(_, above), (own, mut places)| {
            put_above(own, &mut places, &above);
            (own, places)
        });
        nearest.map(|(_, places)| places)
    }
}
