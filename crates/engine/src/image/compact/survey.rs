//! Where the dead slots are: the counts of the segments that an image may empty.

use marcot_format::SegmentIndex;
use marcot_format::segment::SegmentKind;
use marcot_format::table::SegmentEntry;

use super::super::Image;
use crate::error::Result;
use crate::segment::SegmentName;

/// Where live slots are a smaller part than this, every write does a part of the compaction
/// ([`Image::pay_for_space`]).
const LIVE_PERCENT_PAID: u64 = 77;
/// Most slots that are looked at for each slot that a writer writes, in percent: writers must go on.
const PRICE_PERCENT_MAX: u64 = 800;

/// Live and used slots of the private segments of a series, and the emptiest of these segments. Segments with
/// nothing live are left out: the next checkpoint removes them.
#[derive(Default)]
pub(super) struct Survey {
    pub live: u64,
    pub used: u64,
    pub emptiest: Option<(SegmentIndex, SegmentName, u64, u64)>,
}

impl Survey {
    fn add(&mut self, index: SegmentIndex, name: SegmentName, live: u64, used: u64) {
        if live == 0 {
            return;
        }
        self.live += live;
        self.used += used;
        let emptier = self.emptiest.is_none_or(|(.., l, u)| live * u < l * used);
        if live < used && emptier {
            self.emptiest = Some((index, name, live, used));
        }
    }

    pub(super) fn wasteful(&self, dead_min: u64, live_percent: u64) -> bool {
        // Counts of a damaged table may say anything.
        let dead = self.used.saturating_sub(self.live);
        dead >= dead_min && self.live * 100 < self.used * live_percent
    }

    /// Slots that have to be looked at for each slot that a writer writes, in percent, so that the dead slots do
    /// not grow. Emptying a segment of `used` slots gives back the slots that are not live. 20 % more than that
    /// are looked at, to catch up.
    pub(super) fn price_percent(&self, dead_min: u64) -> u64 {
        match self.emptiest {
            Some((.., live, used)) if self.wasteful(dead_min, LIVE_PERCENT_PAID) => {
                (used * 120 / (used - live)).min(PRICE_PERCENT_MAX)
            }
            _ => 0,
        }
    }
}

impl Image {
    pub(super) fn survey(&mut self, kind: SegmentKind) -> Result<Survey> {
        let mut survey = Survey::default();
        let slots_max = u64::from(self.limits().segment_slots - 1);
        if kind == SegmentKind::Data {
            survey.used = self.journal.spare_count() * slots_max;
        }
        for (index, name, entry) in self.closed_private_segments(kind)? {
            // Group headers take slots too, and are removed with their segment. So a closed data segment
            // counts as full.
            let used = u64::from(entry.used);
            let used = if kind == SegmentKind::Data { used.max(slots_max) } else { used };
            survey.add(index, name, u64::from(entry.live), used);
        }
        Ok(survey)
    }

    /// The private segments of a kind that are not appended to, without those that could not be emptied.
    pub(in crate::image) fn closed_private_segments(
        &mut self,
        kind: SegmentKind,
    ) -> Result<Vec<(SegmentIndex, SegmentName, SegmentEntry)>> {
        let files = self.identity.pool.files();
        let open = self.open_segments();
        let mut found = Vec::new();
        self.state.table.for_each(files, |index, entry, name| {
            if name.kind == kind && !open.contains(&name) {
                found.push((index, name, entry));
            }
            Ok(())
        })?;
        found.retain(|(index, name, _)| {
            !self.state.compaction.stuck.contains(index) && self.head.is_private(name)
        });
        Ok(found)
    }
}
