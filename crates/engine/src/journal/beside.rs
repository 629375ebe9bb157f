//! Segments that are written beside the log, and how the log goes on behind them.

use std::sync::Arc;

use marcot_format::group::{GROUP_BESIDE_LOG, GroupHeader};
use marcot_format::{BLOCK_BYTES, SegmentIndex};
use marcot_store::DiskFile;

use super::Journal;
use crate::error::{IoContext, Result};
use crate::fault::{self, Fault};
use crate::segment::{SegmentName, Series};
use crate::table::SegmentTable;

/// A data segment that is written beside the log, and whose number lies between those of two segments of the log.
///
/// Replay goes from one segment of the log to the next by their numbers. So when the log goes on behind this
/// segment, the first slot of it gets an empty group of the log.
pub(super) struct Beside {
    pub name: SegmentName,
    /// Its index in the table.
    pub index: SegmentIndex,
    pub file: Arc<dyn DiskFile>,
}

impl Journal {
    /// Takes the next data segment for copies, to be written beside the log. Its first slot belongs to the
    /// journal. Returns its name, its file, and its index in the table.
    ///
    /// # Errors
    /// Those of [`Series::create`], of writing and of the table. The log passes the segment all the same.
    pub(crate) fn take_segment_beside(
        &mut self,
        epoch: u64,
        series: &mut Series,
        table: &mut SegmentTable,
    ) -> Result<(SegmentName, Arc<dyn DiskFile>, SegmentIndex)> {
        let (name, file, index) = self.take_segment(epoch, series, table)?;
        self.beside.push(Beside { name, index, file: Arc::clone(&file) });
        if let Some(beside) = self.beside.last() {
            self.write_passage(beside, GROUP_BESIDE_LOG)?;
        }
        Ok((name, file, index))
    }

    /// Writes the empty group in the first slot of a segment beside the log.
    fn write_passage(&self, beside: &Beside, group: u64) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let header = GroupHeader {
            author: self.image.id.0,
            epoch: log.epoch,
            sequence: beside.name.sequence,
            group,
            durable_below: if group == GROUP_BESIDE_LOG { 0 } else { log.durable_below },
            records: Vec::new(),
            crcs: Vec::new(),
        };
        let mut bytes = Vec::new();
        header.encode_into(&mut bytes);
        let written = beside.file.write_at(BLOCK_BYTES, &[&bytes]);
        written.at(|| format!("cannot write to {}", self.image.label))
    }

    /// Segments beside the log that the log has not passed. They may not be removed before that.
    pub(crate) fn beside_names(&self) -> impl Iterator<Item = SegmentName> {
        self.beside.iter().map(|beside| beside.name)
    }

    /// The first segment beside the log of which the map in memory may name more than the last checkpoint did.
    pub(crate) fn beside_from(&self) -> Option<SegmentName> {
        let copied_to = self.beside_unsynced.iter().map(|(name, _)| *name);
        copied_to.min_by_key(|name| name.sequence)
    }

    /// `bytes` more were written to a segment beside the log, and the map may name them. They count as log, so
    /// that checkpoints come as often as before.
    pub(crate) fn wrote_beside(&mut self, name: SegmentName, file: Arc<dyn DiskFile>, bytes: u64) {
        self.bytes += bytes;
        if self.beside_unsynced.iter().all(|(known, _)| *known != name) {
            self.beside_unsynced.push((name, file));
        }
    }

    /// Leads the log through the segments beside it to its present segment.
    pub(super) fn pass_beside(&mut self, table: &mut SegmentTable) -> Result<()> {
        let group_next = self.group_next;
        for beside in self.beside.iter().filter(|_| !fault::is(Fault::PassageForgotten)) {
            if let Err(error) = self.write_passage(beside, self.group_next) {
                self.group_next = group_next;
                return Err(error);
            }
            self.group_next += 1;
        }
        for Beside { name, index, file } in std::mem::take(&mut self.beside) {
            table.close_segment(index, self.image.pool.files(), &self.image.label);
            if let Some(log) = &mut self.log {
                log.unsynced.push((name, file));
            }
        }
        Ok(())
    }
}
