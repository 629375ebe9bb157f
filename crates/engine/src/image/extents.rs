//! Which parts of a range hold data, and which are holes.

use std::sync::Arc;

use marcot_format::{BLOCK_BYTES, MapEntry};

use super::Image;
use crate::device::Extent;
use crate::error::Result;
use crate::external::External;
use crate::map::{TOP_LEVEL, Visitor, visit};

impl Image {
    /// Extents of data and of holes, in order, `max` of them at most.
    ///
    /// # Errors
    /// Those of reading the map; `OutOfRange` for a range beyond the end of the image.
    pub(super) fn extents_of(
        &mut self,
        offset: u64,
        length: u64,
        max: usize,
    ) -> Result<Vec<Extent>> {
        self.check_range(offset, length)?;
        let end = offset + length;
        let (mut at, stop) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        // Whoever waits for nothing does not wait for a source either: all of it may be data.
        let source = self.external.clone().filter(|_| !self.state.table.refuses_waiting());
        let mut list = ExtentList { extents: Vec::new(), at: offset, end, max, source };
        let mut whole = true;
        while at < stop && whole {
            // First the map up to the next run of the log, then that run.
            let overlay = self.overlay_for(at, at + 1)?;
            let known = overlay.map_or(stop, |o| o.window_end().min(stop));
            let run = overlay.and_then(|o| o.first_run(at, known));
            let (from, to, written) = run.unwrap_or((known, known, false));
            let (map, mut source) = self.state.parts();
            whole = visit(map.top(), TOP_LEVEL, 0, (at, from), &mut source, &mut list)?;
            whole = whole && (!written || list.data(from, to - from));
            at = to;
        }
        let ExtentList { mut extents, at, .. } = list;
        if whole {
            push(&mut extents, at, end, false);
        }
        extents.truncate(max);
        self.evict(self.limits().map_memory_bytes);
        Ok(extents)
    }

    /// As [`Self::extents_of`], but waits for no service.
    pub(super) fn extents_at_hand(
        &mut self,
        offset: u64,
        length: u64,
        max: usize,
    ) -> Result<Vec<Extent>> {
        self.state.table.refuse_waiting();
        let extents = self.extents_of(offset, length, max);
        self.state.table.allow_waiting();
        extents
    }
}

/// Gathers extents while a map is visited.
struct ExtentList {
    extents: Vec<Extent>,
    /// Bytes up to here are listed.
    at: u64,
    end: u64,
    max: usize,
    /// What knows the holes of external blocks.
    source: Option<Arc<External>>,
}

impl ExtentList {
    /// First byte and end of what is to be listed of some blocks.
    fn clipped(&self, first: u64, blocks: u64) -> (u64, u64) {
        ((first * BLOCK_BYTES).max(self.at), ((first + blocks) * BLOCK_BYTES).min(self.end))
    }

    fn data(&mut self, first: u64, blocks: u64) -> bool {
        let (start, stop) = self.clipped(first, blocks);
        push(&mut self.extents, self.at, start, false);
        if self.extents.len() >= self.max {
            return false;
        }
        push(&mut self.extents, start, stop, true);
        self.at = stop;
        self.extents.len() <= self.max
    }
}

impl Visitor for ExtentList {
    /// Listed as data, not as a hole: reading it must fail, and must not be skipped.
    fn lost(&mut self, first: u64, blocks: u64) -> Result<bool> {
        Ok(self.data(first, blocks))
    }

    fn external(&mut self, first: u64, blocks: u64) -> Result<bool> {
        let (start, stop) = self.clipped(first, blocks);
        let Some(source) = self.source.clone() else { return Ok(self.data(first, blocks)) };
        push(&mut self.extents, self.at, start, false);
        self.at = self.at.max(start);
        while self.at < stop && self.extents.len() <= self.max {
            let Ok(parts) = source.extents(self.at, stop - self.at, self.max) else {
                // Where the source does not say it, reading tells.
                push(&mut self.extents, self.at, stop, true);
                self.at = stop;
                break;
            };
            for part in parts {
                push(&mut self.extents, part.offset, part.offset + part.length, part.data);
                self.at = part.offset + part.length;
            }
        }
        Ok(self.extents.len() <= self.max)
    }

    fn block(&mut self, block: u64, _: MapEntry) -> Result<bool> {
        Ok(self.data(block, 1))
    }
}

/// Adds `[from, to)`, merged with the last extent where it is of the same kind.
fn push(extents: &mut Vec<Extent>, from: u64, to: u64, data: bool) {
    if from >= to {
        return;
    }
    match extents.last_mut() {
        Some(last) if last.data == data && last.offset + last.length == from => {
            last.length += to - from;
        }
        _ => extents.push(Extent { offset: from, length: to - from, data }),
    }
}
