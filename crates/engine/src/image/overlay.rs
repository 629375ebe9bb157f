//! What the log says of an image that is only read: which blocks it wrote, and which are holes.
//!
//! An owner brings the log into its map. A reader cannot write map pages, and so could never drop pages that
//! the log has changed: a log that touches one block under each of many pages would decide how much memory
//! its readers take. In an overlay, a write takes a few bytes. Beyond a bound, the overlay keeps only a
//! *window* of the image. It is made again from the log where a read lies outside of the window.

use std::collections::BTreeMap;
use std::sync::Arc;

use marcot_format::group::RecordKind;
use marcot_format::{
    BLOCK_BYTES, BlockAddress, IMAGE_BYTES_MAX, MAP_FANOUT, MapEntry, SegmentIndex, Slot,
};

use crate::journal::Placed;

/// About the memory of a run without its checksums, in bytes.
const RUN_BYTES: u64 = 128;
/// The least memory that an overlay is given, in bytes: a window of one leaf fits in it.
const MEMORY_BYTES_MIN: u64 = 2 * RUN_BYTES * MAP_FANOUT as u64;
const BLOCKS_MAX: u64 = IMAGE_BYTES_MAX / BLOCK_BYTES;

/// Blocks that a group wrote one after the other.
#[derive(Clone)]
struct Written {
    /// Table index of the segment.
    index: SegmentIndex,
    slot: Slot,
    /// Checksums of the record that the run is a part of, and the position in it where the run begins.
    crcs: Arc<[u32]>,
    at: usize,
}

/// A run of blocks up to `end`; its key in the overlay is its first block. `written` is `None` for holes.
struct Run {
    end: u64,
    written: Option<Written>,
}

impl Run {
    fn bytes(&self, start: u64) -> u64 {
        RUN_BYTES + if self.written.is_some() { 4 * (self.end - start) } else { 0 }
    }
}

/// What the log says last about some of the blocks of an image.
pub(super) struct Overlay {
    runs: BTreeMap<u64, Run>,
    bytes: u64,
    bytes_max: u64,
    /// The overlay is complete for these blocks, and says nothing about others.
    window: (u64, u64),
}

impl Overlay {
    /// An empty overlay, which is to take about `bytes_max` of memory at most.
    pub(super) fn new(bytes_max: u64) -> Self {
        let bytes_max = bytes_max.max(MEMORY_BYTES_MIN);
        Self { runs: BTreeMap::new(), bytes: 0, bytes_max, window: (0, BLOCKS_MAX) }
    }

    /// True where the overlay is complete for `[from, to)`.
    pub(super) fn covers(&self, from: u64, to: u64) -> bool {
        self.window.0 <= from && to <= self.window.1
    }

    /// The block behind the window.
    pub(super) fn window_end(&self) -> u64 {
        self.window.1
    }

    /// Forgets everything. The window begins at the leaf of `block`; the caller applies the whole log again.
    pub(super) fn restart(&mut self, block: u64) {
        self.runs.clear();
        self.bytes = 0;
        self.window = (block & !(MAP_FANOUT as u64 - 1), BLOCKS_MAX);
    }

    /// Memory that it takes, roughly, in bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets everything; the window is empty.
    pub(super) fn forget(&mut self) {
        self.restart(0);
        self.window = (0, 0);
    }

    /// Takes in a group.
    pub(super) fn apply(&mut self, placed: &Placed) {
        let Placed { header, index, data_slot } = placed;
        let mut done = 0;
        for record in &header.records {
            let end = record.block + record.count;
            let written = match record.kind {
                RecordKind::Discard => None,
                RecordKind::Write => {
                    let first = done;
                    done += record.count as usize;
                    Some(Written {
                        index: *index,
                        slot: data_slot.after(first as u32),
                        crcs: header.crcs[first..done].into(),
                        at: 0,
                    })
                }
            };
            self.put(record.block, Run { end, written });
        }
    }

    fn put(&mut self, start: u64, run: Run) {
        let (from, to) = (start.max(self.window.0), run.end.min(self.window.1));
        if from >= to {
            return;
        }
        self.carve(from, to);
        let mut run = cut(&run, start, from, to);
        let mut from = from;
        if run.written.is_none() {
            // Discards often follow one another, so they are merged.
            let before = self.runs.range(..from).next_back().map(|(at, r)| (*at, r));
            if let Some((at, before)) = before
                && before.end == from
                && before.written.is_none()
            {
                self.remove(at);
                from = at;
            }
            if self.runs.get(&to).is_some_and(|r| r.written.is_none())
                && let Some(behind) = self.remove(to)
            {
                run.end = behind.end;
            }
        }
        self.insert(from, run);
        if self.bytes > self.bytes_max {
            self.narrow();
        }
    }

    /// Removes what is said about `[from, to)`.
    fn carve(&mut self, from: u64, to: u64) {
        let before = self.runs.range(..from).next_back().map(|(at, r)| (*at, r.end));
        if let Some((at, end)) = before
            && end > from
            && let Some(run) = self.remove(at)
        {
            self.insert(at, cut(&run, at, at, from));
            if end > to {
                self.insert(to, cut(&run, at, to, end));
            }
        }
        while let Some((at, end)) = self.runs.range(from..to).next().map(|(at, r)| (*at, r.end)) {
            let Some(run) = self.remove(at) else { break };
            if end > to {
                self.insert(to, cut(&run, at, to, end));
            }
        }
    }

    fn insert(&mut self, start: u64, run: Run) {
        self.bytes += run.bytes(start);
        self.runs.insert(start, run);
    }

    fn remove(&mut self, start: u64) -> Option<Run> {
        let run = self.runs.remove(&start)?;
        self.bytes = self.bytes.saturating_sub(run.bytes(start));
        Some(run)
    }

    /// Gives up the later half of the window, to save memory.
    fn narrow(&mut self) {
        let middle = self.runs.keys().nth(self.runs.len() / 2).copied().unwrap_or_default();
        let end = middle.max(self.window.0 + MAP_FANOUT as u64);
        self.window.1 = end.min(self.window.1);
        self.carve(end, BLOCKS_MAX);
    }

    /// True where the log says something about a block of `[from, to)`.
    pub(super) fn has_any(&self, from: u64, to: u64) -> bool {
        self.first_run(from, to).is_some()
    }

    /// The first part of `[from, to)` about which the log says something: its first block, the block behind
    /// it, and whether it was written.
    pub(super) fn first_run(&self, from: u64, to: u64) -> Option<(u64, u64, bool)> {
        if from >= to {
            return None;
        }
        let before = self.runs.range(..from).next_back().filter(|(_, run)| run.end > from);
        let (start, run) = before.or_else(|| self.runs.range(from..to).next())?;
        Some(((*start).max(from), run.end.min(to), run.written.is_some()))
    }

    /// Changes the entries of the blocks from `first` on to what the log says.
    pub(super) fn patch(&self, first: u64, entries: &mut [MapEntry]) {
        let end = first + entries.len() as u64;
        let mut at = first;
        while let Some((from, to, _)) = self.first_run(at, end) {
            let run = self.runs.range(..=from).next_back();
            for block in from..to {
                entries[(block - first) as usize] = run.map_or(MapEntry::HOLE, |(start, run)| {
                    let offset = (block - start) as usize;
                    run.written.as_ref().map_or(MapEntry::HOLE, |w| MapEntry {
                        address: BlockAddress::of_block(w.index, w.slot.after(offset as u32)),
                        crc: w.crcs[w.at + offset],
                    })
                });
            }
            at = to;
        }
    }
}

/// The part `[from, to)` of a run that begins at `start`.
fn cut(run: &Run, start: u64, from: u64, to: u64) -> Run {
    let skipped = (from - start) as usize;
    let written = run.written.clone().map(|w| Written {
        slot: w.slot.after(skipped as u32),
        at: w.at + skipped,
        ..w
    });
    Run { end: to, written }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marcot_format::group::{GroupHeader, Record};

    fn group(kind: RecordKind, block: u64, count: u64, crc: u32) -> GroupHeader {
        let crcs = match kind {
            RecordKind::Write => (0..count as u32).map(|i| crc + i).collect(),
            RecordKind::Discard => Vec::new(),
        };
        let records = vec![Record { kind, block, count }];
        GroupHeader { author: 1, epoch: 1, sequence: 1, group: 1, durable_below: 1, records, crcs }
    }

    /// An overlay and a plain array take the same groups. In the array, `None` stands for blocks about which
    /// the log says nothing.
    #[test]
    fn an_overlay_equals_a_plain_array_in_every_window() {
        let mut number = 88_172_645_463_325_252_u64;
        let mut draw = |limit: u64| {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            number % limit
        };
        const BLOCKS: u64 = 16 * MAP_FANOUT as u64;
        for round in 0..10 {
            // Every other overlay has so little memory that it has to use a window.
            let bytes_max = if round % 2 == 0 { 1 << 40 } else { 0 };
            let mut groups = Vec::new();
            for n in 0..8000_u32 {
                let kind = if draw(3) == 0 { RecordKind::Discard } else { RecordKind::Write };
                let block = draw(BLOCKS);
                let count = (1 + draw(if n % 50 == 0 { 300 } else { 3 })).min(BLOCKS - block);
                groups.push(Placed {
                    header: group(kind, block, count, n * 1000),
                    index: SegmentIndex(1 + n % 3),
                    data_slot: Slot(n * 10),
                });
            }
            let mut expected: Vec<Option<MapEntry>> = vec![None; BLOCKS as usize];
            for Placed { header, index, data_slot } in &groups {
                let record = header.records[0];
                for i in 0..record.count {
                    let written = record.kind == RecordKind::Write;
                    expected[(record.block + i) as usize] = Some(match written {
                        false => MapEntry::HOLE,
                        true => MapEntry {
                            address: BlockAddress::of_block(*index, data_slot.after(i as u32)),
                            crc: header.crcs[i as usize],
                        },
                    });
                }
            }
            let mut overlay = Overlay::new(bytes_max);
            let mut restarts = 0;
            for leaf in (0..BLOCKS).step_by(MAP_FANOUT) {
                if leaf == 0 || !overlay.covers(leaf, leaf + MAP_FANOUT as u64) {
                    overlay.restart(leaf);
                    restarts += 1;
                    for placed in &groups {
                        overlay.apply(placed);
                        assert!(overlay.bytes <= overlay.bytes_max + 4096 + 2 * RUN_BYTES);
                    }
                }
                let other =
                    MapEntry { address: BlockAddress::of_block(SegmentIndex(9), Slot(9)), crc: 9 };
                let mut entries = vec![other; MAP_FANOUT];
                overlay.patch(leaf, &mut entries);
                let expected = &expected[leaf as usize..][..MAP_FANOUT];
                for (i, (found, expected)) in entries.iter().zip(expected).enumerate() {
                    assert_eq!(*found, expected.unwrap_or(other), "block {}", leaf as usize + i);
                }
            }
            assert_eq!(restarts > 1, bytes_max == 0);
        }
    }
}
