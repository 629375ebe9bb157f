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

use std::sync::Arc;

use marcot_format::BLOCK_BYTES;
use marcot_format::segment::SegmentKind;

use super::{Journal, Prepared};
use crate::catalog::Identity;
use crate::fault::{self, Fault};
use crate::segment::{SegmentName, Series};

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

impl Journal {
    /// Has the next data segment created for each one that is half full: the open one, and one beside the log if
    /// `target_slot`, where the next group goes in that, says so.
    pub(crate) fn prepare_segments(&mut self, series: &Series, target_slot: Option<u32>) {
        let Some(log) = &self.log else { return };
        let half = self.limits().segment_slots / 2;
        let half_full = |slot: &u32| *slot >= half;
        let wanted =
            [Some(log.slot), target_slot].iter().flatten().filter(|s| half_full(s)).count();
        while self.prepared.len() < wanted {
            let sequence = series.marks().data + self.prepared.len() as u32;
            let name = series.name(SegmentKind::Data, sequence);
            if !series.may_give(name) {
                return;
            }
            let dead = self.spares.take();
            self.prepared.push_back(Prepared::start(&self.image, name, log.epoch, dead));
        }
    }

    /// See [`Spares::wanted`]. Where the medium is nearly full, no segments are kept any more.
    pub(crate) fn spares_wanted(&mut self, live_slots: u64) -> SparesWanted {
        if self.is_shipped() {
            // No key of an object store ever holds two contents.
            return SparesWanted::default();
        }
        if self.spares.count() > 0 && !may_keep(&self.image) {
            self.remove_spares_later();
        }
        self.spares.wanted(&self.image, live_slots)
    }

    /// Keeps dead segments that were chosen ([`SparesWanted::choose`]) for later; removes them where the log was
    /// ended meanwhile.
    pub(crate) fn add_spares(&mut self, names: Vec<SegmentName>) {
        self.spares.add(names);
        if self.log.is_none() {
            self.remove_spares();
        }
    }

    /// Number of dead segments that are kept.
    pub(crate) fn spare_count(&self) -> u64 {
        self.spares.count()
    }

    /// Removes the dead segments that are kept.
    pub(crate) fn remove_spares(&mut self) {
        self.image.remove_segments(self.spares.take_all());
    }

    /// Gives the room of dead segments back, because the image is idle: of those that are kept, and of those that
    /// next segments were made of.
    pub(crate) fn give_dead_back(&mut self) {
        while self.prepared.iter().any(Prepared::is_of_dead)
            && let Some(prepared) = self.prepared.pop_back()
        {
            prepared.remove(&self.image);
        }
        self.remove_spares_later();
    }

    /// As [`Self::remove_spares`], on a worker: it takes longer than a request may wait.
    fn remove_spares_later(&mut self) {
        let names = self.spares.take_all();
        if !names.is_empty() {
            let image = Arc::clone(&self.image);
            let removing = self.workers().start(Box::new(move || image.remove_segments(names)));
            if let Some(before) = self.removing.replace(removing) {
                before.wait();
            }
        }
    }
}
