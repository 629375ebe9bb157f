//! Dead data segments that are kept, so that they become the next ones.
//!
//! A new file costs more than the data that is written to it: each of its pages has to be found in memory, each of
//! its blocks on the medium, and a flush waits for the file system's journal. A dead segment has all of that
//! already (docs/decisions/0018). What it held lies behind what is written to it. It is not taken for content of
//! the new segment: each group says which segment it belongs to.
//!
//! Invariants:
//! - A segment becomes a spare where it would be removed: a head is durable that does not need it, and no snapshot,
//!   clone or reader does.
//! - This process has created it, so no owner that was replaced may still write to it.
//! - It has no holes, so that writing to it needs no room.

use marcot_format::BLOCK_BYTES;
use marcot_format::segment::SegmentKind;

use crate::catalog::Identity;
use crate::fault::{self, Fault};
use crate::segment::SegmentName;

/// Most spares of an image.
const SPARES_MAX: u64 = 8;
/// Spares are kept only where that much is free on the medium, in bytes.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// The spares of an image.
#[derive(Default)]
pub(super) struct Spares {
    names: Vec<SegmentName>,
    /// Number of the first data segment that this process has created.
    own_from: Option<u32>,
}

/// Which dead segments may become spares.
#[derive(Clone, Copy, Default)]
pub(crate) struct SparesWanted {
    count: usize,
    own_from: u32,
}

impl Spares {
    /// The next data segment that this process creates has this number.
    pub(super) fn begin(&mut self, sequence: u32) {
        self.own_from.get_or_insert(sequence);
    }

    /// What can be used. `live_slots`: slots of the image's data segments that are live.
    pub(super) fn wanted(&self, image: &Identity, live_slots: u64) -> SparesWanted {
        let live_bytes = live_slots * BLOCK_BYTES;
        let most = (live_bytes / image.pool.store().limits().live_bytes_per_spare).min(SPARES_MAX);
        let count = (most as usize).saturating_sub(self.names.len());
        match self.own_from {
            Some(_) if fault::is(Fault::ReuseOfEarlierOwner) => SparesWanted { count, own_from: 0 },
            Some(own_from) => SparesWanted { count, own_from },
            None => SparesWanted::default(),
        }
    }

    pub(super) fn add(&mut self, names: Vec<SegmentName>) {
        self.names.extend(names);
    }

    /// The spare that was used last, which is most likely to be in memory.
    pub(super) fn take(&mut self) -> Option<SegmentName> {
        self.names.pop()
    }

    pub(super) fn take_all(&mut self) -> Vec<SegmentName> {
        std::mem::take(&mut self.names)
    }

    pub(super) fn count(&self) -> u64 {
        self.names.len() as u64
    }
}

/// True where enough is free on the medium to keep dead segments.
pub(super) fn may_keep(image: &Identity) -> bool {
    image.pool.segments().free_bytes().map_or(true, |bytes| bytes >= FREE_BYTES_MIN)
}

impl SparesWanted {
    /// Takes those of the dead segments of an image that can be used again out of `dead`.
    pub(crate) fn choose(self, image: &Identity, dead: &mut Vec<SegmentName>) -> Vec<SegmentName> {
        let mut chosen = Vec::new();
        if self.count == 0 || !may_keep(image) {
            return chosen;
        }
        dead.retain(|name| {
            let fits = chosen.len() < self.count && self.fits(image, *name);
            if fits {
                image.pool.files().forget(*name);
                chosen.push(*name);
            }
            !fits
        });
        chosen
    }

    fn fits(self, image: &Identity, name: SegmentName) -> bool {
        let own = name.pool == image.pool.id() && name.key().set == image.own_set();
        if !own || name.kind != SegmentKind::Data || name.sequence < self.own_from {
            return false;
        }
        let Ok(file) = image.pool.files().open_as_it_is(name, false) else { return false };
        let (Ok(length), Ok(allocated)) = (file.length(), file.allocated_bytes()) else {
            return false;
        };
        // Somebody may keep a copy by a hard link.
        let own = !file.has_other_names().unwrap_or(true);
        own && length >= image.pool.store().limits().spare_bytes_min && allocated >= length
    }
}
