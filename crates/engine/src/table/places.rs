//! Where the segments of a root lie: pools, and sets of copies in them.

use std::fmt;
use std::sync::Arc;

use marcot_format::PoolId;
use marcot_format::record::RootRecord;

/// Tells in which pools the data of a root lies now: the flatten of an ancestor may have moved what
/// the root names in some other pool.
pub(crate) trait Whereabouts: Send + Sync {
    /// The places by position, as in [`RootRecord::pools`]; `None` where nobody can tell.
    fn places(&self) -> Option<Vec<Place>>;
}

/// Where segments lie: in a pool, and there among what its images wrote (0) or in a set of copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub pool: PoolId,
    pub copies: u64,
}

impl Place {
    /// In the place of a pool that another user's image names and the store does not know. No pool has
    /// this number.
    pub(crate) const UNKNOWN: Self = Self { pool: PoolId(0), copies: 0 };

    /// Those that a root refers to by position.
    pub(crate) fn all(root: &RootRecord) -> Vec<Self> {
        let copies = root.copies.iter().copied().chain(std::iter::repeat(0));
        root.pools.iter().zip(copies).map(|(p, copies)| Self { pool: PoolId(*p), copies }).collect()
    }

    /// Puts places into a root, by position.
    pub(crate) fn put_all(places: &[Self], root: &mut RootRecord) {
        root.pools = places.iter().map(|place| place.pool.0).collect();
        let used = places.iter().rposition(|place| place.copies != 0).map_or(0, |last| last + 1);
        root.copies = places[..used].iter().map(|place| place.copies).collect();
    }
}

/// Who can tell where a table's segments have gone.
#[derive(Clone)]
pub(crate) struct Guide(pub Arc<dyn Whereabouts>);

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guide")
    }
}
