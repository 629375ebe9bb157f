//! Where the segments of a root lie: in which pool, and there in which set of copies.

use std::fmt;
use std::sync::Arc;

use marcot_format::PoolId;
use marcot_format::record::RootRecord;

/// Knows in which pools the data of a root lies now. The flatten of an ancestor may have copied data
/// that the root names in another pool.
pub(crate) trait Whereabouts: Send + Sync {
    /// The places by position, as in [`RootRecord::pools`]; `None` where they cannot be found out.
    fn places(&self) -> Option<Vec<Place>>;
}

/// Where segments lie: in a pool, and there in a set of copies; set 0 is what its images wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub pool: PoolId,
    pub copies: u64,
}

impl Place {
    /// Stands for a pool that another user's image names and that the store does not know. No pool has
    /// this number.
    pub(crate) const UNKNOWN: Self = Self { pool: PoolId(0), copies: 0 };

    /// The places that a root refers to by position.
    pub(crate) fn all(root: &RootRecord) -> Vec<Self> {
        let copies = root.copies.iter().copied().chain(std::iter::repeat(0));
        root.pools.iter().zip(copies).map(|(p, copies)| Self { pool: PoolId(*p), copies }).collect()
    }

    /// The number of a list of places among the lists that are known. A new list becomes the last one.
    pub(crate) fn number_of(list: &[Self], known: &mut Vec<Vec<Self>>) -> usize {
        known.iter().position(|other| other == list).unwrap_or_else(|| {
            known.push(list.to_vec());
            known.len() - 1
        })
    }

    /// Puts places into a root, by position.
    pub(crate) fn put_all(places: &[Self], root: &mut RootRecord) {
        root.pools = places.iter().map(|place| place.pool.0).collect();
        let used = places.iter().rposition(|place| place.copies != 0).map_or(0, |last| last + 1);
        root.copies = places[..used].iter().map(|place| place.copies).collect();
    }
}

/// Tells a table where its segments lie now.
#[derive(Clone)]
pub(crate) struct Guide(pub Arc<dyn Whereabouts>);

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guide")
    }
}
