//! Finding and freeing what no durable root names (I5).
//!
//! A segment that no root names is removed. Where all roots together name fewer slots of a data segment
//! than were written, the other slots are punched out. The addresses of the rest stay the same (I4).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use marcot_format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use marcot_format::{BLOCK_BYTES, MapEntry, MapUnit};

use crate::catalog::Pool;
use crate::error::{ErrorKind, IoContext, Result};
use crate::map::{TOP_LEVEL, Visitor, visit};
use crate::root::{OwnedRoot, Source};
use crate::segment::{SegmentName, groups};
use crate::table::{Place, SegmentTable};

/// Dead slots that a data segment must have at least before a walk over all maps is worth it.
const DEAD_SLOTS_MIN: u64 = 256;
/// Words of a [`SlotMap`].
const SLOT_MAP_WORDS: usize = marcot_format::SEGMENT_SLOTS as usize / 64;

/// What several roots together name.
#[derive(Default)]
pub(crate) struct Named {
    /// For each segment: the sum of the live counts of all roots, which is an upper bound of the slots
    /// named; and the slots ever written.
    pub segments: HashMap<SegmentName, (u64, u64)>,
}

impl Named {
    /// Adds what a root names. A table that was added before, with the same map and the same places,
    /// is skipped.
    pub(crate) fn add(
        &mut self,
        pool: &Pool,
        OwnedRoot { of, root }: &OwnedRoot,
        seen: &mut HashSet<Vec<u8>>,
    ) -> Result<()> {
        let places = (&root.pools, &root.copies);
        let key = format!("{:?}", (&root.table, root.map_address, places)).into_bytes();
        if !seen.insert(key) {
            return Ok(());
        }
        let mut table = of.table(root)?;
        for name in table.page_segments()? {
            self.segments.entry(name).or_default();
        }
        table.for_each(pool.files(), |_, entry, name| {
            if entry.live > 0 {
                let (live, used) = self.segments.entry(name).or_default();
                *live += u64::from(entry.live);
                *used = (*used).max(u64::from(entry.used));
            }
            Ok(())
        })
    }
}

/// Frees space of `candidates`, which nobody may write any more: removes the segments that no root
/// names, and punches dead slots out of the others. Returns the bytes given back.
pub(crate) fn reclaim(
    pool: &Pool,
    roots: &[OwnedRoot],
    candidates: &[SegmentName],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64> {
    let mut named = Named::default();
    let mut seen = HashSet::new();
    for (i, root) in roots.iter().enumerate() {
        named.add(pool, root, &mut seen).map_err(|error| {
            let label = root.of.pool.label_by_names(root.of.image);
            error.context(format!("what {label} names cannot be told, so nothing is freed"))
        })?;
        progress(i as u64, 2 * roots.len() as u64);
    }
    let mut freed = 0;
    let mut partly = HashSet::new();
    for name in candidates {
        match named.segments.get(name) {
            None => freed += pool.files().remove(*name)?,
            Some((live, used)) => {
                if name.kind == SegmentKind::Data && live + DEAD_SLOTS_MIN <= *used {
                    partly.insert(*name);
                }
            }
        }
    }
    if !partly.is_empty() && pool.segments().shipping().is_none() {
        let maps = live_slots(pool, roots, &partly, progress)?;
        for (name, live) in &maps {
            // Splitting an extent may need a block for the file system's own metadata.
            freed += pool.with_reserve(|| punch_dead(pool, *name, live))?;
        }
    }
    progress(1, 1);
    Ok(freed)
}

/// One bit for each slot of a segment.
pub(crate) type SlotMap = Vec<u64>;

struct Marker<'a> {
    wanted: &'a HashSet<SegmentName>,
    maps: &'a mut BTreeMap<SegmentName, SlotMap>,
    /// Pages visited already, by list of places. For a root with another list, the same page may name
    /// other segments.
    seen: &'a mut HashSet<(usize, SegmentName, MapUnit)>,
    /// The number of this root's list of places.
    places: usize,
    table: SegmentTable,
    pool: &'a Pool,
}

impl Visitor for Marker<'_> {
    fn page(&mut self, entry: MapEntry, _level: u32, _base: u64) -> Result<bool> {
        let address = entry.address;
        let name = self.table.name(address.index(), self.pool.files())?;
        Ok(self.seen.insert((self.places, name, address.unit())))
    }

    /// A lost range names nothing.
    fn lost(&mut self, _: u64, _: u64) -> Result<bool> {
        Ok(true)
    }

    fn block(&mut self, _block: u64, entry: MapEntry) -> Result<bool> {
        let address = entry.address;
        let name = self.table.name(address.index(), self.pool.files())?;
        if self.wanted.contains(&name) {
            let map = self.maps.entry(name).or_insert_with(|| vec![0; SLOT_MAP_WORDS]);
            let slot = address.slot().0 as usize;
            if let Some(word) = map.get_mut(slot / 64) {
                *word |= 1 << (slot % 64);
            }
        }
        Ok(true)
    }
}

/// The slots of the segments `wanted` that the roots name. Pages that several roots share are read once.
fn live_slots(
    pool: &Pool,
    roots: &[OwnedRoot],
    wanted: &HashSet<SegmentName>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<BTreeMap<SegmentName, SlotMap>> {
    let mut maps: BTreeMap<SegmentName, SlotMap> = BTreeMap::new();
    for name in wanted {
        maps.insert(*name, vec![0; SLOT_MAP_WORDS]);
    }
    let mut seen = HashSet::new();
    let mut lists: Vec<Vec<Place>> = Vec::new();
    for (i, root) in roots.iter().enumerate() {
        let (map, mut table) = root.of.open(&root.root)?;
        let names = root.of.table(&root.root)?;
        let places = Place::number_of(&Place::all(&root.root), &mut lists);
        let (maps, seen) = (&mut maps, &mut seen);
        let mut marker = Marker { wanted, maps, seen, places, table: names, pool };
        let mut source = Source::new(&mut table, Arc::clone(pool.files()));
        let all = (0, marcot_format::IMAGE_BYTES_MAX / BLOCK_BYTES);
        visit(map.top(), TOP_LEVEL, 0, all, &mut source, &mut marker)?;
        progress((roots.len() + i) as u64, 2 * roots.len() as u64);
    }
    Ok(maps)
}

/// Punches the data slots out of a segment that are not in `live`. Group headers stay. Returns the bytes
/// given back.
fn punch_dead(pool: &Pool, name: SegmentName, live: &SlotMap) -> Result<u64> {
    let file = match pool.files().open_as_it_is(name, true) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        file => file?,
    };
    let context = || format!("cannot give space of segment {name} back");
    let mut header = vec![0; SEGMENT_HEADER_BYTES];
    let n = file.read_at(0, &mut header).at(context)?;
    if SegmentHeader::is_read_only(&header[..n]) {
        tracing::info!(segment = %name, "written by a newer marcot, so nothing is punched out of it");
        return Ok(0);
    }
    let before = file.allocated_bytes().at(context)?;
    let is_live = |slot: usize| live.get(slot / 64).is_some_and(|w| w >> (slot % 64) & 1 == 1);
    for (header_slot, header) in groups(&*file, name.sequence).at(context)? {
        let first = header_slot.0 as usize + header.header_blocks();
        let end = first + header.crcs.len();
        let mut slot = first;
        while slot < end {
            let run = (slot..end).take_while(|s| !is_live(*s)).count();
            if run > 0 {
                file.punch(slot as u64 * BLOCK_BYTES, run as u64 * BLOCK_BYTES).at(context)?;
            }
            slot += run.max(1);
        }
    }
    let after = file.allocated_bytes().at(context)?;
    Ok(before.saturating_sub(after))
}
