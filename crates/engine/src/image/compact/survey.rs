//! Where the dead slots are: the counts of the segments that an image may empty.

use marcot_format::SegmentIndex;
use marcot_format::segment::SegmentKind;
use marcot_format::table::SegmentEntry;

use super::super::Image;
use super::super::checkpoint_job::CheckpointJob;
use crate::error::Result;
use crate::segment::SegmentName;

/// Where live slots are a smaller part than this, every write does a part of the compaction
/// ([`Image::pay_for_space`]).
const LIVE_PERCENT_PAID: u64 = 76;
/// Most slots that are looked at for each slot that a writer writes, in percent: writers must go on.
const PRICE_PERCENT_MAX: u64 = 800;

/// Dead data segments that wait for a checkpoint count as long as they are at most one part in this many of what
/// is live. In a small image, one stretch of log is as much as all that is live.
const WAITING_PART: u64 = 8;

/// Live and used slots of the private segments of a series, and the emptiest of these segments.
#[derive(Default)]
pub(super) struct Survey {
    pub live: u64,
    /// With dead data segments, as far as they count: see [`WAITING_PART`].
    pub used: u64,
    /// Slots of the segments of which nothing is live. A checkpoint removes them.
    waiting: u64,
    /// The emptiest segment, with its live and used slots, but for the one that is being emptied.
    pub emptiest: Option<(SegmentIndex, SegmentName, u64, u64)>,
    /// Live and used slots of the one that is being emptied. As the former become few, they say less and less of what the
    /// next one costs.
    emptied: Option<(u64, u64)>,
}

impl Survey {
    fn add(&mut self, index: SegmentIndex, name: SegmentName, live: u64, used: u64, emptied: bool) {
        if live == 0 {
            self.waiting += used;
            return;
        }
        self.live += live;
        self.used += used;
        if emptied {
            self.emptied = Some((live, used));
            return;
        }
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
        match self.emptiest.map(|(.., live, used)| (live, used)).or(self.emptied) {
            Some((live, used)) if live < used && self.wasteful(dead_min, LIVE_PERCENT_PAID) => {
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
        let first_unwritten = self.state.pages.unwritten_from().map(|unwritten| unwritten.map.0);
        for (index, name, entry) in self.closed_private_segments(kind)? {
            if kind == SegmentKind::Map {
                let is_done = self.state.compaction.map.is_done(index, self.head.version);
                if is_done || first_unwritten.is_some_and(|first| index >= first) {
                    continue;
                }
            }
            // Group headers take slots too, and are removed with their segment. So a closed data segment
            // counts as full.
            let used = u64::from(entry.used);
            let used = if kind == SegmentKind::Data { used.max(slots_max) } else { used };
            let emptied = kind == SegmentKind::Data && self.state.compaction.is_emptying(name);
            survey.add(index, name, u64::from(entry.live), used, emptied);
        }
        if kind == SegmentKind::Data {
            // They take room for as long as other dead slots would be left alone.
            let handed_over =
                self.checkpoint_job.as_ref().map_or(0, CheckpointJob::dead_data_segments);
            survey.waiting += handed_over * slots_max;
            survey.used += survey.waiting.min(survey.live / WAITING_PART);
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
