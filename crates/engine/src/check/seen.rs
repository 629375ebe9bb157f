//! The set of map pages that were seen, with one bit for each unit of a map segment.

use std::collections::HashMap;

use crate::segment::SegmentName;
use marcot_format::MapUnit;

/// A map page: the number of the list of places by which it is read, its segment, and its first unit
/// there. By another list of places the same page may name other segments.
pub(super) type PageKey = (usize, SegmentName, MapUnit);

/// Units whose bits lie together in memory. It is small, so that a lone page takes little memory.
const CHUNK_UNITS: u32 = 512;

/// A set of pages.
#[derive(Default)]
pub(super) struct PageSet(HashMap<PageKey, [u64; (CHUNK_UNITS / u64::BITS) as usize]>);

/// The chunk of a page, the word in the chunk, and the bit in the word.
fn place((list, name, unit): PageKey) -> (PageKey, usize, u64) {
    let within = unit.0 % CHUNK_UNITS;
    let chunk = (list, name, MapUnit(unit.0 / CHUNK_UNITS));
    (chunk, (within / u64::BITS) as usize, 1 << (within % u64::BITS))
}

impl PageSet {
    /// Adds a page. Returns false where it was there already.
    pub(super) fn insert(&mut self, page: PageKey) -> bool {
        let (chunk, word, bit) = place(page);
        let words = self.0.entry(chunk).or_default();
        let new = words[word] & bit == 0;
        words[word] |= bit;
        new
    }

    /// True where the page is there.
    pub(super) fn contains(&self, page: &PageKey) -> bool {
        let (chunk, word, bit) = place(*page);
        self.0.get(&chunk).is_some_and(|words| words[word] & bit != 0)
    }

    /// Removes a page.
    pub(super) fn remove(&mut self, page: &PageKey) {
        let (chunk, word, bit) = place(*page);
        if let Some(words) = self.0.get_mut(&chunk) {
            words[word] &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use marcot_format::segment::SegmentKind;
    use marcot_format::{ImageId, PoolId};

    use super::*;

    #[test]
    fn pages_are_told_apart_by_list_segment_and_unit() {
        let name = |sequence| SegmentName {
            pool: PoolId(1),
            copies: 0,
            author: ImageId(2),
            kind: SegmentKind::Map,
            sequence,
        };
        let pages: Vec<PageKey> = [0, 1, 63, 64, 511, 512, 65_535]
            .map(MapUnit)
            .into_iter()
            .flat_map(|unit| [(0, name(1), unit), (1, name(1), unit), (0, name(2), unit)])
            .collect();
        let mut set = PageSet::default();
        for page in &pages {
            assert!(!set.contains(page), "{page:?}");
            assert!(set.insert(*page), "{page:?}");
            assert!(!set.insert(*page) && set.contains(page), "{page:?}");
        }
        set.remove(&pages[0]);
        assert!(pages[1..].iter().all(|page| set.contains(page)) && !set.contains(&pages[0]));
    }
}
