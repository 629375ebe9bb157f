//! Writing the changed pages of a table and the pages above them.

use marcot_format::ImageId;
use marcot_format::record::{RootRecord, TablePointer};
use marcot_format::table::{PagePointer, TABLE_FANOUT, encode_pointers, encode_segments};

use super::{Place, SegmentTable, Upper};
use crate::error::Result;
use crate::segment::Files;

/// Takes table pages.
pub(crate) trait TableSink {
    /// Places a page, whose bytes `encode` appends, and returns where it lies. `encode` returns the
    /// page's checksum.
    fn place(&mut self, encode: &mut dyn FnMut(&mut Vec<u8>) -> u32) -> Result<PagePointer>;
}

impl SegmentTable {
    /// Makes every page dirty, so that the next checkpoint writes the whole table again.
    pub(crate) fn rewrite(&mut self, files: &Files) -> Result<()> {
        for number in 0..self.leaves.len() {
            self.entries(number, files)?;
            self.leaves[number].dirty = true;
        }
        Ok(())
    }

    /// Writes the dirty pages to `sink`, and notes in `root` where the table lies.
    pub(crate) fn store(
        &mut self,
        author: ImageId,
        sink: &mut dyn TableSink,
        root: &mut RootRecord,
    ) -> Result<()> {
        for (number, leaf) in self.leaves.iter_mut().enumerate() {
            let Some(entries) = leaf.entries.as_ref().filter(|_| leaf.dirty) else { continue };
            let base = (number * TABLE_FANOUT) as u64;
            let pointer = sink.place(&mut |out| encode_segments(author.0, base, entries, out))?;
            (leaf.stored, leaf.dirty) = (Some(pointer), false);
            if let Some(uppers) = self.upper.first_mut() {
                let above = number / TABLE_FANOUT;
                if uppers.len() <= above {
                    uppers.resize(above + 1, Upper::default());
                }
                uppers[above].dirty = true;
            }
        }
        self.store_upper(author, sink)?;
        let top = match self.upper.last() {
            Some(uppers) => uppers.first().and_then(|u| u.stored),
            None => self.leaves.first().and_then(|l| l.stored),
        };
        root.table = top.map(|p| TablePointer {
            author: p.author,
            sequence: p.sequence,
            pool: u32::from(p.pool),
            page: p.page,
            crc: p.crc,
        });
        root.table_levels = if top.is_some() { self.upper.len() as u32 + 1 } else { 0 };
        root.segment_next = self.next;
        Place::put_all(&self.recorded, root);
        Ok(())
    }

    fn store_upper(&mut self, author: ImageId, sink: &mut dyn TableSink) -> Result<()> {
        let mut below: Vec<Option<PagePointer>> = self.leaves.iter().map(|l| l.stored).collect();
        let mut level = 1;
        while below.len() > 1 {
            let pages = below.len().div_ceil(TABLE_FANOUT);
            if self.upper.len() < level {
                // The table has grown a level: every page of it is new.
                self.upper.push(vec![Upper { stored: None, dirty: true }; pages]);
            }
            self.upper[level - 1].resize(pages, Upper { stored: None, dirty: true });
            for number in 0..pages {
                if !self.upper[level - 1][number].dirty {
                    continue;
                }
                let from = number * TABLE_FANOUT;
                let pointers = &below[from..(from + TABLE_FANOUT).min(below.len())];
                let base = number as u64 * (TABLE_FANOUT as u64).pow(level as u32 + 1);
                let pointer = sink.place(&mut |out| {
                    encode_pointers(level as u8, author.0, base, pointers, out)
                })?;
                self.upper[level - 1][number] = Upper { stored: Some(pointer), dirty: false };
                if let Some(uppers) = self.upper.get_mut(level) {
                    let above = number / TABLE_FANOUT;
                    if let Some(upper) = uppers.get_mut(above) {
                        upper.dirty = true;
                    }
                }
            }
            below = self.upper[level - 1].iter().map(|u| u.stored).collect();
            level += 1;
        }
        Ok(())
    }
}
